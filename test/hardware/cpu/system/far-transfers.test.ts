/** Far JMP, CALL, RET and IRET in 64-bit mode: segments and call gates, levels, and faults that leave everything as it was. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  CODE,
  DATA,
  EXITINFO1,
  GDT,
  GuestBench,
  KERNEL_CODE,
  PT,
  RAX,
  RFLAGS,
  RIP,
  RSP,
  RSP0,
  STACK,
  TASK,
  USER_CODE,
  USER_DATA,
  USER_STACK,
} from '../guest-bench.ts';

const [RCX, RDX] = [1, 2] as const;
const HLT = 0x78;
const BP = 0x43;
const NP = 0x4b;
const SS_FAULT = 0x4c;
const GP = 0x4d;
const PF = 0x4e;
/** Where far pointers lie, and where they lead. */
const POINTER = DATA;
const TARGET = CODE + 0x200;
const CALL = [0xff, 0x1c, 0x25, 0x00, 0x00, 0x03, 0x00]; // lcall *0x30000 (32-bit offset)
const JUMP = [0xff, 0x2c, 0x25, 0x00, 0x00, 0x03, 0x00]; // ljmp *0x30000
/** Free slots of the GDT. */
const [SLOT, GATE] = [0x38, 0x40] as const;

let bench: GuestBench;
beforeEach(() => {
  bench = new GuestBench();
  for (const vector of [3, 10, 11, 12, 13, 14]) bench.interceptException(vector);
  bench.segment(0x60, 0, 0, 0x4f, BigInt(GDT));
  put(TARGET, [0xf4]);
});
afterEach(() => bench.close());

function put(at: number, bytes: readonly number[]): void {
  for (const [n, byte] of bytes.entries()) bench.memory.write(bench.spa(at + n), Uint8Array.of(byte));
}
const pointer = (selector: number, offset = TARGET): void =>
  bench.write(POINTER, BigInt(offset) | (BigInt(selector) << 32n));
/** A code segment at SLOT: type and DPL, bits 47:40, and flags. */
const segment = (access: number, flags = 0xa): void =>
  bench.write(GDT + SLOT, (BigInt(flags) << 52n) | (0xfn << 48n) | (BigInt(access) << 40n) | 0xffffn);
/** A 64-bit call gate at GATE. */
function gate(
  options: { dpl?: number; selector?: number; present?: number; type?: number; upper?: number } = {},
): void {
  const { dpl = 3, selector = KERNEL_CODE, present = 1, type = 12, upper = 0 } = options;
  const access = BigInt((present << 7) | (dpl << 5) | type);
  const offset = BigInt(TARGET);
  bench.write(
    GDT + GATE,
    (offset & 0xffffn) | (BigInt(selector) << 16n) | (access << 40n) | ((offset >> 16n) << 48n),
  );
  bench.write(GDT + GATE + 8, BigInt(upper) << 40n);
}
function run(bytes: readonly number[]): number {
  put(CODE, bytes);
  bench.setLong(RIP, BigInt(CODE));
  return bench.run();
}
const cs = (): number => bench.word(0x410) & 0xffff;
const ss = (): number => bench.word(0x420) & 0xffff;

describe('a far JMP or CALL to a code segment', () => {
  it('JMP goes there and keeps the stack', () => {
    pointer(KERNEL_CODE);
    expect(run(JUMP)).toBe(HLT);
    expect(bench.long(RIP)).toBe(BigInt(TARGET));
    expect(bench.long(RSP)).toBe(BigInt(STACK));
  });
  it('CALL pushes CS and RIP as wide as its operands', () => {
    pointer(KERNEL_CODE);
    expect(run(CALL)).toBe(HLT);
    expect(bench.long(RSP)).toBe(BigInt(STACK - 8));
    expect(bench.read(STACK - 8)).toBe(BigInt(CODE + 7) | (8n << 32n));
    bench.setLong(RSP, BigInt(STACK));
    bench.write(POINTER, 0x0008_0200n);
    put(0x200, [0xf4]);
    expect(run([0x66, ...CALL])).toBe(HLT);
    expect(bench.long(RSP)).toBe(BigInt(STACK - 4));
    expect(bench.read(STACK - 8) >> 32n).toBe(0x0008_0008n);
    expect(bench.long(RIP)).toBe(0x200n);
  });
  it('takes REX.W for a pointer with a 32-bit offset, as AMD does', () => {
    pointer(KERNEL_CODE);
    expect(run([0x48, ...JUMP])).toBe(HLT);
    expect(bench.long(RIP)).toBe(BigInt(TARGET));
  });
  it.each([
    ['48', [0x48], 1],
    ['66 48', [0x66, 0x48], 2],
  ])('pushes 8 bytes each with %s before CALL, as AMD does', (_, prefixes, length) => {
    pointer(KERNEL_CODE);
    bench.setLong(RSP, BigInt(STACK));
    expect(run([...prefixes, ...CALL])).toBe(HLT);
    expect(bench.long(RIP)).toBe(BigInt(TARGET));
    expect(bench.long(RSP)).toBe(BigInt(STACK - 16));
    expect([bench.read(STACK - 16), bench.read(STACK - 8)]).toEqual([BigInt(CODE + 7 + length), 8n]);
  });
  it('marks the descriptor accessed and sets RPL to CPL', () => {
    segment(0x9a);
    pointer(SLOT);
    expect(run(JUMP)).toBe(HLT);
    expect(bench.read(GDT + SLOT) >> 40n).toBe(0xaf9bn);
    expect(cs()).toBe(SLOT);
  });

  // selector, descriptor's type and flags, vector, error code
  it.each([
    ['a null selector', 0, 0x9a, 0xa, GP, 0],
    ['one beyond the table', 0x50, 0x9a, 0xa, GP, 0x50],
    ['one of an LDT that is not there', 0x3c, 0x9a, 0xa, GP, 0x3c],
    ['a data segment', SLOT, 0x92, 0xc, GP, SLOT],
    ['DPL 3 at CPL 0', SLOT, 0xfa, 0xa, GP, SLOT],
    ['RPL 3 at CPL 0', SLOT | 3, 0x9a, 0xa, GP, SLOT],
    ['conforming, DPL 3 at CPL 0', SLOT, 0xfe, 0xa, GP, SLOT],
    ['not present', SLOT, 0x1a, 0xa, NP, SLOT],
    ['L and D together', SLOT, 0x9a, 0xe, GP, SLOT],
    ['a 32-bit TSS', TASK, 0x9a, 0xa, GP, TASK],
  ])('refuses %s', (_, selector, access, flags, exit, error) => {
    for (const code of [JUMP, CALL]) {
      segment(access, flags);
      pointer(selector);
      expect(run(code)).toBe(exit);
      expect(bench.long(EXITINFO1)).toBe(BigInt(error));
      expect(bench.long(RIP)).toBe(BigInt(CODE));
      expect(bench.long(RSP)).toBe(BigInt(STACK));
      expect(cs()).toBe(KERNEL_CODE);
    }
  });
  it('goes from CPL 3 into a conforming segment and stays at CPL 3', () => {
    bench.becomeUser();
    segment(0x9e);
    put(TARGET, [0xcc]);
    pointer(SLOT);
    expect(run(CALL)).toBe(BP);
    expect(cs()).toBe(SLOT | 3);
    expect(bench.cpl).toBe(3);
  });
});

describe('a call gate', () => {
  it('takes CPL 3 to ring 0 with the stack of the TSS, and RETF goes back', () => {
    bench.becomeUser();
    gate();
    pointer(GATE | 3);
    // movq %rsp, %rcx; lretq. Behind the call: int3
    put(TARGET, [0x48, 0x89, 0xe1, 0x48, 0xcb]);
    expect(run([...CALL, 0xcc])).toBe(BP);
    expect(bench.core.gpr[RCX]).toBe(BigInt(RSP0 - 32));
    const frame = [0, 8, 16, 24].map((at) => bench.read(RSP0 - 32 + at));
    expect(frame).toEqual([BigInt(CODE + 7), BigInt(USER_CODE), BigInt(USER_STACK), BigInt(USER_DATA)]);
    expect(bench.cpl).toBe(3);
    expect([cs(), ss()]).toEqual([USER_CODE, USER_DATA]);
    expect(bench.long(RSP)).toBe(BigInt(USER_STACK));
  });
  it('at the same level pushes CS and RIP of 8 bytes', () => {
    gate({ dpl: 0 });
    pointer(GATE);
    expect(run(CALL)).toBe(HLT);
    expect(bench.long(RSP)).toBe(BigInt(STACK - 16));
    expect([bench.read(STACK - 16), bench.read(STACK - 8)]).toEqual([BigInt(CODE + 7), 8n]);
  });
  it('in a jump does not change the level', () => {
    gate({ dpl: 0 });
    pointer(GATE);
    expect(run(JUMP)).toBe(HLT);
    bench.becomeUser();
    gate();
    pointer(GATE | 3);
    expect(run(JUMP)).toBe(GP);
    expect(bench.long(EXITINFO1)).toBe(BigInt(KERNEL_CODE));
  });
  it.each([
    ['that CPL may not use', { dpl: 0 }, GP, GATE],
    ['that is not present', { present: 0 }, NP, GATE],
    ['of 16 bits', { type: 4 }, GP, GATE],
    ['whose upper half has a type', { upper: 1 }, GP, GATE],
    ['to a data segment', { selector: 0x10 }, GP, 0x10],
    ['to nowhere', { selector: 0 }, GP, 0],
  ] as const)('%s is refused', (_, options, exit, error) => {
    bench.becomeUser();
    gate(options);
    pointer(GATE | 3);
    expect(run(CALL)).toBe(exit);
    expect(bench.long(EXITINFO1)).toBe(BigInt(error));
    expect(bench.long(RSP)).toBe(BigInt(USER_STACK));
    expect(bench.cpl).toBe(3);
  });
  it('raises #TS for a TSS too short for the stack, #SS for a stack that is not canonical', () => {
    bench.becomeUser();
    gate();
    pointer(GATE | 3);
    bench.segment(0x90, TASK, 0x8b, 0x0a, 0x7000n);
    expect(run(CALL)).toBe(0x4a);
    expect(bench.long(EXITINFO1)).toBe(BigInt(TASK));
    bench.segment(0x90, TASK, 0x8b, 0x67, 0x7000n);
    put(0x7004, [0, 0, 0, 0, 0, 0, 1, 0]);
    expect(run(CALL)).toBe(SS_FAULT);
    expect(bench.long(RSP)).toBe(BigInt(USER_STACK));
  });
});

describe('RETF to an outer level', () => {
  const [ES, DS, FS, GS] = [0x00, 0x30, 0x40, 0x50] as const;
  /** At CPL 0, with a way back to CPL 3. */
  function fromInner(): void {
    bench.becomeUser();
    bench.segment(0x10, KERNEL_CODE, 0xa9b);
    bench.segment(0x20, 0x10, 0xc93);
    bench.memory.write((bench.vmcb + 0x4cb) as never, Uint8Array.of(0));
    bench.setLong(RSP, BigInt(STACK));
    for (const [n, value] of [TARGET, USER_CODE, USER_STACK, USER_DATA].entries())
      bench.write(STACK + 8 * n, value);
    put(TARGET, [0xcc]);
  }
  // The attributes of a VMCB: type, S, DPL and P in the low byte.
  it.each([
    ['data of DPL 0 becomes null', 0xc93, 0],
    ['data of DPL 2 becomes null', 0xcd3, 0],
    ['data of DPL 3 stays', 0xcf3, 0x38],
    ['code of DPL 0 becomes null', 0xa9b, 0],
    ['code of DPL 0 that is conforming stays', 0xa9f, 0x38],
    ['data of DPL 0 that grows down becomes null', 0xc97, 0],
  ])('%s', (_, attributes, selector) => {
    fromInner();
    for (const segment of [ES, DS, FS, GS]) bench.segment(segment, 0x38, attributes);
    expect(run([0x48, 0xcb])).toBe(BP);
    expect(bench.cpl).toBe(3);
    expect(bench.long(RSP)).toBe(BigInt(USER_STACK));
    for (const segment of [ES, DS, FS, GS]) expect(bench.word(0x400 + segment) & 0xffff).toBe(selector);
  });
});

describe('each memory access of a far transfer may fault, and then nothing has changed', () => {
  const stack = 0x8ffc;
  /** A page that is not there. */
  const absent = (page: number): void => bench.write(PT + page * 8, 0n);

  it.each([
    ['the pointer', CALL, (): void => absent(DATA >> 12)],
    ['the descriptor', CALL, (): void => bench.segment(0x60, 0, 0, 0x4f, 0x200000n)],
    ['the upper page of the stack', CALL, (): void => absent(9)],
    ['the lower page of the stack', CALL, (): void => absent(8)],
    ['the stack that RETF pops', [0xcb], (): void => absent(9)],
    ['the stack that IRETQ pops', [0x48, 0xcf], (): void => absent(9)],
  ])('%s', (_, code, spoil) => {
    pointer(KERNEL_CODE);
    bench.setLong(RSP, BigInt(stack + 8));
    bench.setLong(RFLAGS, 0x8d7n);
    bench.setLong(RAX, 5n);
    bench.core.gpr[RDX] = 7n;
    const before = [bench.read(0x8ff8), bench.read(0x9000)];
    spoil();
    bench.flush();
    expect(run(code)).toBe(PF);
    expect(bench.long(RSP)).toBe(BigInt(stack + 8));
    expect(bench.long(RIP)).toBe(BigInt(CODE));
    expect(bench.long(RFLAGS)).toBe(0x8d7n);
    expect([bench.long(RAX), bench.core.gpr[RDX]]).toEqual([5n, 7n]);
    expect([bench.read(0x8ff8), bench.read(0x9000)]).toEqual(before);
    expect([cs(), ss()]).toEqual([KERNEL_CODE, 0x10]);
  });
});

describe('LSS, LFS and LGS', () => {
  it('load a segment and a register of the operand size', () => {
    bench.write(POINTER, 0x0010_1122_3344n);
    expect(run([0x0f, 0xb4, 0x0c, 0x25, 0, 0, 3, 0, 0xf4])).toBe(HLT); // lfs 0x30000, %ecx
    expect(bench.word(0x440) & 0xffff).toBe(0x10);
    expect(bench.core.gpr[RCX]).toBe(0x11223344n);
    expect(run([0x48, 0x0f, 0xb5, 0x14, 0x25, 0, 0, 3, 0, 0xf4])).toBe(HLT); // with REX.W: the same on AMD
    expect(bench.core.gpr[RDX]).toBe(0x11223344n);
  });
  it('keep the register when the segment faults', () => {
    bench.core.gpr[RCX] = 9n;
    bench.write(POINTER, 0x0048_1122_3344n);
    expect(run([0x0f, 0xb2, 0x0c, 0x25, 0, 0, 3, 0])).toBe(GP); // lss
    expect(bench.core.gpr[RCX]).toBe(9n);
    expect(ss()).toBe(0x10);
  });
});
