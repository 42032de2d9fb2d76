/** Guests of random bytes: whatever they do, the core ends in an exit or says by name what is missing, and the host's memory is whole. */
import fc from 'fast-check';
import { expect, it } from 'vitest';
import type { Spa } from '../../../src/base/address.ts';
import { NotImplementedError } from '../../../src/base/errors.ts';
import { CODE, DATA, GuestBench, HANDLERS, RIP, RSP, STACK } from './guest-bench.ts';

/** Bytes that lead to system instructions more often than chance does. */
const opcode = fc.oneof(
  fc.uint8Array({ minLength: 1, maxLength: 8 }),
  fc
    .tuple(
      fc.constantFrom(0x00, 0x01, 0x20, 0x22, 0x23, 0xae, 0x30, 0x32, 0xa2, 0x31),
      fc.integer({ min: 0, max: 255 }),
    )
    .map(([a, b]) => Uint8Array.of(0x0f, a, b)),
  fc
    .constantFrom(
      [0xcf],
      [0x48, 0xcf],
      [0xcb],
      [0x9d],
      [0x8e, 0xd8],
      [0x8e, 0xd0],
      [0xf4],
      [0x0f, 0x05],
      [0x48, 0x0f, 0x07],
      [0xcc],
      [0xcd, 0x41],
      [0xf3, 0xa4],
      [0xf3, 0x48, 0xab],
      [0x6e],
      [0xec],
      [0xfa],
      [0xfb],
    )
    .map((bytes) => Uint8Array.from(bytes)),
);
const address = fc.constantFrom(
  0n,
  8n,
  0x10n,
  0x1bn,
  0x23n,
  BigInt(DATA),
  BigInt(DATA + 0xffd),
  BigInt(STACK),
  0x5000n,
  0x4180n,
  0xc0000080n,
  0xfffff0n,
  1n << 47n,
  (1n << 64n) - 8n,
);
const value = fc.oneof(address, fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }));

it('end in an exit', () => {
  const seen = new Set<number>();
  fc.assert(
    fc.property(
      fc.array(opcode, { minLength: 1, maxLength: 12 }),
      fc.array(value, { minLength: 16, maxLength: 16 }),
      fc.boolean(),
      (program, registers, user) => {
        const bench = new GuestBench();
        try {
          if (user) bench.becomeUser();
          for (let vector = 0; vector < 32; vector++) bench.gate(vector, HANDLERS, { ist: vector & 1 });
          bench.memory.write(bench.spa(HANDLERS), Uint8Array.of(0xf4));
          const bytes = program.flatMap((part) => [...part]);
          for (const [i, byte] of bytes.entries())
            bench.memory.write(bench.spa(CODE + i), Uint8Array.of(byte));
          bench.core.gpr.set(registers);
          bench.setLong(RIP, BigInt(CODE));
          bench.setLong(RSP, BigInt(user ? 0xd000 : STACK));
          const before = bench.memory.load64(bench.nestedLeaf(0xff)) & ~0x60n;
          const code = bench.run(undefined, 300);
          seen.add(code);
          expect([0x60, 0x72, 0x78, 0x7b, 0x7c, 0x7f, 0x81, 0x400]).toContain(code);
          expect(bench.memory.load64(bench.nestedLeaf(0xff)) & ~0x60n).toBe(before);
          expect(bench.memory.load64(0 as Spa)).toBe(0n);
        } catch (error) {
          if (!(error instanceof NotImplementedError)) throw error;
        } finally {
          bench.close();
        }
      },
    ),
    { numRuns: 100 },
  );
  expect(seen.size).toBeGreaterThan(3);
});
