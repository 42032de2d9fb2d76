/**
 * A shared memory object (Linux mm/shmem.c): what memfd_create gives, a file of tmpfs, and the memory behind a shared
 * anonymous mapping. Its pages are the page cache; a hole reads as zeros and gets a page when it is mapped and touched,
 * written or allocated. Left out: seals, huge pages, swap, size limits of a mount (host memory is the limit).
 */
import { PAGE_SIZE, type Pfn, pageAlignUp, pagesIn, type Spa } from '../../base/address.ts';
import { LinuxError } from '../../base/errors.ts';
import { type FrameOwner, type HostMemory, NO_FRAME } from '../../hardware/memory/host-memory.ts';
import { FileLocks } from '../file-locks.ts';
import { type FileOperations, type FileStat, MAX_FILE_BYTES } from '../files.ts';
import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE } from '../interface.ts';
import { PageEntries } from './page-entries.ts';
import { FileMappings, PAGE_FAULT, type PageSource } from './page-source.ts';

/** First page after every file. */
const LAST_PAGE = Number.MAX_SAFE_INTEGER;

export class SharedMemory implements FileOperations, PageSource {
  readonly name: string;
  readonly mappings = new FileMappings();
  readonly locks = new FileLocks();
  readonly #memory: HostMemory;
  readonly #owner: FrameOwner;
  readonly #pages = new PageEntries();
  readonly #onRelease: (() => void) | undefined;
  #size = 0;

  /** `onRelease` replaces the end of the pages at the last close, for a file that has a name in a file system. */
  constructor(options: { memory: HostMemory; name: string; onRelease?: () => void }) {
    this.name = options.name;
    this.#memory = options.memory;
    this.#owner = options.memory.owner('shmem');
    this.#onRelease = options.onRelease;
  }

  get size(): number {
    return this.#size;
  }

  /** Pages that the object holds now. */
  get pages(): number {
    return this.#pages.count;
  }

  stat(): FileStat {
    return { size: BigInt(this.#size), blockSize: PAGE_SIZE, pages: this.#pages.count };
  }

  mmap(): PageSource {
    return this;
  }

  fault(index: number): Pfn | number {
    if (index >= pagesIn(this.#size)) return PAGE_FAULT.SIGBUS;
    return this.#getPage(index);
  }

  read(into: Uint8Array, offset: number): number {
    const length = Math.max(0, Math.min(into.length, this.#size - offset));
    for (let done = 0; done < length; ) {
      const inPage = (offset + done) % PAGE_SIZE;
      const count = Math.min(PAGE_SIZE - inPage, length - done);
      // Absent pages are 0, and frame 0 is all zero.
      const frame = this.#pages.get(Math.floor((offset + done) / PAGE_SIZE));
      this.#memory.read((frame * PAGE_SIZE + inPage) as Spa, into.subarray(done, done + count));
      done += count;
    }
    return length;
  }

  /** Grows the file. Fewer bytes than asked, or ENOMEM for none, when the host is out of frames. */
  write(from: Uint8Array, offset: number): number {
    return this.#memory.trace.tellAfter(() => this.#write(from, offset));
  }

  #write(from: Uint8Array, offset: number): number {
    let done = 0;
    while (done < from.length) {
      const inPage = (offset + done) % PAGE_SIZE;
      const count = Math.min(PAGE_SIZE - inPage, from.length - done);
      const frame = this.#getPage(Math.floor((offset + done) / PAGE_SIZE));
      if (frame < 0) {
        if (done > 0) break;
        throw new LinuxError('ENOMEM', `write to ${this.name}: the host has no free frame`);
      }
      this.#memory.write((frame * PAGE_SIZE + inPage) as Spa, from.subarray(done, done + count));
      done += count;
      this.#size = Math.max(this.#size, offset + done);
    }
    return done;
  }

  truncate(size: number): void {
    const old = this.#size;
    this.#size = size;
    if (size >= old) return;
    this.#clear(size, Math.min(old, pageAlignUp(size)));
    this.#dropPages(pagesIn(size), LAST_PAGE, { cowed: 'drop' });
  }

  /** Errors: EOPNOTSUPP for a mode other than allocate and punch, ENOMEM (nothing has changed then), EFBIG. */
  fallocate(mode: number, offset: number, length: number): void {
    if ((mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE)) !== 0) {
      throw new LinuxError('EOPNOTSUPP', `fallocate of ${this.name}: mode ${mode}`);
    }
    const end = offset + length;
    if ((mode & FALLOC_FL_PUNCH_HOLE) !== 0) {
      this.#punch(offset, end);
      return;
    }
    if (end > MAX_FILE_BYTES) throw new LinuxError('EFBIG', `fallocate of ${this.name}: ends at ${end}`);
    this.#memory.trace.tellAfter(() => this.#populate(Math.floor(offset / PAGE_SIZE), pagesIn(end)));
    if ((mode & FALLOC_FL_KEEP_SIZE) === 0) this.#size = Math.max(this.#size, end);
  }

  release(): void {
    if (this.#onRelease) this.#onRelease();
    else this.destroy();
  }

  /** Frees all pages. Nobody maps them any more. */
  destroy(): void {
    this.#size = 0;
    this.#dropPages(0, LAST_PAGE, { cowed: 'drop' });
  }

  #getPage(index: number): Pfn | number {
    const present = this.#pages.get(index);
    if (present !== 0) return present;
    const frame = this.#memory.allocate(0, this.#owner);
    if (frame === NO_FRAME) return PAGE_FAULT.NO_MEMORY;
    this.#pages.set(index, frame);
    return frame;
  }

  /** All pages of [first, end), or none of those that were absent. */
  #populate(first: number, end: number): void {
    if (end - first - this.#pages.count > this.#memory.freeFrames) throw this.#noMemory();
    const added: number[] = [];
    for (let index = first; index < end; index++) {
      if (this.#pages.get(index) !== 0) continue;
      if (this.#getPage(index) < 0) {
        for (const page of added) this.#dropPages(page, page + 1, { cowed: 'keep' });
        throw this.#noMemory();
      }
      added.push(index);
    }
  }

  #noMemory(): LinuxError {
    return new LinuxError('ENOMEM', `fallocate of ${this.name}: the host has not enough free frames`);
  }

  /** Whole pages go; what is cut of a page at either end is zeroed. */
  #punch(offset: number, end: number): void {
    const first = pagesIn(offset);
    const last = Math.floor(end / PAGE_SIZE);
    if (first > last) {
      this.#clear(offset, end);
      return;
    }
    this.#clear(offset, first * PAGE_SIZE);
    this.#clear(last * PAGE_SIZE, end);
    this.#dropPages(first, last, { cowed: 'keep' });
  }

  /** Zeroes [from, to), which lies in one page. */
  #clear(from: number, to: number): void {
    if (to <= from) return;
    const frame = this.#pages.get(Math.floor(from / PAGE_SIZE));
    if (frame !== 0) this.#memory.clear((frame * PAGE_SIZE + (from % PAGE_SIZE)) as Spa, to - from);
  }

  #dropPages(first: number, end: number, options: { cowed: 'keep' | 'drop' }): void {
    if (end <= first) return;
    this.#memory.trace.tellAfter(() =>
      this.mappings.unmap(first, end, options, () => {
        this.#pages.forEachIn(first, end, (index, frame) => {
          this.#pages.set(index, 0);
          this.#memory.free(frame as Pfn, 0);
        });
      }),
    );
  }
}
