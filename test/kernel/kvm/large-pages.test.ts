/**
 * Which large pages of a slot may be used, as attributes, slots and their addresses have it (reference facts 1.5, hugepage tracking),
 * against a model that looks at every gfn.
 */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Gfn } from '../../../src/base/address.ts';
import { DEFAULT, startVm, type TestVm } from './vm-fixture.ts';

const M2 = 512;
const G1 = 512 * 512;
/** disallow_lpage ≠ 0 of the large page of `pages` pages around `gfn`. */
const disallowed = (host: TestVm, gfn: number, pages: number, slot = 0): boolean =>
  host.slot(slot)!.largePageDisallowed(gfn as Gfn, pages === M2 ? 2 : 3);

function addSlot(host: TestVm, baseGfn: number, npages: number, userGfn = baseGfn): void {
  host.setRegion({
    guestPhysAddr: BigInt(baseGfn) * 4096n,
    memorySize: BigInt(npages) * 4096n,
    userspaceAddr: BigInt(userGfn) * 4096n,
  });
}
const setAttributes = (host: TestVm, start: number, pages: number, attributes: bigint): void =>
  host.setAttributes(BigInt(start) * 4096n, BigInt(pages) * 4096n, attributes);

describe('large pages of a slot', () => {
  it('that is aligned are all allowed', () => {
    const host = startVm();
    addSlot(host, 2 * M2, 3 * M2);
    expect([2, 3, 4].map((index) => disallowed(host, index * M2, M2))).toEqual([false, false, false]);
    const large = startVm();
    addSlot(large, G1, 2 * G1);
    expect([G1, 2 * G1, 3 * G1 - 1].map((gfn) => disallowed(large, gfn, G1))).toEqual([false, false, false]);
  });

  it('are not, where the slot’s head or tail holds them in part', () => {
    const host = startVm();
    addSlot(host, 2 * M2 + 1, 3 * M2);
    const at2M = [2 * M2 + 1, 3 * M2, 4 * M2, 5 * M2].map((gfn) => disallowed(host, gfn, M2));
    expect(at2M).toEqual([true, false, false, true]);
    expect(disallowed(host, 3 * M2, G1)).toBe(true);
  });

  it('are not at all, where user address and guest address are not aligned alike', () => {
    const host = startVm();
    addSlot(host, G1, 2 * G1, G1 + M2);
    expect([G1, 2 * G1].map((gfn) => disallowed(host, gfn, G1))).toEqual([true, true]);
    expect([G1, G1 + 7 * M2].map((gfn) => disallowed(host, gfn, M2))).toEqual([false, false]);
    const odd = startVm();
    addSlot(odd, G1, 2 * G1, G1 + 1);
    expect([G1, 2 * G1 - 1].map((gfn) => disallowed(odd, gfn, M2))).toEqual([true, true]);
  });

  it('are mixed where one page differs, at 2 MiB and 1 GiB, until it does no more', () => {
    const host = startVm();
    addSlot(host, G1, 2 * G1);
    setAttributes(host, G1 + 3 * M2 + 17, 1, 8n);
    const look = () => [
      disallowed(host, G1 + 3 * M2, M2),
      disallowed(host, G1 + 2 * M2, M2),
      disallowed(host, G1 + 4 * M2, M2),
      disallowed(host, G1, G1),
      disallowed(host, 2 * G1, G1),
    ];
    expect(look()).toEqual([true, false, false, true, false]);
    setAttributes(host, G1 + 3 * M2, M2, 8n);
    expect(look()).toEqual([false, false, false, true, false]);
    setAttributes(host, G1 + 3 * M2, M2, 0n);
    expect(look()).toEqual([false, false, false, false, false]);
  });

  it('of 1 GiB are mixed by 2 MiB of one kind among others, and at both ends of a change, not between', () => {
    const host = startVm();
    addSlot(host, 0, 3 * G1);
    const mixed = () => [0, G1, 2 * G1].map((gfn) => disallowed(host, gfn, G1));
    setAttributes(host, G1 + M2, M2, 8n);
    expect(mixed()).toEqual([false, true, false]);
    expect(disallowed(host, G1 + M2, M2)).toBe(false);
    setAttributes(host, G1 - 1, G1 + 2, 8n);
    expect(mixed()).toEqual([true, false, true]);
  });

  it('at both ends of a change count as mixed before anything is unmapped', () => {
    const host = startVm();
    const at = host.process.memory.mmap({ length: 0x80_0000, protection: 3, flags: 0x22 });
    const hva = BigInt(at - (at % 0x20_0000) + 0x20_0000);
    host.setRegion({ guestPhysAddr: 0x40_0000n, memorySize: 0x60_0000n, userspaceAddr: hva });
    expect(host.touch(0x60_0000)).toBe(0);
    const seen: boolean[][] = [];
    host.trace.listen((event) => {
      if (event.what === 'unmapped') seen.push([2, 3, 4].map((index) => disallowed(host, index * M2, M2)));
    });
    setAttributes(host, 2 * M2 + 5, 2 * M2, 8n);
    expect(seen).toEqual([[true, false, true]]);
  });

  it('keep their other reasons when mixed comes and goes', () => {
    const host = startVm();
    addSlot(host, M2 + 1, 2 * M2);
    setAttributes(host, M2 + 5, 1, 8n);
    setAttributes(host, 0, 8 * M2, 8n);
    setAttributes(host, 0, 8 * M2, 0n);
    expect([M2 + 1, 2 * M2, 3 * M2].map((gfn) => disallowed(host, gfn, M2))).toEqual([true, false, true]);
  });

  it('of a slot that comes late follow the attributes that are there', () => {
    const host = startVm();
    setAttributes(host, 3 * M2 + 1, 1, 8n);
    setAttributes(host, 5 * M2, M2, 8n);
    addSlot(host, 0, 8 * M2);
    const mixed = Array.from({ length: 8 }, (_, index) => disallowed(host, index * M2, M2));
    expect(mixed).toEqual([false, false, false, true, false, false, false, false]);
  });

  it('are looked at in SMM’s address space as well', () => {
    const host = startVm({ type: DEFAULT });
    host.setRegion({
      slot: 0x1_0000,
      guestPhysAddr: 0x1000n,
      memorySize: 0x40_0000n,
      userspaceAddr: 0x1000n,
    });
    const slot = host.slot(0, 1)!;
    expect([1, M2, 2 * M2].map((gfn) => slot.largePageDisallowed(gfn as Gfn, 2))).toEqual([
      true,
      false,
      true,
    ]);
  });
});

describe('disallow_lpage', () => {
  /** A run of whole, half and single pages, so that slots and ranges begin and end at odd places and at even ones. */
  const gfnIn = (limit: number, unit: number) =>
    fc.oneof(
      fc.nat(limit / unit).map((index) => index * unit),
      fc.nat(limit / unit).map((index) => index * unit + 1),
      fc.nat(limit),
    );

  /** The answer by the definition, gfn by gfn. */
  function model(
    slot: { base: number; pages: number; userGfn: number },
    attributes: { start: number; end: number; attribute: bigint }[],
    gfn: number,
    large: number,
  ): boolean {
    const first = Math.floor(gfn / large) * large;
    if (first < slot.base || first + large > slot.base + slot.pages) return true;
    if ((slot.base - slot.userGfn) % large !== 0) return true;
    const attributeOf = (at: number): bigint =>
      attributes.findLast(({ start, end }) => at >= start && at < end)?.attribute ?? 0n;
    const edges = attributes.flatMap(({ start, end }) => [start, end]);
    const inside = edges.filter((edge) => edge > first && edge < first + large);
    return inside.some((edge) => attributeOf(edge) !== attributeOf(first));
  }

  it.each([
    ['2 MiB', M2, M2],
    ['1 GiB', G1, G1],
    ['2 MiB, by ranges of gigabytes', M2, G1],
  ])('is as a look at every gfn says: %s', (_, large, unit) => {
    const limit = 6 * unit;
    const range = fc.record({
      start: gfnIn(limit, unit),
      pages: fc.oneof(gfnIn(limit, unit), fc.constant(1), fc.constant(large)),
      attribute: fc.constantFrom(0n, 8n),
    });
    const slot = fc.record({
      base: gfnIn(limit / 2, unit),
      pages: gfnIn(limit, unit),
      skew: fc.constantFrom(0, 0, 0, large, 1),
    });
    fc.assert(
      fc.property(fc.array(range, { maxLength: 12 }), slot, fc.nat(12), (ranges, at, slotComesAfter) => {
        const host = startVm({ bytes: 1 << 20 });
        const pages = Math.max(at.pages, 1);
        const userGfn = at.base + at.skew;
        const attributes: { start: number; end: number; attribute: bigint }[] = [];
        const addTheSlot = () => addSlot(host, at.base, pages, userGfn);
        for (const [step, { start, attribute, ...rest }] of ranges.entries()) {
          if (step === slotComesAfter) addTheSlot();
          const count = Math.max(rest.pages, 1);
          setAttributes(host, start, count, attribute);
          attributes.push({ start, end: start + count, attribute });
        }
        if (slotComesAfter >= ranges.length) addTheSlot();
        for (let gfn = at.base; gfn < at.base + pages; gfn = (Math.floor(gfn / large) + 1) * large) {
          const want = model({ base: at.base, pages, userGfn }, attributes, gfn, large);
          if (disallowed(host, gfn, large) !== want)
            expect({ gfn, disallowed: !want }).toEqual({ gfn, disallowed: want });
        }
      }),
      { numRuns: 120 },
    );
  });
});
