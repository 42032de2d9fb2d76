/**
 * The pages behind the mappings of a process (Linux mm/memory.c, mm/gup.c): they come when somebody touches them, by access of the process or of the kernel on its behalf.
 *
 * An entry is `pfn << 2 | OWNED | WRITABLE`. OWNED frames (anonymous memory and copies on write) are freed with their entry; others belong to the file behind. There is no
 * zero page in the table: a process that reads anonymous memory it never wrote sees zeros and gets no frame, while KVM gets one at once.
 *
 * What returns a code returns 0, or a negative one: SEGV or PAGE_FAULT. Left out: swap, huge pages (every `order` is 0), a page's dirty and accessed bits.
 */
import { type Hva, hva, PAGE_SIZE, type Pfn, type Spa } from '../../base/address.ts';
import { ERRNO } from '../../base/errors.ts';
import { type FrameOwner, type HostMemory, NO_FRAME } from '../../hardware/memory/host-memory.ts';
import { PROT_WRITE } from '../interface.ts';
import type { MappingList } from './mapping.ts';
import type { MmuNotifiers } from './mmu-notifier.ts';
import { PageEntries } from './page-entries.ts';
import { PAGE_FAULT } from './page-source.ts';

const WRITABLE = 1;
const OWNED = 2;
const PFN_SHIFT = 2;

/** No access that the mapping (or its absence) allows: SIGSEGV. Beside the PAGE_FAULT codes. */
const SEGV = -10;

/** `faultIn` returns this when the page is on its way. */
export const FAULT_PENDING = 1;

export interface Access {
  readonly write: boolean;
}
/** To ask for without allocating. */
export const READ_ACCESS: Access = { write: false };
export const WRITE_ACCESS: Access = { write: true };

/** What `faultIn` found; one object that each call fills anew. */
export interface HostPage {
  pfn: Pfn;
  /** The frame may be written to without asking again. */
  writable: boolean;
  /** The mapping is physically contiguous and aligned for 2^order pages. */
  order: number;
}

export class PageTable {
  /** The page that the last `faultIn` which returned 0 found. */
  readonly page: HostPage = { pfn: 0 as Pfn, writable: false, order: 0 };
  /** Set after `faultIn` returned FAULT_PENDING. Never rejects. */
  pending: Promise<void> | undefined;
  readonly #memory: HostMemory;
  readonly #owner: FrameOwner;
  readonly #mappings: MappingList;
  readonly #notifiers: MmuNotifiers;
  readonly #entries = new PageEntries();

  /** Frames of anonymous memory are accounted to `owner`. */
  constructor(options: {
    memory: HostMemory;
    owner: FrameOwner;
    mappings: MappingList;
    notifiers: MmuNotifiers;
  }) {
    this.#memory = options.memory;
    this.#owner = options.owner;
    this.#mappings = options.mappings;
    this.#notifiers = options.notifiers;
  }

  /** Pages that have an entry now (the resident set). */
  get resident(): number {
    return this.#entries.count;
  }

  /**
   * get_user_pages for one page, which stays valid until the notifiers hear of its end. 0: `page` is filled. Negative: −EFAULT
   * (14: nothing mapped, not permitted, beyond the file), −ENOMEM (12), −EHWPOISON (133). FAULT_PENDING: ask again when
   * `pending` is settled. Allocates nothing when the page is present.
   */
  faultIn(at: Hva, access: Access): number {
    const number = Math.floor(at / PAGE_SIZE);
    let entry = this.#entries.get(number);
    if (entry === 0 || (access.write && (entry & WRITABLE) === 0)) {
      entry = this.#bring(number, access.write);
      if (entry < 0) return this.#errnoOf(entry);
    }
    this.page.pfn = (entry >> PFN_SHIFT) as Pfn;
    this.page.writable = (entry & WRITABLE) !== 0;
    return 0;
  }

  /**
   * get_user_pages for reading: what copies from there next meets nobody who brings a page, nor what that does meanwhile. 0, FAULT_PENDING or a
   * negative errno, as `faultIn`.
   */
  faultInToRead(at: Hva, length: number): number {
    const { trace } = this.#memory;
    trace.hold();
    try {
      for (let page = Math.floor(at / PAGE_SIZE); page * PAGE_SIZE < at + length; page++) {
        const frame = this.#frameToRead(page);
        if (frame < 0) return this.#errnoOf(frame);
      }
      return 0;
    } finally {
      trace.letGo();
    }
  }

  /** Straight into host memory at `to`, from pages that are there (`faultInToRead`): brings none. 0, or −EFAULT where one is not. */
  copyPresentTo(at: Hva, to: Spa, length: number): number {
    for (let done = 0; done < length; ) {
      const from = at + done;
      const offset = from % PAGE_SIZE;
      const frame = this.#presentFrame((from - offset) / PAGE_SIZE);
      if (frame < 0) return this.#errnoOf(frame);
      const count = Math.min(length - done, PAGE_SIZE - offset);
      this.#memory.copy((to + done) as Spa, (frame * PAGE_SIZE + offset) as Spa, count);
      done += count;
    }
    return 0;
  }

  /** Listeners hear of it when it is whole: they may take the page away. */
  #bring(page: number, write: boolean): number {
    const { trace } = this.#memory;
    trace.hold();
    try {
      return this.#fault(page, write);
    } finally {
      trace.letGo();
    }
  }

  /** Makes the entry of a page and returns it, or a negative code. Whoever calls holds the trace. */
  #fault(page: number, write: boolean): number {
    const mapping = this.#mappings.find(page * PAGE_SIZE);
    if (mapping === undefined) return SEGV;
    const { protection, shared, backing } = mapping.content;
    const mayStore = (protection & PROT_WRITE) !== 0;
    if (protection === 0 || (write && !mayStore)) return SEGV;
    if (backing === undefined)
      return this.#install(page, this.#newFrame(), OWNED | (mayStore ? WRITABLE : 0));
    const present = this.#entries.get(page);
    const frame =
      present === 0 ? backing.source.fault(mapping.pageAt(page * PAGE_SIZE)) : present >> PFN_SHIFT;
    if (frame < 0) {
      if (frame === PAGE_FAULT.PENDING) this.pending = backing.source.pending;
      return frame;
    }
    if (shared) return this.#install(page, frame, mayStore ? WRITABLE : 0);
    if (!write) return this.#install(page, frame, 0);
    return this.#copyOnWrite(page, frame, present !== 0);
  }

  /** Gives the process its own copy of a file's page. Who holds the file's frame (`mapped`) must let go of it. */
  #copyOnWrite(page: number, from: number, mapped: boolean): number {
    const frame = this.#newFrame();
    if (frame < 0) return frame;
    this.#memory.copy((frame * PAGE_SIZE) as Spa, (from * PAGE_SIZE) as Spa, PAGE_SIZE);
    const at = hva(page * PAGE_SIZE);
    if (mapped) this.#notifiers.begin(at, hva(at + PAGE_SIZE));
    const entry = this.#install(page, frame, OWNED | WRITABLE);
    if (mapped) this.#notifiers.end(at, hva(at + PAGE_SIZE));
    return entry;
  }

  #newFrame(): number {
    const frame = this.#memory.allocate(0, this.#owner);
    return frame === NO_FRAME ? PAGE_FAULT.NO_MEMORY : frame;
  }

  #install(page: number, frame: number, bits: number): number {
    if (frame < 0) return frame;
    const entry = (frame << PFN_SHIFT) | bits;
    this.#entries.set(page, entry);
    return entry;
  }

  /** 0, or a negative code. Listeners hear of the pages that it brought when it is done: they may take them away. */
  read(at: Hva, into: Uint8Array): number {
    const { trace } = this.#memory;
    trace.hold();
    try {
      return this.#readHeld(at, into);
    } finally {
      trace.letGo();
    }
  }

  #readHeld(at: Hva, into: Uint8Array): number {
    for (let done = 0; done < into.length; ) {
      const from = at + done;
      const offset = from % PAGE_SIZE;
      const page = (from - offset) / PAGE_SIZE;
      const frame = this.#frameToRead(page);
      if (frame < 0) return frame;
      const count = this.#inOnePiece(page, offset, into.length - done);
      const part = count === into.length ? into : into.subarray(done, done + count);
      this.#memory.read((frame * PAGE_SIZE + offset) as Spa, part);
      done += count;
    }
    return 0;
  }

  /** Anonymous memory that was never touched is frame 0, the zero page. SEGV: the page is not there. */
  #presentFrame(page: number): number {
    const entry = this.#entries.get(page);
    if (entry !== 0) return entry >> PFN_SHIFT;
    const mapping = this.#mappings.find(page * PAGE_SIZE);
    return mapping !== undefined && mapping.content.backing === undefined && mapping.content.protection !== 0
      ? 0
      : SEGV;
  }

  /** As a fault for reading. */
  #frameToRead(page: number): number {
    const frame = this.#presentFrame(page);
    if (frame >= 0) return frame;
    const entry = this.#fault(page, false);
    return entry < 0 ? entry : entry >> PFN_SHIFT;
  }

  /** As `read`. */
  write(at: Hva, from: Uint8Array): number {
    const { trace } = this.#memory;
    trace.hold();
    try {
      return this.#writeHeld(at, from);
    } finally {
      trace.letGo();
    }
  }

  #writeHeld(at: Hva, from: Uint8Array): number {
    for (let done = 0; done < from.length; ) {
      const to = at + done;
      const offset = to % PAGE_SIZE;
      const page = (to - offset) / PAGE_SIZE;
      let entry = this.#entries.get(page);
      if ((entry & WRITABLE) === 0) {
        entry = this.#fault(page, true);
        if (entry < 0) return entry;
      }
      const count = this.#inOnePiece(page, offset, from.length - done);
      const part = count === from.length ? from : from.subarray(done, done + count);
      this.#memory.write(((entry >> PFN_SHIFT) * PAGE_SIZE + offset) as Spa, part);
      done += count;
    }
    return 0;
  }

  /** How many of the `bytes` bytes at `offset` of a page that is there lie in frames one behind the other, mapped alike. */
  #inOnePiece(page: number, offset: number, bytes: number): number {
    if (bytes <= PAGE_SIZE - offset) return bytes;
    const pages = this.#entries.series(page, Math.ceil((offset + bytes) / PAGE_SIZE), 1 << PFN_SHIFT);
    return Math.min(bytes, pages * PAGE_SIZE - offset);
  }

  #errnoOf(code: number): number {
    if (code === PAGE_FAULT.PENDING) return FAULT_PENDING;
    if (code === PAGE_FAULT.NO_MEMORY) return -ERRNO.ENOMEM;
    return code === PAGE_FAULT.HWPOISON ? -ERRNO.EHWPOISON : -ERRNO.EFAULT;
  }

  /** Removes entries, without telling the notifiers: for a file that takes its pages away. */
  unmap(start: Hva, end: Hva, options: { cowed: 'keep' | 'drop' }): void {
    this.#entries.forEachIn(start / PAGE_SIZE, end / PAGE_SIZE, (page, entry) => {
      if ((entry & OWNED) !== 0) {
        if (options.cowed === 'keep') return;
        this.#memory.free((entry >> PFN_SHIFT) as Pfn, 0);
      }
      this.#entries.set(page, 0);
    });
  }
}
