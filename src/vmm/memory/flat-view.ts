/**
 * A tree of regions flattened: which region answers at each address (QEMU system/memory.c: FlatView, render_memory_region,
 * flatview_simplify, flatview_lookup). Ranges ascend and do not overlap; neighbours that continue each other are one range.
 *
 * Regions are rendered from the top to the bottom, and each fills the gaps that those before it left. So a container or an
 * alias hides what lies below it only where something in it answers.
 *
 * Leaves out: that address spaces share a view where a root shows one region alone (memory_region_get_flatview_root), by which
 * QEMU loses what such a root says of itself, its address and that it is read-only.
 */
import type { MemoryRegion } from './memory-region.ts';

/** A part of a region where it lies in an address space (MemoryRegionSection). */
export interface MemoryRegionSection {
  readonly region: MemoryRegion;
  /** First address in the address space. */
  readonly start: number;
  readonly size: number;
  readonly offsetInRegion: number;
  /** The region, or an alias or a container on the way to it, is read-only. */
  readonly readOnly: boolean;
  readonly nonvolatile: boolean;
  readonly unmergeable: boolean;
}

/** A range of a flat view (FlatRange), with what the region was like when the view was made. */
export interface FlatRange extends MemoryRegionSection {
  readonly romdMode: boolean;
  readonly dirtyLogMask: number;
}

/** What a region takes over from the regions above it. */
interface Inherited {
  readonly readOnly: boolean;
  readonly nonvolatile: boolean;
  readonly unmergeable: boolean;
}

export class FlatView {
  readonly ranges: readonly FlatRange[];

  private constructor(ranges: readonly FlatRange[]) {
    this.ranges = ranges;
  }

  static readonly EMPTY = new FlatView([]);

  /** generate_memory_topology. Nothing lies beyond 2^53. */
  static render(root: MemoryRegion): FlatView {
    const ranges: FlatRange[] = [];
    const inherited = { readOnly: false, nonvolatile: false, unmergeable: false };
    renderRegion(ranges, root, root.address, 0, Number.MAX_SAFE_INTEGER, inherited);
    return new FlatView(simplified(ranges));
  }

  /** The first range that meets [start, start+size), cut to it (memory_region_find in a view, which never says `unmergeable`). */
  find(start: number, size: number): MemoryRegionSection | undefined {
    const range = this.ranges[this.#firstEndingAfter(start)];
    const end = start + size;
    if (range === undefined || range.start >= end) return undefined;
    const { region, readOnly, nonvolatile } = range;
    const from = Math.max(start, range.start);
    return {
      region,
      start: from,
      size: Math.min(end, endOf(range)) - from,
      offsetInRegion: range.offsetInRegion + from - range.start,
      readOnly,
      nonvolatile,
      unmergeable: false,
    };
  }

  /** The range that holds `address`, found without allocating. */
  at(address: number): FlatRange | undefined {
    const range = this.ranges[this.#firstEndingAfter(address)];
    return range !== undefined && range.start <= address ? range : undefined;
  }

  #firstEndingAfter(address: number): number {
    return firstEndingAfter(this.ranges, address);
  }
}

/** flatrange_equal: listeners need not hear of it. What is logged may differ, and is told apart. */
export const isSameRange = (a: FlatRange, b: FlatRange): boolean =>
  a.region === b.region &&
  a.start === b.start &&
  a.size === b.size &&
  a.offsetInRegion === b.offsetInRegion &&
  a.romdMode === b.romdMode &&
  a.readOnly === b.readOnly &&
  a.nonvolatile === b.nonvolatile &&
  a.unmergeable === b.unmergeable;

/**
 * Fills the gaps of `ranges` in [clipStart, clipEnd) with `region`, which starts at `start`. By an alias a region may start
 * below 0. Sums that leave the exact numbers, ±2^53, belong to regions outside the clip.
 */
function renderRegion(
  ranges: FlatRange[],
  region: MemoryRegion,
  start: number,
  clipStart: number,
  clipEnd: number,
  inherited: Inherited,
): void {
  if (!region.enabled) return;
  const from = Math.max(start, clipStart);
  const end = Math.min(start + region.size, clipEnd);
  if (from >= end) return;
  const flags = {
    readOnly: inherited.readOnly || region.readOnly,
    nonvolatile: inherited.nonvolatile || region.nonvolatile,
    unmergeable: inherited.unmergeable || region.unmergeable,
  };
  const { alias } = region;
  if (alias !== undefined) {
    renderRegion(ranges, alias, start - region.aliasOffset, from, end, flags);
    return;
  }
  for (const subregion of region.subregions) {
    renderRegion(ranges, subregion, start + subregion.address, from, end, flags);
  }
  // All but a container answer accesses themselves (`terminates`).
  if (region.kind !== 'container') fillGaps(ranges, region, start, from, end, flags);
}

function fillGaps(
  ranges: FlatRange[],
  region: MemoryRegion,
  regionStart: number,
  from: number,
  end: number,
  flags: Inherited,
): void {
  const { romdMode, dirtyLogMask } = region;
  let index = firstEndingAfter(ranges, from);
  for (let at = from; at < end; index++) {
    const next = ranges[index];
    const gapEnd = next === undefined ? end : Math.min(next.start, end);
    if (at < gapEnd) {
      const offsetInRegion = at - regionStart;
      ranges.splice(index, 0, {
        region,
        start: at,
        size: gapEnd - at,
        offsetInRegion,
        romdMode,
        dirtyLogMask,
        ...flags,
      });
      index++;
    }
    at = next === undefined ? end : endOf(next);
  }
}

/** flatview_simplify */
function simplified(ranges: readonly FlatRange[]): FlatRange[] {
  const result: FlatRange[] = [];
  for (const range of ranges) {
    const last = result.at(-1);
    if (last !== undefined && canMerge(last, range)) {
      result[result.length - 1] = { ...last, size: last.size + range.size };
    } else {
      result.push(range);
    }
  }
  return result;
}

/** One region has one mode and one mask of loggers, so these agree. */
const canMerge = (a: FlatRange, b: FlatRange): boolean =>
  endOf(a) === b.start &&
  a.region === b.region &&
  a.offsetInRegion + a.size === b.offsetInRegion &&
  a.readOnly === b.readOnly &&
  a.nonvolatile === b.nonvolatile &&
  !a.unmergeable &&
  !b.unmergeable;

const endOf = (range: MemoryRegionSection): number => range.start + range.size;

function firstEndingAfter(ranges: readonly FlatRange[], address: number): number {
  let low = 0;
  let high = ranges.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (endOf(ranges[middle]!) > address) high = middle;
    else low = middle + 1;
  }
  return low;
}
