/**
 * Where in a slot a large page may be used (Linux arch/x86/kvm/x86.c kvm_alloc_memslot_metadata; arch/x86/kvm/mmu/mmu.c
 * disallow_lpage and KVM_LPAGE_MIXED_FLAG). For each large page of 2 MiB and 1 GiB a word: 0 allows it, bit 31 says that its gfns are
 * partly private, the rest counts other reasons.
 *
 * Large pages that the slot does not hold whole are disallowed from the start, for the slot's head or tail, whatever mixed tracking
 * says of them.
 */
import type { Gfn } from '../../base/address.ts';
import { pagesPerEntry } from './mmu/guest-memory.ts';
import type { PrivateRanges } from './private-ranges.ts';

const MIXED = 1 << 31;
const LEVELS = [2, 3] as const;

/** The part of a slot that this needs; `userGfn` is the page number of its user-space address. */
export interface SlotRange {
  readonly baseGfn: number;
  readonly npages: number;
  readonly userGfn: number;
}

export class LargePages {
  readonly #slot: SlotRange;
  /** disallow_lpage of levels 2 and 3. */
  readonly #words: readonly [Int32Array, Int32Array];

  constructor(slot: SlotRange, attributes: PrivateRanges) {
    this.#slot = slot;
    this.#words = [this.#initial(2), this.#initial(3)];
    this.#markMixed(attributes);
  }

  /** The whole word counts, not the mixed bit alone. */
  disallowed(gfn: Gfn, level: number): boolean {
    return this.#words[level - 2]![this.#index(gfn, level)] !== 0;
  }

  /**
   * Before [start, end) changes: large pages that straddle its ends count as mixed, so that none is mapped meanwhile (7.2's
   * kvm_arch_pre_set_memory_attributes).
   */
  beforeChange(start: Gfn, end: Gfn): void {
    for (const level of LEVELS) {
      this.#forStraddling(start, end, level, (index) => {
        this.#words[level - 2]![index]! |= MIXED;
      });
    }
  }

  /** After [start, end) changed, uniformly: what lies inside is not mixed, what straddles is looked at. */
  afterChange(start: Gfn, end: Gfn, attributes: PrivateRanges): void {
    for (const level of LEVELS) {
      const words = this.#words[level - 2]!;
      const pages = pagesPerEntry(level);
      const from = this.#index(Math.max(Math.ceil(start / pages) * pages, this.#firstWhole(level)), level);
      const to = this.#index(Math.min(Math.floor(end / pages) * pages, this.#endOfWhole(level)), level);
      // A large page that the slot holds whole is disallowed by the slot's alignment alone. `fill`: a terabyte has half a million.
      words.fill(this.#isMisaligned(level) ? 1 : 0, from, to);
      this.#forStraddling(start, end, level, (index, first) => {
        const uniform = attributes.isUniform(first, (first + pages) as Gfn, attributes.isPrivate(first));
        words[index] = uniform ? words[index]! & ~MIXED : words[index]! | MIXED;
      });
    }
  }

  #initial(level: number): Int32Array {
    const { baseGfn, npages } = this.#slot;
    const pages = pagesPerEntry(level);
    const words = new Int32Array(this.#index(baseGfn + npages - 1, level) + 1);
    if (baseGfn % pages !== 0) words[0] = 1;
    if ((baseGfn + npages) % pages !== 0) words[words.length - 1] = 1;
    if (this.#isMisaligned(level)) words.fill(1);
    return words;
  }

  /** Guest and user addresses do not reach the boundary of a large page together. */
  #isMisaligned(level: number): boolean {
    const pages = pagesPerEntry(level);
    return this.#slot.baseGfn % pages !== this.#slot.userGfn % pages;
  }

  /** A large page is mixed iff a boundary lies strictly inside it. */
  #markMixed(attributes: PrivateRanges): void {
    const { baseGfn, npages } = this.#slot;
    attributes.forEachBoundary(baseGfn as Gfn, (baseGfn + npages) as Gfn, (boundary) => {
      for (const level of LEVELS) {
        if (boundary % pagesPerEntry(level) === 0) continue;
        this.#words[level - 2]![this.#index(boundary, level)]! |= MIXED;
      }
    });
  }

  /** The large pages that hold gfns inside and outside of [start, end): one at each end, which may be the same. */
  #forStraddling(start: Gfn, end: Gfn, level: number, act: (index: number, firstGfn: Gfn) => void): void {
    const pages = pagesPerEntry(level);
    const head = Math.floor(start / pages) * pages;
    const tail = Math.floor(end / pages) * pages;
    if (head !== start) act(this.#index(start, level), head as Gfn);
    if (tail !== end) act(this.#index(end - 1, level), tail as Gfn);
  }

  #firstWhole(level: number): number {
    const pages = pagesPerEntry(level);
    return Math.ceil(this.#slot.baseGfn / pages) * pages;
  }

  #endOfWhole(level: number): number {
    const pages = pagesPerEntry(level);
    return Math.floor((this.#slot.baseGfn + this.#slot.npages) / pages) * pages;
  }

  #index(gfn: number, level: number): number {
    const pages = pagesPerEntry(level);
    return Math.floor(gfn / pages) - Math.floor(this.#slot.baseGfn / pages);
  }
}
