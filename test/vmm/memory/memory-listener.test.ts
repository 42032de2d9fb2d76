/** What listeners hear, and in which order. */
import { beforeEach, describe, expect, it } from 'vitest';
import { AddressSpace } from '../../../src/vmm/memory/address-space.ts';
import { clearDirtyLog, syncDirtyLog } from '../../../src/vmm/memory/dirty-log-sync.ts';
import type { MemoryListener } from '../../../src/vmm/memory/memory-listener.ts';
import { aliasRegion, containerRegion, type MemoryRegion } from '../../../src/vmm/memory/memory-region.ts';
import { MemoryTopology } from '../../../src/vmm/memory/memory-topology.ts';
import { flash, io, layout, ram, recorder, written } from './regions.ts';

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

describe('what dirty logs are asked', () => {
  /** Names whom it is asked, and of what. */
  const logger = (name: string, priority: number): MemoryListener => ({
    priority,
    logSync: (section) => log.push(`${name} sync ${written(section)}`),
    logClear: (section) => log.push(`${name} clear ${written(section)}`),
  });
  const global = (name: string, priority: number): MemoryListener => ({
    priority,
    logSyncGlobal: () => log.push(`${name} sync all`),
  });

  /** a lies at 0, and by aliases at 4000 and, in part, at 8000; b lies at 2000; c does not log; d is in another space. */
  const setUp = () => {
    const [a, b, c, d] = [ram('a', 0x1000), ram('b', 0x1000), ram('c', 0x1000), ram('d', 0x1000)];
    for (const region of [a, b, d]) topology.setLog(region, 'start');
    topology.addSubregion(root, 0x0, a);
    topology.addSubregion(root, 0x2000, b);
    topology.addSubregion(root, 0x4000, aliasRegion('again', a, 0, 0x1000));
    topology.addSubregion(root, 0x6000, c);
    topology.addSubregion(root, 0x8000, aliasRegion('part', a, 0x400, 0x800));
    const other = containerRegion('other', 0x10000);
    topology.addSubregion(other, 0x0, d);
    const otherSpace = new AddressSpace(topology, 'other', other);
    space.addListener(logger('last', 20));
    otherSpace.addListener(logger('other', 15));
    space.addListener(global('rings', 10));
    space.addListener(logger('first', 5));
    space.addListener({});
    log.length = 0;
    return { a, c, d };
  };
  const all = (name: string) => [
    `${name} sync a 0+1000 @0`,
    `${name} sync b 2000+1000 @0`,
    `${name} sync a 4000+1000 @0`,
    `${name} sync a 8000+800 @400`,
  ];

  it('is asked of one listener after the other, each about the ranges of its space that log', () => {
    setUp();
    syncDirtyLog(topology);
    expect(log).toEqual([...all('first'), 'rings sync all', 'other sync d 0+1000 @0', ...all('last')]);
  });

  it('is asked about one region where it lies, and of who cannot tell regions apart about all', () => {
    const { a, c, d } = setUp();
    const of = (name: string) => all(name).filter((line) => line.includes(' a '));
    syncDirtyLog(topology, a);
    expect(log).toEqual([...of('first'), 'rings sync all', ...of('last')]);
    log.length = 0;
    syncDirtyLog(topology, d);
    expect(log).toEqual(['rings sync all', 'other sync d 0+1000 @0']);
    log.length = 0;
    syncDirtyLog(topology, c);
    expect(log).toEqual(['rings sync all']);
  });

  it('to clear: a part of a region, wherever that part lies', () => {
    const { a } = setUp();
    clearDirtyLog(topology, a, 0x200, 0x300);
    const cleared = (name: string) => [
      `${name} clear a 200+300 @200`,
      `${name} clear a 4200+300 @200`,
      `${name} clear a 8000+100 @400`,
    ];
    expect(log).toEqual([...cleared('first'), ...cleared('last')]);
  });

  it.each([
    [0x0, 0x400, ['0+400 @0', '4000+400 @0']],
    [0xc00, 0x4000, ['c00+400 @c00', '4c00+400 @c00']],
    [0xbff, 1, ['bff+1 @bff', '4bff+1 @bff', '87ff+1 @bff']],
    [0x100, 0, []],
    [0x1000, 0x1000, []],
  ])('to clear: from %i on %i bytes', (start, length, sections) => {
    const { a } = setUp();
    clearDirtyLog(topology, a, start, length);
    expect(log.filter((line) => line.startsWith('first'))).toEqual(
      sections.map((section) => `first clear a ${section}`),
    );
  });

  it('to clear: nothing of a region that does not log', () => {
    const { c } = setUp();
    clearDirtyLog(topology, c, 0, 0x1000);
    expect(log).toEqual([]);
  });

  it('is asked of all, though one fails', () => {
    const { a } = setUp();
    space.addListener({ priority: 1, logSync: () => expect.fail('no log') });
    log.length = 0;
    expect(() => syncDirtyLog(topology, a)).toThrow('no log');
    expect(log.length).toBe(7);
  });

  it('is asked in one way: a listener has no sync by ranges beside a sync of all', () => {
    const both = { ...logger('-', 0), ...global('-', 0) };
    expect(() => space.addListener(both)).toThrow(
      'a listener syncs its log by ranges or all at once, not both',
    );
    add('a', 0x0);
    expect(log).toEqual([]);
    space.close();
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
