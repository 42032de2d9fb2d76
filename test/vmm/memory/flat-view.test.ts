/** Which region answers where: the rules and the examples of QEMU's docs/devel/memory.rst. */
import { beforeEach, describe, expect, it } from 'vitest';
import { AddressSpace } from '../../../src/vmm/memory/address-space.ts';
import {
  aliasRegion,
  containerRegion,
  type MemoryRegion,
  reservationRegion,
} from '../../../src/vmm/memory/memory-region.ts';
import { MemoryTopology } from '../../../src/vmm/memory/memory-topology.ts';
import { flash, io, layout, ram } from './regions.ts';

let topology: MemoryTopology;
beforeEach(() => {
  topology = new MemoryTopology();
});

const spaceOf = (root: MemoryRegion) => new AddressSpace(topology, 'space', root);

describe('the example of overlapping regions', () => {
  /** A holds C (priority 1) and B (priority 2); B holds D and E and has a hole behind each. */
  function example(b: MemoryRegion) {
    const a = containerRegion('A', 0x8000);
    topology.addSubregionOverlap(a, 0x2000, b, 2);
    topology.addSubregionOverlap(a, 0x0, io('C', 0x6000), 1);
    topology.addSubregion(b, 0x0, io('D', 0x1000));
    topology.addSubregion(b, 0x2000, io('E', 0x1000));
    return layout(spaceOf(a));
  }

  it('shows C in the holes of B, a container', () => {
    expect(example(containerRegion('B', 0x4000))).toEqual([
      'C 0+2000 @0',
      'D 2000+1000 @0',
      'C 3000+1000 @3000',
      'E 4000+1000 @0',
      'C 5000+1000 @5000',
    ]);
  });

  it('shows B itself there when B answers', () => {
    expect(example(io('B', 0x4000))).toEqual([
      'C 0+2000 @0',
      'D 2000+1000 @0',
      'B 3000+1000 @1000',
      'E 4000+1000 @0',
      'B 5000+1000 @3000',
    ]);
  });
});

describe('the example of a PC', () => {
  function pc() {
    const system = containerRegion('system', 2 ** 48);
    const pci = containerRegion('pci', 0x100000000);
    const dimm = ram('ram', 0x100000000);
    const vram = ram('vram', 0x1000000);
    const vgaArea = containerRegion('vga-area', 0x20000);
    topology.addSubregion(vgaArea, 0x0, aliasRegion('bank0', vram, 0x10000, 0x8000));
    topology.addSubregion(vgaArea, 0x8000, aliasRegion('bank1', vram, 0x20000, 0x8000));
    topology.addSubregion(pci, 0xa0000, vgaArea);
    topology.addSubregion(pci, 0xe1000000, vram);
    topology.addSubregion(pci, 0xe2000000, io('vga-mmio', 0x10000));
    const window = aliasRegion('vga-window', pci, 0xa0000, 0x20000);
    topology.addSubregion(system, 0x0, aliasRegion('lomem', dimm, 0x0, 0xe0000000));
    topology.addSubregion(system, 0x100000000, aliasRegion('himem', dimm, 0xe0000000, 0x20000000));
    topology.addSubregionOverlap(system, 0xa0000, window, 1);
    topology.addSubregion(system, 0xe0000000, aliasRegion('pci-hole', pci, 0xe0000000, 0x20000000));
    return { system, pci, window, vram, space: spaceOf(system) };
  }

  it('splits RAM around the hole for PCI, shows two banks of video memory over RAM, and clips what lies outside', () => {
    const { pci, space } = pc();
    topology.addSubregion(pci, 0xd0000000, io('a BAR outside the hole', 0x1000));
    expect(layout(space)).toEqual([
      'ram 0+a0000 @0',
      'vram a0000+8000 @10000',
      'vram a8000+8000 @20000',
      'ram b0000+dff50000 @b0000',
      'vram e1000000+1000000 @0',
      'vga-mmio e2000000+10000 @0',
      'ram 100000000+20000000 @e0000000',
    ]);
  });

  it('shows the RAM beneath when the window is closed', () => {
    const { system, window, space } = pc();
    topology.delSubregion(system, window);
    expect(layout(space)[0]).toBe('ram 0+e0000000 @0');
  });

  it('has one vram in all three places: disabled, it is gone from each', () => {
    const { vram, space } = pc();
    topology.setEnabled(vram, 'disabled');
    expect(layout(space)).toEqual([
      'ram 0+e0000000 @0',
      'vga-mmio e2000000+10000 @0',
      'ram 100000000+20000000 @e0000000',
    ]);
  });
});

describe('of two regions in one container', () => {
  const two = (first: number, second: number) => {
    const root = containerRegion('root', 0x4000);
    topology.addSubregionOverlap(root, 0x0, io('first', 0x2000), first);
    topology.addSubregionOverlap(root, 0x1000, io('second', 0x2000), second);
    return layout(spaceOf(root));
  };
  const firstOnTop = ['first 0+2000 @0', 'second 2000+1000 @1000'];
  const secondOnTop = ['first 0+1000 @0', 'second 1000+2000 @0'];
  it.each([
    ['the one of higher priority wins', 1, 0, firstOnTop],
    ['the same, added later', 0, 1, secondOnTop],
    ['with one priority the later one wins', 0, 0, secondOnTop],
    ['a priority below 0 makes a background', 0, -1, firstOnTop],
    ['the extremes of 32 bits', 2147483647, -2147483648, firstOnTop],
  ])('%s', (_, first, second, expected) => {
    expect(two(first, second)).toEqual(expected);
  });

  it('priorities count within their container alone', () => {
    const root = containerRegion('root', 0x1000);
    const low = containerRegion('low', 0x1000);
    const high = containerRegion('high', 0x1000);
    topology.addSubregionOverlap(low, 0, io('a', 0x1000), 1000);
    topology.addSubregionOverlap(high, 0, io('b', 0x1000), -1000);
    topology.addSubregionOverlap(root, 0, high, 1);
    topology.addSubregionOverlap(root, 0, low, 0);
    expect(layout(spaceOf(root))).toEqual(['b 0+1000 @0']);
  });
});

describe('what sticks out of its container is cut off', () => {
  it('at the end', () => {
    const root = containerRegion('root', 0x3000);
    topology.addSubregion(root, 0x2000, io('a', 0x4000));
    expect(layout(spaceOf(root))).toEqual(['a 2000+1000 @0']);
  });

  it('by an alias, at both ends, through all containers', () => {
    const root = containerRegion('root', 0x10000);
    const bus = containerRegion('bus', 0x8000);
    topology.addSubregion(bus, 0x1000, io('a', 0x4000));
    topology.addSubregion(root, 0x9000, aliasRegion('window', bus, 0x2000, 0x1000));
    expect(layout(spaceOf(root))).toEqual(['a 9000+1000 @1000']);
  });

  it('an alias that is longer than its target ends with it, and a hole follows', () => {
    const root = containerRegion('root', 0x10000);
    topology.addSubregion(root, 0x0, aliasRegion('window', io('a', 0x2000), 0x1000, 0x8000));
    expect(layout(spaceOf(root))).toEqual(['a 0+1000 @1000']);
  });
});

describe('an alias', () => {
  it('of an alias adds the offsets', () => {
    const root = containerRegion('root', 0x10000);
    const inner = aliasRegion('inner', io('a', 0x8000), 0x1000, 0x4000);
    topology.addSubregion(root, 0x0, aliasRegion('outer', inner, 0x2000, 0x4000));
    expect(layout(spaceOf(root))).toEqual(['a 0+2000 @3000']);
  });

  it('shows its target wherever the target itself is mapped', () => {
    const root = containerRegion('root', 0x100000);
    const a = io('a', 0x1000);
    topology.addSubregion(root, 0x40000, a);
    topology.addSubregion(root, 0x0, aliasRegion('alias', a, 0x0, 0x1000));
    expect(layout(spaceOf(root))).toEqual(['a 0+1000 @0', 'a 40000+1000 @0']);
  });

  it('of a disabled region shows nothing', () => {
    const root = containerRegion('root', 0x10000);
    const a = io('a', 0x1000);
    topology.setEnabled(a, 'disabled');
    topology.addSubregion(root, 0x0, aliasRegion('alias', a, 0x0, 0x1000));
    expect(layout(spaceOf(root))).toEqual([]);
  });
});

describe('neighbours that continue each other', () => {
  /** Two aliases that show [0, 1000) and [1000, 2000) of one region, side by side. */
  function halves(target = io('a', 0x2000)) {
    const root = containerRegion('root', 0x10000);
    const low = aliasRegion('low', target, 0x0, 0x1000);
    const high = aliasRegion('high', target, 0x1000, 0x1000);
    topology.addSubregion(root, 0x0, low);
    topology.addSubregion(root, 0x1000, high);
    return { target, low, high, space: spaceOf(root) };
  }
  const one = ['a 0+2000 @0'];
  const two = ['a 0+1000 @0', 'a 1000+1000 @1000'];

  it('are one range', () => {
    expect(layout(halves().space)).toEqual(one);
  });

  it('are none when a gap lies between them, though the second shows what follows', () => {
    const root = containerRegion('root', 0x10000);
    const target = io('a', 0x2000);
    topology.addSubregion(root, 0x0, aliasRegion('low', target, 0x0, 0x1000));
    topology.addSubregion(root, 0x4000, aliasRegion('high', target, 0x1000, 0x1000));
    expect(layout(spaceOf(root))).toEqual(['a 0+1000 @0', 'a 4000+1000 @1000']);
  });

  it('stay apart when only one is read-only', () => {
    const { space, high } = halves();
    topology.setReadOnly(high, 'readonly');
    expect(layout(space)).toEqual(two);
    expect(space.ranges.map(({ readOnly }) => readOnly)).toEqual([false, true]);
    topology.setReadOnly(high, 'writable');
    expect(layout(space)).toEqual(one);
  });

  it('stay apart when only one is nonvolatile', () => {
    const { space, low } = halves();
    topology.setNonvolatile(low, 'nonvolatile');
    expect(layout(space)).toEqual(two);
    expect(space.ranges.map(({ nonvolatile }) => nonvolatile)).toEqual([true, false]);
  });

  it.each(['low', 'high'] as const)('stay apart when the %s one is unmergeable', (which) => {
    const regions = halves();
    topology.setUnmergeable(regions[which], 'unmergeable');
    expect(layout(regions.space)).toEqual(two);
    topology.setUnmergeable(regions[which], 'mergeable');
    expect(layout(regions.space)).toEqual(one);
  });

  it('stay apart when both are unmergeable', () => {
    const { space, target } = halves();
    topology.setUnmergeable(target, 'unmergeable');
    expect(layout(space)).toEqual(two);
  });

  it('stay apart when the offsets jump', () => {
    const { space, high } = halves();
    topology.setAliasOffset(high, 0x0);
    expect(layout(space)).toEqual(['a 0+1000 @0', 'a 1000+1000 @0']);
  });
});

it('read-only is handed down by containers and aliases', () => {
  const root = containerRegion('root', 0x4000);
  const bus = containerRegion('bus', 0x2000);
  const a = ram('a', 0x1000);
  topology.addSubregion(bus, 0x0, a);
  topology.addSubregion(root, 0x0, bus);
  topology.addSubregion(root, 0x2000, aliasRegion('rom', a, 0, 0x1000));
  const space = spaceOf(root);
  topology.setReadOnly(bus, 'readonly');
  expect(space.ranges.map(({ readOnly }) => readOnly)).toEqual([true, false]);
  topology.setReadOnly(a, 'readonly');
  expect(space.ranges.map(({ readOnly }) => readOnly)).toEqual([true, true]);
});

it('a range keeps the mode of its ROM device', () => {
  const root = containerRegion('root', 0x1000);
  const device = flash('flash', 0x1000);
  topology.addSubregion(root, 0, device);
  const space = spaceOf(root);
  expect(space.ranges[0]?.romdMode).toBe(true);
  topology.setRomd(device, 'device');
  expect(space.ranges[0]?.romdMode).toBe(false);
});

it('a reservation hides what lies below it', () => {
  const root = containerRegion('root', 0x4000);
  topology.addSubregion(root, 0, io('a', 0x4000));
  topology.addSubregion(root, 0x1000, reservationRegion('kernel', 0x1000));
  expect(layout(spaceOf(root))).toEqual(['a 0+1000 @0', 'kernel 1000+1000 @0', 'a 2000+2000 @2000']);
});

it('an empty region, a disabled root and an empty root show nothing', () => {
  const root = containerRegion('root', 0x1000);
  topology.addSubregion(root, 0, io('empty', 0));
  const space = spaceOf(root);
  expect(layout(space)).toEqual([]);
  topology.addSubregion(root, 0, io('a', 0x1000));
  expect(layout(space)).toEqual(['a 0+1000 @0']);
  topology.setEnabled(root, 'disabled');
  expect(layout(space)).toEqual([]);
  topology.setEnabled(root, 'enabled');
  topology.setSize(root, 0);
  expect(layout(space)).toEqual([]);
});

it('two address spaces may show one tree, or one a part of the other', () => {
  const root = containerRegion('root', 0x4000);
  const bus = containerRegion('bus', 0x2000);
  topology.addSubregion(root, 0x2000, bus);
  const [whole, again, part] = [spaceOf(root), spaceOf(root), spaceOf(aliasRegion('part', bus, 0, 0x1000))];
  topology.addSubregion(bus, 0x0, io('a', 0x2000));
  expect(layout(whole)).toEqual(['a 2000+2000 @0']);
  expect(layout(again)).toEqual(layout(whole));
  expect(layout(part)).toEqual(['a 0+1000 @0']);
});

it('is exact up to the largest address, and cuts off there', () => {
  const root = containerRegion('root', 2 ** 53 - 1);
  const far = containerRegion('far', 2 ** 53 - 1);
  topology.addSubregion(far, 2 ** 53 - 0x11, io('a', 0x20));
  topology.addSubregion(root, 2 ** 53 - 1, far);
  topology.addSubregion(root, 0x1000, aliasRegion('alias', far, 2 ** 53 - 0x13, 0x100));
  topology.addSubregion(root, 2 ** 53 - 9, io('b', 0x20));
  expect(layout(spaceOf(root))).toEqual(['a 1002+10 @0', 'b 1ffffffffffff7+8 @0']);
});

it('a root that is itself mapped somewhere lies at its address there', () => {
  const outer = containerRegion('outer', 0x10000);
  const root = containerRegion('root', 0x2000);
  topology.addSubregion(root, 0x0, io('a', 0x1000));
  topology.addSubregion(outer, 0x4000, root);
  expect(layout(spaceOf(root))).toEqual(['a 4000+1000 @0']);
});
