/** RDRAND, RDSEED and RDPID. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { CODE, GuestBench, RAX, RFLAGS, RIP } from './guest-bench.ts';

const [RCX, RDX, RBX] = [1, 2, 3] as const;
const HLT = 0x78;
const ALL = 0xffff_ffff_ffff_ffffn;

let bench: GuestBench;
beforeEach(() => {
  bench = new GuestBench();
  bench.interceptException(6);
});
afterEach(() => bench.close());

describe.each([
  ['RDRAND', 0xf0],
  ['RDSEED', 0xf8],
])('%s', (_, modrm) => {
  it('fills 64, 32 and 16 bits of a register', () => {
    const { gpr } = bench.core;
    gpr[RCX] = ALL;
    gpr[RDX] = ALL;
    gpr[RBX] = ALL;
    const code = [0x48, 0x0f, 0xc7, modrm | 1, 0x0f, 0xc7, modrm | 2, 0x66, 0x0f, 0xc7, modrm | 3];
    expect(bench.runBytes(...code)).toBe(HLT);
    expect(gpr[RCX]! >> 32n).not.toBe(0n);
    expect(gpr[RCX]).not.toBe(ALL);
    expect(gpr[RDX]! >> 32n).toBe(0n);
    expect(gpr[RDX]).not.toBe(0xffffffffn);
    expect(gpr[RBX]! >> 16n).toBe(ALL >> 16n);
  });
  it('sets CF and clears the other arithmetic flags', () => {
    bench.setLong(RFLAGS, 0x8d6n);
    bench.runBytes(0x48, 0x0f, 0xc7, modrm);
    expect(bench.long(RFLAGS)).toBe(0x3n);
    bench.setLong(RFLAGS, 0x402n);
    bench.runBytes(0x48, 0x0f, 0xc7, modrm);
    expect(bench.long(RFLAGS)).toBe(0x403n);
  });
  it('gives another number each time, and the same ones in every run', () => {
    const numbers = (on: GuestBench) => {
      on.runBytes(0x48, 0x0f, 0xc7, modrm | 1, 0x48, 0x0f, 0xc7, modrm);
      return [on.core.gpr[RCX], on.long(RAX)];
    };
    const first = numbers(bench);
    expect(first[0]).not.toBe(first[1]);
    const other = new GuestBench();
    expect(numbers(other)).toEqual(first);
    other.close();
  });
  it('of memory raises #UD', () => {
    expect(bench.runBytes(0x0f, 0xc7, (modrm & 0x38) | 6)).not.toBe(HLT);
    expect(bench.long(RIP)).toBe(BigInt(CODE));
  });
});

describe('RDPID', () => {
  it('gives TSC_AUX as RDTSCP does', () => {
    // mov ecx, 0xc0000103; mov eax, 0x1234; xor edx, edx; wrmsr; rdpid rcx
    const wrmsr = [0xb9, 0x03, 0x01, 0x00, 0xc0, 0xb8, 0x34, 0x12, 0, 0, 0x31, 0xd2, 0x0f, 0x30];
    bench.intercept(124, 0);
    expect(bench.runBytes(...wrmsr, 0xf3, 0x0f, 0xc7, 0xf9)).toBe(HLT);
    expect(bench.core.gpr[RCX]).toBe(0x1234n);
  });
});
