import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { hva } from '../../../src/base/address.ts';
import { Mapping, MappingList, type Unmapper } from '../../../src/kernel/mm/mapping.ts';

const nobody: Unmapper = { beginUnmap: () => {}, unmap: () => {}, endUnmap: () => {} };
const ranges = fc.array(fc.tuple(fc.integer({ min: 0, max: 39 }), fc.integer({ min: 1, max: 6 })), {
  maxLength: 25,
});

function listOf(items: readonly (readonly [number, number])[]): { list: MappingList; used: boolean[] } {
  const list = new MappingList();
  const used = new Array<boolean>(48).fill(false);
  for (const [page, count] of items) {
    const [start, end] = [hva(page * 4096), hva((page + count) * 4096)];
    list.remove(start, end);
    list.insert(new Mapping(nobody, start, end, page, { protection: 3, shared: false, mayWrite: false }));
    used.fill(true, page, page + count);
  }
  return { list, used };
}

describe('a list of mappings', () => {
  it('never overlaps, stays in order, and keeps what each page shows of its file', () => {
    fc.assert(
      fc.property(
        ranges,
        fc.integer({ min: 0, max: 40 }),
        fc.integer({ min: 1, max: 7 }),
        (items, from, count) => {
          const { list, used } = listOf(items);
          list.remove(hva(from * 4096), hva((from + count) * 4096));
          used.fill(false, from, from + count);
          let last = 0;
          for (const mapping of list.all()) {
            expect(mapping.start).toBeGreaterThanOrEqual(last);
            expect(mapping.endPage - mapping.firstPage).toBe((mapping.end - mapping.start) / 4096);
            last = mapping.end;
          }
          for (let page = 0; page < 48; page++) {
            const mapping = list.find(page * 4096 + 5);
            expect(mapping !== undefined).toBe(used[page]);
            if (mapping !== undefined) expect(mapping.pageAt(page * 4096 + 5)).toBe(page);
          }
        },
      ),
    );
  });

  it('finds the highest free aligned range, or none', () => {
    const alignment = fc.constantFrom(1, 2, 8);
    fc.assert(
      fc.property(ranges, fc.integer({ min: 1, max: 12 }), alignment, (items, length, align) => {
        const { list, used } = listOf(items);
        const [floor, ceiling] = [3, 43];
        let expected: number | undefined;
        for (let at = floor; at + length <= ceiling; at++) {
          if (at % align === 0 && !used.slice(at, at + length).includes(true)) expected = at * 4096;
        }
        expect(list.findGap(length * 4096, align * 4096, floor * 4096, ceiling * 4096)).toBe(expected);
      }),
    );
  });
});
