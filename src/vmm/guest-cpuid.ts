/**
 * What the VMM tells a vCPU by KVM_SET_CPUID2, of what KVM supports (QEMU target/i386/cpu.c, cpu_x86_cpuid; target/i386/sev.c, sev_snp_mask_cpuid_features).
 */
import type { CpuidEntry } from '../kernel/interface.ts';

/** CPUID 1 EAX */
export const signatureOf = (entries: readonly CpuidEntry[]): number =>
  entries.find((entry) => entry.function === 1)?.eax ?? 0;

/** The CPUID of a processor with this signature (family, model and stepping) and all else as it is. Leaves 1 and 8000_0001h EAX. */
export const withSignature = (entries: readonly CpuidEntry[], signature: number): CpuidEntry[] =>
  entries.map((entry) =>
    entry.function === 1 || entry.function === 0x8000_0001 ? { ...entry, eax: signature } : entry,
  );

/** CPUID 8000_0001h EDX bit 26: Page1GB. */
export const hasGigabytePages = (entries: readonly CpuidEntry[]): boolean =>
  entries.some((entry) => entry.function === 0x8000_0001 && (entry.edx & (1 << 26)) !== 0);

/** CPUID 1 ECX: what a local APIC in the kernel gives, X2APIC and TSC_DEADLINE. */
const KERNEL_APIC_FEATURES = (1 << 21) | (1 << 24);

/** The supported CPUID with the vCPU's own APIC id: leaf 1 EBX[31:24] and leaf Bh EDX. */
export function cpuidOf(
  supported: readonly CpuidEntry[],
  index: number,
  irqchip: 'split' | 'off',
): CpuidEntry[] {
  const absent = irqchip === 'split' ? 0 : KERNEL_APIC_FEATURES;
  return supported.map((entry) => {
    if (entry.function === 1)
      return {
        ...entry,
        ebx: ((entry.ebx & 0x00ff_ffff) | (index << 24)) >>> 0,
        ecx: (entry.ecx & ~absent) >>> 0,
      };
    if (entry.function === 0xb) return { ...entry, edx: index };
    return entry;
  });
}

const LEAF_SEV = 0x8000_001f;
/** SEV, SEV-ES, SEV-SNP. */
const SEV_FEATURES = (1 << 1) | (1 << 3) | (1 << 4);
/** Features that SNP firmware does not know: TSC_DEADLINE, TSC_ADJUST, SPEC_CTRL, VIRT_SSBD. */
const UNKNOWN_TO_SNP = new Map<number, Partial<Record<'ebx' | 'ecx' | 'edx', number>>>([
  [1, { ecx: 1 << 24 }],
  [7, { ebx: 1 << 1, edx: 1 << 26 }],
  [0x8000_0008, { ebx: 1 << 25 }],
]);

/** The same for an SNP guest: without what firmware refuses, and in leaf 8000_001Fh what the guest object says. */
export function snpCpuid(
  supported: readonly CpuidEntry[],
  { cBit, reducedPhysBits }: { cBit: number; reducedPhysBits: number },
): CpuidEntry[] {
  return supported.map((entry) => {
    if (entry.function === LEAF_SEV)
      return { ...entry, eax: SEV_FEATURES, ebx: cBit | (reducedPhysBits << 6), ecx: 0, edx: 0 };
    const { ebx = 0, ecx = 0, edx = 0 } = UNKNOWN_TO_SNP.get(entry.function) ?? {};
    return {
      ...entry,
      ebx: (entry.ebx & ~ebx) >>> 0,
      ecx: (entry.ecx & ~ecx) >>> 0,
      edx: (entry.edx & ~edx) >>> 0,
    };
  });
}
