/**
 * The WebAssembly memories of this process. A dropped one keeps its address space until garbage collection, so a closed
 * host gives its memory back here, all zero, and the next host takes it. Memories only grow: a host gets the largest idle
 * one that is not larger than it asks for, so that an access beyond its end traps.
 */
import type { WasmMemory } from '../../base/wasm-memory.ts';
import { type BulkOperations, bulkOperations } from './bulk.ts';

/** What memory32 can address: 65536 WASM pages of 64 KiB. */
export const MAX_WASM_PAGES = 65536;
export const WASM_PAGE = 65536;

/** A memory that is all zero, and the operations on it. */
export interface PooledMemory {
  readonly wasm: WasmMemory;
  readonly bulk: BulkOperations;
}

export class MemoryPool {
  readonly #idle: PooledMemory[] = [];
  readonly #limit: number;

  /** Keeps at most `limit` idle memories. */
  constructor(limit: number) {
    this.#limit = limit;
  }

  get idle(): number {
    return this.#idle.length;
  }

  /** A zeroed shared memory of exactly `pages` WASM pages. */
  take(pages: number): PooledMemory {
    let best = -1;
    let bestPages = -1;
    for (const [index, { wasm }] of this.#idle.entries()) {
      const size = wasm.buffer.byteLength / WASM_PAGE;
      if (size <= pages && size > bestPages) {
        best = index;
        bestPages = size;
      }
    }
    if (best >= 0) {
      const [memory] = this.#idle.splice(best, 1);
      if (bestPages < pages) memory!.wasm.grow(pages - bestPages);
      return memory!;
    }
    const wasm = new WebAssembly.Memory({ initial: pages, maximum: MAX_WASM_PAGES, shared: true });
    return { wasm, bulk: bulkOperations(wasm) };
  }

  /** Takes back a memory that the caller has zeroed. */
  give(memory: PooledMemory): void {
    if (this.#idle.length >= this.#limit) this.#idle.shift();
    this.#idle.push(memory);
  }
}

/** The pool that all hosts of this process share. */
export const processPool = new MemoryPool(8);
