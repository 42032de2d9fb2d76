import { afterEach, describe, expect, it } from 'vitest';
import type { CpuidEntry } from '../../../src/kernel/interface.ts';
import { supportedCpuid } from '../../../src/kernel/kvm/cpuid.ts';
import { exit, HLT, VcpuBench } from './vcpu-bench.ts';

let bench: VcpuBench;
afterEach(() => bench.close());
const CPUID = exit(0x72, 0n, 0n, 2);

const entry = (leaf: number, fields: Partial<CpuidEntry> = {}): CpuidEntry => ({
  function: leaf,
  index: 0,
  flags: 0,
  eax: 0,
  ebx: 0,
  ecx: 0,
  edx: 0,
  ...fields,
});
const AMD_NAME = { ebx: 0x68747541, edx: 0x69746e65, ecx: 0x444d4163 };
const AMD = entry(0, { eax: 1, ...AMD_NAME });
const INTEL = entry(0, { eax: 1, ebx: 0x756e6547, edx: 0x49656e69, ecx: 0x6c65746e });

/** What the guest gets for leaf and index. */
function cpuid(leaf: number, index = 0): number[] {
  bench.setRegs({ rax: BigInt(leaf), rcx: 0xffff_ffff_0000_0000n | BigInt(index), rbx: (1n << 64n) - 1n });
  bench.runScript(CPUID, HLT);
  const { rax, rbx, rcx, rdx } = bench.vcpu.getRegs();
  return [rax, rbx, rcx, rdx].map(Number);
}

describe('a guest’s CPUID', () => {
  it('gives what KVM_SET_CPUID2 said, by leaf and where it counts by index', () => {
    bench = new VcpuBench();
    bench.vcpu.setCpuid2([
      AMD,
      entry(0x80000001, { eax: 0xa00f11, ebx: 2, ecx: 3, edx: 0xffffffff }),
      entry(7, { flags: 1, index: 0, eax: 1 }),
      entry(7, { flags: 1, index: 1, eax: 2 }),
    ]);
    expect(cpuid(0x80000001, 9)).toEqual([0xa00f11, 2, 3, 0xffffffff]);
    expect(cpuid(7, 0)).toEqual([1, 0, 0, 0]);
    expect(cpuid(7, 1)).toEqual([2, 0, 0, 0]);
    expect(cpuid(7, 2)).toEqual([0, 0, 0, 0]);
  });

  it('is all zero for a leaf out of range on AMD, and the last basic leaf on Intel', () => {
    bench = new VcpuBench();
    const last = entry(1, { eax: 0x11, ebx: 0x22 });
    bench.vcpu.setCpuid2([AMD, last]);
    expect(cpuid(0x20)).toEqual([0, 0, 0, 0]);
    bench.close();
    bench = new VcpuBench();
    bench.vcpu.setCpuid2([INTEL, last]);
    expect(cpuid(0x20)).toEqual([0x11, 0x22, 0, 0x200]);
    expect(cpuid(0x40000000)).toEqual([0x11, 0x22, 0, 0x200]);
  });

  describe('of Intel, for a leaf that no entry has', () => {
    const LAST = [0x11, 0x22, 0, 0x200];
    const ZEROS = [0, 0, 0, 0];
    const answer = (leaf: number, entries: readonly CpuidEntry[]): number[] => {
      bench = new VcpuBench();
      bench.vcpu.setCpuid2([INTEL, entry(1, { eax: 0x11, ebx: 0x22 }), ...entries]);
      return cpuid(leaf);
    };
    it.each([
      ['the last extended one', 0x8000_0008, ZEROS],
      ['beyond the last extended one', 0x8000_0009, LAST],
      ['the last of a hypervisor', 0x4000_0001, ZEROS],
      ['beyond the last of a hypervisor', 0x4000_0002, LAST],
      ['of a second hypervisor, which is not there', 0x4000_0100, LAST],
      ['the last of Centaur', 0xc000_0001, ZEROS],
      ['beyond the last of Centaur', 0xc000_0002, LAST],
    ])('%s: zeros in the class of the leaf, else the last basic leaf', (_, leaf, want) => {
      const lasts = [0x8000_0008, 0x4000_0001, 0xc000_0001];
      const entries = lasts.map((eax) => entry((eax & 0xf000_0000) >>> 0, { eax }));
      expect(answer(leaf, entries)).toEqual(want);
    });
    it('extended leaves are one class, however far they go', () => {
      expect(answer(0x8000_0123, [entry(0x8000_0000, { eax: 0x8000_0200 })])).toEqual(ZEROS);
    });
    it.each([
      ['ebx', { ...AMD_NAME, ebx: 0 }],
      ['edx', { ...AMD_NAME, edx: 0 }],
      ['ecx', { ...AMD_NAME, ecx: 0 }],
    ])('a vendor whose name is AMD’s but for %s is taken for Intel', (_, name) => {
      bench = new VcpuBench();
      bench.vcpu.setCpuid2([entry(0, { eax: 1, ...name }), entry(1, { eax: 0x11, ebx: 0x22 })]);
      expect(cpuid(0x20)).toEqual(LAST);
    });
    it('extended without any: the last basic leaf', () => {
      expect(answer(0x8000_0000, [])).toEqual(LAST);
    });
  });

  it('is a topology level of the last basic leaf where that one answers', () => {
    bench = new VcpuBench();
    bench.vcpu.setCpuid2([{ ...INTEL, eax: 0xb }, entry(0xb, { flags: 1, index: 1, ebx: 4, edx: 9 })]);
    expect(cpuid(0x20, 1)).toEqual([0, 4, 0, 9]);
    expect(cpuid(0x20, 5)).toEqual([0, 0, 5, 9]);
  });

  it('is all zero when the VMM said nothing', () => {
    bench = new VcpuBench();
    expect(cpuid(0)).toEqual([0, 0, 0, 0]);
  });

  it('OSXSAVE follows CR4, and the APIC bit follows its base', () => {
    bench = new VcpuBench();
    bench.vcpu.setCpuid2([AMD, entry(1, { ecx: 0x0c000000, edx: 0x200 })]);
    expect(cpuid(1)).toEqual([0, 0, 0x04000000, 0x200]);
    bench.setSregs({ cr4: 1n << 18n, apicBase: 0xfee00100n });
    expect(cpuid(1)).toEqual([0, 0, 0x0c000000, 0]);
  });

  it('leaf 0xd has the sizes of x87 and SSE, whatever the VMM says', () => {
    bench = new VcpuBench();
    bench.vcpu.setCpuid2([
      AMD,
      entry(0xd, { flags: 1, index: 0, eax: 3, ebx: 832, ecx: 576 }),
      entry(0xd, { flags: 1, index: 1, eax: 7, ebx: 1 }),
      entry(0xd, { flags: 1, index: 2, eax: 256, ebx: 576 }),
      entry(0xd, { flags: 1, index: 9, eax: 10, ebx: 2688 }),
    ]);
    expect(cpuid(0xd, 0)).toEqual([3, 576, 576, 0]);
    expect(cpuid(0xd, 1)).toEqual([7, 576, 0, 0]);
    expect(cpuid(0xd, 2)).toEqual([256, 576, 0, 0]);
    expect(cpuid(0xd, 9)).toEqual([10, 2688, 0, 0]);
    bench.close();
    bench = new VcpuBench();
    bench.vcpu.setCpuid2([AMD, entry(0xd, { flags: 1, index: 1, eax: 5, ebx: 1 })]);
    expect(cpuid(0xd, 1)).toEqual([5, 1, 0, 0]);
  });

  it('topology levels beyond the last one name themselves', () => {
    bench = new VcpuBench();
    bench.vcpu.setCpuid2([AMD, entry(0xb, { flags: 1, index: 1, ebx: 4, edx: 9 })]);
    expect(cpuid(0xb, 5)).toEqual([0, 0, 5, 9]);
    expect(cpuid(0xb, 0)).toEqual([0, 0, 0, 9]);
    expect(cpuid(0xc, 5)).toEqual([0, 0, 0, 0]);
  });
});

describe('KVM_SET_CPUID2', () => {
  it('more than 256 entries: E2BIG', () => {
    bench = new VcpuBench();
    const entries = Array.from({ length: 257 }, (_, i) => entry(0x100 + i));
    expect(() => bench.vcpu.setCpuid2(entries)).toThrow(expect.objectContaining({ errno: 7 }));
    bench.vcpu.setCpuid2(entries.slice(1));
    expect(bench.vcpu.getCpuid2()).toEqual(entries.slice(1));
  });

  it('an address width that no processor has: EINVAL', () => {
    bench = new VcpuBench();
    expect(() => bench.vcpu.setCpuid2([entry(0x80000008, { eax: 0x2f30 })])).toThrow(
      expect.objectContaining({ errno: 22 }),
    );
    bench.vcpu.setCpuid2([entry(0x80000008, { eax: 0x3930 })]);
  });

  it('once the vCPU has run, only the same entries', () => {
    bench = new VcpuBench();
    bench.vcpu.setCpuid2([AMD]);
    bench.vcpu.setCpuid2([INTEL]);
    bench.runScript(HLT);
    bench.vcpu.setCpuid2([{ ...INTEL }]);
    expect(() => bench.vcpu.setCpuid2([AMD])).toThrow(expect.objectContaining({ errno: 22 }));
    expect(() => bench.vcpu.setCpuid2([])).toThrow(expect.objectContaining({ errno: 22 }));
    expect(bench.vcpu.getCpuid2()).toEqual([INTEL]);
  });
});

describe('KVM_GET_SUPPORTED_CPUID', () => {
  it.each([
    ['PCLMULQDQ', 1, 0, 'ecx', 1, 1],
    ['SSE4.2', 1, 0, 'ecx', 20, 1],
    ['AES', 1, 0, 'ecx', 25, 1],
    ['XSAVE', 1, 0, 'ecx', 26, 1],
    ['AVX', 1, 0, 'ecx', 28, 0],
    ['FPU', 1, 0, 'edx', 0, 0],
    ['MMX', 1, 0, 'edx', 23, 0],
    ['x87 and SSE state', 0xd, 0, 'eax', 1, 1],
    ['AVX state', 0xd, 0, 'eax', 2, 0],
    ['XSAVEC', 0xd, 1, 'eax', 1, 1],
    ['XSAVES', 0xd, 1, 'eax', 3, 0],
    ['CR8_LEGACY', 0x80000001, 0, 'ecx', 4, 1],
    ['FXSR_OPT', 0x80000001, 0, 'edx', 25, 1],
    ['XSAVEERPTR', 0x80000008, 0, 'ebx', 2, 1],
  ] as const)('%s', (_, leaf, index, register, bit, shown) => {
    bench = new VcpuBench();
    const found = supportedCpuid().find((one) => one.function === leaf && one.index === index)!;
    expect((found[register] >>> bit) & 1).toBe(shown);
  });
  it('has an index that counts in leaves 7 and 0xd alone, and leaf 0x8000001F last where the machine has SEV', () => {
    const counts = supportedCpuid().map((one) => [one.function, one.flags]);
    expect(counts.filter(([, flags]) => flags !== 0)).toEqual([
      [7, 1],
      [0xd, 1],
      [0xd, 1],
    ]);
    const lastOf = (entries: CpuidEntry[]) =>
      [entries.find((one) => one.function === 0x8000_0000)!.eax, entries.at(-1)!.function] as const;
    expect(lastOf(supportedCpuid())).toEqual([0x8000_0008, 0x8000_0008]);
    const sev = { signature: 0xa00f11, cBit: 51, maxAsid: 509, minSevAsid: 100 };
    expect(lastOf(supportedCpuid(sev))).toEqual([0x8000_001f, 0x8000_001f]);
  });
  it('is what a vCPU accepts, and is AMD’s with long mode, NX and SSE2', () => {
    bench = new VcpuBench();
    bench.vcpu.setCpuid2(supportedCpuid());
    expect(cpuid(0).slice(1)).toEqual([0x68747541, 0x444d4163, 0x69746e65]);
    expect(cpuid(1)[3]! & (1 << 26)).not.toBe(0);
    const extended = cpuid(0x80000001)[3]!;
    expect([(extended >>> 29) & 1, (extended >>> 20) & 1, (extended >>> 26) & 1]).toEqual([1, 1, 1]);
    expect(cpuid(0x80000008)[0]! & 0xffff).toBe(0x3030);
  });
});

describe('MSRs', () => {
  const RDMSR = exit(0x7c, 0n, 0n, 2);
  const WRMSR = exit(0x7c, 1n, 0n, 2);
  const GP = 0x8000_0b0dn;
  const read = (msr: number): bigint | undefined => {
    bench.setRegs({ rcx: BigInt(msr), rax: 0x77n, rdx: 0x77n });
    bench.runScript(RDMSR, HLT);
    if (bench.scripted.eventInjections.at(-1) === GP) return undefined;
    const { rax, rdx } = bench.vcpu.getRegs();
    return (rdx << 32n) | rax;
  };
  const write = (msr: number, value: bigint): boolean => {
    bench.setRegs({ rcx: BigInt(msr), rax: value & 0xffff_ffffn, rdx: value >> 32n });
    bench.runScript(WRMSR, HLT);
    return bench.scripted.eventInjections.at(-1) !== GP;
  };

  it('have KVM’s values after reset', () => {
    bench = new VcpuBench();
    expect(read(0xc0000080)).toBe(0n);
    expect(read(0x277)).toBe(0x0007040600070406n);
    expect(read(0x1b)).toBe(0xfee00900n);
    expect(read(0x1a0)).toBe(0x1800n);
    expect(read(0x8b)).toBe(0x0100_0065n);
  });

  it('that KVM does not know are general protection faults', () => {
    bench = new VcpuBench();
    expect(read(0x12345)).toBeUndefined();
    expect(write(0x12345, 0n)).toBe(false);
  });

  it('EFER keeps SVME to itself, and LME while paging is on', () => {
    bench = new VcpuBench();
    expect(write(0xc0000080, 0x901n)).toBe(true);
    expect(read(0xc0000080)).toBe(0x901n);
    expect(bench.vcpu.vmcb.long(0x4d0)).toBe(0x1901n);
    expect(write(0xc0000080, 0x1000n)).toBe(false);
    bench.enterLongMode();
    expect(write(0xc0000080, 0x800n)).toBe(false);
    expect(write(0xc0000080, 0x900n)).toBe(true);
    expect(read(0xc0000080)).toBe(0xd00n);
  });

  it('PAT refuses types that do not exist', () => {
    bench = new VcpuBench();
    expect(write(0x277, 0x0007040600070402n)).toBe(false);
    expect(write(0x277, 0x0606060606060606n)).toBe(true);
    expect(read(0x277)).toBe(0x0606060606060606n);
  });

  it('of SYSENTER hold canonical addresses', () => {
    bench = new VcpuBench();
    for (const msr of [0x175, 0x176]) {
      expect(write(msr, 0x1234_8000_0000_5678n)).toBe(true);
      expect(read(msr)).toBe(0xffff_8000_0000_5678n);
    }
  });
});
