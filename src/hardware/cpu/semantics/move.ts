/** Data movement (APM volume 3: MOV, MOVZX, MOVSX, MOVSXD, LEA, XCHG, BSWAP, MOVBE, CMOVcc, SETcc, CBW family, XLAT, MOVNTI). */
import { GPR } from '../state.ts';
import { type I64, i64, select } from '../wasm/value.ts';
import { CONDITIONS, condition } from './flags.ts';
import {
  ADDRESS,
  type Group,
  INTEGER_SIZES,
  type Instruction,
  type OperandContext,
  type Operation,
  READ,
  type Size,
  UPDATE,
  WRITE,
} from './operation.ts';

const WIDE = [16, 32, 64] as const;
const HOT = [32, 64] as const;

function extend(from: Size, kind: 'zero' | 'sign', hot: boolean): Operation {
  return {
    sizes: WIDE,
    forms: ['registers', 'memory1'],
    destination: 'write',
    flags: 'keep',
    hot: hot ? HOT : undefined,
    emit: (c) => c.write(0, kind === 'zero' ? c.readUnsigned(1, from) : c.read(1, from)),
  };
}

function exchange(c: OperandContext): void {
  const a = c.read(0);
  const b = c.read(1);
  c.write(0, b);
  c.write(1, a);
}

/** With 16 bits the manual says undefined; AMD's cores clear them. */
function byteSwap(c: OperandContext): void {
  c.write(0, c.size === 16 ? i64.const(0) : reversedBytes(c, c.readUnsigned(0)));
}

/** The bytes of a zero-extended operand in reverse order. */
function reversedBytes(c: OperandContext, a: I64): I64 {
  const swapBytes = (v: typeof a) =>
    i64.or(i64.and(i64.shl(v, 8), 0xff00ff00ff00ff00n), i64.and(i64.shrU(v, 8), 0x00ff00ff00ff00ffn));
  const swapWords = (v: typeof a) =>
    i64.or(i64.and(i64.shl(v, 16), 0xffff0000ffff0000n), i64.and(i64.shrU(v, 16), 0x0000ffff0000ffffn));
  const reversed = c.code.let(i64.rotl(swapWords(swapBytes(a)), 32));
  return c.size === 64 ? reversed : i64.shrU(reversed, 64 - c.size);
}

/** The source is read, and a 32-bit destination zero-extended, whether the condition holds or not. */
function conditionalMove(code: number): Operation {
  return {
    sizes: WIDE,
    hot: HOT,
    emit: (c) => {
      const otherwise = c.readUnsigned(0);
      const source = c.readUnsigned(1);
      c.write(0, select(condition(c, code), source, otherwise));
    },
  };
}

function setByte(code: number): Operation {
  return {
    sizes: [8],
    destination: 'write',
    hot: [8],
    emit: (c) => c.write(0, i64.fromI32U(condition(c, code))),
  };
}

/** CBW, CWDE, CDQE: the accumulator's lower half, sign-extended. */
function widenAccumulator(c: OperandContext): void {
  c.writeRegister(GPR.RAX, c.readRegister(GPR.RAX, (c.size / 2) as Size));
}

/** CWD, CDQ, CQO: the accumulator's sign all over rDX. */
function spreadSign(c: OperandContext): void {
  c.writeRegister(GPR.RDX, i64.shrS(c.readRegister(GPR.RAX), 63));
}

function translateByte(c: OperandContext): void {
  const address = i64.add(c.effectiveAddress(), c.readRegisterUnsigned(GPR.RAX, 8));
  c.writeRegister(GPR.RAX, c.load(address, 8), 8);
}

const sourceSize = (prefix: string): Instruction => ({
  operation: (sizes) => `${prefix}${sizes[1]}`,
  roles: [WRITE, READ],
});
const implicit = (operation: string, size: Size): Instruction => ({ operation, roles: [], size });

const perCondition = <T>(make: (name: string, code: number) => [string, T]): Record<string, T> =>
  Object.fromEntries(CONDITIONS.map(([name, code]) => make(name, code)));

/** Prefetches and what lies in their part of the opcode map; RDSSP too does nothing without shadow stacks. */
const HINTS = [
  ...['Prefetchnta', 'Prefetcht0', 'Prefetcht1', 'Prefetcht2', 'Prefetchw', 'Prefetch', 'Prefetchwt1'],
  ...['Prefetchit0', 'Prefetchit1', 'Cldemote', 'Rdsspd', 'Rdsspq'],
];

export const move: Group = {
  operations: {
    mov: {
      sizes: INTEGER_SIZES,
      forms: ['registers', 'memory0', 'memory1'],
      destination: 'write',
      hot: [8, 16, 32, 64],
      flags: 'keep',
      emit: (c) => c.write(0, c.read(1)),
    },
    movzx8: extend(8, 'zero', true),
    movzx16: extend(16, 'zero', true),
    movsx8: extend(8, 'sign', true),
    movsx16: extend(16, 'sign', false),
    movsx32: extend(32, 'sign', true),
    lea: {
      sizes: WIDE,
      destination: 'write',
      hot: HOT,
      flags: 'keep',
      emit: (c) => c.write(0, c.effectiveAddress()),
    },
    xchg: { sizes: INTEGER_SIZES, forms: ['registers', 'memory0'], emit: exchange },
    bswap: { sizes: WIDE, flags: 'keep', emit: byteSwap },
    movbe: { sizes: WIDE, flags: 'keep', emit: (c) => c.write(0, reversedBytes(c, c.readUnsigned(1))) },
    widen: { sizes: WIDE, hot: [64], flags: 'keep', emit: widenAccumulator },
    spread: { sizes: WIDE, hot: HOT, flags: 'keep', emit: spreadSign },
    xlat: { sizes: [8], emit: translateByte },
    nop: { sizes: [64], hot: [64], flags: 'keep', emit: () => {} },
    ...perCondition((name, code) => [`cmov${name}`, conditionalMove(code)]),
    ...perCondition((name, code) => [`set${name}`, setByte(code)]),
  },
  instructions: {
    Mov: { operation: 'mov', roles: [WRITE, READ] },
    Movnti: { operation: 'mov', roles: [WRITE, READ] },
    Movzx: sourceSize('movzx'),
    Movsx: sourceSize('movsx'),
    // Its source has 32 bits whatever the destination has.
    Movsxd: { operation: 'movsx32', roles: [WRITE, READ] },
    Lea: { operation: 'lea', roles: [WRITE, ADDRESS] },
    Xchg: { operation: 'xchg', roles: [UPDATE, UPDATE] },
    Bswap: { operation: 'bswap', roles: [UPDATE] },
    Movbe: { operation: 'movbe', roles: [WRITE, READ] },
    Cbw: implicit('widen', 16),
    Cwde: implicit('widen', 32),
    Cdqe: implicit('widen', 64),
    Cwd: implicit('spread', 16),
    Cdq: implicit('spread', 32),
    Cqo: implicit('spread', 64),
    Xlatb: { operation: 'xlat', roles: [ADDRESS], size: 8 },
    ...perCondition((name) => [
      `Cmov${name.toLowerCase()}`,
      { operation: `cmov${name}`, roles: [UPDATE, READ] },
    ]),
    ...perCondition((name) => [`Set${name.toLowerCase()}`, { operation: `set${name}`, roles: [WRITE] }]),
    ...Object.fromEntries(
      ['Nop', 'Reservednop', 'Endbr64', 'Endbr32', 'Pause', 'Mfence', 'Lfence', 'Sfence'].map((mnemonic) => [
        mnemonic,
        implicit('nop', 64),
      ]),
    ),
    ...Object.fromEntries(HINTS.map((mnemonic) => [mnemonic, implicit('nop', 64)])),
  },
};
