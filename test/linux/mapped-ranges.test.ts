import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { MappedRanges } from '../../src/linux/mapped-ranges.ts';

const rangesOf = (...added: readonly (readonly [number, number])[]): MappedRanges => {
  const ranges = new MappedRanges();
  for (const [start, end] of added) ranges.add(start, end);
  return ranges;
};

describe('the ranges that a process has mapped', () => {
  it('join where they touch or overlap', () => {
    expect(rangesOf([0x3000, 0x4000], [0x1000, 0x2000], [0x2000, 0x3000]).all).toEqual([
      { start: 0x1000, end: 0x4000 },
    ]);
    expect(rangesOf([0x1000, 0x3000], [0x2000, 0x5000]).all).toEqual([{ start: 0x1000, end: 0x5000 }]);
    expect(rangesOf([0x1000, 0x2000], [0x3000, 0x4000]).all).toHaveLength(2);
  });

  it('are cut in two where the middle is unmapped', () => {
    const ranges = rangesOf([0x1000, 0x5000]);
    ranges.remove(0x2000, 0x3000);
    expect(ranges.all).toEqual([
      { start: 0x1000, end: 0x2000 },
      { start: 0x3000, end: 0x5000 },
    ]);
    expect(ranges.covers(0x1000, 0x2000)).toBe(true);
    expect(ranges.covers(0x1000, 0x2001)).toBe(false);
    expect(ranges.covers(0x2fff, 0x3001)).toBe(false);
    expect(ranges.within(0x1800, 0x3800)).toEqual([
      { start: 0x1800, end: 0x2000 },
      { start: 0x3000, end: 0x3800 },
    ]);
  });

  it('are what a set of pages says', () => {
    const page = fc.integer({ min: 0, max: 20 });
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.constantFrom('add', 'remove'), page, page)),
        page,
        page,
        (steps, a, b) => {
          const ranges = new MappedRanges();
          const model = new Set<number>();
          for (const [what, start, end] of steps) {
            ranges[what as 'add' | 'remove'](start, end);
            for (let at = start; at < end; at++) what === 'add' ? model.add(at) : model.delete(at);
          }
          const pages = (list: readonly { start: number; end: number }[]): number[] =>
            list.flatMap(({ start, end }) => Array.from({ length: end - start }, (_, i) => start + i));
          const all = [...model].sort((x, y) => x - y);
          expect(pages(ranges.all)).toEqual(all);
          expect(pages(ranges.within(a, b))).toEqual(all.filter((at) => at >= a && at < b));
          const whole = a < b && Array.from({ length: b - a }, (_, i) => a + i).every((at) => model.has(at));
          if (a < b) expect(ranges.covers(a, b)).toBe(whole);
        },
      ),
    );
  });
});
