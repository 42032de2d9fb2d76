/**
 * The maps that say which ports and MSRs of a guest are intercepted (APM volume 2, 15.10 and 15.11; Linux svm.c, init_msrpm): every
 * port, and every MSR but those that live in the VMCB and change nothing for the host.
 */
import { MSR } from '../../../abi/x86.ts';
import { type Pfn, pfn, spaOf } from '../../../base/address.ts';
import { LinuxError } from '../../../base/errors.ts';
import type { FrameOwner, HostMemory } from '../../../hardware/memory/host-memory.ts';
import { type MsrPermissions, msrAllowed } from '../msr-filter.ts';

const PORTS_ORDER = 2;
const MSRS_ORDER = 1;
const PORTS_BYTES = 0x3000;
const MSRS_BYTES = 0x2000;

/** MSRs that a plain guest reads and writes without an exit. TSC_AUX is the core's, because RDTSCP gives it. */
const PASSED_THROUGH = [
  MSR.STAR,
  MSR.LSTAR,
  MSR.CSTAR,
  MSR.SFMASK,
  MSR.SYSENTER_CS,
  MSR.FS_BASE,
  MSR.GS_BASE,
  MSR.KERNEL_GS_BASE,
  MSR.TSC_AUX,
  // An SEV-ES guest's alone; elsewhere the core refuses it.
  MSR.GHCB,
];
/** A guest whose state is protected: those that are in its VMSA, out of KVM's reach (sev_es_recalc_msr_intercepts). */
const PASSED_PROTECTED = [MSR.EFER, MSR.PAT, MSR.SYSENTER_ESP, MSR.SYSENTER_EIP];
/** Read without an exit: the core adds the guest's offset. (Linux intercepts and does the same.) */
const READ_ONLY = [MSR.TSC];

/** Bytes of the map at which 0x2000 MSRs begin, by the upper half of their number. */
const MSR_RANGES = new Map([
  [0, 0],
  [0xc000, 0x800],
  [0xc001, 0x1000],
]);
/** The bit of an MSR's read permission in the map; the write's follows. */
const msrPermissionBit = (msr: number): number => MSR_RANGES.get(msr >>> 16)! * 8 + (msr & 0x1fff) * 2;

/** A vCPU's two maps in frames of their own. */
export class PermissionMaps {
  readonly ports: Pfn;
  readonly msrs: Pfn;
  readonly #memory: HostMemory;

  /** Errors: ENOMEM. */
  constructor(memory: HostMemory, owner: FrameOwner) {
    this.#memory = memory;
    const ports = memory.allocate(PORTS_ORDER, owner);
    const msrs = ports < 0 ? ports : memory.allocate(MSRS_ORDER, owner);
    if (msrs < 0) {
      if (ports >= 0) memory.free(pfn(ports), PORTS_ORDER);
      throw new LinuxError('ENOMEM', 'no frames for the permission maps of a vCPU');
    }
    this.ports = pfn(ports);
    this.msrs = pfn(msrs);
    memory.write(spaOf(this.ports), new Uint8Array(PORTS_BYTES).fill(0xff));
    this.apply(undefined, 'plain');
  }

  /** Intercepts what is not passed through, and of that what the filter denies (svm_recalc_msr_intercepts). */
  apply(filter: MsrPermissions | undefined, state: 'plain' | 'protected'): void {
    const map = new Uint8Array(MSRS_BYTES).fill(0xff);
    const pass = (msr: number, access: 'read' | 'write'): void => {
      if (!msrAllowed(filter, msr, access)) return;
      const bit = msrPermissionBit(msr) + (access === 'read' ? 0 : 1);
      map[bit >>> 3]! &= ~(1 << (bit & 7));
    };
    for (const msr of state === 'plain' ? PASSED_THROUGH : [...PASSED_THROUGH, ...PASSED_PROTECTED]) {
      pass(msr, 'read');
      pass(msr, 'write');
    }
    for (const msr of READ_ONLY) pass(msr, 'read');
    this.#memory.write(spaOf(this.msrs), map);
  }

  free(): void {
    this.#memory.free(this.ports, PORTS_ORDER);
    this.#memory.free(this.msrs, MSRS_ORDER);
  }
}
