/**
 * Conversions between numbers and integers, and rounding to integral values, of SSE, SSE2 and SSE4.1 (AMD APM volume 4): the cases without an
 * exception to raise, like sse-float.ts.
 */
import { floatNumber } from '../float/instructions.ts';
import { STATE } from '../state.ts';
import { f32, f64 } from '../wasm/float.ts';
import { i8x16, i64x2, v128 } from '../wasm/simd.ts';
import { f32x4, f64x2, i32x4FromFloat } from '../wasm/simd-float.ts';
import {
  type F64,
  type I32,
  type I64,
  i32,
  i64,
  type V128,
  type Value,
  type ValueType,
} from '../wasm/value.ts';
import {
  clearlyNormal,
  DOUBLE,
  DOUBLES,
  isZero,
  type Lanes,
  ordinary,
  SINGLE,
  SINGLES,
  unlessSafe,
  unlessSafeAndExact,
} from './float-lanes.ts';
import {
  type Group,
  type Instruction,
  type OperandContext,
  type Operation,
  READ,
  type Role,
  UPDATE,
  WRITE,
} from './operation.ts';
import { type FloatForm, PD, PS, SD, SS } from './sse-float.ts';

type Emit = Operation['emit'];
const VECTOR = [128] as const;
const operations: Record<string, Operation> = {};
const instructions: Record<string, Instruction> = {};
const SOURCE_32: Role = { access: 'read', size: 32 };
const SOURCE_64: Role = { access: 'read', size: 64 };

/** A scalar number between formats. */
const singleToDouble: Emit = (c) => {
  const x = SS.read(c, 1);
  unlessSafe(c, ordinary(SINGLE, x));
  SD.write(c, f64.promote(x));
};
const doubleToSingle: Emit = (c) => {
  const x = SD.read(c, 1);
  const result = c.code.let(f32.demote(x));
  const fits = i32.or(clearlyNormal(SINGLE, result), isZero(DOUBLE, x));
  unlessSafeAndExact(c, i32.and(ordinary(DOUBLE, x), fits), () => f64.eq(f64.promote(result), x));
  SS.write(c, result);
};

/** The 64 bits of the source as the lower half of a vector. */
function lowerHalf(c: OperandContext): V128 {
  const bits = c.readUnsigned(1, 64);
  if (c.inMemory(1) && !c.inHotLoop) c.setState(STATE.XTEMP0, bits);
  return c.code.let(i64x2.replace(v128.zero(), 0, bits));
}

const singlesToDoubles: Emit = (c) => {
  const x = lowerHalf(c);
  unlessSafe(c, SINGLES.all(ordinary(SINGLES, x)));
  c.writeVector(0, f64x2.promoteLow(x));
};
const doublesToSingles: Emit = (c) => {
  const x = c.readVector(1);
  const result = c.code.let(f32x4.demoteZero(x));
  const back = c.code.let(f64x2.promoteLow(result));
  const smallest = f64x2.splat(SINGLE.limits.smallestNormal);
  const size = c.code.let(f64x2.abs(back));
  const normal = v128.and(f64x2.gt(size, smallest), f64x2.lt(size, f64x2.splat(Number.POSITIVE_INFINITY)));
  const safe = v128.and(ordinary(DOUBLES, x), v128.or(normal, isZero(DOUBLES, x)));
  unlessSafeAndExact(c, DOUBLES.all(safe), () => DOUBLES.all(f64x2.eq(back, x)));
  c.writeVector(0, result);
};

/** Integers up to 2^precision are exact for certain. */
const within = (x: I64, bits: 24 | 53): I32 =>
  i64.leU(i64.add(x, 2n ** BigInt(bits)), 2n ** BigInt(bits + 1));

/** The integer that the source is, sign-extended; a memory operand is left where the slow path looks for it. */
function signedSource(c: OperandContext, size: 32 | 64): I64 {
  const x = c.read(1, size);
  if (c.inMemory(1) && !c.inHotLoop) c.setState(STATE.XTEMP0, x);
  return x;
}
const toSingle =
  (size: 32 | 64): Emit =>
  (c) => {
    const x = signedSource(c, size);
    unlessSafeAndExact(c, i32.const(1), () => within(x, 24));
    SS.write(c, f32.fromI64(x));
  };
const int64ToDouble: Emit = (c) => {
  const x = signedSource(c, 64);
  unlessSafeAndExact(c, i32.const(1), () => within(x, 53));
  SD.write(c, f64.fromI64(x));
};
/** Nothing can be wrong with this one. */
const int32ToDouble: Emit = (c) => SD.write(c, f64.fromI32(i32.wrap(c.read(1, 32))));

/** A number, as f64, to a general register as wide as the operation. */
const toGeneral =
  (read: (c: OperandContext) => F64, rounding: 'nearest' | 'trunc'): Emit =>
  (c) => {
    const x = read(c);
    const integral = c.code.let(f64[rounding](x));
    const limit = c.size === 64 ? 2 ** 63 : 2 ** 31;
    const fits = i32.and(f64.ge(integral, f64.const(-limit)), f64.lt(integral, f64.const(limit)));
    unlessSafeAndExact(c, fits, () => f64.eq(integral, x));
    c.write(0, f64.truncate64(integral));
  };
const promoted = (c: OperandContext): F64 => c.code.let(f64.promote(SS.read(c, 1)));
const double = (c: OperandContext): F64 => SD.read(c, 1);

/** Numbers of a vector to 32-bit integers; those of f64 leave the upper half zero. */
const toIntegers =
  (l: Lanes<'v128', 'v128'>, rounding: 'nearest' | 'trunc', convert: (x: V128) => V128): Emit =>
  (c) => {
    const x = c.readVector(1);
    const integral = c.code.let(l[rounding](x));
    const fits = l.lt(l.abs(integral), l.number(2 ** 31));
    unlessSafeAndExact(c, l.all(fits), () => l.all(l.eq(integral, x)));
    c.writeVector(0, convert(integral));
  };
const { truncateF32x4, truncateF64x2Zero } = i32x4FromFloat;

const UPPER_HALF_FIRST = [8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7];

/** Exact where both formats give the same numbers. */
const integersToSingles: Emit = (c) => {
  const x = c.readVector(1);
  const result = c.code.let(f32x4.fromI32x4(x));
  const upper = (v: V128) => i8x16.shuffle(v, v, UPPER_HALF_FIRST);
  const same = (integers: V128, singles: V128) =>
    f64x2.eq(f64x2.fromLowI32x4(integers), f64x2.promoteLow(singles));
  unlessSafeAndExact(c, i32.const(1), () =>
    DOUBLES.all(v128.and(same(x, result), same(upper(x), upper(result)))),
  );
  c.writeVector(0, result);
};
const integersToDoubles: Emit = (c) => c.writeVector(0, f64x2.fromLowI32x4(lowerHalf(c)));

interface Definition {
  readonly roles: readonly Role[];
  readonly emit: Emit;
  readonly aligned?: boolean;
  readonly frequent?: boolean;
}

/** Those whose operands always have the same sizes. */
const CONVERSIONS: Readonly<Record<string, Definition>> = {
  Cvtss2sd: { roles: [UPDATE, SOURCE_32], emit: singleToDouble, frequent: true },
  Cvtsd2ss: { roles: [UPDATE, SOURCE_64], emit: doubleToSingle, frequent: true },
  Cvtps2pd: { roles: [WRITE, SOURCE_64], emit: singlesToDoubles },
  Cvtpd2ps: { roles: [WRITE, READ], emit: doublesToSingles, aligned: true },
  Cvtdq2ps: { roles: [WRITE, READ], emit: integersToSingles, aligned: true },
  Cvtdq2pd: { roles: [WRITE, SOURCE_64], emit: integersToDoubles },
  Cvtps2dq: { roles: [WRITE, READ], emit: toIntegers(SINGLES, 'nearest', truncateF32x4), aligned: true },
  Cvttps2dq: { roles: [WRITE, READ], emit: toIntegers(SINGLES, 'trunc', truncateF32x4), aligned: true },
  Cvtpd2dq: { roles: [WRITE, READ], emit: toIntegers(DOUBLES, 'nearest', truncateF64x2Zero), aligned: true },
  Cvttpd2dq: { roles: [WRITE, READ], emit: toIntegers(DOUBLES, 'trunc', truncateF64x2Zero), aligned: true },
};
for (const [mnemonic, { roles, emit, aligned, frequent }] of Object.entries(CONVERSIONS)) {
  const operation = mnemonic.toLowerCase();
  operations[operation] = {
    sizes: VECTOR,
    destination: roles[0] === WRITE ? 'write' : 'update',
    hot: frequent ? VECTOR : undefined,
    emit,
  };
  const row: Instruction = { operation, roles, float: () => floatNumber(mnemonic) };
  instructions[mnemonic] = aligned ? { ...row, aligned } : row;
}

/** From a general register or memory, 32 or 64 bits wide. */
const FROM_GENERAL: Readonly<Record<string, Readonly<Record<32 | 64, Emit>>>> = {
  Cvtsi2ss: { 32: toSingle(32), 64: toSingle(64) },
  Cvtsi2sd: { 32: int32ToDouble, 64: int64ToDouble },
};
for (const [mnemonic, emits] of Object.entries(FROM_GENERAL)) {
  const operation = mnemonic.toLowerCase();
  for (const size of [32, 64] as const)
    operations[`${operation}${size}`] = { sizes: VECTOR, hot: VECTOR, emit: emits[size] };
  instructions[mnemonic] = {
    operation: (sizes) => `${operation}${sizes[1]}`,
    roles: [UPDATE, { access: 'read', own: true }],
    float: (sizes) => floatNumber(`${mnemonic} ${sizes[1]}`),
  };
}

/** To a general register, 32 or 64 bits wide. */
const TO_GENERAL: Readonly<Record<string, { emit: Emit; source: Role }>> = {
  Cvtss2si: { emit: toGeneral(promoted, 'nearest'), source: SOURCE_32 },
  Cvttss2si: { emit: toGeneral(promoted, 'trunc'), source: SOURCE_32 },
  Cvtsd2si: { emit: toGeneral(double, 'nearest'), source: SOURCE_64 },
  Cvttsd2si: { emit: toGeneral(double, 'trunc'), source: SOURCE_64 },
};
for (const [mnemonic, { emit, source }] of Object.entries(TO_GENERAL)) {
  const operation = mnemonic.toLowerCase();
  const frequent = operation.startsWith('cvtt');
  operations[operation] = {
    sizes: [32, 64],
    destination: 'write',
    hot: frequent ? [32, 64] : undefined,
    emit,
  };
  instructions[mnemonic] = {
    operation,
    roles: [WRITE, source],
    float: (sizes) => floatNumber(`${mnemonic} ${sizes[0]}`),
  };
}

/** By the low two bits of ROUNDxx's immediate; with the third one MXCSR decides, which is to nearest here. */
const ROUNDINGS = ['nearest', 'floor', 'ceil', 'trunc'] as const;
const roundingOf = (immediate: number) => ROUNDINGS[(immediate & 4) !== 0 ? 0 : immediate & 3]!;
const SUPPRESS_PRECISION = 8;

/** Denormals raise nothing here, but DAZ would make them zeros. */
const emitRound =
  <T extends ValueType, M extends ValueType>(
    { lanes: l, read, write }: FloatForm<T, M>,
    rounding: (typeof ROUNDINGS)[number],
  ): Emit =>
  (c) => {
    const x: Value<T> = read(c, 1);
    const result = c.code.let(l[rounding](x));
    const suppressed = i32.and(i32.wrap(c.readUnsigned(2, 8)), SUPPRESS_PRECISION);
    unlessSafeAndExact(c, l.all(ordinary(l, x)), () => i32.or(l.all(l.eq(result, x)), suppressed));
    write(c, result);
  };

for (const form of [SS, SD, PS, PD] as readonly FloatForm<ValueType, ValueType>[]) {
  const { suffix, source, aligned } = form;
  const name = (rounding: string) => `round${suffix} ${rounding}`;
  for (const rounding of ROUNDINGS)
    operations[name(rounding)] = { sizes: VECTOR, destination: 'write', emit: emitRound(form, rounding) };
  const row: Instruction = {
    operation: (_, immediate) => name(roundingOf(immediate)),
    roles: [UPDATE, source, READ],
    float: () => floatNumber(`Round${suffix}`),
  };
  instructions[`Round${suffix}`] = aligned ? { ...row, aligned } : row;
}

export const sseConversion: Group = { operations, instructions };
