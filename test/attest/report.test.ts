/** What a relying party reads in a report by its version. */
import { describe, expect, it } from 'vitest';
import { parseReport } from '../../src/attest/index.ts';
import { evidenceOf, signedReport } from './evidence.ts';

const { chip } = await evidenceOf('milan');
const full = new Uint8Array(64).fill(0x5a);
const short = Uint8Array.from({ length: 64 }, (_, i) => (i < 8 ? 0x5a : 0));
const NOTHING = { cpuidFamily: 0, cpuidModel: 0, cpuidStepping: 0 };

describe('the product of a report', () => {
  it.each([
    ['version 3 says it by its CPUID', { version: 3 }, 'Milan'],
    ['version 3 of a family that is none of theirs does not', { version: 3, ...NOTHING }, undefined],
    ['version 2 has no CPUID', { version: 2, chipId: full }, undefined],
    ['version 2 has 8 bytes of chip id from a Turin alone', { version: 2, chipId: short }, 'Turin'],
    ['version 2 with a masked chip id says nothing', { version: 2, chipId: new Uint8Array(64) }, undefined],
    ['version 3 is not judged by its chip id', { version: 3, ...NOTHING, chipId: short }, undefined],
  ])('%s', (_, fields, product) => {
    expect(parseReport(signedReport(chip, fields)).product).toBe(product);
  });
});

describe('the first byte that a version reserves', () => {
  // CPUID of version 3, a field of version 5, and what all reserve.
  it.each([
    [2, 0x188, 0x188],
    [3, 0x188, undefined],
    [3, 0x1f8, 0x1f8],
    [4, 0x207, 0x207],
    [5, 0x1f8, undefined],
    [5, 0x4c, 0x4c],
    [2, 0x207, 0x207],
  ])('version %i, byte 0x%s set', (version, at, want) => {
    const report = signedReport(chip, { version, ...NOTHING });
    report[at] = 1;
    expect(parseReport(report).reservedByteSet).toBe(want);
  });
});

describe('a report inside of firmware’s response', () => {
  const response = (status: number, size: number, room = 0x4a0): Uint8Array => {
    const bytes = new Uint8Array(0x20 + room);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, status, true);
    view.setUint32(4, size, true);
    bytes.set(signedReport(chip).subarray(0, room), 0x20);
    return bytes;
  };

  it('is found', () => {
    expect(parseReport(response(0, 0x4a0)).version).toBe(3);
  });

  it.each([
    ['that failed', response(0x16, 0x4a0)],
    ['of another size', response(0, 0x4a1)],
    ['that is cut off', response(0, 0x4a0, 0x49f)],
  ])('is none in one %s', (_, bytes) => {
    expect(() => parseReport(bytes)).toThrow(`report: got ${bytes.length} bytes, want 1184`);
  });
});
