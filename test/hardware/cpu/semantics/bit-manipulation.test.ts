/** BMI, MOVBE, CRC32, ADX: encodings that raise #UD, and faults of the memory operand that leave everything as it was. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { CODE, DATA, GuestBench, RAX, RIP } from '../guest-bench.ts';

const UD = 0x46;
const PF = 0x4e;
const HLT = 0x78;
const [RCX, RDX, RBX, RSI, R8] = [1, 2, 3, 6, 8] as const;
const NOWHERE = 0x7fff_0000n;

let bench: GuestBench;
beforeEach(() => {
  bench = new GuestBench();
  bench.interceptException(6);
  bench.interceptException(14);
});
afterEach(() => bench.close());

const run = (...bytes: number[]): number => bench.runBytes(...bytes);

describe('VEX-encoded integer instructions', () => {
  const andn = [0xc4, 0xe2, 0x60, 0xf2, 0xc1]; // andn eax, ebx, ecx
  it('run where nothing stands before VEX', () => {
    bench.core.gpr[RBX] = 0xff00ff00ff00ff00n;
    bench.core.gpr[RCX] = 0x123456789abcdef0n;
    expect(run(...andn)).toBe(HLT);
    expect(bench.long(RAX)).toBe(0x00bc00f0n);
  });
  it.each([
    ['LOCK', [0xf0]],
    ['an operand-size prefix', [0x66]],
    ['REP', [0xf3]],
    ['REPNE', [0xf2]],
    ['REX', [0x48]],
  ])('raise #UD behind %s', (_, prefix) => {
    expect(run(...prefix, ...andn)).toBe(UD);
    expect(bench.long(RIP)).toBe(BigInt(CODE));
  });
  it.each([
    ['ANDN', [0xc4, 0xe2, 0x64, 0xf2, 0xc1]],
    ['BLSR', [0xc4, 0xe2, 0x64, 0xf3, 0xc9]],
    ['BZHI', [0xc4, 0xe2, 0x64, 0xf5, 0xc1]],
    ['PDEP', [0xc4, 0xe2, 0x67, 0xf5, 0xc1]],
    ['RORX', [0xc4, 0xe3, 0x7f, 0xf0, 0xc1, 1]],
  ])('%s raises #UD with VEX.L', (_, bytes) => {
    expect(run(...bytes)).toBe(UD);
  });
  it('RORX raises #UD with an operand in VEX.vvvv, which it does not have', () => {
    expect(run(0xc4, 0xe3, 0x7b, 0xf0, 0xc1, 4)).toBe(HLT);
    expect(run(0xc4, 0xe3, 0x63, 0xf0, 0xc1, 4)).toBe(UD);
  });
  it('need no XCR0 and no CR4.OSXSAVE', () => {
    expect(bench.long(0x548) & 0x40000n).toBe(0n);
    expect(run(...andn)).toBe(HLT);
  });
});

describe('a memory operand that faults', () => {
  it.each([
    ['MULX', [0xc4, 0xe2, 0x63, 0xf6, 0x0e]], // mulx ecx, ebx, [rsi]
    ['PEXT', [0xc4, 0xe2, 0x62, 0xf5, 0x0e]],
    ['BLSR', [0xc4, 0xe2, 0x70, 0xf3, 0x0e]],
    ['MOVBE from memory', [0x0f, 0x38, 0xf0, 0x0e]],
    ['MOVBE to memory', [0x0f, 0x38, 0xf1, 0x0e]],
    ['CRC32', [0xf2, 0x0f, 0x38, 0xf1, 0x0e]],
    ['ADCX', [0x66, 0x0f, 0x38, 0xf6, 0x0e]],
  ])('of %s changes no register and no flag', (_, bytes) => {
    const { gpr } = bench.core;
    gpr[RCX] = 0x1111n;
    gpr[RDX] = 0x2222n;
    gpr[RBX] = 0x3333n;
    gpr[RSI] = NOWHERE;
    bench.setLong(0x570, 0xcd7n);
    expect(run(...bytes)).toBe(PF);
    expect(bench.long(0x80)).toBe(NOWHERE);
    expect([gpr[RCX], gpr[RDX], gpr[RBX], gpr[RSI]]).toEqual([0x1111n, 0x2222n, 0x3333n, NOWHERE]);
    expect(bench.long(0x570)).toBe(0xcd7n);
  });
});

describe('CRC32', () => {
  it('gives the check value of CRC-32C, by bytes and by quadwords', () => {
    const text = Buffer.from('12345678');
    bench.write(DATA, text.readBigUInt64LE());
    bench.core.gpr[RSI] = BigInt(DATA);
    bench.core.gpr[RCX] = 0xffffffffn;
    expect(run(0xf2, 0x48, 0x0f, 0x38, 0xf1, 0x0e)).toBe(HLT);
    bench.core.gpr[R8] = 0x39n;
    expect(run(0xf2, 0x41, 0x0f, 0x38, 0xf0, 0xc8)).toBe(HLT);
    expect((bench.core.gpr[RCX]! ^ 0xffffffffn) & 0xffffffffn).toBe(0xe3069283n);
  });
});
