/**
 * Random trees of regions, changed at random, against a painter: it paints each byte of a small space with whoever answers
 * there, from the bottom to the top, later strokes over earlier ones. The flat view goes from the top to the bottom and fills
 * gaps, so the two share nothing but the rules.
 */
import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { AddressSpace } from '../../../src/vmm/memory/address-space.ts';
import type { FlatRange, MemoryRegionSection } from '../../../src/vmm/memory/flat-view.ts';
import { aliasRegion, containerRegion, type MemoryRegion } from '../../../src/vmm/memory/memory-region.ts';
import { MemoryTopology } from '../../../src/vmm/memory/memory-topology.ts';
import { flash, io, ram } from './regions.ts';

/** Bytes of the space. */
const SPACE = 48;

/** A region as the painter knows it. */
interface Node {
  readonly region: MemoryRegion;
  readonly answers: boolean;
  readonly children: { node: Node; offset: number; priority: number; order: number }[];
  readonly target: Node | undefined;
  size: number;
  aliasOffset: number;
  parent: Node | undefined;
  enabled: boolean;
  readOnly: boolean;
  nonvolatile: boolean;
  romd: boolean;
  logged: boolean;
}

/** What a painted byte shows. */
interface Paint {
  name: string;
  offset: number;
  readOnly: boolean;
  nonvolatile: boolean;
  romd: boolean;
}

type Canvas = (Paint | undefined)[];

function paint(
  canvas: Canvas,
  node: Node,
  at: number,
  clip: (byte: number) => boolean,
  above: { readOnly: boolean; nonvolatile: boolean },
): void {
  if (!node.enabled) return;
  const visible = (byte: number) => clip(byte) && byte >= at && byte < at + node.size;
  const readOnly = above.readOnly || node.readOnly;
  const nonvolatile = above.nonvolatile || node.nonvolatile;
  if (node.target !== undefined) {
    paint(canvas, node.target, at - node.aliasOffset, visible, { readOnly, nonvolatile });
    return;
  }
  if (node.answers) {
    for (let byte = 0; byte < SPACE; byte++) {
      if (!visible(byte)) continue;
      canvas[byte] = { name: node.region.name, offset: byte - at, readOnly, nonvolatile, romd: node.romd };
    }
  }
  const bottomUp = [...node.children].sort((a, b) => a.priority - b.priority || a.order - b.order);
  for (const { node: child, offset } of bottomUp) {
    paint(canvas, child, at + offset, visible, { readOnly, nonvolatile });
  }
}

function painted(root: Node): Canvas {
  const canvas: Canvas = new Array<undefined>(SPACE).fill(undefined);
  paint(canvas, root, 0, () => true, { readOnly: false, nonvolatile: false });
  return canvas;
}

const paintOf = (range: FlatRange, byte: number): Paint => ({
  name: range.region.name,
  offset: range.offsetInRegion + byte - range.start,
  readOnly: range.readOnly,
  nonvolatile: range.nonvolatile,
  romd: range.romdMode,
});

const canvasOf = (ranges: readonly FlatRange[]): Canvas => {
  const canvas: Canvas = new Array<undefined>(SPACE).fill(undefined);
  for (const range of ranges) {
    for (let byte = range.start; byte < range.start + range.size; byte++) {
      expect(canvas[byte]).toBe(undefined);
      canvas[byte] = paintOf(range, byte);
    }
  }
  return canvas;
};

const shows = (node: Node, other: Node): boolean =>
  node === other ||
  (node.target !== undefined && shows(node.target, other)) ||
  node.children.some((child) => shows(child.node, other));

/** A listener that keeps its own picture, out of what it hears alone, and holds the callbacks to their order. */
class Picture {
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

/** A topology and the painter's copy of it, changed together. */
class World {
  readonly topology = new MemoryTopology();
  readonly nodes: Node[] = [];
  readonly space: AddressSpace;
  readonly picture = new Picture();
  #order = 0;

  constructor(seeds: readonly NodeSeed[]) {
    this.#addNode(containerRegion('root', SPACE), undefined);
    for (const [i, seed] of seeds.entries()) {
      const name = `${seed.kind} ${i}`;
      const target = this.nodes[seed.target % this.nodes.length]!;
      if (seed.kind === 'alias') {
        this.#addNode(aliasRegion(name, target.region, seed.offset, seed.size), target);
      } else {
        const make = { container: containerRegion, io, ram, flash }[seed.kind];
        this.#addNode(make(name, seed.size), undefined);
      }
    }
    this.space = new AddressSpace(this.topology, 'space', this.root.region);
    this.space.addListener(this.picture);
  }

  get root(): Node {
    return this.nodes[0]!;
  }

  #addNode(region: MemoryRegion, target: Node | undefined): void {
    this.nodes.push({
      region,
      target,
      answers: region.kind !== 'container' && region.kind !== 'alias',
      children: [],
      size: region.size,
      aliasOffset: region.aliasOffset,
      parent: undefined,
      enabled: true,
      readOnly: false,
      nonvolatile: false,
      romd: true,
      logged: false,
    });
  }

  change({ what, node: which, other, at, size, priority }: Change): void {
    const { topology } = this;
    const node = this.nodes[which % this.nodes.length]!;
    const { region } = node;
    switch (what) {
      case 'add': {
        const parent = this.nodes[other % this.nodes.length]!;
        if (node === this.root || node.parent !== undefined) return;
        if (parent.target !== undefined || shows(node, parent)) return;
        topology.addSubregionOverlap(parent.region, at, region, priority);
        parent.children.push({ node, offset: at, priority, order: this.#order++ });
        node.parent = parent;
        return;
      }
      case 'del':
        if (node.parent === undefined) return;
        topology.delSubregion(node.parent.region, region);
        this.#takeOut(node);
        return;
      case 'move': {
        if (node.parent === undefined || region.address === at) return;
        const { parent } = node;
        topology.setAddress(region, at);
        const link = this.#takeOut(node);
        parent.children.push({ ...link, offset: at, order: this.#order++ });
        node.parent = parent;
        return;
      }
      case 'enabled':
        node.enabled = !node.enabled;
        topology.setEnabled(region, node.enabled ? 'enabled' : 'disabled');
        return;
      case 'size':
        node.size = size;
        topology.setSize(region, size);
        return;
      case 'alias offset':
        if (node.target === undefined) return;
        node.aliasOffset = at;
        topology.setAliasOffset(region, at);
        return;
      case 'read-only':
        node.readOnly = !node.readOnly;
        topology.setReadOnly(region, node.readOnly ? 'readonly' : 'writable');
        return;
      case 'nonvolatile':
        node.nonvolatile = !node.nonvolatile;
        topology.setNonvolatile(region, node.nonvolatile ? 'nonvolatile' : 'volatile');
        return;
      case 'romd':
        node.romd = !node.romd;
        topology.setRomd(region, node.romd ? 'memory' : 'device');
        return;
      case 'log':
        node.logged = !node.logged;
        topology.setLog(region, node.logged ? 'start' : 'stop');
    }
  }

  #takeOut(node: Node): Node['children'][number] {
    const { children } = node.parent!;
    const index = children.findIndex((child) => child.node === node);
    node.parent = undefined;
    return children.splice(index, 1)[0]!;
  }
}

interface NodeSeed {
  kind: 'container' | 'alias' | 'io' | 'ram' | 'flash';
  size: number;
  offset: number;
  target: number;
}

interface Change {
  what: (typeof CHANGES)[number];
  node: number;
  other: number;
  at: number;
  size: number;
  priority: number;
}

const CHANGES = [
  ...['add', 'add', 'add', 'del', 'move', 'enabled', 'size', 'alias offset'],
  ...['read-only', 'nonvolatile', 'romd', 'log'],
] as (
  | 'add'
  | 'del'
  | 'move'
  | 'enabled'
  | 'size'
  | 'alias offset'
  | 'read-only'
  | 'nonvolatile'
  | 'romd'
  | 'log'
)[];

const nodeSeed: fc.Arbitrary<NodeSeed> = fc.record({
  kind: fc.constantFrom('container', 'container', 'alias', 'alias', 'io', 'ram', 'flash'),
  size: fc.nat(40),
  offset: fc.nat(20),
  target: fc.nat(30),
});
const change: fc.Arbitrary<Change> = fc.record({
  what: fc.constantFrom(...CHANGES),
  node: fc.nat(30),
  other: fc.nat(30),
  at: fc.nat(40),
  size: fc.nat(40),
  priority: fc.integer({ min: -1, max: 1 }),
});
/** Outer: transactions; inner: their changes. */
const history = fc.array(fc.array(change, { minLength: 1, maxLength: 6 }), { maxLength: 12 });
const seeds = fc.array(nodeSeed, { minLength: 3, maxLength: 12 });

/** Everything that can be added lies somewhere, so that few histories are empty. */
const populate = (world: World): void => {
  world.topology.transaction(() => {
    for (let i = 1; i < world.nodes.length; i++) {
      world.change({ what: 'add', node: i, other: i % 3, at: (i * 7) % 24, size: 0, priority: 0 });
    }
  });
};

const run = (check: (world: World) => void): void => {
  fc.assert(
    fc.property(seeds, history, (nodes, transactions) => {
      const world = new World(nodes);
      populate(world);
      for (const changes of transactions) {
        world.topology.transaction(() => {
          for (const one of changes) world.change(one);
        });
        check(world);
      }
    }),
    { numRuns: 300 },
  );
};

describe('after any changes (property)', () => {
  it('the flat view shows at each byte what the painter shows', () => {
    run((world) => {
      expect(canvasOf(world.space.ranges)).toEqual(painted(world.root));
    });
  });

  it('ranges ascend, none is empty, and no two could be one', () => {
    run(({ space: { ranges } }) => {
      for (const [i, range] of ranges.entries()) {
        expect(range.size).toBeGreaterThan(0);
        const next = ranges[i + 1];
        if (next === undefined) continue;
        const end = range.start + range.size;
        expect(next.start).toBeGreaterThanOrEqual(end);
        const goesOn =
          next.start === end &&
          range.dirtyLogMask === next.dirtyLogMask &&
          JSON.stringify(paintOf(range, end)) === JSON.stringify(paintOf(next, end));
        expect(goesOn).toBe(false);
      }
    });
  });

  it('a listener that believes what it hears has the same view, and knows what is logged', () => {
    run(({ space: { ranges }, picture }) => {
      expect([...picture.ranges.values()].sort((a, b) => a.start - b.start)).toEqual(ranges);
      const logged = ranges.filter(({ dirtyLogMask }) => dirtyLogMask !== 0);
      expect([...picture.logged].sort((a, b) => a - b)).toEqual(logged.map(({ start }) => start));
    });
  });

  it('a listener that comes later hears what the first one knows', () => {
    run(({ space, picture }) => {
      const late = new Picture();
      space.addListener(late);
      expect(new Map([...late.ranges].sort())).toEqual(new Map([...picture.ranges].sort()));
      space.removeListener(late);
      expect(late.ranges.size).toBe(0);
    });
  });

  it('what is found for a range is the first painted stretch of one region in it', () => {
    fc.assert(
      fc.property(
        seeds,
        history,
        fc.nat(SPACE),
        fc.integer({ min: 1, max: SPACE }),
        (nodes, all, start, size) => {
          const world = new World(nodes);
          populate(world);
          for (const one of all.flat()) world.change(one);
          const canvas = painted(world.root);
          let first = start;
          while (first < Math.min(start + size, SPACE) && canvas[first] === undefined) first++;
          const expected = first < Math.min(start + size, SPACE) ? canvas[first] : undefined;
          const section = world.space.find(start, size);
          expect(
            section && {
              name: section.region.name,
              offset: section.offsetInRegion,
              readOnly: section.readOnly,
              nonvolatile: section.nonvolatile,
            },
          ).toEqual(expected && { ...expected, romd: undefined });
          if (section === undefined || expected === undefined) return;
          expect(section.start).toBe(first);
          expect(section.start + section.size).toBeLessThanOrEqual(start + size);
          for (let i = 0; i < section.size; i++) {
            expect(canvas[first + i]).toEqual({ ...expected, offset: expected.offset + i });
          }
          expect(world.space.rangeAt(first)?.region).toBe(section.region);
        },
      ),
      { numRuns: 500 },
    );
  });
});
