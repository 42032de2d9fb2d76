/**
 * String instructions (APM volume 3: MOVS, CMPS, SCAS, LODS, STOS, REP). Registers are committed element by element, so a fault in
 * the middle leaves the instruction to be started again. The record's base is the source's segment base.
 */
import { GPR, STATE } from '../state.ts';
import type { Label } from '../wasm/code.ts';
import { type I64, i32, i64, select } from '../wasm/value.ts';
import { setDifferenceFlags } from './arithmetic.ts';
import { signExtend } from './flags.ts';
import { type Group, INTEGER_SIZES, type OperandContext, type Operation, type Size } from './operation.ts';

const DIRECTION = 0x400;
/** Elements after which a repeated instruction lets others in. */
const SLICE = 0x10000;
/** What a chunk counts of that. */
const BULK_COST = 0x40;

type AddressSize = 32 | 64;

/** One element: reads and writes memory at rSI, rDI, then moves them. */
type Element = (c: OperandContext, pointers: Pointers) => void;

class Pointers {
  readonly #c: OperandContext;
  readonly #size: AddressSize;
  readonly #step: I64;

  constructor(c: OperandContext, size: AddressSize) {
    this.#c = c;
    this.#size = size;
    const bytes = c.size / 8;
    const backwards = i64.ne(i64.and(c.state(STATE.FLAGS_REST), DIRECTION), 0);
    this.#step = c.code.let(select(backwards, i64.const(-bytes), i64.const(bytes)));
  }

  /** The source counts from the record's segment base, which `effectiveAddress` gives. */
  source(): I64 {
    return i64.add(this.#c.effectiveAddress(), this.#c.readRegisterUnsigned(GPR.RSI, this.#size));
  }
  destination(): I64 {
    return this.#c.readRegisterUnsigned(GPR.RDI, this.#size);
  }
  advance(register: number): void {
    this.#c.writeRegister(
      register,
      i64.add(this.#c.readRegister(register, this.#size), this.#step),
      this.#size,
    );
  }
  count(): I64 {
    return this.#c.readRegisterUnsigned(GPR.RCX, this.#size);
  }
  /** Moves a pointer by bytes, and the count by the elements in them. */
  skip(register: number, bytes: I64): void {
    this.#c.writeRegister(register, i64.add(this.#c.readRegister(register, 64), bytes), 64);
  }
  countDownBytes(bytes: I64): void {
    const elements = i64.shrU(bytes, Math.log2(this.#c.size / 8));
    this.#c.writeRegister(GPR.RCX, i64.sub(this.count(), elements), 64);
  }
  countDown(): void {
    this.#c.writeRegister(GPR.RCX, i64.sub(this.count(), 1), this.#size);
  }
}

const ELEMENTS: Readonly<Record<string, Element>> = {
  movs: (c, at) => {
    c.store(at.destination(), c.load(at.source(), c.size), c.size);
    at.advance(GPR.RSI);
    at.advance(GPR.RDI);
  },
  stos: (c, at) => {
    c.store(at.destination(), c.readRegister(GPR.RAX), c.size);
    at.advance(GPR.RDI);
  },
  lods: (c, at) => {
    c.writeRegister(GPR.RAX, c.load(at.source(), c.size));
    at.advance(GPR.RSI);
  },
  cmps: (c, at) => {
    // AMD's cores read rDI's element first, as page faults show.
    const b = c.code.let(signExtend(c.load(at.destination(), c.size), c.size));
    const a = c.code.let(signExtend(c.load(at.source(), c.size), c.size));
    compare(c, a, b);
    at.advance(GPR.RSI);
    at.advance(GPR.RDI);
  },
  scas: (c, at) => {
    const a = c.code.let(c.readRegister(GPR.RAX));
    const b = c.code.let(signExtend(c.load(at.destination(), c.size), c.size));
    compare(c, a, b);
    at.advance(GPR.RDI);
  },
};

function compare(c: OperandContext, a: I64, b: I64): void {
  setDifferenceFlags(c, a, b, c.code.let(signExtend(i64.sub(a, b), c.size)));
}

const minimum = (c: OperandContext, a: I64, b: I64): I64 => c.code.let(select(i64.ltU(a, b), a, b));

/** Whole elements from here on that lie in both pages: their bytes, at most a page. */
function chunk(c: OperandContext, at: Pointers, ...limits: readonly I64[]): I64 {
  const elements = minimum(c, at.count(), i64.const(4096));
  let bytes: I64 = c.code.let(i64.mul(elements, c.size / 8));
  for (const limit of limits) bytes = minimum(c, bytes, limit);
  return c.code.let(i64.and(bytes, -(c.size / 8)));
}

/** Many elements at once, forwards and inside a page; goes to `slow` where that is not possible. */
type Bulk = (c: OperandContext, at: Pointers, slow: Label) => void;

const BULK: Readonly<Record<string, Bulk>> = {
  /** Not where the destination lies a little above the source: then the copy repeats what it has just written. */
  movs: (c, at, slow) => {
    const from = c.inPlace(c.code.let(at.source()), 'read');
    const to = c.inPlace(c.code.let(at.destination()), 'write');
    const bytes = chunk(c, at, from.bytes, to.bytes);
    const length = c.code.let(i32.wrap(bytes));
    c.code.brIf(slow, i32.eqz(length));
    c.code.brIf(slow, i32.ltU(i32.sub(to.host, from.host), length));
    c.code.memoryCopy(to.host, from.host, length);
    at.skip(GPR.RSI, bytes);
    at.skip(GPR.RDI, bytes);
    at.countDownBytes(bytes);
  },
  /** Where all bytes of an element are alike. */
  stos: (c, at, slow) => {
    const value = c.code.let(c.readRegisterUnsigned(GPR.RAX));
    const alike = i64.mul(i64.and(value, 0xff), (1n << BigInt(c.size)) / 0xffn);
    c.code.brIf(slow, i64.ne(value, alike));
    const to = c.inPlace(c.code.let(at.destination()), 'write');
    const bytes = chunk(c, at, to.bytes);
    c.code.brIf(slow, i64.eqz(bytes));
    c.code.memoryFill(to.host, i32.wrap(value), i32.wrap(bytes));
    at.skip(GPR.RDI, bytes);
    at.countDownBytes(bytes);
  },
};

const once = (element: Element, size: AddressSize): Operation['emit'] => {
  return (c) => element(c, new Pointers(c, size));
};

/** `until` ends a repetition after an element, by ZF. */
function repeat(
  element: Element,
  size: AddressSize,
  until: 'never' | 'different' | 'equal',
  bulk?: Bulk,
): Operation['emit'] {
  return (c) => {
    const { code } = c;
    const at = new Pointers(c, size);
    const left = code.let(i32.const(SLICE));
    code.block((done) => {
      code.loop((again) => {
        code.brIf(done, i64.eqz(at.count()));
        code.set(left, i32.sub(left, 1));
        code.if(i32.leS(left, 0), () => c.restart());
        if (bulk) {
          code.block((slow) => {
            code.brIf(slow, i64.ne(i64.and(c.state(STATE.FLAGS_REST), DIRECTION), 0));
            bulk(c, at, slow);
            code.set(left, i32.sub(left, BULK_COST));
            code.br(again);
          });
        }
        element(c, at);
        at.countDown();
        endAfter(c, until, done);
        code.br(again);
      });
    });
  };
}

function endAfter(c: OperandContext, until: 'never' | 'different' | 'equal', done: Label): void {
  const equal = i64.eqz(c.state(STATE.FLAG_ZR));
  if (until === 'equal') c.code.brIf(done, equal);
  if (until === 'different') c.code.brIf(done, i32.eqz(equal));
}

function operations(): Record<string, Operation> {
  const all: Record<string, Operation> = {};
  const sizes: readonly Size[] = INTEGER_SIZES;
  for (const [name, element] of Object.entries(ELEMENTS)) {
    for (const [suffix, addressSize] of [['', 64] as const, [' short', 32] as const]) {
      const add = (prefix: string, emit: Operation['emit']) => {
        all[`${prefix}${name}${suffix}`] = { sizes, emit };
      };
      add('', once(element, addressSize));
      if (name === 'cmps' || name === 'scas') {
        add('repe ', repeat(element, addressSize, 'different'));
        add('repne ', repeat(element, addressSize, 'equal'));
      } else {
        add('rep ', repeat(element, addressSize, 'never', addressSize === 64 ? BULK[name] : undefined));
      }
    }
  }
  return all;
}

/** Decoded by decode/string.ts: mnemonics share names with SSE's, and the prefix is part of the operation. */
export const strings: Group = { operations: operations(), instructions: {} };
