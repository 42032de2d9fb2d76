/**
 * PCLMULQDQ (AMD APM volume 4): the product of two quadwords as polynomials over GF(2). Bits are spread over four vectors, each with
 * three zeros between two bits: sums of integer products then have room for their carries, and every fourth bit is right.
 */
import { i8x16, i32x4, i64x2, v128 } from '../wasm/simd.ts';
import { i32, i64, select, type V128 } from '../wasm/value.ts';
import { type OperandContext, READ, UPDATE } from './operation.ts';
import { byte, each } from './packed-rows.ts';
import { elements } from './sse2-operations.ts';

const EVERY_FOURTH = 0x1111111111111111n;
const every = (from: number): V128 => i64x2.splat(EVERY_FOURTH << BigInt(from));
const every32 = (from: number): V128 => i32x4.splat(0x11111111 << from);

/** Two products of dwords 0 and 1 of `a` and `b`. */
function products(c: OperandContext, a: V128, b: V128): V128 {
  const spread = (of: V128) => [0, 1, 2, 3].map((from) => c.code.let(v128.and(of, every32(from))));
  const [left, right] = [spread(a), spread(b)];
  const part = (of: number): V128 => {
    const terms = left.map((term, k) => i64x2.mulLowU(term, right[(of - k) & 3]!));
    return v128.and(
      terms.reduce((sum: V128, term) => v128.xor(sum, term)),
      every(of),
    );
  };
  return c.code.let([1, 2, 3].reduce((sum, of) => v128.or(sum, part(of)), part(0)));
}

function multiply(c: OperandContext): void {
  const immediate = byte(c, 2);
  const quadword = (of: V128, bit: number): V128 => {
    const chosen = select(i32.and(immediate, bit), i64x2.extract(of, 1), i64x2.extract(of, 0));
    return c.code.let(i64x2.splat(c.code.let(chosen)));
  };
  const a = quadword(c.readVector(0), 1);
  const b = quadword(c.readVector(1), 16);
  const outer = products(c, a, b);
  const inner = products(c, a, i8x16.shuffle(b, b, elements(4, 1, 0, 3, 2)));
  const middle = c.code.let(i64.xor(i64x2.extract(inner, 0), i64x2.extract(inner, 1)));
  const low = i64.xor(i64x2.extract(outer, 0), i64.shl(middle, 32));
  const high = i64.xor(i64x2.extract(outer, 1), i64.shrU(middle, 32));
  c.writeVector(0, i64x2.replace(i64x2.splat(low), 1, high));
}

export const carryless = each({ Pclmulqdq: multiply }, (c, emit) => emit(c), [UPDATE, READ, READ]);
