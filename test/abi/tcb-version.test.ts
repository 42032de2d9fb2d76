import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  compareTcb,
  decodeTcb,
  encodeTcb,
  hasReservedTcbBytes,
  tcbAtMost,
} from '../../src/abi/tcb-version.ts';

const generation = fc.constantFrom('milan', 'genoa', 'turin');
const svn = fc.nat(255);
const version = fc.record({ fmc: svn, bootLoader: svn, tee: svn, snp: svn, microcode: svn });

describe('TCB_VERSION', () => {
  it.each([
    ['milan', { bootLoader: 3, tee: 0, snp: 8, microcode: 115 }, 0x7308000000000003n],
    ['genoa', { bootLoader: 7, tee: 1, snp: 14, microcode: 62 }, 0x3e0e000000000107n],
    ['turin', { fmc: 1, bootLoader: 2, tee: 3, snp: 4, microcode: 5 }, 0x0500000004030201n],
  ] as const)('of %s has its layout', (of, tcb, value) => {
    expect(encodeTcb(of, tcb)).toBe(value);
    expect(decodeTcb(of, value)).toEqual(tcb);
  });

  it('keeps its components and nothing else', () => {
    fc.assert(
      fc.property(generation, fc.bigInt(0n, (1n << 64n) - 1n), (of, value) => {
        const again = encodeTcb(of, decodeTcb(of, value));
        expect(hasReservedTcbBytes(of, again)).toBe(false);
        expect(hasReservedTcbBytes(of, value)).toBe(again !== value);
      }),
    );
  });

  it('is ordered by firmware in its first difference, by verifiers in every component', () => {
    fc.assert(
      fc.property(generation, version, version, (of, a, b) => {
        const [x, y] = [encodeTcb(of, a), encodeTcb(of, b)];
        const order = (of === 'turin' ? ['fmc'] : []).concat(
          'bootLoader',
          'tee',
          'snp',
          'microcode',
        ) as (keyof typeof a)[];
        const first = order.find((component) => a[component] !== b[component]);
        expect(Math.sign(compareTcb(of, x, y))).toBe(
          first === undefined ? 0 : Math.sign(a[first] - b[first]),
        );
        expect(tcbAtMost(of, x, y)).toBe(order.every((component) => a[component] <= b[component]));
      }),
    );
  });

  it('refuses an SVN that is no byte', () => {
    for (const snp of [256, -1, 1.5]) {
      expect(() => encodeTcb('milan', { bootLoader: 0, tee: 0, snp, microcode: 0 })).toThrow(RangeError);
    }
  });
});
