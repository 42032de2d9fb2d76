/** ASIDs of encrypted guests: those that were given back count again when the data fabric was flushed, which happens when no other is left. */
import { describe, expect, it } from 'vitest';
import { AsidPool } from '../../../../src/kernel/kvm/svm/sev/asid-pool.ts';
import { errnoOf } from '../snp-rules.ts';

const EBUSY = 16;
const ENOTTY = 25;

describe('ASIDs', () => {
  it('are ENOTTY where none is set aside, and one where one is', () => {
    const flush = () => true;
    expect(errnoOf(() => new AsidPool(1, 0, flush).take())).toBe(ENOTTY);
    const pool = new AsidPool(1, 1, flush);
    expect(pool.take()).toBe(1);
    expect(errnoOf(() => pool.take())).toBe(EBUSY);
  });

  it('come from the lowest on, and one that was given back when all others were had, after one flush', () => {
    let flushes = 0;
    const pool = new AsidPool(1, 3, () => ++flushes > 0);
    expect([pool.take(), pool.take()]).toEqual([1, 2]);
    pool.giveBack(1);
    pool.giveBack(2);
    expect([pool.take(), flushes]).toEqual([3, 0]);
    expect([pool.take(), pool.take(), flushes]).toEqual([1, 2, 1]);
    expect(errnoOf(() => pool.take())).toBe(EBUSY);
    expect(flushes).toBe(1);
  });

  it('are EBUSY while the flush fails', () => {
    let works = false;
    const pool = new AsidPool(5, 5, () => works);
    pool.take();
    pool.giveBack(5);
    expect(errnoOf(() => pool.take())).toBe(EBUSY);
    works = true;
    expect(pool.take()).toBe(5);
  });
});
