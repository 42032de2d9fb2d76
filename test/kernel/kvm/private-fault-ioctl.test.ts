/** The private fault table, entered by ioctls: slots, files and attributes as a VMM sets them, and KVM_RUN of a guest that faults. */
import { afterEach, describe, expect, it } from 'vitest';
import type { GuestMemfd } from '../../../src/kernel/kvm/guest-memfd.ts';
import type { InvalidationChecks } from '../../../src/kernel/kvm/mmu/guest-memory.ts';
import { Vcpu } from '../../../src/kernel/kvm/vcpu.ts';
import { HLT, nestedFault, type ScriptedCore } from './vcpu-bench.ts';
import { type KernelForm, VmBench } from './vm-bench.ts';

let bench: VmBench;
afterEach(() => bench.close());

const GPA = 0x20_0000;
const READ = nestedFault(GPA + 0x123, 4);
const WRITE = nestedFault(GPA + 0x123, 6);
const KEEP_SIZE_PUNCH = 3;

const fault = () => {
  const { kvmRun } = bench.vcpu;
  return [kvmRun.exitReason, kvmRun.memoryFaultFlags, kvmRun.memoryFaultGpa, kvmRun.memoryFaultSize];
};
const PRIVATE_FAULT = [39, 8n, 0x20_0000n, 4096n];

const FORMS: [string, KernelForm][] = [
  ['7.2', { kernel: '7.2' }],
  ['6.12', { kernel: '6.12' }],
  ['6.12 with the early form', { kernel: '6.12', early: ['private-fault'] }],
];

describe.each(FORMS)('a software-protected VM on %s', (_name, form) => {
  const start = (): VmBench => (bench = new VmBench(form, 1));

  it('a private gfn in a slot with a file is backed by the file', () => {
    start();
    const { fd, hva } = bench.addSlot({ gpa: GPA, pages: 16, flags: 4 });
    bench.setPrivate(GPA, 16);
    expect(bench.run(WRITE, HLT)).toBe(0);
    const mapping = bench.mapped(GPA)!;
    expect(mapping).toMatchObject({ level: 1, writable: true });
    bench.memory.store32((mapping.pfn * 4096) as never, 0x5ec4e7);
    const shared = new Uint8Array(4);
    bench.process.memory.read(hva as never, shared);
    expect([...shared]).toEqual([0, 0, 0, 0]);
    bench.process.fallocate(fd, KEEP_SIZE_PUNCH, 0n, 0x1000n);
    expect(bench.mapped(GPA)).toBeUndefined();
    expect(bench.run(READ, HLT)).toBe(0);
    expect(bench.memory.load32((bench.mapped(GPA)!.pfn * 4096) as never)).toBe(0);
  });

  it('a shared gfn of the same slot is backed by the process’s memory', () => {
    start();
    const { hva } = bench.addSlot({ gpa: GPA, pages: 16, flags: 4 });
    bench.process.memory.write(hva as never, Uint8Array.of(0x11, 0x22, 0x33, 0x44));
    expect(bench.run(READ, HLT)).toBe(0);
    expect(bench.memory.load32((bench.mapped(GPA)!.pfn * 4096) as never)).toBe(0x44332211);
  });

  it('a private gfn without a slot: −EFAULT, exit 39', () => {
    start();
    bench.setPrivate(GPA, 1);
    expect(bench.run(READ)).toBe(-14);
    expect(fault()).toEqual(PRIVATE_FAULT);
  });

  it('a private gfn whose slot was deleted: −EFAULT, exit 39; with a new slot the guest goes on', () => {
    start();
    bench.addSlot({ gpa: GPA, pages: 16, flags: 4 });
    bench.setPrivate(GPA, 16);
    expect(bench.run(READ, HLT)).toBe(0);
    bench.deleteSlot();
    expect(bench.mapped(GPA)).toBeUndefined();
    expect(bench.run(READ)).toBe(-14);
    expect(fault()).toEqual(PRIVATE_FAULT);
    bench.addSlot({ gpa: GPA, pages: 16, flags: 4 });
    expect(bench.run(READ, HLT)).toBe(0);
  });

  it('a private gfn in a slot without a file: −EFAULT, exit 39', () => {
    start();
    bench.addSlot({ gpa: GPA, pages: 16, flags: 0 });
    bench.setPrivate(GPA, 1);
    expect(bench.run(WRITE)).toBe(-14);
    expect(fault()).toEqual(PRIVATE_FAULT);
    bench.setPrivate(GPA, 1, 0n);
    expect(bench.run(WRITE, HLT)).toBe(0);
  });

  it('a private gfn whose file is closed: −EFAULT, exit 39', () => {
    start();
    const { fd } = bench.addSlot({ gpa: GPA, pages: 16, flags: 4 });
    bench.setPrivate(GPA, 16);
    expect(bench.run(READ, HLT)).toBe(0);
    bench.process.close(fd);
    expect(bench.mapped(GPA)).toBeUndefined();
    expect(bench.run(READ)).toBe(-14);
    expect(fault()).toEqual(PRIVATE_FAULT);
  });

  it('a shared gfn without a slot is MMIO', () => {
    start();
    const { core } = bench.vcpu;
    (core as (typeof bench.cores)[0]).emulation = (_core, bus) => {
      bus.write(GPA as never, Uint8Array.of(1, 2));
      return 'done';
    };
    expect(bench.run(WRITE)).toBe(0);
    const { kvmRun } = bench.vcpu;
    expect([kvmRun.exitReason, kvmRun.mmioPhysAddr, kvmRun.mmioLen, kvmRun.mmioIsWrite]).toEqual([
      6,
      0x20_0000n,
      2,
      1,
    ]);
  });

  it('a shared gfn whose host address is not mapped: −EFAULT without an exit', () => {
    start();
    const { hva } = bench.addSlot({ gpa: GPA, pages: 16, flags: 0 });
    expect(bench.run(READ, HLT)).toBe(0);
    bench.process.memory.munmap(hva as never, 0x1000);
    expect(bench.mapped(GPA)).toBeUndefined();
    bench.vcpu.kvmRun.exitReason = 39;
    expect(bench.run(READ)).toBe(-14);
    expect(bench.vcpu.kvmRun.exitReason).toBe(0);
  });

  it('a conversion takes the old mapping away, and the next access finds the other side', () => {
    start();
    const { hva } = bench.addSlot({ gpa: GPA, pages: 16, flags: 4 });
    expect(bench.run(WRITE, HLT)).toBe(0);
    const shared = bench.mapped(GPA)!.pfn;
    bench.setPrivate(GPA, 1);
    expect(bench.mapped(GPA)).toBeUndefined();
    expect(bench.run(WRITE, HLT)).toBe(0);
    expect(bench.mapped(GPA)!.pfn).not.toBe(shared);
    bench.setPrivate(GPA, 1, 0n);
    expect(bench.run(READ, HLT)).toBe(0);
    expect(bench.mapped(GPA)!.pfn).toBe(shared);
    bench.process.memory.madvise(hva as never, 0x1000, 4);
    expect(bench.mapped(GPA)).toBeUndefined();
  });

  it('runs out of host memory with −ENOMEM and an exit that names the page', () => {
    start();
    bench.addSlot({ gpa: GPA, pages: 16, flags: 4 });
    bench.setPrivate(GPA, 16);
    // The second fault finds its tables, so frames for the next ones stay in reserve.
    expect(bench.run(READ, nestedFault(GPA + 0x2000, 6), HLT)).toBe(0);
    const hog = bench.memory.owner('hog');
    const taken: number[] = [];
    for (let frame = bench.memory.allocate(0, hog); frame >= 0; frame = bench.memory.allocate(0, hog))
      taken.push(frame);
    expect(bench.run(nestedFault(GPA + 0x1000, 6))).toBe(-12);
    expect(fault()).toEqual([39, 8n, 0x20_1000n, 4096n]);
    for (const frame of taken) bench.memory.free(frame as never, 0);
    expect(bench.run(nestedFault(GPA + 0x1000, 6), HLT)).toBe(0);
  });
});

describe('a page that comes later', () => {
  /** A VM whose file gets page 0 from elsewhere, and the vCPU that faults on it. */
  function start(checks?: InvalidationChecks): { vcpu: Vcpu; deliver: () => Promise<void> } {
    bench = new VmBench({ kernel: '7.2' }, 1);
    const { fd } = bench.addSlot({ gpa: GPA, pages: 16, flags: 4 });
    bench.setPrivate(GPA, 16);
    let resolve = (_bytes: Uint8Array): void => {};
    const arrival = new Promise<Uint8Array>((settle) => {
      resolve = settle;
    });
    (bench.process.files.get(fd).operations as GuestMemfd).fillWith((index) =>
      index === 0 ? arrival : undefined,
    );
    const vcpu = checks === undefined ? bench.vcpu : new Vcpu(bench.vm, 1, checks);
    const script = (vcpu.core as ScriptedCore).script;
    script.push(READ);
    expect(vcpu.run()).toBe(1);
    return {
      vcpu,
      deliver: async () => {
        resolve(new Uint8Array(4096).fill(0x5a));
        await vcpu.pending;
      },
    };
  }

  it('is mapped with its content', async () => {
    const { vcpu, deliver } = start();
    await deliver();
    expect(bench.run(HLT)).toBe(0);
    expect(vcpu.kvmRun.exitReason).toBe(5);
    expect(bench.memory.load32((bench.mapped(GPA)!.pfn * 4096) as never)).toBe(0x5a5a5a5a);
  });

  it('lets another vCPU run meanwhile', () => {
    start();
    const other = bench.vm.createVcpu(1);
    (other.core as ScriptedCore).script.push(nestedFault(GPA + 0x1000, 6), HLT);
    expect(other.run()).toBe(0);
    expect(other.kvmRun.exitReason).toBe(5);
    expect(bench.mapped(GPA + 0x1000)).toBeDefined();
  });

  it('is not mapped when the gfn was made shared meanwhile: the fault starts again', async () => {
    const { deliver } = start();
    bench.setPrivate(GPA, 1, 0n);
    await deliver();
    expect(bench.run(READ, HLT)).toBe(0);
    expect(bench.memory.load32((bench.mapped(GPA)!.pfn * 4096) as never)).toBe(0);
  });

  it('without the check under the lock would be mapped where the guest has shared memory now', async () => {
    const { vcpu, deliver } = start({
      snapshot: () => 0,
      retryGfn: () => false,
      retryGfnUnsafe: () => false,
    });
    bench.setPrivate(GPA, 1, 0n);
    await deliver();
    (vcpu.core as ScriptedCore).script.push(HLT);
    expect(vcpu.run()).toBe(0);
    expect(bench.vm.attributes.isPrivate((GPA / 4096) as never)).toBe(false);
    expect(bench.memory.load32((bench.mapped(GPA)!.pfn * 4096) as never)).toBe(0x5a5a5a5a);
    vcpu.close();
  });
});

describe('2 MiB folios', () => {
  it('are mapped whole until one page of them becomes shared', () => {
    bench = new VmBench({ kernel: '7.2' }, 1, { gmemHuge: true });
    bench.addSlot({ gpa: 0x40_0000, pages: 1024, flags: 4 });
    bench.setPrivate(0x40_0000, 1024);
    const at = (gpa: number) => nestedFault(gpa, 6);
    expect(bench.run(at(0x40_5000), at(0x60_0000), HLT)).toBe(0);
    expect(bench.mapped(0x47_0000)).toMatchObject({ level: 2 });
    bench.setPrivate(0x41_0000, 1, 0n);
    expect(bench.mapped(0x40_5000)).toBeUndefined();
    expect(bench.mapped(0x60_0000)).toMatchObject({ level: 2 });
    expect(bench.run(at(0x40_5000), at(0x41_0000), HLT)).toBe(0);
    expect(bench.mapped(0x40_5000)).toMatchObject({ level: 1 });
    bench.setPrivate(0x41_0000, 1);
    expect(bench.run(at(0x40_5000), HLT)).toBe(0);
    expect(bench.mapped(0x47_0000)).toMatchObject({ level: 2 });
  });
});

describe('a default VM', () => {
  it('has shared memory alone', () => {
    bench = new VmBench({ kernel: '7.2' }, 0);
    bench.addSlot({ gpa: GPA, pages: 16, flags: 0 });
    expect(bench.run(WRITE, HLT)).toBe(0);
    expect(bench.mapped(GPA)).toMatchObject({ writable: true });
  });

  it('on 7.2 gets its shared memory from a file that can be mapped', () => {
    bench = new VmBench({ kernel: '7.2' }, 0);
    bench.addSlot({ gpa: GPA, pages: 16, flags: 4, gmemFlags: 3n });
    expect(bench.run(WRITE, HLT)).toBe(0);
    expect(bench.memory.usage().get('guest_memfd')).toBe(1);
  });

  it('writes to a read-only slot are MMIO, reads are not', () => {
    bench = new VmBench({ kernel: '7.2' }, 0);
    bench.addSlot({ gpa: GPA, pages: 16, flags: 2 });
    expect(bench.run(READ, HLT)).toBe(0);
    expect(bench.mapped(GPA)).toMatchObject({ writable: false });
    (bench.vcpu.core as (typeof bench.cores)[0]).emulation = (_core, bus) => {
      bus.write((GPA + 8) as never, Uint8Array.of(7));
      return 'done';
    };
    expect(bench.run(WRITE)).toBe(0);
    expect([bench.vcpu.kvmRun.exitReason, bench.vcpu.kvmRun.mmioPhysAddr]).toEqual([6, 0x20_0008n]);
  });
});
