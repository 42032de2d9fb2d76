/** An interrupt on its way to local APICs (Linux struct kvm_lapic_irq), and what an MSI's address and data say (kvm_set_msi_irq). */
import { SHORTHAND } from '../../../abi/apic.ts';

export interface InterruptMessage {
  readonly vector: number;
  /** DELIVERY of abi/apic.ts. */
  readonly delivery: number;
  readonly logical: boolean;
  readonly assert: boolean;
  /** Level-triggered. */
  readonly level: boolean;
  /** SHORTHAND of abi/apic.ts. */
  readonly shorthand: number;
  readonly destination: number;
  /** An MSI that any one of its targets may take. */
  readonly redirectionHint: boolean;
}

export interface Msi {
  readonly addressLo: number;
  readonly addressHi: number;
  readonly data: number;
}

/** With 32-bit ids (KVM_CAP_X2APIC_API), the high address word's upper 24 bits extend the destination. */
export function messageOfMsi(msi: Msi, ids: 'xapic' | '32-bit'): InterruptMessage {
  const low = (msi.addressLo >>> 12) & 0xff;
  return {
    vector: msi.data & 0xff,
    delivery: msi.data & 0x700,
    logical: (msi.addressLo & 4) !== 0,
    assert: true,
    level: (msi.data & 0x8000) !== 0,
    shorthand: SHORTHAND.NONE,
    destination: ids === '32-bit' ? ((msi.addressHi & 0xffffff00) | low) >>> 0 : low,
    redirectionHint: (msi.addressLo & 8) !== 0,
  };
}
