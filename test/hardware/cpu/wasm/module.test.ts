import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { signed, unsigned } from '../../../../src/hardware/cpu/wasm/bytes.ts';
import { type Code, call } from '../../../../src/hardware/cpu/wasm/code.ts';
import { ModuleBuilder } from '../../../../src/hardware/cpu/wasm/module.ts';
import { type I64, i32, i64, select } from '../../../../src/hardware/cpu/wasm/value.ts';

const memory = new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true });

/** The functions that a module of `build`'s making exports. */
function instantiate(
  build: (module: ModuleBuilder) => void,
  imports: Record<string, (n: number) => number> = {},
) {
  const module = new ModuleBuilder();
  build(module);
  const instance = new WebAssembly.Instance(new WebAssembly.Module(module.encode()), {
    env: { memory, ...imports },
  });
  return instance.exports as Record<string, (...args: never[]) => unknown>;
}

/** A function of two i64. */
function binary(body: (code: Code, a: I64, b: I64) => I64): (a: bigint, b: bigint) => bigint {
  const exports = instantiate((module) => {
    const handle = module.define(['i64', 'i64'], undefined, (code) => {
      const result = body(code, code.parameter('i64', 0), code.parameter('i64', 1));
      code.store64(i32.const(8), 0, result);
    });
    module.export('f', handle);
  });
  const f = exports['f'] as unknown as (a: bigint, b: bigint) => void;
  return (a, b) => {
    f(a, b);
    return new BigInt64Array(memory.buffer)[1]!;
  };
}

const word = fc.bigInt({ min: -(1n << 63n), max: (1n << 63n) - 1n });
const wrap = (a: bigint) => BigInt.asIntN(64, a);

describe('integers in a WebAssembly binary', () => {
  it('are spelt as the specification shows', () => {
    expect(unsigned(624485)).toEqual([0xe5, 0x8e, 0x26]);
    expect(unsigned(0)).toEqual([0]);
    expect(unsigned(0xffffffff)).toEqual([0xff, 0xff, 0xff, 0xff, 0x0f]);
    expect(signed(-123456n)).toEqual([0xc0, 0xbb, 0x78]);
    expect(signed(64n)).toEqual([0xc0, 0]);
    expect(signed(-64n)).toEqual([0x40]);
  });

  it('come back whatever they are', () => {
    fc.assert(
      fc.property(word, (n) => binary(() => i64.const(n))(0n, 0n) === n),
      { numRuns: 50 },
    );
  });
});

describe('64-bit operations', () => {
  const rows: [string, (a: I64, b: I64) => I64, (a: bigint, b: bigint) => bigint][] = [
    ['add', i64.add, (a, b) => a + b],
    ['sub', i64.sub, (a, b) => a - b],
    ['mul', i64.mul, (a, b) => a * b],
    ['and', i64.and, (a, b) => a & b],
    ['or', i64.or, (a, b) => a | b],
    ['xor', i64.xor, (a, b) => a ^ b],
    ['shl', i64.shl, (a, b) => a << (b & 63n)],
    ['shrS', i64.shrS, (a, b) => a >> (b & 63n)],
    ['shrU', i64.shrU, (a, b) => BigInt.asUintN(64, a) >> (b & 63n)],
    ['not', (a) => i64.not(a), (a) => ~a],
    ['ltS', (a, b) => i64.fromI32U(i64.ltS(a, b)), (a, b) => (a < b ? 1n : 0n)],
    [
      'ltU',
      (a, b) => i64.fromI32U(i64.ltU(a, b)),
      (a, b) => (BigInt.asUintN(64, a) < BigInt.asUintN(64, b) ? 1n : 0n),
    ],
    ['extend8S', (a) => i64.extend8S(a), (a) => BigInt.asIntN(8, a)],
    ['extend32S', (a) => i64.extend32S(a), (a) => BigInt.asIntN(32, a)],
    // biome-ignore lint/complexity/useMathMinMax: Math.max takes no bigint
    ['select', (a, b) => select(i64.gtS(a, b), a, b), (a, b) => (a > b ? a : b)],
  ];
  for (const [name, value, model] of rows) {
    it(`${name} computes what its name says`, () => {
      const f = binary((_, a, b) => value(a, b));
      fc.assert(fc.property(word, word, (a, b) => f(a, b) === wrap(model(a, b))));
    });
  }
});

describe('control', () => {
  it('finds its labels through any nesting', () => {
    // Sums 1 … a, leaves the loop from inside two ifs.
    const sum = binary((code, a, b) => {
      const total = code.let(b);
      const left = code.let(a);
      code.block((done) =>
        code.loop((again) => {
          code.if(
            i64.eqz(left),
            () => code.if(i32.const(1), () => code.br(done)),
            () => {
              code.set(total, i64.add(total, left));
              code.set(left, i64.sub(left, 1));
              code.br(again);
            },
          );
        }),
      );
      return total;
    });
    expect(sum(100n, 7n)).toBe(5057n);
  });

  it('jumps by a table, and to the default beyond its end', () => {
    const pick = binary((code, a) => {
      const result = code.let(i64.const(99));
      code.block((end) => {
        code.block((second) => {
          code.block((first) => code.brTable(i32.wrap(a), [first, second], end));
          code.set(result, i64.const(10));
          code.br(end);
        });
        code.set(result, i64.const(20));
      });
      return result;
    });
    expect([0n, 1n, 2n, -1n].map((n) => pick(n, 0n))).toEqual([10n, 20n, 99n, 99n]);
  });

  it('gives a local back after its scope, and not before', () => {
    const f = binary((code, a, b) => {
      const kept = code.let(a);
      code.scope(() => code.let(i64.const(1)));
      code.scope(() => code.let(i64.const(2)));
      const late = code.let(b);
      return i64.sub(kept, late);
    });
    expect(f(50n, 8n)).toBe(42n);
  });

  it('calls functions of its own and imported ones', () => {
    const seen: number[] = [];
    const exports = instantiate(
      (module) => {
        const tell = module.import('tell', ['i32'], 'i32');
        const twice = module.define(['i32'], 'i32', (code) =>
          code.return(i32.mul(code.parameter('i32', 0), 2)),
        );
        const main = module.define(['i32'], 'i32', (code) =>
          code.return(call('i32', tell, call('i32', twice, code.parameter('i32', 0)))),
        );
        module.export('main', main);
      },
      {
        tell: (n: number) => {
          seen.push(n);
          return n + 1;
        },
      },
    );
    expect((exports['main'] as unknown as (n: number) => number)(20)).toBe(41);
    expect(seen).toEqual([40]);
  });

  it('refuses an import after the first function', () => {
    const module = new ModuleBuilder();
    module.define([], undefined, () => {});
    expect(() => module.import('late', [])).toThrow('imports come before functions');
  });
});
