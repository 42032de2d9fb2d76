/**
 * Which pages of a guest_memfd the slots of its VM bind (Linux virt/kvm/guest_memfd.c: `bindings`, an xarray with an entry a page).
 * Bindings never overlap, so they are kept sorted by their first page and found by bisection.
 */
import type { MemorySlot } from './memory-slots.ts';

export class GmemBindings {
  readonly #slots: MemorySlot[] = [];

  /** The slot that binds page `index`. Allocates nothing. */
  at(index: number): MemorySlot | undefined {
    const slot = this.#slots[this.#firstAbove(index) - 1];
    return slot !== undefined && index < endOf(slot) ? slot : undefined;
  }

  /** The slots that bind a page of [first, end), in ascending order. */
  within(first: number, end: number): MemorySlot[] {
    const from = this.at(first) === undefined ? this.#firstAbove(first) : this.#firstAbove(first) - 1;
    let to = from;
    while (to < this.#slots.length && this.#slots[to]!.gmemPgoff < end) to++;
    return this.#slots.slice(from, to);
  }

  /** `slot` overlaps no other. */
  add(slot: MemorySlot): void {
    this.#slots.splice(this.#firstAbove(slot.gmemPgoff), 0, slot);
  }

  remove(slot: MemorySlot): void {
    const place = this.#firstAbove(slot.gmemPgoff) - 1;
    if (this.#slots[place] === slot) this.#slots.splice(place, 1);
  }

  /** Removes and returns all. */
  clear(): MemorySlot[] {
    return this.#slots.splice(0);
  }

  /** Place of the first binding that begins above page `index`. */
  #firstAbove(index: number): number {
    let low = 0;
    let high = this.#slots.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#slots[middle]!.gmemPgoff <= index) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

const endOf = (slot: MemorySlot): number => slot.gmemPgoff + slot.npages;
