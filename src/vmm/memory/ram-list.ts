/**
 * All RAM blocks of a machine, their life and their end (QEMU system/physmem.c: ram_list, find_ram_offset, ram_block_add,
 * qemu_ram_alloc*, reclaim_ramblock; seed 000 adds the guest_memfd).
 *
 * A block is added whole or not at all: whatever step fails, what the steps before it took is given back. That mends three
 * defects: the seed's caller leaks the mapping of an fd-backed block, and QEMU 10.2 leaves the list locked when KVM is
 * missing or discards are disabled, and keeps the discard requirement when the guest_memfd cannot be made.
 *
 * Leaves out: Xen, resizing, dirty bitmaps, hints for merging, huge pages, dumps and fork, the live-update blocker.
 */
import { type Hva, PAGE_SIZE } from '../../base/address.ts';
import { NotImplementedError } from '../../base/errors.ts';
import {
  MAP_ANONYMOUS,
  MAP_NORESERVE,
  MAP_PRIVATE,
  MAP_SHARED,
  PROT_READ,
  PROT_WRITE,
  type Process,
} from '../../kernel/interface.ts';
import { assert, type ErrorReport, hex, VmmError } from '../error.ts';
import { createGuestMemfd, type KvmState } from '../kvm-state.ts';
import type { DiscardRequirements } from './discard-requirements.ts';
import type { RamBlock, RamOwner } from './ram-block.ts';
import { RamBlockAttributes } from './ram-block-attributes.ts';
import {
  RAM_GUEST_MEMFD,
  RAM_NAMED_FILE,
  RAM_NORESERVE,
  RAM_PMEM,
  RAM_PREALLOC,
  RAM_PROTECTED,
  RAM_READONLY,
  RAM_READONLY_FD,
  RAM_RESIZEABLE,
  RAM_SHARED,
} from './ram-flags.ts';

const ACCEPTED_PLAIN = RAM_SHARED | RAM_NORESERVE | RAM_GUEST_MEMFD;
const ACCEPTED_INTERNAL = RAM_SHARED | RAM_RESIZEABLE | RAM_PREALLOC | RAM_NORESERVE | RAM_GUEST_MEMFD;
const ACCEPTED_FROM_FD =
  RAM_SHARED |
  RAM_PMEM |
  RAM_NORESERVE |
  RAM_PROTECTED |
  RAM_NAMED_FILE |
  RAM_READONLY |
  RAM_READONLY_FD |
  RAM_GUEST_MEMFD;

/** RAM_ADDR_MAX: no block lies beyond. */
const RAM_ADDR_MAX = Number.MAX_SAFE_INTEGER;
/** Blocks start on a whole word of a bitmap with one bit a page. */
const RAM_ADDR_ALIGNMENT = 64 * PAGE_SIZE;

export interface RamListOptions {
  readonly process: Process;
  /** Absent: the machine runs without KVM. */
  readonly kvm: KvmState | undefined;
  readonly discards: DiscardRequirements;
  readonly report?: ErrorReport;
}

export class RamList {
  readonly #process: Process;
  readonly #kvm: KvmState | undefined;
  readonly #discards: DiscardRequirements;
  readonly #report: ErrorReport;
  readonly #blocks: RamBlock[] = [];
  #version = 0;
  #locked = false;

  constructor(options: RamListOptions) {
    this.#process = options.process;
    this.#kvm = options.kvm;
    this.#discards = options.discards;
    this.#report = options.report ?? (() => {});
  }

  /** From the largest `maxLength` to the smallest. */
  get blocks(): readonly RamBlock[] {
    return this.#blocks;
  }
  /** Counts changes of the list. */
  get version(): number {
    return this.#version;
  }
  get locked(): boolean {
    return this.#locked;
  }

  /** qemu_ram_alloc. Throws VmmError. */
  alloc(request: { region: RamOwner; size: number; flags: number }): RamBlock {
    assertFlags(request.flags, ACCEPTED_PLAIN, 'qemu_ram_alloc');
    return this.allocInternal({ ...request, maxSize: request.size });
  }

  /** qemu_ram_alloc_internal: sizes are rounded up to pages. Throws VmmError. */
  allocInternal(request: {
    region: RamOwner;
    size: number;
    maxSize: number;
    flags: number;
    /** With RAM_PREALLOC and only then. */
    host?: Hva;
    resized?: (block: RamBlock) => void;
  }): RamBlock {
    const { region, flags, host } = request;
    assertFlags(flags, ACCEPTED_INTERNAL, 'qemu_ram_alloc_internal');
    assert(
      (host !== undefined) === ((flags & RAM_PREALLOC) !== 0),
      'host memory is given exactly with RAM_PREALLOC',
    );
    const size = roundUp(request.size, PAGE_SIZE);
    const maxSize = roundUp(request.maxSize, PAGE_SIZE);
    assert(maxSize >= size, `max_size ${hex(maxSize)} ≥ size ${hex(size)}`);
    const block: RamBlock = {
      region,
      host,
      offset: 0,
      usedLength: size,
      maxLength: maxSize,
      resized: request.resized,
      flags,
      idstr: region.name,
      fd: -1,
      fdOffset: 0n,
      guestMemfd: -1,
      attributes: undefined,
      pageSize: PAGE_SIZE,
    };
    this.#add(block);
    return block;
  }

  /** qemu_ram_alloc_from_ptr: `host` stays the caller's. */
  allocFromPointer(request: { region: RamOwner; size: number; host: Hva }): RamBlock {
    return this.allocInternal({ ...request, maxSize: request.size, flags: RAM_PREALLOC });
  }

  /** qemu_ram_alloc_resizeable */
  allocResizeable(request: {
    region: RamOwner;
    size: number;
    maxSize: number;
    resized?: (block: RamBlock) => void;
  }): RamBlock {
    return this.allocInternal({ ...request, flags: RAM_RESIZEABLE });
  }

  /**
   * qemu_ram_alloc_from_fd: maps `fd`, grown first when it is empty. The block owns `fd` once it is made; on an error the
   * mapping is gone again and `fd` is still the caller's. Throws VmmError.
   */
  allocFromFd(request: {
    region: RamOwner;
    size: number;
    flags: number;
    fd: number;
    offset?: bigint;
    /** Page size of the file, 4096 when absent. */
    pageSize?: number;
  }): RamBlock {
    const { region, flags, fd } = request;
    const fdOffset = request.offset ?? 0n;
    const pageSize = request.pageSize ?? PAGE_SIZE;
    assertFlags(flags, ACCEPTED_FROM_FD, 'qemu_ram_alloc_from_fd');
    const size = roundUp(request.size, PAGE_SIZE);
    if (size < pageSize) {
      throw new VmmError(
        `${region.name}: memory size ${hex(size)} must be equal to or larger than page size ${hex(pageSize)}`,
      );
    }
    const fileSize = this.#attempt(
      `${region.name}: can't stat backing store`,
      () => this.#process.fstat(fd).size,
    );
    if (fileSize > 0n && fileSize < fdOffset + BigInt(size)) {
      throw new VmmError(
        `${region.name}: backing store size ${hex(fileSize)} does not match 'size' option ${hex(size)} at offset ${hex(fdOffset)}`,
      );
    }
    const length = roundUp(size, pageSize);
    if (fileSize === 0n) {
      this.#attempt(`${region.name}: can't grow backing store`, () =>
        this.#process.ftruncate(fd, fdOffset + BigInt(length)),
      );
    }
    const host = this.#attempt(`${region.name}: unable to map backing store for guest RAM`, () =>
      this.#process.memory.mmap({
        length,
        protection: (flags & RAM_READONLY) !== 0 ? PROT_READ : PROT_READ | PROT_WRITE,
        flags: mappingKind(flags),
        fd,
        offset: fdOffset,
      }),
    );
    const block: RamBlock = {
      region,
      host,
      offset: 0,
      usedLength: size,
      maxLength: size,
      resized: undefined,
      flags,
      idstr: region.name,
      fd,
      fdOffset,
      guestMemfd: -1,
      attributes: undefined,
      pageSize,
    };
    try {
      this.#add(block);
    } catch (error) {
      this.#process.memory.munmap(host, length);
      block.host = undefined;
      throw error;
    }
    return block;
  }

  /** qemu_ram_resize */
  resize(block: RamBlock, size: number): never {
    throw new NotImplementedError(`resizing RAM block ${block.idstr} to ${hex(size)}`);
  }

  /** qemu_ram_free and reclaim_ramblock: out of the list, host memory, file, then the guest_memfd. */
  free(block: RamBlock): void {
    this.#locked = true;
    const index = this.#blocks.indexOf(block);
    assert(index >= 0, `RAM block ${block.idstr} is in the list`);
    this.#blocks.splice(index, 1);
    this.#version++;
    this.#locked = false;

    if ((block.flags & RAM_PREALLOC) === 0 && block.host !== undefined) {
      this.#process.memory.munmap(block.host, roundUp(block.maxLength, block.pageSize));
      if (block.fd >= 0) this.#process.close(block.fd);
    }
    block.host = undefined;
    if (block.guestMemfd >= 0) {
      block.attributes = undefined;
      this.#process.close(block.guestMemfd);
      block.guestMemfd = -1;
      this.#discards.coordinatedRequire('release');
    }
  }

  /** ram_block_add */
  #add(block: RamBlock): void {
    const undo: (() => void)[] = [];
    assert(!this.#locked, 'the RAM list is not locked');
    this.#locked = true;
    try {
      block.offset = this.#findOffset(block.maxLength);
      if (block.host === undefined) {
        const host = this.#attempt(`cannot set up guest memory '${block.region.name}'`, () =>
          this.#process.memory.mmap({
            length: block.maxLength,
            protection: PROT_READ | PROT_WRITE,
            flags: MAP_ANONYMOUS | mappingKind(block.flags),
          }),
        );
        block.host = host;
        undo.push(() => {
          this.#process.memory.munmap(host, block.maxLength);
          block.host = undefined;
        });
      }
      if ((block.flags & RAM_GUEST_MEMFD) !== 0) this.#addGuestMemfd(block, undo);
      this.#insert(block);
      this.#version++;
    } catch (error) {
      for (const step of undo.reverse()) step();
      throw error;
    } finally {
      this.#locked = false;
    }
  }

  #addGuestMemfd(block: RamBlock, undo: (() => void)[]): void {
    if (this.#kvm === undefined) {
      throw new VmmError(`cannot set up private guest memory for ${block.region.name}: KVM required`);
    }
    assert(block.guestMemfd < 0, `RAM block ${block.idstr} has no guest_memfd yet`);
    const result = this.#discards.coordinatedRequire('take');
    if (result < 0) {
      throw new VmmError(
        'cannot set up private guest memory: discard currently blocked. Are you using assigned devices?',
        -result,
      );
    }
    undo.push(() => this.#discards.coordinatedRequire('release'));
    const fd = createGuestMemfd(this.#kvm, block.maxLength, 0n);
    block.guestMemfd = fd;
    undo.push(() => {
      this.#process.close(fd);
      block.guestMemfd = -1;
    });
    try {
      block.attributes = new RamBlockAttributes(block.maxLength, this.#report);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      throw new VmmError(
        `Failed to create ram block attributes for ${hex(block.maxLength)} bytes: ${error.message}`,
      );
    }
  }

  /** The smallest gap that holds `size` bytes (find_ram_offset). */
  #findOffset(size: number): number {
    assert(size !== 0, 'a RAM block has a size');
    if (this.#blocks.length === 0) return 0;
    let best = RAM_ADDR_MAX;
    let smallest = RAM_ADDR_MAX;
    for (const block of this.#blocks) {
      const candidate = roundUp(block.offset + block.maxLength, RAM_ADDR_ALIGNMENT);
      let next = RAM_ADDR_MAX;
      for (const other of this.#blocks) {
        if (other.offset >= candidate) next = Math.min(next, other.offset);
      }
      const gap = next - candidate;
      if (gap >= size && gap < smallest) {
        best = candidate;
        smallest = gap;
      }
    }
    if (best === RAM_ADDR_MAX) throw new VmmError(`Failed to find gap of requested size: ${hex(size)}`);
    return best;
  }

  /** Before the first block that is smaller. */
  #insert(block: RamBlock): void {
    const index = this.#blocks.findIndex((other) => other.maxLength < block.maxLength);
    this.#blocks.splice(index < 0 ? this.#blocks.length : index, 0, block);
  }

  #attempt<T>(message: string, call: () => T): T {
    try {
      return call();
    } catch (error) {
      throw VmmError.because(message, error);
    }
  }
}

function assertFlags(flags: number, accepted: number, by: string): void {
  assert(
    (flags & ~accepted) === 0,
    `${by} accepts RAM flags ${hex(accepted)}, got ${hex(flags >>> 0)}, not accepted ${hex((flags & ~accepted) >>> 0)}`,
  );
}

const mappingKind = (flags: number): number =>
  ((flags & RAM_SHARED) !== 0 ? MAP_SHARED : MAP_PRIVATE) |
  ((flags & RAM_NORESERVE) !== 0 ? MAP_NORESERVE : 0);

const roundUp = (value: number, to: number): number => Math.ceil(value / to) * to;
