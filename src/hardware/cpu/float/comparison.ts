/** Comparisons, and what is made of them: CMPxx's predicates, COMIS and UCOMIS, MIN and MAX (APM volume 4). */
import { type FloatOperation, noteDenormals, taken } from './arithmetic.ts';
import { FLOAT_EXCEPTION, type FloatEnvironment } from './environment.ts';
import { type FloatFormat, isNegative, isNotANumber, isSignaling, magnitude } from './format.ts';

const { INVALID } = FLOAT_EXCEPTION;

export type Relation = 'less' | 'equal' | 'greater' | 'unordered';

/** An encoding as an integer that is ordered like the numbers; both zeros are 0. */
const rank = (f: FloatFormat, x: bigint): bigint => (isNegative(f, x) ? -magnitude(f, x) : magnitude(f, x));

/** How a relates to b. Any NaN is invalid where `quietNaN` says so, a signaling one always. */
export function compare(
  environment: FloatEnvironment,
  f: FloatFormat,
  [a, b]: readonly [bigint, bigint],
  quietNaN: 'silent' | 'invalid',
): Relation {
  if (isNotANumber(f, a) || isNotANumber(f, b)) {
    if (quietNaN === 'invalid' || isSignaling(f, a) || isSignaling(f, b)) environment.foundBefore(INVALID);
    return 'unordered';
  }
  const [x, y] = [taken(environment, f, a), taken(environment, f, b)];
  noteDenormals(environment, f, x, y);
  const difference = rank(f, x) - rank(f, y);
  if (difference === 0n) return 'equal';
  return difference < 0n ? 'less' : 'greater';
}

/** By the low two bits of CMPxx's immediate; the third one negates. */
const PREDICATES: readonly {
  readonly holds: readonly Relation[];
  readonly quietNaN: 'silent' | 'invalid';
}[] = [
  { holds: ['equal'], quietNaN: 'silent' },
  { holds: ['less'], quietNaN: 'invalid' },
  { holds: ['less', 'equal'], quietNaN: 'invalid' },
  { holds: ['unordered'], quietNaN: 'silent' },
];

/** All ones where the predicate holds, else zero. */
export function compareMask(
  environment: FloatEnvironment,
  f: FloatFormat,
  operands: readonly [bigint, bigint],
  predicate: number,
): bigint {
  const { holds, quietNaN } = PREDICATES[predicate & 3]!;
  const held = holds.includes(compare(environment, f, operands, quietNaN));
  return held !== ((predicate & 4) !== 0) ? (f.sign << 1n) - 1n : 0n;
}

/** The second operand, unchanged, unless the first one is in that relation to it. */
const choice =
  (relation: Relation): FloatOperation =>
  (environment, f, a, b) => {
    const found = compare(environment, f, [a, b], 'invalid');
    return found === relation ? taken(environment, f, a) : isNotANumber(f, b) ? b : taken(environment, f, b);
  };

export const minimum: FloatOperation = choice('less');
export const maximum: FloatOperation = choice('greater');
