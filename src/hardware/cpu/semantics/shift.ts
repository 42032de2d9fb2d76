/**
 * Shifts and rotates (APM volume 3: SHL, SHR, SAR, ROL, ROR, RCL, RCR, SHLD, SHRD). The count is taken mod 32, or mod 64 for
 * 64-bit operands; a count of zero changes nothing, flags included.
 */
import { STATE } from '../state.ts';
import type { Local } from '../wasm/code.ts';
import { type I64, i64, select } from '../wasm/value.ts';
import * as flags from './flags.ts';
import {
  type Group,
  INTEGER_SIZES,
  type Instruction,
  type OperandContext,
  type Operation,
  READ,
  UPDATE,
} from './operation.ts';

const BYTE = { access: 'read', size: 8 } as const;

/** The masked count; `body` runs only where it is not zero. A 32-bit register is zero-extended all the same. */
function withCount(c: OperandContext, operand: 1 | 2, body: (count: Local<'i64'>) => void): void {
  const mask = c.size === 64 ? 63 : 31;
  const count = c.code.let(i64.and(c.readUnsigned(operand, 8), mask));
  const keep = c.size === 32 ? () => c.write(0, c.readUnsigned(0)) : undefined;
  c.code.if(i64.ne(count, 0), () => body(count), keep);
}

/** ZF SF PF of the result, CF, OF; AF is undefined and cleared. `carry` is 0 or 1, `overflow` a vector. */
function setShiftFlags(c: OperandContext, result: I64, carry: I64, overflow: I64): void {
  flags.setCarries(c, flags.carryVector(carry));
  flags.setOverflow(c, overflow);
  flags.setResult(c, result);
}

/** Bit `index` of a value, as 0 or 1. */
const bit = (a: I64, index: I64 | number): I64 => i64.and(i64.shrU(a, index), 1);

/** OF = top bit of the result xor CF, as a vector. */
const carryXorSign = (carry: I64, result: I64): I64 => i64.xor(flags.carryVector(carry), result);

type ShiftBy = (c: OperandContext, count: I64) => void;

const shiftLeft: ShiftBy = (c, count) => {
  const a = c.readUnsigned(0);
  const carry = c.code.let(carryOfLeft(c, a, count));
  const r = c.code.let(flags.signExtend(i64.shl(a, count), c.size));
  c.write(0, r);
  setShiftFlags(c, r, carry, carryXorSign(carry, r));
};

/** Bit size − count; 0 once the count exceeds the size. */
const carryOfLeft = (c: OperandContext, a: I64, count: I64): I64 =>
  c.size === 64 ? bit(a, i64.sub(64, count)) : bit(i64.shl(a, count), c.size);

const shiftRight: ShiftBy = (c, count) => {
  const a = c.readUnsigned(0);
  const carry = c.code.let(bit(a, i64.sub(count, 1)));
  const r = c.code.let(flags.signExtend(i64.shrU(a, count), c.size));
  const sign = c.code.let(flags.signExtend(a, c.size));
  c.write(0, r);
  setShiftFlags(c, r, carry, i64.xor(sign, r));
};

const shiftArithmetic: ShiftBy = (c, count) => {
  const a = c.read(0);
  const carry = c.code.let(bit(i64.shrS(a, i64.sub(count, 1)), 0));
  const r = c.code.let(i64.shrS(a, count));
  c.write(0, r);
  setShiftFlags(c, r, carry, i64.const(0));
};

/** By any count, and by an immediate that is known not to be zero. */
function shiftOperations(name: string, by: ShiftBy): Record<string, Operation> {
  return {
    [name]: {
      sizes: INTEGER_SIZES,
      hot: [32, 64],
      emit: (c) => withCount(c, 1, (count) => by(c, count)),
    },
    [`${name}By`]: {
      sizes: INTEGER_SIZES,
      hot: [32, 64],
      flags: 'set',
      quiet: [32, 64],
      emit: (c) => by(c, c.code.let(i64.and(c.readUnsigned(1, 8), c.size === 64 ? 63 : 31))),
    },
  };
}

/** Rotates change CF and OF alone. */
function setRotateFlags(c: OperandContext, carry: I64, overflow: I64): void {
  const rest = i64.and(c.state(STATE.FLAG_CV), (1n << 63n) - 1n);
  flags.setCarries(c, i64.or(rest, flags.carryVector(carry)));
  flags.setOverflow(c, overflow);
}

/** The operand repeated over 64 bits, so that a rotation of 64 bits is one of the operand. */
function repeated(c: OperandContext, a: I64): I64 {
  let wide = a;
  for (let size: number = c.size; size < 64; size *= 2) wide = c.code.let(i64.or(wide, i64.shl(wide, size)));
  return wide;
}

function rotateLeft(c: OperandContext): void {
  withCount(c, 1, (count) => {
    const rotated = i64.rotl(repeated(c, c.readUnsigned(0)), count);
    const r = c.code.let(flags.signExtend(rotated, c.size));
    c.write(0, r);
    const carry = c.code.let(bit(r, 0));
    setRotateFlags(c, carry, carryXorSign(carry, r));
  });
}

function rotateRight(c: OperandContext): void {
  withCount(c, 1, (count) => {
    const rotated = i64.rotr(repeated(c, c.readUnsigned(0)), count);
    const r = c.code.let(flags.signExtend(rotated, c.size));
    c.write(0, r);
    setRotateFlags(c, bit(r, c.size - 1), topBits(c, r));
  });
}

/** Operand and CF rotate together: size + 1 bits. The count is taken mod that, after the mask. */
function rotateThroughCarry(direction: 'left' | 'right'): Operation['emit'] {
  return (c) => {
    const width = c.size + 1;
    withCount(c, 1, (masked) => {
      const count = c.code.let(c.size < 32 ? i64.remU(masked, width) : masked);
      const left = c.code.let(direction === 'left' ? count : i64.sub(width, count));
      const a = c.readUnsigned(0);
      const carryIn = c.code.let(flags.carry(c));
      const { r, carry } = rotateWide(c, a, carryIn, left);
      const result = c.code.let(flags.signExtend(r, c.size));
      c.write(0, result);
      setRotateFlags(c, carry, direction === 'left' ? carryXorSign(carry, result) : topBits(c, result));
    });
  };
}

/** OF of a rotation to the right: the two top bits differ. */
const topBits = (c: OperandContext, r: I64): I64 => i64.xor(r, i64.shl(r, 65 - c.size));

/** Rotates CF:a left by `left`, 0 up to size + 1. */
function rotateWide(c: OperandContext, a: I64, carryIn: I64, left: I64): { r: I64; carry: I64 } {
  const { code } = c;
  if (c.size < 64) {
    const width = c.size + 1;
    const wide = code.let(i64.or(a, i64.shl(carryIn, c.size)));
    const high = i64.shl(wide, left);
    const turned = code.let(i64.or(high, i64.shrU(wide, i64.sub(width, left))));
    return { r: turned, carry: code.let(bit(turned, c.size)) };
  }
  // 65 bits: a << left, the carry at left − 1, and what comes round. A shift by 64 or more has to give 0.
  const high = code.let(select(i64.geU(left, 64), i64.const(0), i64.shl(a, left)));
  const carryPart = code.let(select(i64.eqz(left), i64.const(0), i64.shl(carryIn, i64.sub(left, 1))));
  const round = code.let(select(i64.ltU(left, 2), i64.const(0), i64.shrU(a, i64.sub(65, left))));
  const rotated = i64.or(i64.or(high, carryPart), round);
  const out = select(i64.eqz(left), carryIn, bit(a, i64.sub(64, left)));
  return { r: code.let(rotated), carry: code.let(select(i64.eq(left, 65), carryIn, out)) };
}

/**
 * SHLD, SHRD: bits come from operand 1. With 16 bits and a count above 16 the manual says undefined; AMD's
 * cores shift operand 0 and operand 1 twice, as if 48 bits, and clear CF.
 */
function doubleShift(direction: 'left' | 'right'): Operation['emit'] {
  return (c) => {
    withCount(c, 2, (count) => {
      const a = c.readUnsigned(0);
      const b = c.readUnsigned(1);
      const before = c.code.let(flags.signExtend(a, c.size));
      const { r, carry } = direction === 'left' ? joinLeft(c, a, b, count) : joinRight(c, a, b, count);
      const result = c.code.let(flags.signExtend(r, c.size));
      c.write(0, result);
      setShiftFlags(c, result, carry, i64.xor(before, result));
    });
  };
}

function joinLeft(c: OperandContext, a: I64, b: I64, count: I64): { r: I64; carry: I64 } {
  const { code } = c;
  if (c.size === 64) {
    const r = i64.or(i64.shl(a, count), i64.shrU(b, i64.sub(64, count)));
    return { r: code.let(r), carry: code.let(bit(a, i64.sub(64, count))) };
  }
  if (c.size === 32) {
    const wide = code.let(i64.or(i64.shl(a, 32), b));
    return {
      r: code.let(i64.shrU(i64.shl(wide, count), 32)),
      carry: code.let(bit(wide, i64.sub(64, count))),
    };
  }
  const wide = code.let(i64.or(i64.or(i64.shl(a, 32), i64.shl(b, 16)), b));
  return {
    r: code.let(i64.shrU(i64.shl(wide, count), 32)),
    carry: inRange(c, count, bit(a, i64.sub(16, count))),
  };
}

const inRange = (c: OperandContext, count: I64, carry: I64): I64 =>
  c.code.let(select(i64.gtU(count, 16), i64.const(0), carry));

function joinRight(c: OperandContext, a: I64, b: I64, count: I64): { r: I64; carry: I64 } {
  const { code } = c;
  const carryFrom = (wide: I64) => code.let(bit(wide, i64.sub(count, 1)));
  if (c.size === 64) {
    const r = i64.or(i64.shrU(a, count), i64.shl(b, i64.sub(64, count)));
    return { r: code.let(r), carry: carryFrom(a) };
  }
  if (c.size === 16) {
    const wide = code.let(i64.or(a, i64.or(i64.shl(b, 16), i64.shl(b, 32))));
    return { r: code.let(i64.shrU(wide, count)), carry: inRange(c, count, bit(a, i64.sub(count, 1))) };
  }
  const wide = code.let(i64.or(a, i64.shl(b, 32)));
  return { r: code.let(i64.shrU(wide, count)), carry: carryFrom(wide) };
}

const shift = (emit: Operation['emit']): Operation => ({ sizes: INTEGER_SIZES, emit });
const shiftRow = (operation: string): Instruction => ({
  operation: (sizes, immediate) => {
    const known = sizes[1] === 0 && (immediate & (sizes[0] === 64 ? 63 : 31)) !== 0;
    return known ? `${operation}By` : operation;
  },
  roles: [UPDATE, BYTE],
});
const row = (operation: string): Instruction => ({ operation, roles: [UPDATE, BYTE] });
const doubleRow = (operation: string): Instruction => ({ operation, roles: [UPDATE, READ, BYTE] });

export const shifts: Group = {
  operations: {
    ...shiftOperations('shl', shiftLeft),
    ...shiftOperations('shr', shiftRight),
    ...shiftOperations('sar', shiftArithmetic),
    rol: shift(rotateLeft),
    ror: shift(rotateRight),
    rcl: shift(rotateThroughCarry('left')),
    rcr: shift(rotateThroughCarry('right')),
    shld: { sizes: [16, 32, 64], emit: doubleShift('left') },
    shrd: { sizes: [16, 32, 64], emit: doubleShift('right') },
  },
  instructions: {
    Shl: shiftRow('shl'),
    Sal: shiftRow('shl'),
    Shr: shiftRow('shr'),
    Sar: shiftRow('sar'),
    Rol: row('rol'),
    Ror: row('ror'),
    Rcl: row('rcl'),
    Rcr: row('rcr'),
    Shld: doubleRow('shld'),
    Shrd: doubleRow('shrd'),
  },
};
