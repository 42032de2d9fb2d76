/** An exception behind another (APM volume 2, 8.2.9; kvm_multiple_exception). Vectors: #DE 0, #DB 1, #UD 6, #DF 8, #TS 10, #SS 12, #GP 13, #PF 14, #MC 18. */
import { describe, expect, it } from 'vitest';
import { QueuedException } from '../../../src/kernel/kvm/queued-exception.ts';

describe('an exception behind one that waits', () => {
  it.each([
    [6, 13, 13],
    [1, 14, 14],
    [0, 6, 6],
    [0, 14, 14],
    [13, 1, 1],
    [0, 0, 8],
    [10, 11, 8],
    [12, 13, 8],
    [13, 13, 8],
    [14, 14, 8],
    [14, 13, 8],
    [14, 0, 8],
    [14, 6, 6],
    [18, 14, 14],
  ])('%i, then %i: %i', (first, second, want) => {
    const exception = new QueuedException();
    expect(exception.queue(first, false, 0, undefined)).toBe(true);
    expect(exception.queue(second, true, 0x18, 0x1000n)).toBe(true);
    const isDouble = want === 8;
    expect(exception).toMatchObject({
      pending: true,
      injected: false,
      vector: want,
      hasError: true,
      error: isDouble ? 0 : 0x18,
      hasPayload: !isDouble,
      payload: isDouble ? 0n : 0x1000n,
    });
  });

  it.each([0, 1, 6, 13, 14, 8])(
    'a double fault, then %i: a triple fault, and the double fault stays',
    (second) => {
      const exception = new QueuedException();
      exception.queue(8, true, 0, undefined);
      expect(exception.queue(second, false, 0, undefined)).toBe(false);
      expect(exception.vector).toBe(8);
    },
  );

  it('one that an entry took without an error code has none, whatever the exit has there', () => {
    const exception = new QueuedException();
    exception.reinject(3, false, 0x18);
    expect(exception).toMatchObject({ vector: 3, hasError: false, error: 0 });
  });

  it('one that an entry took counts until its delivery is known', () => {
    const exception = new QueuedException();
    exception.reinject(13, true, 0x18);
    expect(exception).toMatchObject({ injected: true, pending: false, error: 0x18 });
    exception.queue(13, true, 0, undefined);
    expect(exception.vector).toBe(8);
    exception.clear();
    exception.queue(13, true, 0x20, undefined);
    expect(exception).toMatchObject({ vector: 13, error: 0x20 });
  });
});
