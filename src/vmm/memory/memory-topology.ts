/**
 * How the memory of a machine changes (QEMU system/memory.c: memory_region_transaction_begin and _commit,
 * memory_region_add_subregion, memory_region_set_enabled and its like). What QEMU keeps in globals is one object here: the
 * depth of the transaction, the address spaces and the listeners of one machine. All regions of a machine change through it.
 *
 *     topology.transaction(() => {
 *       topology.delSubregion(system, window);
 *       topology.addSubregionOverlap(system, 0xa0000, window, 1);
 *     });
 *
 * Within a transaction the address spaces stay as they were. When the outermost one ends, each is rendered once, and listeners
 * hear of the difference: all `begin`, then space by space what is gone, kept and new, then all `commit`. Where a listener
 * fails, the change is made all the same, and the first error is thrown (QEMU ends the process).
 */
import { assert } from '../error.ts';
import { FlatView } from './flat-view.ts';
import { type MemoryListener, MemoryListeners, tellDifference, throwFirst } from './memory-listener.ts';
import { assertBytes, type MemoryRegion } from './memory-region.ts';

/** An address space as the topology sees it. */
export interface TopologySpace {
  readonly root: MemoryRegion;
  readonly listeners: MemoryListeners;
  view: FlatView;
}

/** DIRTY_MEMORY_VGA: the client of dirty logging that a region itself has. */
const DIRTY_MEMORY_VGA = 0;

type Changeable<T> = { -readonly [K in keyof T]: T[K] };
const changeable = (region: MemoryRegion): Changeable<MemoryRegion> => region;

export class MemoryTopology {
  readonly #spaces: TopologySpace[] = [];
  /** Of all address spaces. */
  readonly #listeners = new MemoryListeners();
  /** What each listens to. */
  readonly #listensTo = new Map<MemoryListener, TopologySpace>();
  readonly #loggers = new WeakMap<MemoryRegion, number>();
  #depth = 0;
  #pending = false;
  #committing = false;

  /** memory_region_transaction_begin: transactions nest. */
  begin(): void {
    assert(!this.#committing, 'a listener does not change the topology that it hears of');
    this.#depth++;
  }

  /** memory_region_transaction_commit. Throws what a listener threw. */
  commit(): void {
    assert(this.#depth > 0, 'a transaction ends that has begun');
    this.#depth--;
    if (this.#depth > 0 || !this.#pending) return;
    const views = this.#render();
    this.#pending = false;
    this.#committing = true;
    const failures: unknown[] = [];
    this.#listeners.ascending(failures, (listener) => listener.begin?.());
    for (const space of this.#spaces) {
      const after = views.get(space.root)!;
      tellDifference(space.listeners, space.view, after, failures);
      space.view = after;
    }
    this.#listeners.ascending(failures, (listener) => listener.commit?.());
    this.#committing = false;
    throwFirst(failures);
  }

  /** Makes all changes of `change` one. What it throws ends the transaction and passes through. */
  transaction<T>(change: () => T): T {
    this.begin();
    try {
      return change();
    } finally {
      this.commit();
    }
  }

  /** memory_region_add_subregion: `region` at `offset` in `container`, above what lies there with the same priority, 0. */
  addSubregion(container: MemoryRegion, offset: number, region: MemoryRegion): void {
    this.addSubregionOverlap(container, offset, region, 0);
  }

  /** memory_region_add_subregion_overlap: above everything in `container` whose priority is as high, or lower. */
  addSubregionOverlap(container: MemoryRegion, offset: number, region: MemoryRegion, priority: number): void {
    assert(region.container === undefined, `region ${region.name} is mapped once, elsewhere by an alias`);
    assert(container.alias === undefined, `alias ${container.name} holds no regions of its own`);
    assertBytes(region.name, 'offset', offset);
    assert((priority | 0) === priority, `region ${region.name} has a priority of 32 bits: ${priority}`);
    assert(!reaches(region, container), `region ${region.name} does not contain ${container.name} itself`);
    this.transaction(() => {
      changeable(region).priority = priority;
      changeable(region).address = offset;
      changeable(region).container = container;
      countAliases(region, 1);
      const others = container.subregions;
      const index = others.findIndex((other) => priority >= other.priority);
      changeable(container).subregions = others.toSpliced(index < 0 ? others.length : index, 0, region);
      this.#changed(container.enabled && region.enabled);
    });
  }

  /** memory_region_del_subregion */
  delSubregion(container: MemoryRegion, region: MemoryRegion): void {
    assert(region.container === container, `region ${region.name} is mapped in ${container.name}`);
    this.transaction(() => {
      changeable(region).container = undefined;
      countAliases(region, -1);
      changeable(container).subregions = container.subregions.filter((other) => other !== region);
      this.#changed(container.enabled && region.enabled);
    });
  }

  /** memory_region_set_enabled: a disabled region is not there, nor what is mapped in it or shown by it. */
  setEnabled(region: MemoryRegion, state: 'enabled' | 'disabled'): void {
    const enabled = state === 'enabled';
    if (region.enabled === enabled) return;
    this.transaction(() => {
      changeable(region).enabled = enabled;
      this.#changed(true);
    });
  }

  /** memory_region_set_address: a region that moves comes to lie above others of its priority. */
  setAddress(region: MemoryRegion, offset: number): void {
    assertBytes(region.name, 'offset', offset);
    if (region.address === offset) return;
    const { container, priority } = region;
    if (container === undefined) {
      changeable(region).address = offset;
      return;
    }
    this.transaction(() => {
      this.delSubregion(container, region);
      this.addSubregionOverlap(container, offset, region, priority);
    });
  }

  /** memory_region_set_size */
  setSize(region: MemoryRegion, size: number): void {
    assertBytes(region.name, 'size', size);
    if (region.size === size) return;
    this.transaction(() => {
      changeable(region).size = size;
      this.#changed(true);
    });
  }

  /** memory_region_set_alias_offset */
  setAliasOffset(region: MemoryRegion, offset: number): void {
    assert(region.alias !== undefined, `region ${region.name} is an alias`);
    assertBytes(region.name, 'offset', offset);
    this.#setFlag(region, 'aliasOffset', offset);
  }

  /** memory_region_set_readonly */
  setReadOnly(region: MemoryRegion, access: 'readonly' | 'writable'): void {
    this.#setFlag(region, 'readOnly', access === 'readonly');
  }

  /** memory_region_set_nonvolatile */
  setNonvolatile(region: MemoryRegion, kind: 'nonvolatile' | 'volatile'): void {
    this.#setFlag(region, 'nonvolatile', kind === 'nonvolatile');
  }

  /** memory_region_set_unmergeable */
  setUnmergeable(region: MemoryRegion, kind: 'unmergeable' | 'mergeable'): void {
    this.#setFlag(region, 'unmergeable', kind === 'unmergeable');
  }

  /** memory_region_rom_device_set_romd: whether reads find the memory or, as when flash is programmed, the device. */
  setRomd(region: MemoryRegion, reads: 'memory' | 'device'): void {
    this.#setFlag(region, 'romdMode', reads === 'memory');
  }

  /** memory_region_set_log for DIRTY_MEMORY_VGA: displays count; the first starts logging and the last stops it. */
  setLog(region: MemoryRegion, log: 'start' | 'stop'): void {
    const before = this.#loggers.get(region) ?? 0;
    const after = before + (log === 'start' ? 1 : -1);
    assert(after >= 0, `logging of region ${region.name} stops as often as it starts`);
    this.#loggers.set(region, after);
    const bit = 1 << DIRTY_MEMORY_VGA;
    this.#setFlag(region, 'dirtyLogMask', after > 0 ? region.dirtyLogMask | bit : region.dirtyLogMask & ~bit);
  }

  /** address_space_init: renders at once, within a transaction as well. */
  attachSpace(space: TopologySpace): void {
    space.view = FlatView.render(space.root);
    this.#spaces.push(space);
  }

  detachSpace(space: TopologySpace): void {
    this.#spaces.splice(this.#spaces.indexOf(space), 1);
  }

  /** The address space whose root `region` is (the last step of memory_region_to_address_space). */
  spaceOf(root: MemoryRegion): TopologySpace | undefined {
    return this.#spaces.find((space) => space.root === root);
  }

  /** For callbacks that go to all listeners. */
  attachListener(listener: MemoryListener, space: TopologySpace): void {
    assert(!this.#listensTo.has(listener), 'a listener is registered once');
    assert(
      listener.logSync === undefined || listener.logSyncGlobal === undefined,
      'a listener syncs its log by ranges or all at once, not both',
    );
    this.#listeners.insert(listener);
    this.#listensTo.set(listener, space);
  }

  detachListener(listener: MemoryListener): void {
    this.#listeners.delete(listener);
    this.#listensTo.delete(listener);
  }

  /** All listeners in ascending order of priority, each with the address space that it listens to. */
  eachListener(failures: unknown[], call: (listener: MemoryListener, space: TopologySpace) => void): void {
    this.#listeners.ascending(failures, (listener) => call(listener, this.#listensTo.get(listener)!));
  }

  #setFlag<
    K extends 'aliasOffset' | 'readOnly' | 'nonvolatile' | 'unmergeable' | 'romdMode' | 'dirtyLogMask',
  >(region: MemoryRegion, field: K, value: MemoryRegion[K]): void {
    if (region[field] === value) return;
    this.transaction(() => {
      changeable(region)[field] = value;
      this.#changed(region.enabled);
    });
  }

  #changed(visible: boolean): void {
    if (visible) this.#pending = true;
  }

  /** Each root once, however many address spaces show it. */
  #render(): Map<MemoryRegion, FlatView> {
    const views = new Map<MemoryRegion, FlatView>();
    for (const { root } of this.#spaces) {
      if (!views.has(root)) views.set(root, FlatView.render(root));
    }
    return views;
  }
}

/** Whether `region` shows `other`, directly or not, or is it. */
function reaches(region: MemoryRegion, other: MemoryRegion, seen = new Set<MemoryRegion>()): boolean {
  if (region === other) return true;
  if (seen.has(region)) return false;
  seen.add(region);
  if (region.alias !== undefined && reaches(region.alias, other, seen)) return true;
  return region.subregions.some((subregion) => reaches(subregion, other, seen));
}

function countAliases(region: MemoryRegion, by: 1 | -1): void {
  for (let { alias } = region; alias !== undefined; alias = alias.alias) {
    changeable(alias).mappedViaAlias += by;
  }
}
