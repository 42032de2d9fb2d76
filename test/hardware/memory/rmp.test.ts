import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Pfn, Spa } from '../../../src/base/address.ts';
import { Trace } from '../../../src/base/trace.ts';
import { HostMemory } from '../../../src/hardware/memory/host-memory.ts';
import type { Rmp, RmpEntry, RmpState } from '../../../src/hardware/memory/rmp.ts';

let memory: HostMemory;
let rmp: Rmp;
/** First frame of a free, 2 MiB-aligned region. */
let region: Pfn;

beforeEach(() => {
  memory = HostMemory.create({ bytes: 8 << 20, trace: new Trace(), rmp: true });
  rmp = memory.rmp!;
  rmp.initialise();
  region = memory.allocate(9, memory.owner('test')) as Pfn;
});
afterEach(() => memory.close());

const spa = (frame: number): Spa => (frame * 4096) as Spa;
const state = (over: Partial<RmpState> = {}): RmpState => ({
  assigned: true,
  large: false,
  immutable: false,
  gpa: 0x5000,
  asid: 3,
  ...over,
});
const SHARED = state({ assigned: false, gpa: 0, asid: 0 });
const LARGE = state({ large: true, gpa: 0x40_0000 });

describe('the reverse map table', () => {
  it('lies in frames that nobody gets, with 16 KiB before the entries, and belongs to firmware once initialised', () => {
    expect((rmp.base % 4096) + (rmp.end % 4096)).toBe(0);
    expect(rmp.end - rmp.base).toBe(16384 + 2048 * 16);
    for (let at: number = rmp.base; at < rmp.end; at += 4096) {
      expect(rmp.state((at / 4096) as Pfn)).toBe('firmware');
      expect(() => memory.store32(at as Spa, 1)).toThrow(/RMP violation/);
    }
  });

  it('keeps an entry as AMD has it: bits of both words, permissions behind', () => {
    rmp.setEntry((region + 5) as Pfn, {
      ...state({ gpa: 0x7_1234_5678_9000, asid: 0x2a5, immutable: true }),
      vmsa: true,
      validated: true,
      permissions: 0x01020304,
    });
    const at = rmp.base + 16384 + (region + 5) * 16;
    expect(memory.load64(at as Spa)).toBe(
      1n | (1n << 2n) | 0x7_1234_5678_9000n | (0x2a5n << 51n) | (1n << 61n) | (1n << 62n),
    );
    expect(memory.load64((at + 8) as Spa)).toBe(0x01020304n);
    expect(memory.load64((rmp.base + 16384 + region * 16) as Spa) & 0xff8n).toBe(8n);
  });

  it.each<[string, Partial<RmpEntry>, string]>([
    ['nothing', { assigned: false, gpa: 0, asid: 0 }, 'hypervisor'],
    ['immutable', { assigned: false, immutable: true, gpa: 0, asid: 0 }, 'hv-fixed'],
    ['assigned', { gpa: 0, asid: 0 }, 'reclaim'],
    ['assigned, immutable', { gpa: 0, asid: 0, immutable: true }, 'firmware'],
    ['assigned, immutable, VMSA', { gpa: 0, asid: 0, immutable: true, vmsa: true }, 'context'],
    ['assigned, immutable, a GPA', { asid: 0, immutable: true }, 'metadata'],
    ['a guest’s, immutable', { immutable: true }, 'pre-guest'],
    ['a guest’s, immutable, validated', { immutable: true, validated: true }, 'pre-swap'],
    ['a guest’s', {}, 'guest-invalid'],
    ['a guest’s, validated', { validated: true }, 'guest-valid'],
  ])('calls a page with %s by its state', (_, over, name) => {
    rmp.setEntry(region, { ...state(), vmsa: false, validated: false, permissions: 0, ...over });
    expect(rmp.state(region)).toBe(name);
  });
});

describe('RMPUPDATE', () => {
  it.each<[string, () => Spa, RmpState, number]>([
    ['an address inside a page', () => (spa(region) + 8) as Spa, state(), 1],
    ['a 2 MiB page at a 4 KiB address', () => spa(region + 1), LARGE, 1],
    ['an ASID for a page that is not assigned', () => spa(region), state({ assigned: false }), 1],
    ['immutable without assigned', () => spa(region), { ...SHARED, immutable: true }, 1],
    ['a page behind the table’s end', () => spa(2048), state(), 1],
    ['a page of the table', () => rmp.base, SHARED, 2],
    ['a plain page', () => spa(region), state(), 0],
    ['a plain 2 MiB page', () => spa(region), LARGE, 0],
  ])('of %s', (_, at, next, code) => {
    expect(rmp.rmpupdate(at(), next)).toBe(code);
  });

  it.each<[string, RmpState, number, RmpState, number]>([
    ['4 KiB over an immutable page', state({ immutable: true }), 0, SHARED, 2],
    ['4 KiB at the start of a 2 MiB page', LARGE, 0, SHARED, 4],
    ['4 KiB inside a 2 MiB page', LARGE, 7, SHARED, 4],
    ['2 MiB over a 2 MiB page', LARGE, 0, { ...SHARED, large: true }, 0],
    ['2 MiB over an assigned 4 KiB page at its start', state(), 0, LARGE, 4],
    ['4 KiB to the hypervisor', state(), 0, SHARED, 0],
  ])('%s', (_, first, inner, next, code) => {
    expect(rmp.rmpupdate(spa(region), first)).toBe(0);
    expect(rmp.rmpupdate(spa(region + inner), next)).toBe(code);
  });

  it('of 2 MiB refuses a region with one assigned page in it', () => {
    expect(rmp.rmpupdate(spa(region + 300), state())).toBe(0);
    expect(rmp.rmpupdate(spa(region), LARGE)).toBe(4);
    expect(rmp.rmpupdate(spa(region + 300), SHARED)).toBe(0);
    expect(rmp.rmpupdate(spa(region), LARGE)).toBe(0);
  });

  it('of a locked entry fails as in use', () => {
    const at = rmp.base + 16384 + region * 16;
    memory.bytes[at + 7]! |= 0x80;
    expect(rmp.rmpupdate(spa(region), state())).toBe(3);
    expect(rmp.psmash(spa(region))).toBe(3);
  });

  const lock = (frame: number): void => {
    memory.bytes[rmp.base + 16384 + frame * 16 + 7]! |= 0x80;
  };

  // What is there before, at the region's first frame; which frame is updated, to what; the result.
  it.each<[string, Partial<RmpState> & { locked?: true }, number, RmpState, number]>([
    [
      'an address inside a page of a locked, immutable entry',
      { immutable: true, locked: true },
      0.5,
      state(),
      1,
    ],
    ['a 2 MiB page at a 4 KiB address inside an immutable one', { ...LARGE, immutable: true }, 1, LARGE, 1],
    ['an ASID without assigned, of an immutable page', { immutable: true }, 0, state({ assigned: false }), 1],
    ['immutable without assigned, of a locked page', { locked: true }, 0, { ...SHARED, immutable: true }, 1],
    ['a page that is locked and immutable', { immutable: true, locked: true }, 0, SHARED, 3],
    ['4 KiB of a locked 2 MiB page', { ...LARGE, locked: true }, 3, SHARED, 3],
    ['2 MiB over a locked 4 KiB page', { locked: true }, 0, LARGE, 3],
    ['4 KiB at the start of an immutable 2 MiB page', { ...LARGE, immutable: true }, 0, SHARED, 2],
    ['4 KiB inside an immutable 2 MiB page', { ...LARGE, immutable: true }, 511, SHARED, 2],
    ['2 MiB over an immutable 4 KiB page', { immutable: true }, 0, LARGE, 2],
    ['2 MiB over an immutable 2 MiB page', { ...LARGE, immutable: true }, 0, LARGE, 2],
    ['another 2 MiB page over a 2 MiB page', LARGE, 0, { ...LARGE, asid: 4, gpa: 0x60_0000 }, 0],
    ['a free page beside an immutable one', { immutable: true }, 1, state(), 0],
  ])('of several failures has the first: %s', (_, { locked, ...first }, page, next, code) => {
    expect(rmp.rmpupdate(spa(region), state(first))).toBe(0);
    if (locked) lock(region);
    const before = [region, region + 1, region + 511].map((frame) => rmp.entry(frame as Pfn));
    expect(rmp.rmpupdate(spa(region + page), next)).toBe(code);
    if (code !== 0)
      expect([region, region + 1, region + 511].map((frame) => rmp.entry(frame as Pfn))).toEqual(before);
  });

  it('of 2 MiB refuses a region with an immutable page inside as one that overlaps', () => {
    expect(rmp.rmpupdate(spa(region + 511), state({ immutable: true }))).toBe(0);
    expect(rmp.rmpupdate(spa(region), LARGE)).toBe(4);
    expect(rmp.rmpupdate(spa(region), { ...SHARED, large: true })).toBe(4);
  });

  it.each([
    ['below memory', -4096, 1],
    ['nowhere', Number.NaN, 1],
    ['the last page', 2303 * 4096, 0],
    ['behind the last page', 2304 * 4096, 1],
  ])('knows where the table ends: %s', (_, at, code) => {
    memory.close();
    memory = HostMemory.create({ bytes: 9 << 20, trace: new Trace(), rmp: true });
    rmp = memory.rmp!;
    rmp.initialise();
    expect(rmp.rmpupdate(at as Spa, state())).toBe(code);
    // A region that the table covers in part.
    expect(rmp.rmpupdate(spa(2048), LARGE)).toBe(1);
    expect(rmp.psmash(spa(2048))).toBe(1);
    expect(rmp.psmash(-(2 << 20) as Spa)).toBe(1);
  });

  // What becomes of a validated VMSA page with masks; `kept`: all of that stays.
  it.each<[string, Partial<RmpState>, boolean]>([
    ['nothing', {}, true],
    ['immutable alone', { immutable: true }, true],
    ['the GPA', { gpa: 0x6000 }, false],
    ['the ASID', { asid: 4 }, false],
    ['GPA and immutable', { gpa: 0x6000, immutable: true }, false],
    ['its owner to firmware', { asid: 0, gpa: 0, immutable: true }, false],
  ])('that changes %s keeps Validated, VMSA and masks, or does not', (_, over, kept) => {
    const marks = { vmsa: true, validated: true, permissions: 0x0102031f };
    rmp.setEntry(region, { ...state(), ...marks });
    expect(rmp.rmpupdate(spa(region), state(over))).toBe(0);
    const fresh = { vmsa: false, validated: false, permissions: 0x1f };
    expect(rmp.entry(region)).toEqual({ ...state(over), ...(kept ? marks : fresh) });
  });

  it('keeps nothing of a page without an ASID, nor of one that goes to the hypervisor', () => {
    const reclaim = state({ asid: 0, gpa: 0 });
    rmp.setEntry(region, { ...reclaim, vmsa: true, validated: false, permissions: 0x1f1f });
    expect(rmp.rmpupdate(spa(region), reclaim)).toBe(0);
    expect(rmp.entry(region)).toEqual({ ...reclaim, vmsa: false, validated: false, permissions: 0x1f });
    expect(rmp.rmpupdate(spa(region), SHARED)).toBe(0);
    const shared = { ...SHARED, vmsa: false, validated: false, permissions: 0 };
    expect(rmp.entry(region)).toEqual(shared);
    expect(rmp.rmpupdate(spa(region), { ...SHARED, gpa: 0x5000 })).toBe(0);
    expect(rmp.entry(region)).toEqual(shared);
  });

  it('keeps a 2 MiB page validated when nothing changes, and has 511 entries that say assigned alone', () => {
    rmp.rmpupdate(spa(region), LARGE);
    rmp.setValidated(region, true);
    rmp.rmpupdate(spa(region), LARGE);
    expect(rmp.state((region + 511) as Pfn)).toBe('guest-valid');
    for (const i of [1, 2, 511])
      expect(memory.load64((rmp.base + 16384 + (region + i) * 16) as Spa)).toBe(1n);
    rmp.rmpupdate(spa(region), { ...SHARED, large: true });
    for (const i of [0, 1, 511])
      expect(memory.load64((rmp.base + 16384 + (region + i) * 16) as Spa)).toBe(0n);
  });

  it('has nothing in the 511 other entries of a 2 MiB page whose first becomes the hypervisor’s', () => {
    rmp.rmpupdate(spa(region), LARGE);
    rmp.setEntry(region, { ...SHARED, vmsa: false, validated: false, permissions: 0 });
    for (const i of [0, 1, 511])
      expect(memory.load64((rmp.base + 16384 + (region + i) * 16) as Spa)).toBe(0n);
    memory.store32(spa(region + 511), 1);
    expect(memory.load32(spa(region + 511))).toBe(1);
  });

  it('has cores forget translations to the frames that change hands, and to no others', () => {
    const forgotten: number[][] = [];
    memory.translationCaches.add({
      forgetFrames: (frame, frames) => void forgotten.push([frame - region, frames]),
    });
    rmp.rmpupdate(spa(region + 7), state());
    rmp.rmpupdate(spa(region), LARGE);
    rmp.rmpupdate(spa(region + 7), SHARED);
    rmp.rmpupdate(spa(region), LARGE);
    rmp.rmpupdate(spa(region + 9), SHARED);
    rmp.psmash(spa(region));
    rmp.psmash(spa(region));
    expect(forgotten).toEqual([
      [7, 1],
      [7, 1],
      [0, 512],
      [0, 512],
    ]);
  });

  it('gives the guest a page that is not validated, VMPL0 with all rights and the others with none', () => {
    rmp.rmpupdate(spa(region), state());
    expect(rmp.entry(region)).toEqual({ ...state(), vmsa: false, validated: false, permissions: 0x1f });
  });

  it('keeps Validated only when nothing but immutable changes', () => {
    rmp.rmpupdate(spa(region), state());
    rmp.setValidated(region, true);
    rmp.rmpupdate(spa(region), state({ immutable: true }));
    expect(rmp.state(region)).toBe('pre-swap');
    rmp.setEntry(region, { ...rmp.entry(region), immutable: false });
    rmp.rmpupdate(spa(region), state({ gpa: 0x6000 }));
    expect(rmp.state(region)).toBe('guest-invalid');
  });

  it('takes a page from the host’s software, whose writes then throw and change nothing', () => {
    memory.write(spa(region), Uint8Array.of(1, 2, 3, 4));
    rmp.rmpupdate(spa(region + 1), state());
    for (const write of [
      () => memory.write((spa(region + 1) - 2) as Spa, Uint8Array.of(9, 9, 9, 9)),
      () => memory.store32(spa(region + 1), 9),
      () => memory.store64(spa(region + 1), 9n),
      () => memory.clear(spa(region), 8192),
      () => memory.copy(spa(region), spa(region + 3), 8192),
      () => memory.clearBits32(spa(region + 1), -1),
    ])
      expect(write).toThrow(`RMP violation: a host write to 0x${((region + 1) * 4096).toString(16)}`);
    expect(memory.load32(spa(region))).toBe(0x04030201);
    expect(memory.load32((spa(region + 1) - 4) as Spa)).toBe(0);
  });
});

describe('PSMASH', () => {
  it('cuts a 2 MiB page into 512 with GPAs in a row and the same owner and rights', () => {
    rmp.rmpupdate(spa(region), LARGE);
    rmp.setValidated(region + 9, true);
    expect(rmp.isLarge((region + 9) as Pfn)).toBe(true);
    expect(rmp.psmash(spa(region))).toBe(0);
    for (const i of [0, 1, 9, 511]) {
      expect(rmp.entry((region + i) as Pfn)).toEqual({
        ...state({ gpa: 0x40_0000 + i * 4096 }),
        vmsa: false,
        validated: true,
        permissions: 0x1f,
      });
    }
    expect(rmp.rmpupdate(spa(region), { ...SHARED, large: true })).toBe(4);
  });

  it.each<[string, () => Spa, number]>([
    ['an address that is not 2 MiB aligned', () => spa(region + 1), 1],
    ['memory behind the table’s end', () => spa(2048), 1],
    ['a page that is not assigned', () => spa(region), 7],
    ['the last region that the table covers', () => spa(2048 - 512), 7],
  ])('refuses %s', (_, at, code) => {
    expect(rmp.psmash(at())).toBe(code);
  });

  it('of several failures has the first', () => {
    rmp.rmpupdate(spa(region), { ...LARGE, immutable: true });
    const entry = rmp.base + 16384 + region * 16;
    memory.bytes[entry + 7]! |= 0x80;
    expect(rmp.psmash((spa(region) + 8) as Spa)).toBe(1);
    expect(rmp.psmash(spa(region))).toBe(3);
    memory.bytes[entry + 7]! &= 0x7f;
    expect(rmp.psmash(spa(region))).toBe(2);
    rmp.setEntry(region, { ...rmp.entry(region), large: false });
    expect(rmp.psmash(spa(region))).toBe(7);
  });

  it('keeps owner, rights, VMSA and every GPA beyond 4 GiB', () => {
    const gpa = 0xffe0_0000;
    const entry = { ...LARGE, gpa, asid: 0x3ff, vmsa: true, validated: true, permissions: 0x01020304 };
    rmp.setEntry(region, entry);
    expect(rmp.psmash(spa(region))).toBe(0);
    for (const i of [0, 1, 255, 511])
      expect(rmp.entry((region + i) as Pfn)).toEqual({ ...entry, large: false, gpa: gpa + i * 4096 });
    rmp.setEntry(region, { ...entry, gpa: 0xffff_ffe0_0000, large: true });
    expect(rmp.psmash(spa(region))).toBe(0);
    expect(rmp.entry((region + 511) as Pfn).gpa).toBe(0xffff_ffff_f000);
    // All 511 others are counted: 2 MiB has to wait for the last of them.
    for (let i = 0; i < 511; i++) rmp.rmpupdate(spa(region + i), SHARED);
    expect(rmp.regionAssigned(region)).toBe(true);
    rmp.rmpupdate(spa(region + 511), SHARED);
    expect(rmp.regionAssigned(region)).toBe(false);
  });

  it('refuses 4 KiB pages and immutable ones', () => {
    rmp.rmpupdate(spa(region), state());
    expect(rmp.psmash(spa(region))).toBe(7);
    rmp.rmpupdate(spa(region), SHARED);
    rmp.rmpupdate(spa(region), { ...LARGE, immutable: true });
    expect(rmp.psmash(spa(region))).toBe(2);
  });
});

describe('any order of RMPUPDATE and PSMASH', () => {
  it('agrees with a model of one owner a frame', () => {
    type Owner = { asid: number; gpa: number; large: boolean } | undefined;
    const step = fc.record({
      what: fc.constantFrom('assign', 'release', 'assign-large', 'release-large', 'smash'),
      page: fc.oneof(fc.integer({ min: 0, max: 5 }), fc.integer({ min: 0, max: 511 })),
      asid: fc.integer({ min: 1, max: 3 }),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        rmp.initialise();
        const model: Owner[] = new Array(512).fill(undefined);
        for (const { what, page, asid } of steps) {
          const isLarge = model[0]?.large === true;
          if (what === 'assign' || what === 'release') {
            const next = what === 'assign' ? state({ asid, gpa: page * 4096 }) : SHARED;
            expect(rmp.rmpupdate(spa(region + page), next)).toBe(isLarge ? 4 : 0);
            if (!isLarge)
              model[page] = what === 'assign' ? { asid, gpa: page * 4096, large: false } : undefined;
          } else if (what === 'smash') {
            expect(rmp.psmash(spa(region))).toBe(isLarge ? 0 : 7);
            if (isLarge) for (const owner of model) owner!.large = false;
          } else {
            const free = isLarge || model.every((owner) => owner === undefined);
            const next =
              what === 'assign-large' ? state({ asid, gpa: 0, large: true }) : { ...SHARED, large: true };
            expect(rmp.rmpupdate(spa(region), next)).toBe(free ? 0 : 4);
            if (free)
              for (let i = 0; i < 512; i++)
                model[i] = what === 'assign-large' ? { asid, gpa: i * 4096, large: true } : undefined;
          }
        }
        for (let i = 0; i < 512; i++) {
          const entry = rmp.entry((region + i) as Pfn);
          expect(entry.assigned).toBe(model[i] !== undefined);
          expect(rmp.assigned((region + i) as Pfn)).toBe(model[i] !== undefined);
          if (model[i] === undefined) continue;
          expect(entry.asid).toBe(model[i]!.asid);
          expect(entry.large).toBe(model[i]!.large);
          if (!entry.large) expect(entry.gpa).toBe(model[i]!.gpa);
        }
        expect(rmp.regionAssigned(region)).toBe(model.some((owner) => owner !== undefined));
      }),
      { numRuns: 80 },
    );
  });
});
