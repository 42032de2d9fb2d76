/**
 * KVM_SET_MEMORY_ATTRIBUTES (Linux virt/kvm/kvm_main.c kvm_vm_ioctl_set_mem_attributes, kvm_vm_set_mem_attributes; arch/x86/kvm/mmu/mmu.c
 * kvm_arch_pre_ and _post_set_memory_attributes). PRIVATE is the one attribute; a gfn is shared until somebody says otherwise, and no
 * slot need exist.
 */
import { KVM_MEMORY_ATTRIBUTE_PRIVATE } from '../../abi/kvm.ts';
import { u64 } from '../../abi/layout.ts';
import { type Gfn, PAGE_SIZE, wrapsAround } from '../../base/address.ts';
import { LinuxError } from '../../base/errors.ts';
import type { Trace } from '../../base/trace.ts';
import type { Invalidation } from './invalidation.ts';
import type { MemorySlots } from './memory-slots.ts';
import { PrivateRanges } from './private-ranges.ts';

const PAGE = BigInt(PAGE_SIZE);

export interface MemoryAttributesRequest {
  readonly address: bigint;
  readonly size: bigint;
  readonly attributes: bigint;
  readonly flags: bigint;
}

/** What setting attributes asks of the VM. */
export interface AttributesVm {
  readonly hasPrivateMemory: boolean;
  readonly invalidation: Invalidation;
  readonly trace: Trace;
  readonly addressSpaces: readonly MemorySlots[];
  readonly mmu: { zapRange(start: Gfn, end: Gfn): boolean; flushRemoteTlbs(): void };
}

export class MemoryAttributes {
  readonly ranges: PrivateRanges;

  constructor(ranges = new PrivateRanges()) {
    this.ranges = ranges;
  }

  isPrivate(gfn: Gfn): boolean {
    return this.ranges.isPrivate(gfn);
  }

  /** The ioctl. Errors in the order of reference facts 1.5. */
  set(vm: AttributesVm, { address, size, attributes, flags }: MemoryAttributesRequest): void {
    u64.check(address, 'kvm_memory_attributes.address');
    u64.check(size, 'kvm_memory_attributes.size');
    u64.check(attributes, 'kvm_memory_attributes.attributes');
    u64.check(flags, 'kvm_memory_attributes.flags');
    const supported = supportedAttributes(vm);
    if (flags !== 0n) throw new LinuxError('EINVAL', `flags ${flags}: must be 0`);
    if ((attributes & ~supported) !== 0n)
      throw new LinuxError('EINVAL', `attributes ${attributes}: this VM supports ${supported}`);
    if (size === 0n || wrapsAround(address, size))
      throw new LinuxError('EINVAL', `size ${size} at address ${address}: empty, or wraps around`);
    if (address % PAGE !== 0n || size % PAGE !== 0n)
      throw new LinuxError('EINVAL', `address ${address}, size ${size}: not whole pages`);
    const isPrivate = (attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE) !== 0n;
    this.#change(vm, Number(address / PAGE) as Gfn, Number((address + size) / PAGE) as Gfn, isPrivate);
  }

  #change(vm: AttributesVm, start: Gfn, end: Gfn, isPrivate: boolean): void {
    if (this.ranges.isUniform(start, end, isPrivate)) return;
    try {
      this.ranges.reserve();
    } catch (error) {
      if (error instanceof RangeError)
        throw new LinuxError('ENOMEM', 'no memory for another range of attributes');
      throw error;
    }

    vm.invalidation.begin();
    vm.invalidation.rangeAdd(start, end);
    let unmapped = false;
    // Also slots that cannot be private: their mappings must go when a gfn turns private, and when it turns shared larger pages
    // may become possible (seed 003).
    const slots = vm.addressSpaces.flatMap((space) => space.within(start, end));
    for (const slot of slots) {
      const from = Math.max(start, slot.baseGfn) as Gfn;
      const to = Math.min(end, slot.endGfn) as Gfn;
      slot.largePages.beforeChange(from, to);
      unmapped = vm.mmu.zapRange(from, to) || unmapped;
    }
    if (unmapped) vm.mmu.flushRemoteTlbs();

    this.ranges.set(start, end, isPrivate);

    for (const slot of slots) {
      const from = Math.max(start, slot.baseGfn) as Gfn;
      const to = Math.min(end, slot.endGfn) as Gfn;
      slot.largePages.afterChange(from, to, this.ranges);
    }
    vm.invalidation.end();

    if (vm.trace.on) {
      const what = isPrivate ? 'private' : 'shared';
      const why = 'KVM_SET_MEMORY_ATTRIBUTES';
      vm.trace.emit({ kind: 'page', who: 'kernel', what, why, gfn: start, pages: end - start });
    }
  }
}

/** The attributes that a VM supports (KVM_CAP_MEMORY_ATTRIBUTES on the VM). */
export const supportedAttributes = (vm: { readonly hasPrivateMemory: boolean }): bigint =>
  vm.hasPrivateMemory ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0n;
