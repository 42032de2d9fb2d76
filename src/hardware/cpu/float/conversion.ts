/** Conversions between formats and to and from integers, and rounding to an integral value (APM volume 4). */
import { noteDenormals, propagated, taken } from './arithmetic.ts';
import { FLOAT_EXCEPTION, type FloatEnvironment, type Rounding } from './environment.ts';
import {
  DOUBLE,
  type FloatFormat,
  isInfinite,
  isNotANumber,
  isSignaling,
  isZero,
  SINGLE,
  signed,
  unpack,
} from './format.ts';
import { dropBits, round } from './rounding.ts';

const { INVALID, PRECISION } = FLOAT_EXCEPTION;

/** A NaN keeps its sign and the upper bits of its fraction. */
function convertFormat(
  environment: FloatEnvironment,
  x: bigint,
  { from, to }: { from: FloatFormat; to: FloatFormat },
): bigint {
  const negative = (x & from.sign) !== 0n;
  if (isNotANumber(from, x)) {
    if (isSignaling(from, x)) environment.foundBefore(INVALID);
    const fraction = x & (from.smallestNormal - 1n);
    const shift = to.precision - from.precision;
    const moved = shift > 0 ? fraction << BigInt(shift) : fraction >> BigInt(-shift);
    return signed(to, negative, to.infinity | to.quiet | moved);
  }
  if (isInfinite(from, x)) return signed(to, negative, to.infinity);
  const value = taken(environment, from, x);
  noteDenormals(environment, from, value);
  if (isZero(from, value)) return signed(to, negative, 0n);
  return round(environment, to, unpack(from, value));
}

export const widen = (environment: FloatEnvironment, x: bigint): bigint =>
  convertFormat(environment, x, { from: SINGLE, to: DOUBLE });
export const narrow = (environment: FloatEnvironment, x: bigint): bigint =>
  convertFormat(environment, x, { from: DOUBLE, to: SINGLE });

/** A signed integer as a number of the format. */
export function fromInteger(environment: FloatEnvironment, f: FloatFormat, x: bigint): bigint {
  if (x === 0n) return 0n;
  return round(environment, f, { negative: x < 0n, significand: x < 0n ? -x : x, exponent: 0 });
}

/** A signed integer of `bits`, as two's complement; what does not fit, and NaN, is invalid and gives the most negative one. */
export function toInteger(
  environment: FloatEnvironment,
  f: FloatFormat,
  x: bigint,
  { bits, mode }: { bits: 32 | 64; mode: Rounding },
): bigint {
  const limit = 1n << BigInt(bits - 1);
  const integer =
    isNotANumber(f, x) || isInfinite(f, x) ? undefined : integral(f, taken(environment, f, x), mode);
  if (integer === undefined || integer.value >= limit || integer.value < -limit) {
    environment.foundBefore(INVALID);
    return limit;
  }
  if (integer.inexact) environment.foundAfter(PRECISION);
  return BigInt.asUintN(bits, integer.value);
}

function integral(f: FloatFormat, x: bigint, mode: Rounding): { value: bigint; inexact: boolean } {
  const { negative, significand, exponent } = unpack(f, x);
  const { value, inexact } = dropBits({ value: significand, more: false }, -exponent, negative, mode);
  return { value: negative ? -value : value, inexact };
}

/** ROUNDxx: an integral number of the same format; whether inexactness shows is the instruction's choice. */
export function roundToIntegral(
  environment: FloatEnvironment,
  f: FloatFormat,
  x: bigint,
  { mode, inexact: shown }: { mode: Rounding; inexact: 'raised' | 'suppressed' },
): bigint {
  const nan = propagated(environment, f, x);
  if (nan !== undefined) return nan;
  if (isInfinite(f, x)) return x;
  const negative = (x & f.sign) !== 0n;
  const { value, inexact } = integral(f, taken(environment, f, x), mode);
  if (inexact && shown === 'raised') environment.foundAfter(PRECISION);
  if (value === 0n) return signed(f, negative, 0n);
  return round(environment, f, { negative, significand: value < 0n ? -value : value, exponent: 0 });
}
