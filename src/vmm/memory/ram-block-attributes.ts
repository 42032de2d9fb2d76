/**
 * Which pages of a RAM block with a guest_memfd are shared (QEMU system/ram-block-attributes.c). One bit a host page: 1 is
 * shared, in the terms of a RamDiscardManager "populated"; 0 is private, "discarded". A block starts private throughout.
 * Listeners (VFIO, say) map the populated pages and hear of each change.
 *
 * Leaves out: replay for migration.
 */
import { PAGE_SIZE } from '../../base/address.ts';
import { ERRNO } from '../../base/errors.ts';
import { type ErrorReport, hex } from '../error.ts';

export type RamState = 'populated' | 'discarded';

/** A RamDiscardListener: it sees the part of the block from `offset` on, `size` bytes, and hears offsets in the block. */
export interface RamDiscardListener {
  readonly offset: number;
  readonly size: number;
  /** One discard of the whole section on leaving, in place of one a populated run. */
  readonly doubleDiscardSupported?: true;
  /** 0, or −errno, which stops the change. */
  notifyPopulate(offset: number, size: number): number;
  notifyDiscard(offset: number, size: number): void;
}

export class RamBlockAttributes {
  readonly size: number;
  readonly #bitmap: Uint32Array;
  readonly #report: ErrorReport;
  #listeners: readonly RamDiscardListener[] = [];
  #populatedPages = 0;
  #changedPages = 0;

  /** `size`: bytes of the block, a multiple of the page size. */
  constructor(size: number, report: ErrorReport = () => {}) {
    this.size = size;
    this.#bitmap = new Uint32Array(Math.ceil(size / PAGE_SIZE / 32));
    this.#report = report;
  }

  /** Pages that are shared now. */
  get populatedPages(): number {
    return this.#populatedPages;
  }

  /** Pages that changed their state so far; out and back counts two. */
  get changedPages(): number {
    return this.#changedPages;
  }

  isPopulated(offset: number): boolean {
    return this.#bit(Math.floor(offset / PAGE_SIZE));
  }

  /**
   * ram_block_attributes_state_change: 0 or −errno. A range that is in the target state already changes nothing; one that
   * is wholly in the other gives one notification; a mixed one gives one a changed page. Bits change before the listener is
   * told, and a listener that refuses to populate stops the change where it is: what was done stays done.
   */
  stateChange(offset: number, size: number, to: RamState): number {
    if (!this.#isValidRange(offset, size)) {
      this.#report(
        `ram block attributes: range ${hex(offset)}+${hex(size)} got, want pages within ${hex(this.size)}`,
      );
      return -ERRNO.EINVAL;
    }
    const first = offset / PAGE_SIZE;
    const end = first + size / PAGE_SIZE;
    const populate = to === 'populated';
    if (this.#nextBit(first, end, populate) === end) {
      this.#fill(first, end, populate);
      return this.#notify(offset, size, to);
    }
    for (let bit = this.#nextBit(first, end, !populate); bit < end; ) {
      this.#fill(bit, bit + 1, populate);
      const result = this.#notify(bit * PAGE_SIZE, PAGE_SIZE, to);
      if (result !== 0) return result;
      bit = this.#nextBit(bit + 1, end, !populate);
    }
    return 0;
  }

  /**
   * ram_discard_manager_register_listener: tells `listener` of each populated run within its section. 0, or what it
   * answered; then the runs after that one are not told.
   */
  registerListener(listener: RamDiscardListener): number {
    this.#listeners = [...this.#listeners, listener];
    return this.#forEachPopulatedRun(listener, (offset, size) => listener.notifyPopulate(offset, size));
  }

  /** ram_discard_manager_unregister_listener: everything that the listener has populated is discarded for it. */
  unregisterListener(listener: RamDiscardListener): void {
    if (this.#populatedPages > 0) {
      if (listener.doubleDiscardSupported) {
        listener.notifyDiscard(listener.offset, listener.size);
      } else {
        this.#forEachPopulatedRun(listener, (offset, size) => {
          listener.notifyDiscard(offset, size);
          return 0;
        });
      }
    }
    this.#listeners = this.#listeners.filter((other) => other !== listener);
  }

  #isValidRange(offset: number, size: number): boolean {
    return (
      offset >= 0 &&
      offset % PAGE_SIZE === 0 &&
      size % PAGE_SIZE === 0 &&
      offset + size > offset &&
      offset + size <= this.size
    );
  }

  #forEachPopulatedRun(section: RamDiscardListener, visit: (offset: number, size: number) => number): number {
    const end = Math.floor((section.offset + section.size) / PAGE_SIZE);
    let bit = this.#nextBit(Math.ceil(section.offset / PAGE_SIZE), end, true);
    while (bit < end) {
      const stop = this.#nextBit(bit, end, false);
      const result = visit(bit * PAGE_SIZE, (stop - bit) * PAGE_SIZE);
      if (result !== 0) return result;
      bit = this.#nextBit(stop, end, true);
    }
    return 0;
  }

  #notify(offset: number, size: number, to: RamState): number {
    for (const listener of this.#listeners) {
      const start = Math.max(offset, listener.offset);
      const bytes = Math.min(offset + size, listener.offset + listener.size) - start;
      if (bytes <= 0) continue;
      if (to === 'discarded') {
        listener.notifyDiscard(start, bytes);
      } else {
        const result = listener.notifyPopulate(start, bytes);
        if (result !== 0) return result;
      }
    }
    return 0;
  }

  #bit(index: number): boolean {
    return (this.#bitmap[index >>> 5]! & (1 << (index & 31))) !== 0;
  }

  /** The first page in [from, end) whose bit is `value`, or `end`. */
  #nextBit(from: number, end: number, value: boolean): number {
    const full = value ? 0 : 0xffffffff;
    let bit = from;
    while (bit < end) {
      if ((bit & 31) === 0 && this.#bitmap[bit >>> 5] === full) {
        bit += 32;
      } else if (this.#bit(bit) === value) {
        return bit;
      } else {
        bit++;
      }
    }
    return end;
  }

  /** Gives each page in [from, end) the bit `value`; all had the other one. */
  #fill(from: number, end: number, value: boolean): void {
    for (let bit = from; bit < end; ) {
      const whole = (bit & 31) === 0 && end - bit >= 32;
      const mask = whole ? 0xffffffff : 1 << (bit & 31);
      if (value) this.#bitmap[bit >>> 5]! |= mask;
      else this.#bitmap[bit >>> 5]! &= ~mask;
      bit += whole ? 32 : 1;
    }
    const pages = end - from;
    this.#changedPages += pages;
    this.#populatedPages += value ? pages : -pages;
  }
}
