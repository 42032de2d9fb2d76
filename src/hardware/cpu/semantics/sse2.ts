/**
 * SSE and SSE2: moves, logic, packed integers, shuffles (AMD APM volume 4). `sse2-operations.ts` says what they compute, this
 * group where their operands lie. Left out: floating point, MASKMOVDQU, and all that touches MMX registers.
 */
import { i64x2, v128 } from '../wasm/simd.ts';
import { type I32, type I64, i32, i64, select, type V128 } from '../wasm/value.ts';
import {
  type Group,
  type Instruction,
  type OperandContext,
  type Operation,
  READ,
  type Role,
  UPDATE,
  WRITE,
} from './operation.ts';
import {
  BYTE_SHIFTS,
  SIGN_MASKS,
  VECTOR_IMMEDIATE_OPERATIONS,
  VECTOR_OPERATIONS,
  VECTOR_SHIFTS,
} from './sse2-operations.ts';

const VECTOR = [128] as const;
const READ_DWORD: Role = { access: 'read', size: 32 };
const READ_QUADWORD: Role = { access: 'read', size: 64 };
const READ_WORD: Role = { access: 'read', size: 16 };

const name = (mnemonic: string): string => mnemonic.toLowerCase();
const byte = (c: OperandContext, operand: 1 | 2): I32 => i32.wrap(c.readUnsigned(operand, 8));

/** What gcc's vectorised loops and its memory functions are made of. */
const FREQUENT: ReadonlySet<string> = new Set(
  'Pand Pandn Por Pxor Xorps Paddb Paddw Paddd Paddq Psubb Psubd Psubq Pcmpeqb Pcmpeqd Pcmpgtd Pminub Punpcklbw Punpcklwd Punpckldq Punpcklqdq Punpckhqdq Pmuludq Pshufd Psrldq Psrlq Psllq Pslld Psrld Pmovmskb'.split(
    ' ',
  ),
);

/** One operation and one row for each entry of a table of `sse2-operations.ts`. */
function each<T>(
  table: Readonly<Record<string, T>>,
  emit: (c: OperandContext, entry: T) => void,
  roles: readonly Role[],
  sizes: Operation['sizes'] = VECTOR,
): Group {
  const destination = roles[0] === WRITE ? 'write' : 'update';
  const row = (mnemonic: string): Instruction => ({ operation: name(mnemonic), roles, aligned: true });
  return {
    operations: Object.fromEntries(
      Object.entries(table).map(([mnemonic, entry]) => [
        name(mnemonic),
        {
          sizes,
          destination,
          hot: FREQUENT.has(mnemonic) ? sizes : undefined,
          emit: (c: OperandContext) => emit(c, entry),
        },
      ]),
    ),
    instructions: Object.fromEntries(Object.keys(table).map((mnemonic) => [mnemonic, row(mnemonic)])),
  };
}

const TABLES: readonly Group[] = [
  each(VECTOR_OPERATIONS, (c, compute) => c.writeVector(0, compute(c.readVector(0), c.readVector(1))), [
    UPDATE,
    READ,
  ]),
  each(VECTOR_SHIFTS, (c, shift) => c.writeVector(0, shift(c.readVector(0), c.readUnsigned(1, 64))), [
    UPDATE,
    READ,
  ]),
  each(BYTE_SHIFTS, (c, shift) => c.writeVector(0, shift(c.readVector(0), byte(c, 1))), [UPDATE, READ]),
  each(
    VECTOR_IMMEDIATE_OPERATIONS,
    (c, compute) => c.writeVector(0, compute(c.readVector(0), c.readVector(1), byte(c, 2))),
    [UPDATE, READ, READ],
  ),
  each(SIGN_MASKS, (c, mask) => c.write(0, i64.fromI32U(mask(c.readVector(1)))), [WRITE, READ], [32, 64]),
];

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
const UNALIGNED_MOVES = ['Movdqu', 'Movups', 'Movupd'];

/** Moves between a vector register's low or high half and memory; the other direction has the vector second. */
const halfMove = (half: 'Low' | 'High'): Instruction => ({
  operation: (sizes) => (sizes[0] === 128 ? `into${half}` : `outOf${half}`),
  roles: [UPDATE, READ_QUADWORD],
});

export const sse2: Group = {
  operations: {
    ...Object.assign({}, ...TABLES.map(({ operations }) => operations)),
    movVector: {
      sizes: VECTOR,
      forms: ['registers', 'memory0', 'memory1'],
      destination: 'write',
      hot: VECTOR,
      emit: (c) => c.writeVector(0, c.readVector(1)),
    },
    dwordToVector: {
      sizes: VECTOR,
      destination: 'write',
      emit: (c) => c.writeVector(0, alone(c.readUnsigned(1, 32))),
    },
    quadwordToVector: {
      sizes: VECTOR,
      destination: 'write',
      emit: (c) => c.writeVector(0, alone(c.readUnsigned(1, 64))),
    },
    dwordFromVector: {
      sizes: [32],
      destination: 'write',
      emit: (c) => c.write(0, c.readUnsigned(1, 32)),
    },
    quadwordFromVector: {
      sizes: [64],
      destination: 'write',
      emit: (c) => c.write(0, c.readUnsigned(1, 64)),
    },
    intoLow: { sizes: VECTOR, emit: intoHalf(0) },
    intoHigh: { sizes: VECTOR, emit: intoHalf(1) },
    outOfLow: { sizes: [64], destination: 'write', emit: outOfHalf(0) },
    outOfHigh: { sizes: [64], destination: 'write', emit: outOfHalf(1) },
    pextrw: { sizes: [32, 64], destination: 'write', emit: extractWord },
    pinsrw: { sizes: VECTOR, emit: insertWord },
  },
  instructions: {
    ...Object.assign({}, ...TABLES.map(({ instructions }) => instructions)),
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
    Movlps: halfMove('Low'),
    Movlpd: halfMove('Low'),
    Movhps: halfMove('High'),
    Movhpd: halfMove('High'),
    Pextrw: { operation: 'pextrw', roles: [WRITE, READ, READ] },
    Pinsrw: { operation: 'pinsrw', roles: [UPDATE, READ_WORD, READ] },
  },
};
