/**
 * Arithmetic and comparisons of SSE, SSE2, SSE3 and SSE4.1 floating point (AMD APM volume 4). What is computed here is what needs no
 * thought (float-lanes.ts says what that is); the rest goes to the slow path, which has every instruction in full
 * (float/instructions.ts). Left out, so always slow: DPPS and DPPD,
 * RCPxx and RSQRTxx.
 */
import { floatNumber } from '../float/instructions.ts';
import { STATE } from '../state.ts';
import { f32, f64 } from '../wasm/float.ts';
import { i8x16, v128 } from '../wasm/simd.ts';
import { f32x4, f64x2 } from '../wasm/simd-float.ts';
import { i32, i64, select, type Value, type ValueType } from '../wasm/value.ts';
import {
  clearlyNormal,
  DOUBLE,
  DOUBLES,
  finite,
  isExactProduct,
  isExactSum,
  isZero,
  type Lanes,
  ordinary,
  SINGLE,
  SINGLES,
  unlessSafe,
  unlessSafeAndExact,
} from './float-lanes.ts';
import {
  type Form,
  type Group,
  type Instruction,
  type OperandContext,
  type Operation,
  READ,
  type Role,
  UPDATE,
} from './operation.ts';

/** How an instruction's form reads and writes its numbers. */
export interface FloatForm<T extends ValueType, M extends ValueType> {
  readonly suffix: 'ss' | 'sd' | 'ps' | 'pd';
  readonly lanes: Lanes<T, M>;
  readonly read: (c: OperandContext, operand: 0 | 1) => Value<T>;
  readonly write: (c: OperandContext, result: Value<T>) => void;
  /** Writes a comparison's result: all ones, or zero. */
  readonly writeMask: (c: OperandContext, mask: Value<M>) => void;
  readonly min: (a: Value<T>, b: Value<T>) => Value<T>;
  readonly max: (a: Value<T>, b: Value<T>) => Value<T>;
  readonly source: Role;
  readonly aligned: boolean;
}

/** Reads a memory operand, and leaves it where the slow path looks for it. */
function scalar(c: OperandContext, operand: 0 | 1, size: 32 | 64) {
  const bits = c.readUnsigned(operand, size);
  if (c.inMemory(operand) && !c.inHotLoop) c.setState(STATE.XTEMP0, bits);
  return bits;
}

const writeSingle = (c: OperandContext, result: Value<'f32'>): void =>
  c.writeVector(0, f32x4.replace(c.readVector(0), 0, result));

export const SS: FloatForm<'f32', 'i32'> = {
  suffix: 'ss',
  lanes: SINGLE,
  read: (c, operand) => c.code.let(f32.ofBits(i32.wrap(scalar(c, operand, 32)))),
  write: writeSingle,
  writeMask: (c, mask) => writeSingle(c, f32.ofBits(i32.sub(0, mask))),
  min: (a, b) => select(f32.lt(a, b), a, b),
  max: (a, b) => select(f32.gt(a, b), a, b),
  source: { access: 'read', size: 32 },
  aligned: false,
};
export const SD: FloatForm<'f64', 'i32'> = {
  suffix: 'sd',
  lanes: DOUBLE,
  read: (c, operand) => c.code.let(f64.ofBits(scalar(c, operand, 64))),
  write: (c, result) => c.write(0, f64.bits(result), 64),
  writeMask: (c, mask) => c.write(0, i64.sub(0, i64.fromI32U(mask)), 64),
  min: (a, b) => select(f64.lt(a, b), a, b),
  max: (a, b) => select(f64.gt(a, b), a, b),
  source: { access: 'read', size: 64 },
  aligned: false,
};
export const PS: FloatForm<'v128', 'v128'> = {
  suffix: 'ps',
  lanes: SINGLES,
  read: (c, operand) => c.readVector(operand),
  write: (c, result) => c.writeVector(0, result),
  writeMask: (c, mask) => c.writeVector(0, mask),
  min: (a, b) => f32x4.pseudoMin(b, a),
  max: (a, b) => f32x4.pseudoMax(b, a),
  source: READ,
  aligned: true,
};
export const PD: FloatForm<'v128', 'v128'> = {
  ...PS,
  suffix: 'pd',
  lanes: DOUBLES,
  min: (a, b) => f64x2.pseudoMin(b, a),
  max: (a, b) => f64x2.pseudoMax(b, a),
};

type Emit = Operation['emit'];

type Pair<T extends ValueType> = readonly [Value<T>, Value<T>];

const bothOrdinary = <T extends ValueType, M extends ValueType>(l: Lanes<T, M>, [a, b]: Pair<T>): Value<M> =>
  l.and(ordinary(l, a), ordinary(l, b));

/** Whether a product or quotient can be neither infinite nor denormal; `zero` is where an operand makes it 0. */
const normalOrZero = <T extends ValueType, M extends ValueType>(
  l: Lanes<T, M>,
  result: Value<T>,
  zero: Value<M>,
): Value<M> => l.and(finite(l, result), l.or(clearlyNormal(l, result), zero));

/** A sum of normal numbers that is denormal is exact, but FTZ would flush it. */
function emitSum<T extends ValueType, M extends ValueType>(
  { lanes: l, write }: FloatForm<T, M>,
  operation: 'add' | 'sub',
  operands: (c: OperandContext) => Pair<T>,
): Emit {
  return (c) => {
    const [a, b] = operands(c);
    const sum = c.code.let(l[operation](a, b));
    const safe = l.and(bothOrdinary(l, [a, b]), l.and(ordinary(l, sum), finite(l, sum)));
    unlessSafeAndExact(c, l.all(safe), () => l.all(isExactSum(c, l, { operation, a, b, sum })));
    write(c, sum);
  };
}

/** A product that is 0 because a factor is, is exact. */
function emitProduct<T extends ValueType, M extends ValueType>({
  lanes: l,
  read,
  write,
}: FloatForm<T, M>): Emit {
  return (c) => {
    const [a, b] = [read(c, 0), read(c, 1)];
    const product = c.code.let(l.mul(a, b));
    const zero = l.or(isZero(l, a), isZero(l, b));
    const safe = l.and(bothOrdinary(l, [a, b]), normalOrZero(l, product, zero));
    unlessSafeAndExact(c, l.all(safe), () => l.all(l.or(isExactProduct(c, l, [a, b], product), zero)));
    write(c, product);
  };
}

/** a / b is exact where the quotient times b is, and gives a. */
function emitQuotient<T extends ValueType, M extends ValueType>({
  lanes: l,
  read,
  write,
}: FloatForm<T, M>): Emit {
  return (c) => {
    const [a, b] = [read(c, 0), read(c, 1)];
    const quotient = c.code.let(l.div(a, b));
    const zero = isZero(l, a);
    const safe = l.and(bothOrdinary(l, [a, b]), normalOrZero(l, quotient, zero));
    const exact = () => {
      const back = c.code.let(l.mul(quotient, b));
      return l.all(l.or(l.and(l.eq(back, a), isExactProduct(c, l, [quotient, b], back)), zero));
    };
    unlessSafeAndExact(c, l.all(safe), exact);
    write(c, quotient);
  };
}

function emitRoot<T extends ValueType, M extends ValueType>({
  lanes: l,
  read,
  write,
}: FloatForm<T, M>): Emit {
  return (c) => {
    const a = read(c, 1);
    const root = c.code.let(l.sqrt(a));
    const zero = isZero(l, a);
    const safe = l.and(ordinary(l, a), finite(l, root));
    const exact = () => {
      const back = c.code.let(l.mul(root, root));
      return l.all(l.or(l.and(l.eq(back, a), isExactProduct(c, l, [root, root], back)), zero));
    };
    unlessSafeAndExact(c, l.all(safe), exact);
    write(c, root);
  };
}

/** Where neither is NaN nor denormal, there is nothing to raise. */
const emitChoice =
  <T extends ValueType, M extends ValueType>(
    { lanes: l, read, write, ...form }: FloatForm<T, M>,
    which: 'min' | 'max',
  ): Emit =>
  (c) => {
    const [a, b] = [read(c, 0), read(c, 1)];
    unlessSafe(c, l.all(bothOrdinary(l, [a, b])));
    write(c, form[which](a, b));
  };

/** CMPxx's predicates by the low three bits of the immediate, for numbers. */
const PREDICATES = ['eq', 'lt', 'le', 'never', 'ne', 'ge', 'gt', 'always'] as const;

const emitPredicate =
  <T extends ValueType, M extends ValueType>(
    { lanes: l, read, writeMask }: FloatForm<T, M>,
    predicate: (typeof PREDICATES)[number],
  ): Emit =>
  (c) => {
    const [a, b] = [read(c, 0), read(c, 1)];
    unlessSafe(c, l.all(bothOrdinary(l, [a, b])));
    if (predicate === 'never') writeMask(c, l.ne(a, a));
    else if (predicate === 'always') writeMask(c, l.eq(a, a));
    else writeMask(c, l[predicate](a, b));
  };

/** ZF: equal. CF: less. The others are cleared (state.ts says how flags are kept). */
const emitFlags =
  <T extends 'f32' | 'f64'>({ lanes: l, read }: FloatForm<T, 'i32'>): Emit =>
  (c) => {
    const [a, b] = [read(c, 0), read(c, 1)];
    unlessSafe(c, bothOrdinary(l, [a, b]));
    c.setState(STATE.FLAG_ZR, i64.fromI32U(l.ne(a, b)));
    c.setState(STATE.FLAG_SR, i64.const(1));
    c.setState(STATE.FLAG_CV, i64.shl(i64.fromI32U(l.lt(a, b)), 63));
    c.setState(STATE.FLAG_OV, i64.const(0));
  };

interface Row {
  readonly mnemonic: string;
  readonly operation: Instruction['operation'];
  readonly roles: readonly Role[];
  readonly aligned: boolean;
}

/** What gcc makes of floating point in C. */
const FREQUENT: ReadonlySet<string> = new Set(
  'addss addsd addps addpd subss subsd subps subpd mulss mulsd mulps mulpd divss divsd sqrtsd minsd maxsd comiss comisd'.split(
    ' ',
  ),
);
const operations: Record<string, Operation> = {};
const instructions: Record<string, Instruction> = {};

const ON_REGISTERS: readonly Form[] = ['registers'];
/** What often has an operand in memory has a handler for it; for the others it is loaded by a record of its own. */
const FROM_MEMORY: ReadonlySet<string> = new Set(['Add', 'Sub', 'Mul']);
/** An aligned operand is loaded by a record of its own. */
const formsFor = (form: { readonly aligned: boolean }): readonly Form[] =>
  form.aligned ? ON_REGISTERS : ['registers', 'memory1'];

function define(name: string, emit: Emit, forms: readonly Form[]): void {
  operations[name] = { sizes: [128], forms, hot: FREQUENT.has(name) ? [128] : undefined, emit };
}

function describe({ mnemonic, operation, roles, aligned }: Row): void {
  const row: Instruction = { operation, roles, float: () => floatNumber(mnemonic) };
  instructions[mnemonic] = aligned ? { ...row, aligned } : row;
}

function defineForm<T extends ValueType, M extends ValueType>(form: FloatForm<T, M>): void {
  const { suffix, read, source, aligned } = form;
  const both = (c: OperandContext): Pair<T> => [read(c, 0), read(c, 1)];
  const emits: Readonly<Record<string, Emit>> = {
    Add: emitSum(form, 'add', both),
    Sub: emitSum(form, 'sub', both),
    Mul: emitProduct(form),
    Div: emitQuotient(form),
    Sqrt: emitRoot(form),
    Min: emitChoice(form, 'min'),
    Max: emitChoice(form, 'max'),
  };
  for (const [stem, emit] of Object.entries(emits)) {
    const mnemonic = stem + suffix;
    const forms = FROM_MEMORY.has(stem) ? formsFor(form) : ON_REGISTERS;
    define(mnemonic.toLowerCase(), emit, forms);
    describe({ mnemonic, operation: mnemonic.toLowerCase(), roles: [UPDATE, source], aligned });
  }
  for (const predicate of PREDICATES)
    define(`cmp${predicate}${suffix}`, emitPredicate(form, predicate), formsFor(form));
  describe({
    mnemonic: `Cmp${suffix}`,
    operation: (_, immediate) => `cmp${PREDICATES[immediate & 7]!}${suffix}`,
    roles: [UPDATE, source, READ],
    aligned,
  });
}

/** COMIS and UCOMIS differ in what a quiet NaN raises, which is not decided here. */
function defineFlagComparisons(form: FloatForm<'f32', 'i32'> | FloatForm<'f64', 'i32'>): void {
  const operation = `comi${form.suffix}`;
  define(operation, form.suffix === 'ss' ? emitFlags(SS) : emitFlags(SD), ON_REGISTERS);
  for (const mnemonic of [`Comi${form.suffix}`, `Ucomi${form.suffix}`])
    describe({ mnemonic, operation, roles: [READ, form.source], aligned: false });
}

const lanesOfBytes = (width: number, indices: readonly number[]): number[] =>
  indices.flatMap((index) => Array.from({ length: width }, (_, byte) => index * width + byte));

/** Sums of neighbours: the first of each pair, the second ones. */
function neighbours(form: typeof PS): (c: OperandContext) => Pair<'v128'> {
  const width = form.suffix === 'ps' ? 4 : 8;
  const count = 16 / width;
  const pick = (from: 0 | 1) =>
    lanesOfBytes(
      width,
      Array.from({ length: count }, (_, k) => 2 * k + from),
    );
  return (c) => {
    const [a, b] = [form.read(c, 0), form.read(c, 1)];
    return [c.code.let(i8x16.shuffle(a, b, pick(0))), c.code.let(i8x16.shuffle(a, b, pick(1)))];
  };
}

/** The second operand with the sign of its even lanes turned. */
function alternating(form: typeof PS): (c: OperandContext) => Pair<'v128'> {
  const signs = form.suffix === 'ps' ? [0, 0, 0, 0x80, 0, 0, 0, 0] : [0, 0, 0, 0, 0, 0, 0, 0x80];
  const even = form.suffix === 'ps' ? [...signs, ...signs] : [...signs, 0, 0, 0, 0, 0, 0, 0, 0];
  return (c) => [form.read(c, 0), c.code.let(v128.xor(form.read(c, 1), v128.const(even)))];
}

function definePacked(form: typeof PS): void {
  const { suffix, source } = form;
  const emits: Readonly<Record<string, Emit>> = {
    Addsub: emitSum(form, 'add', alternating(form)),
    Hadd: emitSum(form, 'add', neighbours(form)),
    Hsub: emitSum(form, 'sub', neighbours(form)),
  };
  for (const [stem, emit] of Object.entries(emits)) {
    const mnemonic = stem + suffix;
    define(mnemonic.toLowerCase(), emit, formsFor(form));
    describe({ mnemonic, operation: mnemonic.toLowerCase(), roles: [UPDATE, source], aligned: true });
  }
  const mnemonic = `Dp${suffix}`;
  define(mnemonic.toLowerCase(), (c) => c.leaveToSystem(), ON_REGISTERS);
  describe({ mnemonic, operation: mnemonic.toLowerCase(), roles: [UPDATE, source, READ], aligned: true });
}

for (const form of [SS, PS]) {
  for (const stem of ['Rcp', 'Rsqrt']) {
    const mnemonic = stem + form.suffix;
    define(mnemonic.toLowerCase(), (c) => c.leaveToSystem(), ON_REGISTERS);
    describe({
      mnemonic,
      operation: mnemonic.toLowerCase(),
      roles: [UPDATE, form.source],
      aligned: form.aligned,
    });
  }
}
for (const form of [SS, SD, PS, PD] as readonly FloatForm<ValueType, ValueType>[]) defineForm(form);
for (const form of [SS, SD]) defineFlagComparisons(form);
for (const form of [PS, PD]) definePacked(form);

export const sseFloat: Group = { operations, instructions };
