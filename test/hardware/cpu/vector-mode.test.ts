/** CR0.EM, CR0.TS and CR4.OSFXSR before instructions on vectors: #UD, #NM, and in which order. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { assemble, Code, hlt, iced, op, Register, set, two } from './assembler.ts';
import { CODE, CR0, CR4, DATA, GuestBench, RAX, RIP } from './guest-bench.ts';

const { Instruction, MemoryOperand } = iced;
const UNDEFINED_EXIT = 0x46;
const UNAVAILABLE_EXIT = 0x47;
const HLT_EXIT = 0x78;

let bench: GuestBench;
beforeEach(() => {
  bench = new GuestBench();
  for (const vector of [6, 7, 13, 14]) bench.interceptException(vector);
});
afterEach(() => bench.close());

const pxor = () => two(Code.Pxor_xmm_xmmm128, Register.XMM1, Register.XMM2);
const onMemory = (code: number) =>
  Instruction.createRegMem(code, Register.XMM1, MemoryOperand.createBaseDispl(Register.RAX, 0n));
const toMemory = (code: number, from: number) =>
  Instruction.createMemReg(code, MemoryOperand.createBaseDispl(Register.RAX, 0n), from);

const USES: readonly [string, () => InstanceType<typeof Instruction>][] = [
  ['pxor', pxor],
  ['movaps from memory', () => onMemory(Code.Movaps_xmm_xmmm128)],
  ['movss to memory', () => toMemory(Code.Movss_xmmm32_xmm, Register.XMM3)],
  ['movd', () => two(Code.Movd_xmm_rm32, Register.XMM3, Register.ECX)],
  ['maskmovdqu', () => Instruction.createMaskmovdqu(64, Register.XMM0, Register.XMM1, Register.None)],
  ['pmovmskb', () => two(Code.Pmovmskb_r32_xmm, Register.ECX, Register.XMM3)],
  ['aesenc', () => two(Code.Aesenc_xmm_xmmm128, Register.XMM3, Register.XMM4)],
  [
    'pcmpistri',
    () => Instruction.createRegRegI32(Code.Pcmpistri_xmm_xmmm128_imm8, Register.XMM0, Register.XMM1, 12),
  ],
  ['ptest', () => two(Code.Ptest_xmm_xmmm128, Register.XMM0, Register.XMM1)],
];

describe('instructions on vectors', () => {
  for (const [name, instruction] of USES) {
    it.each([
      ['CR0.TS', 0x8001003bn, 0x6a0n, UNAVAILABLE_EXIT],
      ['CR0.EM', 0x80010037n, 0x6a0n, UNDEFINED_EXIT],
      ['no CR4.OSFXSR', 0x80010033n, 0x4a0n, UNDEFINED_EXIT],
      ['CR0.EM and CR0.TS', 0x8001003fn, 0x6a0n, UNDEFINED_EXIT],
      ['CR0.TS without CR4.OSFXSR', 0x8001003bn, 0x4a0n, UNDEFINED_EXIT],
      ['nothing in the way', 0x80010033n, 0x6a0n, HLT_EXIT],
    ])(`${name} with %s`, (_, cr0, cr4, exit) => {
      bench.setLong(CR0, cr0);
      bench.setLong(CR4, cr4);
      expect(bench.run([set('rax', DATA), set('rdi', DATA), instruction(), hlt()])).toBe(exit);
      if (exit !== HLT_EXIT) expect(bench.long(RIP)).toBe(BigInt(CODE + 20));
    });
  }

  it.each([
    ['#NM', 0x8001003bn, UNAVAILABLE_EXIT],
    ['#UD', 0x80010037n, UNDEFINED_EXIT],
  ])('raise %s before a misaligned or missing operand is looked at', (_, cr0, exit) => {
    bench.setLong(CR0, cr0);
    expect(bench.run([set('rax', DATA + 1), onMemory(Code.Movaps_xmm_xmmm128), hlt()])).toBe(exit);
    expect(bench.run([set('rax', 0x4000_0000), onMemory(Code.Movups_xmm_xmmm128), hlt()])).toBe(exit);
  });

  it('are #GP and #PF when nothing else is in the way', () => {
    expect(bench.run([set('rax', DATA + 1), onMemory(Code.Movaps_xmm_xmmm128), hlt()])).toBe(0x4d);
    expect(bench.run([set('rax', 0x4000_0000), onMemory(Code.Movups_xmm_xmmm128), hlt()])).toBe(0x4e);
  });

  it('follow CLTS in the same line, and a write of CR0 that sets TS again', () => {
    bench.setLong(CR0, 0x8001003bn);
    const program = [
      op(Code.Clts),
      pxor(),
      set('rax', 0x8001003b),
      two(Code.Mov_cr_r64, Register.CR0, Register.RAX),
      pxor(),
      hlt(),
    ];
    expect(bench.run(program)).toBe(UNAVAILABLE_EXIT);
    expect(bench.long(RIP)).toBe(BigInt(CODE + assemble(program.slice(0, 4), CODE).length));
    // The same bytes again, with their code decoded in both modes.
    bench.setLong(CR0, 0x80010033n);
    bench.setLong(RIP, BigInt(CODE));
    expect(bench.run()).toBe(UNAVAILABLE_EXIT);
    bench.setLong(CR0, 0x80010033n);
    expect(bench.run()).toBe(HLT_EXIT);
  });

  it('become available when CR4.OSFXSR is set', () => {
    bench.setLong(CR4, 0x4a0n);
    const program = [set('rax', 0x6a0), two(Code.Mov_cr_r64, Register.CR4, Register.RAX), pxor(), hlt()];
    expect(bench.run(program)).toBe(HLT_EXIT);
  });

  it('are found by a store into code that was decoded in another mode', () => {
    const program = [pxor(), hlt()];
    expect(bench.run(program)).toBe(HLT_EXIT);
    bench.setLong(CR0, 0x8001003bn);
    bench.setLong(RIP, BigInt(CODE));
    expect(bench.run()).toBe(UNAVAILABLE_EXIT);
    // mov word [CODE], 0x9066; a NOP of two bytes; then two more.
    bench.load(
      [
        set('rax', CODE),
        Instruction.createMemI32(
          Code.Mov_rm32_imm32,
          MemoryOperand.createBaseDispl(Register.RAX, 0n),
          0x90909090 | 0,
        ),
        two(Code.Mov_cr_r64, Register.CR0, Register.RCX),
        Instruction.createReg(Code.Jmp_rm64, Register.RAX),
      ],
      CODE + 0x100,
    );
    bench.core.gpr[1] = 0x80010033n;
    bench.setLong(RIP, BigInt(CODE + 0x100));
    expect(bench.run()).toBe(HLT_EXIT);
  });
});

describe('instructions on general registers', () => {
  it.each([0x80010037n, 0x8001003bn])('run with CR0 = %x', (cr0) => {
    bench.setLong(CR0, cr0);
    bench.setLong(CR4, 0x4a0n);
    const program = [
      set('rax', DATA),
      set('rcx', 77),
      toMemory(Code.Movnti_m64_r64, Register.RCX),
      two(Code.Popcnt_r64_rm64, Register.RAX, Register.RCX),
      hlt(),
    ];
    expect(bench.run(program)).toBe(HLT_EXIT);
    expect(bench.read(DATA)).toBe(77n);
    expect(bench.long(RAX)).toBe(4n);
  });
});
