/**
 * The model-specific registers of a vCPU as KVM keeps them (Linux arch/x86/kvm/x86.c: kvm_get_msr_common, kvm_set_msr_common, __kvm_set_msr; mtrr.c;
 * svm.c: svm_get_msr, svm_set_msr). Those that the processor has lie in the VMCB or in the core, the others here. A guest's accesses and user
 * space's (KVM_GET_MSRS, KVM_SET_MSRS) differ where Linux lets user space do more.
 *
 * Left out: performance counters (their old numbers read 0 and ignore writes, as without a virtual PMU), the paravirtual MSRs of KVM and Hyper-V, SPEC_CTRL
 * and its kin, whose features no guest here has.
 */
import { SAVE, SEGMENT, VMCB } from '../../abi/vmcb.ts';
import { CR0, EFER, MSR } from '../../abi/x86.ts';
import { isApicMsr, readApicMsr, writeApicMsr } from './lapic/vcpu-apic.ts';
import type { Vcpu } from './vcpu.ts';

/** What came of an access. */
export const MSR_RESULT = {
  DONE: 0,
  /** A value that the MSR does not take, or one that is not there for this vCPU. */
  INVALID: 1,
  /** KVM_MSR_RET_UNSUPPORTED: KVM does not know it. */
  UNSUPPORTED: 2,
  /** KVM_MSR_RET_FILTERED */
  FILTERED: 3,
} as const;

export type MsrAccess = 'guest' | 'host';

const TSC_ADJUST = 0x3b;
const UCODE_REV = 0x8b;
const PLATFORM_INFO = 0xce;
const MTRR_CAP = 0xfe;
const MISC_FEATURES = 0x140;
const MCG_CAP = 0x179;
const MCG_STATUS = 0x17a;
const MCG_CTL = 0x17b;
const MTRR_DEF_TYPE = 0x2ff;
const TSC_DEADLINE = 0x6e0;
const HWCR = 0xc001_0015;
const VM_CR = 0xc001_0114;
const VM_HSAVE_PA = 0xc001_0117;
const DE_CFG = 0xc001_1029;
/** Feature control of Zen and older: read as 0. */
const READ_ZERO = new Set([
  0xc001_0010, 0xc001_001f, 0xc001_0055, 0xc001_0058, 0xc001_0112, 0xc001_0113, 0xc001_1022, 0xc001_1023,
  0xc001_102a, 0xc001_102c, 0x1d9, 0x1db, 0x1dc, 0x1dd, 0x1de, 0x199, 0x606, 0x611, 0x639, 0x641, 0x619,
]);
const WRITE_IGNORED = new Set([
  0x79, 0x1d9, 0xc001_001f, 0xc001_0020, 0xc001_1022, 0xc001_1023, 0xc001_102a, 0xc001_102c,
]);
/** Event selects and counters of the K7 and P6. */
const isPerformanceCounter = (msr: number): boolean =>
  (msr >= 0xc001_0000 && msr <= 0xc001_0007) ||
  msr === 0xc1 ||
  msr === 0xc2 ||
  msr === 0x186 ||
  msr === 0x187;

/** svm.md 7.4: KVM stuffs feature MSRs (quirk STUFF_FEATURE_MSRS). */
const MICROCODE_REVISION = 0x0100_0065n;
/** BTS and PEBS unavailable. */
const MISC_ENABLE_FIXED = 0x1800n;
const MISC_ENABLE_EMON = 0x80n;
/** 8 variable ranges, fixed ranges, write combining. */
const MTRR_CAP_VALUE = 0x508n;
const CPUID_FAULT = 1n;
const PLATFORM_CPUID_FAULT = 1n << 31n;
const MCE_BANKS = 32n;
const MCE_BANK_FIRST = 0x400;
const MCE_BANK_LAST = 0x47f;
/** McStatusWrEn and TscFreqSel. */
const HWCR_WRITABLE = (1n << 18n) | (1n << 24n);
/** Flush filter, IGNNE, TLB cache, and a bit of Windows: ignored. */
const HWCR_IGNORED = 0x148n | 0x10n;
const DE_CFG_LFENCE_SERIALIZE = 2n;
const VM_CR_KNOWN = 0x1fn;
const U32 = 0xffff_ffffn;
const U64 = (1n << 64n) - 1n;
const LINEAR_BITS = 48;
const PAT_TYPES = new Set([0, 1, 4, 5, 6, 7]);
const MTRR_TYPES = new Set([0, 1, 4, 5, 6]);
const FIXED_MTRRS = new Set([0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f]);
const isVariableMtrr = (msr: number): boolean => msr >= 0x200 && msr <= 0x20f;
const isMtrr = (msr: number): boolean => isVariableMtrr(msr) || FIXED_MTRRS.has(msr) || msr === MTRR_DEF_TYPE;
const isMceBank = (msr: number): boolean => msr >= MCE_BANK_FIRST && msr <= MCE_BANK_LAST;

/** Fields of the save area. `canonical`: an address that must be one. */
const IN_SAVE_AREA = new Map<number, { field: number; canonical: boolean }>([
  [MSR.SYSENTER_CS, { field: SAVE.SYSENTER_CS, canonical: false }],
  [MSR.STAR, { field: SAVE.STAR, canonical: false }],
  [MSR.LSTAR, { field: SAVE.LSTAR, canonical: true }],
  [MSR.CSTAR, { field: SAVE.CSTAR, canonical: true }],
  [MSR.SFMASK, { field: SAVE.SFMASK, canonical: false }],
  [MSR.FS_BASE, { field: SAVE.FS + SEGMENT.BASE, canonical: true }],
  [MSR.GS_BASE, { field: SAVE.GS + SEGMENT.BASE, canonical: true }],
  [MSR.KERNEL_GS_BASE, { field: SAVE.KERNEL_GS_BASE, canonical: true }],
]);

/** KVM_GET_MSR_INDEX_LIST: what of Linux' list a vCPU here has, in its order. */
export const MSR_INDICES: readonly number[] = [
  MSR.SYSENTER_CS,
  MSR.SYSENTER_ESP,
  MSR.SYSENTER_EIP,
  MSR.STAR,
  MSR.CSTAR,
  MSR.KERNEL_GS_BASE,
  MSR.SFMASK,
  MSR.LSTAR,
  MSR.TSC,
  MSR.PAT,
  VM_HSAVE_PA,
  MSR.TSC_AUX,
  TSC_ADJUST,
  TSC_DEADLINE,
  DE_CFG,
  PLATFORM_INFO,
  MSR.MISC_ENABLE,
  MCG_STATUS,
  MCG_CTL,
  MISC_FEATURES,
  HWCR,
  UCODE_REV,
];

/** KVM_GET_MSR_FEATURE_INDEX_LIST and its values. */
export const FEATURE_MSRS: ReadonlyMap<number, bigint> = new Map([
  [DE_CFG, DE_CFG_LFENCE_SERIALIZE],
  [UCODE_REV, MICROCODE_REVISION],
  [PLATFORM_INFO, PLATFORM_CPUID_FAULT],
]);

export class GuestMsrs {
  /** What `read` found. */
  value = 0n;
  readonly #vcpu: Vcpu;
  /** By number; what is absent is 0. */
  readonly #kept = new Map<number, bigint>([
    [UCODE_REV, MICROCODE_REVISION],
    [PLATFORM_INFO, PLATFORM_CPUID_FAULT],
    [MSR.MISC_ENABLE, MISC_ENABLE_FIXED],
    [DE_CFG, DE_CFG_LFENCE_SERIALIZE],
  ]);

  constructor(vcpu: Vcpu) {
    this.#vcpu = vcpu;
    for (let bank = MCE_BANK_FIRST; bank <= MCE_BANK_LAST; bank += 4) this.#kept.set(bank, U64);
  }

  /** CPUID raises #GP outside of CPL 0. */
  get cpuidFaults(): boolean {
    return (this.#keptAt(MISC_FEATURES) & CPUID_FAULT) !== 0n;
  }

  #keptAt(msr: number): bigint {
    return this.#kept.get(msr) ?? 0n;
  }

  /** Leaves the register in `value`. Returns MSR_RESULT. */
  read(msr: number, by: MsrAccess): number {
    const value = this.#read(msr, by);
    if (typeof value === 'number') return value;
    this.value = value;
    return MSR_RESULT.DONE;
  }

  /** The value, or a MSR_RESULT. */
  #read(msr: number, by: MsrAccess): bigint | number {
    const { vmcb, other } = this.#vcpu;
    const field = IN_SAVE_AREA.get(msr);
    if (field !== undefined) return vmcb.save(field.field);
    switch (msr) {
      case MSR.SYSENTER_ESP:
        return vmcb.save(SAVE.SYSENTER_ESP);
      case MSR.SYSENTER_EIP:
        return vmcb.save(SAVE.SYSENTER_EIP);
      case MSR.TSC:
        return this.#vcpu.guestTsc;
      case MSR.TSC_AUX:
        if (by === 'guest' && !this.#vcpu.cpuid.hasTscAux) return MSR_RESULT.INVALID;
        return this.#vcpu.core.tscAux;
      case MSR.APIC_BASE:
        return other.apicBase;
      case MSR.EFER:
        return vmcb.save(SAVE.EFER) & ~BigInt(EFER.SVME);
      case MSR.PAT:
        return vmcb.save(SAVE.G_PAT);
      case MTRR_CAP:
        return MTRR_CAP_VALUE;
      case MCG_CAP:
        return MCE_BANKS;
      case MCG_CTL:
        // Without MCG_CTL_P in MCG_CAP user space alone sees it.
        return by === 'host' ? this.#keptAt(msr) : MSR_RESULT.INVALID;
      case TSC_ADJUST:
      case UCODE_REV:
      case PLATFORM_INFO:
      case MISC_FEATURES:
      case MSR.MISC_ENABLE:
      case MCG_STATUS:
      case HWCR:
      case VM_CR:
      case VM_HSAVE_PA:
      case DE_CFG:
        return this.#keptAt(msr);
      default:
    }
    if (isMtrr(msr) || isMceBank(msr)) return this.#keptAt(msr);
    if (isApicMsr(msr)) return readApicMsr(this.#vcpu.apic, msr) ?? MSR_RESULT.INVALID;
    return READ_ZERO.has(msr) || isPerformanceCounter(msr) ? 0n : MSR_RESULT.UNSUPPORTED;
  }

  /** Returns MSR_RESULT. */
  write(msr: number, value: bigint, by: MsrAccess): number {
    const { vmcb } = this.#vcpu;
    const { DONE, INVALID, UNSUPPORTED } = MSR_RESULT;
    const valid = (ok: boolean): number => (ok ? DONE : INVALID);
    const field = IN_SAVE_AREA.get(msr);
    if (field !== undefined) {
      if (field.canonical && !isCanonical(value)) return INVALID;
      vmcb.setSave(field.field, value);
      return DONE;
    }
    switch (msr) {
      case MSR.SYSENTER_ESP:
        vmcb.setSave(SAVE.SYSENTER_ESP, sysenterAddress(value, by));
        return DONE;
      case MSR.SYSENTER_EIP:
        vmcb.setSave(SAVE.SYSENTER_EIP, sysenterAddress(value, by));
        return DONE;
      case MSR.TSC:
        vmcb.setLong(VMCB.TSC_OFFSET, BigInt.asUintN(64, value - BigInt(this.#vcpu.time.now())));
        return DONE;
      case MSR.TSC_AUX:
        return valid(this.#writeTscAux(value, by));
      case MSR.APIC_BASE:
        return valid(this.#vcpu.setApicBase(value, by));
      case MSR.EFER:
        return valid(this.#writeEfer(value, by));
      case MSR.PAT:
        if (!hasTypes(value, PAT_TYPES)) return INVALID;
        vmcb.setSave(SAVE.G_PAT, value);
        return DONE;
      case MSR.MISC_ENABLE:
        return valid(this.#writeMiscEnable(value, by));
      case UCODE_REV:
        if (by === 'host') this.#kept.set(msr, value);
        return DONE;
      case PLATFORM_INFO:
        if (by === 'guest' || ((value & PLATFORM_CPUID_FAULT) === 0n && this.cpuidFaults)) return INVALID;
        break;
      case MISC_FEATURES:
        if ((value & ~CPUID_FAULT) !== 0n) return INVALID;
        if (value !== 0n && (this.#keptAt(PLATFORM_INFO) & PLATFORM_CPUID_FAULT) === 0n) return INVALID;
        break;
      case MTRR_CAP:
      case MCG_CAP:
        return INVALID;
      case MCG_CTL:
        // Without MCG_CTL_P in MCG_CAP.
        if (by === 'guest' || value !== 0n) return INVALID;
        break;
      case VM_CR:
        if ((value & ~VM_CR_KNOWN) !== 0n) return INVALID;
        break;
      case VM_HSAVE_PA:
        if (by === 'guest' && ((value & 0xfffn) !== 0n || value >> BigInt(this.#physicalBits) !== 0n))
          return INVALID;
        this.#kept.set(msr, value & ~0xfffn);
        return DONE;
      case DE_CFG:
        if ((value & ~DE_CFG_LFENCE_SERIALIZE) !== 0n) return INVALID;
        break;
      case HWCR:
        if ((value & ~HWCR_IGNORED & ~HWCR_WRITABLE) !== 0n) return INVALID;
        this.#kept.set(msr, value & HWCR_WRITABLE);
        return DONE;
      case TSC_ADJUST:
      case MCG_STATUS:
        break;
      default:
        if (isApicMsr(msr)) return valid(writeApicMsr(this.#vcpu.apic, msr, value));
        if (WRITE_IGNORED.has(msr) || isPerformanceCounter(msr)) return DONE;
        if (isMceBank(msr)) {
          if (!this.#bankTakes(msr, value, by)) return INVALID;
        } else if (isMtrr(msr)) {
          if (!this.#mtrrTakes(msr, value)) return INVALID;
        } else return UNSUPPORTED;
    }
    this.#kept.set(msr, value);
    return DONE;
  }

  get #physicalBits(): number {
    return this.#vcpu.cpuid.physicalBits;
  }

  /** kvm_mtrr_valid */
  #mtrrTakes(msr: number, value: bigint): boolean {
    if (msr === MTRR_DEF_TYPE) return (value & ~0xcffn) === 0n && MTRR_TYPES.has(Number(value & 0xffn));
    if (!isVariableMtrr(msr)) return hasTypes(value, MTRR_TYPES);
    if (value >> BigInt(this.#physicalBits) !== 0n) return false;
    if ((msr & 1) === 1) return (value & 0x7ffn) === 0n;
    return MTRR_TYPES.has(Number(value & 0xffn)) && (value & 0xf00n) === 0n;
  }

  /** set_msr_mce: a control register is all or nothing, but for what Linux and Windows are known to clear; a guest clears status alone. */
  #bankTakes(msr: number, value: bigint, by: MsrAccess): boolean {
    const register = msr & 3;
    if (register === 0) return value === 0n || (value | (1n << 10n) | 1n) === U64;
    const mayWriteStatus = (this.#keptAt(HWCR) & (1n << 18n)) !== 0n;
    return register !== 1 || by === 'host' || value === 0n || mayWriteStatus;
  }

  /** For whose CPUID shows it. AMD's processors drop the upper half; of an SEV-ES guest with a TSC_AUX of its own nothing is kept. */
  #writeTscAux(value: bigint, by: MsrAccess): boolean {
    const { core, cpuid, sev } = this.#vcpu;
    if (by === 'guest' && !cpuid.hasTscAux) return false;
    if (!cpuid.isAmd && value > U32) return false;
    if (sev?.ownsTscAux !== true) core.tscAux = value & U32;
    return true;
  }

  #writeMiscEnable(value: bigint, by: MsrAccess): boolean {
    const old = this.#keptAt(MSR.MISC_ENABLE);
    if (by === 'guest') {
      if (((old ^ value) & MISC_ENABLE_FIXED) !== 0n) return false;
      this.#kept.set(MSR.MISC_ENABLE, (value & ~MISC_ENABLE_EMON) | (old & MISC_ENABLE_EMON));
    } else this.#kept.set(MSR.MISC_ENABLE, value);
    return true;
  }

  /** set_efer: LMA is the hardware's. A guest's LME is fixed while its paging is on, and the rest wants its CPUID; user space may set what the host knows. */
  #writeEfer(value: bigint, by: MsrAccess): boolean {
    const { vmcb } = this.#vcpu;
    const old = vmcb.save(SAVE.EFER);
    if ((value & ~EFER_KNOWN) !== 0n) return false;
    if (by === 'guest' && !this.#guestMaySetEfer(value, old)) return false;
    const kept = BigInt(EFER.LMA | EFER.SVME);
    vmcb.setSave(SAVE.EFER, (value & ~kept) | (old & kept));
    return true;
  }

  #guestMaySetEfer(value: bigint, old: bigint): boolean {
    const { vmcb, cpuid } = this.#vcpu;
    if ((value & cpuid.reservedEferBits) !== 0n) return false;
    const paging = (vmcb.saveWord(SAVE.CR0) & CR0.PG) !== 0;
    return !paging || ((old ^ value) & BigInt(EFER.LME)) === 0n;
  }
}

const EFER_KNOWN = BigInt(EFER.SCE | EFER.LME | EFER.LMA | EFER.NXE | EFER.FFXSR);

const isCanonical = (value: bigint): boolean =>
  BigInt.asUintN(64, BigInt.asIntN(LINEAR_BITS, value)) === value;

/** Made canonical; user space's is kept in 32 bits, since an AMD guest has no more of it in the VMCB. */
const sysenterAddress = (value: bigint, by: MsrAccess): bigint =>
  by === 'host' ? value & U32 : BigInt.asUintN(64, BigInt.asIntN(LINEAR_BITS, value));

/** Whether all eight bytes are memory types. */
function hasTypes(value: bigint, types: ReadonlySet<number>): boolean {
  for (let i = 0n; i < 64n; i += 8n) if (!types.has(Number((value >> i) & 0xffn))) return false;
  return true;
}
