/**
 * guest_memfd: a file whose pages only guests see (Linux virt/kvm/guest_memfd.c). It belongs to the VM that made it and keeps it
 * alive; slots bind ranges of it. It has no read and no write; fallocate fills and punches; with the MMAP flag it can be mapped, and with
 * INIT_SHARED its pages can then be touched.
 *
 * Pages come when a guest faults on them, one by one, or as folios of 2 MiB where the host was made so (an option of ours: upstream
 * has order 0 alone). A `PageFiller` may deliver a page's first content later; whoever needs that page waits.
 *
 * Left out: NUMA policy.
 */
import { type Gfn, PAGE_SIZE, type Pfn, pfn, spaOf } from '../../base/address.ts';
import { ERRNO, type ErrnoName, LinuxError } from '../../base/errors.ts';
import type { Trace } from '../../base/trace.ts';
import { type FrameOwner, type HostMemory, NO_FRAME } from '../../hardware/memory/host-memory.ts';
import type { FileOperations, FileStat } from '../files.ts';
import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE } from '../interface.ts';
import { PageEntries } from '../mm/page-entries.ts';
import { FileMappings, PAGE_FAULT, type PageSource } from '../mm/page-source.ts';
import { GmemBindings } from './gmem-bindings.ts';
import type { MemorySlot } from './memory-slots.ts';
import { BACKING_PENDING, type BackingPage } from './mmu/guest-memory.ts';

/**
 * Gives the first content of page `index`, a page at most: now, later, or none (a page of zeros). Does not throw; where a promise
 * fails the page is poisoned, as if reading a backing store had failed.
 */
export type PageFiller = (index: number) => Uint8Array | Promise<Uint8Array> | undefined;

/** What a file asks of its VM. */
export interface GuestMemfdVm {
  readonly memory: HostMemory;
  readonly trace: Trace;
  /** 2 MiB folios where an aligned 2 MiB range of the file is empty and the host has a block. */
  readonly gmemHuge: boolean;
  /** Invalidation, from its begin to its end, of these gfns of these slots; `free` gives the pages up in between. */
  invalidateGmem(ranges: readonly SlotRange[], why: string, free: () => void): void;
  /** 2^`order` frames of the file are about to be freed. False: they cannot be, and stay the file's for ever. */
  gmemInvalidate(frame: Pfn, order: number): boolean;
  /** The file's hold on the VM ends. */
  release(): void;
}

export interface SlotRange {
  readonly slot: MemorySlot;
  readonly start: Gfn;
  readonly end: Gfn;
}

const HUGE_ORDER = 9;
const HUGE_PAGES = 1 << HUGE_ORDER;
/** A page whose content is on its way, and the frame that waits for it. */
interface Arrival {
  readonly frame: Pfn;
  /** Settles when the content is there, or nobody wants it any more. */
  readonly settled: Promise<void>;
  readonly settle: () => void;
}

/** Bit of an entry: the page is part of a whole 2 MiB folio. Pfns are below 2^20. */
const FOLIO = 1 << 30;

export class GuestMemfd implements FileOperations {
  readonly name = '[kvm-gmem]';
  readonly vm: GuestMemfdVm;
  /** In bytes. Whole pages, so exact up to 2^63. */
  readonly size: number;
  readonly mayMmap: boolean;
  readonly initShared: boolean;
  readonly #memory: HostMemory;
  readonly #owner: FrameOwner;
  readonly #pages = new PageEntries();
  readonly #mappings = new FileMappings();
  readonly #poisoned = new Set<number>();
  readonly #arrivals = new Map<number, Arrival>();
  readonly #bindings = new GmemBindings();
  #filler: PageFiller | undefined = undefined;
  #hugeFolios = 0;
  /** A filler may have closed the file. */
  #released = false;
  /** What the last page that was PENDING waits for. */
  #pending: Promise<void> | undefined = undefined;

  constructor(vm: GuestMemfdVm, request: { size: number; mayMmap: boolean; initShared: boolean }) {
    this.vm = vm;
    this.size = request.size;
    this.mayMmap = request.mayMmap;
    this.initShared = request.initShared;
    this.#memory = vm.memory;
    this.#owner = vm.memory.owner('guest_memfd');
    this.#traceFile('gmem-create');
  }

  /** Frames that the file holds, and how many of them in whole 2 MiB folios. */
  get frames(): { all: number; huge: number } {
    return { all: this.#pages.count + this.#arrivals.size, huge: this.#hugeFolios * HUGE_PAGES };
  }

  /** From now on pages that come into being get their content from `filler`. */
  fillWith(filler: PageFiller | undefined): void {
    this.#filler = filler;
  }

  stat(): FileStat {
    return { size: BigInt(this.size), blockSize: PAGE_SIZE, pages: this.#pages.count };
  }

  fallocate(mode: number, offset: number, length: number): void {
    if ((mode & FALLOC_FL_KEEP_SIZE) === 0)
      throw new LinuxError('EOPNOTSUPP', `fallocate of ${this.name}: mode ${mode} without KEEP_SIZE`);
    if ((mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE)) !== 0)
      throw new LinuxError('EOPNOTSUPP', `fallocate of ${this.name}: mode ${mode}`);
    if (offset % PAGE_SIZE !== 0 || length % PAGE_SIZE !== 0)
      throw new LinuxError(
        'EINVAL',
        `fallocate of ${this.name}: offset ${offset} and length ${length} are not whole pages`,
      );
    const first = offset / PAGE_SIZE;
    const end = first + length / PAGE_SIZE;
    if ((mode & FALLOC_FL_PUNCH_HOLE) !== 0)
      this.#punch(first, Math.min(end, this.#pageCount()), 'punch hole');
    else this.vm.trace.tellAfter(() => this.#allocate(first, end));
  }

  mmap(request: { shared: boolean }): PageSource {
    if (!this.mayMmap) throw new LinuxError('ENODEV', `mmap of ${this.name}: made without the MMAP flag`);
    if (!request.shared) throw new LinuxError('EINVAL', `mmap of ${this.name}: MAP_PRIVATE, want MAP_SHARED`);
    const pending = (): Promise<void> | undefined => this.#pending;
    return {
      mappings: this.#mappings,
      fault: (index) => this.#userFault(index),
      get pending() {
        return pending();
      },
    };
  }

  release(): void {
    const why = 'guest_memfd closed';
    this.#released = true;
    this.vm.trace.tellAfter(() => {
      this.vm.invalidateGmem(this.#boundRanges(0, this.#pageCount()), why, () => {
        for (const slot of this.#bindings.clear()) slot.gmem = undefined;
        this.#freePages(0, this.#pageCount(), why);
      });
      this.#traceFile('gmem-close');
      this.vm.release();
    });
  }

  /** kvm_gmem_bind of whole pages. `overlap` is the errno for pages that another slot binds. */
  bind(slot: MemorySlot, offset: bigint, overlap: ErrnoName): void {
    const bytes = BigInt(slot.npages) * 4096n;
    if (offset + bytes > BigInt(this.size)) {
      throw new LinuxError(
        'EINVAL',
        `guest_memfd_offset ${offset}: with ${bytes} bytes it must lie in the file's ${this.size}`,
      );
    }
    const first = slot.gmemPgoff;
    const end = first + slot.npages;
    const [other] = this.#bindings.within(first, end);
    if (other !== undefined)
      throw new LinuxError(
        overlap,
        `pages ${first} to ${end - 1} of the guest_memfd: slot ${other.id} binds some of them`,
      );
    this.#bindings.add(slot);
    slot.gmem = this;
  }

  unbind(slot: MemorySlot): void {
    this.#bindings.remove(slot);
    slot.gmem = undefined;
  }

  /** kvm_gmem_get_pfn: 0 and `into` filled; −EIO, −EFAULT (closed meanwhile), −EHWPOISON, −ENOMEM; or BACKING_PENDING. */
  getPfn(slot: MemorySlot, gfn: Gfn, into: BackingPage): number {
    const index = gfn - slot.baseGfn + slot.gmemPgoff;
    if (this.#bindings.at(index) !== slot) return -ERRNO.EIO;
    const { trace } = this.vm;
    trace.hold();
    try {
      return this.#getPfn(index, into);
    } finally {
      trace.letGo();
    }
  }

  #getPfn(index: number, into: BackingPage): number {
    const result = this.#getPage(index);
    if (result === PAGE_FAULT.PENDING) {
      into.pending = this.#pending;
      return BACKING_PENDING;
    }
    if (result === PAGE_FAULT.HWPOISON) return -ERRNO.EHWPOISON;
    if (result === PAGE_FAULT.SIGBUS) return -ERRNO.EFAULT;
    if (result < 0) return -ERRNO.ENOMEM;
    into.pfn = pfn(result & ~FOLIO);
    into.order = (result & FOLIO) === 0 ? 0 : HUGE_ORDER;
    return 0;
  }

  /**
   * A memory failure in page `index` (kvm_gmem_error_folio): unmapped, kept, and poisoned until it is punched. A folio around it falls
   * into pages, or a neighbour's fault would map it along.
   */
  failPage(index: number): void {
    const entry = this.#pages.get(index);
    if (entry === 0) return;
    if ((entry & FOLIO) !== 0) this.#freeOrSplitFolio(index, index, index + 1);
    this.#poisoned.add(index);
    this.vm.invalidateGmem(this.#boundRanges(index, index + 1), 'memory failure', () => {
      this.#mappings.unmap(index, index + 1, { cowed: 'keep' }, () => {});
    });
  }

  #pageCount(): number {
    return this.size / PAGE_SIZE;
  }

  #userFault(index: number): Pfn | number {
    if (index >= this.#pageCount() || !this.initShared) return PAGE_FAULT.SIGBUS;
    const result = this.#getPage(index);
    return result < 0 ? result : pfn(result & ~FOLIO);
  }

  /** The entry of page `index`, allocated when absent, or a PAGE_FAULT code. */
  #getPage(index: number): number {
    const entry = this.#pages.get(index);
    if (entry !== 0)
      return this.#poisoned.size > 0 && this.#poisoned.has(index) ? PAGE_FAULT.HWPOISON : entry;
    const arrival = this.#arrivals.size > 0 ? this.#arrivals.get(index) : undefined;
    if (arrival === undefined)
      return this.#filler === undefined ? this.#create(index) : this.#fill(index, this.#filler);
    this.#pending = arrival.settled;
    return PAGE_FAULT.PENDING;
  }

  /** The frame comes first: content that arrives finds its place. */
  #fill(index: number, filler: PageFiller): number {
    const frame = this.#memory.allocate(0, this.#owner);
    if (frame === NO_FRAME) return PAGE_FAULT.NO_MEMORY;
    const content = filler(index);
    if (this.#released) {
      if (content instanceof Promise) content.catch(() => {});
      this.#free(frame, 0);
      return PAGE_FAULT.SIGBUS;
    }
    if (content instanceof Promise) {
      this.#pending = this.#await(index, frame, content);
      return PAGE_FAULT.PENDING;
    }
    this.#pages.set(index, frame);
    if (content !== undefined) this.#memory.write(spaOf(frame), content.subarray(0, PAGE_SIZE));
    return frame;
  }

  #await(index: number, frame: Pfn, content: Promise<Uint8Array>): Promise<void> {
    let settle = (): void => {};
    const settled = new Promise<void>((resolve) => {
      settle = resolve;
    });
    const arrival = { frame, settled, settle };
    this.#arrivals.set(index, arrival);
    content.then(
      (bytes) => this.#arrive(index, arrival, bytes),
      () => this.#arrive(index, arrival, undefined),
    );
    return settled;
  }

  /** The content of page `index` is there, or (undefined) will never be; the page may have been punched meanwhile. */
  #arrive(index: number, arrival: Arrival, content: Uint8Array | undefined): void {
    if (this.#arrivals.get(index) !== arrival) return;
    this.#arrivals.delete(index);
    this.#pages.set(index, arrival.frame);
    if (content === undefined) this.#poisoned.add(index);
    else this.#memory.write(spaOf(arrival.frame), content.subarray(0, PAGE_SIZE));
    arrival.settle();
  }

  #create(index: number): number {
    const base = Math.floor(index / HUGE_PAGES) * HUGE_PAGES;
    if (this.vm.gmemHuge && this.#isEmpty(base) && base + HUGE_PAGES <= this.#pageCount()) {
      const block = this.#memory.allocate(HUGE_ORDER, this.#owner);
      if (block !== NO_FRAME) {
        for (let i = 0; i < HUGE_PAGES; i++) this.#pages.set(base + i, (block + i) | FOLIO);
        this.#hugeFolios++;
        return this.#pages.get(index);
      }
    }
    const frame = this.#memory.allocate(0, this.#owner);
    if (frame === NO_FRAME) return PAGE_FAULT.NO_MEMORY;
    this.#pages.set(index, frame);
    return frame;
  }

  /** No folio where a page of it exists, or may be on its way. */
  #isEmpty(base: number): boolean {
    if (this.#arrivals.size > 0) return false;
    let empty = true;
    this.#pages.forEachIn(base, base + HUGE_PAGES, () => {
      empty = false;
    });
    return empty;
  }

  #allocate(first: number, end: number): void {
    if (end > this.#pageCount()) {
      throw new LinuxError(
        'EINVAL',
        `fallocate of ${this.name}: pages ${first} to ${end - 1}, the file has ${this.#pageCount()}`,
      );
    }
    for (let index = first; index < end; index++) {
      if (this.#getPage(index) === PAGE_FAULT.NO_MEMORY)
        throw new LinuxError('ENOMEM', `fallocate of ${this.name}: no frame for page ${index}`);
    }
  }

  #punch(first: number, end: number, why: string): void {
    this.vm.invalidateGmem(this.#boundRanges(first, end), why, () => {
      this.#mappings.unmap(first, end, { cowed: 'keep' }, () => this.#freePages(first, end, why));
    });
  }

  #freePages(first: number, end: number, why: string): void {
    const before = this.frames.all;
    for (const [index, arrival] of this.#arrivals) {
      if (index < first || index >= end) continue;
      this.#arrivals.delete(index);
      this.#free(arrival.frame, 0);
      arrival.settle();
    }
    for (const index of this.#poisoned) if (index >= first && index < end) this.#poisoned.delete(index);
    this.#pages.forEachIn(first, end, (index, entry) => {
      if ((entry & FOLIO) !== 0 && this.#freeOrSplitFolio(index, first, end)) return;
      this.#pages.set(index, 0);
      this.#free(pfn(entry & ~FOLIO), 0);
    });
    const pages = before - this.frames.all;
    if (pages > 0 && this.vm.trace.on)
      this.vm.trace.emit({ kind: 'page', who: 'kernel', what: 'gmem-free', why, page: first, pages });
  }

  #free(frame: Pfn, order: number): void {
    if (this.vm.gmemInvalidate(frame, order)) this.#memory.free(frame, order);
  }

  /** The folio around page `index` is one no more: true when all of it went with [first, end); else its pages live on by themselves. */
  #freeOrSplitFolio(index: number, first: number, end: number): boolean {
    const base = Math.floor(index / HUGE_PAGES) * HUGE_PAGES;
    const whole = base >= first && base + HUGE_PAGES <= end;
    const block = pfn(this.#pages.get(base) & ~FOLIO);
    for (let page = base; page < base + HUGE_PAGES; page++)
      this.#pages.set(page, whole ? 0 : this.#pages.get(page) & ~FOLIO);
    if (whole) this.#free(block, HUGE_ORDER);
    this.#hugeFolios--;
    return whole;
  }

  /** The gfns at which slots show pages [first, end). */
  #boundRanges(first: number, end: number): SlotRange[] {
    return this.#bindings.within(first, end).map((slot) => {
      const from = Math.max(first, slot.gmemPgoff);
      const to = Math.min(end, slot.gmemPgoff + slot.npages);
      const shift = slot.baseGfn - slot.gmemPgoff;
      return { slot, start: (from + shift) as Gfn, end: (to + shift) as Gfn };
    });
  }

  #traceFile(what: 'gmem-create' | 'gmem-close'): void {
    if (this.vm.trace.on) this.vm.trace.emit({ kind: 'vm', who: 'kernel', what, pages: this.#pageCount() });
  }
}
