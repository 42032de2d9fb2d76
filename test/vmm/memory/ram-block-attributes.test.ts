import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { RamBlockAttributes, type RamDiscardListener } from '../../../src/vmm/memory/ram-block-attributes.ts';

const PAGE = 4096;

/** Notes what it hears, in pages; refuses to populate the page `refuses`. */
function listener(options: { offset?: number; size: number; refuses?: number; once?: true }) {
  const heard: string[] = [];
  const pages = (offset: number, size: number) => `${offset / PAGE}+${size / PAGE}`;
  const self: RamDiscardListener = {
    offset: options.offset ?? 0,
    size: options.size,
    ...(options.once ? { doubleDiscardSupported: true as const } : {}),
    notifyPopulate: (offset, size) => {
      heard.push(`populate ${pages(offset, size)}`);
      return options.refuses !== undefined &&
        offset <= options.refuses * PAGE &&
        offset + size > options.refuses * PAGE
        ? -12
        : 0;
    },
    notifyDiscard: (offset, size) => {
      heard.push(`discard ${pages(offset, size)}`);
    },
  };
  return { self, heard };
}

describe('a change of state', () => {
  it('starts from a block that is private throughout', () => {
    const attributes = new RamBlockAttributes(8 * PAGE);
    expect(attributes.populatedPages).toBe(0);
    expect(attributes.isPopulated(7 * PAGE)).toBe(false);
  });

  it.each([
    ['an offset within a page', 1, PAGE],
    ['a size within a page', 0, 100],
    ['no size', 0, 0],
    ['a negative size', PAGE, -PAGE],
    ['an offset below the block', -PAGE, PAGE],
    ['an end beyond the block', 7 * PAGE, 2 * PAGE],
    ['a start beyond the block', 8 * PAGE, PAGE],
  ])('refuses %s with EINVAL', (_, offset, size) => {
    const attributes = new RamBlockAttributes(8 * PAGE);
    expect(attributes.stateChange(offset, size, 'populated')).toBe(-22);
    expect(attributes.stateChange(offset, size, 'discarded')).toBe(-22);
    expect(attributes.changedPages).toBe(0);
  });

  it('of a range that is in the target state tells nobody', () => {
    const attributes = new RamBlockAttributes(8 * PAGE);
    const { self, heard } = listener({ size: 8 * PAGE });
    attributes.registerListener(self);
    expect(attributes.stateChange(0, 8 * PAGE, 'discarded')).toBe(0);
    expect(heard).toEqual([]);
    expect(attributes.changedPages).toBe(0);
  });

  it('of a uniform range is told once', () => {
    const attributes = new RamBlockAttributes(8 * PAGE);
    const { self, heard } = listener({ size: 8 * PAGE });
    attributes.registerListener(self);
    attributes.stateChange(PAGE, 4 * PAGE, 'populated');
    attributes.stateChange(PAGE, 4 * PAGE, 'discarded');
    expect(heard).toEqual(['populate 1+4', 'discard 1+4']);
    expect(attributes.changedPages).toBe(8);
  });

  it('of a mixed range is told once for each page that changes', () => {
    const attributes = new RamBlockAttributes(8 * PAGE);
    attributes.stateChange(2 * PAGE, PAGE, 'populated');
    attributes.stateChange(4 * PAGE, PAGE, 'populated');
    const { self, heard } = listener({ size: 8 * PAGE });
    attributes.registerListener(self);
    heard.length = 0;
    attributes.stateChange(PAGE, 4 * PAGE, 'populated');
    expect(heard).toEqual(['populate 1+1', 'populate 3+1']);
    heard.length = 0;
    attributes.stateChange(0, 3 * PAGE, 'discarded');
    expect(heard).toEqual(['discard 1+1', 'discard 2+1']);
  });

  it('changes the bit before it tells', () => {
    const attributes = new RamBlockAttributes(2 * PAGE);
    const seen: boolean[] = [];
    attributes.registerListener({
      offset: 0,
      size: 2 * PAGE,
      notifyPopulate: (offset) => {
        seen.push(attributes.isPopulated(offset));
        return 0;
      },
      notifyDiscard: (offset) => {
        seen.push(attributes.isPopulated(offset));
      },
    });
    attributes.stateChange(0, PAGE, 'populated');
    attributes.stateChange(0, PAGE, 'discarded');
    expect(seen).toEqual([true, false]);
  });

  it('stops where a listener refuses, and does not roll back', () => {
    const attributes = new RamBlockAttributes(8 * PAGE);
    attributes.stateChange(PAGE, PAGE, 'populated');
    const first = listener({ size: 8 * PAGE });
    const refusing = listener({ size: 8 * PAGE, refuses: 3 });
    attributes.registerListener(first.self);
    attributes.registerListener(refusing.self);
    first.heard.length = 0;
    expect(attributes.stateChange(0, 8 * PAGE, 'populated')).toBe(-12);
    expect(first.heard).toEqual(['populate 0+1', 'populate 2+1', 'populate 3+1']);
    expect([0, 1, 2, 3, 4].map((page) => attributes.isPopulated(page * PAGE))).toEqual([
      true,
      true,
      true,
      true,
      false,
    ]);
  });
});

describe('a listener', () => {
  it('hears only of its section, cut to it', () => {
    const attributes = new RamBlockAttributes(16 * PAGE);
    const { self, heard } = listener({ offset: 4 * PAGE, size: 4 * PAGE });
    attributes.registerListener(self);
    attributes.stateChange(0, 4 * PAGE, 'populated');
    attributes.stateChange(6 * PAGE, 8 * PAGE, 'populated');
    expect(heard).toEqual(['populate 6+2']);
  });

  it('that comes late hears of each populated run, and of the discard of each when it leaves', () => {
    const attributes = new RamBlockAttributes(128 * PAGE);
    attributes.stateChange(PAGE, 2 * PAGE, 'populated');
    attributes.stateChange(30 * PAGE, 40 * PAGE, 'populated');
    const { self, heard } = listener({ size: 128 * PAGE });
    expect(attributes.registerListener(self)).toBe(0);
    expect(heard).toEqual(['populate 1+2', 'populate 30+40']);
    heard.length = 0;
    attributes.unregisterListener(self);
    attributes.stateChange(0, PAGE, 'populated');
    expect(heard).toEqual(['discard 1+2', 'discard 30+40']);
  });

  it('that can take a double discard hears of its section once when it leaves', () => {
    const attributes = new RamBlockAttributes(8 * PAGE);
    attributes.stateChange(PAGE, PAGE, 'populated');
    const { self, heard } = listener({ size: 8 * PAGE, once: true });
    attributes.registerListener(self);
    attributes.unregisterListener(self);
    expect(heard).toEqual(['populate 1+1', 'discard 0+8']);
  });

  it('hears nothing when it leaves a block that is private throughout, double discard or not', () => {
    const attributes = new RamBlockAttributes(8 * PAGE);
    const [one, other] = [listener({ size: 8 * PAGE, once: true }), listener({ size: 8 * PAGE })];
    for (const { self } of [one, other]) {
      attributes.registerListener(self);
      attributes.unregisterListener(self);
    }
    expect([...one.heard, ...other.heard]).toEqual([]);
  });

  it('that comes late and refuses a run hears of no further one', () => {
    const attributes = new RamBlockAttributes(8 * PAGE);
    attributes.stateChange(PAGE, PAGE, 'populated');
    attributes.stateChange(3 * PAGE, PAGE, 'populated');
    const { self, heard } = listener({ size: 8 * PAGE, refuses: 1 });
    expect(attributes.registerListener(self)).toBe(-12);
    expect(heard).toEqual(['populate 1+1']);
  });
});

it('agrees with a set of pages under any sequence of changes, and listeners keep an exact picture (property)', () => {
  const change = fc.record({
    from: fc.nat(99),
    pages: fc.integer({ min: 1, max: 100 }),
    to: fc.constantFrom('populated' as const, 'discarded' as const),
  });
  fc.assert(
    fc.property(fc.array(change, { maxLength: 40 }), (changes) => {
      const attributes = new RamBlockAttributes(100 * PAGE);
      const model = new Set<number>();
      const mapped = new Set<number>();
      let flips = 0;
      attributes.registerListener({
        offset: 0,
        size: 100 * PAGE,
        notifyPopulate: (offset, size) => {
          for (let page = offset / PAGE; page < (offset + size) / PAGE; page++) {
            expect(mapped.has(page)).toBe(false);
            mapped.add(page);
          }
          return 0;
        },
        notifyDiscard: (offset, size) => {
          for (let page = offset / PAGE; page < (offset + size) / PAGE; page++) {
            expect(mapped.delete(page)).toBe(true);
          }
        },
      });
      for (const { from, pages, to } of changes) {
        const result = attributes.stateChange(from * PAGE, pages * PAGE, to);
        if (from + pages > 100) {
          expect(result).toBe(-22);
          continue;
        }
        expect(result).toBe(0);
        for (let page = from; page < from + pages; page++) {
          if (model.has(page) !== (to === 'populated')) flips++;
          if (to === 'populated') model.add(page);
          else model.delete(page);
        }
      }
      expect(mapped).toEqual(model);
      expect(attributes.populatedPages).toBe(model.size);
      expect(attributes.changedPages).toBe(flips);
      for (let page = 0; page < 100; page++)
        expect(attributes.isPopulated(page * PAGE)).toBe(model.has(page));
    }),
  );
});
