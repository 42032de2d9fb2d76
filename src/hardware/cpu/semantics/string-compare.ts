/**
 * PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM (AMD APM volume 4; SSE4.2). An instruction is three micro-operations: the lengths of both
 * strings (into TEMP0 and TEMP1), the comparison that bits 3:0 of its immediate name (a bit an element, into XTEMP1), and the result.
 * Operand 0 is the set or the string looked for, operand 1 the string looked into.
 */
import { GPR, STATE } from '../state.ts';
import type { Local } from '../wasm/code.ts';
import { i8x16, i16x8, v128 } from '../wasm/simd.ts';
import { type I32, type I64, i32, i64, select, type V128 } from '../wasm/value.ts';
import {
  type Group,
  type Instruction,
  NONE,
  type OperandContext,
  type Operation,
  READ,
} from './operation.ts';
import { VECTOR } from './packed-rows.ts';

/** How many elements, and the operations on them. */
interface Elements {
  readonly count: 8 | 16;
  /** A bit an element. */
  readonly bits: (a: V128) => I32;
  readonly equal: (a: V128, b: V128) => V128;
  readonly atLeast: (a: V128, b: V128) => V128;
  readonly atMost: (a: V128, b: V128) => V128;
  /** Element `number` in all places. */
  readonly repeat: (a: V128, number: I32) => V128;
}

const repeatByte = (a: V128, number: I32): V128 => i8x16.swizzle(a, i8x16.splat(number));
const repeatWord = (a: V128, number: I32): V128 =>
  i8x16.swizzle(a, i16x8.splat(i32.add(i32.mul(number, 0x0202), 0x0100)));

/** By bits 1:0 of the immediate. */
const ELEMENTS: readonly Elements[] = [
  {
    count: 16,
    bits: i8x16.allBits,
    equal: i8x16.eq,
    atLeast: i8x16.geU,
    atMost: i8x16.leU,
    repeat: repeatByte,
  },
  {
    count: 8,
    bits: i16x8.allBits,
    equal: i16x8.eq,
    atLeast: i16x8.geU,
    atMost: i16x8.leU,
    repeat: repeatWord,
  },
  {
    count: 16,
    bits: i8x16.allBits,
    equal: i8x16.eq,
    atLeast: i8x16.geS,
    atMost: i8x16.leS,
    repeat: repeatByte,
  },
  {
    count: 8,
    bits: i16x8.allBits,
    equal: i16x8.eq,
    atLeast: i16x8.geS,
    atMost: i16x8.leS,
    repeat: repeatWord,
  },
];
const BYTES = ELEMENTS[0]!;
const WORDS = ELEMENTS[1]!;

const lowBits = (count: I32): I32 => i32.sub(i32.shl(1, count), 1);

interface Strings {
  readonly a: V128;
  readonly b: V128;
  /** Elements that are there. */
  readonly lengthA: Local<'i32'>;
  readonly lengthB: Local<'i32'>;
}

function forEach(c: OperandContext, limit: I32, step: number, body: (number: Local<'i32'>) => void): void {
  const { code } = c;
  const number = code.let(i32.const(0));
  code.block((done) => {
    code.loop((next) => {
      code.brIf(done, i32.geS(number, limit));
      body(number);
      code.set(number, i32.add(number, step));
      code.br(next);
    });
  });
}

/** The elements of b that some element of a equals. */
function equalAny(c: OperandContext, { a, b, lengthA, lengthB }: Strings, of: Elements): I32 {
  const found = c.code.let(i32.const(0));
  forEach(c, lengthA, 1, (number) =>
    c.code.set(found, i32.or(found, of.bits(of.equal(b, of.repeat(a, number))))),
  );
  return i32.and(found, lowBits(lengthB));
}

/** The elements of b that lie in one of the ranges of a: pairs of bounds, both of them there. */
function inRanges(c: OperandContext, { a, b, lengthA, lengthB }: Strings, of: Elements): I32 {
  const found = c.code.let(i32.const(0));
  forEach(c, i32.sub(lengthA, 1), 2, (number) => {
    const low = of.atLeast(b, of.repeat(a, number));
    const high = of.atMost(b, of.repeat(a, i32.add(number, 1)));
    c.code.set(found, i32.or(found, of.bits(v128.and(low, high))));
  });
  return i32.and(found, lowBits(lengthB));
}

/** The places at which both are equal, or both are over. */
function equalEach(c: OperandContext, { a, b, lengthA, lengthB }: Strings, of: Elements): I32 {
  const hasA = c.code.let(lowBits(lengthA));
  const hasB = c.code.let(lowBits(lengthB));
  const all = (1 << of.count) - 1;
  const equal = i32.and(of.bits(of.equal(a, b)), i32.and(hasA, hasB));
  return i32.or(equal, i32.xor(i32.or(hasA, hasB), all));
}

/** The places of b at which a begins, as far as b goes on. */
function equalOrdered(c: OperandContext, { a, b, lengthA, lengthB }: Strings, of: Elements): I32 {
  const all = (1 << of.count) - 1;
  const found = c.code.let(i32.const(all));
  forEach(c, lengthA, 1, (number) => {
    const equal = i32.and(of.bits(of.equal(b, of.repeat(a, number))), lowBits(lengthB));
    const beyond = i32.xor(lowBits(i32.sub(of.count, number)), all);
    c.code.set(found, i32.and(found, i32.or(i32.shrU(equal, number), beyond)));
  });
  return found;
}

const COMPARISONS = [equalAny, inRanges, equalEach, equalOrdered] as const;

const lengths = (c: OperandContext): Pick<Strings, 'lengthA' | 'lengthB'> => ({
  lengthA: c.code.let(i32.wrap(c.state(STATE.TEMP0))),
  lengthB: c.code.let(i32.wrap(c.state(STATE.TEMP1))),
});

/** `control`: bits 3:0 of the immediate. */
const comparison = (control: number): Operation => ({
  sizes: VECTOR,
  destination: 'read',
  emit: (c) => {
    const strings = { a: c.readVector(0), b: c.readVector(1), ...lengths(c) };
    const result = COMPARISONS[control >> 2]!(c, strings, ELEMENTS[control & 3]!);
    c.setState(STATE.XTEMP1, i64.fromI32U(result));
  },
});

/** Up to the first element that is 0. */
const implicitLengths = (of: Elements): Operation => ({
  sizes: VECTOR,
  destination: 'read',
  emit: (c) => {
    const length = (a: V128): I64 =>
      i64.fromI32U(i32.ctz(i32.or(of.bits(of.equal(a, v128.zero())), 1 << of.count)));
    c.setState(STATE.TEMP0, length(c.readVector(0)));
    c.setState(STATE.TEMP1, length(c.readVector(1)));
  },
});

/** What rAX and rDX say without their sign, at most as many as there are. */
const explicitLengths = (of: Elements): Operation => ({
  sizes: [32, 64],
  destination: 'read',
  emit: (c) => {
    const length = (register: number): I64 => {
      const given = c.code.let(c.readRegister(register));
      const size = c.code.let(select(i64.ltS(given, 0), i64.sub(0, given), given));
      return select(i64.ltU(size, of.count), size, i64.const(of.count));
    };
    c.setState(STATE.TEMP0, length(GPR.RAX));
    c.setState(STATE.TEMP1, length(GPR.RDX));
  },
});

/** Bits 5:4 of the immediate invert the comparison's bits, all or those of elements that are there. Sets the flags. */
function finish(c: OperandContext, of: Elements): { bits: Local<'i32'>; immediate: I32 } {
  const { code } = c;
  const { lengthA, lengthB } = lengths(c);
  const immediate = code.let(i32.wrap(c.immediate()));
  const all = i32.const((1 << of.count) - 1);
  const inverted = select(i32.and(immediate, 0x20), lowBits(lengthB), all);
  const inversion = select(i32.and(immediate, 0x10), inverted, i32.const(0));
  const bits = code.let(i32.xor(i32.wrap(c.state(STATE.XTEMP1)), inversion));
  const ends = (length: I32): I64 => i64.fromI32U(i32.ltU(length, of.count));
  c.setState(STATE.FLAG_ZR, i64.xor(ends(lengthB), 1));
  c.setState(STATE.FLAG_SR, i64.or(i64.shl(ends(lengthA), 63), 1));
  c.setState(STATE.FLAG_CV, i64.shl(i64.fromI32U(i32.ne(bits, 0)), 63));
  c.setState(STATE.FLAG_OV, i64.shl(i64.fromI32U(bits), 63));
  return { bits, immediate };
}

/** ECX: the lowest element with a bit, the highest with bit 6 of the immediate; their number if there is none. */
const index = (of: Elements): Operation => ({
  sizes: [32],
  destination: 'read',
  emit: (c) => {
    const { bits, immediate } = finish(c, of);
    const found = select(i32.and(immediate, 0x40), i32.sub(31, i32.clz(bits)), i32.ctz(bits));
    c.writeRegister(GPR.RCX, i64.fromI32U(select(bits, found, i32.const(of.count))));
  },
});

/** XMM0: the bits, or with bit 6 of the immediate elements full of them. */
const mask = (of: Elements): Operation => ({
  sizes: VECTOR,
  destination: 'read',
  emit: (c) => {
    const { bits, immediate } = finish(c, of);
    const low = v128.const(Array.from({ length: 16 }, (_, at) => (at < 2 ? 0xff : 0)));
    const asBits = v128.and(i16x8.splat(bits), low);
    const ofElement = v128.const(
      Array.from({ length: 16 }, (_, at) => {
        if (of.count === 16) return 1 << (at & 7);
        return at % 2 === 0 ? 1 << (at / 2) : 0;
      }),
    );
    const bytes = i8x16.shuffle(
      i16x8.splat(bits),
      v128.zero(),
      [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1],
    );
    const spread = of.count === 16 ? bytes : v128.and(i16x8.splat(bits), i16x8.splat(0xff));
    const asElements = of.equal(v128.and(spread, ofElement), ofElement);
    c.setStateVector(STATE.XMM, select(i32.and(immediate, 0x40), asElements, asBits));
  },
});

/** Bits of the immediate byte that choose a comparison. */
const COMPARISON_CONTROL = 15;

/** Names of an instruction's micro-operations, as the decoder puts them one after the other. */
export function stringCompareSteps(mnemonic: string, immediate: number): readonly string[] {
  const elements = (immediate & 1) === 0 ? 'Bytes' : 'Words';
  const wide = mnemonic.endsWith('64') ? 64 : 32;
  const counted = mnemonic.startsWith('Pcmpe')
    ? `explicitLengths${elements}.${wide}`
    : `implicitLengths${elements}.128`;
  const result = /i(64)?$/.test(mnemonic) ? `stringIndex${elements}.32` : `stringMask${elements}.128`;
  return [counted, `compareStrings${immediate & COMPARISON_CONTROL}.128`, result];
}

const ROW: Instruction = { operation: 'compareStrings', roles: [READ, READ, NONE], size: 128 };
const MNEMONICS = ['Pcmpestri', 'Pcmpestri64', 'Pcmpestrm', 'Pcmpestrm64', 'Pcmpistri', 'Pcmpistrm'];

export const stringCompare: Group = {
  operations: {
    implicitLengthsBytes: implicitLengths(BYTES),
    implicitLengthsWords: implicitLengths(WORDS),
    explicitLengthsBytes: explicitLengths(BYTES),
    explicitLengthsWords: explicitLengths(WORDS),
    ...Object.fromEntries(
      Array.from({ length: 16 }, (_, control) => [`compareStrings${control}`, comparison(control)]),
    ),
    stringIndexBytes: index(BYTES),
    stringIndexWords: index(WORDS),
    stringMaskBytes: mask(BYTES),
    stringMaskWords: mask(WORDS),
  },
  instructions: Object.fromEntries(MNEMONICS.map((mnemonic) => [mnemonic, ROW])),
};
