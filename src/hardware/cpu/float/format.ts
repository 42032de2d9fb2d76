/** Binary floating-point formats of IEEE 754 as SSE uses them: values are the bits, as bigint. */

export interface FloatFormat {
  /** Width of the encoding. */
  readonly bits: 32 | 64;
  /** Bits of the significand, the hidden one included. */
  readonly precision: number;
  /** Exponents of the smallest normal number, and of the largest. */
  readonly minExponent: number;
  readonly maxExponent: number;
  readonly sign: bigint;
  /** Positive infinity; greater than the encoding of any positive number. */
  readonly infinity: bigint;
  /** Set in a quiet NaN. */
  readonly quiet: bigint;
  /** The smallest positive normal number, which is also the hidden bit. */
  readonly smallestNormal: bigint;
  /** The NaN that an invalid operation gives. */
  readonly indefinite: bigint;
}

function format(bits: 32 | 64, precision: number): FloatFormat {
  const maxExponent = 2 ** (bits - precision - 1) - 1;
  const smallestNormal = 1n << BigInt(precision - 1);
  const sign = 1n << BigInt(bits - 1);
  const infinity = sign - smallestNormal;
  const quiet = smallestNormal >> 1n;
  return {
    bits,
    precision,
    minExponent: 1 - maxExponent,
    maxExponent,
    sign,
    infinity,
    quiet,
    smallestNormal,
    indefinite: sign | infinity | quiet,
  };
}

export const SINGLE: FloatFormat = format(32, 24);
export const DOUBLE: FloatFormat = format(64, 53);

export const magnitude = (f: FloatFormat, x: bigint): bigint => x & (f.sign - 1n);
export const isNegative = (f: FloatFormat, x: bigint): boolean => (x & f.sign) !== 0n;
export const isNotANumber = (f: FloatFormat, x: bigint): boolean => magnitude(f, x) > f.infinity;
export const isSignaling = (f: FloatFormat, x: bigint): boolean => isNotANumber(f, x) && (x & f.quiet) === 0n;
export const isInfinite = (f: FloatFormat, x: bigint): boolean => magnitude(f, x) === f.infinity;
export const isZero = (f: FloatFormat, x: bigint): boolean => magnitude(f, x) === 0n;
export const isDenormal = (f: FloatFormat, x: bigint): boolean =>
  !isZero(f, x) && magnitude(f, x) < f.smallestNormal;

/** A zero or infinity with a sign. */
export const signed = (f: FloatFormat, negative: boolean, x: bigint): bigint => (negative ? x | f.sign : x);

/** A finite number: ±significand · 2^exponent. */
export interface Finite {
  readonly negative: boolean;
  readonly significand: bigint;
  readonly exponent: number;
}

/** Takes a finite number apart; its significand is an integer. */
export function unpack(f: FloatFormat, x: bigint): Finite {
  const field = Number(magnitude(f, x) / f.smallestNormal);
  const fraction = x & (f.smallestNormal - 1n);
  const least = f.minExponent - (f.precision - 1);
  return {
    negative: isNegative(f, x),
    significand: field === 0 ? fraction : fraction | f.smallestNormal,
    exponent: field === 0 ? least : least + field - 1,
  };
}

const FAR_BELOW_LARGEST = 1n << 1000n;

/** Bits of a natural number up to its highest 1. */
export function bitLength(x: bigint): number {
  if (x === 0n) return 0;
  if (x >= FAR_BELOW_LARGEST) return 512 + bitLength(x >> 512n);
  // Conversion and logarithm round, so this may be one too many or too few.
  const estimate = Math.floor(Math.log2(Number(x)));
  if (x >> BigInt(estimate) === 0n) return estimate;
  return x >> BigInt(estimate + 1) === 0n ? estimate + 1 : estimate + 2;
}
