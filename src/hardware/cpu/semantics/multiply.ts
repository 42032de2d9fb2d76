/** Multiplication and division (APM volume 3: MUL, IMUL, DIV, IDIV). 128-bit products and dividends are composed of 64-bit steps. */
import { GPR } from '../state.ts';
import { type I32, type I64, i32, i64, select } from '../wasm/value.ts';
import { setCarries, setOverflow, setResult, signExtend, zeroExtend } from './flags.ts';
import {
  type Group,
  INTEGER_SIZES,
  type OperandContext,
  type Operation,
  READ,
  type Size,
} from './operation.ts';

const DIVIDE_ERROR = 0;
const LOW = 0xffffffffn;
const MINIMUM = -1n << 63n;

/** High half of an unsigned product. */
export function highUnsigned(c: OperandContext, a: I64, b: I64): I64 {
  const { code } = c;
  const al = code.let(i64.and(a, LOW));
  const ah = code.let(i64.shrU(a, 32));
  const bl = code.let(i64.and(b, LOW));
  const bh = code.let(i64.shrU(b, 32));
  const middle = code.let(i64.add(i64.mul(ah, bl), i64.shrU(i64.mul(al, bl), 32)));
  const other = code.let(i64.add(i64.mul(al, bh), i64.and(middle, LOW)));
  return code.let(i64.add(i64.add(i64.mul(ah, bh), i64.shrU(middle, 32)), i64.shrU(other, 32)));
}

function highSigned(c: OperandContext, a: I64, b: I64): I64 {
  const high = highUnsigned(c, a, b);
  const correction = i64.add(i64.and(i64.shrS(a, 63), b), i64.and(i64.shrS(b, 63), a));
  return c.code.let(i64.sub(high, correction));
}

/** CF = OF = whether the upper half says more than the lower; the other flags are undefined. */
function setProductFlags(c: OperandContext, low: I64, overflow: I32): void {
  const vector = c.code.let(i64.shl(i64.fromI32U(overflow), 63));
  setCarries(c, vector);
  setOverflow(c, vector);
  setResult(c, low);
}

/** One operand: rDX:rAX = rAX × operand (AX for bytes). */
function multiplyAccumulator(kind: 'signed' | 'unsigned'): Operation['emit'] {
  return (c) => {
    const signed = kind === 'signed';
    const a = signed ? c.read(0) : c.readUnsigned(0);
    const b = c.code.let(signed ? c.readRegister(GPR.RAX) : c.readRegisterUnsigned(GPR.RAX));
    const low = c.code.let(i64.mul(a, b));
    if (c.size === 64) {
      const high = signed ? highSigned(c, a, b) : highUnsigned(c, a, b);
      c.writeRegister(GPR.RAX, low);
      c.writeRegister(GPR.RDX, high);
      setProductFlags(c, low, i64.ne(high, signed ? i64.shrS(low, 63) : 0));
      return;
    }
    if (c.size === 8) {
      c.writeRegister(GPR.RAX, low, 16);
    } else {
      c.writeRegister(GPR.RAX, low);
      c.writeRegister(GPR.RDX, i64.shrU(low, c.size));
    }
    const fits = signed ? signExtend(low, c.size) : zeroExtend(low, c.size);
    setProductFlags(c, signExtend(low, c.size), i64.ne(low, fits));
  };
}

/** Two or three operands: the product cut to the destination's size. */
function multiply(first: 0 | 1, second: 1 | 2): Operation['emit'] {
  return (c) => {
    const a = c.read(first);
    const b = c.read(second);
    const low = c.code.let(i64.mul(a, b));
    const r = c.code.let(signExtend(low, c.size));
    const overflow = c.size === 64 ? i64.ne(highSigned(c, a, b), i64.shrS(low, 63)) : i64.ne(low, r);
    const lost = c.code.let(overflow);
    c.write(0, r);
    setProductFlags(c, r, lost);
  };
}

/** rDX:rAX (AX for bytes) divided by the operand; #DE where the quotient does not fit. Flags are undefined and stay. */
function divide(kind: 'signed' | 'unsigned'): Operation['emit'] {
  return (c) => {
    if (c.size === 64) divideWide(c, kind);
    else divideNarrow(c, kind);
  };
}

/** Dividends of up to 64 bits. */
function divideNarrow(c: OperandContext, kind: 'signed' | 'unsigned'): void {
  const { code } = c;
  const signed = kind === 'signed';
  const divisor = signed ? c.read(0) : c.readUnsigned(0);
  code.if(i64.eqz(divisor), () => c.raise(DIVIDE_ERROR));
  const dividend = code.let(narrowDividend(c, signed));
  if (signed) {
    // The one quotient that WebAssembly traps on does not fit anyway.
    code.if(i32.and(i64.eq(dividend, MINIMUM), i64.eq(divisor, -1)), () => c.raise(DIVIDE_ERROR));
  }
  const quotient = code.let(signed ? i64.divS(dividend, divisor) : i64.divU(dividend, divisor));
  const remainder = code.let(signed ? i64.remS(dividend, divisor) : i64.remU(dividend, divisor));
  const fits = signed ? signExtend(quotient, c.size) : zeroExtend(quotient, c.size);
  code.if(i64.ne(quotient, fits), () => c.raise(DIVIDE_ERROR));
  if (c.size === 8) {
    c.writeRegister(GPR.RAX, i64.or(i64.and(quotient, 0xff), i64.shl(remainder, 8)), 16);
  } else {
    c.writeRegister(GPR.RAX, quotient);
    c.writeRegister(GPR.RDX, remainder);
  }
}

function narrowDividend(c: OperandContext, signed: boolean): I64 {
  if (c.size === 8) return signed ? c.readRegister(GPR.RAX, 16) : c.readRegisterUnsigned(GPR.RAX, 16);
  const high = i64.shl(signed ? c.readRegister(GPR.RDX) : c.readRegisterUnsigned(GPR.RDX), c.size);
  return i64.or(high, c.readRegisterUnsigned(GPR.RAX));
}

/** 128 by 64 bits: magnitudes are divided unsigned, then the signs are put back. */
function divideWide(c: OperandContext, kind: 'signed' | 'unsigned'): void {
  const { code } = c;
  const divisor = c.read(0);
  code.if(i64.eqz(divisor), () => c.raise(DIVIDE_ERROR));
  const low = code.let(c.readRegister(GPR.RAX));
  const high = code.let(c.readRegister(GPR.RDX));
  if (kind === 'unsigned') {
    code.if(i64.geU(high, divisor), () => c.raise(DIVIDE_ERROR));
    const { quotient, remainder } = divideMagnitudes(c, high, low, divisor);
    c.writeRegister(GPR.RAX, quotient);
    c.writeRegister(GPR.RDX, remainder);
    return;
  }
  const sign = code.let(i64.shrS(high, 63));
  const negative = code.let(i64.xor(sign, i64.shrS(divisor, 63)));
  const size = code.let(absolute(divisor));
  code.if(i64.ne(sign, 0), () => {
    code.set(high, i64.add(i64.not(high), i64.fromI32U(i64.eqz(low))));
    code.set(low, i64.sub(0, low));
  });
  code.if(i64.geU(high, size), () => c.raise(DIVIDE_ERROR));
  const { quotient, remainder } = divideMagnitudes(c, high, low, size);
  const limit = select(i64.eqz(negative), i64.const(~MINIMUM), i64.const(MINIMUM));
  code.if(i64.gtU(quotient, limit), () => c.raise(DIVIDE_ERROR));
  c.writeRegister(GPR.RAX, i64.sub(i64.xor(quotient, negative), negative));
  c.writeRegister(GPR.RDX, i64.sub(i64.xor(remainder, sign), sign));
}

const absolute = (a: I64): I64 => i64.sub(i64.xor(a, i64.shrS(a, 63)), i64.shrS(a, 63));

/** high:low / divisor for high < divisor: one division where the high half is zero, else bit by bit. */
function divideMagnitudes(
  c: OperandContext,
  high: I64,
  low: I64,
  divisor: I64,
): { quotient: I64; remainder: I64 } {
  const { code } = c;
  const quotient = code.local('i64');
  const remainder = code.local('i64');
  code.if(
    i64.eqz(high),
    () => {
      code.set(quotient, i64.divU(low, divisor));
      code.set(remainder, i64.remU(low, divisor));
    },
    () => {
      code.set(remainder, i64.add(high, 0));
      code.set(quotient, i64.add(low, 0));
      const left = code.let(i32.const(64));
      code.loop((again) => {
        const out = code.let(i64.shrS(remainder, 63));
        code.set(remainder, i64.or(i64.shl(remainder, 1), i64.shrU(quotient, 63)));
        code.set(quotient, i64.shl(quotient, 1));
        code.if(i32.or(i64.ne(out, 0), i64.geU(remainder, divisor)), () => {
          code.set(remainder, i64.sub(remainder, divisor));
          code.set(quotient, i64.or(quotient, 1));
        });
        code.set(left, i32.sub(left, 1));
        code.brIf(again, left);
      });
    },
  );
  return { quotient, remainder };
}

const WIDE: readonly Size[] = [16, 32, 64];
const accumulator = (emit: Operation['emit'], hot?: Operation['hot']): Operation => ({
  sizes: INTEGER_SIZES,
  destination: 'read',
  hot,
  emit,
});

export const multiplication: Group = {
  operations: {
    mul: accumulator(multiplyAccumulator('unsigned')),
    imul1: accumulator(multiplyAccumulator('signed')),
    imul2: { sizes: WIDE, hot: [32, 64], flags: 'set', quiet: [32, 64], emit: multiply(0, 1) },
    imul3: {
      sizes: WIDE,
      destination: 'write',
      hot: [32, 64],
      flags: 'set',
      quiet: [32, 64],
      emit: multiply(1, 2),
    },
    div: accumulator(divide('unsigned')),
    idiv: accumulator(divide('signed')),
  },
  instructions: {
    Mul: { operation: 'mul', roles: [READ] },
    Imul: {
      operation: (sizes) => `imul${sizes.length}`,
      roles: [READ, READ, READ],
    },
    Div: { operation: 'div', roles: [READ] },
    Idiv: { operation: 'idiv', roles: [READ] },
  },
};
