/**
 * A sparse array from page number to a word: an address space's page table, a file's page cache. Words lie in chunks of
 * 512, as a page table has them, so a terabyte that nobody touches costs nothing. 0 means absent.
 */
const CHUNK = 512;
/** The element after the entries counts those that are not 0. */
const COUNT = CHUNK;
const NO_CHUNK = new Int32Array(CHUNK + 1);

export class PageEntries {
  readonly #chunks = new Map<number, Int32Array>();
  #lastKey = -1;
  #last: Int32Array = NO_CHUNK;
  /** All zero: a page that comes and goes by itself needs no new chunk each time. */
  #spare: Int32Array | undefined;
  #count = 0;

  /** Entries that are not 0. */
  get count(): number {
    return this.#count;
  }

  get(page: number): number {
    const key = Math.floor(page / CHUNK);
    if (key !== this.#lastKey) {
      const chunk = this.#chunks.get(key);
      if (chunk === undefined) return 0;
      this.#last = chunk;
      this.#lastKey = key;
    }
    return this.#last[page - key * CHUNK]!;
  }

  /** How many pages from `page` on, `limit` at most, have the entry of the page before and `step` more. */
  series(page: number, limit: number, step: number): number {
    const first = this.get(page);
    let count = 1;
    if (first === 0) return count;
    while (count < limit && this.get(page + count) === first + count * step) count++;
    return count;
  }

  /** Sets the entry of `page` to `word`; 0 removes it. */
  set(page: number, word: number): void {
    const key = Math.floor(page / CHUNK);
    let chunk = key === this.#lastKey ? this.#last : this.#chunks.get(key);
    if (chunk === undefined) {
      if (word === 0) return;
      chunk = this.#spare ?? new Int32Array(CHUNK + 1);
      this.#spare = undefined;
      this.#chunks.set(key, chunk);
    }
    const index = page - key * CHUNK;
    const change = (word === 0 ? 0 : 1) - (chunk[index] === 0 ? 0 : 1);
    chunk[index] = word;
    chunk[COUNT]! += change;
    this.#count += change;
    if (chunk[COUNT] === 0) {
      this.#chunks.delete(key);
      this.#spare = chunk;
      if (key === this.#lastKey) {
        this.#lastKey = -1;
        this.#last = NO_CHUNK;
      }
    }
  }

  /** Calls `visit` for each entry of pages [first, end) that is not 0, in no order across chunks; it may set that entry. */
  forEachIn(first: number, end: number, visit: (page: number, word: number) => void): void {
    if (end <= first) return;
    const firstKey = Math.floor(first / CHUNK);
    const lastKey = Math.floor((end - 1) / CHUNK);
    if (lastKey - firstKey < this.#chunks.size) {
      for (let key = firstKey; key <= lastKey; key++) {
        const chunk = this.#chunks.get(key);
        if (chunk !== undefined) this.#visit(key, chunk, first, end, visit);
      }
    } else {
      for (const [key, chunk] of [...this.#chunks]) {
        if (key >= firstKey && key <= lastKey) this.#visit(key, chunk, first, end, visit);
      }
    }
  }

  #visit(
    key: number,
    chunk: Int32Array,
    first: number,
    end: number,
    visit: (page: number, word: number) => void,
  ): void {
    const base = key * CHUNK;
    const stop = Math.min(CHUNK, end - base);
    for (let index = Math.max(0, first - base); index < stop; index++) {
      const word = chunk[index]!;
      if (word !== 0) visit(base + index, word);
    }
  }
}
