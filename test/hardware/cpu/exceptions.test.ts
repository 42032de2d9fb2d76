/** Delivery through the IDT: frames, stacks, gates, error codes, double faults, shutdown, and what the host may intercept of it. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { Code, hlt, load, nop, onRegister, op, push, Register, set, two, withNumber } from './assembler.ts';
import {
  CODE,
  CR2,
  DATA,
  EXITINFO1,
  EXITINFO2,
  GDT,
  GuestBench,
  HANDLERS,
  IST1,
  NEXT_RIP,
  PD,
  PDPT,
  PML4,
  PT,
  RAX,
  RFLAGS,
  RIP,
  RSP,
  RSP0,
  STACK,
  USER_CODE,
  USER_DATA,
  USER_STACK,
} from './guest-bench.ts';

let bench: GuestBench;
beforeEach(() => {
  bench = new GuestBench();
  for (let vector = 0; vector < 32; vector++) {
    bench.gate(vector, HANDLERS + vector * 64);
    bench.load([hlt()], HANDLERS + vector * 64);
  }
});
afterEach(() => bench.close());

const handlerOf = (): number => (Number(bench.long(RIP)) - HANDLERS) / 64;
/** u64s from the guest's RSP on. */
const stack = (words: number): bigint[] => {
  const rsp = Number(bench.long(RSP));
  return Array.from({ length: words }, (_, i) => bench.read(rsp + 8 * i));
};
describe('which exception', () => {
  const UNDEFINED = 6;
  const rows: [string, number, bigint | undefined, () => ReturnType<typeof op>[]][] = [
    ['UD2', UNDEFINED, undefined, () => [op(Code.Ud2)]],
    ['VMCALL', UNDEFINED, undefined, () => [op(Code.Vmcall)]],
    ['SYSCALL without EFER.SCE', UNDEFINED, undefined, () => [op(Code.Syscall)]],
    ['VMMCALL that nobody intercepts', UNDEFINED, undefined, () => [op(Code.Vmmcall)]],
    ['SYSENTER', UNDEFINED, undefined, () => [op(Code.Sysenter)]],
    ['XGETBV without OSXSAVE', UNDEFINED, undefined, () => [op(Code.Xgetbv)]],
    ['RDFSBASE without FSGSBASE', UNDEFINED, undefined, () => [onRegister(Code.Rdfsbase_r64, Register.RAX)]],
    ['MOV from CR1', UNDEFINED, undefined, () => [two(Code.Mov_r64_cr, Register.RAX, Register.CR1)]],
    ['MOV to CS', UNDEFINED, undefined, () => [two(Code.Mov_Sreg_r32m16, Register.CS, Register.EAX)]],
    [
      'a data selector beyond the GDT',
      13,
      0x40n,
      () => [set('rax', 0x40), two(Code.Mov_Sreg_r32m16, Register.DS, Register.EAX)],
    ],
    [
      'a null stack selector with RPL 3',
      13,
      0n,
      () => [set('rax', 3), two(Code.Mov_Sreg_r32m16, Register.SS, Register.EAX)],
    ],
    ['a non-canonical data address', 13, 0n, () => [set('rbx', 1n << 47n), load('rax', 'rbx')]],
    ['a non-canonical stack', 12, 0n, () => [set('rsp', 1n << 62n), push('rax')]],
    ['a non-canonical address by RBP', 12, 0n, () => [set('rbp', 1n << 62n), load('rax', 'rbp')]],
    [
      'a jump to a non-canonical address',
      13,
      0n,
      () => [set('rbx', 1n << 47n), onRegister(Code.Jmp_rm64, Register.RBX)],
    ],
    [
      'CR0.PG without PE',
      13,
      0n,
      () => [set('rax', 0x80000000), two(Code.Mov_cr_r64, Register.CR0, Register.RAX)],
    ],
    [
      'CR0.NW without CD',
      13,
      0n,
      () => [set('rax', 0xa0010033), two(Code.Mov_cr_r64, Register.CR0, Register.RAX)],
    ],
    [
      'a reserved bit of CR4',
      13,
      0n,
      () => [set('rax', 1 << 15), two(Code.Mov_cr_r64, Register.CR4, Register.RAX)],
    ],
    [
      'CR4.PAE off in long mode',
      13,
      0n,
      () => [set('rax', 0x600), two(Code.Mov_cr_r64, Register.CR4, Register.RAX)],
    ],
    ['CR8 above 15', 13, 0n, () => [set('rax', 16), two(Code.Mov_cr_r64, Register.CR8, Register.RAX)]],
    ['an unknown MSR', 13, 0n, () => [set('rcx', 0x1234), op(Code.Rdmsr)]],
    ['a non-canonical LSTAR', 13, 0n, () => [set('rcx', 0xc0000082), set('rdx', 1 << 20), op(Code.Wrmsr)]],
    ['INT through a gate that is not there', 13, 0x30an, () => [withNumber(Code.Int_imm8, 0x61)]],
  ];
  it.each(rows)('%s is vector %i', (name, vector, error, program) => {
    bench.setLong(0x4d0, 0x1d00n);
    for (let at = 0; at < 32; at++) bench.gate(at, HANDLERS + at * 64, { ist: 1 });
    if (name.startsWith('VMMCALL')) bench.intercept(129, 0);
    bench.segment(0x80, 0, 0, 0x1ff + 16 * 0x50, 0x6000n);
    expect(bench.run(program())).toBe(0x78);
    expect(handlerOf()).toBe(vector);
    if (error !== undefined) expect(stack(1)[0]).toBe(error);
  });
});

describe('a near branch to an address that is not canonical is #GP(0) at the branch, with nothing pushed or popped', () => {
  const LIMIT = 0x8000_0000_0000n;
  const rows: [string, bigint, number[]][] = [
    ['JMP RAX to 2^63', 1n << 63n, [0xff, 0xe0]],
    ['JMP RAX to 2^47', LIMIT, [0xff, 0xe0]],
    ['JMP RAX below the upper half', 0xffff_7fff_ffff_ffffn, [0xff, 0xe0]],
    ['CALL RAX', 1n << 63n, [0xff, 0xd0]],
    ['CALL RAX to 2^47', LIMIT, [0xff, 0xd0]],
    ['JMP [RBX]', LIMIT, [0xff, 0x23]],
    ['CALL [RBX]', LIMIT, [0xff, 0x13]],
    ['RET', LIMIT, [0xc3]],
    ['RET 16', LIMIT, [0xc2, 16, 0]],
    ['IRETQ', LIMIT, [0x48, 0xcf]],
    ['RETFQ', LIMIT, [0x48, 0xcb]],
  ];
  describe.each([
    ['in the hot loop', 0x02n],
    ['stepped', 0x102n],
  ])('%s', (_, flags) => {
    it.each(rows)('%s', (_name, target, bytes) => {
      bench.interceptException(13);
      bench.write(STACK - 8, 0x7777n);
      for (const [n, value] of [target, 8n, 2n, BigInt(STACK), 0x10n].entries())
        bench.write(STACK + 8 * n, value);
      bench.write(DATA, target);
      bench.core.gpr[3] = BigInt(DATA);
      bench.setLong(RAX, target);
      bench.setLong(RFLAGS, flags);
      expect(bench.runBytes(...bytes)).toBe(0x4d);
      expect(bench.long(EXITINFO1)).toBe(0n);
      expect(bench.long(RIP)).toBe(BigInt(CODE));
      expect(bench.long(RSP)).toBe(BigInt(STACK));
      expect(bench.read(STACK - 8)).toBe(0x7777n);
    });
  });

  const last: [string, number[], number, bigint?][] = [
    ['JMP rel32', [0xe9, 0x0b, 0, 0, 0], 0],
    ['CALL rel32', [0xe8, 0x0b, 0, 0, 0], 0],
    ['JZ rel32', [0x31, 0xc0, 0x0f, 0x84, 0x08, 0, 0, 0], 2],
    ['JRCXZ', [0xe3, 0x10], 0, 0n],
    ['LOOP', [0xe2, 0x10], 0, 2n],
  ];
  it.each(last)('%s over the end of the lower half', (_name, bytes, at, rcx = 0n) => {
    bench.interceptException(13);
    bench.write(STACK - 8, 0x7777n);
    bench.core.gpr[1] = rcx;
    const end = lastLowerPage();
    bench.memory.write(bench.spa(CODE + 0xff0), Uint8Array.from(bytes));
    bench.setLong(RIP, end + 0xff0n);
    expect(bench.run()).toBe(0x4d);
    expect(bench.long(RIP)).toBe(end + 0xff0n + BigInt(at));
    expect(bench.long(RSP)).toBe(BigInt(STACK));
    expect(bench.core.gpr[1]).toBe(rcx);
    expect(bench.read(STACK - 8)).toBe(0x7777n);
  });
  it('but code that goes on there without a branch faults at the address itself', () => {
    bench.interceptException(13);
    const end = lastLowerPage();
    bench.memory.write(bench.spa(CODE + 0xfff), Uint8Array.of(0x90));
    bench.setLong(RIP, end + 0xfffn);
    expect(bench.run()).toBe(0x4d);
    expect(bench.long(RIP)).toBe(LIMIT);
  });
  it('and a CALL whose push faults is that fault first', () => {
    bench.interceptException(14);
    bench.setLong(RAX, LIMIT);
    bench.setLong(RSP, 0x400000n);
    expect(bench.runBytes(0xff, 0xd0)).toBe(0x4e);
    expect(bench.long(EXITINFO1)).toBe(2n);
    expect(bench.long(EXITINFO2)).toBe(0x3ffff8n);
    expect(bench.long(RIP)).toBe(BigInt(CODE));
  });
  it('nor is it done when the budget ends with it', () => {
    bench.interceptException(13);
    bench.setLong(RAX, LIMIT);
    bench.memory.write(bench.spa(CODE), Uint8Array.of(0xff, 0xe0));
    bench.setLong(RIP, BigInt(CODE));
    // One for the way to the decoder, one for the jump.
    expect(bench.run(undefined, 2)).toBe(0x4d);
    expect(bench.long(RIP)).toBe(BigInt(CODE));
  });

  /** Maps CODE's page at the last page of the lower half, too; its linear address. */
  function lastLowerPage(): bigint {
    bench.write(PML4 + 255 * 8, PDPT | 7);
    bench.write(PDPT + 511 * 8, PD | 7);
    bench.write(PD + 511 * 8, PT | 7);
    bench.write(PT + 511 * 8, CODE | 3);
    return 0x7fff_ffff_f000n;
  }
});

describe('an instruction of more than 15 bytes is #GP(0)', () => {
  const prefixes = (count: number): number[] => new Array<number>(count).fill(0x66);
  const rows: [string, number[], number][] = [
    ['15 prefixes and a NOP', [...prefixes(15), 0x90], 13],
    ['15 prefixes and UD2', [...prefixes(15), 0x0f, 0x0b], 13],
    ['14 prefixes and UD2', [...prefixes(14), 0x0f, 0x0b], 13],
    ['12 prefixes and ADD with displacement and immediate', [...prefixes(11), 0x48, 0x81, 0x05], 13],
    ['F3, 12 prefixes and POPCNT', [0xf3, ...prefixes(12), 0x0f, 0xb8, 0xc0], 13],
    ['but 13 prefixes and UD2 are #UD', [...prefixes(13), 0x0f, 0x0b], 6],
    ['but 14 prefixes and an opcode that nobody has are #UD', [...prefixes(14), 0x06], 6],
  ];
  it.each(rows)('%s', (_, bytes, vector) => {
    for (const one of [6, 13, 14]) bench.interceptException(one);
    expect(bench.runBytes(...bytes)).toBe(0x40 + vector);
    expect(bench.long(EXITINFO1)).toBe(0n);
    expect(bench.long(RIP)).toBe(BigInt(CODE));
  });
  it.each([
    ['15 prefixes', 15, 13, 0x10ff1n],
    ['but 14 prefixes fault on the page', 14, 14, 0x10ff2n],
  ])('%s, and the page behind them is not there', (_, count, vector, rip) => {
    for (const one of [6, 13, 14]) bench.interceptException(one);
    bench.write(PT + 8 * 0x11, 0n);
    bench.memory.write(bench.spa(Number(rip)), Uint8Array.from(prefixes(count)));
    bench.setLong(RIP, rip);
    expect(bench.run()).toBe(0x40 + vector);
    expect(bench.long(RIP)).toBe(rip);
  });
});

describe('an interrupt gate', () => {
  it('pushes SS, RSP, RFLAGS with RF, CS, RIP and the error code on an aligned stack, and clears IF, TF, NT', () => {
    bench.setLong(RSP, BigInt(STACK - 3));
    bench.setLong(RFLAGS, 0x246n);
    expect(bench.run([set('rcx', 0x1234), op(Code.Rdmsr)])).toBe(0x78);
    const top = (STACK - 3) & ~15;
    expect(bench.long(RSP)).toBe(BigInt(top - 48));
    expect(stack(6)).toEqual([0n, BigInt(CODE + 10), 0x8n, 0x10246n, BigInt(STACK - 3), 0x10n]);
    expect(bench.long(RFLAGS)).toBe(0x46n);
  });
  it('of trap type leaves IF', () => {
    bench.gate(6, HANDLERS + 6 * 64, { type: 15 });
    bench.setLong(RFLAGS, 0x202n);
    bench.run([op(Code.Ud2)]);
    expect(bench.long(RFLAGS)).toBe(0x202n);
  });
  it('with an IST takes that stack', () => {
    bench.gate(6, HANDLERS + 6 * 64, { ist: 1 });
    bench.run([op(Code.Ud2)]);
    expect(bench.long(RSP)).toBe(BigInt(IST1 - 40));
    expect(stack(4)[3]).toBe(BigInt(STACK));
  });
  it('from user mode takes RSP0, a null SS and CPL 0', () => {
    bench.becomeUser();
    bench.run([op(Code.Ud2)]);
    expect(bench.cpl).toBe(0);
    expect(bench.long(RSP)).toBe(BigInt(RSP0 - 40));
    expect(stack(5)).toEqual([
      BigInt(CODE),
      BigInt(USER_CODE),
      0x10002n,
      BigInt(USER_STACK),
      BigInt(USER_DATA),
    ]);
    expect(bench.word(0x420) & 0xffff).toBe(0);
    expect(bench.word(0x410) & 0xffff).toBe(0x08);
  });
  it('INT3 and INT n push the RIP behind them, without RF', () => {
    bench.gate(0x41, HANDLERS + 30 * 64);
    bench.run([op(Code.Int3)]);
    expect(handlerOf()).toBe(3);
    expect(stack(3)).toEqual([BigInt(CODE + 1), 8n, 2n]);
    bench.setLong(RSP, BigInt(STACK));
    bench.run([withNumber(Code.Int_imm8, 0x41)]);
    expect(handlerOf()).toBe(30);
    expect(stack(1)[0]).toBe(BigInt(CODE + 2));
  });
  it('of DPL 0 is not for user software, but for its faults', () => {
    bench.becomeUser();
    bench.gate(0x41, HANDLERS + 30 * 64);
    bench.run([withNumber(Code.Int_imm8, 0x41)]);
    expect(handlerOf()).toBe(13);
    expect(stack(1)[0]).toBe(0x20an);
    bench.gate(0x41, HANDLERS + 30 * 64, { dpl: 3 });
    bench.setLong(RSP, BigInt(USER_STACK));
    bench.segment(0x10, USER_CODE, 0xafb);
    bench.memory.write((bench.vmcb + 0x4cb) as never, Uint8Array.of(3));
    bench.run([withNumber(Code.Int_imm8, 0x41)]);
    expect(handlerOf()).toBe(30);
  });
  const broken: [string, Parameters<GuestBench['gate']>[2], number, bigint][] = [
    ['that is not present: #NP with the vector', { present: 0 }, 11, 0x33n],
    ['of another type: #GP with the vector', { type: 12 }, 13, 0x33n],
    ['with a null selector: #GP', { selector: 0 }, 13, 1n],
    ['with a data segment: #GP with the selector', { selector: 0x10 }, 13, 0x11n],
    ['with a selector beyond the GDT: #GP with the selector', { selector: 0x48 }, 13, 0x49n],
  ];
  it.each(broken)('%s', (_name, options, vector, error) => {
    bench.gate(6, HANDLERS + 6 * 64, options);
    bench.run([op(Code.Ud2)]);
    expect(handlerOf()).toBe(vector);
    expect(stack(1)[0]).toBe(error);
  });
  it('marks its code segment accessed', () => {
    bench.run([op(Code.Ud2)]);
    expect(bench.read(GDT + 8)).toBe(0x00af9b000000ffffn);
  });
});

describe('an exception inside another', () => {
  it('contributory ones make a double fault with error code 0', () => {
    bench.gate(13, HANDLERS, { present: 0 });
    bench.run([set('rcx', 0x1234), op(Code.Rdmsr)]);
    expect(handlerOf()).toBe(8);
    expect(stack(2)).toEqual([0n, BigInt(CODE + 10)]);
  });
  it('a page fault while a page fault is delivered makes one too; CR2 is the second address', () => {
    bench.setLong(RSP, 0x500000n);
    bench.gate(8, HANDLERS + 8 * 64, { ist: 1 });
    bench.run([set('rbx', 0x400000), load('rax', 'rbx')]);
    expect(handlerOf()).toBe(8);
    expect(bench.long(CR2)).toBe(0x4ffff8n);
  });
  it('a contributory one while a page fault is delivered makes one, too', () => {
    bench.gate(14, HANDLERS, { present: 0 });
    bench.run([set('rbx', 0x400000), load('rax', 'rbx')]);
    expect(handlerOf()).toBe(8);
    expect(stack(2)).toEqual([0n, BigInt(CODE + 10)]);
    expect(bench.long(CR2)).toBe(0x400000n);
  });
  it('a page fault while #UD is delivered is just a page fault', () => {
    bench.setLong(RSP, 0x500000n);
    bench.gate(14, HANDLERS + 14 * 64, { ist: 1 });
    bench.run([op(Code.Ud2)]);
    expect(handlerOf()).toBe(14);
    expect(stack(1)[0]).toBe(2n);
  });
  it('a third one is a shutdown', () => {
    bench.segment(0x80, 0, 0, 0, 0n);
    expect(bench.run([op(Code.Ud2)])).toBe(0x7f);
    expect(bench.word(0x88)).toBe(0);
  });
  it('a shutdown that the host does not intercept is not ours to decide', () => {
    bench.intercept(127, 0);
    bench.segment(0x80, 0, 0, 0, 0n);
    expect(bench.run([op(Code.Ud2)])).toBe(0xf00000ff | 0);
    expect(bench.refusal()).toBe('not implemented: a shutdown that the host does not intercept');
  });
  it('a handler that faults at its first instruction for ever lets the host in', () => {
    bench.load([op(Code.Ud2)], HANDLERS + 6 * 64);
    bench.gate(6, HANDLERS + 6 * 64, { ist: 1 });
    expect(bench.run([op(Code.Ud2)], 1000)).toBe(0x60);
  });
});

describe('exception intercepts', () => {
  it('exit before anything is delivered, with the error code', () => {
    bench.interceptException(13);
    expect(bench.run([set('rcx', 0x1234), op(Code.Rdmsr)])).toBe(0x4d);
    expect(bench.long(EXITINFO1)).toBe(0n);
    expect(bench.long(RIP)).toBe(BigInt(CODE + 10));
    expect(bench.long(RSP)).toBe(BigInt(STACK));
    expect(bench.long(NEXT_RIP)).toBe(0n);
  });
  it('a page fault gives its address and error code', () => {
    bench.interceptException(14);
    expect(bench.run([set('rbx', 0x400123), load('rax', 'rbx')])).toBe(0x4e);
    expect(bench.long(EXITINFO1)).toBe(0n);
    expect(bench.long(EXITINFO2)).toBe(0x400123n);
  });
  it('the second of two says in EXITINTINFO what was being delivered', () => {
    bench.interceptException(11);
    bench.gate(13, HANDLERS, { present: 0 });
    expect(bench.run([set('rcx', 0x1234), op(Code.Rdmsr)])).toBe(0x4b);
    expect(bench.long(EXITINFO1)).toBe(0x6bn);
    expect(bench.word(0x88)).toBe(0x80000b0d | 0);
    expect(bench.word(0x8c)).toBe(0);
  });
  it('a software interrupt in delivery is of type 4', () => {
    bench.interceptException(11);
    bench.gate(0x41, HANDLERS, { present: 0 });
    expect(bench.run([withNumber(Code.Int_imm8, 0x41)])).toBe(0x4b);
    expect(bench.long(EXITINFO1)).toBe(0x20an);
    expect(bench.word(0x88)).toBe(0x80000441 | 0);
  });
  it('a double fault that is intercepted leaves EXITINTINFO empty', () => {
    bench.interceptException(8);
    bench.gate(13, HANDLERS, { present: 0 });
    expect(bench.run([set('rcx', 0x1234), op(Code.Rdmsr)])).toBe(0x48);
    expect(bench.long(EXITINFO1)).toBe(0n);
    expect(bench.word(0x88)).toBe(0);
  });
  it('a nested fault in the IDT leaves the event in EXITINTINFO and the guest where it was', () => {
    bench.unmap(6);
    expect(bench.run([nop(), op(Code.Ud2)])).toBe(0x400);
    expect(bench.word(0x88)).toBe(0x80000306 | 0);
    expect(bench.long(EXITINFO2)).toBe(0x6060n);
    const ud2 = bench.long(RIP);
    bench.remap(6, 7n);
    bench.setLong(0xa8, bench.long(0x88));
    expect(bench.run()).toBe(0x78);
    expect(handlerOf()).toBe(6);
    expect(stack(1)[0]).toBe(ud2);
  });
});

it('an exception is named in the trace', () => {
  bench.run([op(Code.Ud2)]);
  expect(bench.events).toContainEqual(
    expect.objectContaining({ what: 'exception', vector: 6, rip: '0x10000' }),
  );
});
