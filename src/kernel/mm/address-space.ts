/**
 * The address space of a process (Linux `mm_struct`; mm/mmap.c, mm/madvise.c, lib/usercopy.c): mappings, the pages behind them (page-table.ts), and the notifiers of those
 * who keep its frames.
 *
 * Left out: mprotect, mremap, fork.
 */
import { type Hva, hva, isPageAligned, PAGE_SIZE, pageAlignUp, type Spa } from '../../base/address.ts';
import { LinuxError, NotImplementedError } from '../../base/errors.ts';
import type { FrameOwner, HostMemory } from '../../hardware/memory/host-memory.ts';
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
import { PAGE_FAULT } from './page-source.ts';
import { type Access, type HostPage, PageTable, READ_ACCESS, WRITE_ACCESS } from './page-table.ts';
import { SharedMemory } from './shared-memory.ts';

/** Advice that changes nothing that can be seen here. */
const HINTS: ReadonlySet<number> = new Set([0, 1, 2, 3, 10, 11, 12, 13, 14, 15, 16, 17]);
/** Advice of Linux that would have to do something: FREE, COLD, PAGEOUT, POPULATE_…, DONTNEED_LOCKED, … COLLAPSE (25) is EINVAL, as it
 * is for mappings that take no huge pages: here none does. */
const UNSUPPORTED_ADVICE: ReadonlySet<number> = new Set([8, 18, 19, 20, 21, 22, 23, 24, 100, 101, 102, 103]);

export class AddressSpace implements ProcessMemory {
  /** Who hears when frames go. */
  readonly notifiers = new MmuNotifiers();
  readonly #memory: HostMemory;
  readonly #files: FileTable;
  readonly #mappings = new MappingList();
  readonly #pages: PageTable;

  /** Frames of anonymous memory are accounted to `owner`; `files` is where mmap looks descriptors up. */
  constructor(options: { memory: HostMemory; owner: FrameOwner; files: FileTable }) {
    const { memory, owner, files } = options;
    this.#memory = memory;
    this.#files = files;
    this.#pages = new PageTable({ memory, owner, mappings: this.#mappings, notifiers: this.notifiers });
  }

  /** The page that the last `faultIn` which returned 0 found. */
  get page(): HostPage {
    return this.#pages.page;
  }

  /** Set after `faultIn` returned FAULT_PENDING. Never rejects. */
  get pending(): Promise<void> | undefined {
    return this.#pages.pending;
  }

  get mappingCount(): number {
    return this.#mappings.count;
  }

  /** Pages that have an entry now (the resident set). */
  get residentPages(): number {
    return this.#pages.resident;
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
    const failure = this.#pages.read(at, into);
    if (failure !== 0) throw this.#signal(`read of ${into.length} bytes at 0x${at.toString(16)}`, failure);
  }

  /** As `read`. What lies before the failing page is written. */
  write(at: Hva, from: Uint8Array): void {
    const failure = this.#pages.write(at, from);
    if (failure !== 0) throw this.#signal(`write of ${from.length} bytes at 0x${at.toString(16)}`, failure);
  }

  /** The kernel reads memory of the process. Throws EFAULT (EAGAIN when a page is on its way). */
  copyFromUser(at: Hva, into: Uint8Array): void {
    const failure = this.#pages.read(at, into);
    if (failure !== 0) throw this.#userFault('copy_from_user', failure);
  }

  /** PageTable's. */
  faultInToRead(at: Hva, length: number): number {
    return this.#pages.faultInToRead(at, length);
  }

  /** PageTable's. */
  copyPresentTo(at: Hva, to: Spa, length: number): number {
    return this.#pages.copyPresentTo(at, to, length);
  }

  /** PageTable's. */
  faultIn(at: Hva, access: Access): number {
    return this.#pages.faultIn(at, access);
  }

  /** The kernel writes memory of the process. Throws EFAULT (EAGAIN when a page is on its way). */
  copyToUser(at: Hva, from: Uint8Array): void {
    const failure = this.#pages.write(at, from);
    if (failure !== 0) throw this.#userFault('copy_to_user', failure);
  }

  /** Unmaps everything (exit_mmap). */
  exit(): void {
    this.#unmapRange(hva(0), hva(TASK_SIZE));
  }

  beginUnmap(start: Hva, end: Hva): void {
    this.notifiers.begin(start, end);
  }

  /** PageTable's. */
  unmap(start: Hva, end: Hva, options: { cowed: 'keep' | 'drop' }): void {
    this.#pages.unmap(start, end, options);
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
