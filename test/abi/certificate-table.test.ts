import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { decodeCertificateTable, encodeCertificateTable } from '../../src/abi/certificate-table.ts';

const VCEK = '63da758d-e664-4564-adc5-f4b93be8accd';

describe('the certificate table', () => {
  it('has its GUIDs in the order in which they are written, offsets and lengths little-endian', () => {
    const table = encodeCertificateTable([{ guid: VCEK, bytes: Uint8Array.of(1, 2, 3) }]);
    expect(table).toHaveLength(4096);
    expect(Buffer.from(table.subarray(0, 52)).toString('hex')).toBe(
      `63da758de6644564adc5f4b93be8accd${'30000000'}${'03000000'}${'00'.repeat(24)}01020300`,
    );
  });

  it('without certificates is an entry of zeros', () => {
    expect(encodeCertificateTable([])).toEqual(new Uint8Array(4096));
    expect(decodeCertificateTable(new Uint8Array(24))).toEqual([]);
  });

  it('gives back what went in', () => {
    const guid = fc.uuid().filter((one) => !/^[0-]*$/.test(one));
    const entry = fc.record({ guid, bytes: fc.uint8Array({ maxLength: 5000 }) });
    fc.assert(
      fc.property(fc.array(entry, { maxLength: 5 }), (entries) => {
        const table = encodeCertificateTable(entries);
        expect(table.length % 4096).toBe(0);
        expect(decodeCertificateTable(table).map(({ guid, bytes }) => ({ guid, bytes: [...bytes] }))).toEqual(
          entries.map(({ guid, bytes }) => ({ guid, bytes: [...bytes] })),
        );
      }),
      { numRuns: 50 },
    );
  });

  const entry = (offset: number, length: number): Uint8Array => {
    const table = encodeCertificateTable([{ guid: VCEK, bytes: Uint8Array.of(1, 2, 3) }]);
    new Uint32Array(table.buffer, 16, 2).set([offset, length]);
    return table;
  };
  it.each([
    ['shorter than one entry', new Uint8Array(23), 'got 23 bytes without an entry of zeros'],
    [
      'without an end',
      encodeCertificateTable([{ guid: VCEK, bytes: new Uint8Array(1) }]).subarray(0, 40),
      'got 40 bytes without an entry of zeros',
    ],
    [
      'with an entry beyond its end',
      entry(4094, 3),
      'entry 0 (VCEK): got bytes 4094 to 4097, want them within 48 to 4096',
    ],
    ['with an entry inside its head', entry(47, 3), 'entry 0 (VCEK): got bytes 47 to 50'],
    ['with an entry of 4 GiB', entry(48, 0xffffffff), 'entry 0 (VCEK): got bytes 48 to 4294967343'],
  ])('%s is refused by name', (_what, table, message) => {
    expect(() => decodeCertificateTable(table)).toThrow(message);
  });

  it('tolerates entries that overlap, as tools do', () => {
    const table = encodeCertificateTable([
      { guid: VCEK, bytes: Uint8Array.of(1, 2) },
      { guid: VCEK, bytes: Uint8Array.of(3, 4) },
    ]);
    new Uint32Array(table.buffer, 16, 1).set([73]);
    expect(decodeCertificateTable(table).map(({ bytes }) => [...bytes])).toEqual([
      [2, 3],
      [3, 4],
    ]);
  });

  it('refuses a GUID that is none', () => {
    expect(() => encodeCertificateTable([{ guid: 'vcek', bytes: new Uint8Array(0) }])).toThrow(
      'entry 0: got GUID vcek',
    );
  });
});
