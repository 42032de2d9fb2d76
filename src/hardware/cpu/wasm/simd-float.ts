/** Floating-point lanes of 128-bit values (WebAssembly core specification, section 5.4.8), like `simd.ts`. Comparisons give masks. */

import { unsigned } from './bytes.ts';
import { f32, f64 } from './float.ts';
import { type F32, type F64, type I32, type V128, value } from './value.ts';

const op = (opcode: number): number[] => [0xfd, ...unsigned(opcode)];
const unary =
  (opcode: number) =>
  (a: V128): V128 =>
    value('v128', a.bytes, op(opcode));
const binary =
  (opcode: number) =>
  (a: V128, b: V128): V128 =>
    value('v128', a.bytes, b.bytes, op(opcode));

export const f32x4 = {
  splat: (x: number): V128 => value('v128', f32.const(x).bytes, op(0x13)),
  extract: (a: V128, lane: number): F32 => value('f32', a.bytes, op(0x1f), [lane]),
  replace: (a: V128, lane: number, to: F32): V128 => value('v128', a.bytes, to.bytes, op(0x20), [lane]),
  eq: binary(0x41),
  ne: binary(0x42),
  lt: binary(0x43),
  gt: binary(0x44),
  le: binary(0x45),
  ge: binary(0x46),
  /** Two f64 lanes as the lower lanes, the upper ones zero. */
  demoteZero: unary(0x5e),
  abs: unary(0xe0),
  ceil: unary(0x67),
  floor: unary(0x68),
  trunc: unary(0x69),
  nearest: unary(0x6a),
  sqrt: unary(0xe3),
  add: binary(0xe4),
  sub: binary(0xe5),
  mul: binary(0xe6),
  div: binary(0xe7),
  /** b < a ? b : a */
  pseudoMin: binary(0xea),
  /** a < b ? b : a */
  pseudoMax: binary(0xeb),
  fromI32x4: unary(0xfa),
  /** 1 if no lane of a mask is 0. */
  all: (a: V128): I32 => value('i32', a.bytes, op(0xa3)),
} as const;

export const f64x2 = {
  splat: (x: number): V128 => value('v128', f64.const(x).bytes, op(0x14)),
  extract: (a: V128, lane: number): F64 => value('f64', a.bytes, op(0x21), [lane]),
  replace: (a: V128, lane: number, to: F64): V128 => value('v128', a.bytes, to.bytes, op(0x22), [lane]),
  eq: binary(0x47),
  ne: binary(0x48),
  lt: binary(0x49),
  gt: binary(0x4a),
  le: binary(0x4b),
  ge: binary(0x4c),
  /** The lower two f32 lanes. */
  promoteLow: unary(0x5f),
  abs: unary(0xec),
  ceil: unary(0x74),
  floor: unary(0x75),
  trunc: unary(0x7a),
  nearest: unary(0x94),
  sqrt: unary(0xef),
  add: binary(0xf0),
  sub: binary(0xf1),
  mul: binary(0xf2),
  div: binary(0xf3),
  pseudoMin: binary(0xf6),
  pseudoMax: binary(0xf7),
  fromLowI32x4: unary(0xfe),
  all: (a: V128): I32 => value('i32', a.bytes, op(0xc3)),
} as const;

export const i32x4FromFloat = {
  /** Towards zero, saturating; NaN is 0. */
  truncateF32x4: unary(0xf8),
  /** The same of two f64 lanes; the upper ones are zero. */
  truncateF64x2Zero: unary(0xfc),
} as const;
