/**
 * BMI1 and BMI2 (APM volume 3: ANDN, BEXTR, BLSI, BLSMSK, BLSR, BZHI, MULX, PDEP, PEXT, RORX, SARX, SHLX, SHRX). All have VEX encodings,
 * and iced knows what of them raises #UD: LOCK, 66, F2, F3 or REX before VEX, VEX.L, VEX.vvvv where no operand is. None needs XCR0.
 */
import { GPR } from '../state.ts';
import type { Local } from '../wasm/code.ts';
import { type I32, type I64, i32, i64, select } from '../wasm/value.ts';
import { setLogicFlags } from './arithmetic.ts';
import { carryVector, setCarries, signExtend } from './flags.ts';
import { highUnsigned } from './multiply.ts';
import {
  type Group,
  type Instruction,
  type OperandContext,
  type Operation,
  READ,
  WRITE,
} from './operation.ts';

const WIDE = [32, 64] as const;

/** A result with its ZF and SF, and CF; OF is clear. */
function setResultAndCarry(c: OperandContext, result: I64, carry?: I32): void {
  setLogicFlags(c, result);
  if (carry) setCarries(c, carryVector(i64.fromI32U(carry)));
}

function andNot(c: OperandContext): void {
  const inverted = c.read(1);
  const r = c.code.let(i64.and(i64.not(inverted), c.read(2)));
  c.write(0, r);
  setResultAndCarry(c, r);
}

/** The lowest `count` bits set; all of them from 64 on. */
const lowBits = (count: I64): I64 => select(i64.ltU(count, 64), i64.sub(i64.shl(1, count), 1), i64.const(-1));

/** Bits of operand 1 from start (bits 7:0 of operand 2) on, length (15:8) of them. */
function extractField(c: OperandContext): void {
  const a = c.readUnsigned(1);
  const control = c.readUnsigned(2);
  const start = c.code.let(i64.and(control, 0xff));
  const length = c.code.let(i64.and(i64.shrU(control, 8), 0xff));
  const shifted = select(i64.ltU(start, c.size), i64.shrU(a, start), i64.const(0));
  const r = c.code.let(signExtend(i64.and(shifted, lowBits(length)), c.size));
  c.write(0, r);
  setResultAndCarry(c, r);
}

/** BLSI, BLSMSK, BLSR: the lowest set bit of operand 1, and what CF says of a source that has none. */
function lowestBit(combine: (a: I64) => I64, carry: (a: I64) => I32): Operation['emit'] {
  return (c) => {
    const a = c.read(1);
    const r = c.code.let(signExtend(combine(a), c.size));
    c.write(0, r);
    setResultAndCarry(c, r, carry(a));
  };
}

const isZero = (a: I64): I32 => i64.eqz(a);

/** Clears the bits from the one on that bits 7:0 of operand 2 name. */
function zeroHighBits(c: OperandContext): void {
  const a = c.read(1);
  const index = c.code.let(i64.and(c.readUnsigned(2), 0xff));
  const beyond = c.code.let(i64.geU(index, c.size));
  const r = c.code.let(signExtend(select(beyond, a, i64.and(a, lowBits(index))), c.size));
  c.write(0, r);
  setResultAndCarry(c, r, beyond);
}

/** The high half goes to operand 0, which wins where both are one register. */
function multiplyWithoutFlags(c: OperandContext): void {
  const a = c.code.let(c.readRegisterUnsigned(GPR.RDX));
  const b = c.readUnsigned(2);
  const low = c.code.let(i64.mul(a, b));
  const high = c.size === 64 ? highUnsigned(c, a, b) : c.code.let(i64.shrU(low, 32));
  c.write(1, low);
  c.write(0, high);
}

/** Calls `each` with the mask's set bits from the lowest on, and for each with a bit that counts from bit 0 on. */
function forEachBit(
  c: OperandContext,
  of: I64,
  each: (bit: Local<'i64'>, counting: Local<'i64'>) => void,
): void {
  const { code } = c;
  const mask = code.let(of);
  const counting = code.let(i64.const(1));
  code.block((done) =>
    code.loop((again) => {
      code.brIf(done, i64.eqz(mask));
      each(code.let(i64.and(mask, i64.sub(0, mask))), counting);
      code.set(mask, i64.and(mask, i64.sub(mask, 1)));
      code.set(counting, i64.shl(counting, 1));
      code.br(again);
    }),
  );
}

/** Bits of operand 1, from the lowest on, to where the mask in operand 2 has bits. */
function deposit(c: OperandContext): void {
  const a = c.readUnsigned(1);
  const r = c.code.local('i64');
  const mask = c.readUnsigned(2);
  c.code.set(r, i64.const(0));
  forEachBit(c, mask, (bit, counting) =>
    c.code.if(i32.eqz(i64.eqz(i64.and(a, counting))), () => c.code.set(r, i64.or(r, bit))),
  );
  c.write(0, r);
}

/** Bits of operand 1 where the mask in operand 2 has bits, put together from bit 0 on. */
function extract(c: OperandContext): void {
  const a = c.readUnsigned(1);
  const r = c.code.local('i64');
  const mask = c.readUnsigned(2);
  c.code.set(r, i64.const(0));
  forEachBit(c, mask, (bit, counting) =>
    c.code.if(i32.eqz(i64.eqz(i64.and(a, bit))), () => c.code.set(r, i64.or(r, counting))),
  );
  c.write(0, r);
}

function rotateRight(c: OperandContext): void {
  const a = c.readUnsigned(1);
  const count = c.code.let(i64.and(c.readUnsigned(2, 8), c.size - 1));
  const repeated = c.size === 64 ? a : c.code.let(i64.or(a, i64.shl(a, 32)));
  c.write(0, i64.rotr(repeated, count));
}

/** SARX, SHLX, SHRX: the count is masked to the operand's size. */
function shift(by: (a: I64, count: I64) => I64, kind: 'signed' | 'unsigned'): Operation['emit'] {
  return (c) => {
    const a = kind === 'signed' ? c.read(1) : c.readUnsigned(1);
    const count = c.code.let(i64.and(c.readUnsigned(2), c.size - 1));
    c.write(0, by(a, count));
  };
}

const wide = (emit: Operation['emit'], flags?: 'set' | 'keep'): Operation =>
  flags === undefined ? { sizes: WIDE, emit } : { sizes: WIDE, flags, emit };
const hot = (emit: Operation['emit']): Operation => ({ sizes: WIDE, hot: WIDE, flags: 'keep', emit });
const pair = (operation: string): Instruction => ({ operation, roles: [WRITE, READ] });
const triple = (operation: string): Instruction => ({ operation, roles: [WRITE, READ, READ] });

export const bitManipulation: Group = {
  operations: {
    andn: wide(andNot, 'set'),
    bextr: wide(extractField, 'set'),
    blsi: wide(
      lowestBit(
        (a) => i64.and(a, i64.sub(0, a)),
        (a) => i32.eqz(isZero(a)),
      ),
      'set',
    ),
    blsmsk: wide(
      lowestBit((a) => i64.xor(a, i64.sub(a, 1)), isZero),
      'set',
    ),
    blsr: wide(
      lowestBit((a) => i64.and(a, i64.sub(a, 1)), isZero),
      'set',
    ),
    bzhi: wide(zeroHighBits, 'set'),
    mulx: wide(multiplyWithoutFlags, 'keep'),
    pdep: wide(deposit, 'keep'),
    pext: wide(extract, 'keep'),
    rorx: wide(rotateRight, 'keep'),
    sarx: hot(shift(i64.shrS, 'signed')),
    shlx: hot(shift(i64.shl, 'unsigned')),
    shrx: hot(shift(i64.shrU, 'unsigned')),
  },
  instructions: {
    Andn: triple('andn'),
    Bextr: triple('bextr'),
    Blsi: pair('blsi'),
    Blsmsk: pair('blsmsk'),
    Blsr: pair('blsr'),
    Bzhi: triple('bzhi'),
    Mulx: { operation: 'mulx', roles: [WRITE, WRITE, READ] },
    Pdep: triple('pdep'),
    Pext: triple('pext'),
    Rorx: triple('rorx'),
    Sarx: triple('sarx'),
    Shlx: triple('shlx'),
    Shrx: triple('shrx'),
  },
};
