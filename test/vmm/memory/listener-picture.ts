import { expect } from 'vitest';
import type { FlatRange, MemoryRegionSection } from '../../../src/vmm/memory/flat-view.ts';

/** A listener that keeps its own picture, out of what it hears alone, and holds the callbacks to their order. */
export class Picture {
  readonly ranges = new Map<number, MemoryRegionSection>();
  readonly logged = new Set<number>();
  changes = 0;
  #heard = 0;
  #open = false;
  #phase: 'del' | 'add' = 'del';
  #last = -1;

  begin = (): void => {
    expect(this.#open).toBe(false);
    this.#open = true;
    this.#phase = 'del';
    this.#last = -1;
    this.#heard = 0;
  };
  regionDel = (section: MemoryRegionSection): void => {
    this.#expectOrder('del', section.start);
    expect(this.ranges.get(section.start)).toEqual(section);
    this.ranges.delete(section.start);
    this.logged.delete(section.start);
    this.changes++;
  };
  regionAdd = (section: MemoryRegionSection): void => {
    this.#expectOrder('add', section.start);
    expect(this.ranges.has(section.start)).toBe(false);
    this.ranges.set(section.start, section);
    if ((section as FlatRange).dirtyLogMask !== 0) this.logged.add(section.start);
    this.#heard++;
    this.changes++;
  };
  regionNop = (section: MemoryRegionSection): void => {
    this.#expectOrder('add', section.start);
    const { dirtyLogMask: _, ...known } = this.ranges.get(section.start) as FlatRange;
    expect(section).toMatchObject(known);
    this.#heard++;
  };
  /** Of a range that is new, a new listener hears this as well. */
  logStart = (section: MemoryRegionSection, oldMask: number, newMask: number): void => {
    expect([oldMask, newMask]).toEqual([0, 1]);
    this.logged.add(section.start);
    this.#remember(section);
  };
  logStop = (section: MemoryRegionSection): void => {
    expect(this.logged.delete(section.start)).toBe(true);
    this.#remember(section);
  };
  commit = (): void => {
    expect(this.#open).toBe(true);
    this.#open = false;
    // Between begin and commit a listener hears of every range that is there.
    expect(this.#heard).toBe(this.ranges.size);
  };

  #remember(section: MemoryRegionSection): void {
    this.ranges.set(section.start, section);
  }

  #expectOrder(phase: 'del' | 'add', start: number): void {
    expect(this.#open).toBe(true);
    if (phase !== this.#phase) {
      expect(phase).toBe('add');
      this.#phase = 'add';
      this.#last = -1;
    }
    expect(start).toBeGreaterThan(this.#last);
    this.#last = start;
  }
}
