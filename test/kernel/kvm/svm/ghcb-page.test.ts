/** A GHCB's bitmap of valid fields: 128 bits, one for each 8 bytes of the save area. */
import { expect, it } from 'vitest';
import { GhcbRequest } from '../../../../src/kernel/kvm/svm/sev/ghcb-page.ts';

it('the field at offset 8 · n is valid by bit n of the bitmap, and by no other', () => {
  for (let n = 0; n < 128; n++) {
    const request = new GhcbRequest();
    if (n < 64) request.validLow = 1n << BigInt(n);
    else request.validHigh = 1n << BigInt(n - 64);
    const valid = Array.from({ length: 128 }, (_, i) => i).filter((i) => request.has(8 * i));
    expect(valid).toEqual([n]);
  }
});
