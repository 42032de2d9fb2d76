/**
 * A VM's nested page tables: 4-level AMD64 tables in frames of host memory, which the cores walk (APM volume 2, 15.25; Linux
 * arch/x86/kvm/mmu/tdp_mmu.c). Leaves of 4 KiB, 2 MiB and 1 GiB; nothing is ever split, a large leaf that a zap touches goes whole.
 *
 * One root serves all vCPUs. Host memory is at most 4 GiB (DESIGN, decision 1), so an entry's high word holds nothing; entries are read and written as
 * two words. Accessed and dirty are set from the start, so that a core need not write them.
 *
 * MMIO entries are for SEV-ES guests alone: elsewhere a fault without a slot is emulated each time. Left out: no-execute leaves. Pages whose writes are logged are mapped
 * read-only until a write fault; the dirty bits of entries play no part in it.
 */
import { type Gfn, PAGE_SHIFT, type Pfn, pfn, type Spa, spaOf } from '../../../base/address.ts';
import { LinuxError } from '../../../base/errors.ts';
import type { Trace } from '../../../base/trace.ts';
import type { FrameOwner, HostMemory } from '../../../hardware/memory/host-memory.ts';
import { LEVEL_2M, LEVEL_4K, pagesPerEntry } from './guest-memory.ts';

const ENTRIES = 512;
const ROOT_LEVEL = 4;
const PRESENT = 1;
const WRITABLE = 2;
const USER = 4;
const ACCESSED = 32;
const DIRTY = 64;
const LARGE = 128;
const TABLE = PRESENT | WRITABLE | USER | ACCESSED;
/** An MMIO entry: present, but with bit 51 of the physical address, which is reserved. */
const MMIO = PRESENT | WRITABLE | USER;
const RESERVED_HIGH = 1 << 19;
/** A GPA has 48 bits: gfns beyond are not walkable. */
export const GFN_LIMIT = 2 ** (48 - PAGE_SHIFT);
/** Answers of `#leafTable`: frame 0 is never a table, nor is a frame at an odd address. */
const NO_TABLE = 0;
const LARGE_LEAF = 1;
/** Tables that one fault may need. */
const TABLES_PER_FAULT = 3;
/** What a page directory (of 2 MiB entries) maps. */
const DIRECTORY_PAGES = ENTRIES * ENTRIES;

/** What is mapped, and how many frames the tables take. */
export interface MmuStats {
  mapped4K: number;
  mapped2M: number;
  mapped1G: number;
  tables: number;
}

export class Mmu {
  readonly stats: MmuStats = { mapped4K: 0, mapped2M: 0, mapped1G: 0, tables: 0 };
  /** Bumped when a slot goes: faults in flight that looked it up are obsolete. */
  rootGeneration = 0;
  /** Bumped by `flushRemoteTlbs`: a vCPU that has seen less flushes before it enters its guest. */
  tlbGeneration = 0;

  readonly #memory: HostMemory;
  readonly #trace: Trace;
  readonly #owner: FrameOwner;
  readonly #root: Pfn;
  readonly #spare: Pfn[] = [];
  /** Tables that nothing links any more, but that a core's walk may still use until the flush. */
  readonly #unlinked: Pfn[] = [];
  /** The page table and the page directory that a walk went to last, and the first gfn of each: neighbours need no walk from the root. */
  #lastTable = 0;
  #lastTableGfn = -ENTRIES;
  #lastDirectory = 0;
  #lastDirectoryGfn = -DIRECTORY_PAGES;
  #hasMmio = false;

  /** Allocates the root. Errors: ENOMEM. */
  constructor(memory: HostMemory, trace: Trace) {
    this.#memory = memory;
    this.#trace = trace;
    this.#owner = memory.owner('nested page tables');
    const root = memory.allocate(0, this.#owner);
    if (root < 0) throw new LinuxError('ENOMEM', 'no frame for the root of the nested page tables');
    this.#root = pfn(root);
    this.stats.tables = 1;
  }

  /** nCR3. */
  get root(): Spa {
    return spaOf(this.#root);
  }

  /** Makes sure that the next `map` finds its tables (mmu_topup_memory_caches). False: no memory. */
  topUp(): boolean {
    if (this.#spare.length >= TABLES_PER_FAULT) return true;
    return this.#trace.tellAfter(() => {
      while (this.#spare.length < TABLES_PER_FAULT) {
        const frame = this.#memory.allocate(0, this.#owner);
        if (frame < 0) return false;
        this.#spare.push(pfn(frame));
        this.stats.tables++;
      }
      return true;
    });
  }

  /**
   * Maps the page of `level` around `gfn` to the one around `frame`; `topUp` was called. Whatever else was mapped there goes.
   * Returns whether anything changed. A right to write that the page has already stays: who takes it away says so (`writeProtectRange`).
   */
  map(gfn: Gfn, frame: Pfn, level: number, access: { readonly writable: boolean }): boolean {
    const table = this.#tableFor(gfn, level);
    const at = entryAt(table, gfn, level);
    const first = level === LEVEL_4K ? frame : pfn(frame - (frame % pagesPerEntry(level)));
    const entry =
      (first << PAGE_SHIFT) |
      PRESENT |
      USER |
      ACCESSED |
      (access.writable ? WRITABLE | DIRTY : 0) |
      (level > LEVEL_4K ? LARGE : 0);
    let old = this.#memory.load32(at);
    if (this.#hasMmio && old === MMIO && this.#memory.load32((at + 4) as Spa) === RESERVED_HIGH) {
      this.#memory.store32(at, 0);
      this.#memory.store32((at + 4) as Spa, 0);
      old = 0;
    }
    if (old === entry || old === (entry | WRITABLE | DIRTY)) return false;
    if ((old & PRESENT) !== 0) {
      if (isTable(old, level)) {
        this.#memory.store32(at, entry);
        this.#unlinkTable(old, level - 1);
        this.flushRemoteTlbs();
        this.#count(level, 1);
        return true;
      }
      // A mapping that only becomes writable needs no flush: a core that misses the right walks again.
      const upgrade = old === (entry & ~(WRITABLE | DIRTY));
      this.#memory.store32(at, entry);
      if (!upgrade) this.flushRemoteTlbs();
      return true;
    }
    this.#memory.store32(at, entry);
    this.#count(level, 1);
    return true;
  }

  /**
   * Marks `gfn` as MMIO: an entry with a reserved bit, so that the guest of an SEV-ES VM gets #VC and asks by its GHCB (make_mmio_spte). `topUp` was called.
   */
  mapMmio(gfn: Gfn): void {
    const at = entryAt(this.#tableFor(gfn, LEVEL_4K), gfn, LEVEL_4K);
    this.#memory.store32((at + 4) as Spa, RESERVED_HIGH);
    this.#memory.store32(at, MMIO);
    this.#hasMmio = true;
  }

  /** The leaf that maps `gfn`, or undefined. For tests, the inspector and emulation; allocates. */
  lookup(gfn: Gfn): { pfn: Pfn; level: number; writable: boolean } | undefined {
    if (gfn >= GFN_LIMIT) return undefined;
    let table = spaOf(this.#root);
    for (let level = ROOT_LEVEL; ; level--) {
      const entry = this.#memory.load32(entryAt(table, gfn, level));
      if ((entry & PRESENT) === 0) return undefined;
      if (!isTable(entry, level))
        return {
          pfn: pfn(frameOf(entry) + (gfn % pagesPerEntry(level))),
          level,
          writable: (entry & WRITABLE) !== 0,
        };
      table = spaOf(frameOf(entry));
    }
  }

  /**
   * Unmaps every page of [start, end), large ones that intersect it whole. Returns whether `flushRemoteTlbs` is due; until then
   * cores may still use what they cached.
   */
  zapRange(start: Gfn, end: Gfn): boolean {
    const limit = Math.min(end, GFN_LIMIT);
    if (start >= limit) return false;
    const zapped = this.#zapTable(spaOf(this.#root), ROOT_LEVEL, 0, start, limit);
    if (zapped && this.#trace.on)
      this.#trace.emit({ kind: 'page', who: 'kernel', what: 'unmapped', gfn: start, pages: end - start });
    return zapped;
  }

  /**
   * Takes the right to write from the pages of [start, end); large ones that intersect it go, so that they come back in pages of 4 KiB. Returns
   * whether `flushRemoteTlbs` is due.
   */
  writeProtectRange(start: Gfn, end: Gfn): boolean {
    const limit = Math.min(end, GFN_LIMIT);
    if (start >= limit) return false;
    return this.#protectTable(spaOf(this.#root), ROOT_LEVEL, 0, start, limit);
  }

  /** The same for those of the 32 pages from `first` on whose bit is set in `mask`. Allocates nothing. */
  writeProtectMasked(first: number, mask: number): boolean {
    const pagesLeft = ENTRIES - (first & (ENTRIES - 1));
    if (pagesLeft >= 32) return this.#protectMasked(first, mask);
    const ofFirst = (1 << pagesLeft) - 1;
    const due = this.#protectMasked(first, mask & ofFirst);
    return this.#protectMasked(first, mask & ~ofFirst) || due;
  }
  /** For pages of one table of 4 KiB entries. */
  #protectMasked(first: number, mask: number): boolean {
    if (mask === 0) return false;
    const lowest = (first + 31 - Math.clz32(mask & -mask)) as Gfn;
    const table = this.#inLastTable(lowest) ? this.#lastTable : this.#leafTable(lowest);
    if (table === NO_TABLE) return false;
    if (table === LARGE_LEAF) return this.zapRange(lowest, (lowest + 1) as Gfn);
    const memory = this.#memory;
    let due = false;
    for (let left = mask; left !== 0; left &= left - 1) {
      const gfn = first + 31 - Math.clz32(left & -left);
      if ((memory.clearBits32(entryAt(table, gfn, LEVEL_4K), WRITABLE | DIRTY) & WRITABLE) !== 0) due = true;
    }
    return due;
  }

  /** A slot goes or moves: its mappings, TLB entries and faults in flight as well. */
  zapSlot(slot: { readonly baseGfn: Gfn; readonly npages: number }): void {
    this.rootGeneration++;
    this.zapRange(slot.baseGfn, (slot.baseGfn + slot.npages) as Gfn);
    this.flushRemoteTlbs();
  }

  /** Every vCPU of the VM drops its nested TLB before it runs guest code again. */
  flushRemoteTlbs(): void {
    this.tlbGeneration++;
    for (let frame = this.#unlinked.pop(); frame !== undefined; frame = this.#unlinked.pop()) {
      this.#memory.free(frame, 0);
      this.stats.tables--;
    }
  }

  /** Frees every table. The VM runs no more. */
  destroy(): void {
    if (this.stats.tables === 0) return;
    this.#unlinkTable((this.#root << PAGE_SHIFT) | TABLE, ROOT_LEVEL);
    for (const frame of this.#spare.splice(0)) this.#unlinked.push(frame);
    this.flushRemoteTlbs();
  }

  /** The table that holds the entry of `level` for `gfn`; a large leaf on the way is replaced by an empty table. */
  #tableFor(gfn: Gfn, level: number): number {
    if (level === LEVEL_4K && this.#inLastTable(gfn)) return this.#lastTable;
    let table: number = spaOf(this.#root);
    let flush = false;
    for (let at = ROOT_LEVEL; at > level; at--) {
      const slot = entryAt(table, gfn, at);
      let entry = this.#memory.load32(slot);
      if ((entry & PRESENT) === 0 || !isTable(entry, at)) {
        if ((entry & PRESENT) !== 0) {
          this.#count(at, -1);
          flush = true;
        }
        const frame = this.#spare.pop();
        if (frame === undefined) throw new RangeError('Mmu.map without topUp');
        entry = (frame << PAGE_SHIFT) | TABLE;
        this.#memory.store32(slot, entry);
      }
      table = spaOf(frameOf(entry));
    }
    if (flush) this.flushRemoteTlbs();
    if (level === LEVEL_4K) this.#rememberTable(gfn, table);
    return table;
  }

  /** The table of 4 KiB entries that maps `gfn`, NO_TABLE, or LARGE_LEAF where a larger page does. */
  #leafTable(gfn: Gfn): number {
    const inDirectory = gfn - this.#lastDirectoryGfn;
    const known = inDirectory >= 0 && inDirectory < DIRECTORY_PAGES;
    let table: number = known ? this.#lastDirectory : spaOf(this.#root);
    for (let level = known ? LEVEL_2M : ROOT_LEVEL; level > LEVEL_4K; level--) {
      if (level === LEVEL_2M) {
        this.#lastDirectory = table;
        this.#lastDirectoryGfn = gfn - (gfn % DIRECTORY_PAGES);
      }
      const entry = this.#memory.load32(entryAt(table, gfn, level));
      if ((entry & PRESENT) === 0) return NO_TABLE;
      if (!isTable(entry, level)) return LARGE_LEAF;
      table = spaOf(frameOf(entry));
    }
    this.#rememberTable(gfn, table);
    return table;
  }

  #inLastTable(gfn: number): boolean {
    const page = gfn - this.#lastTableGfn;
    return page >= 0 && page < ENTRIES;
  }
  #rememberTable(gfn: number, table: number): void {
    this.#lastTable = table;
    this.#lastTableGfn = gfn - (gfn % ENTRIES);
  }

  #protectTable(table: number, level: number, first: number, start: number, end: number): boolean {
    const span = pagesPerEntry(level);
    const from = Math.max(0, Math.floor((start - first) / span));
    const to = Math.min(ENTRIES, Math.ceil((end - first) / span));
    let changed = false;
    for (let i = from; i < to; i++) {
      const at = (table + i * 8) as Spa;
      const entry = this.#memory.load32(at);
      if ((entry & PRESENT) === 0) continue;
      const begins = first + i * span;
      if (isTable(entry, level)) {
        changed = this.#protectTable(spaOf(frameOf(entry)), level - 1, begins, start, end) || changed;
      } else if (level > LEVEL_4K) {
        this.#memory.store32(at, 0);
        this.#count(level, -1);
        changed = true;
      } else if ((entry & WRITABLE) !== 0) {
        this.#memory.store32(at, entry & ~(WRITABLE | DIRTY));
        changed = true;
      }
    }
    return changed;
  }

  /** `first`: the first gfn that the table maps. */
  #zapTable(table: number, level: number, first: number, start: number, end: number): boolean {
    const span = pagesPerEntry(level);
    const from = Math.max(0, Math.floor((start - first) / span));
    const to = Math.min(ENTRIES, Math.ceil((end - first) / span));
    let zapped = false;
    for (let i = from; i < to; i++) {
      const at = (table + i * 8) as Spa;
      const entry = this.#memory.load32(at);
      if ((entry & PRESENT) === 0) continue;
      const begins = first + i * span;
      if (!isTable(entry, level)) {
        this.#memory.store32(at, 0);
        this.#count(level, -1);
        zapped = true;
      } else if (start <= begins && begins + span <= end) {
        this.#memory.store32(at, 0);
        this.#unlinkTable(entry, level - 1);
        zapped = true;
      } else if (this.#zapTable(spaOf(frameOf(entry)), level - 1, begins, start, end)) zapped = true;
    }
    return zapped;
  }

  /** Queues the table of `level` that `entry` points to, and all below it, to be freed. */
  #unlinkTable(entry: number, level: number): void {
    this.#lastTableGfn = -ENTRIES;
    this.#lastDirectoryGfn = -DIRECTORY_PAGES;
    const frame = frameOf(entry);
    const table = spaOf(frame);
    for (let i = 0; i < ENTRIES; i++) {
      const below = this.#memory.load32((table + i * 8) as Spa);
      if ((below & PRESENT) === 0) continue;
      if (isTable(below, level)) this.#unlinkTable(below, level - 1);
      else this.#count(level, -1);
    }
    this.#unlinked.push(frame);
  }

  #count(level: number, change: number): void {
    if (level === LEVEL_4K) this.stats.mapped4K += change;
    else if (level === LEVEL_2M) this.stats.mapped2M += change;
    else this.stats.mapped1G += change;
  }
}

const frameOf = (entry: number): Pfn => pfn(entry >>> PAGE_SHIFT);
const isTable = (entry: number, level: number): boolean => level > LEVEL_4K && (entry & LARGE) === 0;

/** Address of the entry of `level` for `gfn`. A gfn has more than 32 bits; `>>>` takes the low 32, enough below the root. */
function entryAt(table: number, gfn: number, level: number): Spa {
  const shift = 9 * (level - 1);
  const index = level === ROOT_LEVEL ? Math.floor(gfn / 2 ** 27) & 511 : (gfn >>> shift) & 511;
  return (table + index * 8) as Spa;
}
