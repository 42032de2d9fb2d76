/**
 * An access of a guest to an address space, cut into what the devices take (QEMU system/physmem.c: flatview_read_continue,
 * memory_access_size; system/memory.c: access_with_adjusted_size). Nothing answers at an unassigned port: its reads are all
 * ones; unassigned memory reads zeros (unassigned_mem_read), and writes to either, and to ROM, go nowhere.
 *
 * RAM seldom gets here: KVM serves it, but for pages that have no slot, and for what a guest writes to ROM. Whether RAM can be
 * written is asked of the region, as in memory_access_is_direct: a read-only alias of it does not count.
 */
import type { ProcessMemory } from '../../kernel/interface.ts';
import type { AddressSpace } from './address-space.ts';
import type { FlatRange } from './flat-view.ts';
import { type MemoryRegion, memoryRegionIsRam, memoryRegionIsRomd, ramPointer } from './memory-region.ts';

export interface IoDispatchOptions {
  /** The byte that a read finds where nothing is mapped. */
  readonly unassigned: 0 | 0xff;
  /** Where the host memory of RAM lies; absent where there is no RAM (ports). */
  readonly process?: Pick<ProcessMemory, 'read' | 'write'>;
  /** Hears of each part of an access that nothing answers. */
  readonly onUnassigned?: (address: number) => void;
}

export class IoDispatch {
  readonly #space: AddressSpace;
  readonly #unassigned: number;
  readonly #process: Pick<ProcessMemory, 'read' | 'write'> | undefined;
  readonly #onUnassigned: (address: number) => void;
  #last: FlatRange | undefined;

  constructor(space: AddressSpace, options: IoDispatchOptions) {
    this.#space = space;
    this.#unassigned = options.unassigned;
    this.#process = options.process;
    this.#onUnassigned = options.onUnassigned ?? (() => {});
    space.addListener({
      commit: () => {
        this.#last = undefined;
      },
    });
  }

  /** Reads `size` bytes at `address` into `into` from `at` on. */
  read(address: number, size: number, into: Uint8Array, at: number): void {
    for (let done = 0; done < size; ) {
      const range = this.#rangeAt(address + done);
      const region = range?.region;
      if (range === undefined || region === undefined) {
        const part = this.#missed(address + done, size - done);
        into.fill(this.#unassigned, at + done, at + done + part);
        done += part;
        continue;
      }
      const offset = address + done - range.start + range.offsetInRegion;
      const room = Math.min(size - done, range.start + range.size - address - done);
      if (this.#process !== undefined && readsMemory(region)) {
        this.#process.read(ramPointer(region, offset), into.subarray(at + done, at + done + room));
        done += room;
      } else if (region.ops === undefined) {
        const part = this.#missed(address + done, room);
        into.fill(this.#unassigned, at + done, at + done + part);
        done += part;
      } else {
        const part = partOf(offset, Math.min(room, region.ops.maxAccessSize));
        const value = region.ops.read(offset, part);
        for (let i = 0; i < part; i++) into[at + done + i] = value >>> (8 * i);
        done += part;
      }
    }
  }

  /** Writes `size` bytes of `from` from `at` on to `address`. */
  write(address: number, size: number, from: Uint8Array, at: number): void {
    for (let done = 0; done < size; ) {
      const range = this.#rangeAt(address + done);
      const region = range?.region;
      if (range === undefined || region === undefined) {
        done += this.#missed(address + done, size - done);
        continue;
      }
      const offset = address + done - range.start + range.offsetInRegion;
      const room = Math.min(size - done, range.start + range.size - address - done);
      if (this.#process !== undefined && memoryRegionIsRam(region) && !region.readOnly) {
        this.#process.write(ramPointer(region, offset), from.subarray(at + done, at + done + room));
        done += room;
      } else if (region.ops === undefined) {
        done += this.#missed(address + done, room);
      } else {
        const part = partOf(offset, Math.min(room, region.ops.maxAccessSize));
        let value = 0;
        for (let i = 0; i < part; i++) value |= from[at + done + i]! << (8 * i);
        region.ops.write(offset, value >>> 0, part);
        done += part;
      }
    }
  }

  /** Where nothing is takes four bytes at once, whatever lies behind: address_space_translate_internal cuts accesses of memory alone. Returns how many. */
  #missed(address: number, bytes: number): number {
    this.#onUnassigned(address);
    return partOf(address, bytes);
  }

  #rangeAt(address: number): FlatRange | undefined {
    const last = this.#last;
    if (last !== undefined && address >= last.start && address < last.start + last.size) return last;
    const range = this.#space.rangeAt(address);
    if (range !== undefined) this.#last = range;
    return range;
  }
}

const readsMemory = (region: MemoryRegion): boolean =>
  memoryRegionIsRam(region) || memoryRegionIsRomd(region);

/** Bytes of the next part: a power of two, to which `offset` is aligned. */
function partOf(offset: number, room: number): number {
  if (room >= 4 && (offset & 3) === 0) return 4;
  return room >= 2 && (offset & 1) === 0 ? 2 : 1;
}
