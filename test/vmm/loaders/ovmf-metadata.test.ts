/** What the VMM reads from firmware images; the relying party's parser is another, and both agree. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parseFirmware } from '../../../src/attest/index.ts';
import { guidBytes } from '../../../src/base/guid.ts';
import { VmmError } from '../../../src/vmm/error.ts';
import { readOvmfMetadata } from '../../../src/vmm/loaders/ovmf-metadata.ts';
import { type FirmwareImageOptions, firmwareImage } from '../../attest/firmware-image.ts';

const read = (options: FirmwareImageOptions = {}, change: (image: Uint8Array) => void = () => {}) => {
  const image = firmwareImage(options);
  change(image);
  return readOvmfMetadata(image, 'x.fd');
};
const u16 = (at: number, value: number) => (image: Uint8Array) =>
  new DataView(image.buffer).setUint16(at, value, true);
const u32 = (at: number, value: number) => (image: Uint8Array) =>
  new DataView(image.buffer).setUint32(at, value, true);

describe('OVMF metadata', () => {
  it('lists sections in the order of the table, with reset address and hash table', () => {
    expect(read()).toEqual({
      sections: [
        { gpa: 0x800000, size: 0x2000, type: 1 },
        { gpa: 0x803000, size: 0x1000, type: 2 },
        { gpa: 0x804000, size: 0x1000, type: 3 },
        { gpa: 0x805000, size: 0x1000, type: 0x10 },
      ],
      resetAddress: 0x80b004,
      hashTable: { base: 0x805010, size: 0x400 },
    });
  });

  it('is empty in an image without a table', () => {
    const nothing = { sections: undefined, resetAddress: undefined, hashTable: undefined };
    expect(readOvmfMetadata(new Uint8Array(0x10000), 'x.fd')).toEqual(nothing);
    expect(readOvmfMetadata(new Uint8Array(16), 'x.fd')).toEqual(nothing);
    expect(read({}, (image) => image.fill(0, 0x2000 - 48, 0x2000 - 32))).toEqual(nothing);
  });

  it('finds a reset block that stands alone, as images had it before there were tables', () => {
    const image = new Uint8Array(0x1000);
    image.set(guidBytes('00f771de-1a7e-4fcb-890e-68c77e2fb44e'), 0x1000 - 48);
    u16(0x1000 - 50, 22)(image);
    u32(0x1000 - 54, 0x80b004)(image);
    expect(readOvmfMetadata(image, 'x.fd').resetAddress).toBe(0x80b004);
    u16(0x1000 - 50, 21)(image);
    expect(() => readOvmfMetadata(image, 'x.fd')).toThrow(
      'x.fd: SEV-ES reset block, length: got 21, want 22 to 4064',
    );
  });

  // The table's footer is at 0x2000 - 50; entries below it: metadata, reset block, hash table. The metadata lies at 0x1c00.
  it.each<[string, FirmwareImageOptions, (image: Uint8Array) => void, string]>([
    ['the length', {}, u16(0x1fce, 17), 'OVMF table, length: got 17, want 18 to 8160'],
    ['the length', {}, u16(0x1fce, 8161), 'OVMF table, length: got 8161, want 18 to 8160'],
    [
      'an entry',
      {},
      u16(0x1fce - 18, 17),
      'OVMF table, entry dc886566-984a-4798-a75e-5585a7bf67cc, length: got 17, want 18 to 70',
    ],
    [
      'an entry',
      {},
      u16(0x1fce - 18, 71),
      'OVMF table, entry dc886566-984a-4798-a75e-5585a7bf67cc, length: got 71, want 18 to 70',
    ],
    [
      'the metadata entry',
      {},
      (image) => {
        u16(0x1fce, 36)(image);
        u16(0x1fce - 18, 18)(image);
      },
      'SEV metadata entry: got 0 bytes, want at least 4',
    ],
    [
      'the offset',
      { metadataOffset: 0x2001 },
      () => {},
      'SEV metadata, offset: got 0x2001, want a place within the image',
    ],
    [
      'the offset',
      { metadataOffset: 15 },
      () => {},
      'SEV metadata, offset: got 0xf, want a place within the image',
    ],
    [
      'the signature',
      { signature: 'ASEW' },
      () => {},
      'SEV metadata, signature: got 0x57455341, want "ASEV"',
    ],
    ['the version', { version: 2 }, () => {}, 'SEV metadata, version: got 2, want 1'],
    ['the length', { metadataLength: 15 }, () => {}, 'SEV metadata, length: got 15, want 16 to 1024'],
    ['the length', { metadataLength: 1025 }, () => {}, 'SEV metadata, length: got 1025, want 16 to 1024'],
    [
      'the count',
      { metadataLength: 63 },
      () => {},
      'SEV metadata, count: got 4, want at most what a length of 63 holds',
    ],
    [
      'a base',
      { sections: [[0x800800, 0x1000, 1]] },
      () => {},
      'SEV metadata, section 0, base: got 0x800800, want a multiple of 4096',
    ],
    [
      'a length',
      { sections: [[0x800000, 0, 1]] },
      () => {},
      'SEV metadata, section 0, length: got 0x0, want whole pages of 4096 bytes, at least one',
    ],
    [
      'a length',
      {
        sections: [
          [0x800000, 0x1000, 1],
          [0x801000, 0x1001, 1],
        ],
      },
      () => {},
      'SEV metadata, section 1, length: got 0x1001, want whole pages of 4096 bytes, at least one',
    ],
  ])('is refused for %s: %o', (_, options, change, message) => {
    expect(() => read(options, change)).toThrow(new VmmError(`x.fd: ${message}`));
  });

  it('of an image with any bytes changed is read or refused by name', () => {
    const changes = fc.array(fc.tuple(fc.integer({ min: 1, max: 0x420 }), fc.integer({ min: 0, max: 255 })), {
      minLength: 1,
      maxLength: 6,
    });
    fc.assert(
      fc.property(changes, (bytes) => {
        try {
          read({}, (image) => {
            for (const [fromEnd, byte] of bytes) image[image.length - fromEnd] = byte;
          });
        } catch (error) {
          expect(error).toBeInstanceOf(VmmError);
          expect((error as Error).message).toMatch(/^x\.fd: .+: got .+, want .+/);
        }
      }),
      { numRuns: 2000 },
    );
  });

  it('is what a relying party reads', () => {
    const page = fc.integer({ min: 0, max: 0xfffff }).map((number) => number * 4096);
    const size = fc.integer({ min: 1, max: 64 }).map((number) => number * 4096);
    const section = fc.tuple(page, size, fc.integer({ min: 1, max: 20 }));
    fc.assert(
      fc.property(
        fc.array(section, { maxLength: 12 }),
        fc.nat(0xffffffff),
        fc.integer({ min: 1, max: 0xffffffff }),
        (sections, apEip, hashTableGpa) => {
          const safe = sections.filter(([gpa, bytes]) => gpa + bytes <= 0x1_0000_0000);
          const image = firmwareImage({ sections: safe, apEip, hashTableGpa });
          const theirs = parseFirmware(image);
          const ours = readOvmfMetadata(image, 'x.fd');
          expect(ours.sections).toEqual(theirs.sections);
          expect(ours.resetAddress).toBe(theirs.apEip);
          expect(ours.hashTable?.base).toBe(theirs.hashTableGpa);
        },
      ),
    );
  });
});
