/**
 * An address space flattened to ranges, in ascending order, none overlapping (QEMU system/memory.c: FlatView, MemoryListener,
 * memory_region_find). Each change tells the listeners which ranges went and came.
 */
import { NotImplementedError } from '../../base/errors.ts';
import { assert, hex } from '../error.ts';
import type { MemoryRegion } from './memory-region.ts';

/** A part of a region where it lies in an address space (MemoryRegionSection). */
export interface MemoryRegionSection {
  readonly region: MemoryRegion;
  /** First address in the address space. */
  readonly start: number;
  readonly size: number;
  readonly offsetInRegion: number;
}

export interface MemoryListener {
  regionAdd(section: MemoryRegionSection): void;
  regionDel(section: MemoryRegionSection): void;
}

export class AddressSpace {
  readonly name: string;
  readonly size: number;
  #ranges: readonly MemoryRegionSection[] = [];
  #listeners: readonly MemoryListener[] = [];

  constructor(name: string, size: number) {
    this.name = name;
    this.size = size;
  }

  get ranges(): readonly MemoryRegionSection[] {
    return this.#ranges;
  }

  /** memory_region_add_subregion. A region that overlaps another one would need priorities. */
  add(region: MemoryRegion, start: number): void {
    const end = start + region.size;
    assert(
      region.size > 0 && start >= 0 && end <= this.size,
      `region ${region.name} at ${hex(start)}+${hex(region.size)} lies in ${this.name} of ${hex(this.size)} bytes`,
    );
    const other = this.#firstIntersecting(start, end);
    if (other !== undefined) {
      throw new NotImplementedError(
        `memory region priorities (${region.name} at ${hex(start)}+${hex(region.size)} overlaps ${other.region.name} at ${hex(other.start)}+${hex(other.size)})`,
      );
    }
    const section: MemoryRegionSection = { region, start, size: region.size, offsetInRegion: 0 };
    const before = this.#ranges;
    this.#ranges = [...before, section].sort((a, b) => a.start - b.start);
    try {
      for (const listener of this.#listeners) listener.regionAdd(section);
    } catch (error) {
      this.#ranges = before;
      throw error;
    }
  }

  /** memory_region_del_subregion */
  remove(region: MemoryRegion): void {
    const section = this.#ranges.find((range) => range.region === region);
    assert(section !== undefined, `region ${region.name} lies in ${this.name}`);
    for (const listener of [...this.#listeners].reverse()) listener.regionDel(section);
    this.#ranges = this.#ranges.filter((range) => range !== section);
  }

  /** memory_listener_register: `listener` hears of what is there, then of each change. */
  addListener(listener: MemoryListener): void {
    this.#listeners = [...this.#listeners, listener];
    for (const section of this.#ranges) listener.regionAdd(section);
  }

  /** memory_region_find: the first range that meets [start, start+size), cut to it. */
  find(start: number, size: number): MemoryRegionSection | undefined {
    const end = start + size;
    const range = this.#firstIntersecting(start, end);
    if (range === undefined) return undefined;
    const from = Math.max(start, range.start);
    return {
      region: range.region,
      start: from,
      size: Math.min(end, range.start + range.size) - from,
      offsetInRegion: range.offsetInRegion + from - range.start,
    };
  }

  /** The range that holds `address`, found without allocating. */
  rangeAt(address: number): MemoryRegionSection | undefined {
    let low = 0;
    let high = this.#ranges.length - 1;
    while (low <= high) {
      const middle = (low + high) >>> 1;
      const range = this.#ranges[middle]!;
      if (address < range.start) high = middle - 1;
      else if (address >= range.start + range.size) low = middle + 1;
      else return range;
    }
    return undefined;
  }

  #firstIntersecting(start: number, end: number): MemoryRegionSection | undefined {
    return this.#ranges.find((range) => range.start < end && start < range.start + range.size);
  }
}
