/**
 * What the running guest is to the memory controller and the RMP: plain, SEV, SEV-ES or SNP-active (APM volume 2, 15.34 to 15.36; reference svm.md, section 4). Set by
 * VMRUN.
 *
 * Left out: vTOM, ReflectVC, restricted and alternate injection, and what comes after them in SEV_FEATURES.
 */
import { VMEXIT } from '../../abi/vmcb.ts';

/** Bit of a page table entry's high word that says "encrypted": bit 51 of the entry. */
export const C_BIT_HIGH = 1 << 19;
export const C_BIT = 51;

/** SEV_FEATURES of a VMSA. */
export const SEV_FEATURE = { SNP_ACTIVE: 1 } as const;
/** Those that this core has. */
export const SEV_FEATURES_KNOWN = SEV_FEATURE.SNP_ACTIVE;

export class EncryptedGuest {
  sev = false;
  es = false;
  snp = false;
  asid = 0;
  /** Id of the guest's key in the memory controller; 0: none. */
  key = 0;
  vmpl = 0;
  /** Low word of the VMSA's SEV_FEATURES. */
  features = 0;
  /** System physical address of the VMSA; 0 where there is none. */
  vmsa = 0;
  /** MSR 0xC0010130. */
  ghcb = 0n;

  /** A guest without encryption. */
  leave(): void {
    this.sev = this.es = this.snp = false;
    this.asid = this.key = this.vmpl = this.features = this.vmsa = 0;
  }

  /** SEV_STATUS, as the guest reads it. */
  get status(): bigint {
    if (!this.sev) return 0n;
    return BigInt(((this.features << 2) | (this.es ? 2 : 0) | 1) >>> 0);
  }

  /** Whether an exit that an instruction causes comes to the guest as #VC first: all but the automatic ones. */
  reflects(code: number): boolean {
    return this.es && !AUTOMATIC.has(code);
  }
}

const AUTOMATIC = new Set<number>([
  VMEXIT.EXCEPTION0 + 18,
  VMEXIT.INTR,
  VMEXIT.NMI,
  VMEXIT.SMI,
  VMEXIT.INIT,
  VMEXIT.VINTR,
  VMEXIT.PAUSE,
  VMEXIT.HLT,
  VMEXIT.SHUTDOWN,
  ...Array.from({ length: 17 }, (_, i) => 0x8f + i),
  0xa5,
  0xa6,
  VMEXIT.VMGEXIT,
  VMEXIT.INVALID,
  VMEXIT.BUSY,
]);
