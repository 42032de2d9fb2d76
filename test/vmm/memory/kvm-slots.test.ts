import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { KvmState } from '../../../src/vmm/kvm-state.ts';
import { AddressSpace } from '../../../src/vmm/memory/address-space.ts';
import { DiscardRequirements } from '../../../src/vmm/memory/discard-requirements.ts';
import { KvmSlots } from '../../../src/vmm/memory/kvm-slots.ts';
import {
  aliasRegion,
  containerRegion,
  ioRegion,
  type MemoryRegion,
  ramRegion,
  romDeviceRegion,
  romRegion,
} from '../../../src/vmm/memory/memory-region.ts';
import { MemoryTopology } from '../../../src/vmm/memory/memory-topology.ts';
import { RamList } from '../../../src/vmm/memory/ram-list.ts';
import { RecordingProcess } from '../recording-process.ts';

function setUp(capabilities: Record<number, number> = {}) {
  const process = new RecordingProcess();
  Object.assign(process.capabilities, capabilities);
  const kvm = KvmState.open(process, 1);
  const list = new RamList({ process, kvm, discards: new DiscardRequirements() });
  const topology = new MemoryTopology();
  const memory = new AddressSpace(topology, 'memory', containerRegion('system', 2 ** 52));
  const slots = new KvmSlots(kvm);
  memory.addListener(slots);
  const ram = (name: string, size: number, flags = 0): MemoryRegion =>
    ramRegion(name, size, (region) => list.alloc({ region, size, flags }));
  process.calls.length = 0;
  return { process, list, topology, memory, slots, ram };
}

const device = { maxAccessSize: 4 as const, read: () => 0, write: () => {} };
const slotCalls = (process: RecordingProcess) =>
  process.calls.filter((call) => call.startsWith('set') && !call.startsWith('setCpuid'));

describe('a region that is mapped becomes a slot', () => {
  it.each([
    ['RAM', (s: ReturnType<typeof setUp>) => s.ram('ram', 0x3000), 0x0, 'no file'],
    ['ROM: READONLY', (s: ReturnType<typeof setUp>) => romRegion(s.list, 'rom', 0x3000), 0x2, 'no file'],
  ])('%s', (_, make, flags, file) => {
    const world = setUp();
    world.memory.add(make(world), 0x10000);
    expect(slotCalls(world.process)).toEqual([
      `setUserMemoryRegion2(0x0, 0x${flags.toString(16)}, 0x10000, 0x3000, ${file}, 0x0)`,
    ]);
  });

  it('with a guest_memfd: version 2, GUEST_MEMFD alone, and the whole of it private at once', () => {
    const { process, memory, ram, slots } = setUp();
    memory.add(ram('ram', 0x200000, 0x1000), 0x40000000);
    expect(slotCalls(process)).toEqual([
      'setUserMemoryRegion2(0x0, 0x4, 0x40000000, 0x200000, guest_memfd, 0x0)',
      'setMemoryAttributes(0x40000000, 0x200000, 0x8)',
    ]);
    expect(slots.slots.map(({ flags }) => flags)).toEqual([4]);
  });

  it('through version 1 where USER_MEMORY2 is missing', () => {
    const { process, memory, ram } = setUp({ 231: 0 });
    memory.add(ram('ram', 0x2000), 0);
    expect(slotCalls(process)).toEqual(['setUserMemoryRegion(0x0, 0x0, 0x0, 0x2000)']);
  });

  it('but for I/O, whose accesses must leave the guest', () => {
    const { process, memory } = setUp();
    memory.add(ioRegion('device', 0x1000, device), 0xfee00000);
    expect(slotCalls(process)).toEqual([]);
  });

  it('with whole pages: what sticks out has no slot', () => {
    const { process, memory, ram } = setUp();
    memory.add(ram('odd', 0x3800), 0x800);
    memory.add(ram('small', 0x800), 0x10000);
    expect(slotCalls(process)).toEqual(['setUserMemoryRegion2(0x0, 0x0, 0x1000, 0x3000, no file, 0x0)']);
  });

  it('takes the lowest free slot, and gives it back when it is unmapped', () => {
    const { process, memory, ram, slots } = setUp();
    const [a, b, c] = [ram('a', 0x1000), ram('b', 0x1000), ram('c', 0x1000)];
    memory.add(a, 0);
    memory.add(b, 0x1000);
    memory.remove(a);
    expect(slotCalls(process).at(-1)).toBe('setUserMemoryRegion2(0x0, 0x0, 0x0, 0x0, no file, 0x0)');
    memory.add(c, 0x8000);
    expect(slots.slots.map(({ slot, start }) => [slot, start])).toEqual([
      [1, 0x1000],
      [0, 0x8000],
    ]);
    expect([...process.slots.keys()].sort()).toEqual([0, 1]);
  });

  it('gives it back though the RAM was freed before the change is told', () => {
    const { process, list, topology, memory, ram } = setUp();
    const region = ram('ram', 0x1000, 0x1000);
    memory.add(region, 0);
    topology.transaction(() => {
      memory.remove(region);
      list.free(region.ramBlock!);
    });
    expect(process.slots.size).toBe(0);
  });

  it('names no file where the RAM has none', () => {
    const { process, memory, ram } = setUp();
    memory.add(ram('ram', 0x4000), 0x800);
    expect([...process.slots.values()]).toMatchObject([{ guestMemfd: 0, guestMemfdOffset: 0n }]);
  });

  it('fails by name when KVM has no more', () => {
    const { memory, ram } = setUp({ 10: 1 });
    memory.add(ram('a', 0x1000), 0);
    expect(() => memory.add(ram('b', 0x1000), 0x1000)).toThrow('no free slot available for b: KVM has 1');
  });
});

describe('a slot that cannot be is fatal, and the region is not mapped', () => {
  it('when registering fails', () => {
    const { process, memory, ram, slots } = setUp();
    process.fail('setUserMemoryRegion2', 'EEXIST');
    expect(() => memory.add(ram('ram', 0x2000, 0x1000), 0)).toThrow(
      'ram: error registering slot 0 at 0x0+0x2000 flags 0x4: EEXIST',
    );
    expect(slots.slots).toEqual([]);
    expect(memory.ranges).toEqual([]);
    expect(process.of('setMemoryAttributes')).toEqual([]);
  });

  it('when it cannot be made private', () => {
    const { process, memory, ram, slots } = setUp();
    process.fail('setMemoryAttributes', 'ENOMEM');
    expect(() => memory.add(ram('ram', 0x2000, 0x1000), 0)).toThrow(
      'ram: failed to set memory attribute private for 0x0+0x2000: ENOMEM',
    );
    expect(slots.slots).toEqual([]);
    expect(process.slots.size).toBe(0);
    expect(memory.ranges).toEqual([]);
  });
});

const ops = { maxAccessSize: 4 as const, read: () => 0, write: () => {} };

describe('slots follow the flat view', () => {
  it('of an alias: where it lies, with the host memory and the guest_memfd offset of what it shows', () => {
    const { process, memory, ram } = setUp();
    memory.add(aliasRegion('high', ram('ram', 0x8000, 0x1000), 0x3000, 0x2000), 0x100000);
    const [slot] = process.slots.values();
    expect(slot).toMatchObject({ guestPhysAddr: 0x100000n, memorySize: 0x2000n, guestMemfdOffset: 0x3000n });
    expect(Number(slot!.userspaceAddr) % 0x8000).toBe(0x3000);
  });

  it('of an alias that is read-only: as the RAM is', () => {
    const { memory, topology, ram, slots } = setUp();
    const shadow = aliasRegion('shadow', ram('ram', 0x1000), 0, 0x1000);
    topology.setReadOnly(shadow, 'readonly');
    memory.add(shadow, 0);
    expect(slots.slots.map(({ flags }) => flags)).toEqual([0]);
  });

  it('with all that goes before all that comes, when a device covers a part', () => {
    const { process, memory, topology, ram } = setUp();
    memory.add(ram('ram', 0x4000, 0x1000), 0);
    process.calls.length = 0;
    const over = ioRegion('over', 0x1000, ops);
    topology.addSubregionOverlap(memory.root, 0x1000, over, 1);
    expect(slotCalls(process)).toEqual([
      'setUserMemoryRegion2(0x0, 0x0, 0x0, 0x0, no file, 0x0)',
      'setUserMemoryRegion2(0x0, 0x4, 0x0, 0x1000, guest_memfd, 0x0)',
      'setMemoryAttributes(0x0, 0x1000, 0x8)',
      'setUserMemoryRegion2(0x1, 0x4, 0x2000, 0x2000, guest_memfd, 0x2000)',
      'setMemoryAttributes(0x2000, 0x2000, 0x8)',
    ]);
    process.calls.length = 0;
    topology.setEnabled(over, 'disabled');
    expect(slotCalls(process)).toEqual([
      'setUserMemoryRegion2(0x0, 0x0, 0x0, 0x0, no file, 0x0)',
      'setUserMemoryRegion2(0x1, 0x0, 0x2000, 0x0, no file, 0x0)',
      'setUserMemoryRegion2(0x0, 0x4, 0x0, 0x4000, guest_memfd, 0x0)',
      'setMemoryAttributes(0x0, 0x4000, 0x8)',
    ]);
  });

  it('once a transaction, however many changes it has', () => {
    const { process, memory, topology, ram } = setUp();
    const region = ram('ram', 0x1000);
    topology.transaction(() => {
      memory.add(region, 0);
      topology.setAddress(region, 0x8000);
      topology.setAddress(region, 0x4000);
    });
    expect(slotCalls(process)).toEqual(['setUserMemoryRegion2(0x0, 0x0, 0x4000, 0x1000, no file, 0x0)']);
  });

  it('of a ROM device: READONLY while reads find the memory, none while they reach the device', () => {
    const { memory, topology, list, slots } = setUp();
    const flash = romDeviceRegion(list, 'flash', 0x2000, ops);
    const flags = () => slots.slots.map((slot) => slot.flags);
    memory.add(flash, 0);
    expect(flags()).toEqual([2]);
    topology.setRomd(flash, 'device');
    expect(flags()).toEqual([]);
    topology.setRomd(flash, 'memory');
    expect(flags()).toEqual([2]);
  });

  it('with LOG_DIRTY while somebody logs, set without taking the slot away', () => {
    const { process, memory, topology, ram } = setUp();
    const region = ram('ram', 0x2000);
    memory.add(region, 0);
    process.calls.length = 0;
    topology.setLog(region, 'start');
    topology.setLog(region, 'stop');
    expect(slotCalls(process)).toEqual([
      'setUserMemoryRegion2(0x0, 0x1, 0x0, 0x2000, no file, 0x0)',
      'setUserMemoryRegion2(0x0, 0x0, 0x0, 0x2000, no file, 0x0)',
    ]);
  });

  it('without LOG_DIRTY where there is no whole page to log', () => {
    const { process, topology, memory, ram, slots } = setUp();
    const crumb = ram('crumb', 0x800);
    memory.add(crumb, 0x400);
    process.calls.length = 0;
    topology.setLog(crumb, 'start');
    topology.setLog(crumb, 'stop');
    expect([slotCalls(process), slots.slots]).toEqual([[], []]);
  });

  it('of all that was there before it came', () => {
    const world = setUp();
    world.memory.removeListener(world.slots);
    world.memory.add(world.ram('ram', 0x2000), 0);
    expect(world.process.slots.size).toBe(0);
    world.memory.addListener(world.slots);
    expect(world.process.slots.size).toBe(1);
    world.memory.removeListener(world.slots);
    expect(world.process.slots.size).toBe(0);
  });

  it('registers the others when one fails, and throws the first error', () => {
    const { process, memory, topology, ram } = setUp();
    process.fail('setUserMemoryRegion2', 'ENOMEM');
    const add = () =>
      topology.transaction(() => {
        memory.add(ram('a', 0x1000), 0);
        memory.add(ram('b', 0x1000), 0x4000);
      });
    expect(add).toThrow('a: error registering slot 0 at 0x0+0x1000 flags 0x0: ENOMEM');
    expect([...process.slots.values()].map(({ guestPhysAddr }) => guestPhysAddr)).toEqual([0x4000n]);
  });

  it('throws the first of two errors', () => {
    const { process, memory, topology, ram } = setUp();
    process.fail('setUserMemoryRegion2', 'ENOMEM');
    process.fail('setMemoryAttributes', 'EINVAL');
    const add = () =>
      topology.transaction(() => {
        memory.add(ram('a', 0x1000), 0);
        memory.add(ram('b', 0x1000, 0x1000), 0x4000);
      });
    expect(add).toThrow('a: error registering slot 0');
    expect(process.slots.size).toBe(0);
  });

  it('with the guest_memfd offset of its first whole page', () => {
    const { process, memory, ram } = setUp();
    memory.add(ram('odd', 0x4000, 0x1000), 0x800);
    expect([...process.slots.values()]).toMatchObject([
      { guestPhysAddr: 0x1000n, memorySize: 0x3000n, guestMemfdOffset: 0x800n },
    ]);
  });

  it('after any changes: each whole page of RAM in a range has its slot and no other page has one (property)', () => {
    const half = 0x800;
    const step = fc.record({
      what: fc.constantFrom('move', 'move', 'enabled', 'size', 'rom', 'flash'),
      index: fc.nat(5),
      at: fc.nat(60),
      size: fc.nat(24),
    });
    fc.assert(
      fc.property(fc.array(fc.array(step, { minLength: 1, maxLength: 4 }), { maxLength: 8 }), (history) => {
        const { process, memory, topology, list, slots, ram } = setUp();
        const flash = romDeviceRegion(list, 'flash', 0x6000, ops);
        const [a, b] = [ram('a', 0x8000), ram('b', 0x4000)];
        const regions = [a, aliasRegion('alias', b, 0x1000, 0x3000), flash, ioRegion('io', 0x1800, ops), b];
        regions.forEach((region, i) => {
          topology.addSubregionOverlap(memory.root, i * 5 * half, region, i % 2);
        });
        for (const changes of history) {
          topology.transaction(() => {
            for (const { what, index, at, size } of changes) {
              const region = regions[index % regions.length]!;
              if (what === 'move') topology.setAddress(region, at * half);
              else if (what === 'enabled') topology.setEnabled(region, at % 3 === 0 ? 'disabled' : 'enabled');
              else if (what === 'size') topology.setSize(region, Math.min(size, 8) * half);
              else if (what === 'rom')
                topology.setReadOnly(region.alias ?? region, at % 2 === 0 ? 'readonly' : 'writable');
              else topology.setRomd(flash, at % 2 === 0 ? 'device' : 'memory');
            }
          });
          const pages = new Map<number, string>();
          for (const { flags, guestPhysAddr, memorySize, userspaceAddr } of process.slots.values()) {
            for (let at = 0; at < Number(memorySize); at += 0x1000) {
              const page = Number(guestPhysAddr) + at;
              expect(pages.has(page)).toBe(false);
              pages.set(page, `${Number(userspaceAddr) + at} ${flags}`);
            }
          }
          const expected = new Map<number, string>();
          for (const { region, start, size, offsetInRegion } of memory.ranges) {
            const memoryThere = region.kind === 'ram' || (region === flash && flash.romdMode);
            for (let page = 0; memoryThere && page < start + size; page += 0x1000) {
              if (page < start || page + 0x1000 > start + size) continue;
              const host = region.ramBlock!.host! + offsetInRegion + page - start;
              expected.set(page, `${host} ${region.readOnly || region === flash ? 2 : 0}`);
            }
          }
          expect(new Map([...pages].sort())).toEqual(new Map([...expected].sort()));
          expect(slots.slots.length).toBe(process.slots.size);
        }
      }),
      { numRuns: 150 },
    );
  });
});
