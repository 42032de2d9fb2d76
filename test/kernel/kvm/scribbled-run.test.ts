/** What user space writes over an exit in kvm_run, beside the data that it was asked for, does not count (vcpu->arch.pio, mmio_fragments). */
import { expect, it } from 'vitest';
import { createKernel, type KvmVcpu } from '../../../src/kernel/kvm/index.ts';

/** A vCPU in real mode with `code` at 0, 64 KiB of memory, and DS where there is none. */
function boot(code: number[]): KvmVcpu {
  const kernel = createKernel({ memory: 4 << 20 });
  const process = kernel.newProcess();
  const vm = process.openKvm().createVm(0);
  const at = process.memory.mmap({ length: 0x10000, protection: 3, flags: 0x22 });
  const slot = { slot: 0, flags: 0, guestPhysAddr: 0n, memorySize: 0x10000n, userspaceAddr: BigInt(at) };
  vm.setUserMemoryRegion(slot);
  process.memory.write(at, Uint8Array.from(code));
  const vcpu = vm.createVcpu(0);
  const sregs = vcpu.getSregs();
  vcpu.setSregs({
    ...sregs,
    cs: { ...sregs.cs, base: 0n, selector: 0 },
    ds: { ...sregs.ds, base: 0x20000n, selector: 0x2000 },
  });
  vcpu.setRegs({ ...vcpu.getRegs(), rip: 0n, rax: 0n });
  return vcpu;
}

it('the size, count and offset of a port read', () => {
  // in ax, 0x60; hlt
  const vcpu = boot([0xe5, 0x60, 0xf4]);
  expect([vcpu.run(), vcpu.kvmRun.exitReason]).toEqual([0, 2]);
  const { kvmRun } = vcpu;
  kvmRun.pio.set([0x34, 0x12, 0xff, 0xff]);
  [kvmRun.ioSize, kvmRun.ioCount, kvmRun.ioDataOffset] = [200, 0x7fff_ffff, 0xffff_ffff];
  expect([vcpu.run(), kvmRun.exitReason, vcpu.getRegs().rax]).toEqual([0, 5, 0x1234n]);
});

it('those of a string of them', () => {
  // mov cx, 3; push cs; pop es; mov di, 0x100; rep insb; mov ax, cs:[0x100]; hlt
  const vcpu = boot([0xb9, 3, 0, 0x0e, 0x07, 0xbf, 0, 1, 0xf3, 0x6c, 0x2e, 0xa1, 0, 1, 0xf4]);
  expect([vcpu.run(), vcpu.kvmRun.exitReason]).toEqual([0, 2]);
  const { kvmRun } = vcpu;
  kvmRun.pio.set([0x34, 0x12, 0x56]);
  [kvmRun.ioSize, kvmRun.ioCount, kvmRun.ioDataOffset] = [200, 0x7fff_ffff, 0xffff_ffff];
  expect([vcpu.run(), kvmRun.exitReason, vcpu.getRegs().rax]).toEqual([0, 5, 0x1234n]);
});

it('the length of an MMIO read', () => {
  // mov ax, [0]; hlt
  const vcpu = boot([0xa1, 0, 0, 0xf4]);
  expect([vcpu.run(), vcpu.kvmRun.exitReason]).toEqual([0, 6]);
  const { kvmRun } = vcpu;
  kvmRun.mmioData.set([0x34, 0x12, 0xff]);
  kvmRun.mmioLen = 0x7fff_ffff;
  expect([vcpu.run(), kvmRun.exitReason, vcpu.getRegs().rax]).toEqual([0, 5, 0x1234n]);
});
