import { afterEach, describe, expect, it } from 'vitest';
import type { Pfn, Spa } from '../../../src/base/address.ts';
import { CMD, Machine } from './machine.ts';

let machine: Machine;
afterEach(() => machine.close());

const LARGE = 1 << 21;
const initialised = (): Machine => {
  machine = new Machine({ bytes: 32 << 20 }).init();
  return machine;
};
const set = (at: Spa, changes: object): void => {
  const frame = (at / 4096) as Pfn;
  machine.rmp.setEntry(frame, { ...machine.rmp.entry(frame), ...changes });
};

describe('PAGE_RECLAIM', () => {
  it('checks in the order of the firmware', () => {
    machine = new Machine({ bytes: 32 << 20 });
    const reclaim = (address: number) => machine.run(CMD.RECLAIM, [[0, 8, address]]);
    const page = machine.page();
    expect(reclaim(page + 2)).toBe(0x16);
    expect(reclaim(page + 0x800)).toBe(0x16);
    expect(reclaim(page)).toBe(1);
    machine.init();
    expect(reclaim(1 << 30)).toBe(9);
    expect(reclaim(machine.rmp.base)).toBe(9);
    expect(reclaim(page + 1)).toBe(0x19);
    expect(reclaim(page)).toBe(0);
    const last = (32 << 20) - 4096;
    expect(reclaim(last)).toBe(0);
    expect(reclaim(last + 1)).toBe(9);
    const large = machine.page(9);
    machine.rmpupdate(large, { immutable: true, large: true });
    expect(reclaim(large)).toBe(0x19);
    expect(reclaim(large + 4096 + 1)).toBe(0x19);
    expect(reclaim(large + 4096)).toBe(0);
    expect(reclaim(large + 1)).toBe(0);
    expect(machine.stateOf(large)).toBe('reclaim');
    expect(reclaim(machine.createContext())).toBe(0x1a);
  });

  it.each([
    ['4 KiB', false, 1],
    ['2 MiB', true, 512],
  ])('of %s says in the trace how many pages', (_size, large, count) => {
    initialised();
    const page = machine.page(9);
    machine.rmpupdate(page, { immutable: true, large });
    const told: unknown[] = [];
    machine.trace.listen((event) => event.kind === 'page' && told.push(event));
    expect(machine.reclaim(page, large)).toBe(0);
    expect(told).toMatchObject([
      { why: 'SNP_PAGE_RECLAIM', what: 'reclaim', pfn: page / 4096, pages: count },
    ]);
  });

  it.each([
    // state before, what the page is, status, state after
    ['hypervisor', undefined, 0, 'hypervisor'],
    ['firmware', { immutable: true }, 0, 'reclaim'],
    ['metadata', { immutable: true, gpa: 0x5000 }, 0, 'reclaim'],
    ['reclaim', {}, 0, 'reclaim'],
    ['pre-guest', { immutable: true, asid: 1 }, 0, 'guest-invalid'],
    ['guest-invalid', { asid: 1 }, 0, 'guest-invalid'],
  ] as const)('of a page in state %s', (before, state, status, after) => {
    initialised();
    const page = machine.page();
    if (state !== undefined) machine.rmpupdate(page, state);
    expect(machine.stateOf(page)).toBe(before);
    expect(machine.reclaim(page)).toBe(status);
    expect(machine.stateOf(page)).toBe(after);
  });

  it.each([
    ['pre-swap', { validated: true }, 0, 'guest-valid'],
    ['guest-valid', { validated: true, immutable: false }, 0, 'guest-valid'],
    ['hv-fixed', { assigned: false, asid: 0, gpa: 0 }, 0x1a, 'hv-fixed'],
  ] as const)('of a page that the host cannot bring into state %s', (before, changes, status, after) => {
    initialised();
    const page = machine.preGuestPage(0x1000);
    set(page, changes);
    expect(machine.stateOf(page)).toBe(before);
    expect(machine.reclaim(page)).toBe(status);
    expect(machine.stateOf(page)).toBe(after);
  });
});

describe('PAGE_SET_STATE', () => {
  const list = (...ranges: readonly (readonly [base: number, count: number, reserved?: number])[]): Spa => {
    const at = machine.page();
    machine.memory.store32(at, ranges.length);
    ranges.forEach(([base, count, reserved], i) => {
      machine.memory.store64((at + 8 + i * 16) as Spa, BigInt(base));
      machine.memory.store32((at + 16 + i * 16) as Spa, count);
      machine.memory.store32((at + 20 + i * 16) as Spa, reserved ?? 0);
    });
    return at;
  };
  const setState = (at: number, length = 16, reserved = 0) =>
    machine.run(CMD.SET_STATE, [
      [0, 4, length],
      [4, 4, reserved],
      [8, 8, at],
    ]);

  it('checks in the order of the firmware', () => {
    machine = new Machine({ bytes: 32 << 20 });
    const page = machine.page();
    expect(setState(page + 1, 15)).toBe(4);
    expect(setState(page, 16, 1)).toBe(0x16);
    expect(setState(page + 1)).toBe(0x16);
    expect(setState(page)).toBe(1);
    machine.init();
    expect(setState(1 << 30)).toBe(9);
    const region = machine.page(9);
    expect(setState(list([region + 4096, 1]))).toBe(0x16);
    expect(setState(list([region, 1, 1]))).toBe(0x16);
    expect(setState(list([region, 1]))).toBe(0x1a);
    expect(setState(list([1 << 30, 1]))).toBe(9);
    machine.memory.store32(page, 256);
    expect(setState(page)).toBe(0x16);
    machine.memory.store32(page, 255);
    expect(setState(page)).toBe(0);
    machine.memory.store32((page + 4) as Spa, 1);
    expect(setState(page)).toBe(0x16);
    expect(setState(list([1 << 30, 0]))).toBe(0);
    expect(setState(list())).toBe(0);
  });

  it('fixes firmware pages to the hypervisor, all of them or none', () => {
    initialised();
    const region = machine.page(9);
    const pages = [0, 1, 2].map((i) => (region + i * 4096) as Spa);
    machine.rmpupdate(pages[0]!, { immutable: true });
    machine.rmpupdate(pages[1]!, { immutable: true });
    expect(setState(list([region, 3]))).toBe(0x1a);
    expect(pages.map((page) => machine.stateOf(page))).toEqual(['firmware', 'firmware', 'hypervisor']);
    expect(setState(list([region, 2]))).toBe(0);
    expect(pages.map((page) => machine.stateOf(page))).toEqual(['hv-fixed', 'hv-fixed', 'hypervisor']);
  });

  it('leaves the RMP alone', () => {
    initialised();
    const before = machine.stateOf(machine.rmp.base);
    expect(setState(list([0, machine.rmp.end / 4096]))).toBe(0x1a);
    expect(machine.stateOf(machine.rmp.base)).toBe(before);
  });
});

describe('PAGE_UNSMASH', () => {
  const unsmash = (at: number) => machine.run(CMD.UNSMASH, [[0, 8, at]]);
  /** 512 Pre-Guest pages with consecutive GPAs. */
  const smashed = (): Spa => {
    const region = machine.page(9);
    for (let i = 0; i < 512; i++)
      machine.rmpupdate((region + i * 4096) as Spa, { gpa: LARGE + i * 4096, asid: 1, immutable: true });
    return region;
  };

  it('checks in the order of the firmware', () => {
    machine = new Machine({ bytes: 32 << 20 });
    const region = machine.page(9);
    expect(unsmash(region + 2)).toBe(0x16);
    expect(unsmash(region + 4096)).toBe(0x16);
    expect(unsmash(region)).toBe(1);
    machine.init();
    expect(unsmash(1 << 30)).toBe(9);
    expect(unsmash(0)).toBe(9);
    expect(unsmash(region)).toBe(0x1a);
  });

  it('joins 512 pages that are alike', () => {
    initialised();
    const region = smashed();
    expect(unsmash(region)).toBe(0);
    expect(machine.rmp.entry((region / 4096) as Pfn)).toMatchObject({
      large: true,
      immutable: true,
      asid: 1,
      gpa: LARGE,
    });
    expect(machine.reclaim(region, true)).toBe(0);
    expect(machine.stateOf((region + LARGE - 4096) as Spa)).toBe('guest-invalid');
  });

  it.each([
    ['is not immutable', { immutable: false }],
    ['is a VMSA', { vmsa: true }],
    ['has another ASID', { asid: 2 }],
    ['has another GPA', { gpa: LARGE }],
    ['is validated', { validated: true }],
    ['has other permissions', { permissions: 0x11f }],
  ])('refuses 512 pages of which one %s', (_what, changes) => {
    initialised();
    const region = smashed();
    const page = (region + 300 * 4096) as Spa;
    set(page, changes);
    expect(unsmash(region)).toBe(0x1a);
    expect(machine.rmp.isLarge((region / 4096) as Pfn)).toBe(false);
  });

  it('refuses pages that are no guest’s', () => {
    initialised();
    const region = machine.page(9);
    for (let i = 0; i < 512; i++)
      machine.rmpupdate((region + i * 4096) as Spa, { gpa: LARGE + i * 4096, immutable: true });
    expect(machine.stateOf(region)).toBe('metadata');
    expect(unsmash(region)).toBe(0x1a);
  });

  it('refuses GPAs that do not start at 2 MiB', () => {
    initialised();
    const region = machine.page(9);
    for (let i = 0; i < 512; i++)
      machine.rmpupdate((region + i * 4096) as Spa, { gpa: 4096 + i * 4096, asid: 1, immutable: true });
    expect(unsmash(region)).toBe(0x1a);
  });
});
