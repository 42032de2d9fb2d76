/**
 * TSC_AUX (MSR 0xc0000103), RDTSCP and RDPID (Linux arch/x86/kvm: kvm_set_msr_common and svm_set_msr of MSR_TSC_AUX, svm_recalc_instruction_intercepts,
 * sev_es_recalc_msr_intercepts): by the vCPU's CPUID, and of SNP guests by the chip's (0x8000001F EAX bit 9).
 */
import { describe, expect, it } from 'vitest';
import type { ChipGeneration } from '../../../src/hardware/chip.ts';
import { Code, hlt, onRegister, op, Register, set, store } from '../../hardware/cpu/assembler.ts';
import { HANDLER, SHARED, SnpVm } from './snp-bench.ts';
import { exit, VcpuBench } from './vcpu-bench.ts';

const TSC_AUX = 0xc000_0103;
const entry = { index: 0, flags: 0, eax: 0, ebx: 0, ecx: 0, edx: 0 };
const AMD = { ...entry, function: 0, ebx: 0x68747541, edx: 0x69746e65, ecx: 0x444d4163 };
const RDTSCP = { ...entry, function: 0x8000_0001, edx: 1 << 27 };
const RDPID = { ...entry, function: 7, ecx: 1 << 22 };
const CPUIDS = {
  none: [],
  rdtscp: [AMD, RDTSCP],
  rdpid: [AMD, RDPID],
};
type Cpuid = keyof typeof CPUIDS;

const HLT = 5;
const rdmsr = (msr: number) => [set('rcx', msr), op(Code.Rdmsr)];
const wrmsr = [set('rcx', TSC_AUX), set('rax', 7), set('rdx', 0), op(Code.Wrmsr)];
/** The exit code that a #VC came with, which is on its stack; 0: there was none. */
const reasonOf = (
  generation: ChipGeneration,
  cpuid: Cpuid,
  program: Parameters<SnpVm['load']>[0],
): { snp: SnpVm; vc: bigint } => {
  const snp = new SnpVm({ generation });
  snp.load([onRegister(Code.Pop_r64, Register.RBX), set('rdi', SHARED), store('rdi', 'rbx'), hlt()], HANDLER);
  snp.init();
  snp.vcpu.setCpuid2(CPUIDS[cpuid]);
  snp.vcpu.setMsrs([{ index: TSC_AUX, data: 5n }]);
  snp.start().load([...program, set('rdi', SHARED), store('rdi', 'rcx', 8), hlt()]);
  snp.update();
  snp.finish();
  expect([snp.vcpu.run(), snp.vcpu.kvmRun.exitReason]).toEqual([0, HLT]);
  return { snp, vc: snp.long(SHARED) };
};

describe('an SNP guest', () => {
  // Chip, CPUID: the #VC of WRMSR TSC_AUX, of RDTSCP and of RDPID, where there is one.
  it.each<[ChipGeneration, Cpuid, bigint, bigint, bigint]>([
    ['milan', 'none', 0x7cn, 0x87n, 0n],
    ['milan', 'rdtscp', 0x7cn, 0n, 0n],
    ['milan', 'rdpid', 0x7cn, 0x87n, 0n],
    ['genoa', 'none', 0x7cn, 0x87n, 0n],
    ['genoa', 'rdtscp', 0n, 0n, 0n],
    ['genoa', 'rdpid', 0n, 0x87n, 0n],
    ['turin', 'rdtscp', 0n, 0n, 0n],
  ])('of a %s with CPUID %s asks by #VC for what is intercepted', (chip, cpuid, write, tscp, pid) => {
    expect(reasonOf(chip, cpuid, wrmsr).vc).toBe(write);
    expect(reasonOf(chip, cpuid, rdmsr(TSC_AUX)).vc).toBe(write);
    expect(reasonOf(chip, cpuid, [op(Code.Rdtscp)]).vc).toBe(tscp);
    expect(reasonOf(chip, cpuid, [onRegister(Code.Rdpid_r64, Register.RCX)]).vc).toBe(pid);
  });

  // What RDTSCP gives: KVM_SET_MSRS said 5, the VMSA begins with 0; and after the guest wrote 7.
  it.each<[ChipGeneration, bigint]>([
    ['milan', 5n],
    ['genoa', 0n],
    ['turin', 0n],
  ])('of a %s has user space’s TSC_AUX, or its own where the chip keeps one', (chip, first) => {
    expect(reasonOf(chip, 'rdtscp', [op(Code.Rdtscp)]).snp.long(SHARED + 8)).toBe(first);
  });

  it('keeps its TSC_AUX over exits, on a chip that has it so', () => {
    const { snp } = reasonOf('genoa', 'rdtscp', [...wrmsr, hlt(), op(Code.Rdtscp)]);
    expect([snp.vcpu.run(), snp.vcpu.kvmRun.exitReason]).toEqual([0, HLT]);
    expect(snp.long(SHARED + 8)).toBe(7n);
  });

  it('asks by #VC for the time stamp counter’s MSR', () => {
    expect(reasonOf('milan', 'rdtscp', rdmsr(0x10)).vc).toBe(0x7cn);
  });

  // How many of [TSC, TSC_AUX] user space gets before the launch, TSC_AUX, and how many of them it gets afterwards.
  it.each<[ChipGeneration, Cpuid, bigint, number]>([
    ['milan', 'rdtscp', 5n, 2],
    ['genoa', 'rdtscp', 0n, 1],
    ['genoa', 'rdpid', 0n, 1],
    ['genoa', 'none', 0n, 2],
    ['turin', 'rdtscp', 0n, 1],
  ])('of a %s with CPUID %s shows user space TSC_AUX or hides it', (generation, cpuid, before, after) => {
    const snp = new SnpVm({ generation });
    snp.init();
    snp.vcpu.setCpuid2(CPUIDS[cpuid]);
    expect(snp.vcpu.setMsrs([{ index: TSC_AUX, data: 5n }])).toBe(1);
    const entries = snp.vcpu.getMsrs([0x10, TSC_AUX]);
    expect([entries.length, entries[1]?.data]).toEqual([2, before]);
    snp.start().update();
    snp.finish();
    expect(snp.vcpu.getMsrs([0x10, TSC_AUX])).toHaveLength(after);
    expect(snp.vcpu.setMsrs([{ index: TSC_AUX, data: 6n }])).toBe(after - 1);
  });
});

describe('a plain guest', () => {
  // Exit information 1 of the intercept of an MSR.
  const ACCESS = { read: 0n, write: 1n };
  const does = (
    access: keyof typeof ACCESS,
    cpuid: Cpuid,
    high: bigint,
  ): { bench: VcpuBench; faults: boolean } => {
    const bench = new VcpuBench();
    if (cpuid !== 'none') bench.vcpu.setCpuid2(CPUIDS[cpuid]);
    bench.vcpu.gpr[1] = BigInt(TSC_AUX);
    bench.vcpu.gpr[2] = high;
    bench.scripted.script.push(exit(0x7c, ACCESS[access], 0n, 2), exit(0x78, 0n, 0n, 1));
    expect(bench.vcpu.run()).toBe(0);
    return { bench, faults: bench.scripted.eventInjections[1] !== 0n };
  };

  it.each<[Cpuid, boolean]>([
    ['none', true],
    ['rdtscp', false],
    ['rdpid', false],
  ])('with CPUID %s reads and writes TSC_AUX, or gets #GP', (cpuid, faults) => {
    expect(does('read', cpuid, 0n).faults).toBe(faults);
    expect(does('write', cpuid, 0n).faults).toBe(faults);
  });

  it('loses what it writes above 32 bits', () => {
    const { bench, faults } = does('write', 'rdtscp', 1n);
    expect([faults, bench.scripted.tscAux]).toEqual([false, 0n]);
  });

  it('of no AMD’s CPUID may not write above 32 bits', () => {
    const bench = new VcpuBench();
    bench.vcpu.setCpuid2([RDTSCP]);
    expect(bench.vcpu.setMsrs([{ index: TSC_AUX, data: 1n << 32n }])).toBe(0);
    expect(bench.vcpu.setMsrs([{ index: TSC_AUX, data: 0xffff_ffffn }])).toBe(1);
    bench.vcpu.setCpuid2([AMD, RDTSCP]);
    expect(bench.vcpu.setMsrs([{ index: TSC_AUX, data: (1n << 32n) | 9n }])).toBe(1);
    expect(bench.vcpu.getMsrs([TSC_AUX])).toEqual([{ index: TSC_AUX, data: 9n }]);
  });

  // Bit 7 of intercept word 4.
  it.each<[Cpuid, number]>([
    ['none', 0x80],
    ['rdtscp', 0],
    ['rdpid', 0x80],
  ])('with CPUID %s executes RDTSCP, or gets #UD', (cpuid, bit) => {
    const bench = new VcpuBench();
    bench.vcpu.setCpuid2(CPUIDS[cpuid]);
    expect(bench.vcpu.vmcb.word(0x10) & 0x80).toBe(bit);
    bench.vcpu.init();
    expect(bench.vcpu.vmcb.word(0x10) & 0x80).toBe(bit);
  });
});
