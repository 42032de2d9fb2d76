/** CPUID shows what the core executes, and nothing else: a bit and an instruction that it promises. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { Code, hlt, iced, onMemory, onRegister, op, Register, set, two } from './assembler.ts';
import { CR4, DATA, GuestBench, RAX } from './guest-bench.ts';

const { Instruction, MemoryOperand } = iced;
type Program = () => ReturnType<typeof op>[];

let bench: GuestBench;
beforeEach(() => {
  bench = new GuestBench();
  bench.interceptException(6);
});
afterEach(() => bench.close());

const cpuid = (leaf: number, subleaf = 0) => {
  bench.run([set('rax', leaf), set('rcx', subleaf), op(Code.Cpuid), hlt()]);
  const [, ecx, edx, ebx] = bench.core.gpr;
  return { eax: bench.long(RAX), ebx: ebx!, ecx: ecx!, edx: edx! };
};

const { XMM0, XMM1, XMM2, RAX: RAX_REGISTER, RCX, RDX } = Register;
const vectors =
  (code: number): Program =>
  () => [two(code, XMM0, XMM1)];
const withByte =
  (code: number): Program =>
  () => [Instruction.createRegRegI32(code, XMM0, XMM1, 0)];
const three =
  (code: number, a: number, b: number, c: number): Program =>
  () => [Instruction.createRegRegReg(code, a, b, c)];
const alone =
  (code: number): Program =>
  () => [op(code)];
const onData =
  (code: number): Program =>
  () => [set('rbx', DATA), onMemory(code, 'rbx')];

/** [name, leaf, register, bit, shown, instruction] */
const FEATURES: readonly (readonly [string, number, 'ebx' | 'ecx' | 'edx', number, 0 | 1, Program])[] = [
  ['FPU', 1, 'edx', 0, 0, alone(Code.Fld1)],
  ['CX8', 1, 'edx', 8, 1, onData(Code.Cmpxchg8b_m64)],
  ['CMOV', 1, 'edx', 15, 1, () => [two(Code.Cmove_r64_rm64, RAX_REGISTER, RCX)]],
  ['MMX', 1, 'edx', 23, 0, alone(Code.Emms)],
  ['FXSR', 1, 'edx', 24, 1, onData(Code.Fxsave64_m512byte)],
  ['SSE', 1, 'edx', 25, 1, vectors(Code.Addps_xmm_xmmm128)],
  ['SSE2', 1, 'edx', 26, 1, vectors(Code.Addpd_xmm_xmmm128)],
  ['SSE3', 1, 'ecx', 0, 1, vectors(Code.Addsubps_xmm_xmmm128)],
  ['PCLMULQDQ', 1, 'ecx', 1, 1, withByte(Code.Pclmulqdq_xmm_xmmm128_imm8)],
  ['MONITOR', 1, 'ecx', 3, 0, alone(Code.Monitorq)],
  ['SSSE3', 1, 'ecx', 9, 1, vectors(Code.Pshufb_xmm_xmmm128)],
  ['FMA', 1, 'ecx', 12, 0, three(Code.VEX_Vfmadd132ps_xmm_xmm_xmmm128, XMM0, XMM1, XMM2)],
  ['CX16', 1, 'ecx', 13, 1, onData(Code.Cmpxchg16b_m128)],
  ['SSE4.1', 1, 'ecx', 19, 1, withByte(Code.Roundps_xmm_xmmm128_imm8)],
  ['SSE4.2', 1, 'ecx', 20, 1, withByte(Code.Pcmpistri_xmm_xmmm128_imm8)],
  ['SSE4.2, CRC32', 1, 'ecx', 20, 1, () => [two(Code.Crc32_r64_rm64, RAX_REGISTER, RCX)]],
  [
    'MOVBE',
    1,
    'ecx',
    22,
    1,
    () => [
      set('rbx', DATA),
      Instruction.createRegMem(
        Code.Movbe_r64_m64,
        RAX_REGISTER,
        MemoryOperand.createBaseDispl(Register.RBX, 0n),
      ),
    ],
  ],
  ['POPCNT', 1, 'ecx', 23, 1, () => [two(Code.Popcnt_r64_rm64, RAX_REGISTER, RCX)]],
  ['AES', 1, 'ecx', 25, 1, vectors(Code.Aesenc_xmm_xmmm128)],
  ['XSAVE', 1, 'ecx', 26, 1, onData(Code.Xsave64_mem)],
  ['AVX', 1, 'ecx', 28, 0, three(Code.VEX_Vaddps_xmm_xmm_xmmm128, XMM0, XMM1, XMM2)],
  ['F16C', 1, 'ecx', 29, 0, () => [two(Code.VEX_Vcvtph2ps_xmm_xmmm64, XMM0, XMM1)]],
  ['RDRAND', 1, 'ecx', 30, 1, () => [onRegister(Code.Rdrand_r64, RAX_REGISTER)]],
  ['BMI1', 7, 'ebx', 3, 1, three(Code.VEX_Andn_r64_r64_rm64, RAX_REGISTER, RCX, RDX)],
  [
    'AVX2',
    7,
    'ebx',
    5,
    0,
    three(Code.VEX_Vpaddb_ymm_ymm_ymmm256, Register.YMM0, Register.YMM1, Register.YMM2),
  ],
  ['BMI2', 7, 'ebx', 8, 1, three(Code.VEX_Pdep_r64_r64_rm64, RAX_REGISTER, RCX, RDX)],
  ['RDSEED', 7, 'ebx', 18, 1, () => [onRegister(Code.Rdseed_r64, RAX_REGISTER)]],
  ['ADX', 7, 'ebx', 19, 1, () => [two(Code.Adcx_r64_rm64, RAX_REGISTER, RCX)]],
  ['CLFLUSHOPT', 7, 'ebx', 23, 1, onData(Code.Clflushopt_m8)],
  ['CLWB', 7, 'ebx', 24, 1, onData(Code.Clwb_m8)],
  ['SHA', 7, 'ebx', 29, 0, vectors(Code.Sha1nexte_xmm_xmmm128)],
  ['RDPID', 7, 'ecx', 22, 1, () => [onRegister(Code.Rdpid_r64, RAX_REGISTER)]],
  ['GFNI', 7, 'ecx', 8, 0, vectors(Code.Gf2p8mulb_xmm_xmmm128)],
  ['LZCNT', 0x8000_0001, 'ecx', 5, 1, () => [two(Code.Lzcnt_r64_rm64, RAX_REGISTER, RCX)]],
  ['SSE4A', 0x8000_0001, 'ecx', 6, 0, vectors(Code.Extrq_xmm_xmm)],
  ['RDTSCP', 0x8000_0001, 'edx', 27, 1, alone(Code.Rdtscp)],
  ['3DNow!', 0x8000_0001, 'edx', 31, 0, alone(Code.Femms)],
];

describe('CPUID', () => {
  it.each(FEATURES)('%s', (_, leaf, register, bit, shown, program) => {
    bench.setLong(CR4, 0x406a0n);
    expect(Number((cpuid(leaf)[register] >> BigInt(bit)) & 1n)).toBe(shown);
    expect(bench.run([...program(), hlt()])).toBe(shown === 1 ? 0x78 : 0x46);
  });

  it('leaf 80000001h shows AltMovCr8: LOCK MOV CR0 is MOV CR8', () => {
    expect((cpuid(0x8000_0001).ecx >> 4n) & 1n).toBe(1n);
  });

  it('leaf 1 shows OSXSAVE while CR4 has it', () => {
    expect(cpuid(1).ecx & 0x8000000n).toBe(0n);
    bench.setLong(CR4, 0x406a0n);
    expect(cpuid(1).ecx & 0x8000000n).toBe(0x8000000n);
  });
  it.each([
    ['milan', 0x00a00f11n, 'EPYC-Milan'],
    ['genoa', 0x00a10f11n, 'EPYC-Genoa'],
    ['turin', 0x00b00f21n, 'EPYC-Turin'],
  ] as const)('says that the core is of a %s', (chip, signature, name) => {
    bench.close();
    bench = new GuestBench(undefined, chip);
    expect([cpuid(1).eax, cpuid(0x8000_0001).eax]).toEqual([signature, signature]);
    const text = [0x8000_0002, 0x8000_0003, 0x8000_0004].flatMap((leaf) => {
      const { eax, ebx, ecx, edx } = cpuid(leaf);
      return [eax, ebx, ecx, edx].map((word) => Buffer.from(Uint32Array.of(Number(word)).buffer).toString());
    });
    expect(text.join('')).toContain(name);
  });
  it('leaf 0xd gives components and sizes', () => {
    expect(cpuid(0).eax).toBe(0xdn);
    expect(cpuid(0xd)).toEqual({ eax: 3n, ebx: 576n, ecx: 576n, edx: 0n });
    expect(cpuid(0xd, 1)).toEqual({ eax: 7n, ebx: 576n, ecx: 0n, edx: 0n });
    expect(cpuid(0xd, 2)).toEqual({ eax: 0n, ebx: 0n, ecx: 0n, edx: 0n });
  });
});
