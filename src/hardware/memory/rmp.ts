/**
 * The reverse map table: who owns each page of host memory (APM volume 2, 15.36; reference facts.md 3.1 and svm.md 5 and 6). 16 bytes a frame, behind 16 KiB of
 * bookkeeping, in frames of host memory that BIOS set aside. Here are the entries, the host's instructions on them (RMPUPDATE, PSMASH) and what firmware
 * does (`setEntry`); the checks of guests' accesses are in cpu/rmp-check.ts.
 *
 * | word 0 | word 1 | word 2 |
 * |---|---|---|
 * | assigned 0, 2 MiB 1, immutable 2, count 11:3, GPA 31:12 | GPA 50:32 in 18:0, ASID 28:19, VMSA 29, validated 30, lock 31 | permissions of VMPL0 to 3, a byte each |
 *
 * The entry of a 2 MiB page is its first frame's; the 511 others only have `assigned`. `count` is kept at the first frame of a 2 MiB region: how many of its 511
 * other frames are assigned as 4 KiB pages. An entry that is not assigned is all zero, but for count and HV-Fixed's immutable.
 *
 * Left out: the segmented table, RMPREAD.
 */
import { PAGE_SIZE, type Pfn, type Spa } from '../../base/address.ts';

/** Results of RMPUPDATE and PSMASH. */
export const RMP_RESULT = {
  SUCCESS: 0,
  FAIL_INPUT: 1,
  FAIL_PERMISSION: 2,
  FAIL_INUSE: 3,
  FAIL_OVERLAP: 4,
  /** PSMASH of what is no 2 MiB page. */
  FAIL_EXPANSION: 7,
} as const;

export const RMP_WORD0 = { ASSIGNED: 1, LARGE: 2, IMMUTABLE: 4, COUNT_SHIFT: 3, COUNT: 0xff8 } as const;
export const RMP_WORD1 = {
  GPA_HIGH: 0x7ffff,
  ASID_SHIFT: 19,
  ASID: 0x3ff,
  VMSA: 1 << 29,
  VALIDATED: 1 << 30,
  LOCK: 1 << 31,
} as const;
/** Permissions of a fresh guest page: everything for VMPL0. Read 1, write 2, execute by users 4, by the supervisor 8, shadow stack 16. */
const VMPL0_ALL = 0x1f;

const BOOKKEEPING = 16 * 1024;
const LARGE_FRAMES = 512;

/** What RMPUPDATE takes. `gpa`: bytes. */
export interface RmpState {
  assigned: boolean;
  /** 2 MiB. */
  large: boolean;
  immutable: boolean;
  gpa: number;
  asid: number;
}

export interface RmpEntry extends RmpState {
  vmsa: boolean;
  validated: boolean;
  /** A byte a VMPL, VMPL0 lowest. */
  permissions: number;
}

export type PageState =
  | 'hypervisor'
  | 'hv-fixed'
  | 'reclaim'
  | 'firmware'
  | 'context'
  | 'metadata'
  | 'pre-guest'
  | 'pre-swap'
  | 'guest-invalid'
  | 'guest-valid';

/** What the table needs of host memory. */
export interface RmpMemory {
  readonly words: Int32Array;
  readonly frameCount: number;
  /** The frame is assigned now, or not. */
  noteAssigned(frame: number, assigned: boolean): void;
  /** Translations to these frames hold no longer. */
  forgetTranslations(frame: number, frames: number): void;
}

/** Frames that the table of a memory of `frameCount` frames takes. */
export const rmpFrames = (frameCount: number): number =>
  Math.ceil((BOOKKEEPING + frameCount * 16) / PAGE_SIZE);

export class Rmp {
  /** RMP_BASE, and the first byte behind RMP_END. */
  readonly base: Spa;
  readonly end: Spa;
  /** Firmware has initialised the table (SNP_INIT): checks are on. */
  initialised = false;
  readonly words: Int32Array;
  readonly #memory: RmpMemory;
  readonly #entries: number;

  /** The table lies at `frame` of `memory`, all zero. */
  constructor(memory: RmpMemory, frame: Pfn) {
    this.#memory = memory;
    this.words = memory.words;
    this.base = (frame * PAGE_SIZE) as Spa;
    this.end = (this.base + rmpFrames(memory.frameCount) * PAGE_SIZE) as Spa;
    this.#entries = (this.base + BOOKKEEPING) / 4;
  }

  /** SNP_INIT: the table's own frames become firmware's, everything else the hypervisor's. */
  initialise(): void {
    this.reset();
    this.initialised = true;
    for (let frame = this.base / PAGE_SIZE; frame < this.end / PAGE_SIZE; frame++)
      this.setEntry(frame as Pfn, { ...HYPERVISOR_ENTRY, assigned: true, immutable: true });
  }

  /** SNP_SHUTDOWN or a reset of the machine. */
  reset(): void {
    this.initialised = false;
    for (let frame = 0; frame < this.#memory.frameCount; frame++) {
      const at = this.#entries + frame * 4;
      if ((this.words[at]! & RMP_WORD0.ASSIGNED) !== 0) this.#memory.noteAssigned(frame, false);
      this.words.fill(0, at, at + 4);
    }
    this.#memory.forgetTranslations(0, this.#memory.frameCount);
  }

  /** Index into `words` of the entry that counts for a frame: the first one's in a 2 MiB page. */
  indexOf(frame: number): number {
    const first = this.#entries + (frame - (frame % LARGE_FRAMES)) * 4;
    return (this.words[first]! & 3) === 3 ? first : this.#entries + frame * 4;
  }

  assigned(frame: Pfn): boolean {
    return (this.words[this.indexOf(frame)]! & RMP_WORD0.ASSIGNED) !== 0;
  }

  isLarge(frame: Pfn): boolean {
    return (this.words[this.indexOf(frame)]! & 3) === 3;
  }

  /** Whether some frame of the 2 MiB region that `frame` is in is assigned. */
  regionAssigned(frame: number): boolean {
    const first = this.#entries + (frame - (frame % LARGE_FRAMES)) * 4;
    return (this.words[first]! & (RMP_WORD0.ASSIGNED | RMP_WORD0.COUNT)) !== 0;
  }

  /** Index into `words` of a frame's own entry, which inside of a 2 MiB page says nothing but assigned. */
  ownIndexOf(frame: number): number {
    return this.#entries + frame * 4;
  }

  /** The entry that counts for a frame. */
  entry(frame: Pfn): RmpEntry {
    return this.entryAt(this.indexOf(frame));
  }

  /** The entry at an index into `words`. */
  entryAt(index: number): RmpEntry {
    const { words } = this;
    const low = words[index]!;
    const high = words[index + 1]!;
    return {
      assigned: (low & RMP_WORD0.ASSIGNED) !== 0,
      large: (low & RMP_WORD0.LARGE) !== 0,
      immutable: (low & RMP_WORD0.IMMUTABLE) !== 0,
      gpa: gpaOf(low, high),
      asid: (high >>> RMP_WORD1.ASID_SHIFT) & RMP_WORD1.ASID,
      vmsa: (high & RMP_WORD1.VMSA) !== 0,
      validated: (high & RMP_WORD1.VALIDATED) !== 0,
      permissions: words[index + 2]!,
    };
  }

  /** The GPA, bytes, of the entry at an index into `words`. */
  gpaAt(index: number): number {
    return gpaOf(this.words[index]!, this.words[index + 1]!);
  }

  /** The page state of a frame. */
  state(frame: Pfn): PageState {
    return pageStateOf(this.entry(frame));
  }

  /** Firmware's write of an entry; with `large`, of a 2 MiB page. */
  setEntry(frame: Pfn, entry: RmpEntry): void {
    const marks = (entry.vmsa ? RMP_WORD1.VMSA : 0) | (entry.validated ? RMP_WORD1.VALIDATED : 0);
    this.#write(frame, entry, marks, entry.permissions);
  }

  /** Firmware takes a Pre-Guest page into its guest: Guest-Valid. VMPL0's permissions stay. No translation to the page can exist. `at`: index of its entry. */
  enterGuest(at: number, permissions: number, vmsa: boolean): void {
    const { words } = this;
    words[at] = words[at]! & ~RMP_WORD0.IMMUTABLE;
    words[at + 1] = words[at + 1]! | RMP_WORD1.VALIDATED | (vmsa ? RMP_WORD1.VMSA : 0);
    words[at + 2] = (words[at + 2]! & 0xff) | (permissions & ~0xff);
  }

  /** RMPUPDATE of the page at `spa`, by the host. Returns RMP_RESULT. */
  rmpupdate(spa: Spa, next: RmpState): number {
    const frame = spa / PAGE_SIZE;
    const { words } = this;
    if (!Number.isInteger(frame) || frame < 0) return RMP_RESULT.FAIL_INPUT;
    if (next.large && frame % LARGE_FRAMES !== 0) return RMP_RESULT.FAIL_INPUT;
    if (!next.assigned && (next.immutable || next.asid !== 0)) return RMP_RESULT.FAIL_INPUT;
    if (frame + (next.large ? LARGE_FRAMES : 1) > this.#memory.frameCount) return RMP_RESULT.FAIL_INPUT;
    const at = this.indexOf(frame);
    const low = words[at]!;
    if ((words[at + 1]! & RMP_WORD1.LOCK) !== 0) return RMP_RESULT.FAIL_INUSE;
    if ((low & RMP_WORD0.IMMUTABLE) !== 0) return RMP_RESULT.FAIL_PERMISSION;
    const insideLarge = (low & 3) === 3;
    if (insideLarge && !next.large) return RMP_RESULT.FAIL_OVERLAP;
    if (next.large && !insideLarge && this.regionAssigned(frame)) return RMP_RESULT.FAIL_OVERLAP;
    const high = words[at + 1]!;
    // Both are assigned then, and by the checks above of one size.
    const isSame =
      next.asid !== 0 &&
      ((high >>> RMP_WORD1.ASID_SHIFT) & RMP_WORD1.ASID) === next.asid &&
      gpaOf(low, high) === next.gpa;
    if (isSame) this.#write(frame, next, high, words[at + 2]!);
    else this.#write(frame, next, 0, VMPL0_ALL);
    return RMP_RESULT.SUCCESS;
  }

  /** PSMASH of the 2 MiB page at `spa` into 512 of 4 KiB with the same owner and rights. Returns RMP_RESULT. */
  psmash(spa: Spa): number {
    const frame = spa / PAGE_SIZE;
    if (frame % LARGE_FRAMES !== 0) return RMP_RESULT.FAIL_INPUT;
    if (frame < 0 || frame + LARGE_FRAMES > this.#memory.frameCount) return RMP_RESULT.FAIL_INPUT;
    const { words } = this;
    const at = this.#entries + frame * 4;
    const low = words[at]!;
    const high = words[at + 1]!;
    if ((high & RMP_WORD1.LOCK) !== 0) return RMP_RESULT.FAIL_INUSE;
    if ((low & 3) !== 3) return RMP_RESULT.FAIL_EXPANSION;
    if ((low & RMP_WORD0.IMMUTABLE) !== 0) return RMP_RESULT.FAIL_PERMISSION;
    const gpa = gpaOf(low, high);
    for (let i = 0; i < LARGE_FRAMES; i++) {
      const page = gpa / PAGE_SIZE + i;
      const to = at + i * 4;
      words[to] = RMP_WORD0.ASSIGNED | ((page & 0xfffff) << 12);
      words[to + 1] = (high & ~RMP_WORD1.GPA_HIGH) | Math.floor(page / 0x100000);
      words[to + 2] = words[at + 2]!;
      words[to + 3] = 0;
    }
    words[at] = words[at]! | ((LARGE_FRAMES - 1) << RMP_WORD0.COUNT_SHIFT);
    this.#memory.forgetTranslations(frame, LARGE_FRAMES);
    return RMP_RESULT.SUCCESS;
  }

  /** Sets or clears Validated of the page that `frame` lies in (PVALIDATE). */
  setValidated(frame: number, validated: boolean): void {
    const at = this.indexOf(frame);
    const { words } = this;
    words[at + 1] = validated ? words[at + 1]! | RMP_WORD1.VALIDATED : words[at + 1]! & ~RMP_WORD1.VALIDATED;
    if (!validated) this.#forgetPage(frame);
  }

  /** Permissions of a VMPL, and for VMPL0's callers the VMSA mark (RMPADJUST). `vmsa` undefined: as it is. */
  setPermissions(frame: number, vmpl: number, mask: number, vmsa: boolean | undefined): void {
    const at = this.indexOf(frame);
    const { words } = this;
    const shift = vmpl * 8;
    words[at + 2] = (words[at + 2]! & ~(0xff << shift)) | ((mask & 0xff) << shift);
    if (vmsa !== undefined)
      words[at + 1] = vmsa ? words[at + 1]! | RMP_WORD1.VMSA : words[at + 1]! & ~RMP_WORD1.VMSA;
    this.#forgetPage(frame);
  }

  #forgetPage(frame: number): void {
    if (this.isLarge(frame as Pfn))
      this.#memory.forgetTranslations(frame - (frame % LARGE_FRAMES), LARGE_FRAMES);
    else this.#memory.forgetTranslations(frame, 1);
  }

  /** `marks`: VMSA and VALIDATED, as word 1 has them. */
  #write(frame: number, state: RmpState, marks: number, permissions: number): void {
    const { words } = this;
    const at = this.#entries + frame * 4;
    const wasLarge = (words[at]! & 3) === 3;
    const frames = state.large || wasLarge ? LARGE_FRAMES : 1;
    if (frames === 1) this.#count(frame, state.assigned);
    else {
      const others = state.assigned ? RMP_WORD0.ASSIGNED : 0;
      for (let i = 1; i < LARGE_FRAMES; i++) {
        words.fill(0, at + i * 4, at + i * 4 + 4);
        words[at + i * 4] = others;
      }
      words[at] = words[at]! & ~RMP_WORD0.COUNT;
    }
    const page = state.assigned ? state.gpa / PAGE_SIZE : 0;
    words[at] =
      (words[at]! & RMP_WORD0.COUNT) |
      (state.assigned ? RMP_WORD0.ASSIGNED | (state.large ? RMP_WORD0.LARGE : 0) : 0) |
      (state.immutable ? RMP_WORD0.IMMUTABLE : 0) |
      ((page & 0xfffff) << 12);
    words[at + 1] =
      Math.floor(page / 0x100000) |
      (state.asid << RMP_WORD1.ASID_SHIFT) |
      (marks & (RMP_WORD1.VMSA | RMP_WORD1.VALIDATED));
    words[at + 2] = state.assigned ? permissions : 0;
    words[at + 3] = 0;
    for (let i = 0; i < frames; i++) this.#memory.noteAssigned(frame + i, state.assigned);
    this.#memory.forgetTranslations(frame, frames);
  }

  /** Keeps the count of the 2 MiB region when a frame of it other than the first becomes assigned or not. */
  #count(frame: number, assigned: boolean): void {
    const { words } = this;
    const inner = frame % LARGE_FRAMES;
    if (inner === 0) return;
    const was = (words[this.#entries + frame * 4]! & RMP_WORD0.ASSIGNED) !== 0;
    if (was === assigned) return;
    const first = this.#entries + (frame - inner) * 4;
    words[first] = words[first]! + (assigned ? 1 << RMP_WORD0.COUNT_SHIFT : -(1 << RMP_WORD0.COUNT_SHIFT));
  }
}

/** The entry of a page of the hypervisor. */
export const HYPERVISOR_ENTRY: RmpEntry = {
  assigned: false,
  large: false,
  immutable: false,
  gpa: 0,
  asid: 0,
  vmsa: false,
  validated: false,
  permissions: 0,
};

/** The page state that firmware's rules speak of. */
export function pageStateOf({ assigned, asid, immutable, validated, vmsa, gpa }: RmpEntry): PageState {
  if (!assigned) return immutable ? 'hv-fixed' : 'hypervisor';
  if (asid === 0) {
    if (!immutable) return 'reclaim';
    if (gpa !== 0) return 'metadata';
    return vmsa ? 'context' : 'firmware';
  }
  if (immutable) return validated ? 'pre-swap' : 'pre-guest';
  return validated ? 'guest-valid' : 'guest-invalid';
}

/** `low`, `high`: words 0 and 1. */
function gpaOf(low: number, high: number): number {
  return ((low >>> 12) + (high & RMP_WORD1.GPA_HIGH) * 0x100000) * PAGE_SIZE;
}
