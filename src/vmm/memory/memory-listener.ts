/**
 * Who wants to hear how an address space changes (QEMU include/system/memory.h: MemoryListener; system/memory.c:
 * address_space_update_topology_pass). Listeners have a priority: what is added they hear in ascending order of it, what goes
 * in descending order, and those of the same priority as they were registered.
 *
 * A listener that throws keeps none from hearing; the first error is thrown by whoever made the change, once all have heard.
 * (QEMU's listeners end the process instead.)
 *
 * Leaves out: the global start and stop of logging (migration), eventfds, coalesced I/O.
 */
import { type FlatRange, type FlatView, isSameRange, type MemoryRegionSection } from './flat-view.ts';

const MEMORY_LISTENER_PRIORITY_MIN = 0;
/** The accelerator's: most listeners hear of new memory before it does, and of what goes after it. */
export const MEMORY_LISTENER_PRIORITY_ACCEL = 10;

export interface MemoryListener {
  /** MEMORY_LISTENER_PRIORITY_MIN when absent. */
  readonly priority?: number;
  /** Changes come. Also before the first ranges that a listener hears of, and the last. */
  begin?(): void;
  regionAdd?(section: MemoryRegionSection): void;
  regionDel?(section: MemoryRegionSection): void;
  /** A range that stays as it is, so that a listener can collect all ranges between begin and commit. */
  regionNop?(section: MemoryRegionSection): void;
  /** A range that stays, with clients of dirty logging that it had and has; some are new. */
  logStart?(section: MemoryRegionSection, oldMask: number, newMask: number): void;
  /** The same; some are gone. */
  logStop?(section: MemoryRegionSection, oldMask: number, newMask: number): void;
  /** What was written to in a range that logs is to be noted. */
  readonly logSync?: ((section: MemoryRegionSection) => void) | undefined;
  /** The same for all ranges at once, instead of `logSync`, for who cannot tell them apart. */
  readonly logSyncGlobal?: (() => void) | undefined;
  /** What was written to in the range was dealt with: it is logged anew. */
  readonly logClear?: ((section: MemoryRegionSection) => void) | undefined;
  /** All changes are told. */
  commit?(): void;
}

/** Listeners from the lowest priority to the highest. */
export class MemoryListeners {
  #listeners: readonly MemoryListener[] = [];

  get size(): number {
    return this.#listeners.length;
  }

  includes(listener: MemoryListener): boolean {
    return this.#listeners.includes(listener);
  }

  /** After all of its priority. */
  insert(listener: MemoryListener): void {
    const index = this.#listeners.findIndex((other) => priorityOf(other) > priorityOf(listener));
    this.#listeners = this.#listeners.toSpliced(index < 0 ? this.#listeners.length : index, 0, listener);
  }

  delete(listener: MemoryListener): void {
    this.#listeners = this.#listeners.filter((other) => other !== listener);
  }

  ascending(failures: unknown[], call: (listener: MemoryListener) => void): void {
    for (const listener of this.#listeners) attempt(failures, listener, call);
  }

  descending(failures: unknown[], call: (listener: MemoryListener) => void): void {
    for (const listener of this.#listeners.toReversed()) attempt(failures, listener, call);
  }
}

const priorityOf = (listener: MemoryListener): number => listener.priority ?? MEMORY_LISTENER_PRIORITY_MIN;

function attempt(
  failures: unknown[],
  listener: MemoryListener,
  call: (listener: MemoryListener) => void,
): void {
  try {
    call(listener);
  } catch (error) {
    failures.push(error);
  }
}

/** Throws the first of `failures`, if there is one. */
export function throwFirst(failures: readonly unknown[]): void {
  if (failures.length > 0) throw failures[0];
}

/** What is gone from `before` is told first, all of it; then what `after` has, both with ascending addresses. */
export function tellDifference(
  listeners: MemoryListeners,
  before: FlatView,
  after: FlatView,
  failures: unknown[],
): void {
  if (listeners.size === 0) return;
  eachPair(before, after, (gone, here) => {
    if (gone !== undefined && here === undefined) {
      listeners.descending(failures, (listener) => listener.regionDel?.(gone));
    }
  });
  eachPair(before, after, (was, here) => {
    if (here === undefined) return;
    if (was === undefined) {
      listeners.ascending(failures, (listener) => listener.regionAdd?.(here));
      return;
    }
    listeners.ascending(failures, (listener) => listener.regionNop?.(here));
    const [oldMask, newMask] = [was.dirtyLogMask, here.dirtyLogMask];
    if ((newMask & ~oldMask) !== 0) {
      listeners.ascending(failures, (listener) => listener.logStart?.(here, oldMask, newMask));
    }
    if ((oldMask & ~newMask) !== 0) {
      listeners.descending(failures, (listener) => listener.logStop?.(here, oldMask, newMask));
    }
  });
}

/** Calls with a range of either view alone, or with the two that are the same. */
function eachPair(
  before: FlatView,
  after: FlatView,
  call: (old: FlatRange | undefined, now: FlatRange | undefined) => void,
): void {
  let o = 0;
  let n = 0;
  while (o < before.ranges.length || n < after.ranges.length) {
    const old = before.ranges[o];
    const now = after.ranges[n];
    if (old !== undefined && now !== undefined && isSameRange(old, now)) {
      call(old, now);
      o++;
      n++;
    } else if (old !== undefined && (now === undefined || old.start <= now.start)) {
      call(old, undefined);
      o++;
    } else {
      call(undefined, now);
      n++;
    }
  }
}
