/**
 * RCPSS, RCPPS, RSQRTSS, RSQRTPS: approximations to 12 bits that raise nothing and do not look at MXCSR (APM volume 4). A denormal
 * operand is a zero, and a result that would be denormal is one.
 */
import { type Approximation, RECIPROCAL, ROOT_OF_1_TO_2, ROOT_OF_2_TO_4 } from './approximation-tables.ts';
import { SINGLE } from './format.ts';

const SIGN = 0x8000_0000;
const INFINITY = 0x7f80_0000;
const QUIET = 0x0040_0000;
const FRACTION = 0x007f_ffff;
const FRACTION_BITS = 23;
const BIAS = 127;
const INDEFINITE = Number(SINGLE.indefinite);
/** What a table's entries are multiples of, as a shift. */
const UNIT_BITS = 13;

/** Table entry for a fraction, in units of 2^-13: 2^12 up to 2^13. */
function lookUp({ bases, slopes }: Approximation, fraction: number): number {
  const [h, m, l] = [fraction >>> 19, (fraction >>> 15) & 15, (fraction >>> 11) & 15];
  const base = Number.parseInt(bases[h]!.slice(3 * m, 3 * m + 3), 16) + 4096;
  return base - Number.parseInt(slopes[h]![l]!, 36);
}

/** mantissa · 2^(scale − 13) with a sign, the mantissa 2^12 up to 2^13. */
function compose(sign: number, mantissa: number, scale: number): number {
  const carry = mantissa >>> UNIT_BITS;
  const exponent = scale + carry - 1 + BIAS;
  if (exponent <= 0) return sign;
  const fraction = (mantissa << (FRACTION_BITS - UNIT_BITS + 1 - carry)) & FRACTION;
  return (sign | (exponent << FRACTION_BITS) | fraction) >>> 0;
}

/** About 1 / x; numbers are 32 bits, unsigned. */
export function approximateReciprocal(x: number): number {
  const sign = (x & SIGN) >>> 0;
  const magnitude = x & ~SIGN;
  if (magnitude > INFINITY) return (x | QUIET) >>> 0;
  if (magnitude === INFINITY) return sign;
  const exponent = magnitude >>> FRACTION_BITS;
  if (exponent === 0) return (sign | INFINITY) >>> 0;
  return compose(sign, lookUp(RECIPROCAL, magnitude & FRACTION), BIAS - exponent);
}

/** About 1 / √x. */
export function approximateInverseRoot(x: number): number {
  const sign = (x & SIGN) >>> 0;
  const magnitude = x & ~SIGN;
  if (magnitude > INFINITY) return (x | QUIET) >>> 0;
  const exponent = (magnitude >>> FRACTION_BITS) - BIAS;
  if (exponent === -BIAS) return (sign | INFINITY) >>> 0;
  if (sign !== 0) return INDEFINITE;
  if (magnitude === INFINITY) return 0;
  const table = exponent % 2 === 0 ? ROOT_OF_1_TO_2 : ROOT_OF_2_TO_4;
  return compose(0, lookUp(table, magnitude & FRACTION), -Math.floor(exponent / 2));
}
