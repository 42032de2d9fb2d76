/** The same RAM blocks, slots and conversions as in the files beside, on this house's own kernel: what its frames and attributes say. */
import { afterEach, describe, expect, it } from 'vitest';
import { type Gfn, gfn, hva } from '../../../src/base/address.ts';
import { Trace } from '../../../src/base/trace.ts';
import { HostMemory } from '../../../src/hardware/memory/host-memory.ts';
import { HostTime } from '../../../src/kernel/kvm/host-time.ts';
import { Kvm } from '../../../src/kernel/kvm/kvm.ts';
import { kvmPolicy, type Personality } from '../../../src/kernel/kvm/policy.ts';
import type { Vm } from '../../../src/kernel/kvm/vm.ts';
import { Process } from '../../../src/kernel/process.ts';
import { anonymousBackend } from '../../../src/vmm/backends/anonymous.ts';
import { fileBackend } from '../../../src/vmm/backends/file.ts';
import { memfdBackend } from '../../../src/vmm/backends/memfd.ts';
import { KvmState } from '../../../src/vmm/kvm-state.ts';
import { AddressSpace } from '../../../src/vmm/memory/address-space.ts';
import { convertMemory } from '../../../src/vmm/memory/convert-memory.ts';
import { DiscardRequirements } from '../../../src/vmm/memory/discard-requirements.ts';
import { KvmSlots } from '../../../src/vmm/memory/kvm-slots.ts';
import {
  aliasRegion,
  containerRegion,
  ioRegion,
  type MemoryRegion,
  ramPointer,
} from '../../../src/vmm/memory/memory-region.ts';
import { MemoryTopology } from '../../../src/vmm/memory/memory-topology.ts';
import { RamList } from '../../../src/vmm/memory/ram-list.ts';

const SIZE = 0x100000;
const KEEP_SIZE = 1;

class World {
  readonly memory = HostMemory.create({ bytes: 16 * 1024 * 1024, trace: new Trace() });
  readonly process: Process;
  readonly kvm: KvmState;
  readonly discards = new DiscardRequirements();
  readonly list: RamList;
  readonly topology = new MemoryTopology();
  readonly systemMemory = new AddressSpace(this.topology, 'memory', containerRegion('system', 2 ** 52));
  readonly slots: KvmSlots;
  readonly reports: string[] = [];

  constructor(options: { type?: number; kernel?: Personality; fileLimit?: number } = {}) {
    const host = {
      memory: this.memory,
      trace: new Trace(),
      policy: kvmPolicy(options.kernel ?? '7.2'),
      timeslice: 0,
      time: new HostTime(),
      gmemHuge: false,
      sev: undefined,
      createCore: () => {
        throw new Error('no guest runs here');
      },
    };
    this.process = new Process({
      memory: this.memory,
      openDevice: (opener) => new Kvm(host, opener),
      ...(options.fileLimit === undefined ? {} : { fileLimit: options.fileLimit }),
    });
    this.kvm = KvmState.open(this.process, options.type ?? 1);
    this.list = new RamList({ process: this.process, kvm: this.kvm, discards: this.discards });
    this.slots = new KvmSlots(this.kvm);
    this.systemMemory.addListener(this.slots);
  }

  get context() {
    return {
      kvm: this.kvm,
      process: this.process,
      systemMemory: this.systemMemory,
      report: (message: string) => this.reports.push(message),
    };
  }

  /** 1 MiB of RAM at 0 with a guest_memfd. */
  addRam(backend: 'anonymous' | 'memfd' | 'file'): MemoryRegion {
    const context = { process: this.process, ramList: this.list };
    const options = {
      name: 'pc.ram',
      size: SIZE,
      sharing: backend === 'anonymous' ? ('private' as const) : ('shared' as const),
      guestMemfd: 'required' as const,
    };
    const region =
      backend === 'anonymous'
        ? anonymousBackend(context, options)
        : backend === 'memfd'
          ? memfdBackend(context, options)
          : fileBackend(context, { ...options, path: '/ram' });
    this.systemMemory.add(region, 0);
    return region;
  }

  isPrivate(page: Gfn): boolean {
    return (this.kvm.vm as Vm).attributes.isPrivate(page);
  }

  get frames(): number {
    return [...this.memory.usage().values()].reduce((sum, frames) => sum + frames, 0);
  }

  close(): void {
    this.process.exit();
    this.memory.close();
  }
}

let world: World;
afterEach(() => world.close());

describe.each(['7.2', '6.12'] as const)('on Linux %s', (kernel) => {
  describe.each(['anonymous', 'memfd', 'file'] as const)('RAM from %s memory', (backend) => {
    it('is private from registration on, and holds no frame', () => {
      world = new World({ kernel });
      const before = world.frames;
      world.addRam(backend);
      expect([0, 100, 255].map((page) => world.isPrivate(gfn(page)))).toEqual([true, true, true]);
      expect(world.isPrivate(gfn(256))).toBe(false);
      expect(world.frames).toBe(before);
    });

    it('gives back the side that a conversion leaves', () => {
      world = new World({ kernel });
      const region = world.addRam(backend);
      const block = region.ramBlock!;
      const empty = world.frames;
      world.process.fallocate(block.guestMemfd, KEEP_SIZE, 0x2000n, 0x4000n);
      expect(world.frames).toBe(empty + 4);

      expect(convertMemory(world.context, 0x3000, 0x2000, 'shared')).toEqual({ result: 0, outcome: 'done' });
      expect(world.frames).toBe(empty + 2);
      expect([2, 3, 4, 5].map((page) => world.isPrivate(gfn(page)))).toEqual([true, false, false, true]);

      world.process.memory.write(ramPointer(region, 0x3000), new Uint8Array(0x2000).fill(0x5a));
      const written = world.frames;
      expect(convertMemory(world.context, 0x3000, 0x1000, 'private')).toEqual({ result: 0, outcome: 'done' });
      expect(world.frames).toBe(written - 1);
      expect(world.isPrivate(gfn(3))).toBe(true);
      const bytes = new Uint8Array(0x2000);
      world.process.memory.read(ramPointer(region, 0x3000), bytes);
      expect([bytes[0], bytes[0xfff], bytes[0x1000]]).toEqual([0, 0, 0x5a]);
    });

    it('is gone without a trace when it is unmapped and freed', () => {
      world = new World({ kernel });
      const before = world.memory.usage();
      const region = world.addRam(backend);
      world.process.fallocate(region.ramBlock!.guestMemfd, KEEP_SIZE, 0n, 0x4000n);
      convertMemory(world.context, 0x1000, 0x1000, 'shared');
      world.process.memory.write(ramPointer(region, 0x1000), Uint8Array.of(1));
      const host = region.ramBlock!.host!;
      world.systemMemory.remove(region);
      world.list.free(region.ramBlock!);
      expect(() => world.process.memory.read(host, new Uint8Array(1))).toThrow('EFAULT');
      expect(world.discards.coordinatedRequired).toBe(0);
      // A named file keeps its pages until it is removed.
      if (backend === 'file') world.process.unlink('/ram');
      expect(world.memory.usage().get('process vmm')).toBe(before.get('process vmm'));
      expect([...world.memory.usage().keys()].filter((owner) => owner.includes('gmem'))).toEqual([]);
    });
  });
});

it.each([
  ['a hole to private', 0x200000, 0x1000, 'private', -22, 'refused'],
  ['a hole to shared', 0x200000, 0x1000, 'shared', 0, 'ignored'],
  ['a part of a page', 0x1000, 0x10, 'shared', -22, 'refused'],
  ['beyond the end of RAM', 0xff000, 0x2000, 'shared', 0, 'done'],
] as const)('converts %s by the table', (_, start, size, to, result, outcome) => {
  world = new World();
  world.addRam('anonymous');
  expect(convertMemory(world.context, start, size, to)).toEqual({ result, outcome });
  expect(world.isPrivate(gfn(256))).toBe(false);
});

it('a window in private RAM splits its slot, and joins it again when it closes', () => {
  world = new World();
  const { topology, systemMemory, slots } = world;
  const ram = world.addRam('anonymous');
  const ops = { maxAccessSize: 4 as const, read: () => 0, write: () => {} };
  const window = ioRegion('window', 0x2000, ops);
  const layout = () => slots.slots.map(({ start, size }) => [start, size]).sort(([a], [b]) => a! - b!);

  topology.addSubregionOverlap(systemMemory.root, 0x8000, window, 1);
  expect(layout()).toEqual([
    [0, 0x8000],
    [0xa000, 0xf6000],
  ]);
  // The part behind the window still has its own pages of the guest_memfd, and of host memory.
  const used = world.frames;
  world.process.fallocate(ram.ramBlock!.guestMemfd, KEEP_SIZE, 0xb000n, 0x1000n);
  expect(convertMemory(world.context, 0x8000, 0x4000, 'shared').outcome).toBe('ignored');
  expect(convertMemory(world.context, 0xb000, 0x1000, 'shared').outcome).toBe('done');
  expect(world.frames).toBe(used);
  expect([10, 11, 12].map((page) => world.isPrivate(gfn(page)))).toEqual([true, false, true]);

  topology.setEnabled(window, 'disabled');
  expect(layout()).toEqual([[0, SIZE]]);
  // KVM lets each page of a guest_memfd lie at one address.
  expect(() => systemMemory.add(aliasRegion('again', ram, 0x80000, 0x10000), 0x1000000)).toThrow('EEXIST');
  expect(layout()).toEqual([[0, SIZE]]);
  expect(systemMemory.find(0x1000000, 0x10000)).toBe(undefined);
});

describe('a block with a guest_memfd that the kernel refuses leaves nothing behind', () => {
  it.each([
    ['no VM type with private memory', { type: 0 }, 'KVM does not support guest_memfd'],
    // Taken: 0 to 2, /dev/kvm, the VM.
    ['no file descriptor left', { fileLimit: 5 }, 'Error creating KVM guest_memfd: EMFILE'],
  ])('%s', (_, options, message) => {
    world = new World({ kernel: '6.12', ...options });
    const before = world.frames;
    const host: number[] = [];
    const { memory } = world.process;
    const mmap = memory.mmap.bind(memory);
    memory.mmap = (request) => {
      const at = mmap(request);
      host.push(at);
      return at;
    };
    expect(() => world.list.alloc({ region: { name: 'pc.ram' }, size: SIZE, flags: 0x1000 })).toThrow(
      message,
    );
    expect(host.length).toBe(1);
    expect(() => memory.read(hva(host[0]!), new Uint8Array(1))).toThrow('EFAULT');
    expect([world.list.locked, world.list.blocks, world.discards.coordinatedRequired]).toEqual([
      false,
      [],
      0,
    ]);
    expect(world.frames).toBe(before);
  });

  it('a slot that overlaps another: EEXIST, and the region can be mapped elsewhere', () => {
    world = new World();
    const { vm } = world.kvm;
    const other = world.process.memory.mmap({ length: 0x1000, protection: 3, flags: 0x22 });
    vm.setUserMemoryRegion({
      slot: 9,
      flags: 0,
      guestPhysAddr: 0x8000n,
      memorySize: 0x1000n,
      userspaceAddr: BigInt(other),
    });
    const context = { process: world.process, ramList: world.list };
    const region = anonymousBackend(context, {
      name: 'pc.ram',
      size: SIZE,
      sharing: 'private',
      guestMemfd: 'required',
    });
    expect(() => world.systemMemory.add(region, 0)).toThrow(
      'pc.ram: error registering slot 0 at 0x0+0x100000 flags 0x4: EEXIST',
    );
    expect(world.isPrivate(gfn(0))).toBe(false);
    world.systemMemory.add(region, 0x1000000);
    expect(world.isPrivate(gfn(0x1000))).toBe(true);
  });
});
