/** Arithmetic in software against this machine's own (JavaScript's numbers round to nearest), and the laws that directed rounding obeys. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  add,
  divide,
  type FloatOperation,
  multiply,
  squareRoot,
  subtract,
} from '../../../../src/hardware/cpu/float/arithmetic.ts';
import { fromInteger, narrow, toInteger } from '../../../../src/hardware/cpu/float/conversion.ts';
import { FloatEnvironment } from '../../../../src/hardware/cpu/float/environment.ts';
import { bitLength, DOUBLE, type FloatFormat, SINGLE } from '../../../../src/hardware/cpu/float/format.ts';

const view = new DataView(new ArrayBuffer(8));
function doubleBits(x: number): bigint {
  view.setFloat64(0, x);
  return view.getBigUint64(0);
}
function double(bits: bigint): number {
  view.setBigUint64(0, bits);
  return view.getFloat64(0);
}
function singleBits(x: number): bigint {
  view.setFloat32(0, x);
  return BigInt(view.getUint32(0));
}
function single(bits: bigint): number {
  view.setUint32(0, Number(bits));
  return view.getFloat32(0);
}

const [NEAREST, DOWN, UP, ZERO] = [0x1f80, 0x3f80, 0x5f80, 0x7f80] as const;
const PRECISION = 0x20;

/** An operation with MXCSR as given: the number, and the flags that it sets. */
function compute(
  operation: FloatOperation,
  format: FloatFormat,
  operands: readonly [number, number],
  mxcsr: number,
): { value: number; flags: number } {
  const environment = new FloatEnvironment(mxcsr);
  const bits = format === DOUBLE ? doubleBits : singleBits;
  const result = operation(environment, format, bits(operands[0]), bits(operands[1]));
  environment.settle();
  return { value: format === DOUBLE ? double(result) : single(result), flags: environment.raised };
}

const OPERATIONS: readonly [string, FloatOperation, (a: number, b: number) => number][] = [
  ['add', add, (a, b) => a + b],
  ['subtract', subtract, (a, b) => a - b],
  ['multiply', multiply, (a, b) => a * b],
  ['divide', divide, (a, b) => a / b],
  ['square root', squareRoot, (_, b) => Math.sqrt(b)],
];
const anyDouble = fc.oneof(
  fc.double(),
  fc.double({ min: -100, max: 100 }),
  fc.double({ min: -1e-300, max: 1e-300 }),
);
const anySingle = fc.oneof(
  fc.float(),
  fc.float({ min: -100, max: 100 }),
  fc.float({ min: Math.fround(-1e-37), max: Math.fround(1e-37) }),
);

describe('to nearest', () => {
  it.each(OPERATIONS)('%s gives what JavaScript gives for doubles', (_, operation, native) => {
    fc.assert(
      fc.property(anyDouble, anyDouble, (a, b) => {
        expect(compute(operation, DOUBLE, [a, b], NEAREST).value).toBe(native(a, b));
      }),
      { numRuns: 400 },
    );
  });
  // A double has more than twice the precision, so rounding twice is rounding once.
  it.each(OPERATIONS)('%s gives what Math.fround makes of it for singles', (_, operation, native) => {
    fc.assert(
      fc.property(anySingle, anySingle, (a, b) => {
        expect(compute(operation, SINGLE, [a, b], NEAREST).value).toBe(Math.fround(native(a, b)));
      }),
      { numRuns: 400 },
    );
  });
  it('a double becomes the single that Math.fround gives', () => {
    fc.assert(
      fc.property(anyDouble, (x) => {
        expect(single(narrow(new FloatEnvironment(NEAREST), doubleBits(x)))).toBe(Math.fround(x));
      }),
      { numRuns: 400 },
    );
  });
  it('a 64-bit integer becomes the double that Number gives', () => {
    fc.assert(
      fc.property(fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }), (x) => {
        expect(double(fromInteger(new FloatEnvironment(NEAREST), DOUBLE, x))).toBe(Number(x));
      }),
      { numRuns: 400 },
    );
  });
});

describe('the length of a natural number', () => {
  it('is that of its binary digits', () => {
    expect(bitLength(0n)).toBe(0);
    for (const at of [0, 1, 31, 52, 53, 54, 63, 64, 105, 999, 1000, 1001, 2100]) {
      const power = 1n << BigInt(at);
      for (const x of [power - 1n, power, power + 1n])
        if (x > 0n) expect(bitLength(x)).toBe(x.toString(2).length);
    }
  });
});

describe('directed rounding', () => {
  it.each(OPERATIONS)('%s: down and up enclose nearest, which is one of them', (_, operation) => {
    fc.assert(
      fc.property(anyDouble, anyDouble, (a, b) => {
        const [nearest, down, up, zero] = [NEAREST, DOWN, UP, ZERO].map((mode) =>
          compute(operation, DOUBLE, [a, b], mode),
        ) as [
          ReturnType<typeof compute>,
          ReturnType<typeof compute>,
          ReturnType<typeof compute>,
          ReturnType<typeof compute>,
        ];
        if (Number.isNaN(nearest.value)) return;
        expect(down.value).toBeLessThanOrEqual(up.value);
        expect([down.value, up.value]).toContain(
          nearest.value === 0 ? (up.value === 0 ? up.value : down.value) : nearest.value,
        );
        expect(Math.abs(zero.value)).toBe(Math.min(Math.abs(down.value), Math.abs(up.value)));
        const inexact = (down.flags & PRECISION) !== 0;
        expect((nearest.flags & PRECISION) !== 0).toBe(inexact);
        expect(down.value !== up.value).toBe(inexact);
      }),
      { numRuns: 300 },
    );
  });
  it.each([
    [NEAREST, 0],
    [DOWN, -0],
    [UP, 0],
    [ZERO, 0],
  ])('MXCSR %x: 1 − 1 is a zero of this sign', (mode, want) => {
    expect(compute(subtract, DOUBLE, [1, 1], mode).value).toBe(want);
  });
  it.each([
    [2.5, 2n, 2n, 3n, 2n],
    [3.5, 4n, 3n, 4n, 3n],
    [-2.5, -2n, -3n, -2n, -2n],
    [-0.25, 0n, -1n, 0n, 0n],
    [2147483647.5, undefined, 2147483647n, undefined, 2147483647n],
    [-2147483648.5, -2147483648n, undefined, -2147483648n, -2147483648n],
  ])('%d as an integer: to nearest, down, up, towards zero', (x, ...want) => {
    const got = ([0, 1, 2, 3] as const).map((mode) => {
      const environment = new FloatEnvironment(NEAREST);
      const result = toInteger(environment, DOUBLE, doubleBits(x), { bits: 32, mode });
      environment.settle();
      return environment.raised === 1 ? undefined : BigInt.asIntN(32, result);
    });
    expect(got).toEqual(want);
  });
});

const [IE, DE, ZE, OE, UE, PE] = [1, 2, 4, 8, 16, 32] as const;
const MAX = Number.MAX_VALUE;
const TINY = 2 ** -1022;
const FLUSH = 0x8000;
const AS_ZERO = 0x40;

describe('flags', () => {
  const rules: readonly [string, FloatOperation, number, number, number, number, number][] = [
    ['∞ − ∞', subtract, Infinity, Infinity, NEAREST, Number.NaN, IE],
    ['0 · ∞', multiply, 0, -Infinity, NEAREST, Number.NaN, IE],
    ['∞ / ∞', divide, Infinity, Infinity, NEAREST, Number.NaN, IE],
    ['√−1', squareRoot, 0, -1, NEAREST, Number.NaN, IE],
    ['√−0', squareRoot, 0, -0, NEAREST, -0, 0],
    ['−1 / 0', divide, -1, 0, NEAREST, -Infinity, ZE],
    ['∞ / 0', divide, Infinity, 0, NEAREST, Infinity, 0],
    ['a denormal / 0', divide, 2 ** -1074, 0, NEAREST, Infinity, ZE],
    ['√ of a negative denormal', squareRoot, 0, -(2 ** -1074), NEAREST, Number.NaN, IE],
    ['the same under DAZ', squareRoot, 0, -(2 ** -1074), NEAREST | AS_ZERO, -0, 0],
    ['NaN + a denormal', add, Number.NaN, 2 ** -1074, NEAREST, Number.NaN, 0],
    ['∞ + a denormal', add, Infinity, 2 ** -1074, NEAREST, Infinity, DE],
    ['1 + a denormal', add, 1, 2 ** -1074, NEAREST, 1, DE | PE],
    ['1 + a denormal under DAZ', add, 1, 2 ** -1074, NEAREST | AS_ZERO, 1, 0],
    ['overflow', multiply, MAX, 2, NEAREST, Infinity, OE | PE],
    ['overflow towards zero', multiply, MAX, -2, ZERO, -MAX, OE | PE],
    ['negative overflow up', multiply, MAX, -2, UP, -MAX, OE | PE],
    ['negative overflow down', multiply, MAX, -2, DOWN, -Infinity, OE | PE],
    ['an exact denormal', multiply, TINY, 0.5, NEAREST, 2 ** -1023, 0],
    ['an exact denormal under FTZ', multiply, TINY, -0.5, NEAREST | FLUSH, -0, UE | PE],
    ['an inexact denormal', multiply, 2 ** -1074, 1.5, NEAREST, 2 ** -1073, DE | UE | PE],
    [
      'a product that rounds up to the smallest normal number',
      multiply,
      TINY,
      1 - 2 ** -53,
      NEAREST,
      TINY,
      UE | PE,
    ],
    ['a quotient that does not fit', divide, 1, 3, NEAREST, 1 / 3, PE],
    ['a quotient that does', divide, 6, 3, NEAREST, 2, 0],
  ];
  it.each(rules)('%s', (_, operation, a, b, mxcsr, value, flags) => {
    expect(compute(operation, DOUBLE, [a, b], mxcsr)).toEqual({ value, flags });
  });
});

describe('NaN', () => {
  const rules: readonly [string, bigint, bigint, bigint, number][] = [
    ['the first of two', 0x7ff8000000000001n, 0xfff8000000000002n, 0x7ff8000000000001n, 0],
    [
      'the second when the first is a number',
      0x3ff0000000000000n,
      0xfff8000000000002n,
      0xfff8000000000002n,
      0,
    ],
    ['a signaling one, made quiet', 0x7ff0000000000001n, 0n, 0x7ff8000000000001n, 1],
    [
      'the first of two, though the second signals',
      0x7ff8000000000001n,
      0x7ff0000000000002n,
      0x7ff8000000000001n,
      1,
    ],
    ['the first of two, which signals', 0xfff0000000000001n, 0x7ff8000000000002n, 0xfff8000000000001n, 1],
  ];
  it.each(rules)('%s', (_, a, b, want, flags) => {
    for (const operation of [add, subtract, multiply, divide]) {
      const environment = new FloatEnvironment(NEAREST);
      expect(operation(environment, DOUBLE, a, b)).toBe(want);
      environment.settle();
      expect(environment.raised).toBe(flags);
    }
  });
  it('keeps the upper bits of its payload in single precision', () => {
    expect(narrow(new FloatEnvironment(NEAREST), 0xfff0000020000000n)).toBe(0xffc00001n);
    expect(narrow(new FloatEnvironment(NEAREST), 0x7ff000001fffffffn)).toBe(0x7fc00000n);
  });
});
