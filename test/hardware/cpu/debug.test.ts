/** Single steps and breakpoints: when #DB comes, what DR6 says, where RIP is (APM volume 2, 13.1). */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  addTo,
  assemble,
  Code,
  hlt,
  inString,
  load,
  nop,
  op,
  out8,
  pop,
  push,
  Register,
  set,
  store,
  storeByte,
  two,
  withNumber,
} from './assembler.ts';
import {
  CODE,
  DATA,
  EXITINTINFO,
  GuestBench,
  HANDLERS,
  RFLAGS,
  RIP,
  RSP,
  STACK,
  USER_CODE,
  USER_DATA,
  USER_STACK,
} from './guest-bench.ts';

const DR6 = 0x568;
const DR7 = 0x560;
const DB_EXIT = 0x41;
const TF = 0x100;

type Program = Parameters<GuestBench['load']>[0];
let bench: GuestBench;
beforeEach(() => {
  bench = new GuestBench();
  bench.interceptException(1);
});
afterEach(() => bench.close());

const rip = (): number => Number(bench.long(RIP)) - CODE;
const dr6 = (): bigint => bench.long(DR6) ^ 0xffff0ff0n;
const lengths = (program: Program): number[] =>
  program.map((_, i) => assemble(program.slice(0, i + 1), CODE).length);
/** RIPs of the #DB exits, the host going on each time (clearing DR6), until another exit. */
function trace(program: Program, limit = 100): { at: number[]; dr6: bigint[]; end: number } {
  const at: number[] = [];
  const bits: bigint[] = [];
  let exit = bench.run(program);
  while (exit === DB_EXIT && at.length < limit) {
    at.push(rip());
    bits.push(dr6());
    bench.setLong(DR6, 0xffff0ff0n);
    exit = bench.run();
  }
  return { at, dr6: bits, end: exit };
}
/** Arms breakpoint `n`. `kind`: 0 execute, 1 write, 2 port, 3 access; `length` in bytes. */
function arm(n: number, address: number | bigint, kind: number, length: 1 | 2 | 4 | 8 = 1, enable = 1): void {
  bench.core.debugAddresses[n] = BigInt(address);
  const field = kind | ({ 1: 0, 2: 1, 8: 2, 4: 3 }[length] << 2);
  const control = Number(bench.long(DR7)) | (enable << (2 * n)) | (field << (16 + 4 * n));
  bench.setLong(DR7, BigInt(control >>> 0));
}

describe('RFLAGS.TF', () => {
  const step = (): void => bench.setLong(RFLAGS, BigInt(TF | 2));

  it('traps behind each instruction with DR6.BS', () => {
    step();
    const program = [nop(), set('rbx', 5), push('rbx'), hlt()];
    expect(trace(program)).toEqual({
      at: lengths(program).slice(0, 3),
      dr6: [0x4000n, 0x4000n, 0x4000n],
      end: 0x78,
    });
  });

  it('traps behind jumps, at their targets', () => {
    step();
    bench.core.gpr[1] = 2n;
    // loop: dec ecx; jnz loop; hlt
    bench.memory.write(bench.spa(CODE), Uint8Array.of(0xff, 0xc9, 0x75, 0xfc, 0xf4));
    bench.setLong(RIP, BigInt(CODE));
    const at: number[] = [];
    while (bench.run() === DB_EXIT) at.push(rip());
    expect(at).toEqual([2, 0, 2, 4]);
  });

  it('that POPF sets counts from the next instruction on; that it clears, once more', () => {
    const program = [
      set('rax', TF | 2),
      push('rax'),
      op(Code.Popfq),
      nop(),
      set('rax', 2),
      push('rax'),
      op(Code.Popfq),
      nop(),
      hlt(),
    ];
    const ends = lengths(program);
    expect(trace(program)).toMatchObject({ at: [ends[3], ends[4], ends[5], ends[6]], end: 0x78 });
  });

  it('that IRET sets counts from the next instruction on', () => {
    const target = HANDLERS;
    bench.load([nop(), nop(), hlt()], target);
    const frame = [0x10, STACK, TF | 2, 8, target];
    const program = [...frame.flatMap((value) => [set('rax', value), push('rax')]), op(Code.Iretq)];
    expect(trace(program).at).toEqual([target + 1 - CODE, target + 2 - CODE]);
  });

  it('that SYSRET sets traps before the first instruction of the user', () => {
    bench.becomeUser();
    bench.segment(0x10, 0x8, 0xa9b);
    bench.segment(0x20, 0x10, 0xc93);
    bench.setWord(0x4c8, 0);
    bench.setLong(0x600, 0x0010_0008n << 32n);
    bench.core.gpr[11] = BigInt(TF | 2);
    bench.core.gpr[1] = BigInt(HANDLERS);
    bench.load([nop(), hlt()], HANDLERS);
    expect(bench.run([op(Code.Sysretq)])).toBe(DB_EXIT);
    expect(rip()).toBe(HANDLERS - CODE);
    expect(bench.cpl).toBe(3);
  });

  it.each([
    ['that SFMASK clears: SYSCALL does not trap', 0x100n, 0x78],
    ['that SFMASK leaves: SYSCALL traps in the kernel', 0n, DB_EXIT],
  ])('%s', (_what, mask, exit) => {
    step();
    bench.setLong(0x600, 0x0010_0008n << 32n);
    bench.setLong(0x608, BigInt(HANDLERS));
    bench.setLong(0x618, mask);
    bench.load([hlt()], HANDLERS);
    expect(bench.run([op(Code.Syscall)])).toBe(exit);
    expect(rip()).toBe(HANDLERS - CODE);
  });

  it.each([
    ['INT n', withNumber(Code.Int_imm8, 0x41), 0x41],
    ['INT3', op(Code.Int3), 3],
    ['a fault', op(Code.Ud2), 6],
  ])('%s clears it and does not trap', (_what, instruction, vector) => {
    step();
    bench.gate(vector, HANDLERS);
    bench.load([nop(), hlt()], HANDLERS);
    expect(bench.run([instruction])).toBe(0x78);
    expect(bench.read(Number(bench.long(RSP)) + 16) & 0x100n).toBe(0x100n);
  });

  it.each([
    ['REP MOVSB', [0xf3, 0xa4]],
    ['REX.W REP MOVSB', [0x48, 0xf3, 0xa4]],
    ['REP REX MOVSB', [0xf3, 0x40, 0xa4]],
    ['REX.W REP REX MOVSB', [0x48, 0xf3, 0x40, 0xa4]],
  ])('traps behind each element of %s, with RIP on it until the last', (_, code) => {
    step();
    bench.core.gpr[1] = 3n;
    bench.core.gpr[6] = BigInt(DATA);
    bench.core.gpr[7] = BigInt(DATA + 0x100);
    bench.write(DATA, 0x332211n);
    bench.memory.write(bench.spa(CODE), Uint8Array.from([...code, 0xf4]));
    bench.setLong(RIP, BigInt(CODE));
    const seen: [number, bigint, bigint][] = [];
    while (bench.run() === DB_EXIT) seen.push([rip(), bench.core.gpr[1]!, bench.read(DATA + 0x100)]);
    expect(seen).toEqual([
      [0, 2n, 0x11n],
      [0, 1n, 0x2211n],
      [code.length, 0n, 0x332211n],
    ]);
  });

  it.each([
    ['REPE CMPSB', 0xf3, [0, 0, 2], 1n],
    ['REPNE CMPSB', 0xf2, [2], 3n],
  ])('%s ends where it does without', (_what, prefix, at, left) => {
    step();
    bench.core.gpr[1] = 4n;
    bench.core.gpr[6] = BigInt(DATA);
    bench.core.gpr[7] = BigInt(DATA + 0x100);
    bench.write(DATA, 0x44332211n);
    bench.write(DATA + 0x100, 0x44992211n);
    bench.memory.write(bench.spa(CODE), Uint8Array.of(prefix, 0xa6, 0xf4));
    bench.setLong(RIP, BigInt(CODE));
    const seen: number[] = [];
    while (bench.run() === DB_EXIT) seen.push(rip());
    expect(seen).toEqual(at);
    expect(bench.core.gpr[1]).toBe(left);
  });

  it('waits for the instruction behind MOV SS', () => {
    step();
    const program = [set('rax', 0x10), two(Code.Mov_Sreg_r32m16, Register.SS, Register.EAX), nop(), hlt()];
    const ends = lengths(program);
    expect(trace(program).at).toEqual([ends[0], ends[2]]);
  });

  it('is delivered through the guest’s IDT with RIP behind the instruction, TF in the frame and cleared', () => {
    bench.setWord(8, 0);
    bench.gate(1, HANDLERS);
    bench.load([hlt()], HANDLERS);
    step();
    expect(bench.run([nop(), nop()])).toBe(0x78);
    const rsp = Number(bench.long(RSP));
    expect([bench.read(rsp), bench.read(rsp + 16)]).toEqual([BigInt(CODE + 1), 0x102n]);
    expect(bench.long(RFLAGS)).toBe(2n);
    expect(dr6()).toBe(0x4000n);
  });

  it('comes before a virtual interrupt', () => {
    bench.setLong(RFLAGS, 0x302n);
    bench.load([nop(), hlt()]);
    bench.setLong(RIP, BigInt(CODE));
    expect(bench.run()).toBe(DB_EXIT);
    bench.setWord(0x60, 0x100100);
    bench.intercept(100);
    bench.setLong(RFLAGS, 0x302n);
    bench.setWord(0x68, 1);
    bench.setLong(RIP, BigInt(CODE));
    expect(bench.run()).toBe(DB_EXIT);
    expect(rip()).toBe(1);
  });
});

describe('a breakpoint on an instruction', () => {
  it('faults before it, with its bit in DR6', () => {
    const program = [nop(), set('rbx', 5), nop(), hlt()];
    arm(2, CODE + 1, 0);
    expect(bench.run(program)).toBe(DB_EXIT);
    expect([rip(), dr6(), bench.core.gpr[3]]).toEqual([1, 4n, 0n]);
    expect(bench.long(RFLAGS) & 0x10000n).toBe(0n);
  });

  it('is passed over with RFLAGS.RF, which the instruction clears', () => {
    arm(0, CODE + 1, 0);
    const program = [nop(), nop(), hlt()];
    expect(bench.run(program)).toBe(DB_EXIT);
    bench.setLong(RFLAGS, 0x10002n);
    expect(bench.run()).toBe(0x78);
    expect(bench.long(RFLAGS)).toBe(2n);
  });

  it('comes again each time round a loop', () => {
    // nop; jmp −3
    bench.memory.write(bench.spa(CODE), Uint8Array.of(0x90, 0xeb, 0xfd));
    bench.setLong(RIP, BigInt(CODE));
    arm(0, CODE, 0, 1, 2);
    for (let i = 0; i < 3; i++) {
      expect(bench.run()).toBe(DB_EXIT);
      expect(rip()).toBe(0);
      bench.setLong(RFLAGS, 0x10002n);
    }
  });

  it('comes before the page fault of its page', () => {
    arm(0, 0x100000, 0);
    bench.interceptException(14);
    bench.setLong(RIP, 0x100000n);
    expect(bench.run()).toBe(DB_EXIT);
    bench.setLong(RFLAGS, 0x10002n);
    expect(bench.run()).toBe(0x4e);
  });

  it('that is off does nothing; elsewhere on the page nothing happens', () => {
    arm(0, CODE, 0, 1, 0);
    arm(1, CODE + 0x500, 0);
    expect(bench.run([nop(), set('rbx', 5), hlt()])).toBe(0x78);
  });

  it('set by the guest itself works at once', () => {
    bench.setWord(8, 0);
    bench.gate(1, HANDLERS);
    bench.load([two(Code.Mov_r64_dr, Register.RDI, Register.DR6), hlt()], HANDLERS);
    const head = [
      set('rax', CODE + 40),
      two(Code.Mov_dr_r64, Register.DR3, Register.RAX),
      set('rax', 0x80),
      two(Code.Mov_dr_r64, Register.DR7, Register.RAX),
    ];
    const padding = 40 - assemble(head, CODE).length;
    const program = [...head, ...Array.from({ length: padding }, nop), set('rbx', 5), hlt()];
    expect(bench.run(program)).toBe(0x78);
    expect(bench.read(Number(bench.long(RSP)))).toBe(BigInt(CODE + 40));
    expect(bench.core.gpr[7]).toBe(0xffff0ff8n);
    expect(bench.core.gpr[3]).toBe(0n);
  });
});

describe('a breakpoint on data', () => {
  const at = (offset: number) => set('rbx', DATA + offset);
  const rows: [string, number, 1 | 2 | 4 | 8, number, Program, bigint | undefined][] = [
    ['a write', 1, 8, 0, [at(0), store('rbx', 'rax')], 1n],
    ['a read, where writes are watched', 1, 8, 0, [at(0), load('rcx', 'rbx')], undefined],
    ['a read, where accesses are watched', 3, 8, 0, [at(0), load('rcx', 'rbx')], 1n],
    ['a write, where accesses are watched', 3, 8, 0, [at(0), store('rbx', 'rax')], 1n],
    ['a read and write, where writes are watched', 1, 8, 0, [at(0), addTo('rbx', 'rax')], 1n],
    ['the last byte of a write', 1, 1, 7, [at(0), store('rbx', 'rax')], 1n],
    ['a write just above', 1, 1, 8, [at(0), store('rbx', 'rax')], undefined],
    ['a byte inside 4 watched ones', 1, 4, 4, [at(7), storeByte('rbx', 1)], 1n],
    ['a byte just below', 1, 4, 4, [at(3), storeByte('rbx', 1)], undefined],
    [
      'an unaligned address counts from where its length is aligned',
      1,
      4,
      6,
      [at(4), storeByte('rbx', 1)],
      1n,
    ],
    ['a write that crosses into it from another page', 1, 1, 0x1000, [at(0xffd), store('rbx', 'rax')], 1n],
    ['a push', 1, 8, STACK - DATA - 8, [push('rax')], 1n],
  ];
  it.each(rows)('%s', (_what, kind, length, offset, program, bits) => {
    arm(0, DATA + offset, kind, length);
    const end = assemble(program, CODE).length;
    const exit = bench.run([...program, nop(), hlt()]);
    expect(exit).toBe(bits === undefined ? 0x78 : DB_EXIT);
    if (bits === undefined) return;
    expect([rip(), dr6()]).toEqual([end, bits]);
  });

  it('traps when the write is done', () => {
    arm(1, DATA, 1, 8);
    expect(bench.run([set('rbx', DATA), set('rax', 0x77), store('rbx', 'rax'), hlt()])).toBe(DB_EXIT);
    expect(bench.read(DATA)).toBe(0x77n);
    expect(bench.run()).toBe(0x78);
  });

  it('tells of two at once, and of the step', () => {
    arm(0, DATA, 1, 8);
    arm(3, DATA + 4, 3, 4);
    bench.setLong(RFLAGS, BigInt(TF | 2));
    bench.core.gpr[3] = BigInt(DATA);
    expect(bench.run([store('rbx', 'rax'), hlt()])).toBe(DB_EXIT);
    expect(dr6()).toBe(0x4009n);
  });

  it('stops a repeated string instruction behind the element that matched', () => {
    arm(0, DATA + 5, 1, 1);
    bench.core.gpr[1] = 0x1000n;
    bench.core.gpr[7] = BigInt(DATA);
    bench.memory.write(bench.spa(CODE), Uint8Array.of(0xf3, 0xaa, 0xf4));
    bench.setLong(RIP, BigInt(CODE));
    bench.setLong(0x5f8, 0xffn);
    expect(bench.run()).toBe(DB_EXIT);
    expect([rip(), bench.core.gpr[1], bench.core.gpr[7]]).toEqual([0, 0xffan, BigInt(DATA + 6)]);
    expect(bench.run()).toBe(0x78);
    expect(bench.core.gpr[1]).toBe(0n);
  });

  it('of an instruction that faults is forgotten', () => {
    arm(0, DATA, 3, 8);
    bench.interceptException(14);
    bench.core.gpr[6] = BigInt(DATA);
    bench.core.gpr[7] = 0x500000n;
    // movsb
    bench.memory.write(bench.spa(CODE), Uint8Array.of(0xa4, 0xf4));
    bench.setLong(RIP, BigInt(CODE));
    expect(bench.run()).toBe(0x4e);
    expect(dr6()).toBe(0n);
  });

  it('waits behind MOV SS', () => {
    arm(0, DATA, 3, 2);
    bench.write(DATA, 0x10n);
    bench.core.gpr[3] = BigInt(DATA);
    // mov ss, [rbx]; nop; hlt
    bench.memory.write(bench.spa(CODE), Uint8Array.of(0x8e, 0x13, 0x90, 0xf4));
    bench.setLong(RIP, BigInt(CODE));
    expect(bench.run()).toBe(DB_EXIT);
    expect(rip()).toBe(3);
  });

  it('and the debug registers stay where breakpoints are gone again', () => {
    arm(0, DATA, 1, 8);
    bench.run([set('rbx', DATA), store('rbx', 'rax'), hlt()]);
    bench.setLong(DR7, 0x400n);
    expect(bench.run([set('rbx', DATA), store('rbx', 'rax'), hlt()])).toBe(0x78);
  });
});

describe('a breakpoint on a port', () => {
  const open = () => bench.intercept(123, 0);

  it('traps behind IN and OUT with CR4.DE', () => {
    open();
    bench.setLong(0x548, 0x6a8n);
    arm(1, 0x80, 2, 2);
    bench.core.gpr[2] = 0x81n;
    expect(bench.run([out8(), hlt()])).toBe(DB_EXIT);
    expect([rip(), dr6()]).toEqual([1, 2n]);
  });

  it('is none without CR4.DE, and on other ports', () => {
    open();
    arm(1, 0x80, 2, 2);
    bench.core.gpr[2] = 0x81n;
    expect(bench.run([out8(), hlt()])).toBe(0x78);
    bench.setLong(0x548, 0x6a8n);
    bench.core.gpr[2] = 0x82n;
    expect(bench.run([out8(), hlt()])).toBe(0x78);
  });

  it('traps behind an element of INS', () => {
    open();
    bench.setLong(0x548, 0x6a8n);
    arm(0, 0x60, 2, 1);
    bench.core.gpr[2] = 0x60n;
    bench.core.gpr[7] = BigInt(DATA);
    expect(bench.run([inString(16), hlt()])).toBe(DB_EXIT);
    expect(bench.read(DATA) & 0xffffn).toBe(0xffffn);
    expect(dr6()).toBe(1n);
  });
});

describe('DR7.GD', () => {
  const guard = () => bench.setLong(DR7, 0x2400n);
  const read = two(Code.Mov_r64_dr, Register.RBX, Register.DR7);

  it('makes access to a debug register #DB before it, with DR6.BD, and is cleared by that', () => {
    guard();
    expect(bench.run([read, hlt()])).toBe(DB_EXIT);
    expect([rip(), dr6(), bench.long(DR7)]).toEqual([0, 0x2000n, 0x400n]);
    expect(bench.run()).toBe(0x78);
    expect(bench.core.gpr[3]).toBe(0x400n);
  });

  it('comes behind #UD for DR4 with CR4.DE, and before the intercept', () => {
    guard();
    bench.setLong(0x548, 0x6a8n);
    bench.interceptException(6);
    expect(bench.run([two(Code.Mov_r64_dr, Register.RBX, Register.DR4)])).toBe(0x46);
    bench.setWord(4, 0xff00ff);
    expect(bench.run([read])).toBe(DB_EXIT);
    expect(bench.run([read])).toBe(0x27);
  });

  it('comes behind #GP above CPL 0', () => {
    guard();
    bench.becomeUser();
    bench.interceptException(13);
    expect(bench.run([read])).toBe(0x4d);
  });
});

describe('INT1', () => {
  it('exits ICEBP where that is intercepted, #DB else, with RIP on it', () => {
    expect(bench.run([op(Code.Int1)])).toBe(DB_EXIT);
    bench.intercept(136);
    expect(bench.run([op(Code.Int1)])).toBe(0x88);
    expect([rip(), bench.long(0xc8)]).toEqual([0, BigInt(CODE + 1)]);
  });

  it('goes through vector 1 whatever its gate’s DPL, with RIP behind it, and leaves DR6 alone', () => {
    bench.setWord(8, 0);
    bench.becomeUser();
    bench.gate(1, HANDLERS);
    bench.load([hlt()], HANDLERS);
    bench.segment(0x90, 0x28, 0x8b, 0x67, 0x7000n);
    expect(bench.run([op(Code.Int1)])).toBe(0x78);
    const rsp = Number(bench.long(RSP));
    expect([0, 8, 24, 32].map((offset) => bench.read(rsp + offset))).toEqual([
      BigInt(CODE + 1),
      BigInt(USER_CODE),
      BigInt(USER_STACK),
      BigInt(USER_DATA),
    ]);
    expect(dr6()).toBe(0n);
  });

  it('is an exception in EXITINTINFO when its delivery exits', () => {
    bench.setWord(8, 0);
    bench.unmap(6);
    expect(bench.run([op(Code.Int1)])).toBe(0x400);
    expect(bench.word(EXITINTINFO)).toBe(0x80000301 | 0);
  });
});

it('DR6 keeps BS and BD until software clears them; the breakpoint bits are the last #DB’s', () => {
  bench.setLong(DR6, 0xffff6ff3n);
  arm(2, CODE, 0);
  expect(bench.run([nop()])).toBe(DB_EXIT);
  expect(dr6()).toBe(0x6004n);
});

it('RFLAGS.RF of an IRET holds for one instruction', () => {
  const frame = [0x10, STACK, 0x10002, 8, HANDLERS];
  bench.load([hlt()], HANDLERS);
  const program = [...frame.flatMap((value) => [set('rax', value), push('rax')]), op(Code.Iretq)];
  expect(bench.run(program)).toBe(0x78);
  expect(bench.long(RFLAGS)).toBe(0x10002n);
  bench.load([op(Code.Pushfq), pop('rbx'), hlt()], HANDLERS);
  expect(bench.run(program)).toBe(0x78);
  expect([bench.long(RFLAGS), bench.core.gpr[3]]).toEqual([2n, 2n]);
});
