/** MSRs of a vCPU: which values a guest may write, which user space may (arch/x86/kvm/x86.c, mtrr.c, svm.c). */
import { afterEach, describe, expect, it } from 'vitest';
import { failure } from '../process-fixture.ts';
import { exit, HLT, VcpuBench } from './vcpu-bench.ts';
import { startVm } from './vm-fixture.ts';

const DONE = 0;
const INVALID = 1;
const UNSUPPORTED = 2;
let bench: VcpuBench;

afterEach(() => bench?.close());

const ONES = (1n << 64n) - 1n;
/** MSR, value, what a guest's write comes to, what user space's does. */
const WRITES: [string, number, bigint, number, number][] = [
  ['PAT with all its types', 0x277, 0x0706_0504_0100_0607n, DONE, DONE],
  ['PAT with type 2', 0x277, 0x0007_0406_0007_0402n, INVALID, INVALID],
  ['PAT with type 8', 0x277, 0x0807_0406_0007_0406n, INVALID, INVALID],
  ['LSTAR, the highest canonical address of the lower half', 0xc000_0082, (1n << 47n) - 1n, DONE, DONE],
  ['LSTAR, an address that is not canonical', 0xc000_0082, 1n << 47n, INVALID, INVALID],
  ['KERNEL_GS_BASE that is not canonical', 0xc000_0102, 1n << 63n, INVALID, INVALID],
  ['FS_BASE of the upper half', 0xc000_0100, 0xffff_8000_0000_0000n, DONE, DONE],
  ['SFMASK with any bits', 0xc000_0084, ONES, DONE, DONE],
  ['MISC_ENABLE as it is', 0x1a0, 0x1800n, DONE, DONE],
  ['MISC_ENABLE without BTS unavailable', 0x1a0, 0x1000n, INVALID, DONE],
  ['microcode revision, which a guest’s write leaves', 0x8b, 5n, DONE, DONE],
  ['PLATFORM_INFO', 0xce, 1n << 31n, INVALID, DONE],
  ['MISC_FEATURES with CPUID faulting', 0x140, 1n, DONE, DONE],
  ['MISC_FEATURES with another bit', 0x140, 2n, INVALID, INVALID],
  ['MTRRcap', 0xfe, 0x508n, INVALID, INVALID],
  ['MTRR base, write-back at 4 GiB', 0x200, 0x1_0000_0006n, DONE, DONE],
  ['MTRR base with type 2', 0x200, 0x1_0000_0002n, INVALID, INVALID],
  ['MTRR base with a reserved bit', 0x200, 0x1_0000_0106n, INVALID, INVALID],
  ['MTRR base beyond 36 bits', 0x200, 1n << 36n, INVALID, INVALID],
  ['MTRR mask that is valid', 0x201, 0xf_0000_0800n, DONE, DONE],
  ['MTRR mask with a reserved bit', 0x201, 0xf_0000_0c00n, INVALID, INVALID],
  ['fixed MTRR', 0x250, 0x0606_0606_0606_0606n, DONE, DONE],
  ['fixed MTRR with type 7', 0x26f, 0x0606_0606_0606_0607n, INVALID, INVALID],
  ['MTRR default type, both enabled', 0x2ff, 0xc06n, DONE, DONE],
  ['MTRR default type with a reserved bit', 0x2ff, 0x1c06n, INVALID, INVALID],
  ['MCG_CTL without MCG_CTL_P', 0x17b, ONES, INVALID, INVALID],
  ['MCG_CTL of 0 without MCG_CTL_P', 0x17b, 0n, INVALID, DONE],
  ['VM_CR with all bits that there are', 0xc001_0114, 0x1fn, DONE, DONE],
  ['VM_CR with another bit', 0xc001_0114, 0x20n, INVALID, INVALID],
  ['the last MTRR mask', 0x20f, 0xf_0000_0800n, DONE, DONE],
  ['the MTRR behind it', 0x210, 6n, UNSUPPORTED, UNSUPPORTED],
  ['MC31_MISC', 0x47f, 0n, DONE, DONE],
  ['a bank behind the last', 0x480, 0n, UNSUPPORTED, UNSUPPORTED],
  ['the first event select of the K7', 0xc001_0000, 1n, DONE, DONE],
  ['the last counter of the K7', 0xc001_0007, 1n, DONE, DONE],
  ['the second counter of the P6', 0xc2, 1n, DONE, DONE],
  ['the first event select of the P6', 0x186, 1n, DONE, DONE],
  ['the second event select of the P6', 0x187, 1n, DONE, DONE],
  ['what lies before the first MTRR', 0x1ff, 6n, UNSUPPORTED, UNSUPPORTED],
  ['MTRR default type of a type that is none', 0x2ff, 0xc02n, INVALID, INVALID],
  ['MC0_CTL, none', 0x400, 0n, DONE, DONE],
  ['MC0_ADDR', 0x402, 5n, DONE, DONE],
  ['MCG_STATUS', 0x17a, 0n, DONE, DONE],
  ['MC0_CTL, all ones', 0x400, ONES, DONE, DONE],
  ['MC0_CTL, some', 0x400, 2n, INVALID, INVALID],
  ['MC4_CTL without bit 10, as Linux writes it on a K8', 0x410, ONES - 1024n, DONE, DONE],
  ['MC0_STATUS, cleared', 0x401, 0n, DONE, DONE],
  ['MC0_STATUS, set', 0x401, 1n, INVALID, DONE],
  ['HWCR with TscFreqSel and McStatusWrEn', 0xc001_0015, 0x104_0000n, DONE, DONE],
  ['HWCR with the flush filter', 0xc001_0015, 0x40n, DONE, DONE],
  ['HWCR with SMMLOCK', 0xc001_0015, 1n, INVALID, INVALID],
  ['DE_CFG, LFENCE serialises', 0xc001_1029, 2n, DONE, DONE],
  ['DE_CFG with another bit', 0xc001_1029, 1n, INVALID, INVALID],
  ['VM_HSAVE_PA in a page', 0xc001_0117, 0x1234n, INVALID, DONE],
  ['VM_HSAVE_PA of a page', 0xc001_0117, 0x1000n, DONE, DONE],
  ['a performance counter of the K7', 0xc001_0004, 1n, DONE, DONE],
  ['patch loader', 0xc001_0020, 1n, DONE, DONE],
  ['SYSCFG, which is read only', 0xc001_0010, 0n, UNSUPPORTED, UNSUPPORTED],
  ['x2APIC id without a local APIC', 0x802, 0n, INVALID, INVALID],
  ['an MSR that does not exist', 0x1234_5678, 0n, UNSUPPORTED, UNSUPPORTED],
];

describe('writes', () => {
  it.each(WRITES)('%s', (_, msr, value, guest, host) => {
    bench = new VcpuBench();
    expect(bench.vcpu.msrs.write(msr, value, 'guest')).toBe(guest);
    expect(bench.vcpu.msrs.write(msr, value, 'host')).toBe(host);
  });

  it('of HWCR keep what counts', () => {
    bench = new VcpuBench();
    bench.vcpu.setMsrs([{ index: 0xc001_0015, data: 0x100_0158n }]);
    expect(bench.vcpu.getMsrs([0xc001_0015])).toEqual([{ index: 0xc001_0015, data: 0x100_0000n }]);
  });

  it('of SYSENTER_EIP by user space keep 32 bits, as for an AMD guest', () => {
    bench = new VcpuBench();
    bench.vcpu.setMsrs([{ index: 0x176, data: 0xffff_ffff_8123_4567n }]);
    expect(bench.vcpu.getMsrs([0x176])[0]!.data).toBe(0x8123_4567n);
  });

  it.each([
    ['AMD’s, drops the upper half', [0x68747541, 0x69746e65, 0x444d4163], 1],
    ['Intel’s, refuses one', [0x756e6547, 0x49656e69, 0x6c65746e], 0],
  ] as const)('of TSC_AUX: a processor that is %s', (_, [ebx, edx, ecx], written) => {
    bench = new VcpuBench();
    const leaf = { index: 0, flags: 0, eax: 1, ebx: 0, ecx: 0 };
    bench.vcpu.setCpuid2([
      { ...leaf, function: 0, ebx, ecx, edx },
      { ...leaf, function: 0x8000_0001, edx: 1 << 27 },
    ]);
    expect(bench.vcpu.setMsrs([{ index: 0xc000_0103, data: (1n << 32n) | 5n }])).toBe(written);
  });

  it('with McStatusWrEn let a guest set the status of a bank', () => {
    bench = new VcpuBench();
    const { msrs } = bench.vcpu;
    expect(msrs.write(0x401, 1n, 'guest')).toBe(INVALID);
    expect(msrs.write(0xc001_0015, 1n << 18n, 'guest')).toBe(DONE);
    expect(msrs.write(0x401, 1n, 'guest')).toBe(DONE);
  });
});

describe('EFER', () => {
  const EFER = 0xc000_0080;
  it('has what the guest’s CPUID has; user space sets what the host knows', () => {
    bench = new VcpuBench();
    bench.vcpu.setCpuid2([]);
    const { msrs } = bench.vcpu;
    expect(msrs.write(EFER, 0x800n, 'guest')).toBe(INVALID);
    expect(msrs.write(EFER, 0x800n, 'host')).toBe(DONE);
    expect(msrs.write(EFER, 0x8000n, 'host')).toBe(INVALID);
  });
  it('keeps a guest’s LME while paging is on, user space may change it; LMA stays', () => {
    bench = new VcpuBench();
    bench.enterLongMode();
    const { msrs } = bench.vcpu;
    expect(msrs.write(EFER, 0n, 'guest')).toBe(INVALID);
    expect(msrs.write(EFER, 0n, 'host')).toBe(DONE);
    expect(msrs.read(EFER, 'guest')).toBe(DONE);
    expect(msrs.value).toBe(0x400n);
  });
});

describe('reads', () => {
  it.each([
    ['microcode revision', 0x8b, 0x0100_0065n],
    ['MTRRcap', 0xfe, 0x508n],
    ['PLATFORM_INFO', 0xce, 1n << 31n],
    ['MISC_ENABLE', 0x1a0, 0x1800n],
    ['MCG_CAP', 0x179, 32n],
    ['MC0_CTL', 0x400, ONES],
    ['MC0_STATUS', 0x401, 0n],
    ['the first MTRR base', 0x200, 0n],
    ['SYSCFG', 0xc001_0010, 0n],
    ['DEBUGCTL', 0x1d9, 0n],
    ['a performance counter of the P6', 0xc1, 0n],
    ['TSC_DEADLINE without a local APIC', 0x6e0, 0n],
    ['APIC_BASE of the boot processor', 0x1b, 0xfee0_0900n],
  ])('%s of a new vCPU', (_, msr, want) => {
    bench = new VcpuBench();
    expect(bench.vcpu.msrs.read(msr, 'guest')).toBe(DONE);
    expect(bench.vcpu.msrs.value).toBe(want);
  });

  it('of MCG_CTL are user space’s alone', () => {
    bench = new VcpuBench();
    expect(bench.vcpu.msrs.read(0x17b, 'guest')).toBe(INVALID);
    expect(bench.vcpu.msrs.read(0x17b, 'host')).toBe(DONE);
  });
});

describe('CPUID faulting', () => {
  it('and its bit of PLATFORM_INFO: while the one is on the other stays, and without the other it cannot be', () => {
    bench = new VcpuBench();
    const { msrs } = bench.vcpu;
    expect(msrs.write(0x140, 1n, 'guest')).toBe(DONE);
    expect(msrs.write(0xce, 0n, 'host')).toBe(INVALID);
    expect(msrs.write(0x140, 0n, 'guest')).toBe(DONE);
    expect(msrs.write(0xce, 0n, 'host')).toBe(DONE);
    expect(msrs.write(0x140, 1n, 'guest')).toBe(INVALID);
    expect(msrs.write(0x140, 0n, 'guest')).toBe(DONE);
  });

  it('is #GP outside of CPL 0 once MISC_FEATURES has it', () => {
    bench = new VcpuBench();
    bench.enterLongMode();
    bench.vcpu.setMsrs([{ index: 0x140, data: 1n }]);
    bench.runScript(exit(0x72, 0n, 0n, 2), HLT);
    const { ss } = bench.vcpu.getSregs();
    bench.setSregs({ ss: { ...ss, dpl: 3 } });
    bench.runScript(exit(0x72, 0n, 0n, 2), HLT);
    expect(bench.scripted.eventInjections.map((event) => event & 0xffff_ffffn)).toEqual([
      0n,
      0n,
      0n,
      0x8000_0b0dn,
    ]);
  });
});

describe('feature MSRs of /dev/kvm', () => {
  it('are DE_CFG, the microcode revision and PLATFORM_INFO; another one ends the list', () => {
    const { kvm } = startVm();
    expect(kvm.getMsrFeatureIndexList()).toEqual([0xc001_1029, 0x8b, 0xce]);
    expect(kvm.getMsrs([0xc001_1029, 0xce, 0x10, 0x8b])).toEqual([
      { index: 0xc001_1029, data: 2n },
      { index: 0xce, data: 0x8000_0000n },
    ]);
    expect(kvm.getMsrs([0x8b, 0xce]).map(({ index }) => index)).toEqual([0x8b, 0xce]);
    expect(failure(() => kvm.getMsrs(new Array<number>(256).fill(0x8b)))).toBe('E2BIG');
  });

  it('the list of a vCPU’s MSRs names what it can read', () => {
    const host = startVm();
    const list = host.kvm.getMsrIndexList();
    expect(host.vcpu.getMsrs(list).map(({ index }) => index)).toEqual(list);
    expect(host.vcpu.setMsrs(host.vcpu.getMsrs(list))).toBe(list.length);
  });
});

it('a WRMSR that user space has carried out leaves the guest’s registers, whatever its data are by then', () => {
  bench = new VcpuBench();
  bench.capabilities.userSpaceMsr = 2;
  bench.setRegs({ rcx: 0x12345n, rax: 7n, rdx: 1n });
  expect(bench.runScript(exit(0x7c, 1n, 0n, 2))).toBe(0);
  const { kvmRun } = bench.vcpu;
  expect([kvmRun.exitReason, kvmRun.msrIndex, kvmRun.msrData]).toEqual([30, 0x12345, 0x1_0000_0007n]);
  kvmRun.msrData = 0x99n;
  expect(bench.runScript(HLT)).toBe(0);
  expect(bench.vcpu.getRegs()).toMatchObject({ rax: 7n, rdx: 1n });
});
