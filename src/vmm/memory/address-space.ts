/**
 * Memory as a CPU or a device sees it: a root region, its flat view, and who listens (QEMU system/memory.c: AddressSpace,
 * memory_listener_register, memory_region_find). A machine has one for memory and one for I/O ports.
 */
import { assert } from '../error.ts';
import { type FlatRange, FlatView, type MemoryRegionSection } from './flat-view.ts';
import { type MemoryListener, MemoryListeners, throwFirst } from './memory-listener.ts';
import type { MemoryRegion } from './memory-region.ts';
import type { MemoryTopology } from './memory-topology.ts';

export class AddressSpace {
  readonly topology: MemoryTopology;
  readonly name: string;
  readonly root: MemoryRegion;
  readonly listeners = new MemoryListeners();
  /** The topology alone sets it. */
  view: FlatView = FlatView.EMPTY;

  /** address_space_init */
  constructor(topology: MemoryTopology, name: string, root: MemoryRegion) {
    this.topology = topology;
    this.name = name;
    this.root = root;
    topology.attachSpace(this);
  }

  /** address_space_destroy */
  close(): void {
    assert(this.listeners.size === 0, `nobody listens to ${this.name} any more`);
    this.topology.detachSpace(this);
  }

  get ranges(): readonly FlatRange[] {
    return this.view.ranges;
  }

  /**
   * Maps `region` at `start` in the root. Where a listener fails, the region is taken out again and the error thrown (but
   * not within a transaction, whose end tells listeners).
   */
  add(region: MemoryRegion, start: number): void {
    const wasElsewhere = region.container !== undefined;
    try {
      this.topology.addSubregion(this.root, start, region);
    } catch (error) {
      if (!wasElsewhere && region.container === this.root) this.topology.delSubregion(this.root, region);
      throw error;
    }
  }

  /** Takes `region` out of the root. */
  remove(region: MemoryRegion): void {
    this.topology.delSubregion(this.root, region);
  }

  /** memory_listener_register: `listener` hears of what is there, then of each change. Throws what it throws. */
  addListener(listener: MemoryListener): void {
    this.topology.attachListener(listener, this);
    this.listeners.insert(listener);
    const failures: unknown[] = [];
    const alone = new MemoryListeners();
    alone.insert(listener);
    alone.ascending(failures, () => listener.begin?.());
    for (const range of this.ranges) {
      alone.ascending(failures, () => listener.regionAdd?.(range));
      if (range.dirtyLogMask === 0) continue;
      alone.ascending(failures, () => listener.logStart?.(range, 0, range.dirtyLogMask));
    }
    alone.ascending(failures, () => listener.commit?.());
    throwFirst(failures);
  }

  /** memory_listener_unregister: `listener` hears that everything goes, in ascending order, and then nothing more. */
  removeListener(listener: MemoryListener): void {
    assert(this.listeners.includes(listener), `the listener listens to ${this.name}`);
    this.listeners.delete(listener);
    this.topology.detachListener(listener);
    listener.begin?.();
    for (const range of this.ranges) {
      if (range.dirtyLogMask !== 0) listener.logStop?.(range, range.dirtyLogMask, 0);
      listener.regionDel?.(range);
    }
    listener.commit?.();
  }

  /** The first range that meets [start, start+size), cut to it. Sees a transaction only when it has ended. */
  find(start: number, size: number): MemoryRegionSection | undefined {
    return this.view.find(start, size);
  }

  /** The range that holds `address`, found without allocating. */
  rangeAt(address: number): FlatRange | undefined {
    return this.view.at(address);
  }
}

/**
 * memory_region_find: the first range that meets `size` bytes from `offset` in `region` on, in the address space that shows
 * `region` through its containers; whether `region` itself is what answers there is another question. Undefined too where no
 * address space has the outermost container as its root.
 */
export function memoryRegionFind(
  topology: MemoryTopology,
  region: MemoryRegion,
  offset: number,
  size: number,
): MemoryRegionSection | undefined {
  let start = offset + region.address;
  let root = region;
  for (; root.container !== undefined; root = root.container) start += root.container.address;
  return topology.spaceOf(root)?.view.find(start, size);
}

/** memory_region_present: another region answers at `offset` in `container`. */
export function memoryRegionPresent(
  topology: MemoryTopology,
  container: MemoryRegion,
  offset: number,
): boolean {
  const section = memoryRegionFind(topology, container, offset, 1);
  return section !== undefined && section.region !== container;
}
