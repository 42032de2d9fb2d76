import { describe, expect, it } from 'vitest';
import { NestedWalker } from '../../../src/hardware/cpu/nested-walk.ts';

const READ = 0;
const ROOT = 1;
/** Present, writable, the user's, accessed and dirty. */
const LEAF = 0x67;
const TABLE = 0x27;

/** Tables that have one 4 KiB page at each of the guest frames given, in one entry each of as many tables. */
function walkerOver(pages: readonly (readonly [gfn: number, frame: number])[]) {
  const words = new Int32Array(64 * 1024);
  let next = ROOT + 1;
  const map = (gfn: number, frame: number): void => {
    let table = ROOT;
    for (let level = 3; level > 0; level--) {
      const at = table * 1024 + (Math.floor(gfn / 512 ** level) % 512) * 2;
      if (words[at] === 0) words[at] = (next++ << 12) | TABLE;
      table = words[at]! >>> 12;
    }
    words[table * 1024 + (gfn % 512) * 2] = (frame << 12) | LEAF;
  };
  for (const [gfn, frame] of pages) map(gfn, frame);
  const nobody = { es: false, snp: false } as never;
  const walker = new NestedWalker({ words, frameCount: 64 }, undefined as never, nobody, undefined as never);
  walker.root = ROOT;
  const frameOf = (gfn: number): number => {
    expect(walker.translateNested(gfn, 0, READ, 0, false)).toBe(0);
    return walker.frame;
  };
  return { walker, map, frameOf };
}

describe('translations that a nested walk keeps', () => {
  it('hold until a flush, and not beyond', () => {
    const { walker, map, frameOf } = walkerOver([[5, 40]]);
    expect(frameOf(5)).toBe(40);
    map(5, 41);
    expect(frameOf(5)).toBe(40);
    walker.flush();
    expect(frameOf(5)).toBe(41);
  });

  it('are of no other frame after a flush, however far apart the two are', () => {
    for (let bit = 10; bit < 36; bit++) {
      const far = 2 ** bit + 5;
      const { walker, frameOf } = walkerOver([
        [5, 40],
        [far, 41],
      ]);
      expect(frameOf(far)).toBe(41);
      walker.flush();
      expect(frameOf(5)).toBe(40);
    }
  });

  it('are forgotten by the 131072nd flush as by the first', () => {
    const { walker, map, frameOf } = walkerOver([
      [5, 40],
      [6, 43],
    ]);
    expect([frameOf(5), frameOf(6)]).toEqual([40, 43]);
    for (let n = 0; n < 2 ** 17 - 1; n++) {
      walker.flush();
      walker.translateNested(5, 0, READ, 0, false);
    }
    map(5, 41);
    map(6, 44);
    expect(frameOf(5)).toBe(40);
    walker.flush();
    expect([frameOf(5), frameOf(6)]).toEqual([41, 44]);
    map(5, 42);
    walker.flush();
    expect(frameOf(5)).toBe(42);
  });
});
