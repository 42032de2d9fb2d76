import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { PageEntries } from '../../../src/kernel/mm/page-entries.ts';

const page = fc.oneof(
  fc.integer({ min: 0, max: 2000 }),
  fc.integer({ min: 2 ** 40 - 600, max: 2 ** 40 + 600 }),
);

describe('page entries', () => {
  it('agree with a Map, and are visited by range', () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(page, fc.integer({ min: 0, max: 3 }))), page, page, (sets, a, b) => {
        const entries = new PageEntries();
        const model = new Map<number, number>();
        for (const [at, word] of sets) {
          entries.set(at, word);
          if (word === 0) model.delete(at);
          else model.set(at, word);
          expect(entries.get(at)).toBe(word);
        }
        expect(entries.count).toBe(model.size);
        for (const [at, word] of model) expect(entries.get(at)).toBe(word);
        const [first, end] = a < b ? [a, b] : [b, a];
        const seen = new Map<number, number>();
        entries.forEachIn(first, end, (at, word) => seen.set(at, word));
        expect(seen).toEqual(new Map([...model].filter(([at]) => at >= first && at < end)));
      }),
    );
  });

  it.each([
    ['one alone', [[7, 40]], 7, 9, 1],
    [
      'three, across the end of a chunk',
      [
        [511, 40],
        [512, 44],
        [513, 48],
        [514, 53],
      ],
      511,
      9,
      3,
    ],
    [
      'as many as were asked for',
      [
        [1, 40],
        [2, 44],
        [3, 48],
      ],
      1,
      2,
      2,
    ],
    [
      'up to a page that is absent',
      [
        [1, 40],
        [3, 48],
      ],
      1,
      9,
      1,
    ],
    ['of a page that is absent', [[2, 4]], 1, 9, 1],
  ] as const)('count a series: %s', (_title, sets, first, limit, count) => {
    const entries = new PageEntries();
    for (const [at, word] of sets) entries.set(at, word);
    expect(entries.series(first, limit, 4)).toBe(count);
  });

  it('may be removed while they are visited', () => {
    const entries = new PageEntries();
    for (let at = 500; at < 1600; at++) entries.set(at, at);
    entries.forEachIn(500, 1600, (at) => entries.set(at, 0));
    expect(entries.count).toBe(0);
    expect(entries.get(600)).toBe(0);
    entries.set(600, -5);
    expect(entries.get(600)).toBe(-5);
  });
});
