/**
 * What SNP does to pages of a guest_memfd (Linux arch/x86/kvm/svm/sev.c: sev_gmem_prepare, sev_gmem_invalidate, sev_gmem_max_mapping_level, sev_handle_rmp_fault; reference
 * facts 2.6).
 */
import { NPF } from '../../../../abi/vmcb.ts';
import { type Gfn, gpaOf, type Pfn, pfn } from '../../../../base/address.ts';
import { ERRNO } from '../../../../base/errors.ts';
import type { HostMemory } from '../../../../hardware/memory/host-memory.ts';
import { lookup, makePrivate, makeShared, smash } from '../../../host-rmp.ts';
import type { SevVm } from './sev-vm.ts';

const LEVEL_4K = 1;
const LEVEL_2M = 2;
const HUGE_ORDER = 9;
const HUGE_PAGES = 512;

/** The first private fault on a page: it becomes the guest's, to be validated; not before KVM_SEV_INIT2. 0 or −EINVAL: where SNP is active there is an RMP. */
export function preparePage(sev: SevVm, gfn: Gfn, frame: Pfn, order: number): number {
  const { memory } = sev.vm;
  if (!sev.active) return 0;
  if (memory.rmp!.assigned(frame)) return 0;
  const large = order >= HUGE_ORDER && isLargePossible(memory, frame, gfn);
  const start = large ? frame - (frame % HUGE_PAGES) : frame;
  const startGfn = large ? gfn - (gfn % HUGE_PAGES) : gfn;
  const level = large ? LEVEL_2M : LEVEL_4K;
  const page = { gpa: gpaOf(startGfn as Gfn), level, asid: sev.asid, state: 'guest' as const };
  return makePrivate(memory, pfn(start), page) === 0 ? 0 : -ERRNO.EINVAL;
}

/** Nothing of the aligned 2 MiB is assigned yet, and guest and host agree where it begins. */
function isLargePossible(memory: HostMemory, frame: Pfn, gfn: Gfn): boolean {
  return frame % HUGE_PAGES === gfn % HUGE_PAGES && !memory.rmp!.regionAssigned(frame);
}

/** Frames of the file are given up: they become the host's again. False: one at least could not. */
export function invalidatePages(memory: HostMemory, first: Pfn, order: number): boolean {
  const { rmp } = memory;
  if (rmp?.initialised !== true) return true;
  const end = first + (1 << order);
  let all = true;
  for (let frame = first as number; frame < end; ) {
    const { assigned, level } = lookup(memory, pfn(frame));
    if (!assigned) {
      frame++;
      continue;
    }
    // A folio is aligned to its size: only one of 2 MiB or more has as much left.
    const whole = level === LEVEL_2M && frame + HUGE_PAGES <= end;
    if (level === LEVEL_2M && !whole) smash(memory, pfn(frame));
    if (makeShared(memory, pfn(frame), whole ? LEVEL_2M : LEVEL_4K) !== 0) all = false;
    frame += whole ? HUGE_PAGES : 1;
  }
  return all;
}

/** The largest page that may be mapped around a private frame: KVM's level, 4 KiB of one that is not assigned. */
export function maxMappingLevel(memory: HostMemory, frame: Pfn): number {
  return lookup(memory, frame).level;
}

/**
 * A nested fault by the RMP: a guest that works on 4 KiB of a page that is 2 MiB in the RMP. It is cut, and what was mapped there goes, so that the guest faults again.
 * Other causes go away by themselves. `error`: EXITINFO1's low word.
 */
export function handleRmpFault(sev: SevVm, gfn: Gfn, frame: Pfn, error: number): void {
  const { memory } = sev.vm;
  if ((error & NPF.RMP) === 0 || !memory.rmp!.isLarge(frame)) return;
  smash(memory, frame);
  sev.zap(gfn, gfn + HUGE_PAGES);
}
