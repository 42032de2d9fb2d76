/**
 * The TLB of a core: fills and flushes of the arrays in the state block (state.ts) that generated code looks into. One guest at a time:
 * whoever enters another ASID or another nested table flushes all. Entries are of 4 KiB whatever the page's size, so INVLPG inside a
 * larger page drops everything.
 */
import type { PageWalker } from './page-walk.ts';
import { STATE, TLB, TLB_ENTRIES, TLB_GLOBAL, USER_TLB } from './state.ts';

const TABLES = [STATE.READ_TLB, STATE.WRITE_TLB, STATE.FETCH_TLB] as const;
const TABLE_BYTES = TLB_ENTRIES * 16;
/** Low word of TLB_EMPTY: no page's address. */
const EMPTY = 1;
/** Up to so many entries are emptied one by one. */
const FEW = 512;

export class CoreTlb {
  readonly #words: Int32Array;
  readonly #state: number;
  /** Addresses of the entries filled since all were empty; more than FEW are not noted. */
  readonly #filled = new Int32Array(FEW);
  #count = 0;
  #large = false;

  constructor(words: Int32Array, state: number) {
    this.#words = words;
    this.#state = state;
    this.#emptyAll();
  }

  /** Enters the walker's result for linear `high:low` into READ_TLB, for a user's or a supervisor's accesses. */
  fillRead(low: number, high: number, set: number, walked: PageWalker): void {
    this.#fillData(STATE.READ_TLB, low, high, set, walked);
  }

  /** The same for WRITE_TLB. The caller has seen that nothing needs to be noted at a write. */
  fillWrite(low: number, high: number, set: number, walked: PageWalker): void {
    this.#fillData(STATE.WRITE_TLB, low, high, set, walked);
  }

  fillFetch(low: number, high: number, set: number, pageMap: number, walked: PageWalker): void {
    const flags = walked.global ? TLB_GLOBAL : 0;
    this.#fill(STATE.FETCH_TLB, low, high, set, pageMap, (walked.frame << 12) | flags, walked.large);
  }

  /** Frame of linear `high:low` in FETCH_TLB, or −1. */
  fetchFrame(low: number, high: number, set: number): number {
    const at = this.#entry(STATE.FETCH_TLB, low, set) >>> 2;
    const words = this.#words;
    if (words[at] !== (low & ~0xfff) || words[at + 1] !== high) return -1;
    return words[at + 3]! >>> 12;
  }

  flush(): void {
    this.#large = false;
    if (this.#count > FEW) {
      this.#emptyAll();
      return;
    }
    const words = this.#words;
    for (let i = 0; i < this.#count; i++) words[this.#filled[i]! >>> 2] = EMPTY;
    this.#count = 0;
  }

  /** Drops all but global entries (MOV CR3). */
  flushNonGlobal(): void {
    const words = this.#words;
    if (this.#count > FEW) {
      for (const table of TABLES) {
        const start = this.#state + table;
        for (let at = start; at < start + 2 * USER_TLB; at += 16) {
          if ((words[(at + TLB.EXTRA) >>> 2]! & TLB_GLOBAL) === 0) words[at >>> 2] = EMPTY;
        }
      }
      return;
    }
    let kept = 0;
    for (let i = 0; i < this.#count; i++) {
      const at = this.#filled[i]!;
      if ((words[(at + TLB.EXTRA) >>> 2]! & TLB_GLOBAL) !== 0) this.#filled[kept++] = at;
      else words[at >>> 2] = EMPTY;
    }
    this.#count = kept;
  }

  /** Drops what lets a user's data accesses through. */
  emptyUserData(): void {
    for (const table of [STATE.READ_TLB, STATE.WRITE_TLB]) {
      const start = this.#state + table + USER_TLB;
      for (let at = start; at < start + TABLE_BYTES; at += 16) this.#words[at >>> 2] = EMPTY;
    }
  }

  /** INVLPG. */
  invalidatePage(low: number): void {
    if (this.#large) {
      this.flush();
      return;
    }
    for (const table of TABLES) {
      for (const set of [0, USER_TLB]) this.#words[this.#entry(table, low, set) >>> 2] = EMPTY;
    }
  }

  /** Drops the entries that allow writes to a frame of host memory. */
  forbidWrites(frame: number): void {
    const words = this.#words;
    const start = this.#state + STATE.WRITE_TLB;
    const address = frame << 12;
    for (let at = start; at < start + 2 * USER_TLB; at += 16) {
      const tag = words[at >>> 2]!;
      if (tag !== EMPTY && ((tag + words[(at + TLB.ADDEND) >>> 2]!) | 0) === (address | 0))
        words[at >>> 2] = EMPTY;
    }
  }

  /** Drops the entries that lead to `count` frames of host memory from `frame` on. */
  forgetFrames(frame: number, count: number): void {
    if (this.#count <= FEW) {
      for (let i = 0; i < this.#count; i++) this.#forgetEntry(this.#filled[i]!, frame, count);
      return;
    }
    for (const table of TABLES) {
      const start = this.#state + table;
      for (let at = start; at < start + 2 * USER_TLB; at += 16) this.#forgetEntry(at, frame, count);
    }
  }

  #forgetEntry(at: number, frame: number, count: number): void {
    const words = this.#words;
    const tag = words[at >>> 2]!;
    if (tag === EMPTY) return;
    const isFetch = at >= this.#state + STATE.FETCH_TLB;
    const to = isFetch
      ? words[(at + TLB.EXTRA) >>> 2]! >>> 12
      : (tag + words[(at + TLB.ADDEND) >>> 2]!) >>> 12;
    if (to >= frame && to < frame + count) words[at >>> 2] = EMPTY;
  }

  #fillData(table: number, low: number, high: number, set: number, walked: PageWalker): void {
    const addend = ((walked.frame << 12) - (low & ~0xfff)) | 0;
    this.#fill(table, low, high, set, addend, walked.global ? TLB_GLOBAL : 0, walked.large);
  }

  #fill(
    table: number,
    low: number,
    high: number,
    set: number,
    addend: number,
    extra: number,
    large: boolean,
  ): void {
    const words = this.#words;
    const address = this.#entry(table, low, set);
    const at = address >>> 2;
    if (large) this.#large = true;
    // An entry that is empty was perhaps filled and noted before; noting it twice does no harm.
    if (words[at] === EMPTY) {
      if (this.#count < FEW) this.#filled[this.#count] = address;
      if (this.#count <= FEW) this.#count++;
    }
    words[at] = low & ~0xfff;
    words[at + 1] = high;
    words[at + 2] = addend;
    words[at + 3] = extra;
  }

  #entry(table: number, low: number, set: number): number {
    return this.#state + table + set + ((low >>> 8) & (TABLE_BYTES - 16));
  }

  #emptyAll(): void {
    const words = this.#words;
    for (const table of TABLES) {
      const start = this.#state + table;
      for (let at = start; at < start + 2 * USER_TLB; at += 16) words[at >>> 2] = EMPTY;
    }
    this.#count = 0;
    this.#large = false;
  }
}
