/**
 * KVM_SET_USER_MEMORY_REGION and …_REGION2 (Linux virt/kvm/kvm_main.c kvm_vm_ioctl_set_memory_region, check_memory_region_flags,
 * __kvm_set_memory_region, kvm_set_memslot; arch/x86/kvm/x86.c kvm_arch_prepare_memory_region). The numbers in the comments are the rows of
 * reference facts 1.4; the order of the checks is observable. Row 2 (the copy from user space fails) belongs to who decodes bytes. Row
 * 12 (a VM's pages overflow 64 bits) cannot be reached: 2 · 32764 slots of at most 2^31 pages.
 */
import {
  KVM_MEM_GUEST_MEMFD,
  KVM_MEM_LOG_DIRTY_PAGES,
  KVM_MEM_MAX_NR_PAGES,
  KVM_MEM_READONLY,
  KVM_USER_MEM_SLOTS,
} from '../../abi/kvm.ts';
import { u32, u64 } from '../../abi/layout.ts';
import { type Gfn, hva, wrapsAround } from '../../base/address.ts';
import { LinuxError } from '../../base/errors.ts';
import type { Trace } from '../../base/trace.ts';
import type { OpenFile } from '../files.ts';
import type { UserMemoryRegion, UserMemoryRegion2 } from '../interface.ts';
import { applyLogging, type DirtyLogVm, prepareDirtyBitmap } from './dirty-log.ts';
import { GuestMemfd } from './guest-memfd.ts';
import type { Invalidation } from './invalidation.ts';
import type { MemoryAttributes } from './memory-attributes.ts';
import { MemorySlot, type MemorySlots } from './memory-slots.ts';
import type { KvmPolicy } from './policy.ts';

const PAGE = 4096n;
/** TASK_SIZE_MAX: user addresses end a page below 2^47. */
const USER_END = (1n << 47n) - PAGE;
/** kvm_mmu_max_gfn: guest physical addresses of the host's 48 bits. */
const MAX_GFN = 2 ** 36 - 1;

export interface RegionVm extends DirtyLogVm {
  readonly hasPrivateMemory: boolean;
  readonly policy: KvmPolicy;
  readonly attributes: MemoryAttributes;
  readonly invalidation: Invalidation;
  readonly trace: Trace;
  /** One per address space. */
  readonly addressSpaces: readonly MemorySlots[];
  readonly mmu: DirtyLogVm['mmu'] & {
    zapRange(start: Gfn, end: Gfn): boolean;
    zapSlot(slot: { readonly baseGfn: Gfn; readonly npages: number }): void;
    flushRemoteTlbs(): void;
  };
  /** The calling process's file, or EBADF. */
  openFile(fd: number): OpenFile;
}

/** The first form of the ioctl, whose structure ends at `userspaceAddr`. */
export function setUserMemoryRegion(vm: RegionVm, region: UserMemoryRegion): void {
  checkFields(region, 'kvm_userspace_memory_region');
  if ((region.flags & ~(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY)) !== 0)
    // 1
    throw new LinuxError('EINVAL', `flags ${region.flags}: this form takes LOG_DIRTY_PAGES 1 and READONLY 2`);
  setRegion(vm, { ...region, guestMemfdOffset: 0n, guestMemfd: 0 });
}

export function setUserMemoryRegion2(vm: RegionVm, region: UserMemoryRegion2): void {
  checkFields(region, 'kvm_userspace_memory_region2');
  u64.check(region.guestMemfdOffset, 'kvm_userspace_memory_region2.guest_memfd_offset');
  u32.check(region.guestMemfd, 'kvm_userspace_memory_region2.guest_memfd');
  setRegion(vm, region);
}

function checkFields(region: UserMemoryRegion, struct: string): void {
  u32.check(region.slot, `${struct}.slot`);
  u32.check(region.flags, `${struct}.flags`);
  u64.check(region.guestPhysAddr, `${struct}.guest_phys_addr`);
  u64.check(region.memorySize, `${struct}.memory_size`);
  u64.check(region.userspaceAddr, `${struct}.userspace_addr`);
}

function setRegion(vm: RegionVm, region: UserMemoryRegion2): void {
  const { flags, guestPhysAddr, memorySize, userspaceAddr, guestMemfdOffset } = region;
  const asId = region.slot >>> 16;
  const id = region.slot & 0xffff;
  const refuse = (what: string): never => {
    throw new LinuxError('EINVAL', `slot ${id}: ${what}`);
  };

  if (id >= KVM_USER_MEM_SLOTS) refuse(`ids are below ${KVM_USER_MEM_SLOTS}`); // 3
  checkFlags(vm, id, flags); // 4
  if (memorySize % PAGE !== 0n) refuse(`memory_size ${memorySize}: not whole pages`); // 5
  if (guestPhysAddr % PAGE !== 0n) refuse(`guest_phys_addr ${guestPhysAddr}: not page-aligned`);
  if (userspaceAddr % PAGE !== 0n || memorySize > USER_END - userspaceAddr)
    // 6
    refuse(`userspace_addr ${userspaceAddr} with ${memorySize} bytes: not page-aligned in user space`);
  if ((flags & KVM_MEM_GUEST_MEMFD) !== 0) {
    // 7
    if (guestMemfdOffset % PAGE !== 0n || wrapsAround(guestMemfdOffset, memorySize))
      refuse(`guest_memfd_offset ${guestMemfdOffset}: not page-aligned, or wraps around`);
  }
  const slots = vm.addressSpaces[asId];
  if (slots === undefined)
    // 8
    throw new LinuxError(
      'EINVAL',
      `slot ${id}: address space ${asId}, the VM has ${vm.addressSpaces.length}`,
    );
  if (wrapsAround(guestPhysAddr, memorySize))
    refuse(`guest_phys_addr ${guestPhysAddr} + ${memorySize} wraps around`); // 9
  if (memorySize / PAGE > BigInt(KVM_MEM_MAX_NR_PAGES))
    // 10
    refuse(`memory_size ${memorySize}: more than ${KVM_MEM_MAX_NR_PAGES} pages`);

  const old = slots.byId(id);
  if (memorySize === 0n) {
    // 11
    if (old === undefined) refuse('memory_size 0 deletes, and there is no such slot');
    else deleteSlot(vm, slots, old);
    return;
  }

  const request = {
    id,
    asId,
    baseGfn: Number(guestPhysAddr / PAGE) as Gfn,
    npages: Number(memorySize / PAGE),
    userspaceAddr: hva(Number(userspaceAddr)),
    flags,
    gmemPgoff: Number(guestMemfdOffset / PAGE),
  };
  if (old !== undefined) {
    if ((flags & KVM_MEM_GUEST_MEMFD) !== 0)
      refuse('a slot with a guest_memfd cannot be changed, only deleted'); // 13
    const fixed = KVM_MEM_READONLY | KVM_MEM_GUEST_MEMFD;
    if (
      old.userspaceAddr !== request.userspaceAddr ||
      old.npages !== request.npages ||
      ((old.flags ^ flags) & fixed) !== 0
    )
      // 14
      refuse('userspace_addr, memory_size, READONLY and GUEST_MEMFD of a slot cannot be changed');
    if (old.baseGfn === request.baseGfn) {
      // 15
      if (old.flags !== flags) changeFlags(vm, old, flags);
      return;
    }
  }
  const other = slots
    .within(request.baseGfn, (request.baseGfn + request.npages) as Gfn)
    .find((slot) => slot.id !== id);
  if (other !== undefined)
    // 16
    throw new LinuxError(
      'EEXIST',
      `slot ${id}: overlaps slot ${other.id} at guest address ${other.baseGfn * 4096}`,
    );

  const slot = makeSlot(vm, request); // 17
  slot.dirty = prepareDirtyBitmap(vm.dirtyTracking, slot, old);
  if ((flags & KVM_MEM_GUEST_MEMFD) !== 0) bindGuestMemfd(vm, slot, region); // 18 to 21
  // A slot that is to be moved is INVALID while the new one is prepared: its mappings are gone even if that fails (kvm_set_memslot).
  if (old !== undefined) vm.mmu.zapSlot(old);
  try {
    prepare(vm, slot, old); // 22
  } catch (error) {
    slot.gmem?.unbind(slot);
    throw error;
  }
  if (old !== undefined) removeSlot(vm, slots, old);
  slots.add(slot);
  traceSlot(vm, old === undefined ? 'slot-create' : 'slot-move', slot);
}

/** 4: what a request may say depends on what else it says. */
function checkFlags(vm: RegionVm, id: number, flags: number): void {
  const withMemfd = (flags & KVM_MEM_GUEST_MEMFD) !== 0;
  let valid = KVM_MEM_LOG_DIRTY_PAGES;
  if (vm.hasPrivateMemory || !vm.policy.guestMemfdNeedsPrivateMemory) valid |= KVM_MEM_GUEST_MEMFD;
  if (withMemfd) valid &= ~KVM_MEM_LOG_DIRTY_PAGES;
  else valid |= KVM_MEM_READONLY;
  if ((flags & ~valid) !== 0)
    throw new LinuxError('EINVAL', `slot ${id}: flags ${flags}, want a subset of ${valid}`);
}

function makeSlot(vm: RegionVm, request: ConstructorParameters<typeof MemorySlot>[0]): MemorySlot {
  try {
    return new MemorySlot(request, vm.attributes.ranges);
  } catch (error) {
    if (error instanceof RangeError)
      throw new LinuxError('ENOMEM', `slot ${request.id}: no memory for its tables`);
    throw error;
  }
}

function bindGuestMemfd(vm: RegionVm, slot: MemorySlot, region: UserMemoryRegion2): void {
  const file = vm.openFile(region.guestMemfd).operations; // 18
  if (!(file instanceof GuestMemfd))
    // 19
    throw new LinuxError('EINVAL', `guest_memfd ${region.guestMemfd}: ${file.name} is no guest_memfd`);
  if ((file.vm as unknown) !== vm)
    throw new LinuxError('EINVAL', `guest_memfd ${region.guestMemfd}: belongs to another VM`);
  file.bind(slot, region.guestMemfdOffset, vm.policy.bindingOverlap); // 20, 21
  slot.gmemOnly = vm.policy.mmapFileServesSharedFaults && file.mayMmap;
}

/** 22 */
function prepare(vm: RegionVm, slot: MemorySlot, old: MemorySlot | undefined): void {
  if (slot.endGfn - 1 > MAX_GFN)
    throw new LinuxError('EINVAL', `slot ${slot.id}: ends beyond the guest's 48-bit physical addresses`);
  if (old !== undefined && vm.hasPrivateMemory)
    throw new LinuxError('EINVAL', `slot ${slot.id}: slots of a VM with private memory cannot be moved`);
}

function deleteSlot(vm: RegionVm, slots: MemorySlots, slot: MemorySlot): void {
  removeSlot(vm, slots, slot);
  slot.gmem?.unbind(slot);
  traceSlot(vm, 'slot-delete', slot);
}

/** While its mappings go, a slot is there but INVALID: a fault that hits it is retried. */
function removeSlot(vm: RegionVm, slots: MemorySlots, slot: MemorySlot): void {
  slot.invalid = true;
  vm.mmu.zapSlot(slot);
  slots.remove(slot);
}

/** LOG_DIRTY_PAGES alone can change. */
function changeFlags(vm: RegionVm, slot: MemorySlot, flags: number): void {
  slot.dirty = prepareDirtyBitmap(vm.dirtyTracking, { npages: slot.npages, flags }, slot);
  slot.flags = flags;
  applyLogging(vm, slot);
  traceSlot(vm, 'slot-flags', slot);
}

function traceSlot(vm: RegionVm, what: string, slot: MemorySlot): void {
  if (!vm.trace.on) return;
  const { id, asId, flags, baseGfn, npages } = slot;
  vm.trace.emit({ kind: 'vm', who: 'kernel', what, slot: id, asId, flags, gfn: baseGfn, pages: npages });
}
