/** Gathers what a guest sends byte by byte, and hands it on by the line, when it is full, or when told to. */

const BYTES = 512;
const NEWLINE = 0x0a;

export class ConsoleBuffer {
  readonly #sink: (bytes: Uint8Array) => void;
  readonly #bytes = new Uint8Array(BYTES);
  #length = 0;

  constructor(sink: (bytes: Uint8Array) => void) {
    this.#sink = sink;
  }

  put(byte: number): void {
    this.#bytes[this.#length++] = byte;
    if (byte === NEWLINE || this.#length === BYTES) this.flush();
  }

  flush(): void {
    if (this.#length === 0) return;
    const bytes = this.#bytes.slice(0, this.#length);
    this.#length = 0;
    this.#sink(bytes);
  }
}
