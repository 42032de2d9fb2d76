/**
 * How long a vCPU runs before its thread gets the timer's signal. Drawn lengths are as often short as long (their logarithm is uniform), so that
 * interleavings differ in a guest that runs briefly, too.
 */
import type { Entropy } from '../../base/entropy.ts';

/** Throws RangeError: no number of instructions. */
export function checkTimeslice(length: number): void {
  if (!Number.isSafeInteger(length) || length < 0)
    throw new RangeError(`timeslice: got ${length}, want a whole number of instructions, or 0`);
}

/** Binary logarithm of the shortest drawn one. */
const LEAST = 4;

/** Instructions: `length`, or by `turns` from 16 to less than twice that. 0: without end. */
export function nextTimeslice(length: number, turns: Entropy | undefined): number {
  if (turns === undefined || length < 2 ** LEAST) return length;
  const most = Math.floor(Math.log2(length));
  const power = 2 ** (LEAST + turns.below(most - LEAST + 1));
  return power + turns.below(power);
}
