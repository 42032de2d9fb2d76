/** The trace as a file: one JSON object a line, written in pieces while the run goes on. */
import { closeSync, openSync, writeSync } from 'node:fs';
import { textOf } from '../base/option-checks.ts';
import type { Trace } from '../base/trace.ts';
import { reasonOfWrite } from './files.ts';
import { InputError } from './size.ts';

const PIECE = 1 << 16;

export class TraceFile {
  readonly #file: number;
  readonly #stop: () => void;
  #text = '';
  #closed = false;

  /** Throws InputError: `path` cannot be written. */
  constructor(path: string, trace: Trace) {
    try {
      this.#file = openSync(path, 'w');
    } catch (error) {
      throw new InputError(`--trace: got ${textOf(path)}: ${reasonOfWrite(error)}`);
    }
    this.#stop = trace.listen((event) => {
      this.#text += `${JSON.stringify(event)}\n`;
      if (this.#text.length >= PIECE) this.#flush();
    });
  }

  /** Writes what is left; once is enough. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#stop();
    this.#flush();
    closeSync(this.#file);
  }

  #flush(): void {
    writeSync(this.#file, this.#text);
    this.#text = '';
  }
}
