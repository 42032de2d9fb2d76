/**
 * Which pages of RAM blocks were written to, until somebody took note (QEMU ram_list.dirty_memory with physical_memory_set_dirty_lebitmap and
 * physical_memory_test_and_clear_dirty, include/exec/ram_addr.h). One client: displays and migration would each have bits of their own.
 */
import { PAGE_SIZE } from '../../base/address.ts';
import type { KvmSlot } from './kvm-slots.ts';

type Block = NonNullable<KvmSlot['region']['ramBlock']>;

export class RamDirtyPages {
  readonly #blocks = new Map<Block, Set<number>>();

  /** Pages of the slot's RAM whose bit is set are dirty. */
  setDirty(slot: KvmSlot, bits: Int32Array): void {
    const block = slot.region.ramBlock!;
    let pages = this.#blocks.get(block);
    if (pages === undefined) {
      pages = new Set();
      this.#blocks.set(block, pages);
    }
    const first = slot.offsetInRegion / PAGE_SIZE;
    for (let word = 0; word < bits.length; word++) {
      for (let left = bits[word]!; left !== 0; left &= left - 1)
        pages.add(first + word * 32 + 31 - Math.clz32(left & -left));
    }
  }

  /** Pages of a block that are dirty, in ascending order; they are clean afterwards. */
  takeDirty(block: Block): number[] {
    const pages = this.#blocks.get(block);
    this.#blocks.delete(block);
    return pages === undefined ? [] : [...pages].sort((a, b) => a - b);
  }
}
