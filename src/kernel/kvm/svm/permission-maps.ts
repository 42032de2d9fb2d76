/**
 * The maps that say which ports and MSRs of a guest are intercepted (APM volume 2, 15.10 and 15.11; Linux svm.c, init_msrpm): every
 * port, and every MSR but those that live in the VMCB and change nothing for the host.
 */
import { MSR } from '../../../abi/x86.ts';
import { type Pfn, pfn, type Spa, spaOf } from '../../../base/address.ts';
import { LinuxError } from '../../../base/errors.ts';
import type { FrameOwner, HostMemory } from '../../../hardware/memory/host-memory.ts';
import { type MsrPermissions, msrAllowed } from '../msr-filter.ts';

const PORTS_ORDER = 2;
const MSRS_ORDER = 1;
const PORTS_BYTES = 0x3000;
const MSRS_BYTES = 0x2000;

/** MSRs that every guest reads and writes without an exit. */
const PASSED_THROUGH = [
  MSR.STAR,
  MSR.LSTAR,
  MSR.CSTAR,
  MSR.SFMASK,
  MSR.SYSENTER_CS,
  MSR.FS_BASE,
  MSR.GS_BASE,
  MSR.KERNEL_GS_BASE,
  // An SEV-ES guest's alone; elsewhere the core refuses it.
  MSR.GHCB,
];
/** A guest whose state is protected: those that are in its VMSA, out of KVM's reach (sev_es_recalc_msr_intercepts). */
const PASSED_ENCRYPTED = [MSR.EFER, MSR.PAT, MSR.SYSENTER_ESP, MSR.SYSENTER_EIP];
/** A plain guest reads them without an exit: the core adds the guest's offset. (Linux intercepts and does the same.) */
const READ_ONLY = [MSR.TSC];

/** Bytes of the map at which 0x2000 MSRs begin, by the upper half of their number. */
const MSR_RANGES = new Map([
  [0, 0],
  [0xc000, 0x800],
  [0xc001, 0x1000],
]);
const MSRS_IN_RANGE = 0x2000;
/** The bit of an MSR's read permission in the map; the write's follows. */
const msrPermissionBit = (msr: number): number => MSR_RANGES.get(msr >>> 16)! * 8 + (msr & 0x1fff) * 2;

/** What of a guest with protected state decides as well. */
export interface EncryptedGuest {
  /** TSC_AUX is the guest's own, in its VMSA, and its CPUID has a use for it. */
  readonly passesTscAux: boolean;
}

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
    this.apply(undefined, undefined);
  }

  /** Intercepts what is not passed through, and of that what the filter denies (svm_recalc_msr_intercepts). `encrypted`: of an SEV-ES or SNP guest. */
  apply(filter: MsrPermissions | undefined, encrypted: EncryptedGuest | undefined): void {
    const map = new Uint8Array(MSRS_BYTES).fill(0xff);
    const pass = (msr: number, access: 'read' | 'write'): void => {
      if (!msrAllowed(filter, msr, access)) return;
      const bit = msrPermissionBit(msr) + (access === 'read' ? 0 : 1);
      map[bit >>> 3]! &= ~(1 << (bit & 7));
    };
    const passFully = (msr: number): void => {
      pass(msr, 'read');
      pass(msr, 'write');
    };
    for (const msr of PASSED_THROUGH) passFully(msr);
    if (encrypted === undefined) for (const msr of READ_ONLY) pass(msr, 'read');
    else for (const msr of PASSED_ENCRYPTED) passFully(msr);
    if (encrypted?.passesTscAux === true) passFully(MSR.TSC_AUX);
    this.#memory.write(spaOf(this.msrs), map);
  }

  /** msr_write_intercepted: an exit takes a write of the MSR to KVM. */
  interceptsWrite(msr: number): boolean {
    if ((msr & 0xffff) >= MSRS_IN_RANGE || !MSR_RANGES.has(msr >>> 16)) return true;
    const bit = msrPermissionBit(msr) + 1;
    const word = this.#memory.load32((spaOf(this.msrs) + (bit >>> 5) * 4) as Spa);
    return ((word >>> (bit & 31)) & 1) !== 0;
  }

  free(): void {
    this.#memory.free(this.ports, PORTS_ORDER);
    this.#memory.free(this.msrs, MSRS_ORDER);
  }
}
