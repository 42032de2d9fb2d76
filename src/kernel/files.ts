/**
 * Open files and the table of a process's file descriptors (Linux fs/file.c, fs/read_write.c, fs/open.c; their order of
 * checks). What a file does is a set of operations (`struct file_operations`); one that is absent fails as in Linux.
 * Left out: close-on-exec, status flags, locks of parts of a file, positions shared with mmap'ed peers.
 */
import { LinuxError } from '../base/errors.ts';
import type { FileLocks } from './file-locks.ts';
import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE } from './interface.ts';
import type { PageSource } from './mm/page-source.ts';

const SIGN_64 = 1n << 63n;
/** Files of ours end below this: page numbers and sizes are JavaScript numbers. Linux' tmpfs allows 2^63 − 1. */
export const MAX_FILE_BYTES = 2n ** 53n - 4096n;

const KNOWN_MODES = 0x7b;
const MODES_THAT_EXCLUDE_OTHERS = 0x7a;

export interface FileStat {
  size: bigint;
  blockSize: number;
  /** Pages that the file holds now. */
  pages?: number;
}

/**
 * What a file does. Offsets and lengths are checked by `OpenFile` before: non-negative, below 2^53. A `fallocate` may reach
 * beyond MAX_FILE_BYTES: there whole pages are exact, other numbers say no more than that.
 */
export interface FileOperations {
  /** As /proc/self/fd shows it: `/memfd:ram`, `[kvm-gmem]`, `anon_inode:kvm-vm`. */
  readonly name: string;
  /** Bytes read, fewer at the end of the file. Absent: pread fails with ESPIPE, read with EINVAL. */
  read?(into: Uint8Array, offset: number): number;
  /** Bytes written. Absent: pwrite fails with ESPIPE, write with EINVAL. */
  write?(from: Uint8Array, offset: number): number;
  /** `mode` holds FALLOC_FL bits in a combination that the VFS lets pass. Absent: EOPNOTSUPP. */
  fallocate?(mode: number, offset: number, length: number): void;
  /** Absent: EINVAL. */
  truncate?(size: number): void;
  /** Absent: size 0, block size 4096. */
  stat?(): FileStat;
  /** Who holds locks on the file. Absent: it cannot be locked. */
  readonly locks?: FileLocks;
  /** The pages behind a mapping of this file, or a LinuxError. Absent: ENODEV. */
  mmap?(request: { shared: boolean }): PageSource;
  /** The last descriptor and the last mapping of this open file are gone. */
  release?(): void;
}

/** An open file description (`struct file`): operations, access mode, position, and a count of who holds it. */
export class OpenFile {
  readonly operations: FileOperations;
  readonly readable: boolean;
  readonly writable: boolean;
  #position = 0;
  #references = 0;

  constructor(operations: FileOperations, access: { readable: boolean; writable: boolean } = READ_WRITE) {
    this.operations = operations;
    this.readable = access.readable;
    this.writable = access.writable;
  }

  /** One more holder: a descriptor, a mapping, or kernel code that keeps the file. */
  hold(): void {
    this.#references++;
  }

  /** One holder less; the last one releases the file. */
  drop(): void {
    this.#references--;
    if (this.#references > 0) return;
    this.operations.locks?.release(this);
    this.operations.release?.();
  }

  get references(): number {
    return this.#references;
  }

  read(into: Uint8Array): number {
    if (!this.readable)
      throw new LinuxError('EBADF', `read of ${this.operations.name}: not open for reading`);
    if (!this.operations.read) throw new LinuxError('EINVAL', `read of ${this.operations.name}: has no data`);
    const count = this.operations.read(into, this.#position);
    this.#position += count;
    return count;
  }

  write(from: Uint8Array): number {
    if (!this.writable)
      throw new LinuxError('EBADF', `write to ${this.operations.name}: not open for writing`);
    if (!this.operations.write)
      throw new LinuxError('EINVAL', `write to ${this.operations.name}: takes no data`);
    const count = this.operations.write(from, this.#position);
    this.#position += count;
    return count;
  }

  pread(into: Uint8Array, offset: bigint): number {
    if (!this.operations.read)
      throw new LinuxError('ESPIPE', `pread of ${this.operations.name}: no positions`);
    if (!this.readable)
      throw new LinuxError('EBADF', `pread of ${this.operations.name}: not open for reading`);
    this.#checkOffset(offset, into.length);
    // No file reaches so far.
    return offset >= MAX_FILE_BYTES ? 0 : this.operations.read(into, Number(offset));
  }

  pwrite(from: Uint8Array, offset: bigint): number {
    if (!this.operations.write)
      throw new LinuxError('ESPIPE', `pwrite to ${this.operations.name}: no positions`);
    if (!this.writable)
      throw new LinuxError('EBADF', `pwrite to ${this.operations.name}: not open for writing`);
    this.#checkOffset(offset, from.length);
    if (offset + BigInt(from.length) > MAX_FILE_BYTES) {
      throw new LinuxError('EFBIG', `pwrite to ${this.operations.name}: ends beyond ${MAX_FILE_BYTES}`);
    }
    return this.operations.write(from, Number(offset));
  }

  fallocate(mode: number, offset: bigint, length: bigint): void {
    const { name } = this.operations;
    if (offset < 0n || length <= 0n || offset >= SIGN_64 || length >= SIGN_64) {
      throw new LinuxError('EINVAL', `fallocate of ${name}: offset ${offset}, length ${length}`);
    }
    const exclusive = mode & MODES_THAT_EXCLUDE_OTHERS;
    const known = (mode & ~KNOWN_MODES) === 0 && (exclusive & (exclusive - 1)) === 0;
    if (!known || (mode & (FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE)) === FALLOC_FL_PUNCH_HOLE) {
      throw new LinuxError('EOPNOTSUPP', `fallocate of ${name}: mode ${mode}`);
    }
    if (!this.writable) throw new LinuxError('EBADF', `fallocate of ${name}: not open for writing`);
    if (this.operations.fallocate === undefined) {
      throw new LinuxError(this.operations.truncate ? 'EOPNOTSUPP' : 'ENODEV', `fallocate of ${name}`);
    }
    if (offset + length >= SIGN_64) {
      throw new LinuxError('EFBIG', `fallocate of ${name}: ends at ${offset + length}`);
    }
    this.operations.fallocate(mode, representable(offset), representable(length));
  }

  truncate(size: bigint): void {
    const { name } = this.operations;
    if (size < 0n || size >= SIGN_64) throw new LinuxError('EINVAL', `ftruncate of ${name}: size ${size}`);
    if (!this.writable || !this.operations.truncate) {
      throw new LinuxError('EINVAL', `ftruncate of ${name}: cannot change its size`);
    }
    if (size > MAX_FILE_BYTES) throw new LinuxError('EFBIG', `ftruncate of ${name}: size ${size}`);
    this.operations.truncate(Number(size));
  }

  /** fcntl(F_OFD_SETLK) of the whole file. False: another's lock is in the way (EAGAIN). Errors: EBADF (not open so), EINVAL. */
  lock(kind: 'shared' | 'exclusive' | 'none'): boolean {
    const { locks, name } = this.operations;
    if (kind === 'shared' ? !this.readable : kind === 'exclusive' && !this.writable)
      throw new LinuxError(
        'EBADF',
        `F_OFD_SETLK of ${name}: not open for ${kind === 'shared' ? 'reading' : 'writing'}`,
      );
    if (locks === undefined) throw new LinuxError('EINVAL', `F_OFD_SETLK of ${name}: it has no locks`);
    if (kind !== 'none') return locks.take(this, kind);
    locks.release(this);
    return true;
  }

  stat(): FileStat {
    return this.operations.stat?.() ?? { size: 0n, blockSize: 4096 };
  }

  #checkOffset(offset: bigint, length: number): void {
    if (offset < 0n || offset + BigInt(length) >= SIGN_64) {
      throw new LinuxError('EINVAL', `offset ${offset} of ${this.operations.name}`);
    }
  }
}

/** Whole pages are exact up to 2^63 (a guest_memfd may be so large); what is not stays misaligned as it is, and beyond other files. */
const representable = (value: bigint): number =>
  Number(value <= MAX_FILE_BYTES || value % 4096n === 0n ? value : MAX_FILE_BYTES + (value % 4096n));

const READ_WRITE = { readable: true, writable: true } as const;
/** 0 to 2 are the standard streams, which live outside of this house. */
const FIRST_FD = 3;

/** A process's table of file descriptors. Errors: EBADF for a number that is not open, EMFILE when the table is full. */
export class FileTable {
  readonly #files: (OpenFile | undefined)[] = [];
  readonly #limit: number;

  /** Descriptors are below `limit` (RLIMIT_NOFILE). */
  constructor(options: { limit?: number } = {}) {
    this.#limit = options.limit ?? 1024;
  }

  /** Gives the file the lowest free descriptor. */
  install(file: OpenFile): number {
    const slot = this.#freeSlot();
    this.#files[slot] = file;
    file.hold();
    return slot + FIRST_FD;
  }

  /** Throws EMFILE when no descriptor is free, for calls that must know before they begin. */
  reserve(): void {
    this.#freeSlot();
  }

  get(fd: number): OpenFile {
    const file = this.#files[fd - FIRST_FD];
    if (file === undefined) throw new LinuxError('EBADF', `file descriptor ${fd}: not open`);
    return file;
  }

  /** Whether `fd` is open and stands for this very file. */
  holds(fd: number, file: OpenFile): boolean {
    return this.#files[fd - FIRST_FD] === file;
  }

  dup(fd: number): number {
    return this.install(this.get(fd));
  }

  close(fd: number): void {
    const file = this.get(fd);
    this.#files[fd - FIRST_FD] = undefined;
    file.drop();
  }

  /** Descriptors that are open, in order. */
  open(): number[] {
    return this.#files.flatMap((file, slot) => (file === undefined ? [] : [slot + FIRST_FD]));
  }

  closeAll(): void {
    // Whoever hears of a file's end may close others.
    for (const fd of this.open()) if (this.#files[fd - FIRST_FD] !== undefined) this.close(fd);
  }

  #freeSlot(): number {
    let slot = this.#files.indexOf(undefined);
    if (slot < 0) slot = this.#files.length;
    if (slot + FIRST_FD >= this.#limit) {
      throw new LinuxError('EMFILE', `no file descriptor below ${this.#limit} is free`);
    }
    return slot;
  }
}
