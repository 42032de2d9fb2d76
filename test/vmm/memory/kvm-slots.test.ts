import { describe, expect, it } from 'vitest';
import { KvmState } from '../../../src/vmm/kvm-state.ts';
import { AddressSpace } from '../../../src/vmm/memory/address-space.ts';
import { DiscardRequirements } from '../../../src/vmm/memory/discard-requirements.ts';
import { KvmSlots } from '../../../src/vmm/memory/kvm-slots.ts';
import {
  containerRegion,
  ioRegion,
  type MemoryRegion,
  ramRegion,
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

describe('an address space', () => {
  it('is a list of ranges in ascending order', () => {
    const { memory, ram } = setUp();
    memory.add(ram('high', 0x1000), 0x100000);
    memory.add(ioRegion('device', 0x100, device), 0x8000);
    memory.add(ram('low', 0x2000), 0);
    expect(memory.ranges.map(({ region, start, size }) => [region.name, start, size])).toEqual([
      ['low', 0, 0x2000],
      ['device', 0x8000, 0x100],
      ['high', 0x100000, 0x1000],
    ]);
  });

  it.each([
    ['inside', 0x2000, 0x1000, ['ram', 0x2000, 0x1000, 0x1000]],
    ['from below: the part in the region', 0x0, 0x2000, ['ram', 0x1000, 0x1000, 0x0]],
    ['beyond the end: the part in the region', 0x4000, 0x4000, ['ram', 0x4000, 0x1000, 0x3000]],
    ['around it', 0x0, 0x100000, ['ram', 0x1000, 0x4000, 0x0]],
    ['in a hole', 0x5000, 0x1000, undefined],
    ['before it', 0x0, 0x1000, undefined],
  ] as const)('finds a region %s', (_, start, size, expected) => {
    const { memory, ram } = setUp();
    memory.add(ram('ram', 0x4000), 0x1000);
    memory.add(ioRegion('far', 0x1000, device), 0x200000);
    const section = memory.find(start, size);
    expect(section && [section.region.name, section.start, section.size, section.offsetInRegion]).toEqual(
      expected,
    );
  });
});
