/**
 * Where decoded code lies: for each frame with code, and each VECTOR_MODE in which it ran, a page map (4096 words: the record of the instruction that starts at each
 * offset, or 0), and lines of records in an arena. Records are never reused before everything is flushed, so a handler that
 * stores into its own page goes on in records that still exist.
 */
import type { WasmMemory } from '../../base/wasm-memory.ts';
import { RECORD, RECORD_BYTES } from './record.ts';
import { VECTOR_MODES } from './vector-mode.ts';

/** What the cache needs of host memory (memory/host-memory.ts). */
export interface CodeMemory {
  readonly wasm: WasmMemory;
  readonly bytes: Uint8Array;
  readonly words: Int32Array;
  readonly longs: BigUint64Array;
  allocateSilicon(order: number, owner: unknown): number;
  free(pfn: number, order: number): void;
}

/** Orders of the blocks taken from host memory: a page map is 16 KiB, a block of records 64 KiB. */
const MAP_ORDER = 2;
const BLOCK_ORDER = 4;
const BLOCK_BYTES = 4096 << BLOCK_ORDER;
/** An instruction lies in two pages at most. */
const KEPT_MAPS = 2;
const NO_FRAME = -1;

/** Decoded code of one frame in one mode. */
export interface CodePage {
  readonly frame: number;
  /** VECTOR_MODE */
  readonly mode: number;
  /** Address of the page map. */
  readonly map: number;
  /** One bit for each byte of the frame that some record was decoded from. */
  readonly decoded: Int32Array;
  /** First records of instructions made from the frame's bytes, in this page or straddling into it. */
  readonly first: number[];
}

export interface CodePagesOptions {
  readonly owner: unknown;
  /** Most bytes of host memory that page maps and records may take. */
  readonly limit: number;
  /** Called with each frame that gets a page map. */
  readonly onCreate: ((frame: number) => void) | undefined;
}

export class CodePages {
  readonly #memory: CodeMemory;
  readonly #options: CodePagesOptions;
  /** By mode, then frame. */
  readonly #pages = Array.from({ length: VECTOR_MODES }, () => new Map<number, CodePage>());
  /** Kept from the beginning to the end, so that an instruction and its straddler always have room: page maps, which may be in use, and the first block. */
  readonly #kept: readonly number[];
  #unused: number[];
  #blocks: number[];
  #blockUsed = 0;

  /** Throws RangeError when there is no memory for an instruction at all. */
  constructor(memory: CodeMemory, options: CodePagesOptions) {
    this.#memory = memory;
    this.#options = options;
    const block = memory.allocateSilicon(BLOCK_ORDER, options.owner);
    this.#blocks = block === NO_FRAME ? [] : [block];
    const maps = Array.from({ length: KEPT_MAPS }, () => memory.allocateSilicon(MAP_ORDER, options.owner));
    this.#kept = maps.filter((pfn) => pfn !== NO_FRAME);
    this.#unused = [...this.#kept];
    if (this.#blocks.length === 1 && this.#kept.length === KEPT_MAPS) return;
    this.close();
    throw new RangeError('no host memory is left for decoded code');
  }

  get(frame: number, mode: number): CodePage | undefined {
    return this.#pages[mode]!.get(frame);
  }

  /** A new page for a frame that has none; undefined when there is no room: flush, then ask again. */
  create(frame: number, mode: number): CodePage | undefined {
    const pfn = this.#unused.pop() ?? this.#allocate(MAP_ORDER);
    if (pfn === NO_FRAME) return undefined;
    const page = { frame, mode, map: pfn * 4096, decoded: new Int32Array(128), first: [] };
    this.#pages[mode]!.set(frame, page);
    this.#options.onCreate?.(frame);
    return page;
  }

  /** Address of room for `records` records in a row, or 0 when there is none: flush, then ask again. */
  reserve(records: number): number {
    if (this.#blockUsed + records * RECORD_BYTES > BLOCK_BYTES) {
      const pfn = this.#allocate(BLOCK_ORDER);
      if (pfn === NO_FRAME) return 0;
      this.#blocks.push(pfn);
      this.#blockUsed = 0;
    }
    return this.#blocks.at(-1)! * 4096 + this.#blockUsed;
  }

  /** Takes the first `records` of what was reserved. */
  commit(records: number): void {
    this.#blockUsed += records * RECORD_BYTES;
  }

  /** Empties a frame's page map and turns the records made from its bytes into "leave to fetch". */
  empty(page: CodePage): void {
    const { words } = this.#memory;
    words.fill(0, page.map >>> 2, (page.map >>> 2) + 4096);
    for (const record of page.first) words[(record + RECORD.HANDLER) >>> 2] = 0;
    page.first.length = 0;
    page.decoded.fill(0);
  }

  /** Forgets everything. No record or page map may be in use. */
  flush(): void {
    const { words } = this.#memory;
    for (const pages of this.#pages) {
      for (const { map } of pages.values()) {
        const pfn = map / 4096;
        if (!this.#kept.includes(pfn)) this.#memory.free(pfn, MAP_ORDER);
        else words.fill(0, map >>> 2, (map >>> 2) + 4096);
      }
      pages.clear();
    }
    this.#unused = [...this.#kept];
    for (const pfn of this.#blocks.splice(1)) this.#memory.free(pfn, BLOCK_ORDER);
    this.#blockUsed = 0;
  }

  /** Gives all memory back, for good. */
  close(): void {
    this.flush();
    for (const pfn of this.#kept) this.#memory.free(pfn, MAP_ORDER);
    for (const pfn of this.#blocks.splice(0)) this.#memory.free(pfn, BLOCK_ORDER);
  }

  #allocate(order: number): number {
    const pages = this.#pages.reduce((sum, { size }) => sum + size, 0);
    const taken = pages * (4096 << MAP_ORDER) + this.#blocks.length * BLOCK_BYTES;
    if (taken + (4096 << order) > this.#options.limit) return NO_FRAME;
    return this.#memory.allocateSilicon(order, this.#options.owner);
  }
}

/** Notes that bytes `from` up to `to` (below 4096) of the page are decoded. */
export function markDecoded(page: CodePage, from: number, to: number): void {
  for (let at = from; at < to; at++) page.decoded[at >> 5]! |= 1 << (at & 31);
}

export function isDecoded(page: CodePage, from: number, to: number): boolean {
  for (let at = from; at < to; at++) if ((page.decoded[at >> 5]! >> (at & 31)) & 1) return true;
  return false;
}
