/**
 * AES-NI (AMD APM volume 4; FIPS 197): a round each. The state is a vector, its byte 4·c + r the element of row r and column c.
 * S-boxes are sixteen swizzles, one for each high nibble: no memory is looked up by data.
 */
import { i8x16, v128 } from '../wasm/simd.ts';
import { type I32, i32, type V128 } from '../wasm/value.ts';
import { type OperandContext, READ, UPDATE, WRITE } from './operation.ts';
import { byte, each, together } from './packed-rows.ts';

/** Times x + 1, which generates the field GF(2^8) modulo x^8 + x^4 + x^3 + x + 1. */
const timesGenerator = (a: number): number => a ^ (a << 1) ^ (a & 0x80 ? 0x11b : 0);

/** The S-box: the inverse (of 0: 0), then an affine map. This runs whenever a core is loaded, so it takes no products. */
function substitutionBox(): number[] {
  const powers = [1];
  while (powers.length < 255) powers.push(timesGenerator(powers.at(-1)!));
  const box = new Array<number>(256).fill(0x63);
  for (const [n, power] of powers.entries()) {
    const inverse = powers[(255 - n) % 255]!;
    const rotated = (by: number) => ((inverse << by) | (inverse >> (8 - by))) & 0xff;
    box[power] = inverse ^ rotated(1) ^ rotated(2) ^ rotated(3) ^ rotated(4) ^ 0x63;
  }
  return box;
}

const S_BOX = substitutionBox();
const INVERSE_S_BOX = Array.from({ length: 256 }, (_, a) => S_BOX.indexOf(a));

/** Every byte through a table of 256. Swizzle gives 0 where the index is above 15. */
function substitute(c: OperandContext, state: V128, table: readonly number[]): V128 {
  const from = c.code.let(state);
  let result = i8x16.swizzle(v128.const(table.slice(0, 16)), from);
  for (let high = 1; high < 16; high++) {
    const index = v128.xor(from, i8x16.splat(high << 4));
    result = v128.or(result, i8x16.swizzle(v128.const(table.slice(16 * high, 16 * high + 16)), index));
  }
  return result;
}

const bytes = (from: (row: number, column: number) => number): number[] =>
  Array.from({ length: 16 }, (_, at) => from(at & 3, at >> 2));
/** Row r moves by r columns. */
const shiftRows = (a: V128): V128 =>
  i8x16.shuffle(
    a,
    a,
    bytes((row, column) => 4 * ((column + row) & 3) + row),
  );
const unshiftRows = (a: V128): V128 =>
  i8x16.shuffle(
    a,
    a,
    bytes((row, column) => 4 * ((column - row) & 3) + row),
  );
/** Each column's elements move up by `rows`. */
const rotate = (a: V128, rows: number): V128 =>
  i8x16.shuffle(
    a,
    a,
    bytes((row, column) => 4 * column + ((row + rows) & 3)),
  );

/** Each byte times x. */
const double = (a: V128): V128 =>
  v128.xor(i8x16.add(a, a), v128.and(i8x16.gtS(v128.zero(), a), i8x16.splat(0x1b)));

/** Columns times 3x³ + x² + x + 2. */
function mixColumns(c: OperandContext, state: V128): V128 {
  const a = c.code.let(state);
  const doubled = c.code.let(double(a));
  const tripledNext = rotate(v128.xor(doubled, a), 1);
  return v128.xor(v128.xor(doubled, tripledNext), v128.xor(rotate(a, 2), rotate(a, 3)));
}

/** The inverse: the same after columns times 4x² + 5. */
function unmixColumns(c: OperandContext, state: V128): V128 {
  const a = c.code.let(state);
  const opposite = c.code.let(double(v128.xor(a, rotate(a, 2))));
  return mixColumns(c, v128.xor(a, double(opposite)));
}

const ROUNDS: Readonly<Record<string, (c: OperandContext, state: V128) => V128>> = {
  Aesenc: (c, state) => mixColumns(c, substitute(c, shiftRows(state), S_BOX)),
  Aesenclast: (c, state) => substitute(c, shiftRows(state), S_BOX),
  Aesdec: (c, state) => unmixColumns(c, substitute(c, unshiftRows(state), INVERSE_S_BOX)),
  Aesdeclast: (c, state) => substitute(c, unshiftRows(state), INVERSE_S_BOX),
};

/** Dwords 1 and 3 substituted; each also rotated, with the round constant. */
function keyAssist(c: OperandContext, source: V128, constant: I32): V128 {
  const words = substitute(c, source, S_BOX);
  const placed = i8x16.shuffle(words, words, [4, 5, 6, 7, 5, 6, 7, 4, 12, 13, 14, 15, 13, 14, 15, 12]);
  const places = v128.const(Array.from({ length: 16 }, (_, at) => (at === 4 || at === 12 ? 0xff : 0)));
  return v128.xor(placed, v128.and(i8x16.splat(i32.and(constant, 0xff)), places));
}

export const aes = together(
  each(ROUNDS, (c, round) => c.writeVector(0, v128.xor(round(c, c.readVector(0)), c.readVector(1))), [
    UPDATE,
    READ,
  ]),
  each({ Aesimc: unmixColumns }, (c, unmix) => c.writeVector(0, unmix(c, c.readVector(1))), [WRITE, READ]),
  each(
    { Aeskeygenassist: keyAssist },
    (c, assist) => c.writeVector(0, assist(c, c.readVector(1), byte(c, 2))),
    [WRITE, READ, READ],
  ),
);
