/**
 * Paints each byte of a small space with whoever answers there: from the bottom to the top, later strokes over earlier ones.
 * It keeps its own tree, and shares with the flat view nothing but the rules.
 */
import { expect } from 'vitest';
import type { FlatRange } from '../../../src/vmm/memory/flat-view.ts';
import type { MemoryRegion } from '../../../src/vmm/memory/memory-region.ts';

/** Bytes of the space. */
export const SPACE = 64;

/** A region as the painter knows it. */
export interface Node {
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
export interface Paint {
  name: string;
  offset: number;
  readOnly: boolean;
  nonvolatile: boolean;
  romd: boolean;
}

export type Canvas = (Paint | undefined)[];

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

export function painted(root: Node): Canvas {
  const canvas: Canvas = new Array<undefined>(SPACE).fill(undefined);
  paint(canvas, root, 0, () => true, { readOnly: false, nonvolatile: false });
  return canvas;
}

export const paintOf = (range: FlatRange, byte: number): Paint => ({
  name: range.region.name,
  offset: range.offsetInRegion + byte - range.start,
  readOnly: range.readOnly,
  nonvolatile: range.nonvolatile,
  romd: range.romdMode,
});

export const canvasOf = (ranges: readonly FlatRange[]): Canvas => {
  const canvas: Canvas = new Array<undefined>(SPACE).fill(undefined);
  for (const range of ranges) {
    for (let byte = range.start; byte < range.start + range.size; byte++) {
      expect(canvas[byte]).toBe(undefined);
      canvas[byte] = paintOf(range, byte);
    }
  }
  return canvas;
};
