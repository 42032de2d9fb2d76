/**
 * The accelerator: one VM of KVM with what QEMU remembers of its capabilities (accel/kvm/kvm-all.c: kvm_init,
 * kvm_create_guest_memfd, kvm_set_memory_attributes). Capabilities are asked at VM scope, as QEMU does now; seed 000 asked
 * at system scope. Leaves out: in-kernel interrupt controllers, dirty ring.
 */
import {
  KVM_CAP_GUEST_MEMFD,
  KVM_CAP_MEMORY_ATTRIBUTES,
  KVM_CAP_NR_MEMSLOTS,
  KVM_CAP_PRE_FAULT_MEMORY,
  KVM_CAP_USER_MEMORY2,
  KVM_MEMORY_ATTRIBUTE_PRIVATE,
} from '../abi/kvm.ts';
import { ERRNO, type LinuxError } from '../base/errors.ts';
import type { Kvm, KvmVm, Process } from '../kernel/interface.ts';
import { assert, hex, negativeErrno, VmmError } from './error.ts';

export class KvmState {
  readonly kvm: Kvm;
  readonly vm: KvmVm;
  /** Slots that the VM may have. */
  readonly slots: number;
  readonly userMemory2: boolean;
  /** Bitmap of KVM_CAP_MEMORY_ATTRIBUTES. */
  readonly supportedMemoryAttributes: bigint;
  /** All three: GUEST_MEMFD, USER_MEMORY2 and the PRIVATE attribute. */
  readonly guestMemfdSupported: boolean;
  readonly preFaultSupported: boolean;

  constructor(kvm: Kvm, vm: KvmVm) {
    this.kvm = kvm;
    this.vm = vm;
    this.slots = vm.checkExtension(KVM_CAP_NR_MEMSLOTS) || 32;
    this.userMemory2 = vm.checkExtension(KVM_CAP_USER_MEMORY2) !== 0;
    this.preFaultSupported = vm.checkExtension(KVM_CAP_PRE_FAULT_MEMORY) !== 0;
    this.supportedMemoryAttributes = BigInt(vm.checkExtension(KVM_CAP_MEMORY_ATTRIBUTES));
    this.guestMemfdSupported =
      vm.checkExtension(KVM_CAP_GUEST_MEMFD) !== 0 &&
      this.userMemory2 &&
      (this.supportedMemoryAttributes & KVM_MEMORY_ATTRIBUTE_PRIVATE) !== 0n;
  }

  /** Opens /dev/kvm and makes a VM of `type` (KVM_X86_*_VM). Throws VmmError. */
  static open(process: Process, type: number): KvmState {
    let kvm: Kvm;
    try {
      kvm = process.openKvm();
    } catch (error) {
      throw VmmError.because('Could not access KVM kernel module', error);
    }
    try {
      return new KvmState(kvm, kvm.createVm(type));
    } catch (error) {
      kvm.close();
      const what = `ioctl(KVM_CREATE_VM) failed for VM type ${type}`;
      throw VmmError.because(what, error, (error as LinuxError).code === 'EINVAL' ? 'type' : undefined);
    }
  }

  /** kvm_set_memory_attributes: 0 or −errno. */
  setMemoryAttributes(start: number, size: number, attributes: bigint): number {
    assert(
      (attributes & this.supportedMemoryAttributes) === attributes,
      `memory attributes ${hex(attributes)} are among the supported ${hex(this.supportedMemoryAttributes)}`,
    );
    try {
      this.vm.setMemoryAttributes({ address: BigInt(start), size: BigInt(size), attributes, flags: 0n });
      return 0;
    } catch (error) {
      return negativeErrno(error);
    }
  }

  setMemoryAttributesPrivate(start: number, size: number): number {
    return this.setMemoryAttributes(start, size, KVM_MEMORY_ATTRIBUTE_PRIVATE);
  }

  setMemoryAttributesShared(start: number, size: number): number {
    return this.setMemoryAttributes(start, size, 0n);
  }

  close(): void {
    this.vm.close();
    this.kvm.close();
  }
}

/**
 * kvm_create_guest_memfd: the new descriptor. Throws VmmError when KVM lacks support or refuses. Without KVM (the stub of
 * accel/stubs/kvm-stub.c) the answer is −ENOSYS and no error.
 */
export function createGuestMemfd(state: KvmState | undefined, size: number, flags: bigint): number {
  if (state === undefined) return -ERRNO.ENOSYS;
  if (!state.guestMemfdSupported) throw new VmmError('KVM does not support guest_memfd');
  try {
    return state.vm.createGuestMemfd({ size: BigInt(size), flags });
  } catch (error) {
    throw VmmError.because('Error creating KVM guest_memfd', error);
  }
}
