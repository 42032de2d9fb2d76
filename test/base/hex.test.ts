import { describe, expect, it } from 'vitest';
import { fromHex, toHex } from '../../src/base/hex.ts';

describe('hex', () => {
  it('has two digits for each byte, and is read back', () => {
    const bytes = Uint8Array.of(0, 9, 0xab, 0xff);
    expect(toHex(bytes)).toBe('0009abff');
    expect(fromHex('0009abff')).toEqual(bytes);
    expect(fromHex('0009ABFF')).toEqual(bytes);
    expect([toHex(new Uint8Array(0)), fromHex('').length]).toEqual(['', 0]);
  });
});
