/**
 * SSE and SSE2, and the moves of SSE3: moves, logic, packed integers, shuffles (AMD APM volume 4). `sse2-operations.ts` says what they
 * compute, this group where their operands lie. Left out: floating-point arithmetic, and all that touches MMX registers.
 */
import { i8x16, i32x4, i64x2, v128 } from '../wasm/simd.ts';
import { type I64, i32, i64, select, type V128 } from '../wasm/value.ts';
import {
  type Group,
  type Instruction,
  NONE,
  type OperandContext,
  type Operation,
  READ,
  UPDATE,
  WRITE,
} from './operation.ts';
import { byte, each, READ_DWORD, READ_QUADWORD, READ_WORD, together, VECTOR } from './packed-rows.ts';
import {
  BYTE_SHIFTS,
  SIGN_MASKS,
  VECTOR_COPIES,
  VECTOR_IMMEDIATE_OPERATIONS,
  VECTOR_OPERATIONS,
  VECTOR_SHIFTS,
} from './sse2-operations.ts';
import { requireAlignment } from './transfer.ts';

/** What gcc's vectorised loops and its memory functions are made of. */
const FREQUENT: ReadonlySet<string> = new Set(
  'Pand Pandn Por Pxor Xorps Paddb Paddw Paddd Paddq Psubb Psubd Psubq Pcmpeqb Pcmpeqd Pcmpgtd Pminub Punpcklbw Punpcklwd Punpckldq Punpcklqdq Punpckhqdq Pmuludq Pshufd Psrldq Psrlq Psllq Pslld Psrld Pmovmskb'.split(
    ' ',
  ),
);

const frequent = { frequent: FREQUENT };
const TABLES = together(
  each(
    VECTOR_OPERATIONS,
    (c, compute) => c.writeVector(0, compute(c.readVector(0), c.readVector(1))),
    [UPDATE, READ],
    frequent,
  ),
  each(VECTOR_COPIES, (c, copy) => c.writeVector(0, copy(c.readVector(1))), [WRITE, READ]),
  each(
    VECTOR_SHIFTS,
    (c, shift) => c.writeVector(0, shift(c.readVector(0), c.readUnsigned(1, 64))),
    [UPDATE, READ],
    frequent,
  ),
  each(
    BYTE_SHIFTS,
    (c, shift) => c.writeVector(0, shift(c.readVector(0), byte(c, 1))),
    [UPDATE, READ],
    frequent,
  ),
  each(
    VECTOR_IMMEDIATE_OPERATIONS,
    (c, compute) => c.writeVector(0, compute(c.readVector(0), c.readVector(1), byte(c, 2))),
    [UPDATE, READ, READ],
    frequent,
  ),
  each(SIGN_MASKS, (c, mask) => c.write(0, i64.fromI32U(mask(c.readVector(1)))), [WRITE, READ], {
    sizes: [32, 64],
    ...frequent,
  }),
);

/** A quadword alone in a vector. */
const alone = (quadword: I64): V128 => i64x2.replace(v128.zero(), 0, quadword);

const intoHalf =
  (lane: 0 | 1): Operation['emit'] =>
  (c) =>
    c.writeVector(0, i64x2.replace(c.readVector(0), lane, c.readUnsigned(1, 64)));
const outOfHalf =
  (lane: 0 | 1): Operation['emit'] =>
  (c) =>
    c.write(0, i64x2.extract(c.readVector(1), lane));

/** MOVSS and MOVSD between registers: the lowest lane alone changes. */
const lowLane = (c: OperandContext, old: V128, bits: 32 | 64): V128 =>
  bits === 32
    ? i32x4.replace(old, 0, i32.wrap(c.readUnsigned(1, 32)))
    : i64x2.replace(old, 0, c.readUnsigned(1, 64));

/**
 * MASKMOVDQU: the bytes of operand 1 for which operand 2 has its top bit, to memory that is read and checked first. Whether bytes that
 * the mask leaves out may fault is up to the processor; here all 16 count.
 */
function storeSelected(c: OperandContext): void {
  const low = c.code.let(c.effectiveAddress());
  const high = c.code.let(i64.add(low, 8));
  const old = [c.loadForWrite(low, 64), c.loadForWrite(high, 64)] as const;
  const half = (at: I64, lane: 0 | 1): void => {
    const mask = c.code.let(i64x2.extract(i8x16.gtS(v128.zero(), c.readVector(2)), lane));
    const chosen = i64.and(i64x2.extract(c.readVector(1), lane), mask);
    c.store(at, i64.or(i64.and(old[lane], i64.not(mask)), chosen), 64);
  };
  half(low, 0);
  half(high, 1);
}

function extractWord(c: OperandContext): void {
  const source = c.readVector(1);
  const lane = c.readUnsigned(2, 8);
  const half = select(i64.eqz(i64.and(lane, 4)), i64x2.extract(source, 0), i64x2.extract(source, 1));
  c.write(0, i64.and(i64.shrU(half, i64.shl(i64.and(lane, 3), 4)), 0xffff));
}

function insertWord(c: OperandContext): void {
  const old = c.readVector(0);
  const word = c.readUnsigned(1, 16);
  const lane = c.readUnsigned(2, 8);
  const shift = c.code.let(i64.shl(i64.and(lane, 3), 4));
  const inHalf = (half: 0 | 1): I64 => {
    const before = i64x2.extract(old, half);
    const after = i64.or(i64.and(before, i64.not(i64.shl(0xffff, shift))), i64.shl(word, shift));
    const other = half === 0 ? 4 : 0;
    return select(i64.eq(i64.and(lane, 4), other), before, after);
  };
  c.writeVector(0, i64x2.replace(i64x2.replace(old, 0, inHalf(0)), 1, inHalf(1)));
}

const ALIGNED_MOVES = ['Movdqa', 'Movaps', 'Movapd', 'Movntdq', 'Movntps', 'Movntpd'];
const UNALIGNED_MOVES = ['Movdqu', 'Movups', 'Movupd', 'Lddqu'];

/** Moves between a vector register's low or high half and memory; the other direction has the vector second. */
const halfMove = (half: 'Low' | 'High'): Instruction => ({
  operation: (sizes) => (sizes[0] === 128 ? `into${half}` : `outOf${half}`),
  roles: [UPDATE, READ_QUADWORD],
});

/** MOVSS, MOVSD: between registers one lane, from memory all of the register. */
const scalarMove = (bits: 32 | 64): Instruction => {
  const name = bits === 32 ? 'dword' : 'quadword';
  return {
    operation: ([to, from]) =>
      to !== 128 ? `${name}FromVector` : from === 128 ? `${name}IntoVector` : `${name}ToVector`,
    roles: [WRITE, bits === 32 ? READ_DWORD : READ_QUADWORD],
  };
};

export const sse2: Group = {
  operations: {
    ...TABLES.operations,
    movVector: {
      sizes: VECTOR,
      forms: ['registers', 'memory0', 'memory1'],
      destination: 'write',
      hot: VECTOR,
      emit: (c) => c.writeVector(0, c.readVector(1)),
    },
    movVectorAligned: {
      sizes: VECTOR,
      forms: ['memory0', 'memory1'],
      destination: 'write',
      hot: VECTOR,
      emit: (c) => {
        requireAlignment(c);
        c.writeVector(0, c.readVector(1));
      },
    },
    dwordToVector: {
      sizes: VECTOR,
      forms: ['registers', 'memory1'],
      destination: 'write',
      hot: VECTOR,
      emit: (c) => c.writeVector(0, alone(c.readUnsigned(1, 32))),
    },
    quadwordToVector: {
      sizes: VECTOR,
      forms: ['registers', 'memory1'],
      destination: 'write',
      hot: VECTOR,
      emit: (c) => c.writeVector(0, alone(c.readUnsigned(1, 64))),
    },
    dwordFromVector: {
      sizes: [32],
      forms: ['registers', 'memory0'],
      destination: 'write',
      hot: [32],
      emit: (c) => c.write(0, c.readUnsigned(1, 32)),
    },
    quadwordFromVector: {
      sizes: [64],
      forms: ['registers', 'memory0'],
      destination: 'write',
      hot: [64],
      emit: (c) => c.write(0, c.readUnsigned(1, 64)),
    },
    dwordIntoVector: { sizes: VECTOR, emit: (c) => c.writeVector(0, lowLane(c, c.readVector(0), 32)) },
    quadwordIntoVector: { sizes: VECTOR, emit: (c) => c.writeVector(0, lowLane(c, c.readVector(0), 64)) },
    maskmovdqu: { sizes: VECTOR, emit: storeSelected },
    /** MOVDDUP: the low quadword twice. */
    movddup: {
      sizes: VECTOR,
      destination: 'write',
      emit: (c) => c.writeVector(0, i64x2.splat(c.readUnsigned(1, 64))),
    },
    intoLow: { sizes: VECTOR, emit: intoHalf(0) },
    intoHigh: { sizes: VECTOR, emit: intoHalf(1) },
    outOfLow: { sizes: [64], destination: 'write', emit: outOfHalf(0) },
    outOfHigh: { sizes: [64], destination: 'write', emit: outOfHalf(1) },
    pextrw: { sizes: [16, 32, 64], destination: 'write', emit: extractWord },
    pinsrw: { sizes: VECTOR, emit: insertWord },
  },
  instructions: {
    ...TABLES.instructions,
    ...Object.fromEntries(
      ALIGNED_MOVES.map((mnemonic): [string, Instruction] => [
        mnemonic,
        { operation: 'movVector', roles: [WRITE, READ], aligned: true },
      ]),
    ),
    ...Object.fromEntries(
      UNALIGNED_MOVES.map((mnemonic): [string, Instruction] => [
        mnemonic,
        { operation: 'movVector', roles: [WRITE, READ] },
      ]),
    ),
    Movd: {
      operation: (sizes) => (sizes[0] === 128 ? 'dwordToVector' : 'dwordFromVector'),
      roles: [WRITE, READ_DWORD],
    },
    Movq: {
      operation: (sizes) => (sizes[0] === 128 ? 'quadwordToVector' : 'quadwordFromVector'),
      roles: [WRITE, READ_QUADWORD],
    },
    Movss: scalarMove(32),
    Movsd: scalarMove(64),
    Movddup: { operation: 'movddup', roles: [WRITE, READ_QUADWORD] },
    Maskmovdqu: { operation: 'maskmovdqu', roles: [NONE, READ, READ], size: 128 },
    Movlps: halfMove('Low'),
    Movlpd: halfMove('Low'),
    Movhps: halfMove('High'),
    Movhpd: halfMove('High'),
    Pextrw: { operation: 'pextrw', roles: [WRITE, READ, READ] },
    Pinsrw: { operation: 'pinsrw', roles: [UPDATE, READ_WORD, READ] },
  },
};
