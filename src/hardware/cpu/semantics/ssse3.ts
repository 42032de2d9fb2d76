/** SSSE3 on XMM registers (AMD APM volume 4): shuffles by index, horizontal sums, signs and absolute values. Its MMX forms are left out. */
import { i8x16, i16x8, i32x4, v128 } from '../wasm/simd.ts';
import { i32, type V128 } from '../wasm/value.ts';
import { READ, UPDATE, WRITE } from './operation.ts';
import { byte, each, together } from './packed-rows.ts';
import { byteNumbers, elements, type ImmediateOperation, type VectorOperation } from './sse2-operations.ts';

/** Both operands' even and odd lanes of `width` bytes, the first operand's in the low half. */
const halves = (width: 2 | 4, a: V128, b: V128): [even: V128, odd: V128] => {
  const lanes = Array.from({ length: 16 / width }, (_, lane) => 2 * lane);
  const odd = lanes.map((lane) => lane + 1);
  return [i8x16.shuffle(a, b, elements(width, ...lanes)), i8x16.shuffle(a, b, elements(width, ...odd))];
};
const horizontal =
  (width: 2 | 4, combine: (even: V128, odd: V128) => V128): VectorOperation =>
  (a, b) =>
    combine(...halves(width, a, b));

/** a where b is positive, −a where it is negative, 0 where it is 0. */
const sign =
  (negative: (b: V128) => V128, subtract: VectorOperation, equal: VectorOperation): VectorOperation =>
  (a, b) =>
    v128.andNot(subtract(v128.xor(a, negative(b)), negative(b)), equal(b, v128.zero()));

/** Unsigned bytes of a times signed bytes of b, neighbours added with saturation. */
const multiplyAddBytes: VectorOperation = (a, b) => {
  const even = i16x8.mul(v128.and(a, i16x8.splat(0xff)), i16x8.shrS(i16x8.shl(b, 8), 8));
  const odd = i16x8.mul(i16x8.shrU(a, 8), i16x8.shrS(b, 8));
  return i16x8.addSatS(even, odd);
};

/** (a · b) >> 15, rounded; −1 · −1 is −1 here, where WebAssembly saturates. */
const multiplyRounded: VectorOperation = (a, b) => {
  const lowest = i16x8.splat(0x8000);
  const both = v128.and(i16x8.eq(a, lowest), i16x8.eq(b, lowest));
  return v128.xor(i16x8.mulQ15S(a, b), both);
};

const OPERATIONS: Readonly<Record<string, VectorOperation>> = {
  /** An index with its top bit set gives 0; else its low four bits count. */
  Pshufb: (a, b) => i8x16.swizzle(a, v128.and(b, i8x16.splat(0x8f))),
  Phaddw: horizontal(2, i16x8.add),
  Phaddd: horizontal(4, i32x4.add),
  Phaddsw: horizontal(2, i16x8.addSatS),
  Phsubw: horizontal(2, i16x8.sub),
  Phsubd: horizontal(4, i32x4.sub),
  Phsubsw: horizontal(2, i16x8.subSatS),
  Psignb: sign((b) => i8x16.gtS(v128.zero(), b), i8x16.sub, i8x16.eq),
  Psignw: sign((b) => i16x8.shrS(b, 15), i16x8.sub, i16x8.eq),
  Psignd: sign((b) => i32x4.shrS(b, 31), i32x4.sub, i32x4.eq),
  Pmaddubsw: multiplyAddBytes,
  Pmulhrsw: multiplyRounded,
};

const COPIES: Readonly<Record<string, (source: V128) => V128>> = {
  Pabsb: i8x16.abs,
  Pabsw: i16x8.abs,
  Pabsd: i32x4.abs,
};

/** Sixteen bytes of destination:source from byte `immediate` on; beyond, zeros. Indices that fall off an operand swizzle to 0. */
const alignRight: ImmediateOperation = (destination, source, immediate) => {
  const from = i8x16.addSatU(byteNumbers(), i8x16.splat(immediate));
  const low = i8x16.swizzle(source, from);
  const high = i8x16.swizzle(destination, i8x16.sub(from, i8x16.splat(i32.const(16))));
  return v128.or(low, high);
};

export const ssse3 = together(
  each(
    OPERATIONS,
    (c, compute) => c.writeVector(0, compute(c.readVector(0), c.readVector(1))),
    [UPDATE, READ],
    { frequent: new Set(['Pshufb']) },
  ),
  each(COPIES, (c, compute) => c.writeVector(0, compute(c.readVector(1))), [WRITE, READ]),
  each(
    { Palignr: alignRight },
    (c, compute) => c.writeVector(0, compute(c.readVector(0), c.readVector(1), byte(c, 2))),
    [UPDATE, READ, READ],
    { frequent: new Set(['Palignr']) },
  ),
);
