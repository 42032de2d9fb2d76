/** Bindings of a guest_memfd, many of them as well, and a failure in one of its folios: asked as a fault asks (kvm_gmem_get_pfn). */
import fc from 'fast-check';
import { afterEach, describe, expect, it } from 'vitest';
import type { Gfn, Pfn } from '../../../src/base/address.ts';
import { GmemBindings } from '../../../src/kernel/kvm/gmem-bindings.ts';
import type { GuestMemfd } from '../../../src/kernel/kvm/guest-memfd.ts';
import { createKernel, type Kernel, type KernelOptions } from '../../../src/kernel/kvm/index.ts';
import type { MemorySlot } from '../../../src/kernel/kvm/memory-slots.ts';
import type { Vm } from '../../../src/kernel/kvm/vm.ts';
import type { Process } from '../../../src/kernel/process.ts';

const EHWPOISON = -133;

let kernel: Kernel;
let process: Process;
let vm: Vm;
let fd: number;
let file: GuestMemfd;
const answer = { pfn: 0 as Pfn, order: 0, writable: false, pending: undefined as Promise<void> | undefined };

/** A software-protected VM whose slot 0, at 0, binds a file of 4 MiB. */
function start(options: KernelOptions = {}): void {
  kernel = createKernel({ memory: 32 * 1024 * 1024, ...options });
  process = kernel.newProcess();
  vm = process.openKvm().createVm(1) as Vm;
  fd = vm.createGuestMemfd({ size: 0x40_0000n, flags: 0n });
  vm.setUserMemoryRegion2({
    slot: 0,
    flags: 4,
    guestPhysAddr: 0n,
    memorySize: 0x40_0000n,
    userspaceAddr: 0n,
    guestMemfdOffset: 0n,
    guestMemfd: fd,
  });
  file = process.files.get(fd).operations as GuestMemfd;
}

afterEach(() => {
  process.exit();
  expect(kernel.memory.leaks()).toEqual([]);
  kernel.close();
});

const getPfn = (gfn: number): number => vm.gmemGetPfn(vm.slots.find(gfn as Gfn)!, gfn as Gfn, answer);

describe('a memory failure', () => {
  it('in a 2 MiB folio poisons its page alone, and the neighbours are mapped by themselves', () => {
    start({ gmemHuge: true });
    expect(getPfn(0)).toBe(0);
    expect(answer.order).toBe(9);
    file.failPage(5);
    expect(getPfn(5)).toBe(EHWPOISON);
    expect(getPfn(4)).toBe(0);
    expect(answer.order).toBe(0);
    expect(file.frames).toEqual({ all: 512, huge: 0 });
  });
});

describe('a file', () => {
  it('has no page for a slot that binds another file: −EIO', () => {
    start();
    const other = process.files.get(vm.createGuestMemfd({ size: 0x40_0000n, flags: 0n }));
    const slot = vm.slots.find(0 as Gfn)!;
    expect((other.operations as GuestMemfd).getPfn(slot, 0 as Gfn, answer)).toBe(-5);
    expect(file.getPfn(slot, 0 as Gfn, answer)).toBe(0);
  });
});

describe('a file of nearly 2^63 bytes', () => {
  it('has different pages at its far ends, for fallocate and for slots', () => {
    start();
    const far = vm.createGuestMemfd({ size: 0x7fff_ffff_ffff_f000n, flags: 0n });
    const frames = (): number => (process.files.get(far).operations as GuestMemfd).frames.all;
    process.fallocate(far, 1, 0x1000_0000_0000_0000n, 0x1000n);
    process.fallocate(far, 1, 0x4000_0000_0000_0000n, 0x1000n);
    expect(frames()).toBe(2);
    vm.setUserMemoryRegion2({
      slot: 1,
      flags: 4,
      guestPhysAddr: 0x40_0000n,
      memorySize: 0x2000n,
      userspaceAddr: 0n,
      guestMemfdOffset: 0x4000_0000_0000_0000n,
      guestMemfd: far,
    });
    expect(getPfn(0x400)).toBe(0);
    expect(frames()).toBe(2);
    process.fallocate(far, 3, 0x1000_0000_0000_0000n, 0x1000n);
    expect(frames()).toBe(1);
    process.fallocate(far, 3, 0x4000_0000_0000_0000n, 0x2000n);
    expect(frames()).toBe(0);
  });
});

describe('pages of one file in many slots', () => {
  it('are found as in a list, whatever comes and goes', () => {
    start();
    const request = fc.record({
      first: fc.nat(40),
      pages: fc.integer({ min: 1, max: 8 }),
      remove: fc.boolean(),
    });
    fc.assert(
      fc.property(fc.array(request, { maxLength: 40 }), fc.nat(48), fc.nat(10), (requests, first, length) => {
        const bindings = new GmemBindings();
        let model: MemorySlot[] = [];
        for (const { first: gmemPgoff, pages: npages, remove } of requests) {
          const hit = model.filter(
            (s) => s.gmemPgoff < gmemPgoff + npages && s.gmemPgoff + s.npages > gmemPgoff,
          );
          if (hit.length === 0) {
            const slot = { gmemPgoff, npages } as MemorySlot;
            bindings.add(slot);
            model.push(slot);
          } else if (remove) {
            bindings.remove(hit[0]!);
            model = model.filter((slot) => slot !== hit[0]);
          }
        }
        const holds = (slot: MemorySlot, index: number): boolean =>
          index >= slot.gmemPgoff && index < slot.gmemPgoff + slot.npages;
        for (let index = 0; index < 50; index++)
          expect(bindings.at(index)).toBe(model.find((slot) => holds(slot, index)));
        const end = first + length;
        const meet = model.filter((s) => s.gmemPgoff < end && s.gmemPgoff + s.npages > first && length > 0);
        const got = length > 0 ? bindings.within(first, end) : [];
        expect(got).toEqual(meet.sort((a, b) => a.gmemPgoff - b.gmemPgoff));
      }),
    );
  });

  it('of a page each: all 32764 slots bind, close and leave nothing', () => {
    start();
    const pages = vm.createGuestMemfd({ size: 32764n * 4096n, flags: 0n });
    for (let slot = 1; slot < 32764; slot++) {
      vm.setUserMemoryRegion2({
        slot,
        flags: 4,
        guestPhysAddr: 0x40_0000n + BigInt(slot) * 4096n,
        memorySize: 4096n,
        userspaceAddr: 0n,
        guestMemfdOffset: BigInt(slot) * 4096n,
        guestMemfd: pages,
      });
    }
    expect(getPfn(0x400 + 32763)).toBe(0);
    process.close(pages);
    expect(getPfn(0x400 + 32763)).toBe(-14);
  });
});
