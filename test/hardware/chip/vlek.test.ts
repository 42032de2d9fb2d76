import { describe, expect, it } from 'vitest';
import { unwrapVlek } from '../../../src/hardware/chip/vlek.ts';
import { wrapVlek } from '../../../src/hardware/chip.ts';

const sticks = new Uint8Array(384).map((_, i) => i);
const wrappingKey = new Uint8Array(32).fill(1);
const iv = new Uint8Array(12).fill(2);
const wrap = () => wrapVlek({ sticks, tcb: 0x1122334455667788n, wrappingKey, iv });

describe('a wrapped VLEK', () => {
  it('is a blob of 432 bytes: IV, ciphertext at 0x10, TCB at 0x190, tag at 0x1a0', () => {
    const blob = wrap();
    expect(blob).toHaveLength(432);
    expect([...blob.subarray(0, 12)]).toEqual([...iv]);
    expect(new DataView(blob.buffer).getBigUint64(0x190, true)).toBe(0x1122334455667788n);
    expect(Buffer.from(blob).includes(Buffer.from(sticks.subarray(0, 16)))).toBe(false);
  });

  it('opens under its key alone', () => {
    expect(unwrapVlek(wrap(), wrappingKey)).toEqual(Buffer.from(sticks));
    expect(unwrapVlek(wrap(), new Uint8Array(32))).toBeUndefined();
  });

  it('does not open with any bit changed of IV, ciphertext, TCB, what is reserved behind it, or tag', () => {
    for (let bit = 0; bit < 432 * 8; bit++) {
      const byte = bit >> 3;
      if (byte >= 12 && byte < 16) continue;
      const blob = wrap();
      blob[byte]! ^= 1 << (bit & 7);
      expect(unwrapVlek(blob, wrappingKey)).toBeUndefined();
    }
  });

  it('wraps 384 bytes and nothing else', () => {
    expect(() => wrapVlek({ sticks: new Uint8Array(383), tcb: 0n, wrappingKey, iv })).toThrow(RangeError);
  });
});
