/**
 * SSE4.1 without floating-point arithmetic, and PCMPGTQ of SSE4.2 (AMD APM volume 4): blends, inserts and extracts, widening moves, minima,
 * products. Rounding and dot products are not here.
 */
import { STATE } from '../state.ts';
import { i8x16, i16x8, i32x4, i64x2, v128 } from '../wasm/simd.ts';
import { type I32, i32, i64, type V128 } from '../wasm/value.ts';
import {
  type Group,
  type Instruction,
  type OperandContext,
  READ,
  type Role,
  UPDATE,
  WRITE,
} from './operation.ts';
import {
  byte,
  each,
  READ_BYTE,
  READ_DWORD,
  READ_QUADWORD,
  READ_WORD,
  together,
  VECTOR,
} from './packed-rows.ts';
import {
  absoluteDifference,
  byteNumbers,
  dwordIndices,
  EVEN_DWORDS,
  elements,
  type ImmediateOperation,
  selector,
  type VectorOperation,
} from './sse2-operations.ts';

const OPERATIONS: Readonly<Record<string, VectorOperation>> = {
  Pminsb: i8x16.minS,
  Pmaxsb: i8x16.maxS,
  Pminuw: i16x8.minU,
  Pmaxuw: i16x8.maxU,
  Pminsd: i32x4.minS,
  Pmaxsd: i32x4.maxS,
  Pminud: i32x4.minU,
  Pmaxud: i32x4.maxU,
  Pmulld: i32x4.mul,
  Pmuldq: (a, b) => i64x2.mulLowS(i8x16.shuffle(a, a, EVEN_DWORDS), i8x16.shuffle(b, b, EVEN_DWORDS)),
  Packusdw: i16x8.narrowU,
  Pcmpeqq: i64x2.eq,
  Pcmpgtq: i64x2.gtS,
};

/** Blends by the top bits of XMM0's lanes: the mask from it. */
const BLENDS: Readonly<Record<string, (selector: V128) => V128>> = {
  Pblendvb: (lanes) => i8x16.gtS(v128.zero(), lanes),
  Blendvps: (lanes) => i32x4.shrS(lanes, 31),
  Blendvpd: (lanes) => i64x2.shrS(lanes, 63),
};

/** 1, 2, 4 … in lanes of `width` bytes. */
const laneBits = (width: 2 | 4 | 8): V128 =>
  v128.const(Array.from({ length: 16 }, (_, at) => (at % width === 0 ? 1 << (at / width) : 0)));
/** All ones in the lanes whose bit `immediate` has. */
const lanesOf = {
  2: (immediate: I32) => i16x8.eq(v128.and(i16x8.splat(immediate), laneBits(2)), laneBits(2)),
  4: (immediate: I32) => i32x4.eq(v128.and(i32x4.splat(immediate), laneBits(4)), laneBits(4)),
  8: (immediate: I32) => i64x2.eq(v128.and(i64x2.splat(i64.fromI32U(immediate)), laneBits(8)), laneBits(8)),
} as const;
const blend =
  (width: 2 | 4 | 8): ImmediateOperation =>
  (a, b, immediate) =>
    v128.select(b, a, lanesOf[width](immediate));

/** Sums of four absolute differences: eight neighbouring quadruples of a against one of b. */
const sumsOfDifferences: ImmediateOperation = (a, b, immediate) => {
  const window = i8x16.swizzle(a, i8x16.add(byteNumbers(), i8x16.splat(i32.and(immediate, 4))));
  const first = i32.shl(selector(immediate, 0, 2), 2);
  const difference = (k: number): V128 => {
    const bytes = i8x16.shuffle(
      window,
      window,
      Array.from({ length: 16 }, (_, at) => Math.min(at + k, 15)),
    );
    return i16x8.extendLowU(absoluteDifference(bytes, i8x16.swizzle(b, i8x16.splat(i32.add(first, k)))));
  };
  return i16x8.add(i16x8.add(difference(0), difference(1)), i16x8.add(difference(2), difference(3)));
};

const IMMEDIATE_OPERATIONS: Readonly<Record<string, ImmediateOperation>> = {
  Pblendw: blend(2),
  Blendps: blend(4),
  Blendpd: blend(8),
  Mpsadbw: sumsOfDifferences,
};

/** The smallest of eight unsigned words, and its place (the first, if there are several). */
function smallestWord(c: OperandContext): void {
  const source = c.readVector(1);
  const keys = (words: V128, first: number): V128 =>
    v128.or(
      i32x4.shl(words, 16),
      v128.const(Array.from({ length: 16 }, (_, at) => (at % 4 === 0 ? first + at / 4 : 0))),
    );
  const fours = c.code.let(i32x4.minU(keys(i32x4.extendLowU(source), 0), keys(i32x4.extendHighU(source), 4)));
  const twos = c.code.let(i32x4.minU(fours, i8x16.shuffle(fours, fours, elements(8, 1, 0))));
  const one = i32x4.minU(twos, i8x16.shuffle(twos, twos, elements(4, 1, 0, 3, 2)));
  const key = c.code.let(i32x4.extract(one, 0));
  const result = i32.or(i32.shrU(key, 16), i32.shl(key, 16));
  c.writeVector(0, i64x2.replace(v128.zero(), 0, i64.fromI32U(result)));
}

/** PMOVSX and PMOVZX: as many lanes as fit, from the low bytes of a register or from that much memory. */
const WIDENING: Readonly<Record<string, readonly [16 | 32 | 64, (low: V128) => V128]>> = {
  Pmovsxbw: [64, i16x8.extendLowS],
  Pmovsxbd: [32, (a) => i32x4.extendLowS(i16x8.extendLowS(a))],
  Pmovsxbq: [16, (a) => i64x2.extendLowS(i32x4.extendLowS(i16x8.extendLowS(a)))],
  Pmovsxwd: [64, i32x4.extendLowS],
  Pmovsxwq: [32, (a) => i64x2.extendLowS(i32x4.extendLowS(a))],
  Pmovsxdq: [64, i64x2.extendLowS],
  Pmovzxbw: [64, i16x8.extendLowU],
  Pmovzxbd: [32, (a) => i32x4.extendLowU(i16x8.extendLowU(a))],
  Pmovzxbq: [16, (a) => i64x2.extendLowU(i32x4.extendLowU(i16x8.extendLowU(a)))],
  Pmovzxwd: [64, i32x4.extendLowU],
  Pmovzxwq: [32, (a) => i64x2.extendLowU(i32x4.extendLowU(a))],
  Pmovzxdq: [64, i64x2.extendLowU],
};

const READ_BITS = { 16: READ_WORD, 32: READ_DWORD, 64: READ_QUADWORD } as const;

/** Numbers of the lanes of `width` bytes, in their low bytes. */
const laneNumbers = (width: 4 | 8): V128 =>
  v128.const(Array.from({ length: 16 }, (_, at) => (at % width === 0 ? at / width : 0)));

/** INSERTPS with the dword `from` (in all lanes): which lane it goes to, and which become 0. */
function insertSingle(c: OperandContext, from: V128, immediate: I32): void {
  const here = i32x4.eq(laneNumbers(4), i32x4.splat(selector(immediate, 2, 2)));
  const inserted = v128.select(from, c.readVector(0), here);
  c.writeVector(0, v128.andNot(inserted, lanesOf[4](immediate)));
}

/** ZF: no bit of a ∧ b; CF: no bit of b ∧ ¬a; all others are cleared. */
function test(c: OperandContext): void {
  const a = c.readVector(0);
  const b = c.readVector(1);
  const outside = i32.eqz(v128.anyTrue(v128.andNot(b, a)));
  c.setState(STATE.FLAG_ZR, i64.fromI32U(v128.anyTrue(v128.and(a, b))));
  c.setState(STATE.FLAG_SR, i64.const(1));
  c.setState(STATE.FLAG_CV, i64.shl(i64.fromI32U(outside), 63));
  c.setState(STATE.FLAG_OV, i64.const(0));
}

const xmm0 = (c: OperandContext): V128 =>
  i64x2.replace(i64x2.splat(c.state(STATE.XMM)), 1, c.state(STATE.XMM + 8));

const TABLES = together(
  each(OPERATIONS, (c, compute) => c.writeVector(0, compute(c.readVector(0), c.readVector(1))), [
    UPDATE,
    READ,
  ]),
  each(BLENDS, (c, mask) => c.writeVector(0, v128.select(c.readVector(1), c.readVector(0), mask(xmm0(c)))), [
    UPDATE,
    READ,
  ]),
  each(
    IMMEDIATE_OPERATIONS,
    (c, compute) => c.writeVector(0, compute(c.readVector(0), c.readVector(1), byte(c, 2))),
    [UPDATE, READ, READ],
  ),
  ...Object.entries(WIDENING).map(([mnemonic, [bits, widen]]) =>
    each(
      { [mnemonic]: widen },
      (c, compute) => c.writeVector(0, compute(i64x2.splat(c.readUnsigned(1, bits)))),
      [WRITE, READ_BITS[bits]],
    ),
  ),
  each({ Phminposuw: smallestWord }, (c, emit) => emit(c), [WRITE, READ]),
  each({ Ptest: test }, (c, emit) => emit(c), [READ, READ]),
);

export const sse41: Group = {
  operations: {
    ...TABLES.operations,
    insertps: {
      sizes: VECTOR,
      emit: (c) => {
        const immediate = byte(c, 2);
        const lane = i32.mul(selector(immediate, 3, 2), 0x04040404);
        const from = i8x16.swizzle(c.readVector(1), i32x4.splat(i32.add(lane, 0x03020100)));
        insertSingle(c, from, immediate);
      },
    },
    /** From memory there is one dword, and the immediate does not choose it. */
    insertpsFromMemory: {
      sizes: VECTOR,
      emit: (c) => insertSingle(c, i32x4.splat(i32.wrap(c.readUnsigned(1, 32))), byte(c, 2)),
    },
    pinsrb: {
      sizes: VECTOR,
      emit: (c) => {
        const here = i8x16.eq(byteNumbers(), i8x16.splat(i32.and(byte(c, 2), 15)));
        c.writeVector(0, v128.select(i8x16.splat(i32.wrap(c.readUnsigned(1, 8))), c.readVector(0), here));
      },
    },
    pinsrd: {
      sizes: VECTOR,
      emit: (c) => {
        const here = i32x4.eq(laneNumbers(4), i32x4.splat(i32.and(byte(c, 2), 3)));
        c.writeVector(0, v128.select(i32x4.splat(i32.wrap(c.readUnsigned(1, 32))), c.readVector(0), here));
      },
    },
    pinsrq: {
      sizes: VECTOR,
      emit: (c) => {
        const here = i64x2.eq(laneNumbers(8), i64x2.splat(i64.fromI32U(i32.and(byte(c, 2), 1))));
        c.writeVector(0, v128.select(i64x2.splat(c.readUnsigned(1, 64)), c.readVector(0), here));
      },
    },
    pextrb: {
      sizes: [8, 32, 64],
      destination: 'write',
      emit: (c) => {
        const lane = i8x16.swizzle(c.readVector(1), i8x16.splat(i32.and(byte(c, 2), 15)));
        c.write(0, i64.and(i64x2.extract(lane, 0), 0xff));
      },
    },
    /** PEXTRD and EXTRACTPS; a 64-bit register gets zeros above. */
    pextrd: {
      sizes: [32, 64],
      destination: 'write',
      emit: (c) => {
        const index = dwordIndices(i32.and(byte(c, 2), 3));
        c.write(0, i64.fromI32U(i32x4.extract(i8x16.swizzle(c.readVector(1), index), 0)));
      },
    },
    pextrq: {
      sizes: [64],
      destination: 'write',
      emit: (c) => {
        const index = i8x16.add(byteNumbers(), i8x16.splat(i32.shl(i32.and(byte(c, 2), 1), 3)));
        c.write(0, i64x2.extract(i8x16.swizzle(c.readVector(1), index), 0));
      },
    },
  },
  instructions: {
    ...TABLES.instructions,
    Movntdqa: { operation: 'movVector', roles: [WRITE, READ], aligned: true },
    Insertps: {
      operation: (sizes) => (sizes[1] === 128 ? 'insertps' : 'insertpsFromMemory'),
      roles: [UPDATE, READ_DWORD, READ],
    },
    Pinsrb: insertion('pinsrb', READ_BYTE),
    Pinsrd: insertion('pinsrd', READ_DWORD),
    Pinsrq: insertion('pinsrq', READ_QUADWORD),
    Pextrb: { operation: 'pextrb', roles: [WRITE, READ, READ] },
    Pextrd: { operation: 'pextrd', roles: [WRITE, READ, READ] },
    Extractps: { operation: 'pextrd', roles: [WRITE, READ, READ] },
    Pextrq: { operation: 'pextrq', roles: [WRITE, READ, READ] },
  },
};

function insertion(operation: string, role: Role): Instruction {
  return { operation, roles: [UPDATE, role, READ] };
}
