import { describe, expect, it } from 'vitest';
import { KvmState } from '../../../src/vmm/kvm-state.ts';
import { AddressSpace } from '../../../src/vmm/memory/address-space.ts';
import { convertMemory } from '../../../src/vmm/memory/convert-memory.ts';
import { DiscardRequirements } from '../../../src/vmm/memory/discard-requirements.ts';
import { KvmSlots } from '../../../src/vmm/memory/kvm-slots.ts';
import {
  aliasRegion,
  containerRegion,
  ioRegion,
  ramRegion,
  romDeviceRegion,
  romRegion,
} from '../../../src/vmm/memory/memory-region.ts';
import { MemoryTopology } from '../../../src/vmm/memory/memory-topology.ts';
import { RamList } from '../../../src/vmm/memory/ram-list.ts';
import { RecordingProcess } from '../recording-process.ts';

/**
 * Private RAM [0, 4M), plain RAM [8M, +64K), ROM [9M, +64K), a device [10M, +4K), flash [11M, +64K) and [12M, +64K) (its
 * reads reach the device), huge-page RAM [16M, +4M), and pages 16 to 31 of other private RAM [32M, +64K), over which a device lies
 * at [32M+32K, +4K).
 */
function setUp() {
  const process = new RecordingProcess();
  const kvm = KvmState.open(process, 1);
  const list = new RamList({ process, kvm, discards: new DiscardRequirements() });
  const topology = new MemoryTopology();
  const systemMemory = new AddressSpace(topology, 'memory', containerRegion('system', 2 ** 52));
  systemMemory.addListener(new KvmSlots(kvm));
  const ram = ramRegion('pc.ram', 0x400000, (region) =>
    list.alloc({ region, size: 0x400000, flags: 0x1000 }),
  );
  const huge = ramRegion('huge', 0x400000, (region) =>
    list.allocFromFd({
      region,
      size: 0x400000,
      flags: 0x1002,
      fd: process.memfdCreate('huge'),
      pageSize: 0x200000,
    }),
  );
  systemMemory.add(ram, 0);
  systemMemory.add(
    ramRegion('plain', 0x10000, (region) => list.alloc({ region, size: 0x10000, flags: 0 })),
    0x800000,
  );
  systemMemory.add(romRegion(list, 'rom', 0x10000), 0x900000);
  const ops = { maxAccessSize: 4 as const, read: () => 0, write: () => {} };
  systemMemory.add(ioRegion('device', 0x1000, ops), 0xa00000);
  systemMemory.add(romDeviceRegion(list, 'flash', 0x10000, ops), 0xb00000);
  const programmed = romDeviceRegion(list, 'programmed', 0x10000, ops);
  topology.setRomd(programmed, 'device');
  systemMemory.add(programmed, 0xc00000);
  systemMemory.add(huge, 0x1000000);
  const split = ramRegion('split', 0x20000, (region) => list.alloc({ region, size: 0x20000, flags: 0x1000 }));
  systemMemory.add(aliasRegion('split-high', split, 0x10000, 0x10000), 0x2000000);
  topology.addSubregionOverlap(systemMemory.root, 0x2008000, ioRegion('over', 0x1000, ops), 1);
  process.calls.length = 0;
  const reports: string[] = [];
  const context = { kvm, process, systemMemory, report: (message: string) => reports.push(message) };
  return { process, context, reports, ram, attributes: ram.ramBlock!.attributes! };
}

describe('kvm_convert_memory, row by row', () => {
  const rows: [string, number, number, 'private' | 'shared', number, string, string[]][] = [
    ['1: a start within a page', 0x800, 0x1000, 'private', -22, 'refused', []],
    ['1: a size within a page', 0x0, 0x800, 'shared', -22, 'refused', []],
    ['1: no size', 0x0, 0x0, 'shared', -22, 'refused', []],
    ['2: a hole to shared is nothing to do', 0x700000, 0x1000, 'shared', 0, 'ignored', []],
    ['2: a hole to private', 0x700000, 0x1000, 'private', -22, 'refused', []],
    ['3: a device to shared is nothing to do', 0xa00000, 0x1000, 'shared', 0, 'ignored', []],
    ['3: a device to private', 0xa00000, 0x1000, 'private', -22, 'refused', []],
    ['3: plain RAM to shared', 0x800000, 0x1000, 'shared', -22, 'refused', []],
    ['3: plain RAM to private', 0x800000, 0x1000, 'private', -22, 'refused', []],
    ['3: flash to shared', 0xb00000, 0x1000, 'shared', -22, 'refused', []],
    ['3: flash that is programmed is a device', 0xc00000, 0x1000, 'shared', 0, 'ignored', []],
    ['3: ROM to shared', 0x900000, 0x1000, 'shared', -22, 'refused', []],
    [
      '4, 5, 7: private to shared punches the guest_memfd',
      0x3000,
      0x2000,
      'shared',
      0,
      'done',
      ['setMemoryAttributes(0x3000, 0x2000, 0x0)', 'fallocate(guest_memfd, 0x3, 0x3000, 0x2000)'],
    ],
    [
      '4, 5, 6: to private discards the shared side',
      0x3000,
      0x2000,
      'private',
      0,
      'done',
      ['setMemoryAttributes(0x3000, 0x2000, 0x8)', 'madvise(0x3000, 0x2000, 0x4)'],
    ],
    [
      '6: to private keeps huge pages',
      0x1000000,
      0x200000,
      'private',
      0,
      'done',
      ['setMemoryAttributes(0x1000000, 0x200000, 0x8)'],
    ],
    [
      '7: huge pages to shared are punched by the page',
      0x1001000,
      0x1000,
      'shared',
      0,
      'done',
      ['setMemoryAttributes(0x1001000, 0x1000, 0x0)', 'fallocate(guest_memfd, 0x3, 0x1000, 0x1000)'],
    ],
    [
      'a range that leaves its region: the part in the region alone',
      0x3ff000,
      0x3000,
      'shared',
      0,
      'done',
      ['setMemoryAttributes(0x3ff000, 0x1000, 0x0)', 'fallocate(guest_memfd, 0x3, 0x3ff000, 0x1000)'],
    ],
    [
      'through an alias: the attributes where it lies, the discard where its pages are',
      0x2001000,
      0x2000,
      'shared',
      0,
      'done',
      ['setMemoryAttributes(0x2001000, 0x2000, 0x0)', 'fallocate(guest_memfd, 0x3, 0x11000, 0x2000)'],
    ],
    [
      'a range that a device of higher priority cuts: the part before it',
      0x2006000,
      0x8000,
      'shared',
      0,
      'done',
      ['setMemoryAttributes(0x2006000, 0x2000, 0x0)', 'fallocate(guest_memfd, 0x3, 0x16000, 0x2000)'],
    ],
    ['a range that starts on that device', 0x2008000, 0x4000, 'shared', 0, 'ignored', []],
  ];
  it.each(rows)('%s', (_, start, size, to, result, outcome, calls) => {
    const { process, context, reports } = setUp();
    expect(convertMemory(context, start, size, to)).toEqual({ result, outcome });
    expect(process.calls).toEqual(calls);
    expect(reports.length).toBe(outcome === 'refused' ? 1 : 0);
  });

  it('4: an error of KVM_SET_MEMORY_ATTRIBUTES is the result, and nothing is discarded', () => {
    const { process, context, reports, attributes } = setUp();
    process.fail('setMemoryAttributes', 'ENOMEM');
    expect(convertMemory(context, 0, 0x1000, 'shared')).toEqual({ result: -12, outcome: 'failed' });
    expect(process.of('fallocate')).toEqual([]);
    expect(attributes.populatedPages).toBe(0);
    expect(reports).toEqual(['conversion of 0x0+0x1000 to shared: KVM_SET_MEMORY_ATTRIBUTES failed: ENOMEM']);
  });

  it('5: a listener that cannot populate is the result, and nothing is punched', () => {
    const { process, context, attributes } = setUp();
    attributes.registerListener({
      offset: 0,
      size: 0x400000,
      notifyPopulate: () => -28,
      notifyDiscard: () => {},
    });
    expect(convertMemory(context, 0, 0x1000, 'shared')).toEqual({ result: -28, outcome: 'failed' });
    expect(process.of('fallocate')).toEqual([]);
  });

  it('6: an error of the discard is the result', () => {
    const { process, context } = setUp();
    process.fail('madvise', 'EINVAL');
    expect(convertMemory(context, 0, 0x1000, 'private')).toEqual({ result: -22, outcome: 'failed' });
  });

  it('7: an error of the punch is the result', () => {
    const { process, context } = setUp();
    process.fail('fallocate', 'EINTR');
    expect(convertMemory(context, 0, 0x1000, 'shared')).toEqual({ result: -4, outcome: 'failed' });
  });

  it('keeps the picture of what is shared, and counts a page out and back twice', () => {
    const { context, attributes } = setUp();
    convertMemory(context, 0x1000, 0x3000, 'shared');
    convertMemory(context, 0x2000, 0x1000, 'shared');
    expect([attributes.populatedPages, attributes.changedPages]).toEqual([3, 3]);
    convertMemory(context, 0x0, 0x8000, 'private');
    expect([attributes.populatedPages, attributes.changedPages]).toEqual([0, 6]);
  });
});
