/**
 * Nested page tables (APM volume 2, 15.25; reference: AMD's "nested paging"): guest physical frame to system physical frame, with
 * rights, accessed and dirty bits, and the exit information of a nested page fault. 4 levels in the host's long-mode format; leaves
 * of 4 KiB, 2 MiB, 1 GiB. Translations are kept in a small cache until `flush`, as a TLB may: the host flushes by TLB_CONTROL when it
 * takes something away. What the RMP says of the page is asked at each translation (rmp-check.ts).
 *
 * Left out: 5 levels, GMET, memory types.
 */
import { NPF, VMEXIT } from '../../abi/vmcb.ts';
import { PTE, VECTOR } from '../../abi/x86.ts';
import { NotImplementedError } from '../../base/errors.ts';
import { ACCESS } from './access.ts';
import type { EncryptedGuest } from './encrypted-guest.ts';
import type { Events } from './events.ts';
import type { RmpCheck } from './rmp-check.ts';

const LEVELS = 4;
/** Frames of 4 KiB that an entry of each level maps. */
const FRAMES_BELOW = [1, 2 ** 9, 2 ** 18, 2 ** 27];
const CACHE_ENTRIES = 1024;
const NX = 1 << 31;
/** Physical addresses have 48 bits: bits 51:48, in the high word. */
const RESERVED_HIGH = 0xf0000;
/** Bits 20:13 of a 2 MiB leaf and 29:13 of a 1 GiB leaf; bits 8:7 of an entry of the top level. */
const RESERVED_2M = 0x1fe000;
const RESERVED_1G = 0x3fffe000;
const RESERVED_TOP = 0x180;
const GPA_FRAMES = 2 ** 36;
const LAST_EPOCH = 2 ** 53;

/** Rights of a nested translation. WRITE: writable and dirty, so that nothing has to be noted for a write. */
export const NESTED_WRITE = 1;
export const NESTED_NX = 2;
/** The leaf is larger than 4 KiB. */
export const NESTED_LARGE = 4;

export interface NestedMemory {
  readonly words: Int32Array;
  readonly frameCount: number;
}

export class NestedWalker {
  /** Result of `translate`: the frame, and its rights. */
  frame = 0;
  rights = 0;
  /** Frame of the root table. */
  root = 0;
  readonly #memory: NestedMemory;
  readonly #events: Events;
  readonly #guest: EncryptedGuest;
  readonly #rmp: RmpCheck;
  /** `#epoch` and gfn of each translation: a flush begins another epoch. */
  readonly #tags = new Float64Array(CACHE_ENTRIES).fill(-1);
  readonly #frames = new Int32Array(CACHE_ENTRIES);
  readonly #rights = new Uint8Array(CACHE_ENTRIES);
  #epoch = 0;
  #used = false;

  constructor(memory: NestedMemory, events: Events, guest: EncryptedGuest, rmp: RmpCheck) {
    this.#memory = memory;
    this.#events = events;
    this.#guest = guest;
    this.#rmp = rmp;
  }

  /**
   * Translates the guest physical frame `gfn` for an access (ACCESS.READ, WRITE, FETCH) at `offset` of it. `stage` is
   * NPF.HIGH_GUEST_FINAL or NPF.HIGH_GUEST_PAGE, `encrypted` the effective C-bit. Returns 0, with `frame` and `rights` set; LEAVE.VMEXIT; or
   * LEAVE.EXCEPTION with #VC pending, where an SNP guest's page is not validated.
   */
  translate(gfn: number, offset: number, access: number, stage: number, encrypted: boolean): number {
    const reason = this.translateNested(gfn, offset, access, stage, encrypted);
    if (reason !== 0) return reason;
    const large = (this.rights & NESTED_LARGE) !== 0;
    return this.#rmp.check(this.frame, large, gfn, offset, access, stage, encrypted);
  }

  /** The same by the nested tables alone, without the RMP's say (PVALIDATE, RMPADJUST). */
  translateNested(gfn: number, offset: number, access: number, stage: number, encrypted: boolean): number {
    const at = gfn & (CACHE_ENTRIES - 1);
    if (this.#tags[at] === this.#epoch + gfn) {
      const rights = this.#rights[at]!;
      if (
        access === ACCESS.READ ||
        (access === ACCESS.WRITE ? (rights & NESTED_WRITE) !== 0 : (rights & NESTED_NX) === 0)
      ) {
        this.frame = this.#frames[at]!;
        this.rights = rights;
        return 0;
      }
    }
    const error = this.#walk(gfn, access);
    if (error !== 0) {
      if ((error & NPF.RESERVED) !== 0 && this.#guest.es)
        return this.#events.raiseWith(VECTOR.VC, VMEXIT.NPF);
      const enc = encrypted && this.#guest.snp ? NPF.HIGH_ENC : 0;
      return this.#events.nestedFault(error, stage | enc, gfn, offset);
    }
    this.#tags[at] = this.#epoch + gfn;
    this.#frames[at] = this.frame;
    this.#rights[at] = this.rights;
    this.#used = true;
    return 0;
  }

  flush(): void {
    if (!this.#used) return;
    this.#used = false;
    this.#epoch += GPA_FRAMES;
    if (this.#epoch < LAST_EPOCH) return;
    this.#epoch = 0;
    this.#tags.fill(-1);
  }

  /** 0, or the low word of EXITINFO1. Sets `frame` and `rights`. */
  #walk(gfn: number, access: number): number {
    const { words, frameCount } = this.#memory;
    const fault =
      NPF.USER | (access === ACCESS.WRITE ? NPF.WRITE : 0) | (access === ACCESS.FETCH ? NPF.FETCH : 0);
    if (gfn >= GPA_FRAMES) return fault;
    let table = this.root;
    let writable = true;
    let noExecute = false;
    for (let level = LEVELS - 1; ; level--) {
      if (table >= frameCount) return fault | NPF.PRESENT | NPF.RESERVED;
      const entry = table * 1024 + (Math.floor(gfn / FRAMES_BELOW[level]!) & 511) * 2;
      const low = words[entry]!;
      const high = words[entry + 1]!;
      if ((low & PTE.P) === 0) return fault;
      const isLeaf = level === 0 || (level < 3 && (low & PTE.PS) !== 0);
      if ((high & RESERVED_HIGH) !== 0 || (low & reservedLow(level, isLeaf)) !== 0) {
        return fault | NPF.PRESENT | NPF.RESERVED;
      }
      writable &&= (low & PTE.W) !== 0;
      noExecute ||= (high & NX) !== 0;
      const denied =
        (low & PTE.U) === 0 ||
        (access === ACCESS.WRITE && !writable) ||
        (access === ACCESS.FETCH && noExecute);
      if (denied) return fault | NPF.PRESENT;
      if ((low & PTE.A) === 0) Atomics.or(words, entry, PTE.A);
      const frame = (high & 0xffff) * 0x100000 + (low >>> 12);
      if (!isLeaf) {
        table = frame;
        continue;
      }
      let dirty = (low & PTE.D) !== 0;
      if (access === ACCESS.WRITE && !dirty) {
        Atomics.or(words, entry, PTE.D);
        dirty = true;
      }
      const below = FRAMES_BELOW[level]!;
      this.frame = frame - (frame % below) + (gfn % below);
      if (this.frame >= frameCount) {
        throw new NotImplementedError(
          `an access to system physical frame 0x${this.frame.toString(16)}, where no host memory is`,
        );
      }
      this.rights =
        (writable && dirty ? NESTED_WRITE : 0) | (noExecute ? NESTED_NX : 0) | (level > 0 ? NESTED_LARGE : 0);
      return 0;
    }
  }
}

function reservedLow(level: number, isLeaf: boolean): number {
  if (level === 3) return RESERVED_TOP;
  if (!isLeaf || level === 0) return 0;
  return level === 1 ? RESERVED_2M : RESERVED_1G;
}
