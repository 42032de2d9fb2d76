/**
 * What clients of dirty logging ask of those who log (QEMU system/memory.c: memory_region_sync_dirty_bitmap,
 * memory_region_clear_dirty_bitmap). Listeners are asked one after another, in ascending order of priority, each about the
 * ranges of its own address space.
 */
import { throwFirst } from './memory-listener.ts';
import type { MemoryRegion } from './memory-region.ts';
import type { MemoryTopology } from './memory-topology.ts';

/**
 * What was written to is noted: in the ranges of `region`, or in all where it is absent (memory_global_dirty_log_sync). Who
 * cannot tell ranges apart notes all, whatever the region. Throws what listeners throw, once all were asked.
 */
export function syncDirtyLog(topology: MemoryTopology, region?: MemoryRegion): void {
  const failures: unknown[] = [];
  topology.eachListener(failures, (listener, { view }) => {
    if (listener.logSync === undefined) {
      listener.logSyncGlobal?.();
      return;
    }
    for (const range of view.ranges) {
      if (range.dirtyLogMask !== 0 && (region === undefined || range.region === region))
        listener.logSync(range);
    }
  });
  throwFirst(failures);
}

/** What was written to in `length` bytes of `region` from `start` on was dealt with: they are logged anew, wherever they lie. */
export function clearDirtyLog(
  topology: MemoryTopology,
  region: MemoryRegion,
  start: number,
  length: number,
): void {
  const failures: unknown[] = [];
  topology.eachListener(failures, (listener, { view }) => {
    if (listener.logClear === undefined) return;
    for (const range of view.ranges) {
      if (range.dirtyLogMask === 0 || range.region !== region) continue;
      const from = Math.max(start, range.offsetInRegion);
      const to = Math.min(start + length, range.offsetInRegion + range.size);
      if (from >= to) continue;
      const skipped = from - range.offsetInRegion;
      listener.logClear({ ...range, start: range.start + skipped, size: to - from, offsetInRegion: from });
    }
  });
  throwFirst(failures);
}
