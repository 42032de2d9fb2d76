/** Random trees of regions, changed at random, against a painter and a listener that believes what it hears. */
import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { AddressSpace } from '../../../src/vmm/memory/address-space.ts';
import { aliasRegion, containerRegion, type MemoryRegion } from '../../../src/vmm/memory/memory-region.ts';
import { MemoryTopology } from '../../../src/vmm/memory/memory-topology.ts';
import { Picture } from './listener-picture.ts';
import { canvasOf, type Node, painted, paintOf, SPACE } from './painter.ts';
import { flash, io, ram } from './regions.ts';

const shows = (node: Node, other: Node): boolean =>
  node === other ||
  (node.target !== undefined && shows(node.target, other)) ||
  node.children.some((child) => shows(child.node, other));

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
        // Mostly on, or too little could be seen.
        node.enabled = at % 5 !== 0 || node === this.root;
        topology.setEnabled(region, node.enabled ? 'enabled' : 'disabled');
        return;
      case 'size':
        node.size = node === this.root ? SPACE - 1 - (size % 8) : size;
        topology.setSize(region, node.size);
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

/** Often multiples of 4, so that regions touch. */
const bytes = (most: number): fc.Arbitrary<number> =>
  fc.oneof(
    fc.nat(most),
    fc.nat(most >> 2).map((n) => n * 4),
  );
const size = fc.oneof({ weight: 9, arbitrary: bytes(20).map((n) => n + 4) }, fc.constant(0));
const nodeSeed: fc.Arbitrary<NodeSeed> = fc.record({
  kind: fc.constantFrom('container', 'container', 'alias', 'alias', 'io', 'ram', 'flash'),
  size,
  offset: bytes(16),
  target: fc.nat(30),
});
const change: fc.Arbitrary<Change> = fc.record({
  what: fc.constantFrom(...CHANGES),
  node: fc.nat(30),
  other: fc.oneof(fc.constant(0), fc.nat(30)),
  at: bytes(48),
  size,
  priority: fc.integer({ min: -1, max: 1 }),
});
/** Outer: transactions; inner: their changes. */
const history = fc.array(fc.array(change, { minLength: 1, maxLength: 6 }), { maxLength: 12 });
const seeds = fc.array(nodeSeed, { minLength: 6, maxLength: 14 });

/** Everything that can be added lies somewhere, so that few histories are empty. */
const populate = (world: World): void => {
  world.topology.transaction(() => {
    for (let i = 1; i < world.nodes.length; i++) {
      world.change({
        what: 'add',
        node: i,
        other: [0, 0, 1, 2][i % 4]!,
        at: (i * 11) % 48,
        size: 0,
        priority: 0,
      });
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
    { numRuns: 150 },
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
      { numRuns: 200 },
    );
  });
});
