/** The search for secrets knows bytes again, however a program prints them. */
import { inspect } from 'node:util';
import { describe, expect, it } from 'vitest';
import { bytesInText } from './bytes-in-text.ts';

const BYTES = Buffer.from('80c3ff2201fe5c000a7f27e96b41d093', 'hex');
const LONG = Buffer.concat([Buffer.alloc(7, 0x11), BYTES, Buffer.alloc(90, 0x22)]);
const array = [...BYTES];
const words = new Uint32Array(new Uint8Array(BYTES).buffer);
const longs = new BigUint64Array(new Uint8Array(BYTES).buffer);

const FORMS: readonly (readonly [string, string])[] = [
  ['hex', '80c3ff2201fe5c000a7f27e96b41d093'],
  ['hex in capitals', '80C3FF2201FE5C000A7F27E96B41D093'],
  ['hex behind another digit', `f${BYTES.toString('hex')}`],
  ['a big-endian number', '0x80c3ff2201fe5c000a7f27e96b41d093'],
  ['a little-endian number', '0x93d0416be9277f0a005cfe0122ffc380'],
  ['bytes of a dump, with spaces', '80 c3 ff 22 01 fe 5c 00 0a 7f 27 e9 6b 41 d0 93'],
  ['bytes with colons', '80:c3:ff:22:01:fe:5c:00:0a:7f:27:e9:6b:41:d0:93'],
  ['bytes of C', array.map((byte) => `0x${byte.toString(16)}`).join(', ')],
  ['strings of hex', JSON.stringify(array.map((byte) => byte.toString(16).padStart(2, '0')))],
  ['a dump in a JSON string', JSON.stringify({ dump: '80c3ff2201fe5c00\n0a7f27e96b41d093' })],
  ['what inspect shows of a Buffer', inspect(BYTES)],
  ['what inspect shows of a Uint8Array', inspect(Uint8Array.from(array))],
  ['what inspect shows of the elements as properties', inspect({ ...array })],
  ['a JSON array', JSON.stringify(array)],
  ['a JSON array on many lines', JSON.stringify(array, null, 2)],
  ['a JSON object', JSON.stringify(Uint8Array.from(array))],
  ['a JSON object on many lines', JSON.stringify(Uint8Array.from(array), null, 2)],
  ['a Buffer in JSON', JSON.stringify(BYTES)],
  ['a list with commas', array.join(',')],
  ['a list with spaces', array.join(' ')],
  ['32-bit numbers in JSON', JSON.stringify(words)],
  ['signed 32-bit numbers in JSON', JSON.stringify(new Int32Array(words.buffer))],
  ['64-bit numbers', inspect(longs)],
  ['signed 64-bit numbers', inspect(new BigInt64Array(longs.buffer))],
  ['hex of 64-bit numbers', [...longs].map((long) => `0x${long.toString(16)}`).join(' ')],
  ['\\x escapes', array.map((byte) => `\\x${byte.toString(16).padStart(2, '0')}`).join('')],
  ['the characters', BYTES.toString('latin1')],
  ['the characters as Python shows them', String.raw`b"\x80\xc3\xff\"\x01\xfe\\\x00\n\x7f'\xe9kA\xd0\x93"`],
  ['the characters in JSON', JSON.stringify(BYTES.toString('latin1'))],
  ['a part of an address', '%80%C3%FF%22%01%FE%5C%00%0A%7F%27%E9kA%D0%93'],
  ['base64', BYTES.toString('base64')],
  ['base64 of more, at an odd place', `key=${LONG.toString('base64')};`],
  ['base64 for addresses', BYTES.toString('base64url')],
  ['PEM', LONG.toString('base64').replace(/.{16}/g, '$&\n')],
];

describe('bytes are found in a text that has them as', () => {
  it.each(FORMS)('%s', (_, form) => {
    for (const text of [form, `{"kind":"call","pfn":12,"what":"x 3","key":${form},"gfn":8}`])
      expect(bytesInText(text, 8).some((bytes) => bytes.includes(BYTES.subarray(0, 8)))).toBe(true);
  });
});
