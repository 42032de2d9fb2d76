/**
 * The RMP checks of a guest's memory accesses, after all paging checks and in the manual's order (APM volume 2, 15.36.10; reference svm.md, section 5):
 * ownership, then Validated, then VMPL permissions. A page that passes shows what the guest's key, or none, makes of it (memory-encryption.ts).
 *
 * | guest, access | check | fault |
 * |---|---|---|
 * | not SNP-active, or C-bit clear: write | Hypervisor-Owned | nested, bit 31 |
 * | SNP-active, C-bit set | Guest-Owned, Reverse-Map, Mutable, Page-Size | nested, bits 31 and 34 |
 * | | Validated | #VC 0x404 |
 * | | VMPL | nested, bits 31, 34 and 36 |
 */
import { NPF } from '../../abi/vmcb.ts';
import { VECTOR } from '../../abi/x86.ts';
import type { Pfn } from '../../base/address.ts';
import { FRAME_FLAG, type HostMemory } from '../memory/host-memory.ts';
import { RMP_WORD0, RMP_WORD1, type Rmp } from '../memory/rmp.ts';
import { ACCESS } from './access.ts';
import type { EncryptedGuest } from './encrypted-guest.ts';
import type { Events } from './events.ts';
import type { Registers } from './registers.ts';

/** #VC error code of an access to a page that is not validated. */
export const VC_PAGE_NOT_VALIDATED = 0x404;

const READ = 1;
const WRITE = 2;
const EXECUTE_USER = 4;
const EXECUTE_SUPERVISOR = 8;

export class RmpCheck {
  readonly #memory: HostMemory;
  readonly #rmp: Rmp | undefined;
  readonly #guest: EncryptedGuest;
  readonly #events: Events;
  readonly #registers: Registers;

  constructor(memory: HostMemory, guest: EncryptedGuest, events: Events, registers: Registers) {
    this.#memory = memory;
    this.#rmp = memory.rmp;
    this.#guest = guest;
    this.#events = events;
    this.#registers = registers;
  }

  /**
   * An access to byte `offset` of guest frame `gfn`, which the nested tables map to `frame`, by a leaf of 4 KiB or `large`. `stage` is as in
   * NestedWalker.translate, `encrypted` the effective C-bit. 0: it may go on, and the frame shows what this guest sees. LEAVE.EXCEPTION: #VC. LEAVE.VMEXIT.
   */
  check(
    frame: number,
    large: boolean,
    gfn: number,
    offset: number,
    access: number,
    stage: number,
    encrypted: boolean,
  ): number {
    const rmp = this.#rmp;
    if (rmp?.initialised === true) {
      const reason =
        encrypted && this.#guest.snp
          ? this.#privateAccess(rmp, frame, large, gfn, offset, access, stage)
          : this.#sharedAccess(rmp, frame, large, gfn, offset, access, stage);
      if (reason !== 0) return reason;
    }
    const key = encrypted ? this.#guest.key : 0;
    if (key !== 0 || (this.#memory.frameFlags[frame]! & FRAME_FLAG.ENCRYPTED) !== 0)
      this.#memory.encryption.open(frame as Pfn, key);
    return 0;
  }

  /** PVALIDATE and RMPADJUST: ownership alone, for an access that has passed the nested tables. 0 or LEAVE.VMEXIT. */
  checkOwner(frame: number, gfn: number, offset: number, access: number): number {
    const rmp = this.#rmp!;
    const at = rmp.indexOf(frame);
    if (this.#owned(rmp, at, frame, gfn)) return 0;
    return this.#violation(access, NPF.HIGH_GUEST_FINAL | NPF.HIGH_ENC, gfn, offset);
  }

  /** The nested fault of a request for 4 KiB of a larger page. */
  sizeMismatch(gfn: number, offset: number, access: number): number {
    return this.#violation(access, NPF.HIGH_GUEST_FINAL | NPF.HIGH_ENC | NPF.HIGH_SIZEM, gfn, offset);
  }

  #sharedAccess(
    rmp: Rmp,
    frame: number,
    large: boolean,
    gfn: number,
    offset: number,
    access: number,
    stage: number,
  ): number {
    if (access !== ACCESS.WRITE) return 0;
    const owned = large ? rmp.regionAssigned(frame) : rmp.assigned(frame as Pfn);
    return owned ? this.#violation(access, stage, gfn, offset) : 0;
  }

  #privateAccess(
    rmp: Rmp,
    frame: number,
    large: boolean,
    gfn: number,
    offset: number,
    access: number,
    stage: number,
  ): number {
    const at = rmp.indexOf(frame);
    const isLarge = (rmp.words[at]! & RMP_WORD0.LARGE) !== 0;
    if (!this.#owned(rmp, at, frame, gfn) || large !== isLarge)
      return this.#violation(access, stage | NPF.HIGH_ENC, gfn, offset);
    if ((rmp.words[at + 1]! & RMP_WORD1.VALIDATED) === 0)
      return this.#events.raiseWith(VECTOR.VC, VC_PAGE_NOT_VALIDATED);
    const mask = (rmp.words[at + 2]! >>> (8 * this.#guest.vmpl)) & 0xff;
    // A mask that allows writes without reads allows nothing.
    const allowed = (mask & (READ | WRITE)) === WRITE ? 0 : mask;
    if ((allowed & this.#needs(access)) === 0)
      return this.#violation(access, stage | NPF.HIGH_ENC | NPF.HIGH_VMPL, gfn, offset);
    return 0;
  }

  /** Guest-Owned, Reverse-Map, Mutable. */
  #owned(rmp: Rmp, at: number, frame: number, gfn: number): boolean {
    const low = rmp.words[at]!;
    const high = rmp.words[at + 1]!;
    if ((low & (RMP_WORD0.ASSIGNED | RMP_WORD0.IMMUTABLE)) !== RMP_WORD0.ASSIGNED) return false;
    if (((high >>> RMP_WORD1.ASID_SHIFT) & RMP_WORD1.ASID) !== this.#guest.asid) return false;
    const owner = (low >>> 12) + (high & RMP_WORD1.GPA_HIGH) * 0x100000;
    const inside = (low & RMP_WORD0.LARGE) !== 0 ? frame % 512 : 0;
    return owner + inside === gfn;
  }

  #needs(access: number): number {
    if (access === ACCESS.READ) return READ;
    if (access === ACCESS.WRITE) return WRITE;
    return this.#registers.cpl === 3 ? EXECUTE_USER : EXECUTE_SUPERVISOR;
  }

  #violation(access: number, stage: number, gfn: number, offset: number): number {
    const low =
      NPF.RMP |
      NPF.PRESENT |
      NPF.USER |
      (access === ACCESS.WRITE ? NPF.WRITE : 0) |
      (access === ACCESS.FETCH ? NPF.FETCH : 0);
    return this.#events.nestedFault(low, stage, gfn, offset);
  }
}
