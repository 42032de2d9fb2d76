/** Random bytes outside 64-bit mode: whatever they do, the core ends in an exit or says by name what is missing. */
import fc from 'fast-check';
import { expect, it } from 'vitest';
import { CODE, CR0, CR4, DATA, EFER, GDT, GuestBench, IDT, RIP, RSP, STACK } from '../guest-bench.ts';

/** Exits that the bench's intercepts allow, and what a refusal by name ends in. */
const EXITS = [0x60, 0x72, 0x78, 0x7b, 0x7c, 0x7d, 0x7f, 0x81, 0x400, 0xf00000ff | 0];

const opcode = fc.oneof(
  fc.uint8Array({ minLength: 1, maxLength: 8 }),
  fc
    .tuple(fc.constantFrom(0x00, 0x01, 0x20, 0x22, 0xb2, 0xb4, 0x30, 0x32, 0xa1, 0xa9), fc.nat(255))
    .map(([a, b]) => Uint8Array.of(0x0f, a, b)),
  fc
    .tuple(
      fc.constantFrom([], [0x66], [0x67], [0x26], [0x36], [0xf3], [0xf2, 0x67]),
      fc.constantFrom([0xcf], [0xcb], [0x9d], [0x8e, 0xd8], [0x8e, 0xd0], [0x1f], [0x17], [0xcd, 0x41]),
      fc.constantFrom([0xa4], [0x60], [0x61], [0xc9], [0xc8, 4, 0, 3], [0xff, 0x1e, 0, 0x50], [0x6e], [0xaf]),
    )
    .map((parts) => Uint8Array.from(parts.flat())),
);
const value = fc.oneof(
  fc.constantFrom(0n, 8n, 0x10n, 0x1bn, BigInt(DATA), BigInt(STACK), 0x5000n, 0xfffdn, 0xffffn, 0xfffffffdn),
  fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
);

it('ends in an exit', () => {
  const seen = new Set<number>();
  fc.assert(
    fc.property(
      fc.array(opcode, { minLength: 1, maxLength: 12 }),
      fc.array(value, { minLength: 16, maxLength: 16 }),
      fc.constantFrom('real', 'protected', 'user', 'compatibility'),
      (program, registers, mode) => {
        const bench = new GuestBench();
        try {
          const user = mode === 'user';
          bench.intercept(125);
          bench.write(GDT + 0x18, 0x00cf9a000000ffffn);
          if (mode !== 'compatibility') {
            bench.setLong(CR0, mode === 'real' ? 0x10n : 0x11n);
            bench.setLong(CR4, 0n);
            bench.setLong(EFER, 0x1000n);
            bench.segment(0x80, 0, 0, 0x7ff, BigInt(mode === 'real' ? DATA : IDT));
          }
          const dpl = user ? 0x60 : 0;
          if (mode === 'real') bench.segment(0x10, 0x1000, 0x9b, 0xffff, BigInt(CODE));
          else bench.segment(0x10, user ? 0x1b : 0x18, 0xc9b | dpl);
          for (const segment of [0x00, 0x20, 0x30]) {
            if (mode === 'real') bench.segment(segment, 0, 0x93, 0xffff);
            else bench.segment(segment, user ? 0x1b : 0x10, 0xc93 | dpl);
          }
          bench.memory.write((bench.vmcb + 0x4cb) as never, Uint8Array.of(user ? 3 : 0));
          const bytes = program.flatMap((part) => [...part]);
          for (const [i, byte] of bytes.entries())
            bench.memory.write(bench.spa(CODE + i), Uint8Array.of(byte));
          bench.core.gpr.set(registers);
          bench.setLong(RIP, mode === 'real' ? 0n : BigInt(CODE));
          bench.setLong(RSP, BigInt(STACK));
          const code = bench.run(undefined, 300);
          seen.add(code);
          expect(EXITS).toContain(code);
        } finally {
          bench.close();
        }
      },
    ),
    { numRuns: 150 },
  );
  expect(seen.size).toBeGreaterThan(3);
});
