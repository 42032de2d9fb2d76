/**
 * The dirty bitmap of a slot (Linux virt/kvm/kvm_main.c, kvm_memory_slot.dirty_bitmap): a bit a page, in words of 32 pages, the low bit
 * for the lowest page; as long as user space's, whole 64 pages.
 *
 * A summary, a bit a word, says which words may have dirty pages, so that a harvest visits no others. Nothing here allocates after construction.
 */

/** Takes the write right from the nested mappings of those of the 32 pages from `gfn` on whose bit is set; says if a flush is due. */
export interface WriteProtector {
  writeProtectMasked(gfn: number, mask: number): boolean;
}

export class DirtyBitmap {
  /** Words of a bitmap for `npages` pages. */
  static wordsFor(npages: number): number {
    return Math.ceil(npages / 64) * 2;
  }

  readonly #npages: number;
  readonly #words: Int32Array;
  /** A bit for each of `#words`; clear: no page of it is dirty. */
  readonly #summary: Int32Array;

  /** All clean. Throws RangeError where there is no memory for it. */
  constructor(npages: number) {
    this.#npages = npages;
    this.#words = new Int32Array(DirtyBitmap.wordsFor(npages));
    this.#summary = new Int32Array(Math.ceil(this.#words.length / 32));
  }

  get length(): number {
    return this.#words.length;
  }

  mark(page: number): void {
    const word = page >>> 5;
    this.#words[word]! |= 1 << (page & 31);
    this.#summary[word >>> 5]! |= 1 << (word & 31);
  }

  /** Every page of the slot; bits beyond its end stay clear. */
  markAll(): void {
    setBits(this.#words, this.#npages);
    setBits(this.#summary, this.#words.length);
  }

  /** Copies the bitmap as it is; as much as `into` holds. */
  copyTo(into: Int32Array): void {
    into.set(this.#words.subarray(0, into.length));
  }

  /** The same, and all is clean; pages that were dirty lose their write right. `baseGfn`: the slot's. Returns whether a flush is due. */
  take(into: Int32Array, baseGfn: number, protector: WriteProtector): boolean {
    const words = this.#words;
    const summary = this.#summary;
    let flush = false;
    into.fill(0, 0, words.length);
    for (let group = 0; group < summary.length; group++) {
      const dirtyWords = summary[group]!;
      if (dirtyWords === 0) continue;
      summary[group] = 0;
      for (let left = dirtyWords; left !== 0; left &= left - 1) {
        const word = group * 32 + 31 - Math.clz32(left & -left);
        const mask = words[word]!;
        if (mask === 0) continue;
        words[word] = 0;
        if (word < into.length) into[word] = mask;
        if (protector.writeProtectMasked(baseGfn + word * 32, mask)) flush = true;
      }
    }
    return flush;
  }

  /**
   * Cleans those pages that are dirty and set in `bits`, whose first word stands for `firstPage` (a multiple of 32); `count` words of it
   * count. Returns whether a flush is due.
   */
  cleanMasked(
    bits: Int32Array,
    range: { firstPage: number; count: number },
    baseGfn: number,
    protector: WriteProtector,
  ): boolean {
    const words = this.#words;
    const first = range.firstPage / 32;
    let flush = false;
    for (let i = 0; i < range.count; i++) {
      const mask = bits[i]! & words[first + i]!;
      if (mask === 0) continue;
      words[first + i]! &= ~mask;
      if (protector.writeProtectMasked(baseGfn + (first + i) * 32, mask)) flush = true;
    }
    return flush;
  }
}

/** The first `count` bits. */
function setBits(words: Int32Array, count: number): void {
  words.fill(-1, 0, count >>> 5);
  if ((count & 31) !== 0) words[count >>> 5] = (1 << (count & 31)) - 1;
}
