/** Floating-point numbers of a WebAssembly function (core specification, section 5.4.7), like `value.ts`. Arithmetic is IEEE 754's, to nearest. */
import { type F32, type F64, type I32, type I64, type Int32, type Int64, i32, i64, value } from './value.ts';

const unaryOf =
  <T extends 'f32' | 'f64'>(type: T, opcode: number) =>
  (a: { readonly type: T; readonly bytes: readonly number[] }) =>
    value(type, a.bytes, [opcode]);
const binaryOf =
  <T extends 'f32' | 'f64'>(type: T, opcode: number) =>
  (
    a: { readonly type: T; readonly bytes: readonly number[] },
    b: { readonly type: T; readonly bytes: readonly number[] },
  ) =>
    value(type, a.bytes, b.bytes, [opcode]);
const compareOf =
  <T extends 'f32' | 'f64'>(_: T, opcode: number) =>
  (
    a: { readonly type: T; readonly bytes: readonly number[] },
    b: { readonly type: T; readonly bytes: readonly number[] },
  ): I32 =>
    value('i32', a.bytes, b.bytes, [opcode]);

function encoded(bytes: 4 | 8, x: number): number[] {
  const view = new DataView(new ArrayBuffer(bytes));
  if (bytes === 4) view.setFloat32(0, x, true);
  else view.setFloat64(0, x, true);
  return [...new Uint8Array(view.buffer)];
}

export const f32 = {
  const: (x: number): F32 => value('f32', [0x43], encoded(4, x)),
  eq: compareOf('f32', 0x5b),
  ne: compareOf('f32', 0x5c),
  lt: compareOf('f32', 0x5d),
  gt: compareOf('f32', 0x5e),
  le: compareOf('f32', 0x5f),
  ge: compareOf('f32', 0x60),
  abs: unaryOf('f32', 0x8b),
  ceil: unaryOf('f32', 0x8d),
  floor: unaryOf('f32', 0x8e),
  trunc: unaryOf('f32', 0x8f),
  nearest: unaryOf('f32', 0x90),
  sqrt: unaryOf('f32', 0x91),
  add: binaryOf('f32', 0x92),
  sub: binaryOf('f32', 0x93),
  mul: binaryOf('f32', 0x94),
  div: binaryOf('f32', 0x95),
  demote: (a: F64): F32 => value('f32', a.bytes, [0xb6]),
  fromI32: (a: Int32): F32 => value('f32', i32.const(a).bytes, [0xb2]),
  fromI64: (a: Int64): F32 => value('f32', i64.const(a).bytes, [0xb4]),
  /** The number with these bits; and the other way. */
  ofBits: (a: Int32): F32 => value('f32', i32.const(a).bytes, [0xbe]),
  bits: (a: F32): I32 => value('i32', a.bytes, [0xbc]),
  /** Towards zero; what does not fit becomes the nearest integer that does, NaN 0. */
  truncate64: (a: F32): I64 => value('i64', a.bytes, [0xfc, 4]),
} as const;

export const f64 = {
  const: (x: number): F64 => value('f64', [0x44], encoded(8, x)),
  eq: compareOf('f64', 0x61),
  ne: compareOf('f64', 0x62),
  lt: compareOf('f64', 0x63),
  gt: compareOf('f64', 0x64),
  le: compareOf('f64', 0x65),
  ge: compareOf('f64', 0x66),
  abs: unaryOf('f64', 0x99),
  ceil: unaryOf('f64', 0x9b),
  floor: unaryOf('f64', 0x9c),
  trunc: unaryOf('f64', 0x9d),
  nearest: unaryOf('f64', 0x9e),
  sqrt: unaryOf('f64', 0x9f),
  add: binaryOf('f64', 0xa0),
  sub: binaryOf('f64', 0xa1),
  mul: binaryOf('f64', 0xa2),
  div: binaryOf('f64', 0xa3),
  promote: (a: F32): F64 => value('f64', a.bytes, [0xbb]),
  fromI32: (a: Int32): F64 => value('f64', i32.const(a).bytes, [0xb7]),
  fromI64: (a: Int64): F64 => value('f64', i64.const(a).bytes, [0xb9]),
  ofBits: (a: Int64): F64 => value('f64', i64.const(a).bytes, [0xbf]),
  bits: (a: F64): I64 => value('i64', a.bytes, [0xbd]),
  truncate64: (a: F64): I64 => value('i64', a.bytes, [0xfc, 6]),
} as const;
