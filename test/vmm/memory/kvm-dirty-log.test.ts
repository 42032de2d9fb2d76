/** How the VMM harvests KVM's dirty log, by bitmap and by ring, of a guest that writes for real; the pages are counted by hand. */
import { afterEach, describe, expect, it } from 'vitest';
import { LinuxError } from '../../../src/base/errors.ts';
import type { KvmVcpu } from '../../../src/kernel/interface.ts';
import { createKernel, type Kernel } from '../../../src/kernel/kvm/index.ts';
import { anonymousBackend } from '../../../src/vmm/backends/anonymous.ts';
import { KvmState } from '../../../src/vmm/kvm-state.ts';
import { AddressSpace } from '../../../src/vmm/memory/address-space.ts';
import { clearDirtyLog, syncDirtyLog } from '../../../src/vmm/memory/dirty-log-sync.ts';
import { DiscardRequirements } from '../../../src/vmm/memory/discard-requirements.ts';
import { KvmDirtyLog } from '../../../src/vmm/memory/kvm-dirty-log.ts';
import { KvmSlots } from '../../../src/vmm/memory/kvm-slots.ts';
import { containerRegion, type MemoryRegion, ramPointer } from '../../../src/vmm/memory/memory-region.ts';
import { MemoryTopology } from '../../../src/vmm/memory/memory-topology.ts';
import { RamDirtyPages } from '../../../src/vmm/memory/ram-dirty-pages.ts';
import { RamList } from '../../../src/vmm/memory/ram-list.ts';

/** 256 pages at 0. */
const SIZE = 0x100000;

class LoggedMachine {
  readonly kernel: Kernel = createKernel({ memory: 16 << 20 });
  readonly kvm: KvmState;
  readonly topology = new MemoryTopology();
  readonly space = new AddressSpace(this.topology, 'memory', containerRegion('system', 2 ** 52));
  readonly ram = new RamDirtyPages();
  readonly log: KvmDirtyLog;
  readonly region: MemoryRegion;
  readonly vcpus: KvmVcpu[] = [];

  constructor(ringEntries: number, size = SIZE) {
    const process = this.kernel.newProcess();
    this.kvm = KvmState.open(process, 0);
    this.log = new KvmDirtyLog({ kvm: this.kvm, ram: this.ram, ringEntries, vcpus: () => this.vcpus });
    this.space.addListener(new KvmSlots(this.kvm, this.log));
    const list = new RamList({ process, kvm: this.kvm, discards: new DiscardRequirements() });
    const options = { name: 'pc.ram', size, sharing: 'private', guestMemfd: 'none' } as const;
    this.region = anonymousBackend({ process, ramList: list }, options as never);
    this.space.add(this.region, 0);
    // mov [di], al; hlt
    process.memory.write(ramPointer(this.region, 0x1000), Uint8Array.of(0x88, 0x05, 0xf4));
    const vcpu = this.kvm.vm.createVcpu(0);
    const sregs = vcpu.getSregs();
    const flat = (base: bigint) => ({ base, selector: Number(base >> 4n) });
    vcpu.setSregs({ ...sregs, cs: { ...sregs.cs, ...flat(0n) }, ds: { ...sregs.ds, ...flat(0x10000n) } });
    this.vcpus.push(vcpu);
  }

  /** The guest writes to each page, which is one of 16 to 31. */
  write(...pages: number[]): void {
    const [vcpu] = this.vcpus;
    for (const page of pages) {
      vcpu!.setRegs({ ...vcpu!.getRegs(), rip: 0x1000n, rdi: BigInt((page - 16) * 4096) });
      expect([vcpu!.run(), vcpu!.kvmRun.exitReason]).toEqual([0, 5]);
    }
  }

  /** Pages that are dirty since they were taken last. */
  harvest(): number[] {
    syncDirtyLog(this.topology);
    return this.ram.takeDirty(this.region.ramBlock!);
  }

  close(): void {
    this.kernel.close();
  }
}

let machine: LoggedMachine;
afterEach(() => machine.close());

describe.each([
  ['bitmaps', 0],
  ['rings of 1024', 1024],
] as const)('with %s, the VMM', (_, entries) => {
  it('finds nothing of RAM whose region does not log', () => {
    machine = new LoggedMachine(entries);
    machine.write(16, 17);
    expect(machine.harvest()).toEqual([]);
  });

  it('finds exactly the pages written since logging began', () => {
    machine = new LoggedMachine(entries);
    machine.write(16, 17);
    machine.topology.setLog(machine.region, 'start');
    machine.harvest();
    clearDirtyLog(machine.topology, machine.region, 0, SIZE);
    machine.write(18, 31, 20, 18);
    expect(machine.harvest()).toEqual([18, 20, 31]);
  });

  it('keeps what was written to RAM that is taken away', () => {
    machine = new LoggedMachine(entries);
    machine.topology.setLog(machine.region, 'start');
    machine.harvest();
    clearDirtyLog(machine.topology, machine.region, 0, SIZE);
    machine.write(18, 31);
    machine.space.remove(machine.region);
    expect(machine.ram.takeDirty(machine.region.ramBlock!)).toEqual([18, 31]);
  });

  it('finds nothing any more when logging has stopped', () => {
    machine = new LoggedMachine(entries);
    machine.topology.setLog(machine.region, 'start');
    machine.topology.setLog(machine.region, 'stop');
    machine.write(18);
    expect(machine.harvest()).toEqual([]);
  });
});

describe('with bitmaps, the VMM', () => {
  it('finds all pages at first (initially all set), and a page again and again until it is cleared', () => {
    machine = new LoggedMachine(0);
    machine.topology.setLog(machine.region, 'start');
    expect(machine.harvest()).toHaveLength(256);
    clearDirtyLog(machine.topology, machine.region, 0, SIZE);
    machine.write(18);
    expect(machine.harvest()).toEqual([18]);
    expect(machine.harvest()).toEqual([18]);
    clearDirtyLog(machine.topology, machine.region, 18 * 4096, 4096);
    expect(machine.harvest()).toEqual([]);
    machine.write(18);
    expect(machine.harvest()).toEqual([18]);
  });

  it('clears no page beside the range, though KVM takes 64 at a time', () => {
    machine = new LoggedMachine(0);
    machine.topology.setLog(machine.region, 'start');
    machine.harvest();
    clearDirtyLog(machine.topology, machine.region, 17 * 4096, 3 * 4096);
    const left = machine.harvest();
    expect(left).toHaveLength(253);
    expect(left).toEqual(expect.not.arrayContaining([17]));
    expect([16, 17, 18, 19, 20].filter((page) => left.includes(page))).toEqual([16, 20]);
  });

  it('asks KVM to clear nothing of a slot that only touches what is cleared', () => {
    machine = new LoggedMachine(0);
    const { log, region, kvm, ram } = machine;
    machine.topology.setLog(region, 'start');
    const slots = new KvmSlots(kvm, log);
    machine.space.addListener(slots);
    expect(ram.takeDirty(region.ramBlock!)).toEqual([]);
    const cleared: unknown[] = [];
    kvm.vm.clearDirtyLog = (request) => cleared.push(request);
    const [range] = machine.space.ranges;
    slots.logClear?.({ ...range!, start: SIZE, size: 0x1000 });
    expect(cleared).toEqual([]);
    slots.logClear?.({ ...range!, start: SIZE - 0x1000, size: 0x2000 });
    expect(cleared).toHaveLength(1);
  });

  it('neither asks for nor clears what a slot logged that does not log', () => {
    machine = new LoggedMachine(0);
    const cleared: unknown[] = [];
    machine.kvm.vm.clearDirtyLog = (request) => cleared.push(request);
    const { region, ram } = machine;
    const slot = { slot: 0, start: 0, size: SIZE, flags: 0, region, offsetInRegion: 0 };
    machine.log.clear(slot, 0, 1);
    expect(cleared).toEqual([]);
    machine.log.sync(slot);
    expect(ram.takeDirty(region.ramBlock!)).toEqual([]);
  });

  it('finds nothing where the kernel has no bitmap of the slot, and clears what it knew itself', () => {
    machine = new LoggedMachine(0);
    machine.topology.setLog(machine.region, 'start');
    machine.harvest();
    const { vm } = machine.kvm;
    const none = (): never => {
      throw new LinuxError('ENOENT', 'no bitmap');
    };
    Object.assign(vm, { getDirtyLog: none, clearDirtyLog: none });
    expect(() => clearDirtyLog(machine.topology, machine.region, 0, SIZE)).not.toThrow();
    expect(machine.harvest()).toEqual([]);
  });

  it.each([
    ['KVM_GET_DIRTY_LOG of slot 0: EINVAL: no', new LinuxError('EINVAL', 'no')],
    ['not KVM’s', Object.assign(new Error('not KVM’s'), { code: 'ENOENT' })],
  ])('is told when a harvest fails: %s', (message, error) => {
    machine = new LoggedMachine(0);
    machine.topology.setLog(machine.region, 'start');
    machine.kvm.vm.getDirtyLog = () => {
      throw error;
    };
    expect(() => syncDirtyLog(machine.topology)).toThrow(message);
  });

  it.each([
    ['KVM_CLEAR_DIRTY_LOG of slot 0, pages 0 to 256: EINVAL: no', new LinuxError('EINVAL', 'no')],
    ['not KVM’s', Object.assign(new Error('not KVM’s'), { code: 'ENOENT' })],
  ])('is told when clearing fails: %s', (message, error) => {
    machine = new LoggedMachine(0);
    machine.topology.setLog(machine.region, 'start');
    machine.kvm.vm.clearDirtyLog = () => {
      throw error;
    };
    expect(() => clearDirtyLog(machine.topology, machine.region, 0, SIZE)).toThrow(message);
  });

  it('forgets what a slot logged that is gone: the next of its number may be larger', () => {
    machine = new LoggedMachine(0);
    const { log, region, kvm } = machine;
    const slot = { slot: 5, start: 0, size: 0x40000, flags: 1, region, offsetInRegion: 0 };
    const words: number[] = [];
    kvm.vm.getDirtyLog = ({ bitmap }) => {
      words.push(bitmap.length);
      return 0;
    };
    for (const size of [0x40000, SIZE]) {
      log.slotChanged({ ...slot, size }, true);
      log.sync({ ...slot, size });
      log.slotChanged({ ...slot, size }, false);
      log.sync({ ...slot, size });
    }
    expect(words).toEqual([2, 8]);
  });

  it('has no rings to reap', () => {
    machine = new LoggedMachine(0);
    machine.write(16);
    expect(machine.log.reap()).toBe(0);
  });

  it('asks KVM to clear nothing for a range that only touches the RAM', () => {
    machine = new LoggedMachine(0);
    machine.topology.setLog(machine.region, 'start');
    machine.harvest();
    const cleared: unknown[] = [];
    machine.kvm.vm.clearDirtyLog = (request) => cleared.push(request);
    clearDirtyLog(machine.topology, machine.region, SIZE, 0x1000);
    expect(cleared).toEqual([]);
  });
});

describe('with rings, the VMM', () => {
  it('reaps a ring over its end, and goes on after it was full', () => {
    machine = new LoggedMachine(256);
    machine.topology.setLog(machine.region, 'start');
    for (let round = 0; round < 40; round++) {
      machine.write(16, 17, 18, 19, 20, 21, 22, 23);
      expect(machine.harvest()).toEqual([16, 17, 18, 19, 20, 21, 22, 23]);
      expect(machine.harvest()).toEqual([]);
    }
  });

  it('says how many entries it reaped, and keeps them until they are asked for', () => {
    machine = new LoggedMachine(1024);
    machine.topology.setLog(machine.region, 'start');
    machine.write(18, 19);
    expect(machine.log.reap()).toBe(2);
    machine.write(25);
    expect(machine.log.reap()).toBe(1);
    expect(machine.harvest()).toEqual([18, 19, 25]);
  });

  it('asks KVM to take entries back where there were some, and only there', () => {
    machine = new LoggedMachine(1024);
    machine.topology.setLog(machine.region, 'start');
    const { vm } = machine.kvm;
    const reset = vm.resetDirtyRings.bind(vm);
    let calls = 0;
    vm.resetDirtyRings = () => {
      calls++;
      return reset();
    };
    expect([machine.log.reap(), calls]).toEqual([0, 0]);
    machine.write(18);
    expect([machine.log.reap(), calls]).toEqual([1, 1]);
  });

  it('reaps entries of a slot that logs no more, or of a page that it does not have, for nothing', () => {
    machine = new LoggedMachine(1024, 250 * 4096);
    machine.topology.setLog(machine.region, 'start');
    machine.write(18);
    machine.vcpus[0]!.dirtyRing![2] = 250;
    expect(machine.harvest()).toEqual([]);
    machine.write(19);
    machine.topology.setLog(machine.region, 'stop');
    expect(machine.log.reap()).toBe(1);
    expect(machine.harvest()).toEqual([]);
  });

  it('leaves rings alone when a slot goes that does not log', () => {
    machine = new LoggedMachine(1024);
    machine.topology.setLog(machine.region, 'start');
    machine.write(18);
    const { region } = machine;
    machine.log.syncLast({ slot: 1, start: SIZE, size: SIZE, flags: 0, region, offsetInRegion: 0 });
    expect(machine.log.reap()).toBe(1);
  });

  it('takes the largest ring that KVM has', () => {
    machine = new LoggedMachine(65536);
    expect(machine.vcpus[0]!.dirtyRing).toHaveLength(4 * 65536);
  });

  it('turns on rings, and no clearing by hand, which bitmaps have', () => {
    machine = new LoggedMachine(0);
    const { kvm, ram } = machine;
    const caps: number[] = [];
    kvm.vm.enableCap = ({ cap }) => {
      caps.push(cap);
      return 0;
    };
    new KvmDirtyLog({ kvm, ram, ringEntries: 1024 });
    new KvmDirtyLog({ kvm, ram });
    expect(caps).toEqual([223, 168]);
  });

  it('takes bitmaps instead where KVM has no rings', () => {
    machine = new LoggedMachine(0);
    const { kvm, ram } = machine;
    const { checkExtension } = kvm.vm;
    kvm.vm.checkExtension = (cap) => (cap === 223 ? 0 : checkExtension.call(kvm.vm, cap));
    const log = new KvmDirtyLog({ kvm, ram, ringEntries: 1024 });
    const { region } = machine;
    const slot = { slot: 0, start: 0, size: SIZE, flags: 1, region, offsetInRegion: 0 };
    machine.topology.setLog(region, 'start');
    log.slotChanged(slot, true);
    log.sync(slot);
    expect(ram.takeDirty(region.ramBlock!)).toHaveLength(256);
  });

  it('is told when a ring is larger than KVM takes', () => {
    machine = new LoggedMachine(1024);
    const { kvm, ram } = machine;
    expect(() => new KvmDirtyLog({ kvm, ram, ringEntries: 131072 })).toThrow(
      'KVM dirty ring size 131072 too big (maximum is 65536). Please use a smaller value.',
    );
  });
});
