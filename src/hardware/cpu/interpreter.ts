/**
 * The interpreter of one core: the generated WASM function, and the decoded code it runs. What it cannot do by itself it asks of a
 * `SlowPath`; what the state block means is in state.ts, how the parts play together in docs/CORE.md.
 */

import { type Instruction, iced } from './decode/iced.ts';
import { type DecodeResult, LineDecoder, type NextFrame } from './decode.ts';
import { HANDLERS, MODULE } from './interpreter.generated.ts';
import { type CodeMemory, type CodePage, CodePages, isDecoded } from './page-map.ts';
import { RECORD, SYSTEM } from './record.ts';
import { LEAVE, STATE, TLB, TLB_EMPTY, TLB_ENTRIES, USER_TLB } from './state.ts';
import { VECTOR_MODE, VECTOR_MODES } from './vector-mode.ts';

/** The functions that generated code imports; `state` is the state block's address. They are called without a `this`. */
export interface SlowPath {
  /** `size` bytes at ADDRESS into DATA. 0, or a LEAVE code. */
  readonly load: (state: number, size: number) => number;
  /** `size` bytes of DATA to ADDRESS. */
  readonly store: (state: number, size: number) => number;
  /** Whether such a store would succeed. */
  readonly probe: (state: number, size: number) => number;
  /** Does what the `system` record at `record` says (record.ts). 0 goes on behind the instruction. */
  readonly system: (state: number, record: number) => number;
}

export interface InterpreterOptions {
  readonly memory: CodeMemory;
  /** Who is charged for page maps and records in host memory. */
  readonly owner: unknown;
  /** Address of the state block. */
  readonly state: number;
  readonly slowPath: SlowPath;
  /** Most bytes of host memory for page maps and records. */
  readonly codeBytes?: number;
  /** A frame gets decoded code for the first time (and again after a flush): no write TLB may hold it any longer. */
  readonly onCodeFrame?: (frame: number) => void;
  /** An instruction that the core does not have is about to raise #UD. */
  readonly onUndefined?: (mnemonic: string, rip: bigint) => void;
}

const DEFAULT_CODE_BYTES = 48 * 1024 * 1024;
/** Instructions in one go: the engine replaces a function by its optimised form only when it is called again. */
const SLICE = 100_000;
/** What a slice uses up at least: a long string instruction comes back without having retired. */
const LEAST_USED = 10_000;
const INVALID_OPCODE = 6;

type Run = (state: number, budget: number, record: number) => number;

let compiled: { module: WebAssembly.Module; numbers: ReadonlyMap<string, number> } | undefined;

/** Compiled once in a process, on first use. */
function generated() {
  compiled ??= {
    module: new WebAssembly.Module(Buffer.from(MODULE, 'base64')),
    numbers: new Map(HANDLERS.map((name, number) => [name, number])),
  };
  return compiled;
}

export class Interpreter {
  /** How often all decoded code was thrown away. */
  flushes = 0;
  /** How often an instruction that the core does not have was executed, by mnemonic. */
  readonly undefinedInstructions = new Map<string, number>();
  readonly #options: InterpreterOptions;
  readonly #memory: CodeMemory;
  readonly #state: number;
  readonly #pages: CodePages;
  readonly #decoder: LineDecoder;
  readonly #run: Run;
  #mode: number = VECTOR_MODE.AVAILABLE;

  constructor(options: InterpreterOptions) {
    const { memory, state } = options;
    const { module, numbers } = generated();
    this.#options = options;
    this.#memory = memory;
    this.#state = state;
    this.#pages = new CodePages(memory, {
      owner: options.owner,
      limit: options.codeBytes ?? DEFAULT_CODE_BYTES,
      onCreate: options.onCodeFrame,
    });
    this.#decoder = new LineDecoder(memory, this.#pages, (name) => numbers.get(name), state);
    const { load, store, probe, system } = options.slowPath;
    const { words } = memory;
    const env = {
      memory: memory.wasm,
      load,
      store,
      probe,
      system: (at: number, record: number) =>
        words[(record + RECORD.SYSTEM) >>> 2] === SYSTEM.UNDEFINED
          ? this.#undefined(at, record)
          : system(at, record),
    };
    this.#run = new WebAssembly.Instance(module, { env }).exports['run'] as Run;
  }

  get mode(): number {
    return this.#mode;
  }
  /** The VECTOR_MODE in which code is decoded and run. Another one empties the fetch TLB. Not while `run` runs. */
  set mode(mode: number) {
    if (mode === this.#mode) return;
    this.#mode = mode;
    this.#emptyFetchTlb();
  }

  /** Runs from RIP on until `budget` instructions are used up (checked at branches) or something else ends it: a LEAVE code. */
  run(budget: number): number {
    const { words } = this.#memory;
    const retired = (this.#state + STATE.RETIRED) >>> 2;
    let left = budget;
    for (;;) {
      const before = words[retired]!;
      const reason = this.#run(this.#state, Math.min(left, SLICE), 0);
      left -= Math.max((words[retired]! - before) | 0, LEAST_USED);
      if (reason !== LEAVE.BUDGET || left <= 0) return reason;
    }
  }

  /**
   * Runs exactly the instruction at RIP, which lies in `frame`. LEAVE.STOP or LEAVE.BUDGET: it is done; other codes as for `run`;
   * LEAVE.FETCH: `nextFrame` could not fetch the page on which it ends.
   */
  step(frame: number, nextFrame: NextFrame): number {
    const { longs } = this.#memory;
    const rip = longs[(this.#state + STATE.RIP) >>> 3]!;
    longs[(this.#state + STATE.PAGE_BASE) >>> 3] = rip & ~0xfffn;
    const offset = Number(rip & 0xfffn);
    let record = this.#decoder.decodeSingle(this.#page(frame), offset, nextFrame);
    if (record === 'no-room') {
      this.flush();
      record = this.#decoder.decodeSingle(this.#page(frame), offset, nextFrame);
    }
    return typeof record === 'number' ? this.#run(this.#state, 1, record) : LEAVE.FETCH;
  }

  /**
   * Records of an instruction decoded outside 64-bit mode that lies at RIP, in `frame`; its memory operand is at STATE.LINEAR. They are good until
   * `flushes` or the mode changes.
   */
  plan(instruction: Instruction, frame: number): number {
    const offset = Number(this.#memory.longs[(this.#state + STATE.RIP) >>> 3]! & 0xfffn);
    let record = this.#decoder.planSingle(this.#page(frame), instruction, offset);
    if (record === 'no-room') {
      this.flush();
      record = this.#decoder.planSingle(this.#page(frame), instruction, offset);
    }
    if (typeof record !== 'number') throw new Error('no host memory is left for decoded code');
    return record;
  }

  /** Runs the records that `plan` made for the instruction at RIP, as `step` does. */
  runPlanned(record: number): number {
    const { longs } = this.#memory;
    longs[(this.#state + STATE.PAGE_BASE) >>> 3] = longs[(this.#state + STATE.RIP) >>> 3]! & ~0xfffn;
    return this.#run(this.#state, 1, record);
  }

  /** Address of the page map of `frame`, for the fetch TLB. */
  pageMap(frame: number): number {
    return this.#page(frame).map;
  }

  /**
   * After LEAVE.FETCH, with RIP's page in the fetch TLB: decodes what lies at `offset` of `frame`. `nextFrame` gives the frame of
   * the linear page that follows, and puts it into the fetch TLB; or −1 when that faults.
   * False: it did, the exception or exit is pending. May empty the fetch TLB (then `run` comes back with LEAVE.FETCH again).
   */
  decode(frame: number, offset: number, nextFrame: NextFrame): boolean {
    const page = this.#page(frame);
    const slot = (page.map >>> 2) + offset;
    const known = this.#memory.words[slot]!;
    if (known !== 0) {
      const state = this.#examine(known, nextFrame);
      if (state !== 'stale') return state === 'valid';
      this.#memory.words[slot] = 0;
    }
    const result: DecodeResult = this.#decoder.decode(page, offset, nextFrame);
    if (result === 'no-room') this.flush();
    return result !== 'no-next-page';
  }

  /** Throws away what was decoded from `frame`. To be called when its bytes change or it changes hands; cheap if there is nothing. */
  invalidateFrame(frame: number): void {
    for (let mode = 0; mode < VECTOR_MODES; mode++) {
      const page = this.#pages.get(frame, mode);
      if (page) this.#pages.empty(page);
    }
  }

  /** The same for a store of `bytes` at `offset`, if it hits bytes that were decoded. */
  invalidateBytes(frame: number, offset: number, bytes: number): void {
    for (let mode = 0; mode < VECTOR_MODES; mode++) {
      const page = this.#pages.get(frame, mode);
      if (page && isDecoded(page, offset, offset + bytes)) this.#pages.empty(page);
    }
  }

  /** True if something of `frame` is or was decoded since the last flush. */
  hasCode(frame: number): boolean {
    for (let mode = 0; mode < VECTOR_MODES; mode++) if (this.#pages.get(frame, mode)) return true;
    return false;
  }

  /** Throws away all decoded code and empties the fetch TLB. Not while `run` runs. */
  flush(): void {
    this.flushes++;
    this.#pages.flush();
    this.#emptyFetchTlb();
  }

  /** Gives page maps and records back to host memory. */
  close(): void {
    this.#pages.close();
  }

  #emptyFetchTlb(): void {
    const { longs } = this.#memory;
    const first = (this.#state + STATE.FETCH_TLB + TLB.TAG) >>> 3;
    for (const set of [0, USER_TLB >>> 3]) {
      for (let entry = 0; entry < TLB_ENTRIES; entry++) longs[first + set + 2 * entry] = TLB_EMPTY;
    }
  }

  #page(frame: number): CodePage {
    const known = this.#pages.get(frame, this.#mode);
    if (known) return known;
    let page = this.#pages.create(frame, this.#mode);
    if (!page) {
      this.flush();
      page = this.#pages.create(frame, this.#mode);
    }
    if (!page) throw new Error('no host memory is left for decoded code');
    return page;
  }

  /**
   * Why a record in a page map led to LEAVE.FETCH: it was thrown away with the bytes of the other page that it was made from; or it is
   * a guard that did not find the next page, or found another frame there.
   */
  #examine(record: number, nextFrame: NextFrame): 'valid' | 'stale' | 'no-next-page' {
    const { words } = this.#memory;
    const handler = words[(record + RECORD.HANDLER) >>> 2];
    if (handler === 0) return 'stale';
    if (handler !== generated().numbers.get('guard')) return 'valid';
    const frame = nextFrame();
    if (frame < 0) return 'no-next-page';
    return words[(record + RECORD.IMMEDIATE) >>> 2] === ((frame * 4096) | 0) ? 'valid' : 'stale';
  }

  /** An instruction that the core does not have: #UD. */
  #undefined(state: number, record: number): number {
    const { words, longs } = this.#memory;
    const mnemonic = iced().Mnemonic[words[(record + RECORD.IMMEDIATE) >>> 2]!] ?? 'unknown';
    this.undefinedInstructions.set(mnemonic, (this.undefinedInstructions.get(mnemonic) ?? 0) + 1);
    this.#options.onUndefined?.(mnemonic, longs[(state + STATE.RIP) >>> 3]!);
    words[(state + STATE.EXCEPTION_VECTOR) >>> 2] = INVALID_OPCODE;
    words[(state + STATE.EXCEPTION_ERROR) >>> 2] = 0;
    words[(state + STATE.EXCEPTION_HAS_ERROR) >>> 2] = 0;
    return LEAVE.EXCEPTION;
  }
}
