/** System instructions: control registers, MSRs, descriptor tables and segments, transfers between privilege levels, SSE state. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  Code,
  hlt,
  load,
  move,
  nop,
  onMemory,
  onRegister,
  op,
  pop,
  push,
  Register,
  set,
  store,
  two,
  withNumber,
} from './assembler.ts';
import {
  CODE,
  CR0,
  CR4,
  DATA,
  EXITINFO1,
  GDT,
  GuestBench,
  HANDLERS,
  RAX,
  RFLAGS,
  RIP,
  RSP,
  STACK,
  USER_CODE,
  USER_DATA,
  USER_STACK,
} from './guest-bench.ts';

let bench: GuestBench;
beforeEach(() => {
  bench = new GuestBench();
});
afterEach(() => bench.close());

const toCr = (cr: number, from: number = Register.RAX) => two(Code.Mov_cr_r64, cr, from);
const fromCr = (cr: number, to: number = Register.RAX) => two(Code.Mov_r64_cr, to, cr);
const rdmsr = (msr: number) => [set('rcx', msr), op(Code.Rdmsr)];
const wrmsr = (msr: number, value: bigint) => [
  set('rcx', msr),
  set('rax', value & 0xffffffffn),
  set('rdx', value >> 32n),
  op(Code.Wrmsr),
];

describe('control registers', () => {
  it('read what the VMCB holds and reach it when they are written', () => {
    bench.run([fromCr(Register.CR0), hlt()]);
    expect(bench.long(RAX)).toBe(0x80010033n);
    bench.run([set('rax', 0x80050033), toCr(Register.CR0), hlt()]);
    expect(bench.long(CR0)).toBe(0x80050033n);
    bench.run([set('rax', 0x106e0), toCr(Register.CR4), fromCr(Register.CR4, Register.RCX), hlt()]);
    expect(bench.long(CR4)).toBe(0x106e0n);
    expect(bench.core.gpr[1]).toBe(0x106e0n);
    bench.run([set('rax', 0x1234567890), toCr(Register.CR2), hlt()]);
    expect(bench.long(0x640)).toBe(0x1234567890n);
  });
  it('CR0.ET is always 1', () => {
    bench.run([set('rax', 0x80010023), toCr(Register.CR0), hlt()]);
    expect(bench.long(CR0)).toBe(0x80010033n);
  });
  it('CR8 is V_TPR', () => {
    bench.run([set('rax', 9), toCr(Register.CR8), set('rax', 0), fromCr(Register.CR8), hlt()]);
    expect(bench.word(0x60) & 0xff).toBe(9);
    expect(bench.long(RAX)).toBe(9n);
  });
  it('CLTS, LMSW and SMSW work on CR0', () => {
    bench.run([
      set('rax', 0xb),
      onRegister(Code.Lmsw_r32m16, Register.EAX),
      onRegister(Code.Smsw_r64m16, Register.RCX),
      hlt(),
    ]);
    expect(bench.core.gpr[1]).toBe(0x8001003bn);
    bench.run([op(Code.Clts), hlt()]);
    expect(bench.long(CR0)).toBe(0x80010033n);
  });
  it('LMSW cannot clear PE', () => {
    bench.run([set('rax', 0), onRegister(Code.Lmsw_r32m16, Register.EAX), hlt()]);
    expect(bench.long(CR0)).toBe(0x80010031n);
  });
  it('CR0.PG cannot be cleared in 64-bit mode, and nothing happens to CR0', () => {
    bench.interceptException(13);
    expect(bench.run([set('rax', 0x10033), toCr(Register.CR0)])).toBe(0x4d);
    expect(bench.long(RIP)).toBe(BigInt(CODE + 10));
    expect(bench.long(CR0)).toBe(0x80010033n);
  });
  it('debug registers keep what is written', () => {
    const toDr = (dr: number) => two(Code.Mov_dr_r64, dr, Register.RAX);
    const fromDr = (dr: number, to: number) => two(Code.Mov_r64_dr, to, dr);
    bench.run([
      set('rax', 0x1234n),
      toDr(Register.DR1),
      fromDr(Register.DR1, Register.RCX),
      set('rax', 0),
      toDr(Register.DR6),
      fromDr(Register.DR6, Register.RDX),
      fromDr(Register.DR7, Register.RBX),
      hlt(),
    ]);
    expect([...bench.core.gpr.subarray(1, 4)]).toEqual([0x1234n, 0xffff0ff0n, 0x400n]);
    expect(bench.long(0x568)).toBe(0xffff0ff0n);
  });
});

describe('MSRs', () => {
  const inSaveArea: [string, number, number, bigint][] = [
    ['STAR', 0xc0000081, 0x600, 0x23001000000000n],
    ['LSTAR', 0xc0000082, 0x608, 0xffff800000001234n],
    ['CSTAR', 0xc0000083, 0x610, 0x1000n],
    ['SFMASK', 0xc0000084, 0x618, 0x47700n],
    ['FS_BASE', 0xc0000100, 0x448, 0xffff800000005678n],
    ['GS_BASE', 0xc0000101, 0x458, 0x77n],
    ['KERNEL_GS_BASE', 0xc0000102, 0x620, 0x99n],
    ['SYSENTER_CS', 0x174, 0x628, 8n],
    ['SYSENTER_ESP', 0x175, 0x630, 0x9000n],
    ['SYSENTER_EIP', 0x176, 0x638, 0x10000n],
    ['PAT', 0x277, 0x668, 0x0007010600070406n],
  ];
  it.each(inSaveArea)('%s is the save area’s field', (_name, msr, field, value) => {
    bench.run([...wrmsr(msr, value), set('rdx', 0), set('rax', 0), ...rdmsr(msr), hlt()]);
    expect(bench.long(field)).toBe(value);
    expect((bench.core.gpr[2]! << 32n) | bench.long(RAX)).toBe(value);
  });
  it('EFER keeps LMA, and LME while paging is on', () => {
    bench.interceptException(13);
    expect(bench.run([...wrmsr(0xc0000080, 0x1901n), hlt()])).toBe(0x78);
    expect(bench.long(0x4d0)).toBe(0x1d01n);
    expect(bench.run([...wrmsr(0xc0000080, 0x1801n), hlt()])).toBe(0x4d);
    expect(bench.run([...wrmsr(0xc0000080, 0x5d01n | (1n << 16n)), hlt()])).toBe(0x4d);
  });
  it('an illegal PAT type is #GP', () => {
    bench.interceptException(13);
    expect(bench.run([...wrmsr(0x277, 0x0007040600070402n), hlt()])).toBe(0x4d);
  });
  it('the time stamp is the core’s plus the guest’s offset', () => {
    bench.setLong(0x50, 0x1_0000_0000n);
    bench.run([op(Code.Rdtsc), hlt()]);
    expect(bench.core.gpr[2]).toBe(1n);
    expect(bench.long(RAX)).toBeLessThan(1000n);
    bench.run([...wrmsr(0xc0000103, 7n), op(Code.Rdtscp), hlt()]);
    expect(bench.core.gpr[1]).toBe(7n);
  });
  it('TSC_AUX has 32 bits; what is written above them is dropped', () => {
    expect(bench.run([...wrmsr(0xc0000103, 0x1_0000_0007n), op(Code.Rdmsr), hlt()])).toBe(0x78);
    expect([bench.long(RAX), bench.core.gpr[2]]).toEqual([7n, 0n]);
  });
});

it('CPUID that nobody intercepts shows a Milan', () => {
  bench.run([set('rax', 0), set('rcx', 0), op(Code.Cpuid), hlt()]);
  expect(bench.core.gpr[3]).toBe(0x68747541n);
  expect(bench.core.gpr[2]).toBe(0x69746e65n);
  expect(bench.core.gpr[1]).toBe(0x444d4163n);
  bench.run([set('rax', 1), op(Code.Cpuid), hlt()]);
  expect(bench.long(RAX)).toBe(0x00a00f11n);
  bench.run([set('rax', 0x80000008n), op(Code.Cpuid), hlt()]);
  expect(bench.long(RAX)).toBe(0x3030n);
});

describe('descriptor tables and segments', () => {
  it('LGDT and SGDT, LIDT and SIDT move ten bytes', () => {
    bench.write(DATA, 0x8678_1234_0000_01ffn);
    bench.write(DATA + 8, 0xffffn);
    bench.run([
      set('rbx', DATA),
      onMemory(Code.Lgdt_m1664, 'rbx'),
      onMemory(Code.Sgdt_m1664, 'rbx', 0x20),
      onMemory(Code.Lidt_m1664, 'rbx'),
      onMemory(Code.Sidt_m1664, 'rbx', 0x40),
      hlt(),
    ]);
    expect(bench.word(0x464)).toBe(0x1ff);
    expect(bench.long(0x468)).toBe(0xffff_8678_1234_0000n);
    expect(bench.long(0x488)).toBe(0xffff_8678_1234_0000n);
    for (const at of [0x20, 0x40]) {
      expect(bench.read(DATA + at)).toBe(0x8678_1234_0000_01ffn);
      expect(bench.read(DATA + at + 8)).toBe(0xffffn);
    }
  });
  it('a segment load takes the descriptor and marks it accessed', () => {
    bench.run([
      set('rax', USER_DATA),
      two(Code.Mov_Sreg_r32m16, Register.ES, Register.EAX),
      two(Code.Mov_r32m16_Sreg, Register.ECX, Register.ES),
      hlt(),
    ]);
    expect(bench.core.gpr[1]).toBe(0x1bn);
    expect(bench.word(0x400)).toBe(0xcf3001b);
    expect(bench.word(0x404)).toBe(-1);
    expect(bench.read(GDT + 0x18)).toBe(0x00cff3000000ffffn);
  });
  it('a null selector makes the segment unusable', () => {
    bench.run([set('rax', 0), two(Code.Mov_Sreg_r32m16, Register.DS, Register.EAX), hlt()]);
    expect(bench.word(0x430)).toBe(0);
  });
  it('loads through FS and GS add the base', () => {
    bench.write(DATA + 0x18, 0x77n);
    bench.run([
      ...wrmsr(0xc0000101, BigInt(DATA)),
      op(Code.Swapgs),
      ...wrmsr(0xc0000101, 0x123n),
      op(Code.Swapgs),
      hlt(),
    ]);
    expect(bench.long(0x458)).toBe(BigInt(DATA));
    expect(bench.long(0x620)).toBe(0x123n);
  });
  it('LTR marks the TSS busy, a busy one is #GP', () => {
    bench.segment(0x90, 0, 0, 0, 0n);
    bench.run([
      set('rax', 0x28),
      onRegister(Code.Ltr_r32m16, Register.EAX),
      onRegister(Code.Str_r64m16, Register.RCX),
      hlt(),
    ]);
    expect(bench.core.gpr[1]).toBe(0x28n);
    expect(bench.word(0x490)).toBe(0x8b0028);
    expect(bench.long(0x498)).toBe(0x7000n);
    bench.interceptException(13);
    expect(bench.run([set('rax', 0x28), onRegister(Code.Ltr_r32m16, Register.EAX)])).toBe(0x4d);
    expect(bench.long(EXITINFO1)).toBe(0x28n);
  });
  it('LLDT takes null, and nothing but an LDT', () => {
    expect(bench.run([set('rax', 0), onRegister(Code.Lldt_r32m16, Register.EAX), hlt()])).toBe(0x78);
    bench.interceptException(13);
    expect(bench.run([set('rax', 0x28), onRegister(Code.Lldt_r32m16, Register.EAX)])).toBe(0x4d);
  });
  it('LAR, LSL, VERR, VERW say by ZF what may be looked at', () => {
    const lar = [set('rax', 0x10), two(Code.Lar_r32_r32m16, Register.ECX, Register.EAX), hlt()];
    bench.run(lar);
    expect(bench.core.gpr[1]).toBe(0xc09200n);
    expect(bench.long(RFLAGS) & 0x40n).toBe(0x40n);
    bench.run([set('rax', 0x10), two(Code.Lsl_r32_r32m16, Register.ECX, Register.EAX), hlt()]);
    expect(bench.core.gpr[1]).toBe(0xffffffffn);
    bench.run([set('rax', 0x08), onRegister(Code.Verw_r32m16, Register.EAX), hlt()]);
    expect(bench.long(RFLAGS) & 0x40n).toBe(0n);
    bench.run([set('rax', 0x48), onRegister(Code.Verr_r32m16, Register.EAX), hlt()]);
    expect(bench.long(RFLAGS) & 0x40n).toBe(0n);
  });
});

describe('transfers', () => {
  const iretFrame = (frame: { rip: number; cs: number; flags: number; rsp: number; ss: number }) =>
    [frame.ss, frame.rsp, frame.flags, frame.cs, frame.rip].flatMap((value) => [
      set('rax', value),
      push('rax'),
    ]);
  /** Code for the user: a port that it may use, to come back. */
  const userCode = () => bench.load([op(Code.Syscall), hlt()], CODE + 0x2000);
  beforeEach(() => {
    for (let page = 0; page < 256; page++) bench.write(0x4000 + page * 8, BigInt(page * 4096) | 7n);
    bench.write(0x4000 + 0x20 * 8, 0x20003n);
    bench.interceptException(13);
  });

  it('IRETQ goes to user mode with its stack and flags', () => {
    userCode();
    bench.interceptException(6);
    bench.setLong(0x4d0, 0x1d00n);
    const program = iretFrame({
      rip: CODE + 0x2000,
      cs: USER_CODE,
      flags: 0x246,
      rsp: USER_STACK,
      ss: USER_DATA,
    });
    expect(bench.run([...program, op(Code.Iretq)])).toBe(0x46);
    expect(bench.cpl).toBe(3);
    expect(bench.long(RIP)).toBe(BigInt(CODE + 0x2000));
    expect(bench.long(RSP)).toBe(BigInt(USER_STACK));
    expect(bench.long(RFLAGS)).toBe(0x246n);
    expect(bench.word(0x410)).toBe(0xafb0023);
    expect(bench.word(0x420)).toBe(0xcf3001b);
    // DS was the kernel's.
    expect(bench.word(0x430)).toBe(0);
  });
  it('IRETQ back to the same level takes RSP and a null SS', () => {
    bench.load([hlt()], HANDLERS);
    const program = iretFrame({ rip: HANDLERS, cs: 8, flags: 0x2, rsp: STACK - 0x100, ss: 0 });
    expect(bench.run([...program, op(Code.Iretq)])).toBe(0x78);
    expect(bench.long(RSP)).toBe(BigInt(STACK - 0x100));
  });
  it('a handler returns to where it came from', () => {
    bench.gate(3, HANDLERS);
    bench.load([set('rbx', 5), op(Code.Iretq)], HANDLERS);
    expect(bench.run([op(Code.Int3), hlt()])).toBe(0x78);
    expect(bench.core.gpr[3]).toBe(5n);
    expect(bench.long(RSP)).toBe(BigInt(STACK));
  });
  const refused: [string, Parameters<typeof iretFrame>[0], number][] = [
    ['a null CS', { rip: CODE, cs: 0, flags: 2, rsp: STACK, ss: 0x10 }, 0],
    ['a CS beyond the GDT', { rip: CODE, cs: 0x48, flags: 2, rsp: STACK, ss: 0x10 }, 0x48],
    ['a data segment as CS', { rip: CODE, cs: 0x10, flags: 2, rsp: STACK, ss: 0x10 }, 0x10],
    ['a CS whose DPL is not its RPL', { rip: CODE, cs: 0x0b, flags: 2, rsp: STACK, ss: 0x1b }, 0x08],
    ['a null SS for the user', { rip: CODE, cs: USER_CODE, flags: 2, rsp: STACK, ss: 3 }, 0],
    ['a stack of another level', { rip: CODE, cs: USER_CODE, flags: 2, rsp: STACK, ss: 0x13 }, 0x10],
  ];
  it.each(refused)('IRETQ with %s is #GP', (_name, frame, error) => {
    expect(bench.run([...iretFrame(frame), op(Code.Iretq)])).toBe(0x4d);
    expect(bench.long(EXITINFO1)).toBe(BigInt(error));
    expect(bench.cpl).toBe(0);
  });
  it('IRETQ with NT is #GP', () => {
    bench.setLong(RFLAGS, 0x4002n);
    expect(bench.run([op(Code.Iretq)])).toBe(0x4d);
  });
  it('a far return goes to the other code segment', () => {
    bench.load([hlt()], HANDLERS);
    const program = [set('rax', 8), push('rax'), set('rax', HANDLERS), push('rax')];
    expect(bench.run([...program, op(Code.Retfq)])).toBe(0x78);
    expect(bench.long(RIP)).toBe(BigInt(HANDLERS));
    expect(bench.long(RSP)).toBe(BigInt(STACK));
    expect(bench.run([...program, withNumber(Code.Retfq_imm16, 0x20)])).toBe(0x78);
    expect(bench.long(RSP)).toBe(BigInt(STACK + 0x20));
  });

  it('SYSCALL and SYSRET go down and up by STAR, LSTAR and SFMASK', () => {
    bench.setLong(0x600, (0x10n << 48n) | (0x08n << 32n));
    bench.setLong(0x608, BigInt(HANDLERS));
    bench.setLong(0x618, 0x200n);
    bench.load([move('rbx', 'rcx'), move('rsi', 'r11'), op(Code.Sysretq)], HANDLERS);
    bench.becomeUser();
    bench.write(0x4000 + 0x20 * 8, 0x20003n);
    bench.setLong(RFLAGS, 0x247n);
    expect(bench.run([op(Code.Syscall), hlt()])).toBe(0x4d);
    expect(bench.cpl).toBe(3);
    expect(bench.long(RIP)).toBe(BigInt(CODE + 2));
    expect(bench.core.gpr[3]).toBe(BigInt(CODE + 2));
    expect(bench.core.gpr[6]).toBe(0x247n);
    expect(bench.long(RFLAGS)).toBe(0x247n);
    expect(bench.word(0x410) & 0xffff).toBe(0x23);
    expect(bench.word(0x420) & 0xffff).toBe(0x1b);
    expect(bench.long(RSP)).toBe(BigInt(USER_STACK));
  });

  it('SYSRET sets the selector of SS and nothing else of it, as AMD does; SYSCALL sets all', () => {
    const ss = () => [bench.word(0x420), bench.word(0x424), bench.long(0x428)];
    bench.setLong(0x600, (0x10n << 48n) | (0x08n << 32n));
    bench.setLong(0x608, BigInt(HANDLERS));
    bench.load([hlt()], HANDLERS);
    bench.becomeUser();
    bench.segment(0x10, 0x08, 0xa9b);
    bench.segment(0x20, 0, 0, 0x1234, 0x5678n);
    bench.setWord(0x4c8, 0);
    bench.core.gpr[1] = BigInt(DATA);
    bench.core.gpr[11] = 2n;
    bench.load([op(Code.Ud2)], DATA);
    bench.interceptException(6);
    expect(bench.run([op(Code.Sysretq)])).toBe(0x46);
    expect([bench.cpl, bench.long(RIP)]).toEqual([3, BigInt(DATA)]);
    expect(ss()).toEqual([0x1b, 0x1234, 0x5678n]);
    expect(bench.run([op(Code.Syscall)])).toBe(0x78);
    expect(bench.cpl).toBe(0);
    expect(ss()).toEqual([0x0c93_0010, -1, 0n]);
  });

  it.each([
    ['DR6', Register.DR6, 1n << 32n, 0x4d],
    ['DR7', Register.DR7, 1n << 63n, 0x4d],
    ['DR6', Register.DR6, 0xffff_ffffn, 0x78],
    ['DR7', Register.DR7, 0xffff_0000n, 0x78],
    ['DR3', Register.DR3, 1n << 63n, 0x78],
  ])('MOV to %s with bits that it has not above the low half is #GP', (_, register, value, exit) => {
    bench.interceptException(13);
    expect(bench.run([set('rax', value), two(Code.Mov_dr_r64, register, Register.RAX), hlt()])).toBe(exit);
  });

  it('POPF changes IF and IOPL by privilege', () => {
    const program = [set('rax', 0x3ad7 & ~0x100), push('rax'), op(Code.Popfq), hlt()];
    bench.run(program);
    expect(bench.long(RFLAGS)).toBe(0x3ad7n & ~0x100n & ~0x8n & ~0x20n);
    bench.becomeUser();
    bench.setLong(RFLAGS, 0x202n);
    const user = [set('rax', 0x3002), push('rax'), op(Code.Popfq), hlt()];
    expect(bench.run(user)).toBe(0x4d);
    expect(bench.long(RFLAGS)).toBe(0x202n);
  });
  it('CLI and STI want I/O privilege', () => {
    bench.becomeUser();
    expect(bench.run([op(Code.Cli)])).toBe(0x4d);
    bench.setLong(RFLAGS, 0x3002n);
    expect(bench.run([op(Code.Sti), nop(), op(Code.Rdmsr)])).toBe(0x4d);
    expect(bench.long(RFLAGS)).toBe(0x3202n);
  });
});

describe('SSE state', () => {
  it('FXSAVE and FXRSTOR move XMM registers and MXCSR', () => {
    const program = [
      set('rbx', DATA),
      set('rax', 0x1122334455667788n),
      two(Code.Movq_xmm_rm64, Register.XMM3, Register.RAX),
      onMemory(Code.Fxsave_m512byte, 'rbx'),
      set('rax', 0),
      two(Code.Movq_xmm_rm64, Register.XMM3, Register.RAX),
      onMemory(Code.Fxrstor_m512byte, 'rbx'),
      two(Code.Movq_rm64_xmm, Register.RCX, Register.XMM3),
      hlt(),
    ];
    expect(bench.run(program)).toBe(0x78);
    expect(bench.core.gpr[1]).toBe(0x1122334455667788n);
    expect(bench.read(DATA + 24)).toBe(0xffff_00001f80n);
    expect(bench.read(DATA + 160 + 48)).toBe(0x1122334455667788n);
  });
  it('a misaligned image and a reserved MXCSR bit are #GP', () => {
    bench.interceptException(13);
    expect(bench.run([set('rbx', DATA + 8), onMemory(Code.Fxsave_m512byte, 'rbx')])).toBe(0x4d);
    bench.write(DATA, 0x10000n);
    expect(bench.run([set('rbx', DATA), onMemory(Code.Ldmxcsr_m32, 'rbx')])).toBe(0x4d);
  });
  it('LDMXCSR and STMXCSR', () => {
    bench.write(DATA, 0x9fc0n);
    expect(
      bench.run([
        set('rbx', DATA),
        onMemory(Code.Ldmxcsr_m32, 'rbx'),
        onMemory(Code.Stmxcsr_m32, 'rbx', 8),
        hlt(),
      ]),
    ).toBe(0x78);
    expect(bench.read(DATA + 8)).toBe(0x9fc0n);
  });
  it('CR0.TS is #NM', () => {
    bench.setLong(CR0, 0x8001003bn);
    bench.interceptException(7);
    expect(bench.run([set('rbx', DATA), onMemory(Code.Fxsave_m512byte, 'rbx')])).toBe(0x47);
  });
});

it('a HLT that nobody intercepts waits behind itself for the host', () => {
  bench.intercept(120, 0);
  expect(bench.run([hlt(), nop()])).toBe(0x60);
  expect(bench.long(RIP)).toBe(BigInt(CODE + 1));
  expect(bench.run(undefined, 1)).toBe(0x60);
});

it('pushing, popping and loading through the stack', () => {
  expect(
    bench.run([set('rax', 5), push('rax'), load('rcx', 'rsp'), pop('rdx'), store('rsp', 'rdx', -16), hlt()]),
  ).toBe(0x78);
  expect(bench.read(STACK - 16)).toBe(5n);
});
