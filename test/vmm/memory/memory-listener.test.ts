/** What listeners hear, and in which order. */
import { beforeEach, describe, expect, it } from 'vitest';
import { AddressSpace } from '../../../src/vmm/memory/address-space.ts';
import { containerRegion, type MemoryRegion } from '../../../src/vmm/memory/memory-region.ts';
import { MemoryTopology } from '../../../src/vmm/memory/memory-topology.ts';
import { flash, io, layout, ram, recorder } from './regions.ts';

let topology: MemoryTopology;
let root: MemoryRegion;
let space: AddressSpace;
let log: string[];
beforeEach(() => {
  topology = new MemoryTopology();
  root = containerRegion('root', 0x10000);
  space = new AddressSpace(topology, 'space', root);
  log = [];
});

const add = (name: string, start: number, size = 0x1000): MemoryRegion => {
  const region = io(name, size);
  topology.addSubregion(root, start, region);
  return region;
};

describe('a change', () => {
  it('tells what is gone, then what stays and what is new, each with ascending addresses', () => {
    const regions = [add('a', 0x0), add('b', 0x2000), add('c', 0x4000), add('d', 0x6000)];
    space.addListener(recorder(log, '-'));
    log.length = 0;
    topology.transaction(() => {
      topology.delSubregion(root, regions[3]!);
      topology.delSubregion(root, regions[1]!);
      topology.setAddress(regions[0]!, 0x8000);
      add('e', 0x1000);
    });
    expect(log).toEqual([
      '- begin',
      '- del a 0+1000 @0',
      '- del b 2000+1000 @0',
      '- del d 6000+1000 @0',
      '- add e 1000+1000 @0',
      '- nop c 4000+1000 @0',
      '- add a 8000+1000 @0',
      '- commit',
    ]);
  });

  it('takes a range that is cut away whole, and adds its parts', () => {
    add('a', 0x0, 0x8000);
    space.addListener(recorder(log, '-'));
    log.length = 0;
    const over = io('over', 0x1000);
    topology.addSubregionOverlap(root, 0x2000, over, 1);
    expect(log).toEqual([
      '- begin',
      '- del a 0+8000 @0',
      '- add a 0+2000 @0',
      '- add over 2000+1000 @0',
      '- add a 3000+5000 @3000',
      '- commit',
    ]);
    log.length = 0;
    topology.setEnabled(over, 'disabled');
    expect(log).toEqual([
      '- begin',
      '- del a 0+2000 @0',
      '- del over 2000+1000 @0',
      '- del a 3000+5000 @3000',
      '- add a 0+8000 @0',
      '- commit',
    ]);
  });

  const replaced: [string, (region: MemoryRegion) => void][] = [
    ['read-only', (region) => topology.setReadOnly(region, 'readonly')],
    ['nonvolatile', (region) => topology.setNonvolatile(region, 'nonvolatile')],
    ['unmergeable', (region) => topology.setUnmergeable(region, 'unmergeable')],
    ['a device where it was memory', (region) => topology.setRomd(region, 'device')],
  ];
  it.each(replaced)('takes a range that becomes %s, and adds it again', (_, change) => {
    const region = flash('a', 0x1000);
    topology.addSubregion(root, 0, region);
    space.addListener(recorder(log, '-'));
    log.length = 0;
    change(region);
    expect(log).toEqual(['- begin', '- del a 0+1000 @0', '- add a 0+1000 @0', '- commit']);
  });
});

describe('of several listeners', () => {
  const register = () => {
    space.addListener(recorder(log, 'high', 20));
    space.addListener(recorder(log, 'low'));
    space.addListener(recorder(log, 'middle', 10));
    space.addListener(recorder(log, 'low too', 0));
    log.length = 0;
  };

  it('those of low priority hear first, and last of what goes', () => {
    register();
    const a = add('a', 0x0);
    const order = ['low', 'low too', 'middle', 'high'];
    const all = (what: string) => order.map((name) => `${name} ${what}`);
    expect(log).toEqual([...all('begin'), ...all('add a 0+1000 @0'), ...all('commit')]);
    log.length = 0;
    topology.delSubregion(root, a);
    expect(log).toEqual([...all('begin'), ...all('del a 0+1000 @0').reverse(), ...all('commit')]);
  });

  it('each hears begin and commit once, whatever address spaces there are', () => {
    const ports = new AddressSpace(topology, 'ports', containerRegion('ports', 0x1000));
    register();
    ports.addListener(recorder(log, 'ports', 15));
    log.length = 0;
    add('a', 0x0);
    expect(log.filter((line) => line.startsWith('ports'))).toEqual(['ports begin', 'ports commit']);
    expect(log.filter((line) => line.endsWith('begin')).map((line) => line.replace(' begin', ''))).toEqual([
      'low',
      'low too',
      'middle',
      'ports',
      'high',
    ]);
  });
});

describe('a new listener', () => {
  it('hears of what is there, between a begin and a commit of its own', () => {
    add('b', 0x4000);
    const a = ram('a', 0x1000);
    topology.addSubregion(root, 0, a);
    topology.setLog(a, 'start');
    space.addListener(recorder(log, 'old'));
    log.length = 0;
    space.addListener(recorder(log, 'new'));
    expect(log).toEqual([
      'new begin',
      'new add a 0+1000 @0',
      'new log start a 0→1',
      'new add b 4000+1000 @0',
      'new commit',
    ]);
  });

  it('is registered once', () => {
    const listener = recorder(log, '-');
    space.addListener(listener);
    expect(() => space.addListener(listener)).toThrow('a listener is registered once');
  });

  it('may hear of nothing', () => {
    space.addListener({});
    add('a', 0x0);
    expect(layout(space)).toEqual(['a 0+1000 @0']);
  });
});

it('a listener that leaves hears that everything goes, in ascending order, and then no more', () => {
  const a = ram('a', 0x1000);
  topology.addSubregion(root, 0, a);
  topology.setLog(a, 'start');
  add('b', 0x4000);
  const listener = recorder(log, '-');
  space.addListener(listener);
  log.length = 0;
  space.removeListener(listener);
  expect(log).toEqual([
    '- begin',
    '- log stop a 1→0',
    '- del a 0+1000 @0',
    '- del b 4000+1000 @0',
    '- commit',
  ]);
  add('c', 0x8000);
  expect(log.length).toBe(5);
  expect(() => space.removeListener(listener)).toThrow('the listener listens to space');
  space.close();
});

it('an address space that somebody listens to does not close', () => {
  space.addListener({});
  expect(() => space.close()).toThrow('nobody listens to space any more');
});

describe('dirty logging', () => {
  let a: MemoryRegion;
  beforeEach(() => {
    a = ram('a', 0x1000);
    topology.addSubregion(root, 0, a);
    space.addListener(recorder(log, 'low'));
    space.addListener(recorder(log, 'high', 1));
    log.length = 0;
  });

  it('starts in ascending and stops in descending order of priority; the range stays', () => {
    topology.setLog(a, 'start');
    expect(log.slice(2, -2)).toEqual([
      'low nop a 0+1000 @0',
      'high nop a 0+1000 @0',
      'low log start a 0→1',
      'high log start a 0→1',
    ]);
    log.length = 0;
    topology.setLog(a, 'stop');
    expect(log.slice(4, -2)).toEqual(['high log stop a 1→0', 'low log stop a 1→0']);
  });

  it('counts displays: the first starts it and the last stops it', () => {
    topology.setLog(a, 'start');
    log.length = 0;
    topology.setLog(a, 'start');
    topology.setLog(a, 'stop');
    expect(log).toEqual([]);
    expect(a.dirtyLogMask).toBe(1);
    topology.setLog(a, 'stop');
    expect(a.dirtyLogMask).toBe(0);
    expect(log.length).toBeGreaterThan(0);
  });

  it('that is on from the start comes with the range, without a start', () => {
    const b = ram('b', 0x1000);
    topology.setLog(b, 'start');
    topology.addSubregion(root, 0x4000, b);
    expect(log.filter((line) => line.includes(' b '))).toEqual([
      'low add b 4000+1000 @0',
      'high add b 4000+1000 @0',
    ]);
  });
});

describe('a listener that fails', () => {
  const failing = { regionAdd: () => expect.fail('no slot') };

  it('keeps no other from hearing, and the change is made', () => {
    space.addListener(failing);
    space.addListener(recorder(log, '-', 1));
    log.length = 0;
    expect(() => topology.addSubregion(root, 0, io('a', 0x1000))).toThrow('no slot');
    expect(log).toEqual(['- begin', '- add a 0+1000 @0', '- commit']);
    expect(layout(space)).toEqual(['a 0+1000 @0']);
  });

  it('makes AddressSpace.add take the region out again', () => {
    space.addListener(failing);
    space.addListener(recorder(log, '-', 1));
    log.length = 0;
    const a = io('a', 0x1000);
    expect(() => space.add(a, 0)).toThrow('no slot');
    expect(log).toEqual([
      '- begin',
      '- add a 0+1000 @0',
      '- commit',
      '- begin',
      '- del a 0+1000 @0',
      '- commit',
    ]);
    expect([layout(space), a.container]).toEqual([[], undefined]);
  });

  it('but AddressSpace.add of a region that is there already leaves it', () => {
    const a = io('a', 0x1000);
    space.add(a, 0);
    expect(() => space.add(a, 0x4000)).toThrow('mapped once');
    expect(layout(space)).toEqual(['a 0+1000 @0']);
  });

  it('the first error is the one', () => {
    space.addListener({ commit: () => {}, regionAdd: () => expect.fail('first') });
    space.addListener({ regionAdd: () => expect.fail('second') });
    expect(() => topology.addSubregion(root, 0, io('a', 0x1000))).toThrow('first');
  });
});
