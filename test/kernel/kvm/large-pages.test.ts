/** Where in a slot a large page may be used: against a model that looks at every gfn (disallow_lpage, KVM_LPAGE_MIXED_FLAG). */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Gfn } from '../../../src/base/address.ts';
import { LargePages } from '../../../src/kernel/kvm/large-pages.ts';
import { PrivateRanges } from '../../../src/kernel/kvm/private-ranges.ts';

const gfn = (value: number): Gfn => value as Gfn;

/** Changes [start, end) as KVM_SET_MEMORY_ATTRIBUTES does, for a slot of [base, base + npages). */
function change(
  ranges: PrivateRanges,
  slot: { base: number; npages: number; largePages?: LargePages },
  request: { start: number; end: number; isPrivate: boolean },
): void {
  const { start, end, isPrivate } = request;
  const from = gfn(Math.max(start, slot.base));
  const to = gfn(Math.min(end, slot.base + slot.npages));
  const meets = from < to;
  if (meets) slot.largePages?.beforeChange(from, to);
  ranges.set(gfn(start), gfn(end), isPrivate);
  if (meets) slot.largePages?.afterChange(from, to, ranges);
}

/** Attributes of pages of 2 MiB, of which the model looks at each gfn. */
const AREA = 512 * 6;
const edge = fc.oneof(
  fc.nat(AREA),
  fc.nat(6).map((page) => page * 512),
);
const range = fc
  .tuple(edge, edge, fc.boolean())
  .map(([a, b, isPrivate]) => ({ start: Math.min(a, b), end: Math.max(a, b), isPrivate }))
  .filter(({ start, end }) => start < end);

describe('2 MiB', () => {
  it('are allowed iff the slot holds them whole, aligned with the user address, and all gfns are of one kind', () => {
    const slots = fc.tuple(edge, edge, fc.oneof(fc.constant(0), fc.nat(600)));
    fc.assert(
      fc.property(slots, fc.array(range), fc.array(range), ([a, b, shift], before, after) => {
        const base = Math.min(a, b, AREA - 1);
        const npages = Math.max(a, b, base + 1) - base;
        const ranges = new PrivateRanges();
        const model = new Uint8Array(AREA);
        for (const request of before) {
          change(ranges, { base, npages }, request);
          model.fill(request.isPrivate ? 1 : 0, request.start, request.end);
        }
        const largePages = new LargePages({ baseGfn: base, npages, userGfn: base + shift }, ranges);
        for (const request of after) {
          change(ranges, { base, npages, largePages }, request);
          model.fill(request.isPrivate ? 1 : 0, request.start, request.end);
        }
        for (let first = 0; first < AREA; first += 512) {
          const inSlot = Math.max(first, base);
          if (inSlot >= Math.min(first + 512, base + npages)) continue;
          const whole = first >= base && first + 512 <= base + npages;
          const privates = model.subarray(first, first + 512).reduce((sum, one) => sum + one, 0);
          const uniform = privates === 0 || privates === 512;
          const allowed = whole && uniform && shift % 512 === 0;
          expect(largePages.disallowed(gfn(inSlot), 2)).toBe(!allowed);
        }
      }),
    );
  });
});

describe('1 GiB', () => {
  const GIB = 0x4_0000;
  const start = () => {
    const ranges = new PrivateRanges();
    const slot = { base: 0, npages: 3 * GIB };
    return {
      ranges,
      slot: { ...slot, largePages: new LargePages({ baseGfn: 0, npages: slot.npages, userGfn: 0 }, ranges) },
    };
  };
  const allowed = (largePages: LargePages) =>
    [0, GIB, 2 * GIB].map((first) => !largePages.disallowed(gfn(first), 3));

  it('are mixed by one gfn, and no more when the rest follows', () => {
    const { ranges, slot } = start();
    expect(allowed(slot.largePages)).toEqual([true, true, true]);
    change(ranges, slot, { start: GIB + 5, end: GIB + 6, isPrivate: true });
    expect(allowed(slot.largePages)).toEqual([true, false, true]);
    change(ranges, slot, { start: GIB, end: 2 * GIB, isPrivate: true });
    expect(allowed(slot.largePages)).toEqual([true, true, true]);
  });

  it('are mixed by 2 MiB that are of one kind among others', () => {
    const { ranges, slot } = start();
    change(ranges, slot, { start: GIB + 512, end: GIB + 1024, isPrivate: true });
    expect(allowed(slot.largePages)).toEqual([true, false, true]);
    expect(slot.largePages.disallowed(gfn(GIB + 512), 2)).toBe(false);
  });

  it('are mixed at both ends of a change, and not between', () => {
    const { ranges, slot } = start();
    change(ranges, slot, { start: GIB - 1, end: 2 * GIB + 1, isPrivate: true });
    expect(allowed(slot.largePages)).toEqual([false, true, false]);
  });
});
