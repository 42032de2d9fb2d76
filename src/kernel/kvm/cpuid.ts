/**
 * CPUID of a vCPU (Linux arch/x86/kvm/cpuid.c; reference svm.md 8.2): the entries of KVM_SET_CPUID2, how CPUID looks them up, what
 * follows from them, and what KVM_GET_SUPPORTED_CPUID offers: what our cores execute, under a Milan's name.
 *
 * Left out: x87 and MMX, which our cores do not have; paravirtual leaves (0x40000000), the cache topology.
 */
import { CR4, EFER } from '../../abi/x86.ts';
import { LinuxError } from '../../base/errors.ts';
import type { CpuidEntry } from '../interface.ts';

const MAX_ENTRIES = 256;
const SIGNIFICANT_INDEX = 1;
const OSXSAVE = 1 << 27;
const X2APIC = 1 << 21;
const TSC_DEADLINE = 1 << 24;
const APIC = 1 << 9;
const RDTSCP = 1 << 27;
const RDPID = 1 << 22;
const APIC_ENABLED = 1n << 11n;

/** A feature's bit: leaf, register, bit number. */
const feature = (leaf: number, register: 'eax' | 'ebx' | 'ecx' | 'edx', bit: number) => ({
  leaf,
  register,
  bit,
});
/** CR4 bits that a guest may set only if its CPUID has the feature. */
const CR4_FEATURES = [
  [CR4.OSXSAVE, feature(1, 'ecx', 26)],
  [CR4.SMEP, feature(7, 'ebx', 7)],
  [CR4.SMAP, feature(7, 'ebx', 20)],
  [CR4.FSGSBASE, feature(7, 'ebx', 0)],
  [CR4.PKE, feature(7, 'ecx', 3)],
  [CR4.LA57, feature(7, 'ecx', 16)],
  [CR4.UMIP, feature(7, 'ecx', 2)],
  [CR4.PCIDE, feature(1, 'ecx', 17)],
] as const;
const EFER_FEATURES = [
  [EFER.LME, feature(0x8000_0001, 'edx', 29)],
  [EFER.LMA, feature(0x8000_0001, 'edx', 29)],
  [EFER.NXE, feature(0x8000_0001, 'edx', 20)],
  [EFER.SVME, feature(0x8000_0001, 'ecx', 2)],
  [EFER.FFXSR, feature(0x8000_0001, 'edx', 25)],
] as const;

/** Where CPUID leaves its answer; one per vCPU. */
export interface CpuidResult {
  eax: number;
  ebx: number;
  ecx: number;
  edx: number;
}

/** What of a vCPU shows in its CPUID. */
export interface CpuidState {
  readonly cr4: number;
  readonly apicBase: bigint;
}

export class GuestCpuid {
  #entries: readonly CpuidEntry[] = [];
  /** MAXPHYADDR; 36 as long as no entry says otherwise. */
  physicalBits = 36;
  /** Bits of CR4 and EFER that the guest may not have; none before KVM_SET_CPUID2. */
  reservedCr4Bits = 0n;
  reservedEferBits = 0n;

  /** KVM_GET_CPUID2 */
  get(state: CpuidState): CpuidEntry[] {
    return asOfNow(this.#entries, state);
  }

  /**
   * KVM_SET_CPUID2. Errors: E2BIG above 256 entries; EINVAL for a linear address width that no processor has, and once the vCPU has run,
   * for anything that differs but what KVM itself keeps up to date.
   */
  set(entries: readonly CpuidEntry[], vcpu: CpuidState & { readonly hasRun: boolean }): void {
    if (entries.length > MAX_ENTRIES)
      throw new LinuxError('E2BIG', `KVM_SET_CPUID2: ${entries.length} entries, at most ${MAX_ENTRIES}`);
    if (vcpu.hasRun && !sameEntries(this.get(vcpu), asOfNow(entries, vcpu)))
      throw new LinuxError('EINVAL', 'KVM_SET_CPUID2: other entries than before, and the vCPU has run');
    const widths = find(entries, 0x8000_0008, 0);
    const linear = widths === undefined ? 0 : (widths.eax >>> 8) & 0xff;
    if (linear !== 0 && linear !== 48 && linear !== 57)
      throw new LinuxError('EINVAL', `KVM_SET_CPUID2: ${linear} linear address bits, want 48 or 57`);
    this.#entries = entries.map((entry) => ({ ...entry }));
    this.physicalBits = widths === undefined ? 36 : widths.eax & 0xff;
    this.reservedCr4Bits = this.#missing(CR4_FEATURES);
    this.reservedEferBits = this.#missing(EFER_FEATURES);
  }

  /** kvm_vcpu_is_legal_gpa, sev_vcpu_after_set_cpuid: no bit is beyond MAXPHYADDR, but where memory is encrypted the C-bit of leaf 0x8000001F. */
  isLegalGpa(gpa: bigint, memory: 'plain' | 'encrypted'): boolean {
    const sev = memory === 'plain' ? undefined : find(this.#entries, LEAF_SEV, 0);
    const cBit = sev === undefined ? 0n : 1n << BigInt(sev.ebx & 0x3f);
    return (gpa & ~cBit) >> BigInt(this.physicalBits) === 0n;
  }

  get hasX2apic(): boolean {
    return ((find(this.#entries, 1, 0)?.ecx ?? 0) & X2APIC) !== 0;
  }
  get hasTscDeadline(): boolean {
    return ((find(this.#entries, 1, 0)?.ecx ?? 0) & TSC_DEADLINE) !== 0;
  }

  get hasRdtscp(): boolean {
    return ((find(this.#entries, 0x8000_0001, 0)?.edx ?? 0) & RDTSCP) !== 0;
  }
  /** Some instruction gives TSC_AUX. */
  get hasTscAux(): boolean {
    return this.hasRdtscp || ((find(this.#entries, 7, 0)?.ecx ?? 0) & RDPID) !== 0;
  }
  /** guest_cpuid_is_amd_compatible */
  get isAmd(): boolean {
    const basic = find(this.#entries, 0, 0);
    return basic !== undefined && isAmd(basic);
  }

  /** EAX of leaf 1, or 0x600 for a vCPU that was told nothing. */
  get signature(): number {
    return find(this.#entries, 1, 0)?.eax ?? 0x600;
  }

  /** kvm_cpuid: what the guest's CPUID gives. */
  execute(leaf: number, index: number, state: CpuidState, into: CpuidResult): void {
    const known = find(this.#entries, leaf, index);
    const answering = known === undefined ? this.#answering(leaf) : leaf;
    const entry = known ?? find(this.#entries, answering, index);
    into.eax = entry?.eax ?? 0;
    into.ebx = entry?.ebx ?? 0;
    into.ecx = entry?.ecx ?? 0;
    into.edx = entry?.edx ?? 0;
    if (entry !== undefined) updateRuntime(entry, state, into);
    // Topology leaves end with an invalid level, which still tells level and APIC id.
    if (entry === undefined && (answering === 0xb || answering === 0x1f)) {
      const first = find(this.#entries, answering, 1);
      if (first !== undefined) {
        into.ecx = index & 0xff;
        into.edx = first.edx;
      }
    }
  }

  /** get_out_of_range_cpuid_entry: beyond the last leaf of its class AMD gives zeros, Intel the last basic leaf. */
  #answering(leaf: number): number {
    const basic = find(this.#entries, 0, 0);
    if (basic === undefined || isAmd(basic)) return leaf;
    const first = find(this.#entries, firstOfClass(leaf), 0);
    const inRange = first !== undefined && leaf >>> 0 <= first.eax >>> 0;
    return inRange ? leaf : basic.eax;
  }

  #missing(features: readonly (readonly [number, ReturnType<typeof feature>])[]): bigint {
    let missing = 0n;
    for (const [bit, { leaf, register, bit: number }] of features)
      if ((((find(this.#entries, leaf, 0)?.[register] ?? 0) >>> number) & 1) === 0) missing |= BigInt(bit);
    return missing;
  }
}

/** The leaf that says how far the class of `leaf` goes: basic, one of the hypervisor's 256 each, extended, Centaur's. */
function firstOfClass(leaf: number): number {
  if (leaf >>> 30 === 3) return 0xc000_0000;
  return leaf >>> 28 === 4 ? leaf & 0xffff_ff00 : leaf & 0x8000_0000;
}

const AMD = [0x68747541, 0x69746e65, 0x444d4163];
const HYGON = [0x6f677948, 0x6e65476e, 0x656e6975];
const isAmd = ({ ebx, edx, ecx }: CpuidEntry): boolean =>
  [AMD, HYGON].some(([b, d, c]) => ebx >>> 0 === b && edx >>> 0 === d && ecx >>> 0 === c);

function find(entries: readonly CpuidEntry[], leaf: number, index: number): CpuidEntry | undefined {
  for (const entry of entries)
    if (
      entry.function >>> 0 === leaf >>> 0 &&
      ((entry.flags & SIGNIFICANT_INDEX) === 0 || entry.index >>> 0 === index >>> 0)
    )
      return entry;
  return undefined;
}

const sameEntries = (a: readonly CpuidEntry[], b: readonly CpuidEntry[]): boolean =>
  a.length === b.length && a.every((entry, i) => sameEntry(entry, b[i]!));
const sameEntry = (a: CpuidEntry, b: CpuidEntry): boolean =>
  (['function', 'index', 'flags', 'eax', 'ebx', 'ecx', 'edx'] as const).every(
    (field) => a[field] >>> 0 === b[field] >>> 0,
  );

/** kvm_update_cpuid_runtime: what of `entry` follows the vCPU's state, into its registers. */
function updateRuntime(entry: CpuidEntry, state: CpuidState, into: CpuidResult): void {
  if (entry.function === 1) {
    into.ecx = (state.cr4 & CR4.OSXSAVE) !== 0 ? into.ecx | OSXSAVE : into.ecx & ~OSXSAVE;
    into.edx = (state.apicBase & APIC_ENABLED) !== 0n ? into.edx | APIC : into.edx & ~APIC;
  }
  // The sizes are those of what XCR0 enables, and x87 and SSE take the same.
  if (entry.function === LEAF_XSAVE && sizedByXcr0(entry)) into.ebx = XSAVE_BYTES;
}

/** Copies, as the guest would see them now. */
function asOfNow(entries: readonly CpuidEntry[], state: CpuidState): CpuidEntry[] {
  return entries.map((entry) => {
    const copy = { ...entry };
    updateRuntime(entry, state, copy);
    copy.ecx >>>= 0;
    copy.edx >>>= 0;
    return copy;
  });
}

/** Subleaf 0, and 1 where XSAVEC or XSAVES is there. */
const sizedByXcr0 = ({ index, eax }: CpuidEntry): boolean =>
  index === 0 || (index === 1 && (eax & 0xa) !== 0);
const LEAF_XSAVE = 0xd;

const MILAN_SIGNATURE = 0x00a00f11;
const bitsOf = (...numbers: readonly number[]): number =>
  numbers.reduce((word, bit) => word | (1 << bit), 0) >>> 0;
/** DE PSE TSC MSR PAE CX8 APIC SEP PGE CMOV PAT PSE36 CLFSH FXSR SSE SSE2 */
const LEAF1_EDX = bitsOf(2, 3, 4, 5, 6, 8, 9, 11, 13, 15, 16, 17, 19, 24, 25, 26);
/** CX16 X2APIC MOVBE POPCNT TSC_DEADLINE RDRAND */
const LEAF1_ECX = bitsOf(13, 21, 22, 23, 24, 30);
/** SSE3 PCLMULQDQ SSSE3 SSE4.1 SSE4.2 AES XSAVE */
const LEAF1_ECX_VECTORS = bitsOf(0, 1, 9, 19, 20, 25, 26);
/** FSGSBASE BMI1 SMEP BMI2 RDSEED ADX SMAP CLFLUSHOPT CLWB */
const LEAF7_EBX = bitsOf(0, 3, 7, 8, 18, 19, 20, 23, 24);
/** UMIP RDPID */
const LEAF7_ECX = bitsOf(2, 22);
/** The bits of leaf 1 that AMD repeats, and SYSCALL NX FXSR_OPT PAGE1GB RDTSCP LM */
const EXTENDED1_EDX = bitsOf(2, 3, 4, 5, 6, 8, 9, 11, 13, 15, 16, 17, 20, 24, 25, 26, 27, 29);
/** LAHF in long mode, CR8_LEGACY, ABM (LZCNT), 3DNOWPREFETCH */
const EXTENDED1_ECX = bitsOf(0, 4, 5, 8);
/** Components that XCR0 may have, and the bytes that they and the header take in any form. */
const XCR0_X87_SSE = 3;
const XSAVE_BYTES = 576;
/** XSAVEOPT XSAVEC XGETBV1 */
const XSAVE_VARIANTS = bitsOf(0, 1, 2);
const XSAVEERPTR = bitsOf(2);
const LEAF_1 = 1;
const PHYSICAL_AND_LINEAR_BITS = 48 | (48 << 8) | (48 << 16);
const NAME = 'SoftCVM virtual processor';

/** SEV, SEV-ES, SEV-SNP, SME_COHERENT: of those that the chip has (sev_set_cpu_caps). */
const SEV_FEATURES = bitsOf(1, 3, 4, 10);
const LEAF_SEV = 0x8000_001f;

/** What a chip with SEV says of itself, as far as KVM passes it on. */
export interface SevCpuid {
  /** CPUID 1 EAX. */
  readonly signature: number;
  readonly cBit: number;
  readonly maxAsid: number;
  readonly minSevAsid: number;
}

/** KVM_GET_SUPPORTED_CPUID. `sev`: the machine's, if it has any. Reduction of the address width and VMPLs are not passed on. */
export function supportedCpuid(sev?: SevCpuid): CpuidEntry[] {
  const signature = sev?.signature ?? MILAN_SIGNATURE;
  const entry = (leaf: number, eax: number, ebx = 0, ecx = 0, edx = 0, index?: number): CpuidEntry => ({
    function: leaf,
    index: index ?? 0,
    flags: index === undefined ? 0 : SIGNIFICANT_INDEX,
    eax,
    ebx,
    ecx,
    edx,
  });
  const [vendorB, vendorD, vendorC] = AMD as [number, number, number];
  const name = new DataView(new TextEncoder().encode(NAME.padEnd(48, '\0')).buffer);
  const nameLeaf = (leaf: number, at: number): CpuidEntry =>
    entry(
      leaf,
      name.getUint32(at, true),
      name.getUint32(at + 4, true),
      name.getUint32(at + 8, true),
      name.getUint32(at + 12, true),
    );
  return [
    entry(0, 0xd, vendorB, vendorC, vendorD),
    entry(LEAF_1, signature, 8 << 8, LEAF1_ECX | LEAF1_ECX_VECTORS, LEAF1_EDX),
    entry(7, 0, LEAF7_EBX, LEAF7_ECX, 0, 0),
    entry(0xd, XCR0_X87_SSE, XSAVE_BYTES, XSAVE_BYTES, 0, 0),
    entry(0xd, XSAVE_VARIANTS, XSAVE_BYTES, 0, 0, 1),
    entry(0x8000_0000, sev === undefined ? 0x8000_0008 : LEAF_SEV, vendorB, vendorC, vendorD),
    entry(0x8000_0001, signature, 0, EXTENDED1_ECX, EXTENDED1_EDX),
    nameLeaf(0x8000_0002, 0),
    nameLeaf(0x8000_0003, 16),
    nameLeaf(0x8000_0004, 32),
    entry(0x8000_0008, PHYSICAL_AND_LINEAR_BITS, XSAVEERPTR),
    ...(sev === undefined ? [] : [entry(LEAF_SEV, SEV_FEATURES, sev.cBit, sev.maxAsid, sev.minSevAsid)]),
  ];
}
