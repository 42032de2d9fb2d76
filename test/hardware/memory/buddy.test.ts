import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { BuddyAllocator } from '../../../src/hardware/memory/buddy.ts';

type Step = { kind: 'allocate'; order: number } | { kind: 'free'; pick: number; part: number; order: number };

const steps = fc.array(
  fc.oneof(
    fc.record({ kind: fc.constant('allocate' as const), order: fc.integer({ min: 0, max: 10 }) }),
    fc.record({
      kind: fc.constant('free' as const),
      pick: fc.nat(),
      part: fc.nat(),
      order: fc.integer({ min: 0, max: 10 }),
    }),
  ),
  { maxLength: 300 },
) as fc.Arbitrary<Step[]>;

/** Largest order for which an aligned run of free frames exists. */
function largestFree(used: Int32Array, reserved: number): number {
  for (let order = 18; order >= 0; order--) {
    for (let at = 0; at + (1 << order) <= used.length; at += 1 << order) {
      if (at >= reserved && used.subarray(at, at + (1 << order)).every((owner) => owner === -1)) return order;
    }
  }
  return -1;
}

describe('the buddy allocator', () => {
  it('agrees with a model that marks frames, through random allocation and partial frees', () => {
    fc.assert(
      fc.property(
        steps,
        fc.integer({ min: 64, max: 1500 }),
        fc.integer({ min: 1, max: 9 }),
        (list, frames, reserved) => {
          const buddy = new BuddyAllocator(frames, reserved);
          const used = new Int32Array(frames).fill(-1);
          const blocks: { frame: number; order: number }[] = [];
          let owner = 0;
          for (const step of list) {
            if (step.kind === 'allocate') {
              const frame = buddy.allocate(step.order, owner % 65536);
              if (frame === -1) {
                expect(largestFree(used, reserved)).toBeLessThan(step.order);
                continue;
              }
              expect(frame % (1 << step.order)).toBe(0);
              expect(frame).toBeGreaterThanOrEqual(reserved);
              for (let i = frame; i < frame + (1 << step.order); i++) {
                expect(used[i]).toBe(-1);
                used[i] = owner % 65536;
              }
              blocks.push({ frame, order: step.order });
              owner++;
            } else if (blocks.length > 0) {
              const [block] = blocks.splice(step.pick % blocks.length, 1);
              const order = Math.min(step.order, block!.order);
              const part = block!.frame + ((step.part << order) & ((1 << block!.order) - 1));
              expect(buddy.free(part, order)).toBe(used[part]);
              used.fill(-1, part, part + (1 << order));
              // The rest of the block stays as the buddies that were cut off.
              let { frame, order: size } = block!;
              while (size > order) {
                size--;
                const upper = frame + (1 << size);
                blocks.push({ frame: part >= upper ? frame : upper, order: size });
                if (part >= upper) frame = upper;
              }
              expect(() => buddy.free(part, order)).toThrow(RangeError);
            }
            expect(buddy.freeFrames).toBe(used.subarray(reserved).filter((o) => o === -1).length);
          }
          for (let i = 0; i < frames; i++) expect(buddy.ownerOf(i)).toBe(used[i]);
          for (const { frame, order } of blocks) buddy.free(frame, order);
          const whole = new BuddyAllocator(frames, reserved);
          for (let order = 0; order <= 18; order++)
            expect(buddy.freeBlocks(order)).toBe(whole.freeBlocks(order));
        },
      ),
      { numRuns: 150 },
    );
  });

  it('serves a small block from the smallest larger one', () => {
    const buddy = new BuddyAllocator(1024, 512);
    const big = buddy.allocate(8, 1);
    expect(big).toBe(512);
    expect(buddy.allocate(0, 1)).toBe(768);
    expect(buddy.allocate(0, 1)).toBe(769);
    expect(buddy.freeBlocks(1)).toBe(1);
    expect(buddy.freeBlocks(7)).toBe(1);
  });

  it('hands out what was freed last first, so that warm frames are used again', () => {
    const buddy = new BuddyAllocator(64, 1);
    const frames = [buddy.allocate(0, 0), buddy.allocate(0, 0), buddy.allocate(0, 0), buddy.allocate(0, 0)];
    buddy.free(frames[2]!, 0);
    expect(buddy.allocate(0, 0)).toBe(frames[2]);
  });

  it('does not join across a reserved frame or the end of memory', () => {
    const buddy = new BuddyAllocator(7, 1);
    const frames = Array.from({ length: 6 }, () => buddy.allocate(0, 0));
    expect(buddy.allocate(0, 0)).toBe(-1);
    for (const frame of frames) buddy.free(frame, 0);
    expect([0, 1, 2].map((order) => buddy.freeBlocks(order))).toEqual([2, 2, 0]);
  });
});
