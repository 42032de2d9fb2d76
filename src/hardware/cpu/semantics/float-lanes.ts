/**
 * When a floating-point result that WebAssembly computes (to nearest, denormals as they are) is the whole answer of an SSE instruction: MXCSR masks
 * all exceptions and rounds to nearest, no denormal is involved, and no sticky flag has to be set that is not. Written once for one number and for lanes of a
 * vector. Inexactness is found by error-free transformations (Knuth's TwoSum, Dekker's product); each test errs on the side of "no".
 */
import { STATE } from '../state.ts';
import { f32, f64 } from '../wasm/float.ts';
import { v128 } from '../wasm/simd.ts';
import { f32x4, f64x2 } from '../wasm/simd-float.ts';
import { type I32, i32, type Value, type ValueType } from '../wasm/value.ts';
import type { OperandContext } from './operation.ts';

type Unary<T extends ValueType> = (a: Value<T>) => Value<T>;
type Binary<T extends ValueType> = (a: Value<T>, b: Value<T>) => Value<T>;
type Compare<T extends ValueType, M extends ValueType> = (a: Value<T>, b: Value<T>) => Value<M>;

/** Numbers `T` and what their comparisons give, `M`. */
export interface Lanes<T extends ValueType, M extends ValueType> {
  readonly add: Binary<T>;
  readonly sub: Binary<T>;
  readonly mul: Binary<T>;
  readonly div: Binary<T>;
  readonly sqrt: Unary<T>;
  readonly abs: Unary<T>;
  readonly nearest: Unary<T>;
  readonly floor: Unary<T>;
  readonly ceil: Unary<T>;
  readonly trunc: Unary<T>;
  readonly eq: Compare<T, M>;
  readonly ne: Compare<T, M>;
  readonly lt: Compare<T, M>;
  readonly le: Compare<T, M>;
  readonly gt: Compare<T, M>;
  readonly ge: Compare<T, M>;
  readonly and: Binary<M>;
  readonly or: Binary<M>;
  /** 1 if the comparison holds in all lanes. */
  readonly all: (mask: Value<M>) => I32;
  /** That number in every lane. */
  readonly number: (x: number) => Value<T>;
  readonly limits: Limits;
}

interface Limits {
  readonly smallestNormal: number;
  /** 2^⌈precision / 2⌉ + 1 */
  readonly splitter: number;
  /** The error of a product from here on is no denormal. */
  readonly smallestProduct: number;
}

const SINGLE_LIMITS: Limits = {
  smallestNormal: 2 ** -126,
  splitter: 2 ** 12 + 1,
  smallestProduct: 2 ** -74,
};
const DOUBLE_LIMITS: Limits = {
  smallestNormal: 2 ** -1022,
  splitter: 2 ** 27 + 1,
  smallestProduct: 2 ** -900,
};
const boolean = { and: i32.and, or: i32.or, all: (mask: I32) => mask };
const masks = { and: v128.and, or: v128.or };

export const SINGLE: Lanes<'f32', 'i32'> = { ...f32, ...boolean, number: f32.const, limits: SINGLE_LIMITS };
export const DOUBLE: Lanes<'f64', 'i32'> = { ...f64, ...boolean, number: f64.const, limits: DOUBLE_LIMITS };
export const SINGLES: Lanes<'v128', 'v128'> = {
  ...f32x4,
  ...masks,
  number: f32x4.splat,
  limits: SINGLE_LIMITS,
};
export const DOUBLES: Lanes<'v128', 'v128'> = {
  ...f64x2,
  ...masks,
  number: f64x2.splat,
  limits: DOUBLE_LIMITS,
};

/** Neither denormal nor NaN. */
export const ordinary = <T extends ValueType, M extends ValueType>(l: Lanes<T, M>, x: Value<T>): Value<M> =>
  l.or(l.ge(l.abs(x), l.number(l.limits.smallestNormal)), isZero(l, x));

export const isZero = <T extends ValueType, M extends ValueType>(l: Lanes<T, M>, x: Value<T>): Value<M> =>
  l.eq(x, l.number(0));

export const finite = <T extends ValueType, M extends ValueType>(l: Lanes<T, M>, x: Value<T>): Value<M> =>
  l.lt(l.abs(x), l.number(Number.POSITIVE_INFINITY));

/** Above the smallest normal number: that one may be a tiny result, rounded. */
export const clearlyNormal = <T extends ValueType, M extends ValueType>(
  l: Lanes<T, M>,
  x: Value<T>,
): Value<M> => l.and(l.gt(l.abs(x), l.number(l.limits.smallestNormal)), finite(l, x));

/** a + b, or a − b, is that sum exactly. An overflow on the way makes the error NaN or infinite, which is not 0. */
export function isExactSum<T extends ValueType, M extends ValueType>(
  c: OperandContext,
  l: Lanes<T, M>,
  { operation, a, b, sum }: { operation: 'add' | 'sub'; a: Value<T>; b: Value<T>; sum: Value<T> },
): Value<M> {
  const second = c.code.let(l.sub(sum, a));
  const first = l.sub(a, l.sub(sum, second));
  return isZero(l, operation === 'add' ? l.add(first, l.sub(b, second)) : l.sub(first, l.add(b, second)));
}

/** a · b = product, exactly, and large enough that no part of the error is lost; a factor too large to be split makes the error NaN. */
export function isExactProduct<T extends ValueType, M extends ValueType>(
  c: OperandContext,
  l: Lanes<T, M>,
  [a, b]: readonly [Value<T>, Value<T>],
  product: Value<T>,
): Value<M> {
  const split = (x: Value<T>) => {
    const scaled = c.code.let(l.mul(x, l.number(l.limits.splitter)));
    const high = c.code.let(l.sub(scaled, l.sub(scaled, x)));
    return { high, low: c.code.let(l.sub(x, high)) };
  };
  const [x, y] = [split(a), split(b)];
  const upper = l.sub(l.mul(x.high, y.high), product);
  const middle = l.add(l.add(upper, l.mul(x.high, y.low)), l.mul(x.low, y.high));
  const error = l.add(middle, l.mul(x.low, y.low));
  return l.and(isZero(l, error), l.ge(l.abs(product), l.number(l.limits.smallestProduct)));
}

/** Of MXCSR; FTZ and DAZ make no difference where operands and results are ordinary. */
const MASKS = 0x1f80;
const ROUNDING = 0x6000;
const PRECISION = 0x20;

const mxcsr = (c: OperandContext, mask: number): I32 => i32.and(i32.wrap(c.state(STATE.MXCSR)), mask);

/** For a result that is never rounded: leaves the instruction to the slow path unless MXCSR masks all exceptions and `safe` is 1. */
export function unlessSafe(c: OperandContext, safe: I32): void {
  c.code.if(i32.eqz(i32.and(i32.eq(mxcsr(c, MASKS), MASKS), safe)), () => c.leaveToSystem());
}

/**
 * For one that may be inexact: MXCSR has to round to nearest as well, and `exact` (emitted where it is needed) is asked unless the flag is set
 * anyway. Few programs keep it clear, so the hot loop does without that.
 */
export function unlessSafeAndExact(c: OperandContext, safe: I32, exact: () => I32): void {
  const controls = c.code.let(mxcsr(c, MASKS | ROUNDING | PRECISION));
  c.code.if(i32.ne(controls, MASKS | PRECISION), () => {
    if (c.inHotLoop) return c.leaveToSystem();
    c.code.if(i32.ne(controls, MASKS), () => c.leaveToSystem());
    c.code.if(i32.eqz(exact()), () => c.leaveToSystem());
  });
  c.code.if(i32.eqz(safe), () => c.leaveToSystem());
}
