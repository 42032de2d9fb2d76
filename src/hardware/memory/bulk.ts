/**
 * Zeroing and copying ranges of host memory with WASM's `memory.fill` and `memory.copy`: on shared memory
 * `Uint8Array.fill` is ten times slower. The module is small enough to be written down byte by byte here.
 * (WebAssembly core specification 2.0, section 5, "Binary Format".)
 */
import type { WasmMemory } from '../../base/wasm-memory.ts';
export interface BulkOperations {
  /** Zeroes `bytes` bytes from `address` on. */
  clear(address: number, bytes: number): void;
  /** Copies `bytes` bytes; the ranges may overlap. */
  copy(to: number, from: number, bytes: number): void;
}

const I32 = 0x7f;
const LOCAL_GET = 0x20;
const CONST_ZERO = [0x41, 0];
const MEMORY_COPY = [0xfc, 10, 0, 0];
const MEMORY_FILL = [0xfc, 11, 0];
const END = 0x0b;

const vector = (items: readonly (readonly number[])[]): number[] => [items.length, ...items.flat()];
const sized = (content: readonly number[]): number[] => [content.length, ...content];
const section = (id: number, content: readonly number[]): number[] => [id, ...sized(content)];
const text = (value: string): number[] => sized([...value].map((character) => character.charCodeAt(0)));
const functionType = (parameters: readonly number[]): number[] => [0x60, ...sized(parameters), 0];
const body = (...code: readonly number[]): number[] => sized([0, ...code, END]);

const MODULE = new WebAssembly.Module(
  new Uint8Array([
    ...[0, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
    ...section(1, vector([functionType([I32, I32]), functionType([I32, I32, I32])])),
    // A shared memory of 0 to 65536 WASM pages.
    ...section(2, vector([[...text('host'), ...text('memory'), 2, 3, 0, 0x80, 0x80, 4]])),
    ...section(3, [2, 0, 1]),
    ...section(
      7,
      vector([
        [...text('clear'), 0, 0],
        [...text('copy'), 0, 1],
      ]),
    ),
    ...section(
      10,
      vector([
        body(LOCAL_GET, 0, ...CONST_ZERO, LOCAL_GET, 1, ...MEMORY_FILL),
        body(LOCAL_GET, 0, LOCAL_GET, 1, LOCAL_GET, 2, ...MEMORY_COPY),
      ]),
    ),
  ]),
);

/** The operations on one shared memory. Addresses and sizes are below 2^32. */
export function bulkOperations(memory: WasmMemory): BulkOperations {
  return new WebAssembly.Instance(MODULE, { host: { memory } }).exports as unknown as BulkOperations;
}
