/** What becomes of an access that leaves the guest. */
import { beforeEach, describe, expect, it } from 'vitest';
import { hva } from '../../../src/base/address.ts';
import { AddressSpace } from '../../../src/vmm/memory/address-space.ts';
import { IoDispatch } from '../../../src/vmm/memory/io-dispatch.ts';
import {
  aliasRegion,
  containerRegion,
  ioRegion,
  type MemoryRegion,
  type MemoryRegionOps,
  romDeviceRegion,
} from '../../../src/vmm/memory/memory-region.ts';
import { MemoryTopology } from '../../../src/vmm/memory/memory-topology.ts';
import type { RamList } from '../../../src/vmm/memory/ram-list.ts';
import { ram } from './regions.ts';

let topology: MemoryTopology;
let space: AddressSpace;
let dispatch: IoDispatch;
let log: string[];
beforeEach(() => {
  topology = new MemoryTopology();
  space = new AddressSpace(topology, 'memory', containerRegion('system', 0x100000));
  log = [];
  dispatch = new IoDispatch(space, {
    unassigned: 0,
    process: {
      read: (at, into) => {
        log.push(`load ${(at - hva(0x10000000)).toString(16)}+${into.length}`);
        into.fill(0x77);
      },
      write: (at, from) => log.push(`store ${(at - hva(0x10000000)).toString(16)} ${[...from]}`),
    },
  });
});

/** Reads as its own offset. */
const device = (maxAccessSize: 1 | 2 | 4): MemoryRegionOps => ({
  maxAccessSize,
  read: (offset, size) => {
    log.push(`read ${offset.toString(16)}+${size}`);
    return [0x11, 0x2211, 0, 0x44332211][size - 1]!;
  },
  write: (offset, value, size) => log.push(`write ${offset.toString(16)}+${size} ${value.toString(16)}`),
});

const read = (address: number, size: number): number[] => {
  const into = new Uint8Array(size + 2).fill(0xee);
  dispatch.read(address, size, into, 1);
  expect([into[0], into.at(-1)]).toEqual([0xee, 0xee]);
  return [...into.subarray(1, -1)];
};
const write = (address: number, bytes: number[]): void =>
  dispatch.write(address, bytes.length, Uint8Array.of(0xee, ...bytes, 0xee), 1);

describe('a device gets what it takes, the lowest address first', () => {
  it.each([
    ['as one', 4, 0x1000, 4, ['read 0+4']],
    ['in parts of two', 2, 0x1000, 4, ['read 0+2', 'read 2+2']],
    ['byte by byte', 1, 0x1010, 4, ['read 10+1', 'read 11+1', 'read 12+1', 'read 13+1']],
    ['eight bytes twice', 4, 0x1008, 8, ['read 8+4', 'read c+4']],
    ['aligned parts alone', 4, 0x1001, 4, ['read 1+1', 'read 2+2', 'read 4+1']],
    ['what lies in it alone', 4, 0x1ffe, 4, ['read ffe+2']],
  ] as const)('%s', (_, max, address, size, calls) => {
    space.add(ioRegion('device', 0x1000, device(max)), 0x1000);
    read(address, size);
    expect(log).toEqual(calls);
  });

  it('bytes in little-endian order, both ways', () => {
    space.add(ioRegion('device', 0x1000, device(4)), 0x1000);
    expect(read(0x1000, 4)).toEqual([0x11, 0x22, 0x33, 0x44]);
    expect(read(0x1002, 2)).toEqual([0x11, 0x22]);
    log.length = 0;
    write(0x1000, [0x88, 0x77, 0x66, 0xf5]);
    write(0x1003, [1, 2, 3]);
    expect(log).toEqual(['write 0+4 f5667788', 'write 3+1 1', 'write 4+2 302']);
  });

  it('by its own offset, behind aliases', () => {
    space.add(aliasRegion('alias', ioRegion('device', 0x1000, device(4)), 0x800, 0x100), 0x4000);
    read(0x4010, 4);
    expect(log).toEqual(['read 810+4']);
  });
});

describe('where nothing answers', () => {
  it('memory reads zeros, and writes go nowhere', () => {
    expect(read(0x8000, 4)).toEqual([0, 0, 0, 0]);
    write(0x8000, [1, 2]);
    expect(log).toEqual([]);
  });

  it('ports read ones', () => {
    dispatch = new IoDispatch(space, { unassigned: 0xff });
    expect(read(0x8000, 2)).toEqual([0xff, 0xff]);
  });

  it('an access is not cut for a device behind it, as 0xcf9 lies behind 0xcf8', () => {
    const missed: number[] = [];
    dispatch = new IoDispatch(space, { unassigned: 0xff, onUnassigned: (at) => missed.push(at) });
    space.add(ioRegion('reset', 1, device(1)), 0xcf9);
    expect(read(0xcf8, 4)).toEqual([0xff, 0xff, 0xff, 0xff]);
    write(0xcf8, [0, 0x1c, 0, 0x80]);
    expect(log).toEqual([]);
    write(0xcf9, [6]);
    expect(log).toEqual(['write 0+1 6']);
    expect(missed).toEqual([0xcf8, 0xcf8]);
  });

  it('a reservation is no device', () => {
    space.add({ ...ioRegion('device', 0x1000, device(4)), ops: undefined }, 0x1000);
    expect(read(0x1000, 2)).toEqual([0, 0]);
    expect(log).toEqual([]);
  });
});

describe('memory', () => {
  it.each([
    ['RAM', 'writable', ['load 10+4', 'store 10 1,2']],
    ['ROM, where writes go nowhere', 'readonly', ['load 10+4']],
  ] as const)('%s', (_, access, calls) => {
    const region = ram('ram', 0x1000);
    topology.setReadOnly(region, access);
    space.add(region, 0x1000);
    expect(read(0x1010, 4)).toEqual([0x77, 0x77, 0x77, 0x77]);
    write(0x1010, [1, 2]);
    expect(log).toEqual(calls);
  });

  it.each([
    ['memory', ['load 10+4', 'write 10+2 201']],
    ['device', ['read 10+4', 'write 10+2 201']],
  ] as const)('a ROM device whose reads find the %s', (reads, calls) => {
    const list = { alloc: () => ram('flash', 0x1000).ramBlock } as unknown as RamList;
    const region: MemoryRegion = romDeviceRegion(list, 'flash', 0x1000, device(4));
    topology.setRomd(region, reads);
    space.add(region, 0x1000);
    read(0x1010, 4);
    write(0x1010, [1, 2]);
    expect(log).toEqual(calls);
  });

  it('an access across two regions is answered by both', () => {
    space.add(ram('ram', 0x1000), 0x1000);
    space.add(ioRegion('device', 0x1000, device(4)), 0x2000);
    expect(read(0x1ffe, 4)).toEqual([0x77, 0x77, 0x11, 0x22]);
    expect(log).toEqual(['load ffe+2', 'read 0+2']);
  });
});

it('an access finds what is mapped now, not what it found last', () => {
  const over = ioRegion('over', 0x1000, device(1));
  space.add(ioRegion('device', 0x1000, device(4)), 0x1000);
  read(0x1000, 4);
  topology.addSubregionOverlap(space.root, 0x1000, over, 1);
  read(0x1000, 2);
  topology.setEnabled(over, 'disabled');
  read(0x1000, 2);
  expect(log).toEqual(['read 0+4', 'read 0+1', 'read 1+1', 'read 0+2']);
});
