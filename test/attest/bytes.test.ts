import { describe, expect, it } from 'vitest';
import { fingerprint, isZero, sameBytes } from '../../src/attest/bytes.ts';

describe('bytes', () => {
  it('are the same if they are as many and equal', () => {
    const one = Uint8Array.of(1, 2);
    expect(sameBytes(one, Uint8Array.of(1, 2))).toBe(true);
    expect(sameBytes(one, Uint8Array.of(1, 3))).toBe(false);
    expect(sameBytes(one, Uint8Array.of(1, 2, 0))).toBe(false);
    expect(sameBytes(Uint8Array.of(1, 2, 0), one)).toBe(false);
  });

  it('are zero if all are', () => {
    expect([isZero(new Uint8Array(0)), isZero(new Uint8Array(3)), isZero(Uint8Array.of(0, 0, 1))]).toEqual([
      true,
      true,
      false,
    ]);
  });
});

it('takes the fingerprint of bytes that other threads share', async () => {
  const shared = new Uint8Array(new SharedArrayBuffer(3));
  shared.set([1, 2, 3]);
  expect(await fingerprint(shared)).toBe(await fingerprint(Uint8Array.of(1, 2, 3)));
});
