/**
 * kvm.attributes: KVM_SET_MEMORY_ATTRIBUTES of 1 TiB in one call, to private and back, with a slot of that size, against 10 ms a
 * call. A fragmented VM is kvm.attributes-fragmented.
 */
import { createKernel, type Vm } from '../src/kernel/kvm/index.ts';
import { fastest } from './measure/fastest.ts';

const TIB = 2 ** 40;
const ALLOWED_MS = 10;
const PRIVATE = 8n;

export async function bench() {
  const kernel = createKernel({ memory: 16 * 1024 * 1024 });
  const process = kernel.newProcess();
  const vm = process.openKvm().createVm(1) as Vm;
  const hva = process.memory.mmap({ length: TIB, protection: 3, flags: 0x4022 });
  vm.setUserMemoryRegion({
    slot: 0,
    flags: 0,
    guestPhysAddr: 0n,
    memorySize: BigInt(TIB),
    userspaceAddr: BigInt(hva),
  });
  const set = (address: bigint, size: bigint, attributes: bigint): void =>
    vm.setMemoryAttributes({ address, size, attributes, flags: 0n });
  const whole =
    fastest(() => {
      set(0n, BigInt(TIB), PRIVATE);
      set(0n, BigInt(TIB), 0n);
    }) / 2;

  kernel.close();
  return {
    value: whole,
    unit: 'ms',
    bound: ALLOWED_MS,
    ratio: ALLOWED_MS / whole,
    note: '1 TiB a call',
  };
}
