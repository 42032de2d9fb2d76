/**
 * Which gfns have the attribute PRIVATE: sorted, disjoint, non-adjacent ranges, so that a terabyte is one entry (Linux keeps an
 * xarray with an entry a page, kvm->mem_attr_array; the answers are the same).
 *
 * Ranges lie in one array of boundaries: [b0, b1) private, [b1, b2) shared, [b2, b3) private, … A gfn is private iff an odd number
 * of boundaries is at or below it.
 */
import type { Gfn } from '../../base/address.ts';

export class PrivateRanges {
  #boundaries = new Float64Array(16);
  #count = 0;

  /** Boundaries between private and shared. */
  get boundaryCount(): number {
    return this.#count;
  }

  isPrivate(gfn: Gfn): boolean {
    return (this.#boundariesUpTo(gfn) & 1) === 1;
  }

  /** Whether all of [start, end) is private, or all of it shared, as asked. */
  isUniform(start: Gfn, end: Gfn, isPrivate: boolean): boolean {
    const before = this.#boundariesUpTo(start);
    if (((before & 1) === 1) !== isPrivate) return false;
    return before === this.#count || this.#boundaries[before]! >= end;
  }

  /** Private gfns in [start, end). */
  countIn(start: Gfn, end: Gfn): number {
    let total = 0;
    for (let i = this.#boundariesUpTo(start) & ~1; i < this.#count && this.#boundaries[i]! < end; i += 2) {
      total += Math.min(this.#boundaries[i + 1]!, end) - Math.max(this.#boundaries[i]!, start);
    }
    return total;
  }

  /** Calls `visit` with each boundary b, start < b < end, in order. */
  forEachBoundary(start: Gfn, end: Gfn, visit: (boundary: number) => void): void {
    for (let i = this.#boundariesUpTo(start); i < this.#count && this.#boundaries[i]! < end; i++) {
      visit(this.#boundaries[i]!);
    }
  }

  /** Makes room for one `set`, which then cannot fail. Throws RangeError when there is none. */
  reserve(): void {
    if (this.#count + 2 <= this.#boundaries.length) return;
    const larger = new Float64Array(this.#boundaries.length * 2);
    larger.set(this.#boundaries);
    this.#boundaries = larger;
  }

  /** Makes [start, end) private or shared, whole. */
  set(start: Gfn, end: Gfn, isPrivate: boolean): void {
    this.reserve();
    const boundaries = this.#boundaries;
    const first = this.#boundariesBelow(start);
    const last = this.#boundariesUpTo(end);
    // Boundaries inside [start, end] go; one comes at start (end) where the neighbour before (after) is of the other kind.
    const atStart = ((first & 1) === 1) !== isPrivate;
    const atEnd = ((last & 1) === 1) !== isPrivate;
    const inserted = (atStart ? 1 : 0) + (atEnd ? 1 : 0);
    boundaries.copyWithin(first + inserted, last, this.#count);
    if (atStart) boundaries[first] = start;
    if (atEnd) boundaries[first + inserted - 1] = end;
    this.#count += inserted - (last - first);
  }

  /** How many boundaries are at or below `gfn`. */
  #boundariesUpTo(gfn: number): number {
    let low = 0;
    let high = this.#count;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#boundaries[middle]! <= gfn) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** How many boundaries are below `gfn`. */
  #boundariesBelow(gfn: number): number {
    const upTo = this.#boundariesUpTo(gfn);
    return this.#boundaries[upTo - 1] === gfn ? upTo - 1 : upTo;
  }
}
