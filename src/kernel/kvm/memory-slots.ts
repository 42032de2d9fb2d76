/**
 * A VM's memory slots (Linux virt/kvm/kvm_main.c: struct kvm_memory_slot, kvm_memslots). The rules of the ioctl are in
 * `set-memory-region.ts`; here is how slots are kept and found.
 */
import type { Gfn, Hva } from '../../base/address.ts';
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

  largePageDisallowed(gfn: Gfn, level: number): boolean {
    return this.largePages.disallowed(gfn, level);
  }
}

/** The slots of one address space, by id and by gfn. */
export class MemorySlots {
  readonly #byId = new Map<number, MemorySlot>();
  /** By base gfn; they never overlap. */
  #sorted: readonly MemorySlot[] = [];
  #last: MemorySlot | undefined = undefined;

  /** The slot that holds `gfn`. Allocates nothing. */
  find(gfn: Gfn): MemorySlot | undefined {
    const last = this.#last;
    if (last !== undefined && gfn >= last.baseGfn && gfn < last.endGfn) return last;
    let low = 0;
    let high = this.#sorted.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#sorted[middle]!.baseGfn <= gfn) low = middle + 1;
      else high = middle;
    }
    const slot = this.#sorted[low - 1];
    if (slot === undefined || gfn >= slot.endGfn) return undefined;
    this.#last = slot;
    return slot;
  }

  byId(id: number): MemorySlot | undefined {
    return this.#byId.get(id);
  }

  /** Another slot than `except` that has a gfn of [start, end). */
  overlapping(start: Gfn, end: Gfn, except: number): MemorySlot | undefined {
    return this.#sorted.find((slot) => slot.id !== except && slot.baseGfn < end && slot.endGfn > start);
  }

  /** In ascending order of gfn. */
  all(): readonly MemorySlot[] {
    return this.#sorted;
  }

  add(slot: MemorySlot): void {
    this.#byId.set(slot.id, slot);
    this.#sorted = [...this.#sorted, slot].sort((a, b) => a.baseGfn - b.baseGfn);
  }

  remove(slot: MemorySlot): void {
    this.#byId.delete(slot.id);
    this.#sorted = this.#sorted.filter((other) => other !== slot);
    if (this.#last === slot) this.#last = undefined;
  }
}
