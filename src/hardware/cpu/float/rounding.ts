/** From an exact value to a number of a format: rounding, overflow, underflow and inexactness (APM volume 1, 4.10; IEEE 754, 4.3 and 7). */
import { FLOAT_EXCEPTION, type FloatEnvironment, ROUNDING, type Rounding } from './environment.ts';
import { bitLength, type FloatFormat, signed } from './format.ts';

const { OVERFLOW, UNDERFLOW, PRECISION } = FLOAT_EXCEPTION;

/** An integer without its low bits, and whether those were not all zero. */
export interface Rounded {
  readonly value: bigint;
  readonly inexact: boolean;
}

/**
 * A magnitude without its low `drop` bits, rounded as the sign and mode want; `more` says that the exact value is a little larger than
 * `value` (then `drop` must be positive). A negative `drop` appends zeros.
 */
export function dropBits(
  { value, more }: { value: bigint; more: boolean },
  drop: number,
  negative: boolean,
  mode: Rounding,
): Rounded {
  if (drop <= 0) return { value: value << BigInt(-drop), inexact: more };
  const quotient = value >> BigInt(drop);
  const rest = value - (quotient << BigInt(drop));
  const inexact = rest !== 0n || more;
  return { value: inexact && roundsAway(mode) ? quotient + 1n : quotient, inexact };

  function roundsAway(by: Rounding): boolean {
    if (by === ROUNDING.DOWN) return negative;
    if (by === ROUNDING.UP) return !negative;
    if (by === ROUNDING.TOWARDS_ZERO) return false;
    const half = 1n << BigInt(drop - 1);
    return rest > half || (rest === half && (more || (quotient & 1n) === 1n));
  }
}

/** An exact value: ±significand · 2^exponent, the significand positive; `more`: and less than one unit more of it. */
export interface Exact {
  readonly negative: boolean;
  readonly significand: bigint;
  readonly exponent: number;
  readonly more?: boolean;
}

/** The number of the format that stands for an exact value. */
export function round(environment: FloatEnvironment, f: FloatFormat, exact: Exact): bigint {
  const { negative, significand, exponent } = exact;
  const mode = environment.rounding;
  const from = { value: significand, more: exact.more === true };
  const length = bitLength(significand);
  const unbounded = dropBits(from, length - f.precision, negative, mode);
  const carried = bitLength(unbounded.value) > f.precision;
  const leading = exponent + length - 1 + (carried ? 1 : 0);
  if (leading > f.maxExponent) return overflow(environment, f, { negative, inexact: unbounded.inexact });
  if (leading < f.minExponent) {
    const least = f.minExponent - (f.precision - 1);
    const denormal = dropBits(from, least - exponent, negative, mode);
    return underflow(environment, f, { negative, denormal, unbounded });
  }
  if (unbounded.inexact) environment.foundAfter(PRECISION);
  const field = BigInt(leading - f.minExponent + 1);
  const fraction = (carried ? unbounded.value >> 1n : unbounded.value) - f.smallestNormal;
  return signed(f, negative, field * f.smallestNormal + fraction);
}

function overflow(
  environment: FloatEnvironment,
  f: FloatFormat,
  { negative, inexact }: { negative: boolean; inexact: boolean },
): bigint {
  const masked = environment.masks(OVERFLOW);
  environment.foundAfter(masked || inexact ? OVERFLOW | PRECISION : OVERFLOW);
  const towardsInfinity = negative ? ROUNDING.DOWN : ROUNDING.UP;
  const infinite = environment.rounding === ROUNDING.NEAREST || environment.rounding === towardsInfinity;
  return signed(f, negative, infinite ? f.infinity : f.infinity - 1n);
}

/**
 * A result that is tiny after rounding: as a denormal, and with an unbounded exponent. Masked, it is an underflow only where the denormal is
 * inexact too; not masked, it always is, and the number that a handler would be given counts for inexactness.
 */
function underflow(
  environment: FloatEnvironment,
  f: FloatFormat,
  { negative, denormal, unbounded }: { negative: boolean; denormal: Rounded; unbounded: Rounded },
): bigint {
  const masked = environment.masks(UNDERFLOW);
  if (masked && environment.flushToZero) {
    environment.foundAfter(UNDERFLOW | PRECISION);
    return signed(f, negative, 0n);
  }
  if (!masked) environment.foundAfter(unbounded.inexact ? UNDERFLOW | PRECISION : UNDERFLOW);
  else if (denormal.inexact) environment.foundAfter(UNDERFLOW | PRECISION);
  return signed(f, negative, denormal.value);
}
