/**
 * Arithmetic on one element: the operation on exact integers, then `round`. What the operands say comes first, in the manual's order:
 * NaNs, invalid operands, division by zero, denormals (APM volume 1, 4.7 and 4.10).
 */
import { FLOAT_EXCEPTION, type FloatEnvironment, ROUNDING } from './environment.ts';
import {
  type FloatFormat,
  isDenormal,
  isInfinite,
  isNegative,
  isNotANumber,
  isSignaling,
  isZero,
  signed,
  unpack,
} from './format.ts';
import { round } from './rounding.ts';

const { INVALID, DENORMAL, DIVIDE_BY_ZERO } = FLOAT_EXCEPTION;

/** destination, source → result, with exceptions in the environment */
export type FloatOperation = (environment: FloatEnvironment, f: FloatFormat, a: bigint, b: bigint) => bigint;

/** A denormal operand under DAZ is a zero of its sign. */
export const taken = (environment: FloatEnvironment, f: FloatFormat, x: bigint): bigint =>
  environment.denormalsAreZeros && isDenormal(f, x) ? x & f.sign : x;

/** The NaN that an operation with a NaN among its operands gives: the first one, made quiet. Undefined if there is none. */
export function propagated(
  environment: FloatEnvironment,
  f: FloatFormat,
  ...operands: bigint[]
): bigint | undefined {
  const first = operands.find((x) => isNotANumber(f, x));
  if (first === undefined) return undefined;
  if (operands.some((x) => isSignaling(f, x))) environment.foundBefore(INVALID);
  return first | f.quiet;
}

export function invalid(environment: FloatEnvironment, f: FloatFormat): bigint {
  environment.foundBefore(INVALID);
  return f.indefinite;
}

export function noteDenormals(environment: FloatEnvironment, f: FloatFormat, ...operands: bigint[]): void {
  if (operands.some((x) => isDenormal(f, x))) environment.foundBefore(DENORMAL);
}

/** An operation on operands that are not NaN and that DAZ has been applied to. */
const onNumbers =
  (operation: FloatOperation): FloatOperation =>
  (environment, f, a, b) =>
    propagated(environment, f, a, b) ??
    operation(environment, f, taken(environment, f, a), taken(environment, f, b));

export const add: FloatOperation = onNumbers((environment, f, a, b) => {
  if (isInfinite(f, a) && isInfinite(f, b) && a !== b) return invalid(environment, f);
  noteDenormals(environment, f, a, b);
  if (isInfinite(f, a)) return a;
  if (isInfinite(f, b)) return b;
  if (isZero(f, a) && isZero(f, b) && a === b) return a;
  const [x, y] = [unpack(f, a), unpack(f, b)];
  const exponent = Math.min(x.exponent, y.exponent);
  const term = ({ negative, significand, exponent: own }: typeof x) =>
    (negative ? -significand : significand) << BigInt(own - exponent);
  const sum = term(x) + term(y);
  if (sum === 0n) return signed(f, environment.rounding === ROUNDING.DOWN, 0n);
  return round(environment, f, { negative: sum < 0n, significand: sum < 0n ? -sum : sum, exponent });
});

/** A NaN keeps its sign, so this is no addition of −b. */
export const subtract: FloatOperation = (environment, f, a, b) =>
  add(environment, f, a, isNotANumber(f, b) ? b : b ^ f.sign);

export const multiply: FloatOperation = onNumbers((environment, f, a, b) => {
  const negative = isNegative(f, a) !== isNegative(f, b);
  const infinite = isInfinite(f, a) || isInfinite(f, b);
  const zero = isZero(f, a) || isZero(f, b);
  if (infinite && zero) return invalid(environment, f);
  noteDenormals(environment, f, a, b);
  if (infinite) return signed(f, negative, f.infinity);
  if (zero) return signed(f, negative, 0n);
  const [x, y] = [unpack(f, a), unpack(f, b)];
  const significand = x.significand * y.significand;
  return round(environment, f, { negative, significand, exponent: x.exponent + y.exponent });
});

export const divide: FloatOperation = onNumbers((environment, f, a, b) => {
  const negative = isNegative(f, a) !== isNegative(f, b);
  if ((isInfinite(f, a) && isInfinite(f, b)) || (isZero(f, a) && isZero(f, b)))
    return invalid(environment, f);
  if (isZero(f, b) && !isInfinite(f, a)) {
    environment.foundBefore(DIVIDE_BY_ZERO);
    return signed(f, negative, f.infinity);
  }
  noteDenormals(environment, f, a, b);
  if (isInfinite(f, a)) return signed(f, negative, f.infinity);
  if (isInfinite(f, b) || isZero(f, a)) return signed(f, negative, 0n);
  const [x, y] = [unpack(f, a), unpack(f, b)];
  const shift = 2 * f.precision + 2;
  const dividend = x.significand << BigInt(shift);
  const significand = dividend / y.significand;
  return round(environment, f, {
    negative,
    significand,
    exponent: x.exponent - y.exponent - shift,
    more: significand * y.significand !== dividend,
  });
});

/** The root of `b`; `a` is not looked at. */
export const squareRoot: FloatOperation = (environment, f, _, source) => {
  const nan = propagated(environment, f, source);
  if (nan !== undefined) return nan;
  const b = taken(environment, f, source);
  if (isZero(f, b)) return b;
  if (isNegative(f, b)) return invalid(environment, f);
  noteDenormals(environment, f, b);
  if (isInfinite(f, b)) return b;
  const { significand, exponent } = unpack(f, b);
  const odd = exponent & 1;
  const shift = 2 * f.precision + 2;
  const radicand = significand << BigInt(shift + odd);
  const root = integerRoot(radicand);
  return round(environment, f, {
    negative: false,
    significand: root,
    exponent: (exponent - odd - shift) / 2,
    more: root * root !== radicand,
  });
};

/** ⌊√x⌋ by Newton's method. */
function integerRoot(x: bigint): bigint {
  let root = 1n << BigInt((x.toString(2).length + 1) >> 1);
  for (;;) {
    const next = (root + x / root) >> 1n;
    if (next >= root) return root;
    root = next;
  }
}
