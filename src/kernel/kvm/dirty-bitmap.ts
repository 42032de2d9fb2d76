/**
 * The dirty bitmap of a slot (Linux virt/kvm/kvm_main.c, kvm_memory_slot.dirty_bitmap): a bit a page, in words of 32 pages, the low bit
 * for the lowest page; as long as user space's, whole 64 pages.
 *
 * A byte for each 4096 pages says whether any of them may be dirty, so that a harvest of a clean bitmap costs hardly more than
 * the copy. Nothing here allocates after construction.
 */

/** Words that one byte of the summary stands for. */
const CHUNK_SHIFT = 7;
const CHUNK = 1 << CHUNK_SHIFT;

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
  readonly #summary: Uint8Array;

  /** All clean. Throws RangeError where there is no memory for it. */
  constructor(npages: number) {
    this.#npages = npages;
    this.#words = new Int32Array(DirtyBitmap.wordsFor(npages));
    this.#summary = new Uint8Array(Math.ceil(this.#words.length / CHUNK));
  }

  get length(): number {
    return this.#words.length;
  }

  mark(page: number): void {
    const word = page >>> 5;
    this.#words[word]! |= 1 << (page & 31);
    this.#summary[word >>> CHUNK_SHIFT] = 1;
  }

  /** Every page of the slot; bits beyond its end stay clear. */
  markAll(): void {
    const whole = this.#npages >>> 5;
    this.#words.fill(-1, 0, whole);
    if ((this.#npages & 31) !== 0) this.#words[whole] = (1 << (this.#npages & 31)) - 1;
    this.#summary.fill(1);
  }

  /** Copies the bitmap as it is; as much as `into` holds. */
  copyTo(into: Int32Array): void {
    into.set(into.length < this.#words.length ? this.#words.subarray(0, into.length) : this.#words);
  }

  /** Cleans the bitmap; pages that were dirty lose their write right. `baseGfn`: the slot's. Returns whether a flush is due. */
  clean(baseGfn: number, protector: WriteProtector): boolean {
    const words = this.#words;
    const summary = this.#summary;
    let flush = false;
    for (let chunk = summary.indexOf(1); chunk >= 0; chunk = summary.indexOf(1, chunk + 1)) {
      summary[chunk] = 0;
      const end = Math.min(words.length, (chunk + 1) << CHUNK_SHIFT);
      for (let word = chunk << CHUNK_SHIFT; word < end; word++) {
        const mask = words[word]!;
        if (mask === 0) continue;
        words[word] = 0;
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
