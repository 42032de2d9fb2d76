/**
 * The 128-bit instructions of a WebAssembly function (core specification, section 5.4.8), named shape_operation as there. Values
 * are evaluated where they are used, like those of `value.ts`.
 */
import { unsigned } from './bytes.ts';
import { type I32, type I64, type Int32, type Int64, i32, i64, type V128, value } from './value.ts';

const SIMD = 0xfd;
const op = (opcode: number): number[] => [SIMD, ...unsigned(opcode)];

const unary =
  (opcode: number) =>
  (a: V128): V128 =>
    value('v128', a.bytes, op(opcode));
const binary =
  (opcode: number) =>
  (a: V128, b: V128): V128 =>
    value('v128', a.bytes, b.bytes, op(opcode));
/** Shift counts are taken modulo the lane's width. */
const shift =
  (opcode: number) =>
  (a: V128, count: Int32): V128 =>
    value('v128', a.bytes, i32.const(count).bytes, op(opcode));
const load =
  (opcode: number) =>
  (address: I32, offset = 0): V128 =>
    value('v128', address.bytes, op(opcode), [0], unsigned(offset));

const splat32 =
  (opcode: number) =>
  (a: Int32): V128 =>
    value('v128', i32.const(a).bytes, op(opcode));
const extract =
  (opcode: number) =>
  (a: V128, lane: number): I32 =>
    value('i32', a.bytes, op(opcode), [lane]);
const replace =
  (opcode: number) =>
  (a: V128, lane: number, to: Int32): V128 =>
    value('v128', a.bytes, i32.const(to).bytes, op(opcode), [lane]);

export const v128 = {
  load: load(0x00),
  /** Low 32 or 64 bits from memory, the rest zero. */
  load32Zero: load(0x5c),
  load64Zero: load(0x5d),
  const: (bytes: readonly number[]): V128 => value('v128', op(0x0c), bytes),
  zero: (): V128 => value('v128', op(0x0c), new Array<number>(16).fill(0)),
  not: unary(0x4d),
  and: binary(0x4e),
  /** a ∧ ¬b */
  andNot: binary(0x4f),
  or: binary(0x50),
  xor: binary(0x51),
  /** Bits of a where the mask has 1, of b where it has 0. */
  select: (a: V128, b: V128, mask: V128): V128 => value('v128', a.bytes, b.bytes, mask.bytes, op(0x52)),
  anyTrue: (a: V128): I32 => value('i32', a.bytes, op(0x53)),
} as const;

export const i8x16 = {
  /** Byte i of the result is byte `lanes[i]` of a (0–15) followed by b (16–31). */
  shuffle: (a: V128, b: V128, lanes: readonly number[]): V128 =>
    value('v128', a.bytes, b.bytes, op(0x0d), lanes),
  /** Byte i of the result is byte `index[i]` of a, 0 where the index is above 15. */
  swizzle: binary(0x0e),
  splat: splat32(0x0f),
  eq: binary(0x23),
  gtS: binary(0x27),
  leS: binary(0x29),
  leU: binary(0x2a),
  geS: binary(0x2b),
  geU: binary(0x2c),
  abs: unary(0x60),
  allBits: (a: V128): I32 => value('i32', a.bytes, op(0x64)),
  narrowS: binary(0x65),
  narrowU: binary(0x66),
  add: binary(0x6e),
  addSatS: binary(0x6f),
  addSatU: binary(0x70),
  sub: binary(0x71),
  subSatS: binary(0x72),
  subSatU: binary(0x73),
  minS: binary(0x76),
  minU: binary(0x77),
  maxS: binary(0x78),
  maxU: binary(0x79),
  averageU: binary(0x7b),
} as const;

export const i16x8 = {
  splat: splat32(0x10),
  extractU: extract(0x19),
  replace: replace(0x1a),
  eq: binary(0x2d),
  gtS: binary(0x31),
  leS: binary(0x33),
  leU: binary(0x34),
  geS: binary(0x35),
  geU: binary(0x36),
  pairwiseAddU: unary(0x7d),
  abs: unary(0x80),
  /** (a · b + 2^14) >> 15, saturated. */
  mulQ15S: binary(0x82),
  allBits: (a: V128): I32 => value('i32', a.bytes, op(0x84)),
  narrowS: binary(0x85),
  narrowU: binary(0x86),
  /** The low eight bytes as words. */
  extendLowS: unary(0x87),
  extendLowU: unary(0x89),
  shl: shift(0x8b),
  shrS: shift(0x8c),
  shrU: shift(0x8d),
  add: binary(0x8e),
  addSatS: binary(0x8f),
  addSatU: binary(0x90),
  sub: binary(0x91),
  subSatS: binary(0x92),
  subSatU: binary(0x93),
  mul: binary(0x95),
  minS: binary(0x96),
  minU: binary(0x97),
  maxS: binary(0x98),
  maxU: binary(0x99),
  averageU: binary(0x9b),
} as const;

export const i32x4 = {
  splat: splat32(0x11),
  extract: extract(0x1b),
  replace: replace(0x1c),
  eq: binary(0x37),
  gtS: binary(0x3b),
  pairwiseAddU: unary(0x7f),
  abs: unary(0xa0),
  allBits: (a: V128): I32 => value('i32', a.bytes, op(0xa4)),
  extendLowS: unary(0xa7),
  extendLowU: unary(0xa9),
  extendHighU: unary(0xaa),
  shl: shift(0xab),
  shrS: shift(0xac),
  shrU: shift(0xad),
  add: binary(0xae),
  sub: binary(0xb1),
  mul: binary(0xb5),
  minS: binary(0xb6),
  minU: binary(0xb7),
  maxS: binary(0xb8),
  maxU: binary(0xb9),
  /** Sums of products of neighbouring signed 16-bit lanes, modulo 2^32. */
  dotS: binary(0xba),
  mulLowS: binary(0xbc),
  mulHighS: binary(0xbd),
  mulLowU: binary(0xbe),
  mulHighU: binary(0xbf),
} as const;

export const i64x2 = {
  splat: (a: Int64): V128 => value('v128', i64.const(a).bytes, op(0x12)),
  extract: (a: V128, lane: number): I64 => value('i64', a.bytes, op(0x1d), [lane]),
  replace: (a: V128, lane: number, to: Int64): V128 =>
    value('v128', a.bytes, i64.const(to).bytes, op(0x1e), [lane]),
  eq: binary(0xd6),
  gtS: binary(0xd9),
  allBits: (a: V128): I32 => value('i32', a.bytes, op(0xc4)),
  extendLowS: unary(0xc7),
  extendLowU: unary(0xc9),
  shl: shift(0xcb),
  shrS: shift(0xcc),
  shrU: shift(0xcd),
  add: binary(0xce),
  sub: binary(0xd1),
  mulLowS: binary(0xdc),
  mulLowU: binary(0xde),
} as const;
