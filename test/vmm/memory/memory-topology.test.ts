/** When the topology of a machine changes, and what it refuses. */
import { beforeEach, describe, expect, it } from 'vitest';
import { AddressSpace } from '../../../src/vmm/memory/address-space.ts';
import {
  aliasRegion,
  containerRegion,
  ioRegion,
  type MemoryRegion,
  memoryRegionIsMapped,
  memoryRegionIsRam,
  memoryRegionIsRomd,
  ramPointer,
} from '../../../src/vmm/memory/memory-region.ts';
import { MemoryTopology } from '../../../src/vmm/memory/memory-topology.ts';
import { flash, io, layout, ops, ram, recorder } from './regions.ts';

let topology: MemoryTopology;
let root: MemoryRegion;
let space: AddressSpace;
let log: string[];
beforeEach(() => {
  topology = new MemoryTopology();
  root = containerRegion('root', 0x10000);
  space = new AddressSpace(topology, 'space', root);
  log = [];
  space.addListener(recorder(log, '-'));
  log.length = 0;
});

describe('a transaction', () => {
  it('makes many changes one: listeners hear of the last state alone', () => {
    const [a, b] = [io('a', 0x1000), io('b', 0x1000)];
    topology.transaction(() => {
      topology.addSubregion(root, 0x0, a);
      topology.addSubregion(root, 0x4000, b);
      topology.setAddress(a, 0x8000);
      topology.delSubregion(root, b);
    });
    expect(log).toEqual(['- begin', '- add a 8000+1000 @0', '- commit']);
  });

  it('shows what was before until it ends', () => {
    topology.begin();
    topology.addSubregion(root, 0x0, io('a', 0x1000));
    expect(layout(space)).toEqual([]);
    expect(space.find(0, 1)).toBe(undefined);
    topology.commit();
    expect(layout(space)).toEqual(['a 0+1000 @0']);
  });

  it('nests: the outermost one counts', () => {
    topology.begin();
    topology.transaction(() => topology.addSubregion(root, 0x0, io('a', 0x1000)));
    expect(log).toEqual([]);
    topology.commit();
    expect(log).toEqual(['- begin', '- add a 0+1000 @0', '- commit']);
  });

  it('without a change tells nothing', () => {
    topology.transaction(() => {});
    expect(log).toEqual([]);
  });

  it('that changes something and takes it back tells listeners, but of no range', () => {
    const a = io('a', 0x1000);
    topology.transaction(() => {
      topology.addSubregion(root, 0x0, a);
      topology.delSubregion(root, a);
    });
    expect(log).toEqual(['- begin', '- commit']);
  });

  it('gives back what its change gives, and passes on what it throws', () => {
    expect(topology.transaction(() => 7)).toBe(7);
    const failing = () =>
      topology.transaction(() => {
        topology.addSubregion(root, 0x0, io('a', 0x1000));
        throw new RangeError('no');
      });
    expect(failing).toThrow(RangeError);
    expect(layout(space)).toEqual(['a 0+1000 @0']);
    topology.addSubregion(root, 0x1000, io('b', 0x1000));
    expect(layout(space)).toEqual(['a 0+1000 @0', 'b 1000+1000 @0']);
  });

  it('ends no more often than it begins', () => {
    expect(() => topology.commit()).toThrow('a transaction ends that has begun');
  });
});

describe('a change is told when it can be seen', () => {
  const setUp = () => {
    const bus = containerRegion('bus', 0x4000);
    const a = io('a', 0x1000);
    const window = aliasRegion('window', a, 0x0, 0x1000);
    topology.addSubregion(bus, 0x0, a);
    topology.addSubregion(root, 0x0, bus);
    topology.addSubregion(root, 0x8000, window);
    log.length = 0;
    return { bus, a, window };
  };
  type Regions = ReturnType<typeof setUp>;
  const rows: [string, (regions: Regions) => void, 'told' | 'not told'][] = [
    ['enabled as it was', ({ a }) => topology.setEnabled(a, 'enabled'), 'not told'],
    ['disabled', ({ a }) => topology.setEnabled(a, 'disabled'), 'told'],
    ['the same address', ({ a }) => topology.setAddress(a, 0x0), 'not told'],
    ['another address', ({ a }) => topology.setAddress(a, 0x1000), 'told'],
    ['the same size', ({ a }) => topology.setSize(a, 0x1000), 'not told'],
    ['another size', ({ a }) => topology.setSize(a, 0x2000), 'told'],
    ['the same offset of an alias', ({ window }) => topology.setAliasOffset(window, 0x0), 'not told'],
    ['another offset of an alias', ({ window }) => topology.setAliasOffset(window, 0x800), 'told'],
    ['writable as it was', ({ a }) => topology.setReadOnly(a, 'writable'), 'not told'],
    ['read-only', ({ a }) => topology.setReadOnly(a, 'readonly'), 'told'],
    ['nonvolatile', ({ a }) => topology.setNonvolatile(a, 'nonvolatile'), 'told'],
    ['unmergeable', ({ a }) => topology.setUnmergeable(a, 'unmergeable'), 'told'],
    ['unmergeable as it was not', ({ a }) => topology.setUnmergeable(a, 'mergeable'), 'not told'],
    ['the mode of a ROM device', ({ a }) => topology.setRomd(a, 'device'), 'told'],
    ['logged', ({ a }) => topology.setLog(a, 'start'), 'told'],
  ];
  it.each(rows)('%s: %s', (_, change, expected) => {
    change(setUp());
    expect(log.length > 0 ? 'told' : 'not told').toBe(expected);
  });

  it.each(rows.filter(([what]) => /read-only|nonvolatile|unmergeable|mode|logged|offset/.test(what)))(
    'of a disabled region: %s is not told',
    (_, change) => {
      const regions = setUp();
      topology.setEnabled(regions.a, 'disabled');
      topology.setEnabled(regions.window, 'disabled');
      log.length = 0;
      change(regions);
      expect(log).toEqual([]);
    },
  );

  it('adding to a disabled container, or a disabled region, is not', () => {
    const { bus } = setUp();
    topology.setEnabled(bus, 'disabled');
    const b = io('b', 0x1000);
    log.length = 0;
    topology.addSubregion(bus, 0x2000, b);
    topology.delSubregion(bus, b);
    topology.setEnabled(bus, 'enabled');
    topology.setEnabled(b, 'disabled');
    log.length = 0;
    topology.addSubregion(bus, 0x2000, b);
    topology.delSubregion(bus, b);
    expect(log).toEqual([]);
  });
});

describe('moving', () => {
  it('puts a region above others of its priority, and below those of a higher one', () => {
    const [a, b] = [io('a', 0x2000), io('b', 0x2000)];
    topology.addSubregion(root, 0x0, a);
    topology.addSubregion(root, 0x1000, b);
    topology.addSubregionOverlap(root, 0x800, io('top', 0x100), 1);
    topology.setAddress(a, 0x80);
    expect(layout(space)).toEqual(['a 80+780 @0', 'top 800+100 @0', 'a 900+1780 @880', 'b 2080+f80 @1080']);
    expect(a.priority).toBe(0);
  });

  it('of a region that is mapped nowhere says where an alias does not care', () => {
    const a = io('a', 0x1000);
    topology.setAddress(a, 0x5000);
    topology.addSubregion(root, 0x0, aliasRegion('alias', a, 0x0, 0x1000));
    expect(layout(space)).toEqual(['a 0+1000 @0']);
  });

  it('to an offset that is none leaves the region where it is', () => {
    const a = io('a', 0x1000);
    topology.addSubregion(root, 0x0, a);
    for (const offset of [-1, 0.5, 2 ** 53, Number.NaN]) {
      expect(() => topology.setAddress(a, offset)).toThrow('region a has an offset of whole bytes');
    }
    expect(layout(space)).toEqual(['a 0+1000 @0']);
  });
});

describe('what cannot be is asserted, and nothing changes', () => {
  const rows: [string, () => void, string][] = [
    [
      'a region in two containers',
      () => {
        const a = io('a', 0x1000);
        topology.addSubregion(containerRegion('other', 0x1000), 0, a);
        topology.addSubregion(root, 0, a);
      },
      'region a is mapped once, elsewhere by an alias',
    ],
    [
      'a region in an alias',
      () => topology.addSubregion(aliasRegion('alias', io('a', 1), 0, 1), 0, io('b', 1)),
      'alias alias holds no regions of its own',
    ],
    [
      'a region taken from where it is not',
      () => topology.delSubregion(root, io('a', 1)),
      'region a is mapped in root',
    ],
    ['a region in itself', () => topology.addSubregion(root, 0, root), 'region root does not contain root'],
    [
      'a region below itself, by an alias',
      () => {
        const bus = containerRegion('bus', 0x1000);
        topology.addSubregion(bus, 0, aliasRegion('alias', aliasRegion('inner', root, 0, 1), 0, 1));
        topology.addSubregion(root, 0, bus);
      },
      'region bus does not contain root',
    ],
    ['an offset below 0', () => topology.addSubregion(root, -1, io('a', 1)), 'region a has an offset'],
    [
      'a priority beyond 32 bits',
      () => topology.addSubregionOverlap(root, 0, io('a', 1), 2147483648),
      'region a has a priority of 32 bits: 2147483648',
    ],
    ['a size below 0', () => io('a', -1), 'region a has a size of whole bytes below 2^53: -1'],
    ['a size of 2^53', () => containerRegion('a', 2 ** 53), 'region a has a size'],
    ['a size that becomes none', () => topology.setSize(root, 1.5), 'region root has a size'],
    ['an alias of nothing whole', () => aliasRegion('a', io('b', 1), 0.5, 1), 'region a has an offset'],
    ['an offset of what is no alias', () => topology.setAliasOffset(root, 0), 'region root is an alias'],
    ['logging that stops before it starts', () => topology.setLog(root, 'stop'), 'logging of region root'],
  ];
  it.each(rows)('%s', (_, act, message) => {
    expect(act).toThrow(message);
    expect(log.filter((line) => line.includes('+'))).toEqual([]);
    // The transaction is not left open.
    topology.addSubregion(root, 0x4000, io('later', 0x1000));
    expect(layout(space)).toEqual(['later 4000+1000 @0']);
  });

  it('a change by a listener that hears of one', () => {
    space.addListener({ regionAdd: () => topology.setSize(root, 1) });
    expect(() => topology.addSubregion(root, 0x0, io('a', 0x1000))).toThrow('a listener does not change');
    expect(root.size).toBe(0x10000);
  });
});

it('is mapped: in a container, or shown by an alias that is, however far', () => {
  const a = io('a', 0x1000);
  const inner = aliasRegion('inner', a, 0, 0x1000);
  const outer = aliasRegion('outer', inner, 0, 0x1000);
  const mapped = () => [a, inner, outer].map(memoryRegionIsMapped);
  expect(mapped()).toEqual([false, false, false]);
  topology.addSubregion(root, 0, outer);
  expect(mapped()).toEqual([true, true, true]);
  topology.delSubregion(root, outer);
  expect(mapped()).toEqual([false, false, false]);
  topology.addSubregion(root, 0, a);
  expect(mapped()).toEqual([true, false, false]);
});

it('knows RAM, ROM and ROM devices', () => {
  const rom = ram('rom', 0x1000);
  topology.setReadOnly(rom, 'readonly');
  const programmed = flash('programmed', 0x1000);
  topology.setRomd(programmed, 'device');
  const regions = [ram('ram', 1), rom, flash('flash', 1), programmed, ioRegion('io', 1, ops), root];
  expect(regions.map(memoryRegionIsRam)).toEqual([true, true, false, false, false, false]);
  expect(regions.map(memoryRegionIsRomd)).toEqual([false, false, true, false, false, false]);
});

it("finds an alias's RAM behind both offsets", () => {
  const inner = aliasRegion('inner', ram('ram', 0x10000), 0x1000, 0x8000);
  expect(ramPointer(aliasRegion('outer', inner, 0x200, 0x1000), 0x30)).toBe(0x10001230);
  expect(() => ramPointer(io('a', 1), 0)).toThrow('memory region a: got kind io, want RAM');
});
