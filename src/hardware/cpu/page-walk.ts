/**
 * The guest's page walk (APM volume 2, 5.3 to 5.6): linear address to system physical frame, 4 levels with leaves of 4 KiB, 2 MiB and
 * 1 GiB; NX, WP, SMEP, SMAP, reserved bits, accessed and dirty bits, error codes. Each table page and the final address go through the
 * nested tables (nested-walk.ts), in the order in which the hardware does it: nested faults of a level come before guest faults of
 * deeper ones. Accessed and dirty bits are set when the guest's checks have passed, before the final nested walk.
 *
 * In an encrypted guest the C-bit (bit 51) of the leaf says under which key data is accessed; fetches, table pages, and everything without paging are always encrypted
 * (15.34.5).
 *
 * Left out: LA57, legacy and PAE paging (throw by name where such a mode is entered), protection keys.
 */
import { NPF, SAVE } from '../../abi/vmcb.ts';
import { CR0, CR4, EFER, PF, PTE, RFLAGS } from '../../abi/x86.ts';
import { ACCESS, PRIVILEGE } from './access.ts';
import { C_BIT_HIGH, type EncryptedGuest } from './encrypted-guest.ts';
import type { Events } from './events.ts';
import { NESTED_NX, NESTED_WRITE, type NestedWalker } from './nested-walk.ts';
import type { Registers } from './registers.ts';
import { LEAVE, STATE } from './state.ts';

const CR3 = STATE.SAVE + SAVE.CR3;
const NX = 1 << 31;
const RESERVED_HIGH = 0xf0000;
const RESERVED_2M = 0x1fe000;
const RESERVED_1G = 0x3fffe000;
const RESERVED_TOP = 0x80;

export class PageWalker {
  /** Results of `translate`: system physical frame. */
  frame = 0;
  /** A write needs no further notes: guest page writable and dirty, nested page too. */
  writable = false;
  executable = false;
  user = false;
  global = false;
  /** The guest's page is larger than 4 KiB. */
  large = false;
  /** The leaf's C-bit, in an encrypted guest. */
  leafEncrypted = false;
  /** Guest physical frame. */
  gfn = 0;
  readonly #words: Int32Array;
  readonly #registers: Registers;
  readonly #events: Events;
  readonly #nested: NestedWalker;
  readonly #guest: EncryptedGuest;
  /** Index into `words` of the entry used at each level. */
  readonly #entries = new Int32Array(4);
  readonly #entryGfns = new Float64Array(4);
  readonly #onTableWrite: (frame: number) => void;

  /** `onTableWrite` hears of each frame in which accessed or dirty bits are about to be set. */
  constructor(
    registers: Registers,
    events: Events,
    nested: NestedWalker,
    guest: EncryptedGuest,
    onTableWrite: (frame: number) => void,
  ) {
    this.#words = registers.words;
    this.#registers = registers;
    this.#events = events;
    this.#nested = nested;
    this.#guest = guest;
    this.#onTableWrite = onTableWrite;
  }

  /**
   * Translates the (canonical) linear address `high:low`. Returns 0 with the results set; LEAVE.EXCEPTION with a page fault (or #VC of a page that is not
   * validated) pending; or LEAVE.VMEXIT with a nested page fault begun.
   */
  translate(low: number, high: number, access: number, privilege: number): number {
    const reason = this.locate(low, high, access, privilege);
    if (reason !== 0) return reason;
    const nested = this.#nested;
    const encrypted = this.#guest.sev && (this.leafEncrypted || access === ACCESS.FETCH);
    const final = nested.translate(this.gfn, low & 0xfff, access, NPF.HIGH_GUEST_FINAL, encrypted);
    if (final !== 0) return this.#failed(final, low, high);
    this.frame = nested.frame;
    this.writable &&= (nested.rights & NESTED_WRITE) !== 0;
    this.executable &&= (nested.rights & NESTED_NX) === 0;
    return 0;
  }

  /** The guest's own part of it: all results but `frame`, and rights without the nested tables'. */
  locate(low: number, high: number, access: number, privilege: number): number {
    const registers = this.#registers;
    if ((registers.saveWord(SAVE.CR0) & CR0.PG) === 0) return this.#withoutPaging(low);
    const encrypted = this.#guest.sev;
    const noExecuteOn = (registers.saveWord(SAVE.EFER) & EFER.NXE) !== 0;
    const smep = (registers.saveWord(SAVE.CR4) & CR4.SMEP) !== 0;
    const fault =
      (access === ACCESS.WRITE ? PF.WRITE : 0) |
      (privilege === PRIVILEGE.USER ? PF.USER : 0) |
      (access === ACCESS.FETCH && (noExecuteOn || smep) ? PF.FETCH : 0);
    const reserved = (encrypted ? RESERVED_HIGH & ~C_BIT_HIGH : RESERVED_HIGH) | (noExecuteOn ? 0 : NX);
    const words = this.#words;
    let gfn = (registers.word(CR3 + 4) & 0xffff) * 0x100000 + (registers.word(CR3) >>> 12);
    let writable = true;
    let user = true;
    let noExecute = false;
    let level = 3;
    let entryLow = 0;
    let entryHigh = 0;
    for (; ; level--) {
      const slot = slotOf(low, high, level);
      const reason = this.#nested.translate(gfn, slot * 8, ACCESS.READ, NPF.HIGH_GUEST_PAGE, encrypted);
      if (reason !== 0) return this.#failed(reason, low, high);
      const entry = this.#nested.frame * 1024 + slot * 2;
      this.#entries[level] = entry;
      this.#entryGfns[level] = gfn;
      entryLow = words[entry]!;
      entryHigh = words[entry + 1]!;
      if ((entryLow & PTE.P) === 0) return this.#events.raisePageFault(fault, low, high);
      const leaf = level === 0 || (level < 3 && (entryLow & PTE.PS) !== 0);
      if ((entryHigh & reserved) !== 0 || (entryLow & reservedLow(level, leaf)) !== 0) {
        return this.#events.raisePageFault(fault | PF.PRESENT | PF.RESERVED, low, high);
      }
      writable &&= (entryLow & PTE.W) !== 0;
      user &&= (entryLow & PTE.U) !== 0;
      noExecute ||= (entryHigh & NX) !== 0;
      gfn = (entryHigh & 0xffff) * 0x100000 + (entryLow >>> 12);
      if (leaf) break;
    }
    if (!this.#allowed(access, privilege, writable, user, noExecute)) {
      return this.#events.raisePageFault(fault | PF.PRESENT, low, high);
    }
    const reason = this.#noteUse(level, access, low, high);
    if (reason !== 0) return this.#failed(reason, low, high);
    this.gfn = level > 0 ? this.#insideLargePage(gfn, level, low) : gfn;
    const dirty = (words[this.#entries[level]!]! & PTE.D) !== 0;
    const wp = (registers.saveWord(SAVE.CR0) & CR0.WP) !== 0;
    this.writable = dirty && (writable || (privilege !== PRIVILEGE.USER && !wp));
    this.executable = !noExecute;
    this.user = user;
    this.global = (entryLow & PTE.G) !== 0 && (registers.saveWord(SAVE.CR4) & CR4.PGE) !== 0;
    this.large = level > 0;
    this.leafEncrypted = (entryHigh & C_BIT_HIGH) !== 0;
    return 0;
  }

  /** CR2 has the address where #VC says that a page is not validated. */
  #failed(reason: number, low: number, high: number): number {
    if (reason === LEAVE.EXCEPTION) {
      this.#events.faultAddress = low;
      this.#events.faultAddressHigh = high;
    }
    return reason;
  }

  #withoutPaging(low: number): number {
    this.gfn = low >>> 12;
    this.writable = true;
    this.executable = true;
    this.user = true;
    this.global = false;
    this.large = false;
    this.leafEncrypted = true;
    return 0;
  }

  #allowed(access: number, privilege: number, writable: boolean, user: boolean, noExecute: boolean): boolean {
    const registers = this.#registers;
    if (access === ACCESS.FETCH && noExecute) return false;
    if (privilege === PRIVILEGE.USER) return user && (access !== ACCESS.WRITE || writable);
    if (user) {
      const cr4 = registers.saveWord(SAVE.CR4);
      if (access === ACCESS.FETCH) {
        if ((cr4 & CR4.SMEP) !== 0) return false;
      } else if ((cr4 & CR4.SMAP) !== 0) {
        if (privilege === PRIVILEGE.IMPLICIT || (registers.flagsRest & RFLAGS.AC) === 0) return false;
      }
    }
    return access !== ACCESS.WRITE || writable || (registers.saveWord(SAVE.CR0) & CR0.WP) === 0;
  }

  /** Accessed bits of all levels, the dirty bit of the leaf; each is a write to guest memory. */
  #noteUse(leaf: number, access: number, low: number, high: number): number {
    const words = this.#words;
    for (let level = 3; level >= leaf; level--) {
      const wanted = level === leaf && access === ACCESS.WRITE ? PTE.A | PTE.D : PTE.A;
      const entry = this.#entries[level]!;
      if ((words[entry]! & wanted) === wanted) continue;
      const reason = this.#nested.translate(
        this.#entryGfns[level]!,
        slotOf(low, high, level) * 8,
        ACCESS.WRITE,
        NPF.HIGH_GUEST_PAGE,
        this.#guest.sev,
      );
      if (reason !== 0) return reason;
      this.#onTableWrite(this.#nested.frame);
      Atomics.or(words, entry, wanted);
    }
    return 0;
  }

  #insideLargePage(gfn: number, level: number, low: number): number {
    if (level === 1) return gfn - (gfn % 512) + ((low >>> 12) & 511);
    // 1 GiB: bits 29:12 are all in the low word.
    return gfn - (gfn % 0x40000) + ((low >>> 12) & 0x3ffff);
  }
}

function slotOf(low: number, high: number, level: number): number {
  if (level === 0) return (low >>> 12) & 511;
  if (level === 1) return (low >>> 21) & 511;
  if (level === 2) return (low >>> 30) | ((high & 0x7f) << 2);
  return (high >>> 7) & 511;
}

/** Bits of an entry's low word that must be 0. */
function reservedLow(level: number, leaf: boolean): number {
  if (level === 3) return RESERVED_TOP;
  if (!leaf || level === 0) return 0;
  return level === 1 ? RESERVED_2M : RESERVED_1G;
}
