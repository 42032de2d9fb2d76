/**
 * What KVM knows of the machine's SEV (Linux arch/x86/kvm/svm/sev.c, sev_hardware_setup, sev_set_cpu_caps): the secure processor's driver, ASIDs, what is supported.
 */
import { SEV_STATUS } from '../../../../abi/sev-status.ts';
import type { Psp } from '../../../ccp/psp.ts';
import { AsidPool } from './asid-pool.ts';

/** What KVM reads of the chip (CPUID 0x8000001F; SNP_PLATFORM_STATUS and FEATURE_INFO). */
export interface SevMachine {
  /** Highest ASID of an encrypted guest. */
  readonly maxAsid: number;
  /** Lowest ASID of a SEV guest without ES. */
  readonly minSevAsid: number;
  /** Policy bits that firmware knows. */
  readonly policyBits: bigint;
  /** CPUID 0x8000001F EAX. */
  readonly sevFeatures: number;
  /** Position of the C-bit. */
  readonly cBit: number;
  /** CPUID 1 EAX. */
  readonly signature: number;
}

export class SevHost {
  readonly psp: Psp;
  readonly machine: SevMachine;
  /** For SEV-ES and SNP. */
  readonly esAsids: AsidPool;

  constructor(psp: Psp, machine: SevMachine) {
    this.psp = psp;
    this.machine = machine;
    this.esAsids = new AsidPool(
      1,
      machine.minSevAsid - 1,
      () => psp.flushDataFabric() === SEV_STATUS.SUCCESS,
    );
  }
}
