/**
 * A million calls of the kernel's interface (test/kernel/kvm/ioctl-fuzz.ts says of what kind). SOFTCVM_FUZZ_SEEDS=1,2,3 picks seeds, SOFTCVM_FUZZ_CALLS how many calls
 * they make together; without seeds eight are drawn from the time of day. A failure prints its seed and the calls before it.
 */
import { describe, expect, it } from 'vitest';
import { IoctlFuzz } from '../kernel/kvm/ioctl-fuzz.ts';

const chosen = process.env['SOFTCVM_FUZZ_SEEDS']?.split(',').map(Number);
const first = Math.floor(Date.now() / 1000) % 1_000_000;
const seeds = chosen ?? Array.from({ length: 8 }, (_, index) => first + index);
const calls = Math.ceil(Number(process.env['SOFTCVM_FUZZ_CALLS'] ?? 1_000_000) / seeds.length);

describe('any ioctl with any value in any order', () => {
  it.each(seeds)(
    'has a declared answer, leaks nothing and touches no other VM: seed %i',
    (seed) => {
      const kernel = seed % 2 === 0 ? '6.12' : '7.2';
      const fuzz = new IoctlFuzz({ seed, kernel });
      fuzz.run(calls);
      fuzz.close();
      const { exits, ...counts } = fuzz.counts;
      console.log(
        `seed ${seed}, Linux ${kernel}: ${JSON.stringify(counts)}, KVM_RUN: ${JSON.stringify(Object.fromEntries(exits))}`,
      );
      expect(counts.calls).toBeGreaterThanOrEqual(calls);
    },
    3_600_000,
  );
});
