/**
 * The body of one WebAssembly function: locals, statements, and structured control whose labels are handles, so that nobody
 * counts nesting depths.
 */
import { unsigned } from './bytes.ts';
import {
  type I32,
  type I64,
  type Int32,
  type Int64,
  i32,
  i64,
  TYPE_BYTE,
  type V128,
  type Value,
  type ValueType,
  value,
} from './value.ts';

/** A local variable; as a value it reads itself. */
export interface Local<T extends ValueType> extends Value<T> {
  readonly index: number;
}

/** A place that `br` can go to: the end of a block, the start of a loop. */
export interface Label {
  readonly depth: number;
}

/** A function that can be called: its index in the module and its type. */
export interface FunctionHandle {
  readonly index: number;
  readonly parameters: readonly ValueType[];
  readonly result: ValueType | undefined;
}

const EMPTY_BLOCK = 0x40;

export class Code {
  readonly #bytes: number[] = [];
  readonly #localTypes: ValueType[] = [];
  readonly #parameterCount: number;
  #free: Local<ValueType>[] = [];
  #taken: Local<ValueType>[] = [];
  #depth = 0;

  constructor(parameters: readonly ValueType[]) {
    this.#parameterCount = parameters.length;
  }

  /** A parameter of the function. */
  parameter<T extends ValueType>(type: T, index: number): Local<T> {
    return { ...value(type, [0x20], unsigned(index)), index };
  }

  /** A local that is free inside the current `scope`. */
  local<T extends ValueType>(type: T): Local<T> {
    const at = this.#free.findIndex((local) => local.type === type);
    let local: Local<ValueType>;
    if (at >= 0) {
      local = this.#free.splice(at, 1)[0]!;
    } else {
      const index = this.#parameterCount + this.#localTypes.push(type) - 1;
      local = { ...value(type, [0x20], unsigned(index)), index };
    }
    this.#taken.push(local);
    return local as Local<T>;
  }

  /** Locals taken while `body` runs are free again afterwards. */
  scope(body: () => void): void {
    const outer = this.#taken;
    this.#taken = [];
    body();
    this.#free = [...this.#free, ...this.#taken];
    this.#taken = outer;
  }

  set<T extends ValueType>(local: Local<T>, to: Value<T>): void {
    this.#emit(to.bytes, [0x21], unsigned(local.index));
  }

  /** A new local that holds what `of` is now. */
  let<T extends ValueType>(of: Value<T>): Local<T> {
    const local = this.local(of.type);
    this.set(local, of);
    return local;
  }

  block(body: (end: Label) => void): void {
    this.#structure([0x02, EMPTY_BLOCK], body);
  }

  /** `br` to the label starts over. */
  loop(body: (start: Label) => void): void {
    this.#structure([0x03, EMPTY_BLOCK], body);
  }

  if(condition: I32, whenTrue: () => void, whenFalse?: () => void): void {
    this.#structure([...condition.bytes, 0x04, EMPTY_BLOCK], () => {
      whenTrue();
      if (whenFalse === undefined) return;
      this.#emit([0x05]);
      whenFalse();
    });
  }

  br(label: Label): void {
    this.#emit([0x0c], unsigned(this.#distance(label)));
  }

  brIf(label: Label, condition: I32): void {
    this.#emit(condition.bytes, [0x0d], unsigned(this.#distance(label)));
  }

  /** Jumps to `labels[index]`, or to `otherwise` beyond the end. */
  brTable(index: I32, labels: readonly Label[], otherwise: Label): void {
    this.#emit(index.bytes, [0x0e], unsigned(labels.length));
    for (const label of labels) this.#emit(unsigned(this.#distance(label)));
    this.#emit(unsigned(this.#distance(otherwise)));
  }

  return(result: I32): void {
    this.#emit(result.bytes, [0x0f]);
  }

  unreachable(): void {
    this.#emit([0x00]);
  }

  /** Calls a function without a result. */
  call(callee: FunctionHandle, ...args: Value<ValueType>[]): void {
    this.#emit(...args.map((arg) => arg.bytes), [0x10], unsigned(callee.index));
  }

  store8(address: I32, offset: number, what: Int64): void {
    this.#store(0x3c, address, offset, i64.const(what));
  }
  store16(address: I32, offset: number, what: Int64): void {
    this.#store(0x3d, address, offset, i64.const(what));
  }
  store32(address: I32, offset: number, what: Int64): void {
    this.#store(0x3e, address, offset, i64.const(what));
  }
  store64(address: I32, offset: number, what: Int64): void {
    this.#store(0x37, address, offset, i64.const(what));
  }
  storeI32(address: I32, offset: number, what: Int32): void {
    this.#store(0x36, address, offset, i32.const(what));
  }
  storeV128(address: I32, offset: number, what: V128): void {
    this.#emit(address.bytes, what.bytes, [0xfd, 0x0b, 0], unsigned(offset));
  }

  /** `memory.copy`: overlapping ranges are copied as if through a buffer. */
  memoryCopy(to: I32, from: I32, bytes: I32): void {
    this.#emit(to.bytes, from.bytes, bytes.bytes, [0xfc, 0x0a, 0, 0]);
  }
  /** `memory.fill` with the low byte of `what`. */
  memoryFill(to: I32, what: I32, bytes: I32): void {
    this.#emit(to.bytes, what.bytes, bytes.bytes, [0xfc, 0x0b, 0]);
  }

  /** The function as it stands in the code section, its length first. */
  encode(): number[] {
    const runs: [number, ValueType][] = [];
    for (const type of this.#localTypes) {
      const last = runs.at(-1);
      if (last?.[1] === type) last[0]++;
      else runs.push([1, type]);
    }
    const locals = runs.flatMap(([count, type]) => [...unsigned(count), TYPE_BYTE[type]]);
    const body = [...unsigned(runs.length), ...locals].concat(this.#bytes, [0x0b]);
    return unsigned(body.length).concat(body);
  }

  #structure(opening: readonly number[], body: (label: Label) => void): void {
    this.#emit(opening);
    this.#depth++;
    body({ depth: this.#depth });
    this.#depth--;
    this.#emit([0x0b]);
  }

  #distance(label: Label): number {
    return this.#depth - label.depth;
  }

  #store(opcode: number, address: I32, offset: number, what: I32 | I64): void {
    this.#emit(address.bytes, what.bytes, [opcode, 0], unsigned(offset));
  }

  #emit(...parts: (readonly number[])[]): void {
    for (const part of parts) for (const byte of part) this.#bytes.push(byte);
  }
}

/** The result of calling `callee`. */
export const call = <T extends ValueType>(
  type: T,
  callee: FunctionHandle,
  ...args: Value<ValueType>[]
): Value<T> => value(type, ...args.map((arg) => arg.bytes), [0x10], unsigned(callee.index));
