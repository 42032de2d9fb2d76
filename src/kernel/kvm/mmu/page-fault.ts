/**
 * A nested page fault, from (gfn, access, private?) to a nested mapping, an exit to user space, or emulation.
 *
 * Linux: arch/x86/kvm/mmu/mmu.c, kvm_mmu_faultin_pfn, kvm_mmu_faultin_pfn_private, kvm_tdp_mmu_page_fault; the early form is seed 003's
 * kvm_faultin_pfn_private. `#faultIn` reads like the decision table of reference facts 1.7, in its order, because the order is
 * observable. Left out: the APIC access page (SVM without AVIC has none), page tracking, asynchronous page faults.
 *
 * A backing may need time. The fault is then kept as it is, with its old snapshot, as a thread that sleeps in get_pfn would
 * keep it; `resume` goes on behind get_pfn, and what was invalidated meanwhile is found by the same check under the lock.
 */

import {
  KVM_EXIT_MEMORY_FAULT,
  KVM_MEM_GUEST_MEMFD,
  KVM_MEM_LOG_DIRTY_PAGES,
  KVM_MEM_READONLY,
  KVM_MEMORY_EXIT_FLAG_PRIVATE,
} from '../../../abi/kvm.ts';
import type { KvmRun } from '../../../abi/kvm-run.ts';
import { NPF } from '../../../abi/vmcb.ts';
import { type Gfn, type Gpa, gfnOf, gpaOf, PAGE_SIZE, type Pfn, type Spa } from '../../../base/address.ts';
import { ERRNO, LinuxError } from '../../../base/errors.ts';
import type { DirtyRing } from '../dirty-ring.ts';
import {
  BACKING_PENDING,
  type BackingPage,
  type FaultSlot,
  type GuestMemory,
  hvaOfGfn,
  type InvalidationChecks,
} from './guest-memory.ts';
import { goalLevel } from './mapping-level.ts';
import type { Mmu } from './mmu.ts';

/** What a fault comes to; a negative value is −errno and leaves KVM_RUN. */
export const RET_PF = {
  /** Not decided yet. */
  CONTINUE: 0,
  /** Enter the guest again, it faults again. */
  RETRY: 1,
  /** KVM emulates the instruction (MMIO). */
  EMULATE: 2,
  /** Mapped. */
  FIXED: 3,
  /** It was mapped already. */
  SPURIOUS: 4,
  /** The backing wants time: `fault.pending`. */
  PENDING: 5,
} as const;

const NAMES = ['continue', 'retry', 'emulate', 'fixed', 'spurious', 'pending'];

/** struct kvm_page_fault; one per vCPU, used over and over. */
export class PageFault implements BackingPage {
  gpa = 0 as Gpa;
  gfn = 0 as Gfn;
  write = false;
  exec = false;
  isPrivate = false;

  slot: FaultSlot | undefined = undefined;
  snapshot = 0;
  rootGeneration = 0;
  pfn = 0 as Pfn;
  order = 0;
  writable = false;
  /** The level at which the page was mapped. */
  level = 1;
  pending: Promise<void> | undefined = undefined;

  /** Begins a new fault. `error`: the low word of EXITINFO1, `NPF` bits of abi/vmcb.ts. */
  begin(gpa: Gpa, error: number, visibility: 'private' | 'shared'): void {
    this.gpa = gpa;
    this.gfn = gfnOf(gpa);
    this.write = (error & NPF.WRITE) !== 0;
    this.exec = (error & NPF.FETCH) !== 0;
    this.isPrivate = visibility === 'private';
    this.slot = undefined;
    this.pending = undefined;
  }
}

export class PageFaultHandler {
  readonly #vm: GuestMemory;
  readonly #mmu: Mmu;
  readonly #checks: InvalidationChecks;
  readonly #ring: DirtyRing | undefined;

  /** `checks`: the VM's own; a test that shows what they are for hands in others. `ring`: the vCPU's, where it has one. */
  constructor(vm: GuestMemory, mmu: Mmu, checks: InvalidationChecks = vm.invalidation, ring?: DirtyRing) {
    this.#vm = vm;
    this.#mmu = mmu;
    this.#checks = checks;
    this.#ring = ring;
  }

  /** Resolves `fault` (kvm_mmu_do_page_fault). Returns RET_PF or −errno; with MEMORY_FAULT exits `run` is filled. */
  handle(fault: PageFault, run: KvmRun): number {
    if (!this.#mmu.topUp()) return -ERRNO.ENOMEM;
    let result = this.#faultIn(fault, run);
    if (result === RET_PF.CONTINUE) result = this.#mapUnderLock(fault);
    this.#trace(fault, result);
    return result;
  }

  /** Goes on with a fault that was PENDING, behind get_pfn and with its old snapshot. */
  resume(fault: PageFault, run: KvmRun): number {
    fault.pending = undefined;
    if (!this.#mmu.topUp()) return -ERRNO.ENOMEM;
    // The slot that the fault holds may be gone (Linux keeps it alive by SRCU while the fault sleeps).
    let result = this.#isObsolete(fault) ? RET_PF.RETRY : this.#getPage(fault, run);
    if (result === RET_PF.CONTINUE) result = this.#mapUnderLock(fault);
    this.#trace(fault, result);
    return result;
  }

  #faultIn(fault: PageFault, run: KvmRun): number {
    const { slots, attributes, policy } = this.#vm;
    fault.rootGeneration = this.#mmu.rootGeneration;
    fault.snapshot = this.#checks.snapshot();

    if (policy.attributeCheckedBeforeSlot && fault.isPrivate !== attributes.isPrivate(fault.gfn))
      return memoryFaultExit(fault, run, ERRNO.EFAULT);

    const slot = slots.find(fault.gfn);
    fault.slot = slot;
    if (slot?.invalid) return RET_PF.RETRY;

    if (!policy.attributeCheckedBeforeSlot && fault.isPrivate !== attributes.isPrivate(fault.gfn))
      return memoryFaultExit(fault, run, ERRNO.EFAULT);

    if (slot === undefined)
      return fault.isPrivate ? memoryFaultExit(fault, run, ERRNO.EFAULT) : RET_PF.EMULATE;

    if (policy.retryCheckedEarly && this.#checks.retryGfnUnsafe(fault.snapshot, fault.gfn))
      return RET_PF.RETRY;

    return this.#getPage(fault, run);
  }

  #getPage(fault: PageFault, run: KvmRun): number {
    const slot = fault.slot!;
    if (fault.isPrivate && (slot.flags & KVM_MEM_GUEST_MEMFD) === 0)
      return memoryFaultExit(fault, run, ERRNO.EFAULT);
    return fault.isPrivate || slot.gmemOnly
      ? this.#getGmemPage(fault, slot, run)
      : this.#getSharedPage(fault, slot);
  }

  #getGmemPage(fault: PageFault, slot: FaultSlot, run: KvmRun): number {
    const result = this.#vm.gmemGetPfn(slot, fault.gfn, fault);
    if (result === BACKING_PENDING) return RET_PF.PENDING;
    if (result < 0) return memoryFaultExit(fault, run, -result);
    fault.writable = (slot.flags & KVM_MEM_READONLY) === 0;
    return RET_PF.CONTINUE;
  }

  /** kvm_handle_error_pfn: what goes wrong with the process's own memory is no memory-fault exit. */
  #getSharedPage(fault: PageFault, slot: FaultSlot): number {
    if (fault.write && (slot.flags & KVM_MEM_READONLY) !== 0) return RET_PF.EMULATE;
    const hva = hvaOfGfn(slot, fault.gfn);
    const result = this.#vm.faultInHva(hva, fault.write ? 'write' : 'read', fault);
    if (result === BACKING_PENDING) return RET_PF.PENDING;
    if (result === -ERRNO.EHWPOISON)
      throw new LinuxError('EHWPOISON', `the page at 0x${hva.toString(16)} is poisoned`, 'SIGBUS');
    if (result < 0) return -ERRNO.EFAULT;
    if ((slot.flags & KVM_MEM_READONLY) !== 0) fault.writable = false;
    return RET_PF.CONTINUE;
  }

  /** All between here and the store of the entry happens without a break: that is our mmu_lock. */
  #mapUnderLock(fault: PageFault): number {
    if (this.#isObsolete(fault) || this.#checks.retryGfn(fault.snapshot, fault.gfn)) return RET_PF.RETRY;
    const slot = fault.slot!;
    fault.level = goalLevel(fault, slot);
    if (fault.isPrivate) fault.level = Math.min(fault.level, this.#vm.privateMaxMappingLevel(fault.pfn));
    if ((slot.flags & KVM_MEM_LOG_DIRTY_PAGES) !== 0) {
      // Only a write opens a page for writing, so that each first write is seen.
      if (!fault.write) fault.writable = false;
      if (fault.writable) this.#markDirty(slot, fault.gfn - slot.baseGfn);
    }
    const changed = this.#mmu.map(fault.gfn, fault.pfn, fault.level, fault);
    return changed ? RET_PF.FIXED : RET_PF.SPURIOUS;
  }

  /** mark_page_dirty_in_slot, by a vCPU that runs. */
  #markDirty(slot: FaultSlot, page: number): void {
    if (this.#ring !== undefined) this.#ring.push(slot.userSlot, page);
    else slot.dirty?.mark(page);
  }

  #isObsolete(fault: PageFault): boolean {
    return fault.rootGeneration !== this.#mmu.rootGeneration;
  }

  #trace(fault: PageFault, result: number): void {
    if (!this.#vm.trace.on) return;
    this.#vm.trace.emit({
      kind: 'fault',
      who: 'kernel',
      what: result < 0 ? `errno ${-result}` : NAMES[result]!,
      why: fault.exec ? 'fetch' : fault.write ? 'write' : 'read',
      gfn: fault.gfn,
      private: fault.isPrivate,
      ...(result === RET_PF.FIXED ? { pfn: fault.pfn } : {}),
    });
  }
}

/** kvm_mmu_prepare_memory_fault_exit: fills the exit, returns −errno. Write and fetch are not reported. */
function memoryFaultExit(fault: PageFault, run: KvmRun, errno: number): number {
  run.exitReason = KVM_EXIT_MEMORY_FAULT;
  run.memoryFaultFlagsNumber = fault.isPrivate ? KVM_MEMORY_EXIT_FLAG_PRIVATE : 0;
  run.memoryFaultGpaNumber = gpaOf(fault.gfn);
  run.memoryFaultSizeNumber = PAGE_SIZE;
  return -errno;
}

/** Where in host memory the faulting address lies, once the fault is resolved. */
export const resolvedSpa = (fault: PageFault): Spa =>
  (fault.pfn * PAGE_SIZE + (fault.gpa % PAGE_SIZE)) as Spa;
