/** The short form of test/interop/ioctl-fuzz.test.ts. */
import { describe, expect, it } from 'vitest';
import { IoctlFuzz } from './ioctl-fuzz.ts';

describe('any ioctl with any value in any order', () => {
  it.each([
    { seed: 1, kernel: '7.2' },
    { seed: 2, kernel: '6.12' },
    { seed: 3, kernel: '7.2' },
  ] as const)(
    'has a declared answer, leaks nothing and touches no other VM: $kernel, seed $seed',
    ({ seed, kernel }) => {
      const fuzz = new IoctlFuzz({ seed, kernel });
      fuzz.run(3000);
      fuzz.close();
      const { succeeded, refused, outOfRange, runs } = fuzz.counts;
      expect(succeeded).toBeGreaterThan(500);
      expect(refused).toBeGreaterThan(500);
      expect(outOfRange).toBeGreaterThan(20);
      expect(runs).toBeGreaterThan(500);
    },
  );
});
