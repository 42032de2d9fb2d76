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
}

export class IoDispatch {
  readonly #space: AddressSpace;
  readonly #unassigned: number;
  readonly #process: Pick<ProcessMemory, 'read' | 'write'> | undefined;
  /** Accesses, in parts, that nothing answered. */
  unassigned = 0;
  #last: FlatRange | undefined;

  constructor(space: AddressSpace, options: IoDispatchOptions) {
    this.#space = space;
    this.#unassigned = options.unassigned;
    this.#process = options.process;
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
        this.unassigned++;
        into[at + done++] = this.#unassigned;
        continue;
      }
      const offset = address + done - range.start + range.offsetInRegion;
      const room = Math.min(size - done, range.start + range.size - address - done);
      if (this.#process !== undefined && readsMemory(region)) {
        this.#process.read(ramPointer(region, offset), into.subarray(at + done, at + done + room));
        done += room;
      } else if (region.ops === undefined) {
        this.unassigned++;
        into[at + done++] = this.#unassigned;
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
        this.unassigned++;
        done++;
        continue;
      }
      const offset = address + done - range.start + range.offsetInRegion;
      const room = Math.min(size - done, range.start + range.size - address - done);
      if (this.#process !== undefined && memoryRegionIsRam(region) && !region.readOnly) {
        this.#process.write(ramPointer(region, offset), from.subarray(at + done, at + done + room));
        done += room;
      } else if (region.ops === undefined) {
        this.unassigned++;
        done++;
      } else {
        const part = partOf(offset, Math.min(room, region.ops.maxAccessSize));
        let value = 0;
        for (let i = 0; i < part; i++) value |= from[at + done + i]! << (8 * i);
        region.ops.write(offset, value >>> 0, part);
        done += part;
      }
    }
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
