/**
 * A VM's memory slots (Linux virt/kvm/kvm_main.c: struct kvm_memory_slot, kvm_memslots). The rules of the ioctl are in
 * `set-memory-region.ts`; here is how slots are kept and found.
 */
import type { Gfn, Hva } from '../../base/address.ts';
import type { DirtyBitmap } from './dirty-bitmap.ts';
import type { GuestMemfd } from './guest-memfd.ts';
import { LargePages } from './large-pages.ts';
import type { FaultSlot } from './mmu/guest-memory.ts';
import type { PrivateRanges } from './private-ranges.ts';

export class MemorySlot implements FaultSlot {
  readonly id: number;
  /** Address space: 0, or 1 for SMM. */
  readonly asId: number;
  readonly baseGfn: Gfn;
  readonly npages: number;
  readonly userspaceAddr: Hva;
  /** KVM_MEM_* */
  flags: number;
  invalid = false;
  gmemOnly = false;
  /** Which pages were written to, while the slot logs them. */
  dirty: DirtyBitmap | undefined = undefined;
  /** The bound file, until it is closed or the slot goes. */
  gmem: GuestMemfd | undefined = undefined;
  /** First page of the file that backs the slot. */
  readonly gmemPgoff: number;
  readonly largePages: LargePages;

  constructor(
    request: {
      id: number;
      asId: number;
      baseGfn: Gfn;
      npages: number;
      userspaceAddr: Hva;
      flags: number;
      gmemPgoff: number;
    },
    attributes: PrivateRanges,
  ) {
    this.id = request.id;
    this.asId = request.asId;
    this.baseGfn = request.baseGfn;
    this.npages = request.npages;
    this.userspaceAddr = request.userspaceAddr;
    this.flags = request.flags;
    this.gmemPgoff = request.gmemPgoff;
    const userGfn = Math.floor(request.userspaceAddr / 4096);
    this.largePages = new LargePages(
      { baseGfn: request.baseGfn, npages: request.npages, userGfn },
      attributes,
    );
  }

  get endGfn(): Gfn {
    return (this.baseGfn + this.npages) as Gfn;
  }

  get userspaceEnd(): Hva {
    return (this.userspaceAddr + this.npages * 4096) as Hva;
  }

  get userSlot(): number {
    return (this.asId << 16) | this.id;
  }

  largePageDisallowed(gfn: Gfn, level: number): boolean {
    return this.largePages.disallowed(gfn, level);
  }
}

/** The slots of one address space, by id and by gfn. */
export class MemorySlots {
  readonly #byId = new Map<number, MemorySlot>();
  /** By base gfn; they never overlap. */
  readonly #sorted: MemorySlot[] = [];
  #last: MemorySlot | undefined = undefined;

  /** The slot that holds `gfn`. Allocates nothing. */
  find(gfn: Gfn): MemorySlot | undefined {
    const last = this.#last;
    if (last !== undefined && gfn >= last.baseGfn && gfn < last.endGfn) return last;
    const slot = this.#sorted[this.#firstAbove(gfn) - 1];
    if (slot === undefined || gfn >= slot.endGfn) return undefined;
    this.#last = slot;
    return slot;
  }

  byId(id: number): MemorySlot | undefined {
    return this.#byId.get(id);
  }

  /** In ascending order of gfn. */
  all(): readonly MemorySlot[] {
    return this.#sorted;
  }

  /** Those that have a gfn of [start, end), in ascending order. */
  within(start: Gfn, end: Gfn): readonly MemorySlot[] {
    let first = this.#firstAbove(start);
    if (first > 0 && this.#sorted[first - 1]!.endGfn > start) first--;
    let stop = first;
    while (stop < this.#sorted.length && this.#sorted[stop]!.baseGfn < end) stop++;
    return this.#sorted.slice(first, stop);
  }

  add(slot: MemorySlot): void {
    this.#byId.set(slot.id, slot);
    this.#sorted.splice(this.#firstAbove(slot.baseGfn), 0, slot);
  }

  remove(slot: MemorySlot): void {
    this.#byId.delete(slot.id);
    this.#sorted.splice(this.#sorted.indexOf(slot), 1);
    if (this.#last === slot) this.#last = undefined;
  }

  /** Index of the first slot that begins above `gfn`. */
  #firstAbove(gfn: Gfn): number {
    let low = 0;
    let high = this.#sorted.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#sorted[middle]!.baseGfn <= gfn) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
