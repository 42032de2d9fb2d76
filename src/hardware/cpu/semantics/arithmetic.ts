/** Integer addition, subtraction, logic and comparison (APM volume 3: ADD, ADC, SUB, SBB, CMP, NEG, INC, DEC, AND, OR, XOR, TEST, NOT). */
import { STATE } from '../state.ts';
import { type I64, i64 } from '../wasm/value.ts';
import * as flags from './flags.ts';
import { type Group, INTEGER_SIZES, type OperandContext, type Operation, READ, UPDATE } from './operation.ts';

const ALL_FORMS = ['registers', 'memory0', 'memory1'] as const;
const HOT = [8, 32, 64] as const;
const QUIET = [32, 64] as const;

export function setSumFlags(c: OperandContext, a: I64, b: I64, r: I64): void {
  flags.setResult(c, r);
  flags.setCarries(c, flags.carriesOfSum(a, b, r));
  flags.setOverflow(c, flags.overflowOfSum(a, b, r));
}

export function setDifferenceFlags(c: OperandContext, a: I64, b: I64, r: I64): void {
  flags.setResult(c, r);
  flags.setCarries(c, flags.carriesOfDifference(a, b, r));
  flags.setOverflow(c, flags.overflowOfDifference(a, b, r));
}

/** ADD, ADC, SUB, SBB: what is computed of the operands, and the flags that go with it. */
function additive(
  compute: (c: OperandContext, a: I64, b: I64) => I64,
  setFlags: typeof setSumFlags,
): Operation['emit'] {
  return (c) => {
    const a = c.read(0);
    const b = c.read(1);
    const r = c.code.let(flags.signExtend(compute(c, a, b), c.size));
    c.write(0, r);
    setFlags(c, a, b, r);
  };
}

const add = additive((_, a, b) => i64.add(a, b), setSumFlags);
const addWithCarry = additive((c, a, b) => i64.add(i64.add(a, b), flags.carry(c)), setSumFlags);
const subtract = additive((_, a, b) => i64.sub(a, b), setDifferenceFlags);
const subtractWithBorrow = additive((c, a, b) => i64.sub(i64.sub(a, b), flags.carry(c)), setDifferenceFlags);

function compare(c: OperandContext): void {
  const a = c.read(0);
  const b = c.read(1);
  const r = c.code.let(flags.signExtend(i64.sub(a, b), c.size));
  setDifferenceFlags(c, a, b, r);
}

function negate(c: OperandContext): void {
  const zero = c.code.let(i64.const(0));
  const a = c.read(0);
  const r = c.code.let(flags.signExtend(i64.sub(zero, a), c.size));
  c.write(0, r);
  setDifferenceFlags(c, zero, a, r);
}

/** INC and DEC keep CF: the new vector takes its sign from the old one. */
function step(by: 1 | -1): (c: OperandContext) => void {
  return (c) => {
    const a = c.read(0);
    const one = i64.const(1);
    const r = c.code.let(flags.signExtend(i64.add(a, by), c.size));
    c.write(0, r);
    const carries = by === 1 ? flags.carriesOfSum(a, one, r) : flags.carriesOfDifference(a, one, r);
    flags.setCarries(
      c,
      i64.or(i64.and(c.state(STATE.FLAG_CV), -1n << 63n), i64.and(carries, (1n << 63n) - 1n)),
    );
    flags.setOverflow(c, by === 1 ? flags.overflowOfSum(a, one, r) : flags.overflowOfDifference(a, one, r));
    flags.setResult(c, r);
  };
}

export function setLogicFlags(c: OperandContext, r: I64): void {
  flags.setResult(c, r);
  flags.setCarries(c, 0);
  flags.setOverflow(c, 0);
}

function logic(combine: (a: I64, b: I64) => I64): (c: OperandContext) => void {
  return (c) => {
    const a = c.read(0);
    const b = c.read(1);
    const r = c.code.let(combine(a, b));
    c.write(0, r);
    setLogicFlags(c, r);
  };
}

function test(c: OperandContext): void {
  const a = c.read(0);
  const b = c.read(1);
  setLogicFlags(c, c.code.let(i64.and(a, b)));
}

function not(c: OperandContext): void {
  c.write(0, i64.not(c.read(0)));
}

const binary = (emit: Operation['emit'], hot?: Operation['hot']): Operation => ({
  sizes: INTEGER_SIZES,
  forms: ALL_FORMS,
  hot,
  emit,
});
/** Sets all flags from its operands alone. */
const plain = (emit: Operation['emit']): Operation => ({
  ...binary(emit, HOT),
  flags: 'set',
  quiet: QUIET,
});
const comparison = (emit: Operation['emit']): Operation => ({
  ...binary(emit, HOT),
  destination: 'read',
  flags: 'set',
});
const unary = (emit: Operation['emit'], hot?: Operation['hot']): Operation => ({
  sizes: INTEGER_SIZES,
  forms: ['registers', 'memory0'],
  hot,
  emit,
});

export const arithmetic: Group = {
  operations: {
    add: plain(add),
    adc: binary(addWithCarry),
    sub: plain(subtract),
    sbb: binary(subtractWithBorrow),
    and: plain(logic(i64.and)),
    or: plain(logic(i64.or)),
    xor: plain(logic(i64.xor)),
    cmp: comparison(compare),
    // Its memory operand is encoded as the first one.
    test: { ...comparison(test), forms: ['registers', 'memory0'] },
    inc: unary(step(1), [32, 64]),
    dec: unary(step(-1), [32, 64]),
    neg: unary(negate),
    not: unary(not),
  },
  instructions: {
    Add: { operation: 'add', roles: [UPDATE, READ] },
    Adc: { operation: 'adc', roles: [UPDATE, READ] },
    Sub: { operation: 'sub', roles: [UPDATE, READ] },
    Sbb: { operation: 'sbb', roles: [UPDATE, READ] },
    And: { operation: 'and', roles: [UPDATE, READ] },
    Or: { operation: 'or', roles: [UPDATE, READ] },
    Xor: { operation: 'xor', roles: [UPDATE, READ] },
    Cmp: { operation: 'cmp', roles: [READ, READ] },
    Test: { operation: 'test', roles: [READ, READ] },
    Inc: { operation: 'inc', roles: [UPDATE] },
    Dec: { operation: 'dec', roles: [UPDATE] },
    Neg: { operation: 'neg', roles: [UPDATE] },
    Not: { operation: 'not', roles: [UPDATE] },
  },
};
