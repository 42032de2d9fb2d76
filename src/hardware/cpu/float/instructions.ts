/**
 * The floating-point instructions of SSE, SSE2, SSE3 and SSE4.1 by mnemonic, in full generality (APM volume 4): every rounding mode,
 * denormals, NaNs, exceptions that are not masked. Generated code does the common cases (semantics/sse-float.ts) and leaves
 * the others to this. Each gives its results to `FloatOperands` and false when an exception stops it.
 */

import { STATE } from '../state.ts';
import { approximateInverseRoot, approximateReciprocal } from './approximation.ts';
import { add, divide, type FloatOperation, multiply, squareRoot, subtract } from './arithmetic.ts';
import { compare, compareMask, maximum, minimum } from './comparison.ts';
import { fromInteger, narrow, roundToIntegral, toInteger, widen } from './conversion.ts';
import { FloatEnvironment, MXCSR, ROUNDING, type Rounding } from './environment.ts';
import { DOUBLE, type FloatFormat, SINGLE } from './format.ts';
import { FloatOperands, type Width, type WordMemory } from './operands.ts';

type Execute = (environment: FloatEnvironment, operands: FloatOperands) => boolean;

const lanesOf = (f: FloatFormat, form: 'packed' | 'scalar'): number => (form === 'scalar' ? 1 : 128 / f.bits);

/** The same operation on each lane of destination and source. */
const lanewise =
  (f: FloatFormat, form: 'packed' | 'scalar', operation: FloatOperation): Execute =>
  (environment, operands) => {
    for (let k = 0; k < lanesOf(f, form); k++) {
      const result = operation(environment, f, operands.lane(0, f.bits, k), operands.lane(1, f.bits, k));
      operands.setLane(f.bits, k, result);
    }
    return environment.settle();
  };

/** The four forms of an instruction: -ss, -sd, -ps, -pd. */
function fourForms(stem: string, execute: (f: FloatFormat, form: 'packed' | 'scalar') => Execute) {
  return {
    [`${stem}ss`]: execute(SINGLE, 'scalar'),
    [`${stem}sd`]: execute(DOUBLE, 'scalar'),
    ...twoForms(stem, (f) => execute(f, 'packed')),
  };
}

/** The packed forms of an instruction: -ps, -pd. */
const twoForms = (stem: string, execute: (f: FloatFormat) => Execute) => ({
  [`${stem}ps`]: execute(SINGLE),
  [`${stem}pd`]: execute(DOUBLE),
});

const arithmetic = (stem: string, operation: FloatOperation) =>
  fourForms(stem, (f, form) => lanewise(f, form, operation));

/** Subtracts even lanes, adds odd ones. */
const addSubtract =
  (f: FloatFormat): Execute =>
  (environment, operands) => {
    for (let k = 0; k < 128 / f.bits; k++) {
      const operation = k % 2 === 0 ? subtract : add;
      const result = operation(environment, f, operands.lane(0, f.bits, k), operands.lane(1, f.bits, k));
      operands.setLane(f.bits, k, result);
    }
    return environment.settle();
  };

/** Neighbours of the destination make the lower half, those of the source the upper one. */
const horizontal =
  (operation: FloatOperation) =>
  (f: FloatFormat): Execute =>
  (environment, operands) => {
    const lanes = 128 / f.bits;
    for (let k = 0; k < lanes; k++) {
      const from = k < lanes / 2 ? 0 : 1;
      const first = (2 * k) % lanes;
      const [a, b] = [operands.lane(from, f.bits, first), operands.lane(from, f.bits, first + 1)];
      operands.setLane(f.bits, k, operation(environment, f, a, b));
    }
    return environment.settle();
  };

/** Products of lanes that the immediate's upper half chooses, their sum in lanes that its lower half chooses. */
const dotProduct =
  (f: FloatFormat): Execute =>
  (environment, operands) => {
    const lanes = 128 / f.bits;
    const chosen = operands.immediate;
    let terms = Array.from({ length: lanes }, (_, k) =>
      (chosen >> (4 + k)) & 1
        ? multiply(environment, f, operands.lane(0, f.bits, k), operands.lane(1, f.bits, k))
        : 0n,
    );
    if (!environment.settle()) return false;
    while (terms.length > 1) {
      const pairs: bigint[] = [];
      for (let k = 0; k < terms.length; k += 2) pairs.push(add(environment, f, terms[k]!, terms[k + 1]!));
      terms = pairs;
      if (!environment.settle()) return false;
    }
    for (let k = 0; k < lanes; k++) operands.setLane(f.bits, k, (chosen >> k) & 1 ? terms[0]! : 0n);
    return true;
  };

const comparison =
  (f: FloatFormat, form: 'packed' | 'scalar'): Execute =>
  (environment, operands) => {
    const predicate = operands.immediate;
    for (let k = 0; k < lanesOf(f, form); k++) {
      const pair = [operands.lane(0, f.bits, k), operands.lane(1, f.bits, k)] as const;
      operands.setLane(f.bits, k, compareMask(environment, f, pair, predicate));
    }
    return environment.settle();
  };

const flagComparison =
  (f: FloatFormat, quietNaN: 'silent' | 'invalid'): Execute =>
  (environment, operands) => {
    const pair = [operands.lane(0, f.bits, 0), operands.lane(1, f.bits, 0)] as const;
    const relation = compare(environment, f, pair, quietNaN);
    const unordered = relation === 'unordered';
    operands.setFlags({
      zero: unordered || relation === 'equal',
      parity: unordered,
      carry: unordered || relation === 'less',
    });
    return environment.settle();
  };

/** Bits of the immediate of ROUNDxx. */
const ROUND_BY_MXCSR = 4;
const SUPPRESS_PRECISION = 8;

const roundTo =
  (f: FloatFormat, form: 'packed' | 'scalar'): Execute =>
  (environment, operands) => {
    const control = operands.immediate;
    const mode = (control & ROUND_BY_MXCSR) !== 0 ? environment.rounding : ((control & 3) as Rounding);
    const inexact = (control & SUPPRESS_PRECISION) !== 0 ? 'suppressed' : 'raised';
    for (let k = 0; k < lanesOf(f, form); k++) {
      const result = roundToIntegral(environment, f, operands.lane(1, f.bits, k), { mode, inexact });
      operands.setLane(f.bits, k, result);
    }
    return environment.settle();
  };

/** A scalar to the general register that operand 0 is. */
const toGeneral =
  (f: FloatFormat, bits: Width, rounding: 'truncate' | 'round'): Execute =>
  (environment, operands) => {
    const mode = rounding === 'truncate' ? ROUNDING.TOWARDS_ZERO : environment.rounding;
    operands.setGeneral(toInteger(environment, f, operands.lane(1, f.bits, 0), { bits, mode }));
    return environment.settle();
  };

/** `lanes` elements of the source, converted; further lanes of the destination become zero. */
const converted =
  (
    { from, to, lanes, clear = 0 }: { from: Width; to: Width; lanes: number; clear?: number },
    convert: (environment: FloatEnvironment, x: bigint) => bigint,
  ): Execute =>
  (environment, operands) => {
    for (let k = 0; k < lanes; k++) operands.setLane(to, k, convert(environment, operands.lane(1, from, k)));
    for (let k = lanes; k < lanes + clear; k++) operands.setLane(to, k, 0n);
    return environment.settle();
  };

const fromSigned = (f: FloatFormat, bits: Width) => (environment: FloatEnvironment, x: bigint) =>
  fromInteger(environment, f, BigInt.asIntN(bits, x));
const truncated = (f: FloatFormat) => (environment: FloatEnvironment, x: bigint) =>
  toInteger(environment, f, x, { bits: 32, mode: ROUNDING.TOWARDS_ZERO });
const rounded = (f: FloatFormat) => (environment: FloatEnvironment, x: bigint) =>
  toInteger(environment, f, x, { bits: 32, mode: environment.rounding });

/** An approximation on each lane, without exceptions. */
const approximated =
  (form: 'packed' | 'scalar', approximate: (x: number) => number): Execute =>
  (_, operands) => {
    for (let k = 0; k < lanesOf(SINGLE, form); k++)
      operands.setLane(32, k, BigInt(approximate(Number(operands.lane(1, 32, k)))));
    return true;
  };

/** By iced's mnemonic; where operand sizes matter, with them behind it. */
const FLOAT_INSTRUCTIONS: Readonly<Record<string, Execute>> = {
  ...arithmetic('Add', add),
  ...arithmetic('Sub', subtract),
  ...arithmetic('Mul', multiply),
  ...arithmetic('Div', divide),
  ...arithmetic('Sqrt', squareRoot),
  ...arithmetic('Min', minimum),
  ...arithmetic('Max', maximum),
  ...fourForms('Cmp', comparison),
  ...fourForms('Round', roundTo),
  ...twoForms('Addsub', addSubtract),
  ...twoForms('Hadd', horizontal(add)),
  ...twoForms('Hsub', horizontal(subtract)),
  ...twoForms('Dp', dotProduct),
  Rcpss: approximated('scalar', approximateReciprocal),
  Rcpps: approximated('packed', approximateReciprocal),
  Rsqrtss: approximated('scalar', approximateInverseRoot),
  Rsqrtps: approximated('packed', approximateInverseRoot),
  Comiss: flagComparison(SINGLE, 'invalid'),
  Comisd: flagComparison(DOUBLE, 'invalid'),
  Ucomiss: flagComparison(SINGLE, 'silent'),
  Ucomisd: flagComparison(DOUBLE, 'silent'),
  Cvtss2sd: converted({ from: 32, to: 64, lanes: 1 }, widen),
  Cvtsd2ss: converted({ from: 64, to: 32, lanes: 1 }, narrow),
  Cvtps2pd: converted({ from: 32, to: 64, lanes: 2 }, widen),
  Cvtpd2ps: converted({ from: 64, to: 32, lanes: 2, clear: 2 }, narrow),
  Cvtdq2ps: converted({ from: 32, to: 32, lanes: 4 }, fromSigned(SINGLE, 32)),
  Cvtdq2pd: converted({ from: 32, to: 64, lanes: 2 }, fromSigned(DOUBLE, 32)),
  Cvtps2dq: converted({ from: 32, to: 32, lanes: 4 }, rounded(SINGLE)),
  Cvttps2dq: converted({ from: 32, to: 32, lanes: 4 }, truncated(SINGLE)),
  Cvtpd2dq: converted({ from: 64, to: 32, lanes: 2, clear: 2 }, rounded(DOUBLE)),
  Cvttpd2dq: converted({ from: 64, to: 32, lanes: 2, clear: 2 }, truncated(DOUBLE)),
  'Cvtsi2ss 32': converted({ from: 32, to: 32, lanes: 1 }, fromSigned(SINGLE, 32)),
  'Cvtsi2ss 64': converted({ from: 64, to: 32, lanes: 1 }, fromSigned(SINGLE, 64)),
  'Cvtsi2sd 32': converted({ from: 32, to: 64, lanes: 1 }, fromSigned(DOUBLE, 32)),
  'Cvtsi2sd 64': converted({ from: 64, to: 64, lanes: 1 }, fromSigned(DOUBLE, 64)),
  'Cvtss2si 32': toGeneral(SINGLE, 32, 'round'),
  'Cvtss2si 64': toGeneral(SINGLE, 64, 'round'),
  'Cvtsd2si 32': toGeneral(DOUBLE, 32, 'round'),
  'Cvtsd2si 64': toGeneral(DOUBLE, 64, 'round'),
  'Cvttss2si 32': toGeneral(SINGLE, 32, 'truncate'),
  'Cvttss2si 64': toGeneral(SINGLE, 64, 'truncate'),
  'Cvttsd2si 32': toGeneral(DOUBLE, 32, 'truncate'),
  'Cvttsd2si 64': toGeneral(DOUBLE, 64, 'truncate'),
};

const NAMES = Object.keys(FLOAT_INSTRUCTIONS);
const EXECUTE = Object.values(FLOAT_INSTRUCTIONS);

/** The number under which a record asks for an instruction. */
export function floatNumber(name: string): number {
  const number = NAMES.indexOf(name);
  if (number < 0) throw new Error(`${name} is no floating-point instruction`);
  return number;
}

/** Executes instruction `number` of the record. False if an exception that MXCSR does not mask stopped it: only MXCSR has changed. */
export function executeFloat(
  memory: WordMemory,
  state: number,
  { record, number }: { record: number; number: number },
): boolean {
  const at = (state + STATE.MXCSR) >>> 2;
  const environment = new FloatEnvironment(memory.words[at]!);
  const operands = new FloatOperands(memory, state, record);
  const done = EXECUTE[number]!(environment, operands);
  memory.words[at] = memory.words[at]! | (environment.raised & MXCSR.FLAGS);
  if (done) operands.commit();
  return done;
}
