import { expect, it } from 'vitest';
import { guidAt, guidBytes } from '../../src/base/guid.ts';

const TEXT = '96b582de-1fb2-45f7-baea-a366c55a082d';
const BYTES = [
  ...[0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45],
  ...[0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d],
];

it('stores the first three groups of a GUID little-endian', () => {
  expect([...guidBytes(TEXT)]).toEqual(BYTES);
});

it('reads a GUID from where it stands', () => {
  expect(guidAt(Uint8Array.of(1, 2, 3, ...BYTES, 4), 3)).toBe(TEXT);
});
