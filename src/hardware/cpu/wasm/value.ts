/**
 * Values of a WebAssembly function: typed pieces of code that leave one value on the stack, and the numeric instructions that
 * combine them (core specification, section 5.4). A value is evaluated where it is used, each time it is used; `Code.let` fixes
 * it in a local. Literals may be written as numbers.
 */
import { signed, unsigned } from './bytes.ts';

export type ValueType = 'i32' | 'i64' | 'f32' | 'f64' | 'v128';

export interface Value<T extends ValueType> {
  readonly type: T;
  readonly bytes: readonly number[];
}
export type I32 = Value<'i32'>;
export type I64 = Value<'i64'>;
export type F32 = Value<'f32'>;
export type F64 = Value<'f64'>;
export type V128 = Value<'v128'>;

/** Where a literal may stand. */
export type Int32 = I32 | number;
export type Int64 = I64 | number | bigint;

export const TYPE_BYTE = { i32: 0x7f, i64: 0x7e, f32: 0x7d, f64: 0x7c, v128: 0x7b } as const;

export const value = <T extends ValueType>(type: T, ...parts: (readonly number[])[]): Value<T> => ({
  type,
  bytes: parts.flat(),
});

const as32 = (v: Int32): I32 => (typeof v === 'number' ? value('i32', [0x41], signed(BigInt(v | 0))) : v);
const as64 = (v: Int64): I64 =>
  typeof v === 'number' || typeof v === 'bigint' ? value('i64', [0x42], signed(BigInt(v))) : v;

const unary32 = (opcode: number) => (a: Int32) => value('i32', as32(a).bytes, [opcode]);
const binary32 = (opcode: number) => (a: Int32, b: Int32) =>
  value('i32', as32(a).bytes, as32(b).bytes, [opcode]);
const unary64 = (opcode: number) => (a: Int64) => value('i64', as64(a).bytes, [opcode]);
const binary64 = (opcode: number) => (a: Int64, b: Int64) =>
  value('i64', as64(a).bytes, as64(b).bytes, [opcode]);
const compare64 = (opcode: number) => (a: Int64, b: Int64) =>
  value('i32', as64(a).bytes, as64(b).bytes, [opcode]);

const load =
  <T extends ValueType>(type: T, opcode: number) =>
  (address: I32, offset = 0): Value<T> =>
    value(type, address.bytes, [opcode, 0], unsigned(offset));

export const i32 = {
  const: as32,
  eqz: unary32(0x45),
  eq: binary32(0x46),
  ne: binary32(0x47),
  ltS: binary32(0x48),
  ltU: binary32(0x49),
  gtS: binary32(0x4a),
  gtU: binary32(0x4b),
  leS: binary32(0x4c),
  leU: binary32(0x4d),
  geS: binary32(0x4e),
  geU: binary32(0x4f),
  clz: unary32(0x67),
  ctz: unary32(0x68),
  popcnt: unary32(0x69),
  add: binary32(0x6a),
  sub: binary32(0x6b),
  mul: binary32(0x6c),
  and: binary32(0x71),
  or: binary32(0x72),
  xor: binary32(0x73),
  shl: binary32(0x74),
  shrS: binary32(0x75),
  shrU: binary32(0x76),
  /** Low half of a 64-bit value. */
  wrap: (a: Int64): I32 => value('i32', as64(a).bytes, [0xa7]),
  load: load('i32', 0x28),
  load8U: load('i32', 0x2d),
  load16U: load('i32', 0x2f),
} as const;

export const i64 = {
  const: as64,
  eqz: (a: Int64): I32 => value('i32', as64(a).bytes, [0x50]),
  eq: compare64(0x51),
  ne: compare64(0x52),
  ltS: compare64(0x53),
  ltU: compare64(0x54),
  gtS: compare64(0x55),
  gtU: compare64(0x56),
  leS: compare64(0x57),
  leU: compare64(0x58),
  geS: compare64(0x59),
  geU: compare64(0x5a),
  clz: unary64(0x79),
  ctz: unary64(0x7a),
  popcnt: unary64(0x7b),
  add: binary64(0x7c),
  sub: binary64(0x7d),
  mul: binary64(0x7e),
  divS: binary64(0x7f),
  divU: binary64(0x80),
  remS: binary64(0x81),
  remU: binary64(0x82),
  and: binary64(0x83),
  or: binary64(0x84),
  xor: binary64(0x85),
  shl: binary64(0x86),
  shrS: binary64(0x87),
  shrU: binary64(0x88),
  rotl: binary64(0x89),
  rotr: binary64(0x8a),
  not: (a: Int64): I64 => binary64(0x85)(a, -1),
  extend8S: unary64(0xc2),
  extend16S: unary64(0xc3),
  extend32S: unary64(0xc4),
  fromI32S: (a: Int32): I64 => value('i64', as32(a).bytes, [0xac]),
  fromI32U: (a: Int32): I64 => value('i64', as32(a).bytes, [0xad]),
  load: load('i64', 0x29),
  load8S: load('i64', 0x30),
  load8U: load('i64', 0x31),
  load16S: load('i64', 0x32),
  load16U: load('i64', 0x33),
  load32S: load('i64', 0x34),
  load32U: load('i64', 0x35),
} as const;

/** `whenTrue` if `condition` is not zero, else `whenFalse`; both are evaluated. */
export const select = <T extends ValueType>(
  condition: I32,
  whenTrue: Value<T>,
  whenFalse: Value<T>,
): Value<T> =>
  value(
    whenTrue.type,
    whenTrue.bytes,
    whenFalse.bytes,
    condition.bytes,
    whenTrue.type === 'v128' ? [0x1c, 1, 0x7b] : [0x1b],
  );
