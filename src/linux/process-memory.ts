/**
 * The address space of this very process, as the VMM uses it: mmap(2), munmap(2), madvise(2), and loads and stores. Node lives in the
 * same address space, so this class touches only what was mapped through it: a fixed mapping never replaces anything else
 * (MAP_FIXED_NOREPLACE), munmap leaves everything else alone, and a load or store elsewhere is the SIGSEGV that a process with
 * these mappings alone would get. Loads and stores go through process_vm_readv and writev, which fail where the hardware would
 * raise a signal.
 */
import { readFileSync } from 'node:fs';
import { type Hva, hva, pageAlignUp } from '../base/address.ts';
import { LinuxError } from '../base/errors.ts';
import { MAP_FIXED, type ProcessMemory } from '../kernel/interface.ts';
import type { Libc } from './libc.ts';
import { MappedRanges } from './mapped-ranges.ts';

const MAP_FIXED_NOREPLACE = 0x100000;

export class LinuxProcessMemory implements ProcessMemory {
  readonly #libc: Libc;
  readonly #ranges = new MappedRanges();
  readonly #checkFd: (fd: number) => void;

  /** `checkFd` throws EBADF for a descriptor that is not the VMM's. */
  constructor(libc: Libc, checkFd: (fd: number) => void) {
    this.#libc = libc;
    this.#checkFd = checkFd;
  }

  mmap(request: Parameters<ProcessMemory['mmap']>[0]): Hva {
    const { length, protection, flags, fd = -1, offset = 0n } = request;
    const size = pageAlignUp(length);
    let address = 0;
    let placed = flags;
    if ((flags & MAP_FIXED) !== 0) {
      address = request.address ?? 0;
      if (!this.#ranges.covers(address, address + size)) placed = (flags & ~MAP_FIXED) | MAP_FIXED_NOREPLACE;
    }
    if (fd !== -1) this.#checkFd(fd);
    const what = `mmap of ${length} bytes${fd === -1 ? '' : ` of fd ${fd} at ${offset}`}`;
    const mapped = this.#libc.mmap(address, length, protection, placed, fd, offset, what);
    this.#ranges.add(mapped, mapped + size);
    return hva(mapped);
  }

  munmap(address: Hva, length: number): void {
    const what = `munmap 0x${address.toString(16)}, ${length} bytes`;
    if (address % 4096 !== 0 || length <= 0) throw new LinuxError('EINVAL', what);
    for (const { start, end } of this.#ranges.within(address, address + pageAlignUp(length))) {
      this.#unmap(start, end - start, what);
    }
  }

  madvise(address: Hva, length: number, advice: number): void {
    const what = `madvise ${advice} at 0x${address.toString(16)}, ${length} bytes`;
    if (address % 4096 !== 0) throw new LinuxError('EINVAL', what);
    const end = address + pageAlignUp(length);
    for (const part of this.#ranges.within(address, end)) {
      this.#libc.call(
        what,
        'madvise',
        ['uint64_t', 'uint64_t', 'int'],
        ...[part.start, part.end - part.start, advice],
      );
    }
    if (length > 0 && !this.#ranges.covers(address, end)) throw new LinuxError('ENOMEM', what);
  }

  read(address: Hva, into: Uint8Array): void {
    this.#copy('read', address, into);
  }

  write(address: Hva, from: Uint8Array): void {
    this.#copy('write', address, from);
  }

  /** Unmaps everything. */
  exit(): void {
    for (const { start, end } of [...this.#ranges.all]) this.#unmap(start, end - start, 'munmap at exit');
  }

  #unmap(start: number, length: number, what: string): void {
    this.#libc.call(what, 'munmap', ['uint64_t', 'uint64_t'], start, length);
    this.#ranges.remove(start, start + length);
  }

  #copy(direction: 'read' | 'write', address: Hva, bytes: Uint8Array): void {
    const what = `${direction} of ${bytes.length} bytes at 0x${address.toString(16)}`;
    if (bytes.length > 0 && !this.#ranges.covers(address, address + bytes.length)) {
      throw new LinuxError('EFAULT', `${what}: not mapped`, 'SIGSEGV');
    }
    try {
      this.#libc.copyMemory(direction, address, bytes, process.pid);
    } catch (error) {
      if (!(error instanceof LinuxError) || error.code !== 'EFAULT') throw error;
      const signal = signalOf(direction, address, bytes.length);
      throw new LinuxError(
        'EFAULT',
        `${what}: ${signal === 'SIGBUS' ? 'the file has no such page' : 'not permitted'}`,
        signal,
      );
    }
  }
}

/** What the failed access would have raised: SIGSEGV where a mapping does not permit it, else SIGBUS. */
function signalOf(direction: 'read' | 'write', address: number, length: number): 'SIGSEGV' | 'SIGBUS' {
  const permitted = direction === 'read' ? /^r/ : /^.w/;
  for (const line of readFileSync('/proc/self/maps', 'latin1').split('\n')) {
    const [range = '', permissions = ''] = line.split(' ');
    const [start = 0, end = 0] = range.split('-').map((text) => Number.parseInt(text, 16));
    if (end > address && start < address + length && !permitted.test(permissions)) return 'SIGSEGV';
  }
  return 'SIGBUS';
}
