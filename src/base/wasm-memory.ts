/** A shared WebAssembly.Memory as declarations of this package name it: who reads them need not have a browser's types (webassembly.d.ts stays at home). */
export interface WasmMemory {
  readonly buffer: SharedArrayBuffer;
  grow(pages: number): number;
}
