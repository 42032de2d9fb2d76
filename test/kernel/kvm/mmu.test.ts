import fc from 'fast-check';
import { afterEach, describe, expect, it, vi } from 'vitest';
import type { Gfn, Pfn, Spa } from '../../../src/base/address.ts';
import { goalLevel, maxLevelForOrder } from '../../../src/kernel/kvm/mmu/mapping-level.ts';
import { Mmu } from '../../../src/kernel/kvm/mmu/mmu.ts';
import { FaultBench, type SlotSetup } from './fault-bench.ts';

let bench: FaultBench;
afterEach(() => bench?.close());
const WRITABLE = { writable: true };
const map = (gfn: number, frame: number, level: number, access = WRITABLE): boolean => {
  bench.mmu.topUp();
  return bench.mmu.map(gfn as Gfn, frame as Pfn, level, access);
};
const zap = (start: number, end: number): boolean => bench.mmu.zapRange(start as Gfn, end as Gfn);
const lookup = (gfn: number) => bench.mmu.lookup(gfn as Gfn);

describe('nested page tables', () => {
  it('hold AMD64 entries that a core can walk', () => {
    bench = new FaultBench();
    map(0x12345, 0x678, 1);
    const { memory, mmu } = bench;
    const entry = (table: number, index: number): bigint => memory.load64((table + index * 8) as Spa);
    const next = (value: bigint): number => Number(value & 0x000f_ffff_ffff_f000n);
    const level4 = entry(mmu.root, 0);
    const level3 = entry(next(level4), 0);
    const level2 = entry(next(level3), 0x91);
    const level1 = entry(next(level2), 0x145);
    for (const table of [level4, level3, level2]) expect(table & 0xfffn).toBe(0x27n);
    expect(level1).toBe(0x678067n);
  });

  it.each([
    [1, 0x4ea67n, 0x4ea],
    [2, 0x400e7n, 0x400],
  ])('a read-write leaf of level %i', (level, _word, frame) => {
    bench = new FaultBench();
    map(0xea, 0x4ea, level);
    expect(lookup(0xea)).toEqual({ pfn: 0x4ea, level, writable: true });
    expect(lookup(0xea - (0xea % (level === 1 ? 1 : 512)))?.pfn).toBe(level === 1 ? 0x4ea : frame);
  });

  it('reach the last gfn of 48 bits', () => {
    bench = new FaultBench();
    map(2 ** 36 - 1, 0x77, 1);
    expect(lookup(2 ** 36 - 1)).toEqual({ pfn: 0x77, level: 1, writable: true });
    expect(lookup(2 ** 36 - 2)).toBeUndefined();
    expect(lookup(2 ** 36)).toBeUndefined();
    expect(zap(2 ** 36 - 2, 2 ** 40)).toBe(true);
    expect(lookup(2 ** 36 - 1)).toBeUndefined();
  });

  it('end there: no gfn beyond is taken for one below', () => {
    bench = new FaultBench();
    map(0, 0x77, 1);
    expect([lookup(0)?.pfn, lookup(2 ** 36)]).toEqual([0x77, undefined]);
  });

  it('need a frame for their root: ENOMEM', () => {
    bench = new FaultBench();
    while (bench.memory.allocate(0, bench.owner) >= 0);
    expect(() => new Mmu(bench.memory, bench.trace)).toThrow('ENOMEM');
  });

  it('take no table out of nowhere: a map without topUp is a mistake, and says so', () => {
    bench = new FaultBench();
    expect(() => bench.mmu.map(5 as Gfn, 0x50 as Pfn, 1, WRITABLE)).toThrow('topUp');
  });

  it('say whether a map changed anything, and flush when a page was replaced', () => {
    bench = new FaultBench();
    expect(map(5, 0x50, 1, { writable: false })).toBe(true);
    expect(map(5, 0x50, 1, { writable: false })).toBe(false);
    const flushes = bench.mmu.tlbGeneration;
    expect(map(5, 0x50, 1)).toBe(true);
    expect(bench.mmu.tlbGeneration).toBe(flushes);
    expect(map(5, 0x51, 1)).toBe(true);
    expect(bench.mmu.tlbGeneration).toBe(flushes + 1);
  });

  it('count what is mapped at each level', () => {
    bench = new FaultBench();
    map(0, 0x600, 1);
    map(1, 0x601, 1);
    map(512, 0x200, 2);
    map(2 ** 18, 2 ** 18, 3);
    expect(bench.mmu.stats).toMatchObject({ mapped4K: 2, mapped2M: 1, mapped1G: 1 });
    zap(0, 2 ** 36);
    expect(bench.mmu.stats).toMatchObject({ mapped4K: 0, mapped2M: 0, mapped1G: 0 });
  });

  it('lose a large page whole when a zap touches one of its gfns', () => {
    bench = new FaultBench();
    map(512, 0x400, 2);
    expect(zap(700, 701)).toBe(true);
    expect(lookup(512)).toBeUndefined();
    expect(zap(700, 701)).toBe(false);
  });

  it('replace small pages by a large one, and a large one by a small one', () => {
    bench = new FaultBench();
    map(512, 0x400, 1);
    map(513, 0x900, 1);
    map(512, 0x400, 2);
    expect(lookup(513)).toEqual({ pfn: 0x401, level: 2, writable: true });
    expect(bench.mmu.stats).toMatchObject({ mapped4K: 0, mapped2M: 1 });
    const flushes = bench.mmu.tlbGeneration;
    map(513, 0x900, 1);
    expect(lookup(513)).toEqual({ pfn: 0x900, level: 1, writable: true });
    expect(lookup(512)).toBeUndefined();
    expect(bench.mmu.stats).toMatchObject({ mapped4K: 1, mapped2M: 0 });
    expect(bench.mmu.tlbGeneration).toBeGreaterThan(flushes);
  });

  it('write-protect a page below the GiB where they did last', () => {
    bench = new FaultBench();
    // A third GiB is the one that was mapped last.
    for (const gfn of [5, 0x4_0005, 0x8_0005]) map(gfn, 0x50, 1);
    expect(bench.mmu.writeProtectMasked(0x4_0000, 1 << 5)).toBe(true);
    expect(bench.mmu.writeProtectMasked(0, 1 << 5)).toBe(true);
    expect([lookup(5)?.writable, lookup(0x4_0005)?.writable]).toEqual([false, false]);
  });

  it('keep the frames of dropped tables until the flush', () => {
    bench = new FaultBench();
    for (let i = 0; i < 8; i++) map(i * 512, 0x100 + i, 1);
    const { tables } = bench.mmu.stats;
    zap(0, 2 ** 36);
    expect(bench.mmu.stats.tables).toBe(tables);
    bench.mmu.flushRemoteTlbs();
    expect(bench.mmu.stats.tables).toBeLessThan(tables);
  });

  it.each([
    ['its page table', 512],
    ['its page directory', 2 ** 18],
    ['everything', 2 ** 36],
  ])('touch no page that went with %s when they take rights to write', (_what, end) => {
    bench = new FaultBench();
    for (const page of [3, 2 ** 18]) map(page, 0x300, 1);
    expect(bench.mmu.writeProtectMasked(0, -1)).toBe(true);
    map(3, 0x300, 1);
    zap(0, end);
    expect(bench.mmu.writeProtectMasked(0, -1)).toBe(false);
    map(3, 0x300, 1);
    expect(bench.mmu.writeProtectMasked(0, -1)).toBe(true);
    expect(lookup(3)?.writable).toBe(false);
  });

  it('are asked once for 32 pages that none of them maps', () => {
    bench = new FaultBench();
    map(2 ** 18 - 1, 0x300, 1);
    const loads = vi.spyOn(bench.memory, 'load32');
    expect(bench.mmu.writeProtectMasked(0, -1)).toBe(false);
    expect(loads.mock.calls.length).toBeLessThanOrEqual(4);
  });

  it.each([
    ['the first of two tables', 1 << 11, [523]],
    ['the second of two tables', 1 << 23, [511]],
    ['both tables', -1, []],
    ['pages that are not mapped', ~((1 << 11) | (1 << 23)), [511, 523]],
  ])('take rights to write in %s', (_where, mask, kept) => {
    bench = new FaultBench();
    for (const page of [511, 523]) map(page, 0x300, 1);
    expect(bench.mmu.writeProtectMasked(500, mask)).toBe(kept.length < 2);
    expect([511, 523].filter((page) => lookup(page)?.writable)).toEqual(kept);
  });

  it('take a large page away with the right to write of one page in it', () => {
    bench = new FaultBench();
    map(512, 0x400, 2);
    map(511, 0x300, 1);
    expect(bench.mmu.writeProtectMasked(500, 1 << 23)).toBe(true);
    expect([lookup(511)?.writable, lookup(512)]).toEqual([true, undefined]);
  });

  it('leave no frame behind', () => {
    bench = new FaultBench();
    for (let i = 0; i < 100; i++) map(i * 1000, 0x700, 1);
    bench.mmu.destroy();
    expect(bench.mmu.stats.tables).toBe(0);
    expect(bench.memory.leaks()).toEqual([]);
  });

  it('agree with a plain map of gfns under any order of maps and zaps', () => {
    const gfn = fc.oneof(
      fc.integer({ min: 0, max: 1600 }),
      fc.integer({ min: 2 ** 27 - 600, max: 2 ** 27 + 600 }),
    );
    const action = fc.oneof(
      fc.record({
        kind: fc.constant('map' as const),
        gfn,
        level: fc.constantFrom(1, 1, 1, 2),
        writable: fc.boolean(),
      }),
      fc.record({ kind: fc.constant('zap' as const), gfn, pages: fc.integer({ min: 1, max: 1200 }) }),
    );
    fc.assert(
      fc.property(fc.array(action, { maxLength: 40 }), (actions) => {
        bench = new FaultBench();
        const model = new Map<number, { pfn: number; level: number; writable: boolean }>();
        const dropBlock = (at: number): void => {
          for (let i = at - (at % 512); i < at - (at % 512) + 512; i++) model.delete(i);
        };
        for (const step of actions) {
          if (step.kind === 'map') {
            const frame = 512 + (step.gfn % 512);
            map(step.gfn, frame, step.level, step);
            const old = model.get(step.gfn);
            // The same page again: a right to write that it has stays.
            const writable = step.writable || (old?.level === step.level && old.writable);
            if (step.level === 2) {
              dropBlock(step.gfn);
              const first = step.gfn - (step.gfn % 512);
              for (let i = 0; i < 512; i++) model.set(first + i, { pfn: 512 + i, level: 2, writable });
            } else {
              if (model.get(step.gfn)?.level === 2) dropBlock(step.gfn);
              model.set(step.gfn, { pfn: frame, level: 1, writable });
            }
          } else {
            zap(step.gfn, step.gfn + step.pages);
            bench.mmu.flushRemoteTlbs();
            for (let i = step.gfn; i < step.gfn + step.pages; i++)
              if (model.get(i)?.level === 2) dropBlock(i);
              else model.delete(i);
          }
        }
        for (const step of actions)
          for (const at of [step.gfn - 1, step.gfn, step.gfn + 1, step.gfn + 511])
            if (at >= 0) expect(lookup(at)).toEqual(model.get(at));
        bench.close();
      }),
      { numRuns: 60 },
    );
  });
});

describe('the level of a mapping', () => {
  it.each([
    [0, 1],
    [8, 1],
    [9, 2],
    [17, 2],
    [18, 3],
  ])('a block of order %i can back level %i', (order, level) => {
    expect(maxLevelForOrder(order)).toBe(level);
  });

  const rows: [string, { gfn: number; pfn: number; order: number }, SlotSetup, number][] = [
    ['a 2 MiB block', { gfn: 0x205, pfn: 0x405, order: 9 }, {}, 2],
    ['a 1 GiB block', { gfn: 0x40005, pfn: 0x80005, order: 18 }, {}, 3],
    [
      'a 1 GiB block where 1 GiB is not allowed',
      { gfn: 0x40005, pfn: 0x80005, order: 18 },
      { disallowed: [3] },
      2,
    ],
    ['a 2 MiB block in mixed attributes', { gfn: 0x205, pfn: 0x405, order: 9 }, { disallowed: [2] }, 1],
    ['a 2 MiB block in a slot that logs dirty pages', { gfn: 0x205, pfn: 0x405, order: 9 }, { flags: 1 }, 1],
    ['gfn and pfn that are not aligned alike', { gfn: 0x205, pfn: 0x406, order: 9 }, {}, 1],
    ['1 GiB not aligned alike, 2 MiB is', { gfn: 0x40205, pfn: 0x80005, order: 18 }, {}, 2],
  ];
  it.each(rows)('%s', (_title, page, slot, level) => {
    bench = new FaultBench();
    bench.addSlot(slot);
    expect(goalLevel(page as never, bench.slotList[0]!)).toBe(level);
  });

  it('a huge folio is mapped at once, and after the attributes became mixed page by page', () => {
    bench = new FaultBench();
    const disallowed: number[] = [];
    bench.addSlot({ baseGfn: 0, npages: 4096, disallowed });
    for (let gfn = 0; gfn < 4096; gfn++) bench.private.add(gfn);
    bench.gmem = (gfn, into) => {
      into.pfn = ((gfn % 512) + 512) as Pfn;
      into.order = 9;
      return 0;
    };
    expect(bench.take(0x20_3000, 0, 'private')).toBe(3);
    expect(bench.mmu.stats).toMatchObject({ mapped4K: 0, mapped2M: 1 });
    disallowed.push(2);
    bench.mmu.zapRange(0x203 as Gfn, 0x204 as Gfn);
    expect(bench.take(0x20_4000, 0, 'private')).toBe(3);
    expect(bench.mmu.stats).toMatchObject({ mapped4K: 1, mapped2M: 0 });
  });
});
