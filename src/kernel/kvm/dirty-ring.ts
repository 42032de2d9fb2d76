/**
 * A vCPU's dirty ring (Linux virt/kvm/dirty_ring.c; reference facts 1.9): pages that it wrote to, in order, in memory that user space maps at
 * page 64 of the vCPU. An entry is struct kvm_dirty_gfn: flags, slot, offset. Its flags go from 0 over DIRTY (the kernel pushes it) to
 * RESET (user space has read it) and back to 0 (KVM_RESET_DIRTY_RINGS), strictly in order; they are the whole handshake.
 *
 * A ring is never quite filled: at its soft limit, 64 entries before its end, the vCPU leaves with DIRTY_RING_FULL and does not enter its guest
 * until entries were reset. Not here: a bitmap beside the ring (DIRTY_LOG_RING_WITH_BITMAP), which x86 does not have.
 */
import { KVM_DIRTY_GFN_F_DIRTY, KVM_DIRTY_GFN_F_RESET } from '../../abi/kvm.ts';
import { PAGE_SIZE, type Pfn } from '../../base/address.ts';
import type { HostMemory } from '../../hardware/memory/host-memory.ts';
import type { WriteProtector } from './dirty-bitmap.ts';
import type { MemorySlots } from './memory-slots.ts';

const ENTRY_BYTES = 16;
/** Words of an entry. */
const WORDS = 4;
const FLAGS = 0;
const SLOT = 1;
const OFFSET = 2;
const OFFSET_HIGH = 3;
/** KVM_DIRTY_RING_RSVD_ENTRIES; AMD's cores log no pages by themselves, which would need more. */
const RESERVED_ENTRIES = 64;
export const MAX_RING_BYTES = 65536 * ENTRY_BYTES;

/** What a reset asks of the VM. */
export interface RingVm {
  readonly addressSpaces: readonly MemorySlots[];
  readonly mmu: WriteProtector;
}

/** Frames of a ring of `bytes` as a block's order. */
export const ringOrder = (bytes: number): number => 31 - Math.clz32(bytes / PAGE_SIZE);

export class DirtyRing {
  /** What user space maps: 4 words an entry. */
  readonly entries: Int32Array;
  readonly #mask: number;
  readonly #softLimit: number;
  /** Entries pushed and reset so far, as 32-bit counters. */
  #dirtyIndex = 0;
  #resetIndex = 0;
  /** KVM_REQ_DIRTY_RING_SOFT_FULL */
  #request = false;

  /** `bytes`, a power of two, in frames from `frame` on. */
  constructor(memory: HostMemory, frame: Pfn, bytes: number) {
    const { buffer, byteOffset } = memory.page(frame);
    this.entries = new Int32Array(buffer, byteOffset, bytes / 4);
    this.#mask = bytes / ENTRY_BYTES - 1;
    this.#softLimit = bytes / ENTRY_BYTES - RESERVED_ENTRIES;
  }

  /** `slot`: the address space in the high half; `page`: of the slot. */
  push(slot: number, page: number): void {
    const at = (this.#dirtyIndex & this.#mask) * WORDS;
    const { entries } = this;
    entries[at + SLOT] = slot;
    entries[at + OFFSET] = page;
    entries[at + OFFSET_HIGH] = 0;
    Atomics.store(entries, at + FLAGS, KVM_DIRTY_GFN_F_DIRTY);
    this.#dirtyIndex = (this.#dirtyIndex + 1) | 0;
    if (this.#isSoftFull()) this.#request = true;
  }

  /** Whether the vCPU may not enter its guest (kvm_dirty_ring_check_request). */
  blocks(): boolean {
    if (this.#request) this.#request = this.#isSoftFull();
    return this.#request;
  }

  /** Takes back the entries that user space has harvested, in order; returns how many. Their pages are write-protected again. */
  reset(vm: RingVm): number {
    const { entries } = this;
    let count = 0;
    let slot = -1;
    let first = 0;
    let mask = 0;
    for (;;) {
      const at = (this.#resetIndex & this.#mask) * WORDS;
      if ((Atomics.load(entries, at + FLAGS) & KVM_DIRTY_GFN_F_RESET) === 0) break;
      const nextSlot = entries[at + SLOT]!;
      const low = entries[at + OFFSET]!;
      const high = entries[at + OFFSET_HIGH]!;
      Atomics.store(entries, at + FLAGS, 0);
      this.#resetIndex = (this.#resetIndex + 1) | 0;
      count++;
      // User space may have written anything there; no slot has that many pages.
      if (high !== 0 || low < 0) continue;
      const distance = low - first;
      if (nextSlot === slot && distance >= 0 && distance < 32) {
        mask |= 1 << distance;
        continue;
      }
      protect(vm, slot, first, mask);
      slot = nextSlot;
      first = low;
      mask = 1;
    }
    protect(vm, slot, first, mask);
    return count;
  }

  #isSoftFull(): boolean {
    return (this.#dirtyIndex - this.#resetIndex) >>> 0 >= this.#softLimit;
  }
}

/** kvm_reset_dirty_gfn: what names no page of a slot is ignored. */
function protect(vm: RingVm, slotId: number, first: number, mask: number): void {
  const slot = vm.addressSpaces[slotId >>> 16]?.byId(slotId & 0xffff);
  if (slot === undefined || first + 31 - Math.clz32(mask) >= slot.npages) return;
  vm.mmu.writeProtectMasked(slot.baseGfn + first, mask);
}
