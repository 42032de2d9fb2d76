/**
 * Which pages of a machine's RAM its guest writes to (QEMU system/memory.c: memory_region_set_log, memory_region_snapshot_and_clear_dirty), for a display or a
 * tool. What the VMM itself writes is not among them.
 */
import { VmmError } from './error.ts';
import { clearDirtyLog, syncDirtyLog } from './memory/dirty-log-sync.ts';
import { type MemoryRegion, memoryRegionHasGuestMemfd } from './memory/memory-region.ts';
import type { MemoryTopology } from './memory/memory-topology.ts';
import type { RamDirtyPages } from './memory/ram-dirty-pages.ts';

export interface DirtyLogOptions {
  readonly topology: MemoryTopology;
  readonly ram: MemoryRegion;
  readonly pages: RamDirtyPages;
}

export class DirtyLog {
  readonly #options: DirtyLogOptions;

  constructor(options: DirtyLogOptions) {
    this.#options = options;
  }

  /** Writes are noted from now on, until as many `stop`s were called. Throws VmmError: KVM logs no RAM that has a guest_memfd. */
  start(): void {
    const { topology, ram } = this.#options;
    if (memoryRegionHasGuestMemfd(ram))
      throw new VmmError(
        'dirty log: got RAM with a guest_memfd, which KVM does not log; want a VM of type default',
      );
    topology.setLog(ram, 'start');
  }

  stop(): void {
    this.#options.topology.setLog(this.#options.ram, 'stop');
  }

  /**
   * Page numbers, ascending, of RAM that was written to since the last call; from now on they are clean. The first call after `start` may name all pages, where
   * KVM's bitmaps begin all set. Throws VmmError.
   */
  snapshotAndClear(): number[] {
    const { topology, ram, pages } = this.#options;
    syncDirtyLog(topology, ram);
    clearDirtyLog(topology, ram, 0, ram.size);
    return pages.takeDirty(ram.ramBlock!);
  }
}
