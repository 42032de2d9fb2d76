import { describe, expect, it } from 'vitest';
import { kernelHashesPage } from '../../../src/attest/kernel-hashes.ts';
import { kernelHashes, kernelHashesSection } from '../../../src/vmm/loaders/kernel-hashes.ts';

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
const hex = (from: Uint8Array): string => Buffer.from(from).toString('hex');
const AREA = { base: 0x805010, size: 0x400 };

describe('kernel hashes', () => {
  it('are a table of command line, initial RAM disk and kernel in an otherwise empty section', () => {
    const section = kernelHashesSection(kernelHashes({ kernel: bytes('abc') }, AREA), 0x1000);
    expect(section.length).toBe(0x1000);
    expect(hex(section.subarray(0x10, 0x10 + 168))).toBe(
      [
        '06d63894224fc94cb479a793d411fd21a800',
        // SHA-256 of one NUL, of nothing, of "abc".
        'd82dd09720bd944caa78e7714d36ab2a32006e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d',
        '31f7ba442f3ad74b9af141e29169781d3200e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855',
        '3794e74dd2ab7f42b835d5b172d2045b3200ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad',
      ].join(''),
    );
    const rest = section.slice();
    rest.fill(0, 0x10, 0x10 + 168);
    expect(rest.every((byte) => byte === 0)).toBe(true);
  });

  it('are what a relying party computes', async () => {
    const files = { kernel: bytes('a kernel'), initrd: bytes('a disk'), append: 'console=ttyS0 quiet' };
    for (const offset of [0, 0x10, 4096 - 176]) {
      const section = kernelHashesSection(
        kernelHashes(files, { base: 0x805000 + offset, size: 176 }),
        0x1000,
      );
      expect(hex(section)).toBe(hex(await kernelHashesPage(files, offset)));
    }
  });

  it.each<[{ base: number; size: number } | undefined, string]>([
    [undefined, 'SEV: kernel specified but guest firmware has no hashes table GUID'],
    [{ base: 0, size: 0x400 }, 'SEV: guest firmware hashes table area is invalid (base=0x0 size=0x400)'],
    [
      { base: 0x805000, size: 175 },
      'SEV: guest firmware hashes table area is invalid (base=0x805000 size=0xaf)',
    ],
  ])('need a table in the firmware: %o', (area, message) => {
    expect(() => kernelHashes({ kernel: bytes('abc') }, area)).toThrow(message);
  });

  it('need room in their section', () => {
    const hashes = kernelHashes({ kernel: bytes('abc') }, { base: 0x805f51, size: 176 });
    expect(() => kernelHashesSection(hashes, 0x1000)).toThrow('got 0xf51 in its page, want at most 0xf50');
    expect(kernelHashesSection(hashes, 0x2000).length).toBe(0x2000);
  });
});
