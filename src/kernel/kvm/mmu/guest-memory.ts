/**
 * What the MMU and the vCPUs ask of their VM. `Vm` (vm.ts) implements it; tests may hand in less.
 *
 * Linux: the fields of `struct kvm` and `struct kvm_memory_slot` that arch/x86/kvm/mmu reads. Nothing here allocates.
 */
import { type Gfn, type Hva, PAGE_SIZE, type Pfn } from '../../../base/address.ts';
import type { ErrnoName } from '../../../base/errors.ts';
import type { Trace } from '../../../base/trace.ts';
import type { HostMemory } from '../../../hardware/memory/host-memory.ts';
import type { DirtyBitmap } from '../dirty-bitmap.ts';

/** Levels of a nested mapping, as KVM's PG_LEVEL_*. */
export const LEVEL_4K = 1;
export const LEVEL_2M = 2;
export const LEVEL_1G = 3;
/** Pages of 4 KiB that a mapping of `level` has; 2^27 for an entry of the fourth. */
export const pagesPerEntry = (level: number): number => 1 << (9 * (level - 1));

/** A slot as a fault sees it. */
export interface FaultSlot {
  readonly baseGfn: Gfn;
  readonly npages: number;
  /** KVM_MEM_* (LOG_DIRTY 1, READONLY 2, GUEST_MEMFD 4). */
  readonly flags: number;
  readonly userspaceAddr: Hva;
  /** KVM_MEMSLOT_INVALID: the slot is being deleted or moved. */
  readonly invalid: boolean;
  /** KVM_MEMSLOT_GMEM_ONLY (7.2): shared faults are served by the file as well. */
  readonly gmemOnly: boolean;
  /** As user space names it: the address space in the high half. */
  readonly userSlot: number;
  /** With LOG_DIRTY and without dirty rings: where a page is marked that the guest may write to from now on. */
  readonly dirty: DirtyBitmap | undefined;
  /** Whether a page of `level` (2 or 3) around `gfn` may not be used: the whole disallow_lpage word, MIXED included. */
  largePageDisallowed(gfn: Gfn, level: number): boolean;
}

/** Where the process has the first byte of `gfn` (__gfn_to_hva_memslot). */
export const hvaOfGfn = (slot: FaultSlot, gfn: Gfn): Hva =>
  (slot.userspaceAddr + (gfn - slot.baseGfn) * PAGE_SIZE) as Hva;

/** A backing wants time: not an errno (all of those are negative), not 0. */
export const BACKING_PENDING = 1;

/** Where a backing leaves its answer; one such object per vCPU is used over and over. */
export interface BackingPage {
  pfn: Pfn;
  /** Order of the naturally aligned block of frames around `pfn` that backs the naturally aligned gfns (file pages) around it. */
  order: number;
  /** Shared pages: may the guest write to it without asking again? */
  writable: boolean;
  /** With BACKING_PENDING: settles when it is worth asking again. Never rejects. */
  pending: Promise<void> | undefined;
}

/** mmu_invalidate_seq and friends (facts 1.6). */
export interface InvalidationChecks {
  snapshot(): number;
  /** Under the lock: is a page found since `snapshot` perhaps stale? */
  retryGfn(snapshot: number, gfn: Gfn): boolean;
  /** The same without the lock. */
  retryGfnUnsafe(snapshot: number, gfn: Gfn): boolean;
}

/** The questions that faults and exits put to the VM's policy (personality and early forms); policy.ts answers. */
export interface RunPolicy {
  /** 6.12, 7.2: true. Early `private-fault`: false, the attribute is compared after the slot checks. */
  readonly attributeCheckedBeforeSlot: boolean;
  /** 6.12, 7.2: true. Early `private-fault`: false, no check without the lock. */
  readonly retryCheckedEarly: boolean;
  /** 7.2: true. `hypercall.ret` is 0 when MAP_GPA_RANGE exits. */
  readonly hypercallRetPreset: boolean;
  /** 7.2: true. An SNP guest's page state change takes no other `hypercall.ret` than 0, EINVAL and EAGAIN. */
  readonly mapRangeAnswersChecked: boolean;
  /** 7.2: true. FAIL_ENTRY's reason is the 64-bit exit code; 6.12 gives the low 32 bits. */
  readonly failEntryReason64: boolean;
  /**
   * What KVM_PRE_FAULT_MEMORY comes to on a slot that is being deleted. 7.2: EAGAIN. 6.12 tries until the slot is gone or a signal
   * comes: EINTR.
   */
  readonly preFaultOfDyingSlot: ErrnoName;
}

export interface GuestMemory {
  readonly memory: HostMemory;
  readonly trace: Trace;
  readonly slots: { find(gfn: Gfn): FaultSlot | undefined };
  readonly attributes: { isPrivate(gfn: Gfn): boolean };
  readonly invalidation: InvalidationChecks & {
    /** Settles when no invalidation is in progress. */
    idle(): Promise<void>;
  };
  readonly policy: RunPolicy;
  /** kvm_gmem_get_pfn: 0 and `into` filled, −errno, or BACKING_PENDING and `into.pending` set. `slot` is one that `slots.find` gave. */
  gmemGetPfn(slot: FaultSlot, gfn: Gfn, into: BackingPage): number;
  /** The largest level that a private frame may be mapped at (kvm_x86_ops.gmem_max_mapping_level). */
  privateMaxMappingLevel(frame: Pfn): number;
  /** get_user_pages for a shared page (AddressSpace.faultIn): 0, −errno (−EHWPOISON), or BACKING_PENDING. */
  faultInHva(hva: Hva, access: 'read' | 'write', into: BackingPage): number;
}
