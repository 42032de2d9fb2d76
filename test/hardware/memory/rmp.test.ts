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
  ])('refuses %s', (_, at, code) => {
    expect(rmp.psmash(at())).toBe(code);
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
