/** Virtual interrupts, the window that the host asks for, and interrupt shadows (APM volume 2, 15.21). */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { Code, hlt, nop, op, push, Register, set, two } from './assembler.ts';
import {
  CODE,
  EXITCODE,
  EXITINTINFO,
  GuestBench,
  HANDLERS,
  IDT,
  RFLAGS,
  RIP,
  RSP,
  STACK,
} from './guest-bench.ts';

const INT_CTL = 0x60;
const INT_VECTOR = 0x64;
const INT_STATE = 0x68;
const V_IRQ = 1 << 8;
const PRIORITY = 1 << 16;
const IGNORE_TPR = 1 << 20;
const VECTOR = 0x51;
const VINTR = 100;

let bench: GuestBench;
beforeEach(() => {
  bench = new GuestBench();
  bench.gate(VECTOR, HANDLERS);
  bench.load([hlt()], HANDLERS);
  bench.setWord(INT_VECTOR, VECTOR);
});
afterEach(() => bench.close());

const raise = (control = V_IRQ | IGNORE_TPR): void => bench.setWord(INT_CTL, control);
const enableInterrupts = (): void => bench.setLong(RFLAGS, 0x202n);
const taken = (): boolean => bench.long(RIP) === BigInt(HANDLERS);
const toCr8 = two(Code.Mov_cr_r64, Register.CR8, Register.RAX);
const toSs = two(Code.Mov_Sreg_r32m16, Register.SS, Register.EAX);

describe('a virtual interrupt', () => {
  it('is taken before the first instruction with RFLAGS.IF set; V_IRQ ends', () => {
    raise();
    enableInterrupts();
    expect(bench.run([set('rbx', 5), hlt()])).toBe(0x78);
    expect(taken()).toBe(true);
    expect(bench.core.gpr[3]).toBe(0n);
    expect(bench.word(INT_CTL)).toBe(IGNORE_TPR);
    // An interrupt pushes no RF, and its gate clears IF.
    const rsp = Number(bench.long(RSP));
    expect([bench.read(rsp), bench.read(rsp + 16)]).toEqual([BigInt(CODE), 0x202n]);
    expect(bench.long(RFLAGS)).toBe(2n);
  });

  it('waits while IF is clear', () => {
    raise();
    expect(bench.run([set('rbx', 5), hlt()])).toBe(0x78);
    expect(taken()).toBe(false);
    expect(bench.word(INT_CTL) & V_IRQ).toBe(V_IRQ);
  });

  it.each([
    [4, 3, true],
    [4, 4, false],
    [3, 4, false],
    [15, 14, true],
    [0, 0, false],
  ])('of priority %i at V_TPR %i: taken %s', (priority, tpr, expected) => {
    raise(V_IRQ | (priority * PRIORITY) | tpr);
    enableInterrupts();
    expect(bench.run([hlt()])).toBe(0x78);
    expect(taken()).toBe(expected);
  });

  it('does not ask for V_TPR with V_IGN_TPR', () => {
    raise(V_IRQ | IGNORE_TPR | 15);
    enableInterrupts();
    expect(bench.run([hlt()])).toBe(0x78);
    expect(taken()).toBe(true);
  });

  it('is held off by a virtual GIF of 0, where that is on', () => {
    enableInterrupts();
    raise(V_IRQ | IGNORE_TPR | (1 << 25));
    expect(bench.run([hlt()])).toBe(0x78);
    expect(taken()).toBe(false);
    raise(V_IRQ | IGNORE_TPR | (1 << 25) | (1 << 9));
    expect(bench.run([hlt()])).toBe(0x78);
    expect(taken()).toBe(true);
  });

  it('comes in behind a MOV to CR8 that lowers the priority', () => {
    raise(V_IRQ | (4 * PRIORITY) | 9);
    enableInterrupts();
    expect(bench.run([set('rax', 3), toCr8, set('rbx', 5), hlt()])).toBe(0x78);
    expect(taken()).toBe(true);
    expect(bench.core.gpr[3]).toBe(0n);
    expect(bench.word(INT_CTL) & 0xf).toBe(3);
  });

  it('comes in at the second instruction behind STI', () => {
    raise();
    expect(bench.run([op(Code.Sti), set('rbx', 5), set('rcx', 6), hlt()])).toBe(0x78);
    expect(taken()).toBe(true);
    expect([bench.core.gpr[3], bench.core.gpr[1]]).toEqual([5n, 0n]);
  });

  it('does not come in between STI and CLI', () => {
    raise();
    expect(bench.run([op(Code.Sti), op(Code.Cli), set('rbx', 5), hlt()])).toBe(0x78);
    expect(taken()).toBe(false);
  });

  it('STI with IF set already makes no shadow', () => {
    enableInterrupts();
    raise(V_IRQ | (4 * PRIORITY) | 9);
    expect(bench.run([set('rax', 3), op(Code.Sti), toCr8, set('rbx', 5), hlt()])).toBe(0x78);
    expect(bench.core.gpr[3]).toBe(0n);
  });

  it('comes in right behind POPF that sets IF', () => {
    raise();
    expect(bench.run([set('rax', 0x202), push('rax'), op(Code.Popfq), set('rbx', 5), hlt()])).toBe(0x78);
    expect(taken()).toBe(true);
    expect(bench.core.gpr[3]).toBe(0n);
  });

  it('comes in right behind IRET that sets IF', () => {
    raise();
    const frame = [0x10, STACK, 0x202, 8, HANDLERS + 0x40];
    bench.load([set('rbx', 5), hlt()], HANDLERS + 0x40);
    const program = frame.flatMap((value) => [set('rax', value), push('rax')]);
    expect(bench.run([...program, op(Code.Iretq)])).toBe(0x78);
    expect(taken()).toBe(true);
    expect(bench.core.gpr[3]).toBe(0n);
    expect(bench.read(Number(bench.long(RSP)))).toBe(BigInt(HANDLERS + 0x40));
  });

  it('comes in at the second instruction behind MOV SS', () => {
    raise(V_IRQ | (4 * PRIORITY) | 9);
    enableInterrupts();
    const program = [set('rax', 0x10), toSs, set('rbx', 5), set('rax', 3), toCr8, set('rcx', 6), hlt()];
    expect(bench.run(program)).toBe(0x78);
    expect([bench.core.gpr[3], bench.core.gpr[1]]).toEqual([5n, 0n]);
    raise();
    bench.setLong(0x570, 0x2n);
    // In the shadow of STI, it begins another one.
    expect(bench.run([set('rax', 0x10), op(Code.Sti), toSs, set('rdx', 7), set('rcx', 8), hlt()])).toBe(0x78);
    expect([bench.core.gpr[2], bench.core.gpr[1]]).toEqual([7n, 0n]);
  });

  it('wakes a halted guest that the host lets halt', () => {
    bench.intercept(120, 0);
    raise();
    bench.load([op(Code.Vmmcall)], HANDLERS);
    expect(bench.run([op(Code.Sti), hlt(), set('rbx', 5)])).toBe(0x81);
    expect(bench.read(Number(bench.long(RSP)))).toBe(BigInt(CODE + 2));
  });

  it('that waits leaves a halted guest halted: the host gets its timer, with RIP behind the HLT', () => {
    bench.intercept(120, 0);
    raise();
    expect(bench.run([hlt(), set('rbx', 5)])).toBe(0x60);
    expect(bench.long(RIP)).toBe(BigInt(CODE + 1));
  });

  it('a fault in its delivery leaves it in EXITINTINFO', () => {
    raise();
    enableInterrupts();
    bench.unmap(IDT >>> 12);
    expect(bench.run([nop()])).toBe(0x400);
    expect(bench.word(EXITINTINFO)).toBe(0x80000051 | 0);
    expect(bench.word(INT_CTL) & V_IRQ).toBe(0);
    expect(bench.long(RIP)).toBe(BigInt(CODE));
  });
});

describe('the interrupt window: VINTR intercepted', () => {
  beforeEach(() => bench.intercept(VINTR));

  it('opens at once where the guest could take an interrupt, with V_IRQ still set', () => {
    raise();
    enableInterrupts();
    expect(bench.run([set('rbx', 5), hlt()])).toBe(0x64);
    expect(bench.long(EXITCODE)).toBe(0x64n);
    expect(bench.long(RIP)).toBe(BigInt(CODE));
    expect(bench.word(INT_CTL)).toBe(V_IRQ | IGNORE_TPR);
    expect(bench.long(0xc8)).toBe(0n);
  });

  it('opens behind the shadow of STI', () => {
    raise();
    expect(bench.run([op(Code.Sti), nop(), set('rbx', 5), hlt()])).toBe(0x64);
    expect(bench.long(RIP)).toBe(BigInt(CODE + 2));
    expect(bench.word(INT_STATE)).toBe(2);
  });

  it('opens behind a shadow that the VMCB brings', () => {
    raise();
    enableInterrupts();
    bench.setWord(INT_STATE, 1);
    expect(bench.run([nop(), nop(), hlt()])).toBe(0x64);
    expect(bench.long(RIP)).toBe(BigInt(CODE + 1));
  });

  it('comes before the host’s timer when both are due', () => {
    raise();
    enableInterrupts();
    expect(bench.run([nop()], 0)).toBe(0x64);
  });
});

describe('the interrupt shadow at an exit', () => {
  const shadow = (): number => bench.word(INT_STATE) & 1;

  it('of STI holds at the next instruction and nowhere else', () => {
    expect(bench.run([op(Code.Sti), hlt()])).toBe(0x78);
    expect(shadow()).toBe(1);
    expect(bench.run([op(Code.Sti), nop(), hlt()])).toBe(0x78);
    expect(shadow()).toBe(0);
  });

  it('is none of STI with IF set already', () => {
    bench.setLong(RFLAGS, 0x202n);
    expect(bench.run([op(Code.Sti), hlt()])).toBe(0x78);
    expect(shadow()).toBe(0);
  });

  it('of MOV SS too', () => {
    expect(bench.run([set('rax', 0x10), toSs, hlt()])).toBe(0x78);
    expect(shadow()).toBe(1);
    expect(bench.run([set('rax', 0x10), toSs, nop(), hlt()])).toBe(0x78);
    expect(shadow()).toBe(0);
  });

  it('is over when the instruction comes again in a loop', () => {
    // sti; pause; jmp to the pause, until the host's timer.
    bench.memory.write(bench.spa(CODE), Uint8Array.of(0xfb, 0xf3, 0x90, 0xeb, 0xfc));
    bench.setLong(RIP, BigInt(CODE));
    expect(bench.run(undefined, 101)).toBe(0x60);
    expect(bench.long(RIP)).toBe(BigInt(CODE + 1));
    expect(shadow()).toBe(0);
  });

  it('does not follow an exception into its handler', () => {
    bench.gate(6, HANDLERS);
    expect(bench.run([op(Code.Sti), op(Code.Ud2)])).toBe(0x78);
    expect(taken()).toBe(true);
    expect(shadow()).toBe(0);
  });

  it('does not follow an injected event into its handler', () => {
    bench.setWord(INT_STATE, 1);
    bench.setWord(0xa8, 0x80000051 | 0);
    expect(bench.run([nop()])).toBe(0x78);
    expect(shadow()).toBe(0);
  });
});
