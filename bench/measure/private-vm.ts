/** A VM that has `bytes` of RAM in slot 0 from 0 on, shared by anonymous memory and private by a guest_memfd, and is told of its guest's conversions. */
import type { Kernel, Vm } from '../../src/kernel/kvm/index.ts';

const CAP_EXIT_HYPERCALL = 201;
const MAP_GPA_RANGE = 12n;

/** `type`: 1 software-protected, 4 SNP. */
export function privateVm(kernel: Kernel, type: number, bytes: number) {
  const process = kernel.newProcess();
  const vm = process.openKvm().createVm(type) as Vm;
  vm.enableCap({ cap: CAP_EXIT_HYPERCALL, args: [1n << MAP_GPA_RANGE] });
  const hva = process.memory.mmap({ length: bytes, protection: 3, flags: 0x22 });
  const fd = vm.createGuestMemfd({ size: BigInt(bytes), flags: 0n });
  vm.setUserMemoryRegion2({
    slot: 0,
    flags: 4,
    guestPhysAddr: 0n,
    memorySize: BigInt(bytes),
    userspaceAddr: BigInt(hva),
    guestMemfd: fd,
    guestMemfdOffset: 0n,
  });
  return { process, vm, hva, fd };
}
