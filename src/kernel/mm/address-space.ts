/**
 * The address space of a process (Linux `mm_struct`; mm/mmap.c, mm/memory.c, mm/gup.c, mm/madvise.c): mappings, the pages
 * behind them, and the notifiers of those who keep its frames. Pages come when they are touched.
 *
 * An entry of the page table is `pfn << 2 | OWNED | WRITABLE`. OWNED frames (anonymous memory and copies on write) are
 * freed with their entry; others belong to the file behind. There is no zero page in the table: a process that reads
 * anonymous memory it never wrote sees zeros and gets no frame, while KVM gets one at once.
 * Left out: mprotect, mremap, fork, swap, huge pages (every `order` is 0), a page's dirty and accessed bits.
 */
import {
  type Hva,
  hva,
  isPageAligned,
  PAGE_SIZE,
  type Pfn,
  pageAlignUp,
  type Spa,
} from '../../base/address.ts';
import { ERRNO, LinuxError, NotImplementedError } from '../../base/errors.ts';
import { type FrameOwner, type HostMemory, NO_FRAME } from '../../hardware/memory/host-memory.ts';
import { type FileTable, OpenFile } from '../files.ts';
import {
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  MADV_DONTNEED,
  MADV_REMOVE,
  PROT_WRITE,
  type ProcessMemory,
} from '../interface.ts';
import { Mapping, MappingList } from './mapping.ts';
import {
  checkMmap,
  checkOffset,
  isAnonymous,
  MAP_POPULATE,
  MAX_MAP_COUNT,
  type MmapRequest,
  TASK_SIZE,
} from './mmap-rules.ts';
import { MmuNotifiers } from './mmu-notifier.ts';
import { PageEntries } from './page-entries.ts';
import { PAGE_FAULT } from './page-source.ts';
import { SharedMemory } from './shared-memory.ts';

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

/** Advice that changes nothing that can be seen here. */
const HINTS: ReadonlySet<number> = new Set([0, 1, 2, 3, 10, 11, 12, 13, 14, 15, 16, 17]);
/** Advice of Linux that would have to do something: FREE, COLD, PAGEOUT, POPULATE_…, DONTNEED_LOCKED, … COLLAPSE (25) is EINVAL, as it
 * is for mappings that take no huge pages: here none does. */
const UNSUPPORTED_ADVICE: ReadonlySet<number> = new Set([8, 18, 19, 20, 21, 22, 23, 24, 100, 101, 102, 103]);

/** What `faultIn` found; one object that each call fills anew. */
export interface HostPage {
  pfn: Pfn;
  /** The frame may be written to without asking again. */
  writable: boolean;
  /** The mapping is physically contiguous and aligned for 2^order pages. */
  order: number;
}

export class AddressSpace implements ProcessMemory {
  /** Who hears when frames go. */
  readonly notifiers = new MmuNotifiers();
  /** The page that the last `faultIn` which returned 0 found. */
  readonly page: HostPage = { pfn: 0 as Pfn, writable: false, order: 0 };
  readonly #memory: HostMemory;
  readonly #owner: FrameOwner;
  readonly #files: FileTable;
  readonly #mappings = new MappingList();
  readonly #entries = new PageEntries();
  #pending: Promise<void> | undefined;

  /** Frames of anonymous memory are accounted to `owner`; `files` is where mmap looks descriptors up. */
  constructor(options: { memory: HostMemory; owner: FrameOwner; files: FileTable }) {
    this.#memory = options.memory;
    this.#owner = options.owner;
    this.#files = options.files;
  }

  /** Set after `faultIn` returned FAULT_PENDING. Never rejects. */
  get pending(): Promise<void> | undefined {
    return this.#pending;
  }

  get mappingCount(): number {
    return this.#mappings.count;
  }

  /** Pages that have an entry now (the resident set). */
  get residentPages(): number {
    return this.#entries.count;
  }

  /**
   * Errors: EINVAL (length 0, misaligned offset or fixed address, no mapping type), EBADF, EACCES (file not open for what the
   * mapping needs), ENODEV (file cannot be mapped), ENOMEM (beyond the address space, too many mappings), EPERM (fixed
   * below 64 KiB), EOVERFLOW, and what the file's own mmap refuses.
   */
  mmap(request: MmapRequest): Hva {
    checkOffset(request);
    const file = isAnonymous(request) ? undefined : this.#files.get(request.fd ?? -1);
    const { start, end, shared, mayWrite, firstPage } = checkMmap(request, file, this.#mappings);
    const content = { protection: request.protection, shared, mayWrite };
    let mapping = new Mapping(this, start, end, firstPage, content);
    if (file !== undefined) {
      const source = file.operations.mmap!({ shared });
      mapping = new Mapping(this, start, end, firstPage, { ...content, backing: { file, source } });
    } else if (shared) {
      const object = new SharedMemory({ memory: this.#memory, name: '/dev/zero (deleted)' });
      object.truncate(end - start);
      const backing = { file: new OpenFile(object), source: object };
      mapping = new Mapping(this, start, end, 0, { ...content, backing });
    }
    this.#unmapRange(start, end);
    this.#mappings.insert(mapping);
    if ((request.flags & MAP_POPULATE) !== 0) this.#populate(mapping);
    return start;
  }

  /** Errors: EINVAL (misaligned address, length 0, beyond the address space), ENOMEM (a split makes too many mappings). */
  munmap(address: Hva, length: number): void {
    const bytes = pageAlignUp(length);
    if (!isPageAligned(address) || !(address >= 0 && bytes > 0 && bytes <= TASK_SIZE - address)) {
      throw new LinuxError('EINVAL', `munmap: address 0x${address.toString(16)}, length ${length}`);
    }
    const around = this.#mappings.find(address);
    if (
      around &&
      around.start < address &&
      around.end > address + bytes &&
      this.#mappings.count >= MAX_MAP_COUNT
    ) {
      throw new LinuxError('ENOMEM', `munmap: more than ${MAX_MAP_COUNT} mappings`);
    }
    this.#unmapRange(address, hva(address + bytes));
  }

  /**
   * DONTNEED drops pages; REMOVE punches them out of the file behind. Hints are checked and change nothing. Errors: EINVAL
   * (unknown advice, misaligned, REMOVE of memory without a file), EACCES (REMOVE of a private or read-only mapping),
   * ENOMEM (part of the range is not mapped; the rest is done).
   */
  madvise(address: Hva, length: number, advice: number): void {
    if (UNSUPPORTED_ADVICE.has(advice)) throw new NotImplementedError(`madvise ${advice}`);
    const bytes = pageAlignUp(length);
    const known = advice === MADV_DONTNEED || advice === MADV_REMOVE || HINTS.has(advice);
    if (!known || !isPageAligned(address) || !(bytes >= 0 && address + bytes <= Number.MAX_SAFE_INTEGER)) {
      throw new LinuxError(
        'EINVAL',
        `madvise ${advice}: address 0x${address.toString(16)}, length ${length}`,
      );
    }
    // A negative length that is rounded up to 0 is none.
    if (bytes === 0 && length !== 0) throw new LinuxError('EINVAL', `madvise ${advice}: length ${length}`);
    if (bytes === 0) return;
    const end = address + bytes;
    let reached: number = address;
    let holes = false;
    for (const mapping of this.#mappings.overlapping(address, end)) {
      const start = hva(Math.max(address, mapping.start));
      const stop = hva(Math.min(end, mapping.end));
      holes ||= start > reached;
      reached = stop;
      if (advice === MADV_DONTNEED) this.#zap(start, stop);
      else if (advice === MADV_REMOVE) removePages(mapping, start, stop);
    }
    if (holes || reached < end) {
      throw new LinuxError(
        'ENOMEM',
        `madvise ${advice}: 0x${address.toString(16)}, ${length} is not all mapped`,
      );
    }
  }

  /** Throws LinuxError with `signal`; ENOMEM when the host is out of frames, EAGAIN when a page is on its way. */
  read(at: Hva, into: Uint8Array): void {
    const failure = this.#read(at, into);
    if (failure !== 0) throw this.#signal(`read of ${into.length} bytes at 0x${at.toString(16)}`, failure);
  }

  /** As `read`. What lies before the failing page is written. */
  write(at: Hva, from: Uint8Array): void {
    const failure = this.#write(at, from);
    if (failure !== 0) throw this.#signal(`write of ${from.length} bytes at 0x${at.toString(16)}`, failure);
  }

  /** The kernel reads memory of the process. Throws EFAULT (EAGAIN when a page is on its way). */
  copyFromUser(at: Hva, into: Uint8Array): void {
    const failure = this.#read(at, into);
    if (failure !== 0) throw this.#userFault('copy_from_user', failure);
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

  /** The kernel writes memory of the process. Throws EFAULT (EAGAIN when a page is on its way). */
  copyToUser(at: Hva, from: Uint8Array): void {
    const failure = this.#write(at, from);
    if (failure !== 0) throw this.#userFault('copy_to_user', failure);
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
      entry = this.#memory.trace.tellAfter(() => this.#fault(number, access.write));
      if (entry < 0) return this.#errnoOf(entry);
    }
    this.page.pfn = (entry >> PFN_SHIFT) as Pfn;
    this.page.writable = (entry & WRITABLE) !== 0;
    return 0;
  }

  /** Unmaps everything (exit_mmap). */
  exit(): void {
    this.#unmapRange(hva(0), hva(TASK_SIZE));
  }

  beginUnmap(start: Hva, end: Hva): void {
    this.notifiers.begin(start, end);
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

  endUnmap(start: Hva, end: Hva): void {
    this.notifiers.end(start, end);
  }

  #zap(start: Hva, end: Hva): void {
    this.#memory.trace.tellAfter(() => {
      this.notifiers.begin(start, end);
      this.unmap(start, end, { cowed: 'drop' });
      this.notifiers.end(start, end);
    });
  }

  #unmapRange(start: Hva, end: Hva): void {
    const hit = this.#mappings.overlapping(start, end);
    if (hit.length === 0) return;
    const first = hva(Math.max(start, hit[0]!.start));
    const last = hva(Math.min(end, hit.at(-1)!.end));
    this.#memory.trace.tellAfter(() => {
      this.#zap(first, last);
      this.#mappings.remove(first, last);
    });
  }

  #populate(mapping: Mapping): void {
    const access = (mapping.content.protection & PROT_WRITE) !== 0 ? WRITE_ACCESS : READ_ACCESS;
    for (let at: number = mapping.start; at < mapping.end; at += PAGE_SIZE) {
      if (this.faultIn(at as Hva, access) !== 0) return;
    }
  }

  /** Makes the entry of a page and returns it, or a negative code. Whoever calls holds the trace: a listener may take the page away. */
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
      if (frame === PAGE_FAULT.PENDING) this.#pending = backing.source.pending;
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
    if (mapped) this.notifiers.begin(at, hva(at + PAGE_SIZE));
    const entry = this.#install(page, frame, OWNED | WRITABLE);
    if (mapped) this.notifiers.end(at, hva(at + PAGE_SIZE));
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
  #read(at: Hva, into: Uint8Array): number {
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

  /** As `#read`. */
  #write(at: Hva, from: Uint8Array): number {
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

  #signal(what: string, code: number): LinuxError {
    switch (code) {
      case PAGE_FAULT.NO_MEMORY:
        return new LinuxError('ENOMEM', `${what}: the host has no free frame`);
      case PAGE_FAULT.PENDING:
        return new LinuxError('EAGAIN', `${what}: the page is on its way`);
      case PAGE_FAULT.SIGBUS:
      case PAGE_FAULT.HWPOISON:
        return new LinuxError('EFAULT', `${what}: the file has no such page`, 'SIGBUS');
      default:
        return new LinuxError('EFAULT', `${what}: not mapped, or not permitted`, 'SIGSEGV');
    }
  }

  #userFault(what: string, code: number): LinuxError {
    if (code === PAGE_FAULT.PENDING) return new LinuxError('EAGAIN', `${what}: the page is on its way`);
    return new LinuxError('EFAULT', `${what}: bad address`);
  }
}

/** madvise(MADV_REMOVE): the file's fallocate punches. */
function removePages(mapping: Mapping, start: Hva, end: Hva): void {
  const { backing, mayWrite, shared } = mapping.content;
  if (backing === undefined)
    throw new LinuxError('EINVAL', 'madvise REMOVE: private anonymous memory has no file');
  if (!shared || !mayWrite) throw new LinuxError('EACCES', 'madvise REMOVE: not a shared, writable mapping');
  const offset = BigInt(mapping.pageAt(start)) * BigInt(PAGE_SIZE);
  backing.file.fallocate(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, BigInt(end - start));
}
