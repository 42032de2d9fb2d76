/** Near branches with prefix 66 in 64-bit mode: the rows are what a Milan does. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { GuestBench, RAX, RIP, RSP } from '../guest-bench.ts';

const HLT = 0x78;
const PF = 0x4e;
const SS_FAULT = 0x4c;
/** Where the code lies; what RIP is cut to lies at e000h. */
const CODE = 0x1e100;
const STACK = 0xc800;
const RCX = 1;
const CARRY_AND_ZERO = 0x41n;

let bench: GuestBench;
beforeEach(() => {
  bench = new GuestBench();
  for (const vector of [12, 13, 14]) bench.interceptException(vector);
  for (const page of [0xe, 0x1e])
    for (let at = 0; at < 4096; at += 8) bench.write(page * 4096 + at, 0xf4f4_f4f4_f4f4_f4f4n);
  bench.write(STACK, 0x5555_4444_3333_e222n);
  bench.setLong(RSP, BigInt(STACK));
  bench.setLong(RAX, 0x12_e456n);
});
afterEach(() => bench.close());

function run(bytes: readonly number[], at = CODE): number {
  for (const [n, byte] of bytes.entries()) bench.memory.write(bench.spa(at + n), Uint8Array.of(byte));
  bench.setLong(RIP, BigInt(at));
  return bench.run();
}
const moved = (): bigint => bench.long(RSP) - BigInt(STACK);

describe('operand size 66 in 64-bit mode', () => {
  it.each([
    // text, code, RIP (of HLT), RSP moved by, 16 bits at RSP
    ['call rel16', [0x66, 0xe8, 0x10, 0x00], 0xe114n, -2n, 0xe104],
    ['call rel16 backwards', [0x66, 0xe8, 0xf0, 0xff], 0xe0f4n, -2n, 0xe104],
    ['call ax', [0x66, 0xff, 0xd0], 0xe456n, -2n, 0xe103],
    ['call [rsp]', [0x66, 0xff, 0x14, 0x24], 0xe222n, -2n, 0xe104],
    ['repne call rel16', [0x66, 0xf2, 0xe8, 0x10, 0x00], 0xe115n, -2n, 0xe105],
    ['call rel32 with REX.W', [0x66, 0x48, 0xe8, 0x10, 0, 0, 0], 0x1e117n, -8n, 0xe107],
    ['jmp rel16', [0x66, 0xe9, 0x10, 0x00], 0xe114n, 0n, 0xe222],
    ['jmp rel8', [0x66, 0xeb, 0x10], 0xe113n, 0n, 0xe222],
    ['jmp ax', [0x66, 0xff, 0xe0], 0xe456n, 0n, 0xe222],
    ['jmp [rsp]', [0x66, 0xff, 0x24, 0x24], 0xe222n, 0n, 0xe222],
    ['jmp rax with REX.W', [0x66, 0x48, 0xff, 0x24, 0x24], undefined, 0n, 0xe222],
    ['ret', [0x66, 0xc3], 0xe222n, 2n, 0x3333],
    ['ret 4', [0x66, 0xc2, 0x04, 0x00], 0xe222n, 6n, 0x5555],
  ] as const)('%s', (_text, code, rip, rsp, top) => {
    const exit = run(code);
    // The REX.W form takes all 64 bits, which are no canonical address: #GP.
    expect(exit).toBe(rip === undefined ? 0x4d : HLT);
    expect(bench.long(RIP)).toBe(rip ?? BigInt(CODE));
    expect(moved()).toBe(rsp);
    expect(Number(bench.read(STACK + Number(rsp)) & 0xffffn)).toBe(top);
  });

  it('changes what a RET with REX.W pops: 64 bits', () => {
    bench.write(STACK, BigInt(CODE + 0x40));
    expect([run([0x66, 0x48, 0xc3]), bench.long(RIP), moved()]).toEqual([HLT, BigInt(CODE + 0x40), 8n]);
  });

  /** Flags, and which of the conditions O NO B AE E NE BE A S NS P NP L GE LE G hold. */
  it.each([
    [0x2n, [1, 3, 5, 7, 9, 11, 13, 15]],
    [CARRY_AND_ZERO | 2n, [1, 2, 4, 6, 9, 11, 13, 14]],
    [0x1n | 2n, [1, 2, 5, 6, 9, 11, 13, 15]],
    [0x40n | 2n, [1, 3, 4, 6, 9, 11, 13, 14]],
    [0x80n | 2n, [1, 3, 5, 7, 8, 11, 12, 14]],
    [0x804n | 2n, [0, 3, 5, 7, 9, 10, 12, 14]],
    [0x880n | 2n, [0, 3, 5, 7, 8, 11, 13, 15]],
  ] as const)('cuts RIP where a condition holds, and not where none does: flags %o', (flags, holding) => {
    for (let code = 0; code < 16; code++) {
      const taken = (holding as readonly number[]).includes(code);
      for (const [jump, length] of [
        [[0x66, 0x70 + code, 0x20], 3],
        [[0x66, 0x0f, 0x80 + code, 0x20, 0x00], 5],
      ] as const) {
        bench.setLong(0x570, flags);
        expect(run([...jump, 0xf4])).toBe(HLT);
        expect(bench.long(RIP)).toBe(BigInt((taken ? 0xe120 : CODE) + length));
      }
    }
  });

  it.each([
    // text, code, RCX, RFLAGS; RIP, RCX afterwards
    ['loop', [0x66, 0xe2, 0x10], 2n, 2n, 0xe113n, 1n],
    ['loop to its end', [0x66, 0xe2, 0x10], 1n, 2n, 0x1e103n, 0n],
    ['loop with ECX', [0x66, 0x67, 0xe2, 0x10], 0xff_0000_0002n, 2n, 0xe114n, 1n],
    ['loop with ECX to its end', [0x66, 0x67, 0xe2, 0x10], 0xff_0000_0001n, 2n, 0x1e104n, 0n],
    ['loop from 0', [0x66, 0xe2, 0x10], 0n, 2n, 0xe113n, 0xffff_ffff_ffff_ffffn],
    ['loope', [0x66, 0xe1, 0x10], 2n, 0x42n, 0xe113n, 1n],
    ['loope without ZF', [0x66, 0xe1, 0x10], 2n, 2n, 0x1e103n, 1n],
    ['loopne', [0x66, 0xe0, 0x10], 2n, 2n, 0xe113n, 1n],
    ['loopne with ZF', [0x66, 0xe0, 0x10], 2n, 0x42n, 0x1e103n, 1n],
    ['loopne to its end', [0x66, 0xe0, 0x10], 1n, 2n, 0x1e103n, 0n],
    ['jrcxz', [0x66, 0xe3, 0x10], 0n, 2n, 0xe113n, 0n],
    ['jrcxz with a count', [0x66, 0xe3, 0x10], 1n << 32n, 2n, 0x1e103n, 1n << 32n],
    ['jecxz', [0x66, 0x67, 0xe3, 0x10], 1n << 32n, 2n, 0xe114n, 1n << 32n],
  ] as const)('%s', (_text, code, rcx, flags, rip, left) => {
    bench.core.gpr[RCX] = rcx;
    bench.setLong(0x570, flags);
    expect([run(code), bench.long(RIP), bench.core.gpr[RCX]]).toEqual([HLT, rip, left]);
  });

  it('sees the flags of an instruction before it, which no longer fuse', () => {
    expect([run([0x48, 0x39, 0xc0, 0x66, 0x74, 0x10]), bench.long(RIP)]).toEqual([HLT, 0xe116n]);
    expect([run([0x48, 0x39, 0xc0, 0x66, 0x75, 0x10]), bench.long(RIP)]).toEqual([HLT, 0x1e106n]);
  });

  it('works where the instruction goes on in the next page', () => {
    expect([run([0x66, 0xe8, 0x10, 0x00], 0x1dffe), bench.long(RIP), moved()]).toEqual([HLT, 0xe012n, -2n]);
  });

  it('reads 16 bits of a target in memory, not those behind', () => {
    bench.write(0xcff8, 0xe222_0000_0000_0000n);
    bench.write(0x4000 + 0xd * 8, 0n);
    bench.flush();
    bench.core.gpr[3] = 0xcffen;
    expect([run([0x66, 0xff, 0x23]), bench.long(RIP)]).toEqual([HLT, 0xe222n]);
    expect([run([0x66, 0xff, 0x13]), bench.long(RIP)]).toEqual([HLT, 0xe222n]);
    bench.core.gpr[3] = 0xcfffn;
    expect([run([0x66, 0xff, 0x23]), bench.long(RIP)]).toEqual([PF, BigInt(CODE)]);
  });

  it.each([
    ['call rel16', [0x66, 0xe8, 0x10, 0x00], 0xd000n, 0xcffen],
    ['ret', [0x66, 0xc3], 0xc000n, 0xc000n],
  ] as const)('%s changes nothing where its stack is not there', (_text, code, rsp, missing) => {
    bench.write(0x4000 + 0xc * 8, 0n);
    bench.flush();
    bench.setLong(RSP, rsp);
    expect([run(code), bench.long(RIP), bench.long(RSP)]).toEqual([PF, BigInt(CODE), rsp]);
    expect(bench.long(0x80)).toBe(missing);
  });

  it.each([
    ['call rel16', [0x66, 0xe8, 0x10, 0x00]],
    ['ret', [0x66, 0xc3]],
  ] as const)('%s with a stack pointer that is not canonical is #SS', (_text, code) => {
    bench.setLong(RSP, 1n << 63n);
    expect([run(code), bench.long(RIP)]).toEqual([SS_FAULT, BigInt(CODE)]);
  });
});

describe('LOCK before MOV with CR0', () => {
  it('is MOV with CR8 (AltMovCr8)', () => {
    // lock mov cr0, rax; xor eax, eax; mov rax, cr8; hlt
    bench.setLong(RAX, 5n);
    expect(run([0xf0, 0x0f, 0x22, 0xc0, 0x31, 0xc0, 0x44, 0x0f, 0x20, 0xc0, 0xf4])).toBe(HLT);
    expect(bench.long(RAX)).toBe(5n);
  });
});
