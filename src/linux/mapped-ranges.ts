/**
 * Which addresses a process has mapped through us: ranges that do not touch, in ascending order. The Node that runs this code shares
 * the address space with them, so whatever lies outside is not ours to change.
 */
export interface AddressRange {
  readonly start: number;
  /** The first address behind it. */
  readonly end: number;
}

export class MappedRanges {
  #ranges: AddressRange[] = [];

  get all(): readonly AddressRange[] {
    return this.#ranges;
  }

  add(start: number, end: number): void {
    if (start >= end) return;
    const joined = this.#ranges.filter((range) => range.end >= start && range.start <= end);
    const apart = this.#ranges.filter((range) => range.end < start || range.start > end);
    apart.push({
      start: Math.min(start, ...joined.map((range) => range.start)),
      end: Math.max(end, ...joined.map((range) => range.end)),
    });
    this.#ranges = apart.sort((a, b) => a.start - b.start);
  }

  remove(start: number, end: number): void {
    if (start >= end) return;
    this.#ranges = this.#ranges.flatMap((range) => [
      ...(range.start < start ? [{ start: range.start, end: Math.min(range.end, start) }] : []),
      ...(range.end > end ? [{ start: Math.max(range.start, end), end: range.end }] : []),
    ]);
  }

  /** The parts of [start, end) that are mapped. */
  within(start: number, end: number): AddressRange[] {
    if (start >= end) return [];
    return this.#ranges
      .filter((range) => range.end > start && range.start < end)
      .map((range) => ({ start: Math.max(range.start, start), end: Math.min(range.end, end) }));
  }

  /** Whether all of [start, end) is mapped; `start` is below `end`. */
  covers(start: number, end: number): boolean {
    return this.#ranges.some((range) => range.start <= start && end <= range.end);
  }
}
