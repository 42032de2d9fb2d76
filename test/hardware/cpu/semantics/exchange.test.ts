/** CMPXCHG8B and CMPXCHG16B: alignment, and the write right that they want even where nothing changes. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { DATA, EXITINFO1, GuestBench, PT, RAX, RFLAGS } from '../guest-bench.ts';

const [RCX, RDX, RBX, RSI] = [1, 2, 3, 6] as const;
const HLT = 0x78;
const GP = 0x4d;
const PF = 0x4e;
const EIGHT = [0x0f, 0xc7, 0x0e]; // cmpxchg8b (%rsi)
const SIXTEEN = [0x48, 0x0f, 0xc7, 0x0e];

let bench: GuestBench;
beforeEach(() => {
  bench = new GuestBench();
  bench.interceptException(13);
  bench.interceptException(14);
  bench.setLong(RAX, 1n);
  bench.core.gpr[RDX] = 2n;
  bench.core.gpr[RBX] = 3n;
  bench.core.gpr[RCX] = 4n;
});
afterEach(() => bench.close());

describe.each([
  ['', []],
  ['LOCK ', [0xf0]],
])('%s', (_, lock) => {
  it('CMPXCHG16B off a boundary of 16 bytes is #GP(0), and nothing has changed', () => {
    bench.write(DATA + 8, 1n);
    bench.write(DATA + 16, 2n);
    bench.core.gpr[RSI] = BigInt(DATA + 8);
    bench.setLong(RFLAGS, 0x8d7n);
    expect(bench.runBytes(...lock, ...SIXTEEN)).toBe(GP);
    expect(bench.long(EXITINFO1)).toBe(0n);
    expect([bench.read(DATA + 8), bench.read(DATA + 16)]).toEqual([1n, 2n]);
    expect(bench.long(RFLAGS)).toBe(0x8d7n);
  });
  it('CMPXCHG8B may lie anywhere, over two pages too', () => {
    bench.core.gpr[RSI] = BigInt(DATA + 0xffc);
    bench.write(DATA + 0xff8, 1n << 32n);
    bench.write(DATA + 0x1000, 2n);
    expect(bench.runBytes(...lock, ...EIGHT)).toBe(HLT);
    expect(bench.long(RFLAGS) & 0x40n).toBe(0x40n);
    expect([bench.read(DATA + 0xff8), bench.read(DATA + 0x1000)]).toEqual([3n << 32n, 4n]);
  });
  it.each([
    ['CMPXCHG8B', EIGHT],
    ['CMPXCHG16B', SIXTEEN],
  ])('%s faults as a write where the comparison fails', (_name, code) => {
    bench.setLong(0x558, 0x80010033n);
    bench.write(PT + (DATA >> 12) * 8, BigInt(DATA) | 1n);
    bench.flush();
    bench.core.gpr[RSI] = BigInt(DATA);
    bench.write(DATA, 0x77n);
    expect(bench.runBytes(...lock, ...code)).toBe(PF);
    expect(bench.long(EXITINFO1)).toBe(3n);
    expect([bench.long(RAX), bench.core.gpr[RDX]]).toEqual([1n, 2n]);
  });
});
