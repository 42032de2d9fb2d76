/**
 * How large a page a fault may map (Linux: kvm_max_level_for_order, kvm_mmu_hugepage_adjust; reference facts 1.7, "Level selection"):
 * as large as its backing is contiguous, its slot and its attributes allow, and gfn and pfn are aligned alike.
 *
 * What an RMP entry allows is the fault's business. Left out: the workaround for the iTLB multihit erratum.
 */

import { KVM_MEM_LOG_DIRTY_PAGES } from '../../../abi/kvm.ts';
import type { Gfn, Pfn } from '../../../base/address.ts';
import { type FaultSlot, LEVEL_1G, LEVEL_2M, LEVEL_4K, pagesPerEntry } from './guest-memory.ts';

/** The largest level that a block of 2^order frames can back. */
export function maxLevelForOrder(order: number): number {
  if (order >= 18) return LEVEL_1G;
  if (order >= 9) return LEVEL_2M;
  return LEVEL_4K;
}

/** The level at which a fault on `page.gfn`, backed by `page.pfn`, is mapped. */
export function goalLevel(page: { gfn: Gfn; pfn: Pfn; order: number }, slot: FaultSlot): number {
  let level = maxLevelForOrder(page.order);
  if (level === LEVEL_4K || (slot.flags & KVM_MEM_LOG_DIRTY_PAGES) !== 0) return LEVEL_4K;
  while (level > LEVEL_4K && (slot.largePageDisallowed(page.gfn, level) || !alignedAlike(page, level)))
    level--;
  return level;
}

const alignedAlike = (page: { gfn: number; pfn: number }, level: number): boolean =>
  page.gfn % pagesPerEntry(level) === page.pfn % pagesPerEntry(level);
