/** KVM_PRE_FAULT_MEMORY: its rules (reference facts 1.8) and what it maps. */
import { afterEach, describe, expect, it } from 'vitest';
import type { GuestMemfd } from '../../../src/kernel/kvm/guest-memfd.ts';
import { errnoOf } from '../process-fixture.ts';
import { SnpVm } from './snp-bench.ts';
import { HLT, nestedFault, VcpuBench } from './vcpu-bench.ts';
import { VmBench } from './vm-bench.ts';

const closers: (() => void)[] = [];
afterEach(() => {
  for (const close of closers.splice(0)) close();
});

function vmBench(kernel: '6.12' | '7.2' = '7.2', type = 1, options: { gmemHuge?: boolean } = {}): VmBench {
  const bench = new VmBench({ kernel }, type, options);
  closers.push(() => bench.close());
  return bench;
}

const GPA = 0x20_0000;

describe.each(['6.12', '7.2'] as const)('KVM_PRE_FAULT_MEMORY on %s', (kernel) => {
  it('is announced by capability 236, on /dev/kvm and on a VM', () => {
    const bench = vmBench(kernel);
    expect([bench.kvm.checkExtension(236), bench.vm.checkExtension(236)]).toEqual([1, 1]);
  });

  it.each([
    ['flags 1', { gpa: 0x20_0000n, size: 0x1000n, flags: 1n }, 22],
    ['gpa not page-aligned', { gpa: 0x20_0001n, size: 0x1000n, flags: 0n }, 22],
    ['size not page-aligned', { gpa: 0x20_0000n, size: 0x800n, flags: 0n }, 22],
    ['size 0', { gpa: 0x20_0000n, size: 0n, flags: 0n }, 22],
    ['a range that ends at 2^64', { gpa: 0xffff_ffff_ffff_f000n, size: 0x1000n, flags: 0n }, 22],
    ['a range that wraps around', { gpa: 0xffff_ffff_ffff_f000n, size: 0x2000n, flags: 0n }, 22],
    ['flags 1 where there is no slot', { gpa: 0x80_0000n, size: 0x1000n, flags: 1n }, 22],
    ['no slot', { gpa: 0x80_0000n, size: 0x1000n, flags: 0n }, 2],
    ['the page before a slot', { gpa: 0x1f_f000n, size: 0x2000n, flags: 0n }, 2],
    ['a gpa beyond all that can be addressed', { gpa: 0xffff_ffff_ffff_e000n, size: 0x1000n, flags: 0n }, 2],
    ['all of it in a slot', { gpa: 0x20_0000n, size: 0x1_0000n, flags: 0n }, 0],
  ])('%s', (_, range, errno) => {
    const bench = vmBench(kernel);
    bench.addSlot({ gpa: GPA, pages: 16, flags: 0 });
    expect(errnoOf(() => bench.vcpu.preFaultMemory(range))).toBe(errno);
  });

  it('maps shared pages, and the guest faults on none of them', () => {
    const bench = vmBench(kernel);
    const { hva } = bench.addSlot({ gpa: GPA, pages: 16, flags: 0 });
    bench.process.memory.write((hva + 0x3000) as never, Uint8Array.of(0x5a));
    const left = bench.vcpu.preFaultMemory({ gpa: 0x20_0000n, size: 0x1_0000n, flags: 0n });
    expect(left).toEqual({ gpa: 0x21_0000n, size: 0n });
    for (let page = 0; page < 16; page++) expect(bench.mapped(GPA + page * 4096)).toMatchObject({ level: 1 });
    const { pfn } = bench.mapped(GPA + 0x3000)!;
    expect(bench.memory.load32((pfn * 4096) as never)).toBe(0x5a);
  });

  it('takes each page from where its attribute says, private or shared', () => {
    const bench = vmBench(kernel);
    const { fd } = bench.addSlot({ gpa: GPA, pages: 4, flags: 4 });
    bench.setPrivate(GPA + 0x1000, 2);
    bench.vcpu.preFaultMemory({ gpa: 0x20_0000n, size: 0x4000n, flags: 0n });
    const owners = [0, 1, 2, 3].map((page) => {
      const { pfn } = bench.mapped(GPA + page * 4096)!;
      return bench.memory.ownerOf(pfn as never)!.name === 'guest_memfd' ? 'file' : 'process';
    });
    expect(owners).toEqual(['process', 'file', 'file', 'process']);
    expect((bench.vm.openFile(fd).operations as GuestMemfd).frames.all).toBe(2);
  });

  it('says what is left where the slot ends, and finds nothing more there', () => {
    const bench = vmBench(kernel);
    bench.addSlot({ gpa: GPA, pages: 4, flags: 0 });
    const left = bench.vcpu.preFaultMemory({ gpa: 0x20_2000n, size: 0x5000n, flags: 0n });
    expect(left).toEqual({ gpa: 0x20_4000n, size: 0x3000n });
    expect(errnoOf(() => bench.vcpu.preFaultMemory({ ...left, flags: 0n }))).toBe(2);
  });

  it('of pages that are mapped already is a success', () => {
    const bench = vmBench(kernel);
    bench.addSlot({ gpa: GPA, pages: 4, flags: 0 });
    expect(bench.run(nestedFault(GPA, 6), HLT)).toBe(0);
    expect(bench.mapped(GPA)!.writable).toBe(true);
    bench.vcpu.preFaultMemory({ gpa: 0x20_0000n, size: 0x4000n, flags: 0n });
    expect(bench.mapped(GPA)!.writable).toBe(true);
  });

  it('private without a file behind it is EFAULT; without a slot as well', () => {
    const bench = vmBench(kernel);
    bench.addSlot({ gpa: GPA, pages: 4, flags: 0 });
    bench.setPrivate(GPA, 1);
    bench.setPrivate(0x80_0000, 1);
    expect(errnoOf(() => bench.vcpu.preFaultMemory({ gpa: 0x20_0000n, size: 0x1000n, flags: 0n }))).toBe(14);
    expect(errnoOf(() => bench.vcpu.preFaultMemory({ gpa: 0x80_0000n, size: 0x1000n, flags: 0n }))).toBe(14);
  });

  it('of a poisoned private page is EHWPOISON; one before it makes it a success with the rest left', () => {
    const bench = vmBench(kernel);
    const { fd } = bench.addSlot({ gpa: GPA, pages: 4, flags: 4 });
    bench.setPrivate(GPA, 4);
    bench.vcpu.preFaultMemory({ gpa: 0x20_0000n, size: 0x4000n, flags: 0n });
    (bench.vm.openFile(fd).operations as GuestMemfd).failPage(2);
    expect(errnoOf(() => bench.vcpu.preFaultMemory({ gpa: 0x20_2000n, size: 0x1000n, flags: 0n }))).toBe(133);
    expect(bench.vcpu.preFaultMemory({ gpa: 0x20_1000n, size: 0x3000n, flags: 0n })).toEqual({
      gpa: 0x20_2000n,
      size: 0x2000n,
    });
  });

  it('of memory that the process does not have is EFAULT', () => {
    const bench = vmBench(kernel);
    const { hva } = bench.addSlot({ gpa: GPA, pages: 4, flags: 0 });
    bench.process.memory.munmap(hva as never, 0x1000);
    expect(errnoOf(() => bench.vcpu.preFaultMemory({ gpa: 0x20_0000n, size: 0x1000n, flags: 0n }))).toBe(14);
  });

  it('counts a folio of 2 MiB as far as it reaches', () => {
    const bench = vmBench(kernel, 1, { gmemHuge: true });
    const pages = 1024;
    const hva = bench.process.memory.mmap({
      length: pages * 4096,
      protection: 3,
      flags: 0x32,
      address: 0x4000_0000 as never,
    });
    const fd = bench.vm.createGuestMemfd({ size: BigInt(pages * 4096), flags: 0n });
    bench.vm.setUserMemoryRegion2({
      slot: 0,
      flags: 4,
      guestPhysAddr: 0x40_0000n,
      memorySize: BigInt(pages * 4096),
      userspaceAddr: BigInt(hva),
      guestMemfdOffset: 0n,
      guestMemfd: fd,
    });
    bench.setPrivate(0x40_0000, pages);
    const left = bench.vcpu.preFaultMemory({ gpa: 0x40_1000n, size: 0x10_0000n, flags: 0n });
    expect(left).toEqual({ gpa: 0x50_1000n, size: 0n });
    expect(bench.vm.mmu.stats).toMatchObject({ mapped4K: 0, mapped2M: 1 });
    expect(bench.mapped(0x40_0000)).toMatchObject({ level: 2 });
  });
});

describe('KVM_PRE_FAULT_MEMORY in somebody’s way', () => {
  it.each([
    ['7.2', 11],
    ['6.12', 4],
  ] as const)('a slot that is being deleted: on %s errno %i', (kernel, errno) => {
    const bench = new VcpuBench(kernel);
    closers.push(() => bench.close());
    bench.addSlot({ flags: 0, invalid: true });
    expect(errnoOf(() => bench.vcpu.preFaultMemory({ gpa: 0x10_0000n, size: 0x1000n, flags: 0n }))).toBe(
      errno,
    );
  });

  it('an SNP guest that is not launched yet: EOPNOTSUPP, for its pages are still measured', () => {
    const range = { gpa: 0x1000n, size: 0x1000n, flags: 0n };
    const snp = new SnpVm().init().start();
    expect(errnoOf(() => snp.vcpu.preFaultMemory(range))).toBe(95);
    snp.update();
    snp.finish();
    expect(snp.vcpu.preFaultMemory(range)).toEqual({ gpa: 0x2000n, size: 0n });
  });

  it('a poisoned page of the process: EHWPOISON; one before it makes it a success with the rest left', () => {
    const bench = new VcpuBench('7.2');
    closers.push(() => bench.close());
    bench.addSlot({ flags: 0 });
    bench.shared = (hva, _, into) => {
      bench.give(`hva ${hva}`, into);
      return bench.calls.length > 1 ? -133 : 0;
    };
    const left = bench.vcpu.preFaultMemory({ gpa: 0x10_0000n, size: 0x3000n, flags: 0n });
    expect(left).toEqual({ gpa: 0x10_1000n, size: 0x2000n });
    expect(errnoOf(() => bench.vcpu.preFaultMemory({ ...left, flags: 0n }))).toBe(133);
  });

  it('an invalidation that does not end: EINTR, and nothing is mapped', () => {
    const bench = new VcpuBench('7.2');
    closers.push(() => bench.close());
    bench.addSlot({ flags: 0 });
    bench.invalidation.begin(0x100, 0x110);
    expect(errnoOf(() => bench.vcpu.preFaultMemory({ gpa: 0x10_0000n, size: 0x1000n, flags: 0n }))).toBe(4);
    expect(bench.mmu.lookup(0x100 as never)).toBeUndefined();
  });

  it('a page whose content is on its way: EAGAIN, and afterwards it is there', async () => {
    const bench = vmBench();
    const { fd } = bench.addSlot({ gpa: GPA, pages: 4, flags: 4 });
    bench.setPrivate(GPA, 4);
    let arrive = (_: Uint8Array): void => {};
    const content = new Promise<Uint8Array>((resolve) => {
      arrive = resolve;
    });
    (bench.vm.openFile(fd).operations as GuestMemfd).fillWith(() => content);
    const range = { gpa: 0x20_0000n, size: 0x1000n, flags: 0n };
    expect(errnoOf(() => bench.vcpu.preFaultMemory(range))).toBe(11);
    arrive(new Uint8Array(4096).fill(7));
    await content;
    await Promise.resolve();
    expect(bench.vcpu.preFaultMemory(range)).toEqual({ gpa: 0x20_1000n, size: 0n });
    expect(bench.memory.load32((bench.mapped(GPA)!.pfn * 4096) as never)).toBe(0x07070707);
  });

  it('leaves a fault of the guest that waits for its page as it is', async () => {
    const bench = vmBench();
    const { fd } = bench.addSlot({ gpa: GPA, pages: 4, flags: 4 });
    bench.setPrivate(GPA, 4);
    let arrive = (_: Uint8Array): void => {};
    const content = new Promise<Uint8Array>((resolve) => {
      arrive = resolve;
    });
    const file = bench.vm.openFile(fd).operations as GuestMemfd;
    file.fillWith((index) => (index === 0 ? content : undefined));
    expect(bench.run(nestedFault(GPA, 6))).toBe(1);
    bench.vcpu.preFaultMemory({ gpa: 0x20_2000n, size: 0x1000n, flags: 0n });
    arrive(new Uint8Array(4096).fill(9));
    await bench.vcpu.pending;
    expect(bench.run(HLT)).toBe(0);
    expect(bench.memory.load32((bench.mapped(GPA)!.pfn * 4096) as never)).toBe(0x09090909);
  });
});
