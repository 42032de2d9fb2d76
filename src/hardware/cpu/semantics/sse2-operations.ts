/**
 * What the SSE and SSE2 integer, logic and shuffle instructions compute (AMD APM volume 4, 128-bit media instructions), as
 * functions from operands to the result: no memory, no registers, no flags, no exceptions. Floating point is not here.
 */
import { i8x16, i16x8, i32x4, i64x2, v128 } from '../wasm/simd.ts';
import { type I32, type I64, i32, i64, select, type V128 } from '../wasm/value.ts';

/** destination, source → result */
export type VectorOperation = (destination: V128, source: V128) => V128;

/** Byte lanes of a shuffle that takes `width`-byte elements by index; elements from 16/width on are the second operand's. */
export const elements = (width: number, ...indices: readonly number[]): number[] =>
  indices.flatMap((index) => Array.from({ length: width }, (_, byte) => index * width + byte));

const interleave = (width: number, first: number): number[] => {
  const half = 8 / width;
  return elements(width, ...Array.from({ length: half }, (_, i) => [first + i, first + i + 2 * half]).flat());
};
const unpackLow =
  (width: number): VectorOperation =>
  (a, b) =>
    i8x16.shuffle(a, b, interleave(width, 0));
const unpackHigh =
  (width: number): VectorOperation =>
  (a, b) =>
    i8x16.shuffle(a, b, interleave(width, 8 / width));

/** High halves of eight 32-bit products that lie in two vectors. */
const highHalves = (low: V128, high: V128): V128 =>
  i8x16.shuffle(low, high, elements(2, 1, 3, 5, 7, 9, 11, 13, 15));
export const EVEN_DWORDS = elements(4, 0, 2, 0, 2);

/** |a − b| of unsigned bytes. */
export const absoluteDifference: VectorOperation = (a, b) =>
  v128.or(i8x16.subSatU(a, b), i8x16.subSatU(b, a));

/** Both sums of eight unsigned bytes, each in the low 16 bits of a quadword. */
const sumOfQuadwords = (bytes: V128): V128 => {
  const fours = i32x4.pairwiseAddU(i16x8.pairwiseAddU(bytes));
  return v128.and(i64x2.add(fours, i64x2.shrU(fours, 32)), i64x2.splat(0xffffffffn));
};

/** Instructions of the form `op xmm, xmm/m128`, by mnemonic. */
export const VECTOR_OPERATIONS: Readonly<Record<string, VectorOperation>> = {
  Pand: v128.and,
  Pandn: (a, b) => v128.andNot(b, a),
  Por: v128.or,
  Pxor: v128.xor,
  Andps: v128.and,
  Andpd: v128.and,
  Andnps: (a, b) => v128.andNot(b, a),
  Andnpd: (a, b) => v128.andNot(b, a),
  Orps: v128.or,
  Orpd: v128.or,
  Xorps: v128.xor,
  Xorpd: v128.xor,

  Paddb: i8x16.add,
  Paddw: i16x8.add,
  Paddd: i32x4.add,
  Paddq: i64x2.add,
  Paddsb: i8x16.addSatS,
  Paddsw: i16x8.addSatS,
  Paddusb: i8x16.addSatU,
  Paddusw: i16x8.addSatU,
  Psubb: i8x16.sub,
  Psubw: i16x8.sub,
  Psubd: i32x4.sub,
  Psubq: i64x2.sub,
  Psubsb: i8x16.subSatS,
  Psubsw: i16x8.subSatS,
  Psubusb: i8x16.subSatU,
  Psubusw: i16x8.subSatU,

  Pmullw: i16x8.mul,
  Pmulhw: (a, b) => highHalves(i32x4.mulLowS(a, b), i32x4.mulHighS(a, b)),
  Pmulhuw: (a, b) => highHalves(i32x4.mulLowU(a, b), i32x4.mulHighU(a, b)),
  Pmuludq: (a, b) => i64x2.mulLowU(i8x16.shuffle(a, a, EVEN_DWORDS), i8x16.shuffle(b, b, EVEN_DWORDS)),
  Pmaddwd: i32x4.dotS,
  Psadbw: (a, b) => sumOfQuadwords(absoluteDifference(a, b)),
  Pavgb: i8x16.averageU,
  Pavgw: i16x8.averageU,
  Pminub: i8x16.minU,
  Pmaxub: i8x16.maxU,
  Pminsw: i16x8.minS,
  Pmaxsw: i16x8.maxS,

  Pcmpeqb: i8x16.eq,
  Pcmpeqw: i16x8.eq,
  Pcmpeqd: i32x4.eq,
  Pcmpgtb: i8x16.gtS,
  Pcmpgtw: i16x8.gtS,
  Pcmpgtd: i32x4.gtS,

  Packsswb: i8x16.narrowS,
  Packuswb: i8x16.narrowU,
  Packssdw: i16x8.narrowS,
  Punpcklbw: unpackLow(1),
  Punpcklwd: unpackLow(2),
  Punpckldq: unpackLow(4),
  Punpcklqdq: unpackLow(8),
  Punpckhbw: unpackHigh(1),
  Punpckhwd: unpackHigh(2),
  Punpckhdq: unpackHigh(4),
  Punpckhqdq: unpackHigh(8),
  Unpcklps: unpackLow(4),
  Unpcklpd: unpackLow(8),
  Unpckhps: unpackHigh(4),
  Unpckhpd: unpackHigh(8),
  /** The register forms of MOVLPS and MOVHPS. */
  Movhlps: (a, b) => i8x16.shuffle(a, b, elements(8, 3, 1)),
  Movlhps: (a, b) => i8x16.shuffle(a, b, elements(8, 0, 2)),
};

/** Copies with lanes doubled (SSE3), by mnemonic. */
export const VECTOR_COPIES: Readonly<Record<string, (source: V128) => V128>> = {
  Movsldup: (a) => i8x16.shuffle(a, a, elements(4, 0, 0, 2, 2)),
  Movshdup: (a) => i8x16.shuffle(a, a, elements(4, 1, 1, 3, 3)),
};

/** value, count (any 64-bit number) → shifted; counts of at least the lane's width clear it, or fill it with the sign. */
export type VectorShift = (value: V128, count: I64) => V128;

const logical =
  (shift: (a: V128, count: I32) => V128, width: number): VectorShift =>
  (a, count) =>
    select(i64.ltU(count, width), shift(a, i32.wrap(count)), v128.zero());
const arithmetic =
  (shift: (a: V128, count: I32) => V128, width: number): VectorShift =>
  (a, count) =>
    shift(a, i32.wrap(select(i64.ltU(count, width), count, i64.const(width - 1))));

/** Shifts by a register's or memory's low quadword, or by an immediate byte. */
export const VECTOR_SHIFTS: Readonly<Record<string, VectorShift>> = {
  Psllw: logical(i16x8.shl, 16),
  Pslld: logical(i32x4.shl, 32),
  Psllq: logical(i64x2.shl, 64),
  Psrlw: logical(i16x8.shrU, 16),
  Psrld: logical(i32x4.shrU, 32),
  Psrlq: logical(i64x2.shrU, 64),
  Psraw: arithmetic(i16x8.shrS, 16),
  Psrad: arithmetic(i32x4.shrS, 32),
};

/** The index of each byte in its vector. */
const BYTE_NUMBERS = Array.from({ length: 16 }, (_, byte) => byte);
export const byteNumbers = (): V128 => v128.const(BYTE_NUMBERS);

/** destination, source, immediate byte → result, for what an immediate steers at run time. */
export type ImmediateOperation = (destination: V128, source: V128, immediate: I32) => V128;

export const selector = (immediate: I32, lane: number, bits: number): I32 =>
  i32.and(i32.shrU(immediate, lane * bits), (1 << bits) - 1);

/** Bytes of dwords whose numbers are the four 2-bit fields of `immediate`: an index vector for a swizzle. */
export const dwordIndices = (immediate: I32): V128 => {
  let index = i32x4.splat(i32.mul(selector(immediate, 0, 2), 0x04040404));
  for (let lane = 1; lane < 4; lane++) {
    index = i32x4.replace(index, lane, i32.mul(selector(immediate, lane, 2), 0x04040404));
  }
  return i8x16.add(index, i32x4.splat(0x03020100));
};

/** Index vector that permutes the four words of one half (first word `base`) and leaves the other alone. */
const wordIndices = (immediate: I32, base: number): V128 => {
  let index = byteNumbers();
  for (let lane = 0; lane < 4; lane++) {
    const first = i32.add(i32.mul(selector(immediate, lane, 2), 0x0202), (base * 2 + 1) * 256 + base * 2);
    index = i16x8.replace(index, base + lane, first);
  }
  return index;
};

/** Instructions of the form `op xmm, xmm/m128, imm8`, by mnemonic. */
export const VECTOR_IMMEDIATE_OPERATIONS: Readonly<Record<string, ImmediateOperation>> = {
  Pshufd: (_, source, immediate) => i8x16.swizzle(source, dwordIndices(immediate)),
  Pshuflw: (_, source, immediate) => i8x16.swizzle(source, wordIndices(immediate, 0)),
  Pshufhw: (_, source, immediate) => i8x16.swizzle(source, wordIndices(immediate, 4)),
  Shufps: (destination, source, immediate) => {
    const low = i8x16.swizzle(destination, dwordIndices(immediate));
    const high = i8x16.swizzle(source, dwordIndices(immediate));
    return i8x16.shuffle(low, high, elements(8, 0, 3));
  },
  Shufpd: (destination, source, immediate) => {
    const pick = (of: V128, lane: number): I64 =>
      select(selector(immediate, lane, 1), i64x2.extract(of, 1), i64x2.extract(of, 0));
    return i64x2.replace(i64x2.splat(pick(destination, 0)), 1, pick(source, 1));
  },
};

/** Whole-register byte shifts by an immediate (above 15: zero): swizzle indices above 15 give zero bytes. */
export const BYTE_SHIFTS: Readonly<Record<string, (value: V128, count: I32) => V128>> = {
  Psrldq: (a, count) => i8x16.swizzle(a, i8x16.addSatU(byteNumbers(), i8x16.splat(count))),
  Pslldq: (a, count) => {
    const bytes = select(i32.ltU(count, 16), count, i32.const(16));
    return i8x16.swizzle(a, i8x16.sub(byteNumbers(), i8x16.splat(bytes)));
  },
};

/** Instructions that gather one sign bit a lane into a general register. */
export const SIGN_MASKS: Readonly<Record<string, (value: V128) => I32>> = {
  Pmovmskb: i8x16.allBits,
  Movmskps: i32x4.allBits,
  Movmskpd: i64x2.allBits,
};
