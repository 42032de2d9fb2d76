/**
 * Arithmetic flags and conditions, as state.ts spreads them: ZR, SR the sign-extended result, CV the vector of carries, OV the
 * overflow vector. All operands here are sign-extended to 64 bits.
 */
import { STATE } from '../state.ts';
import type { I32, I64, Int64 } from '../wasm/value.ts';
import { i32, i64 } from '../wasm/value.ts';
import type { OperandContext } from './operation.ts';

/** Condition codes in the encoding's order; a code's lowest bit negates. */
export const CONDITIONS = [
  ['O', 0],
  ['No', 1],
  ['B', 2],
  ['Ae', 3],
  ['E', 4],
  ['Ne', 5],
  ['Be', 6],
  ['A', 7],
  ['S', 8],
  ['Ns', 9],
  ['P', 10],
  ['Np', 11],
  ['L', 12],
  ['Ge', 13],
  ['Le', 14],
  ['G', 15],
] as const;

export const isNegative = (a: I64): I32 => i64.ltS(a, 0);

/** ZF, SF, PF from a sign-extended result. */
export function setResult(c: OperandContext, result: I64): void {
  c.setState(STATE.FLAG_ZR, result);
  c.setState(STATE.FLAG_SR, result);
}

export function setCarries(c: OperandContext, carries: Int64): void {
  c.setState(STATE.FLAG_CV, i64.const(carries));
}

export function setOverflow(c: OperandContext, overflow: Int64): void {
  c.setState(STATE.FLAG_OV, i64.const(overflow));
}

/** Carry out of each bit of a + b (+ carry in) = r. */
export const carriesOfSum = (a: I64, b: I64, r: I64): I64 =>
  i64.or(i64.and(a, b), i64.and(i64.or(a, b), i64.not(r)));
/** Borrow out of each bit of a − b (− borrow in) = r. */
export const carriesOfDifference = (a: I64, b: I64, r: I64): I64 =>
  i64.or(i64.and(i64.not(a), b), i64.and(i64.not(i64.xor(a, b)), r));
export const overflowOfSum = (a: I64, b: I64, r: I64): I64 => i64.and(i64.xor(a, r), i64.xor(b, r));
export const overflowOfDifference = (a: I64, b: I64, r: I64): I64 => i64.and(i64.xor(a, b), i64.xor(a, r));

/** CF as 0 or 1. */
export const carry = (c: OperandContext): I64 => i64.shrU(c.state(STATE.FLAG_CV), 63);

/** A 0/1 value as a carry vector with CF alone, or together with what is left of an old vector's AF. */
export const carryVector = (bit: I64): I64 => i64.shl(bit, 63);

/** Whether condition `code` holds (1) or not (0). */
export function condition(c: OperandContext, code: number): I32 {
  const holds = positiveCondition(c, code >> 1);
  return (code & 1) === 1 ? i32.eqz(holds) : holds;
}

function positiveCondition(c: OperandContext, pair: number): I32 {
  const zero = i64.eqz(c.state(STATE.FLAG_ZR));
  const below = isNegative(c.state(STATE.FLAG_CV));
  const less = isNegative(i64.xor(c.state(STATE.FLAG_SR), c.state(STATE.FLAG_OV)));
  switch (pair) {
    case 0:
      return isNegative(c.state(STATE.FLAG_OV));
    case 1:
      return below;
    case 2:
      return zero;
    case 3:
      return i32.or(below, zero);
    case 4:
      return isNegative(c.state(STATE.FLAG_SR));
    case 5:
      return evenParity(c.state(STATE.FLAG_SR));
    case 6:
      return less;
    default:
      return i32.or(less, zero);
  }
}

/** 1 if the low byte has an even number of ones. */
const evenParity = (a: I64): I32 => i64.eqz(i64.and(i64.popcnt(i64.and(a, 0xff)), 1));

/** Sign-extends the low `size` bits. */
export function signExtend(a: I64, size: number): I64 {
  if (size === 8) return i64.extend8S(a);
  if (size === 16) return i64.extend16S(a);
  if (size === 32) return i64.extend32S(a);
  return a;
}

/** Keeps the low `size` bits. */
export function zeroExtend(a: I64, size: number): I64 {
  if (size === 64) return a;
  return i64.and(a, size === 32 ? 0xffffffffn : (1n << BigInt(size)) - 1n);
}
