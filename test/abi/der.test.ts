import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  DerError,
  DerReader,
  der,
  derBits,
  derInteger,
  derOid,
  derSequence,
  derText,
  derTime,
  KnownOids,
} from '../../src/abi/der.ts';

const hex = (text: string): Uint8Array => Buffer.from(text.replaceAll(' ', ''), 'hex');
const toHex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const reader = (text: string): DerReader => new DerReader(hex(text), 'x');

describe('DER', () => {
  it.each([
    [0, '020100'],
    [2, '020102'],
    [127, '02017f'],
    [128, '02020080'],
    [209, '020200d1'],
    [65537, '0203010001'],
  ])('writes INTEGER %i as %s and reads it', (value, bytes) => {
    expect(toHex(derInteger(value))).toBe(bytes);
    expect(reader(bytes).integer('i')).toBe(value);
  });

  it.each([
    ['1.3.6.1.4.1.3704.1.3.8', '060a2b060104019c78010308'],
    ['2.16.840.1.101.3.4.2.2', '0609608648016503040202'],
    ['1.2.840.113549.1.1.10', '06092a864886f70d01010a'],
    ['2.999.83', '0603883753'],
    ['0.39', '060127'],
  ])('writes OID %s as %s and reads it', (oid, bytes) => {
    expect(toHex(derOid(oid))).toBe(bytes);
    expect(reader(bytes).oid('o')).toBe(oid);
  });

  it('tells known OIDs by their bytes, and reads others all the same', () => {
    const known = new KnownOids(['2.5.4.3', '2.5.4.10', '1.2.840.113549.1.1.10']);
    for (const [bytes, oid] of [
      ['0603550403', '2.5.4.3'],
      ['060355040a', '2.5.4.10'],
      ['06092a864886f70d01010a', '1.2.840.113549.1.1.10'],
      ['0603550503', '2.5.5.3'],
      ['0602010a', '0.1.10'],
      ['06045504030a', '2.5.4.3.10'],
    ] as const) {
      expect([bytes, reader(bytes).oid('o', known)]).toEqual([bytes, oid]);
    }
    expect(() => reader('0600').oid('o', known)).toThrow('an empty OID');
  });

  it.each([
    ['2020-10-22T17:23:05Z', '170d3230313032323137323330355a'],
    ['2049-12-31T23:59:59Z', '170d3439313233313233353935395a'],
    ['2050-01-01T00:00:00Z', '180f32303530303130313030303030305a'],
  ])('writes time %s as %s and reads it', (time, bytes) => {
    expect(toHex(derTime(new Date(time)))).toBe(bytes);
    expect(reader(bytes).time('t')).toEqual(new Date(time));
  });

  it('reads years of UTCTime from 50 on as 19xx', () => {
    expect(reader('170d3530303130313030303030305a').time('t')).toEqual(new Date('1950-01-01T00:00:00Z'));
  });

  it('writes lengths in as few bytes as possible, and reads them', () => {
    for (const length of [0, 127, 128, 255, 256, 65535, 65536]) {
      const element = der(4, new Uint8Array(length));
      expect(new DerReader(element, 'x').octets('o')).toHaveLength(length);
    }
    expect(toHex(der(4, new Uint8Array(128)).subarray(0, 3))).toBe('048180');
  });

  it('reads flags by bit', () => {
    expect(reader('03020106').flags('f')).toEqual([false, false, false, false, false, true, true]);
  });

  it('reads what it wrote', () => {
    const text = derText(12, 'ä');
    const outer = new DerReader(derSequence(derInteger(5n), derBits(Uint8Array.of(1, 2)), text), 'x');
    const inside = outer.inside('s');
    expect([inside.integer('i'), [...inside.bits('b')], inside.text('t')]).toEqual([5, [1, 2], 'ä']);
    inside.end();
    outer.end();
    expect(toHex(inside.encoding)).toBe('300c02010503030001020c02c3a4');
  });

  it.each([
    ['', 'x.f: got the end, want INTEGER'],
    ['03', 'x.f: got BIT_STRING, want INTEGER'],
    ['1f', 'x.f: got tag 0x1f, want INTEGER'],
    ['02', 'x.f: got the end, want a length'],
    ['0280', 'x.f: got a length of 0 bytes, want 1 to 4'],
    ['0285 00000000', 'x.f: got a length of 5 bytes, want 1 to 4'],
    ['028101 00', 'x.f: got length 1 in 1 bytes'],
    ['02820080 00', 'x.f: got length 128 in 2 bytes'],
    ['028201', 'x.f: got 1 bytes, want a length of 2 (truncated)'],
    ['0202 00', 'x.f: got 1 bytes, want 2 (truncated)'],
    ['0284ffffffff', 'x.f: got 0 bytes, want 4294967295 (truncated)'],
    ['0200', 'x.f: got an INTEGER without bytes'],
    ['02020001', 'x.f: got an INTEGER with a superfluous byte'],
    ['0202ff80', 'x.f: got an INTEGER with a superfluous byte'],
    ['0201ff', 'x.f: got ff, want an INTEGER from 0'],
    ['020701020304050607', 'x.f: got 01020304050607, want an INTEGER from 0'],
  ])('refuses %s as a small INTEGER', (bytes, message) => {
    expect(() => reader(bytes).integer('f')).toThrow(message);
  });

  it.each([
    ['0600', 'an empty OID'],
    ['06028037', 'a leading zero'],
    ['06022a86', 'ends within an arc'],
    ['06092affffffffffffffff', 'above 2^51'],
  ])('refuses %s as an OID', (bytes, message) => {
    expect(() => reader(bytes).oid('f')).toThrow(message);
  });

  it.each([
    ['170d3230313330313030303030305a', 'want one that exists'],
    ['170d3230303233303030303030305a', 'want one that exists'],
    ['170d3230303130313234303030305a', 'want one that exists'],
    ['170d3230313331353030303030305a', 'want one that exists'],
    ['180f30303530303130313030303030305a', 'want one that exists'],
    ['170d32303031303130303030303041', 'want YYMMDDHHMMSSZ'],
    ['170c32303031303130303030305a', 'want YYMMDDHHMMSSZ'],
    ['180d3230303130313030303030305a', 'want YYYYMMDDHHMMSSZ'],
  ])('refuses %s as a time', (bytes, message) => {
    expect(() => reader(bytes).time('f')).toThrow(message);
  });

  it.each([
    ['010101', (r: DerReader) => r.boolean('f'), 'want 00 or ff'],
    ['030101', (r: DerReader) => r.bits('f'), 'got 1 unused bits'],
    ['03020800', (r: DerReader) => r.flags('f'), 'got 8 unused bits'],
    ['030101', (r: DerReader) => r.flags('f'), 'got 1 unused bits'],
    ['03020107', (r: DerReader) => r.flags('f'), 'got unused bits that are set'],
    ['050100', (r: DerReader) => r.nothing('f'), 'x.f: got 1 bytes in a NULL, want none'],
    ['0c01ff', (r: DerReader) => r.text('f'), 'want UTF-8'],
    ['1602c3a4', (r: DerReader) => r.text('f'), 'x.f: got c3a4, want ASCII'],
    ['1302c3a4', (r: DerReader) => r.text('f'), 'x.f: got c3a4, want ASCII'],
    ['0401ff', (r: DerReader) => r.text('f'), 'want a string'],
    ['0500', (r: DerReader) => r.end(), 'x: got 2 bytes after its last field'],
  ] as const)('refuses %s', (bytes, read, message) => {
    expect(() => read(reader(bytes))).toThrow(message);
  });

  it('answers any bytes with a value or a DerError', () => {
    const reads = [
      'integer',
      'oid',
      'octets',
      'bits',
      'flags',
      'boolean',
      'text',
      'time',
      'integerBytes',
      'nothing',
    ] as const;
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 24 }), fc.constantFrom(...reads), (bytes, read) => {
        try {
          new DerReader(bytes, 'x')[read]('f');
        } catch (error) {
          expect(error).toBeInstanceOf(DerError);
        }
      }),
    );
  });
});
