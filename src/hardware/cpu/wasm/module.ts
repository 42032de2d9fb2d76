/** A WebAssembly module: imported functions and one imported shared memory, own functions, exports (core specification, section 5.5). */
import { name, unsigned, vector } from './bytes.ts';
import { Code, type FunctionHandle } from './code.ts';
import { TYPE_BYTE, type ValueType } from './value.ts';

/** Pages of 64 KiB that a 32-bit memory can have at most. */
const MAX_PAGES = 65536;

export class ModuleBuilder {
  readonly #types: string[] = [];
  readonly #typeBytes: number[][] = [];
  readonly #imports: number[][] = [];
  readonly #functions: { type: number; code: Code }[] = [];
  readonly #exports: number[][] = [];

  /** Declares a function that the module imports as `env.<name>`. All imports come before the first `define`. */
  import(functionName: string, parameters: readonly ValueType[], result?: ValueType): FunctionHandle {
    if (this.#functions.length > 0) throw new Error('imports come before functions');
    const index = this.#imports.length;
    this.#imports.push([
      ...name('env'),
      ...name(functionName),
      0,
      ...unsigned(this.#type(parameters, result)),
    ]);
    return { index, parameters, result };
  }

  /** Adds a function; `body` fills its code. */
  define(
    parameters: readonly ValueType[],
    result: ValueType | undefined,
    body: (code: Code) => void,
  ): FunctionHandle {
    const code = new Code(parameters);
    const index = this.#imports.length + this.#functions.length;
    this.#functions.push({ type: this.#type(parameters, result), code });
    body(code);
    return { index, parameters, result };
  }

  export(functionName: string, callee: FunctionHandle): void {
    this.#exports.push([...name(functionName), 0, ...unsigned(callee.index)]);
  }

  encode(): Uint8Array<ArrayBuffer> {
    const memory = [...name('env'), ...name('memory'), 2, 3, 1, ...unsigned(MAX_PAGES)];
    const sections: [number, number[]][] = [
      [1, vector(this.#typeBytes)],
      [2, vector([...this.#imports, memory])],
      [3, vector(this.#functions.map(({ type }) => unsigned(type)))],
      [7, vector(this.#exports)],
      [10, vector(this.#functions.map(({ code }) => code.encode()))],
    ];
    const bytes = [0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0];
    for (const [id, content] of sections) {
      bytes.push(id, ...unsigned(content.length));
      for (const byte of content) bytes.push(byte);
    }
    return Uint8Array.from(bytes);
  }

  #type(parameters: readonly ValueType[], result: ValueType | undefined): number {
    const key = `${parameters.join()}>${result}`;
    const known = this.#types.indexOf(key);
    if (known >= 0) return known;
    const results = result === undefined ? [] : [[TYPE_BYTE[result]]];
    this.#typeBytes.push([0x60, ...vector(parameters.map((type) => [TYPE_BYTE[type]])), ...vector(results)]);
    return this.#types.push(key) - 1;
  }
}
