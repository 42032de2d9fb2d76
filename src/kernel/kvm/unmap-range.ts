/**
 * Pages that go from under a guest: those that the process unmaps (Linux virt/kvm/kvm_main.c: kvm_mmu_notifier_invalidate_range_start and _end) and those that a
 * guest_memfd gives up (virt/kvm/guest_memfd.c: kvm_gmem_invalidate_begin and _end). Each is an invalidation around the zap of its gfns.
 */
import type { Gfn, Hva } from '../../base/address.ts';
import type { Trace } from '../../base/trace.ts';
import type { MmuNotifier } from '../mm/mmu-notifier.ts';
import type { SlotRange } from './guest-memfd.ts';
import type { Invalidation } from './invalidation.ts';
import type { MemorySlot, MemorySlots } from './memory-slots.ts';

/** What taking pages away asks of the VM. */
interface UnmapVm {
  readonly trace: Trace;
  readonly invalidation: Invalidation;
  readonly addressSpaces: readonly MemorySlots[];
  readonly mmu: { zapRange(start: Gfn, end: Gfn): boolean; flushRemoteTlbs(): void };
}

/** Registered with the process's address space. */
export class RangeUnmapper implements MmuNotifier {
  readonly #vm: UnmapVm;

  constructor(vm: UnmapVm) {
    this.#vm = vm;
  }

  /** The pages of a guest_memfd at these gfns go in `free`; one invalidation, however many slots. */
  unmapGmem(ranges: readonly SlotRange[], why: string, free: () => void): void {
    if (ranges.length === 0) {
      free();
      return;
    }
    const { invalidation, mmu } = this.#vm;
    invalidation.begin();
    let unmapped = false;
    for (const { start, end } of ranges) unmapped = this.#zap(start, end, why) || unmapped;
    if (unmapped) mmu.flushRemoteTlbs();
    free();
    invalidation.end();
  }

  /** Pages of the process at [start, end) go. Without a slot there is no invalidation. */
  begin(start: Hva, end: Hva): void {
    const { addressSpaces, invalidation, mmu } = this.#vm;
    let begun = false;
    let unmapped = false;
    for (const slots of addressSpaces) {
      for (const slot of slots.all()) {
        if (!shows(slot, start, end)) continue;
        if (!begun) invalidation.begin();
        begun = true;
        const from = Math.max(start, slot.userspaceAddr) - slot.userspaceAddr;
        const to = Math.min(end, slot.userspaceEnd) - slot.userspaceAddr;
        const first = (slot.baseGfn + Math.floor(from / 4096)) as Gfn;
        const last = (slot.baseGfn + Math.ceil(to / 4096)) as Gfn;
        unmapped = this.#zap(first, last, 'the process unmaps') || unmapped;
      }
    }
    if (unmapped) mmu.flushRemoteTlbs();
  }

  /** They are gone. Slots do not change in between. */
  end(start: Hva, end: Hva): void {
    const { addressSpaces, invalidation } = this.#vm;
    if (addressSpaces.some((slots) => slots.all().some((slot) => shows(slot, start, end))))
      invalidation.end();
  }

  /** Within an invalidation. True: a flush is due. */
  #zap(start: Gfn, end: Gfn, why: string): boolean {
    const { invalidation, trace, mmu } = this.#vm;
    invalidation.rangeAdd(start, end);
    if (trace.on)
      trace.emit({ kind: 'page', who: 'kernel', what: 'invalidate', why, gfn: start, pages: end - start });
    return mmu.zapRange(start, end);
  }
}

/** Some of the slot lies in the process at [start, end). */
const shows = (slot: MemorySlot, start: Hva, end: Hva): boolean =>
  start < slot.userspaceEnd && slot.userspaceAddr < end;
