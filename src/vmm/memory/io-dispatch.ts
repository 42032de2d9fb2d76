/**
 * An access of a guest to an address space, cut into what the devices take (QEMU system/physmem.c: flatview_read_continue,
 * system/memory.c: access_with_adjusted_size). Nothing answers at an unassigned port: its reads are all ones; unassigned
 * memory reads zeros (unassigned_mem_read), and writes to either, and to ROM, go nowhere.
 */
import type { AddressSpace, MemoryRegionSection } from './flat-view.ts';
import type { MemoryRegionOps } from './memory-region.ts';

export class IoDispatch {
  readonly #space: AddressSpace;
  readonly #unassigned: number;
  /** Accesses, in parts, that nothing answered. */
  unassigned = 0;
  #last: MemoryRegionSection | undefined;

  /** `unassigned`: the byte that a read finds where nothing is mapped. */
  constructor(space: AddressSpace, options: { unassigned: 0 | 0xff }) {
    this.#space = space;
    this.#unassigned = options.unassigned;
    space.addListener({
      regionAdd: () => {
        this.#last = undefined;
      },
      regionDel: () => {
        this.#last = undefined;
      },
    });
  }

  /** Reads `size` bytes at `address` into `into` from `at` on. */
  read(address: number, size: number, into: Uint8Array, at: number): void {
    for (let done = 0; done < size; ) {
      const range = this.#rangeAt(address + done);
      const ops = range?.region.ops;
      if (range === undefined || ops === undefined) {
        this.unassigned++;
        into[at + done++] = this.#unassigned;
        continue;
      }
      const part = partOf(range, ops, address + done, size - done);
      const value = ops.read(address + done - range.start + range.offsetInRegion, part);
      for (let i = 0; i < part; i++) into[at + done + i] = value >>> (8 * i);
      done += part;
    }
  }

  /** Writes `size` bytes of `from` from `at` on to `address`. */
  write(address: number, size: number, from: Uint8Array, at: number): void {
    for (let done = 0; done < size; ) {
      const range = this.#rangeAt(address + done);
      const ops = range?.region.ops;
      if (range === undefined || ops === undefined) {
        this.unassigned++;
        done++;
        continue;
      }
      const part = partOf(range, ops, address + done, size - done);
      let value = 0;
      for (let i = 0; i < part; i++) value |= from[at + done + i]! << (8 * i);
      ops.write(address + done - range.start + range.offsetInRegion, value >>> 0, part);
      done += part;
    }
  }

  #rangeAt(address: number): MemoryRegionSection | undefined {
    const last = this.#last;
    if (last !== undefined && address >= last.start && address < last.start + last.size) return last;
    const range = this.#space.rangeAt(address);
    if (range !== undefined) this.#last = range;
    return range;
  }
}

/** Bytes of the next part: a power of two that the device takes and that ends within the range. */
function partOf(range: MemoryRegionSection, ops: MemoryRegionOps, address: number, left: number): number {
  const room = Math.min(left, range.start + range.size - address, ops.maxAccessSize);
  return room >= 4 ? 4 : room >= 2 ? 2 : 1;
}
