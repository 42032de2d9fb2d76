/** memory_region_find: which section answers for a range. */
import { beforeEach, describe, expect, it } from 'vitest';
import {
  AddressSpace,
  memoryRegionFind,
  memoryRegionPresent,
} from '../../../src/vmm/memory/address-space.ts';
import type { MemoryRegionSection } from '../../../src/vmm/memory/flat-view.ts';
import { aliasRegion, containerRegion, type MemoryRegion } from '../../../src/vmm/memory/memory-region.ts';
import { MemoryTopology } from '../../../src/vmm/memory/memory-topology.ts';
import { io, ram, written } from './regions.ts';

let topology: MemoryTopology;
let root: MemoryRegion;
let bus: MemoryRegion;
let space: AddressSpace;
beforeEach(() => {
  topology = new MemoryTopology();
  root = containerRegion('root', 0x100000);
  bus = containerRegion('bus', 0x10000);
  space = new AddressSpace(topology, 'space', root);
  topology.addSubregion(root, 0x40000, bus);
  topology.addSubregion(bus, 0x1000, io('a', 0x2000));
  topology.addSubregion(bus, 0x3000, io('b', 0x1000));
});

const told = (section: MemoryRegionSection | undefined) => section && written(section);

describe('a section is found', () => {
  it.each([
    ['of one region', 0x41800, 0x100, 'a 41800+100 @800'],
    ['cut at its end', 0x42f00, 0x1000, 'a 42f00+100 @1f00'],
    ['cut at its start', 0x40000, 0x1001, 'a 41000+1 @0'],
    ['the first of several', 0x0, 0x100000, 'a 41000+2000 @0'],
    ['the second from its first byte on', 0x43000, 0x2000, 'b 43000+1000 @0'],
    ['not in a hole', 0x44000, 0x1000, undefined],
    ['not before, up to the last byte', 0x40000, 0x1000, undefined],
    ['not behind', 0x44000, 0xbc000, undefined],
    ['of no bytes, within a range', 0x41800, 0x0, 'a 41800+0 @800'],
    ['not of no bytes at a start', 0x41000, 0x0, undefined],
  ])('%s', (_, start, size, expected) => {
    expect(told(space.find(start, size))).toBe(expected);
  });

  it('relative to a region, which may be deep, and beyond its end', () => {
    expect(told(memoryRegionFind(topology, bus, 0x1800, 0x100))).toBe('a 41800+100 @800');
    expect(told(memoryRegionFind(topology, bus, 0x0, 0x100))).toBe(undefined);
    const a = bus.subregions.find(({ name }) => name === 'a')!;
    expect(told(memoryRegionFind(topology, a, 0x10, 0x4000))).toBe('a 41010+1ff0 @10');
    expect(told(memoryRegionFind(topology, a, 0x2010, 0x10))).toBe('b 43010+10 @10');
  });

  it('not in a tree that is no address space', () => {
    const loose = containerRegion('loose', 0x1000);
    topology.addSubregion(loose, 0, io('c', 0x1000));
    expect(memoryRegionFind(topology, loose, 0, 1)).toBe(undefined);
    new AddressSpace(topology, 'loose', loose);
    expect(told(memoryRegionFind(topology, loose, 0, 1))).toBe('c 0+1 @0');
  });

  it('not in an address space that is closed', () => {
    space.close();
    expect(memoryRegionFind(topology, bus, 0x1000, 1)).toBe(undefined);
  });

  it('of the region behind an alias, read-only as the alias is; that it is unmergeable is not said', () => {
    const dimm = ram('dimm', 0x8000);
    const shadow = aliasRegion('shadow', dimm, 0x2000, 0x1000);
    topology.setReadOnly(shadow, 'readonly');
    topology.setNonvolatile(shadow, 'nonvolatile');
    topology.setUnmergeable(shadow, 'unmergeable');
    topology.addSubregion(root, 0x80000, shadow);
    expect(space.find(0x80800, 0x1000)).toEqual({
      region: dimm,
      start: 0x80800,
      size: 0x800,
      offsetInRegion: 0x2800,
      readOnly: true,
      nonvolatile: true,
      unmergeable: false,
    });
  });
});

it('another region is present where one answers that is not the container itself', () => {
  const bar = io('bar', 0x2000);
  topology.addSubregion(bus, 0x8000, bar);
  topology.addSubregion(bar, 0x0, io('over', 0x1000));
  expect([0x0, 0x1000].map((offset) => memoryRegionPresent(topology, bar, offset))).toEqual([true, false]);
  expect([0x0, 0x8fff, 0xa000].map((offset) => memoryRegionPresent(topology, bus, offset))).toEqual([
    false,
    true,
    false,
  ]);
});

it('the range that holds an address', () => {
  expect(
    [0x40fff, 0x41000, 0x42fff, 0x43000, 0x43fff, 0x44000].map((at) => space.rangeAt(at)?.region.name),
  ).toEqual([undefined, 'a', 'a', 'b', 'b', undefined]);
});
