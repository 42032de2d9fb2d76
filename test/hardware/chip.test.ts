import { describe, expect, it } from 'vitest';
import { seededEntropy } from '../../src/base/entropy.ts';
import { hashSticks } from '../../src/hardware/chip/key-derivation.ts';
import { Chip, type ChipGeneration } from '../../src/hardware/chip.ts';

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const chip = (generation: ChipGeneration, seed = 1, options: object = {}): Chip =>
  new Chip({ generation, entropy: seededEntropy(seed), ...options });

describe('personalities', () => {
  it.each([
    // generation, CPUID 1 EAX, C-bit, bits taken away, VMPLs, highest ASID, CPUID 0x8000001F EAX, product
    ['milan', 0x00a00f11, 51, 5, 4, 509, 0x0101fd3f, 'Milan'],
    ['genoa', 0x00a10f11, 51, 6, 4, 1006, 0x030fffff, 'Genoa'],
    ['turin', 0x00b00f21, 51, 6, 4, 1006, 0x0b2fffff, 'Turin'],
  ] as const)(
    '%s shows its numbers',
    (generation, signature, cBit, reduction, vmpls, asids, features, product) => {
      const { personality } = chip(generation);
      expect(personality).toMatchObject({
        signature,
        cBit,
        physAddrReduction: reduction,
        vmpls,
        maxAsid: asids,
        sevFeatures: features,
        product,
      });
    },
  );

  it.each([
    // boot loader 4, TEE 0, SNP 24, microcode 219
    ['milan', 0xdb18000000000004n],
    // boot loader 10, TEE 0, SNP 24, microcode 84
    ['genoa', 0x541800000000000an],
    // FMC 1, boot loader 1, TEE 1, SNP 4, microcode 76
    ['turin', 0x4c00000004010101n],
  ] as const)('%s lays out its TCB_VERSION', (generation, want) => {
    expect(chip(generation).currentTcb).toBe(want);
  });

  it.each([
    ['milan', 64],
    ['genoa', 64],
    ['turin', 8],
  ] as const)('%s has a chip id of %d bytes, the rest zero', (generation, size) => {
    const { chipId } = chip(generation);
    expect(chipId).toHaveLength(64);
    expect(chipId.subarray(0, size).some((byte) => byte !== 0)).toBe(true);
    expect(chipId.subarray(size).every((byte) => byte === 0)).toBe(true);
  });
});

describe('endorsement keys', () => {
  it('follow from fuses and TCB, and differ where one of them differs', () => {
    const spki = (of: Chip, tcb: bigint): string => hex(of.vcek(tcb).spki);
    const one = chip('milan', 1);
    const again = chip('milan', 1);
    const other = chip('milan', 2);
    const lower = one.tcbOf({ snp: 3 });
    expect(spki(one, one.currentTcb)).toBe(spki(again, one.currentTcb));
    expect(spki(one, one.currentTcb)).not.toBe(spki(other, one.currentTcb));
    expect(spki(one, one.currentTcb)).not.toBe(spki(one, lower));
  });

  it('are the same after a chip was kept and taken up again', () => {
    const one = chip('turin', 5);
    const kept = chip('turin', 6, { fuses: one.fuses });
    expect(hex(kept.vcek(kept.currentTcb).spki)).toBe(hex(one.vcek(one.currentTcb).spki));
    expect(hex(kept.chipId)).toBe(hex(one.chipId));
  });

  it('hang on hash sticks: who has one version can make the older ones', async () => {
    const { createHash } = await import('node:crypto');
    const secret = new Uint8Array(48).fill(9);
    const [newer] = hashSticks(secret, [200]);
    const [older] = hashSticks(secret, [197]);
    let stick: Uint8Array = newer!;
    for (let i = 0; i < 3; i++) stick = createHash('sha384').update(stick).digest();
    expect(hex(stick)).toBe(hex(older!));
  });

  it('differ in every component of the TCB', () => {
    const one = chip('turin');
    const all = [{}, { fmc: 0 }, { bootLoader: 0 }, { tee: 0 }, { snp: 0 }, { microcode: 0 }].map((tcb) =>
      hex(one.vcek(one.tcbOf(tcb)).spki),
    );
    expect(new Set(all).size).toBe(6);
  });
});

describe('a chip', () => {
  it('of which nothing but its generation is said is one of a kind', () => {
    const [one, other] = [new Chip({ generation: 'turin' }), new Chip({ generation: 'turin' })];
    expect(one.chipId).not.toEqual(other.chipId);
    expect(one.fuses.secret).not.toEqual(other.fuses.secret);
  });

  it.each([
    ['fuses of 47 bytes', { fuses: { secret: new Uint8Array(47), id: new Uint8Array(64) } }],
    ['an id of 8 bytes on Milan', { fuses: { secret: new Uint8Array(48), id: new Uint8Array(8) } }],
    ['an SVN of 256', { tcb: { snp: 256 } }],
    ['a committed TCB above what runs', { committed: { tcb: { snp: 25 } } }],
    ['committed firmware above what runs', { committed: { firmware: { major: 1, minor: 55, build: 22 } } }],
  ])('is refused with %s', (_title, options) => {
    expect(() => chip('milan', 1, options)).toThrow(RangeError);
  });

  it.each([
    [{ generation: 'zen' }, 'generation: got zen, want milan or genoa or turin'],
    [{ generation: 'milan', bogus: 1 }, 'chip.bogus: got a field that is none, want generation, '],
    [{ generation: 'milan', tcb: 'x' }, 'tcb: got x, want an object'],
    [{ generation: 'genoa', tcb: { fmc: 1 } }, 'tcb.fmc: got a field that is none, want bootLoader, '],
    [{ generation: 'milan', tcb: [] }, 'tcb: got an array, want an object'],
    [{ generation: 'milan', tcb: null }, 'tcb: got null, want an object'],
    [{ generation: 'milan', tcb: { snp: null } }, 'tcb.snp: got null, want an integer from 0 to 255'],
    [{ generation: 'milan', tcb: { snp: '5' } }, 'tcb.snp: got 5, want an integer from 0 to 255'],
    [{ generation: 'milan', entropy: 5 }, 'entropy: got 5, want an Entropy'],
    [{ generation: 'milan', entropy: [] }, 'entropy: got an empty array, want an Entropy'],
    [{ generation: 'milan', entropy: null }, 'entropy: got null, want an Entropy'],
    [{ generation: 'milan', fuses: 5 }, 'fuses: got 5, want an object'],
    [{ generation: 'milan', fuses: null }, 'fuses: got null, want an object'],
    [
      { generation: 'milan', fuses: { id: new Uint8Array(64) } },
      'fuses.secret: got undefined, want a Uint8Array',
    ],
    [
      { generation: 'milan', fuses: { secret: new Uint8Array(48), id: 'x' } },
      'fuses.id: got string, want a Uint8Array',
    ],
    [{ generation: 'milan', signatures: null }, 'signatures: got null, want random or rfc6979'],
    [{ generation: 'milan', signatures: 'rfc' }, 'signatures: got rfc, want random or rfc6979'],
    [{ generation: 'milan', firmware: 5 }, 'firmware: got 5, want an object'],
    [
      { generation: 'milan', firmware: { major: 1, minor: 55 } },
      'firmware.build: got undefined, want an integer ',
    ],
    [
      { generation: 'milan', firmware: { major: 1, minor: 256, build: 0 } },
      'firmware.minor: got 256, want an integer from 0 to 255',
    ],
    [{ generation: 'milan', committed: 5 }, 'committed: got 5, want an object'],
    [
      { generation: 'milan', committed: { tbc: {} } },
      'committed.tbc: got a field that is none, want tcb, firmware',
    ],
    [
      { generation: 'milan', committed: { tcb: { fmc: 1 } } },
      'committed.tcb.fmc: got a field that is none, ',
    ],
    [{ generation: 'milan', committed: { tcb: { tee: -1 } } }, 'committed.tcb.tee: got -1, want an integer '],
    [
      { generation: 'milan', committed: { firmware: { major: '1', minor: 0, build: 0 } } },
      'committed.firmware.major: got 1, want an integer from 0 to 255',
    ],
  ])('options %# are refused by the field’s name', (options, refusal) => {
    expect(() => new Chip(options as never)).toThrow(refusal);
  });

  it('has the default’s component where one is said to be undefined', () => {
    const tcb = { snp: undefined, microcode: 200 } as never;
    expect(chip('milan', 1, { tcb }).currentTcb).toBe(0xc818000000000004n);
  });

  it.each([
    [5, 'tcb: got 5, want an object'],
    [{ fmc: 1 }, 'tcb.fmc: got a field that is none, want bootLoader, tee, snp, microcode'],
    [{ snp: 256 }, 'tcb.snp: got 256, want an integer from 0 to 255'],
  ])('has no TCB_VERSION of %j', (components, refusal) => {
    expect(() => chip('milan').tcbOf(components as never)).toThrow(new RangeError(refusal));
  });

  it.each([
    [5, '5'],
    [undefined, 'undefined'],
    [-1n, '-1'],
    [1n << 64n, '18446744073709551616'],
  ])('has no VCEK of %s', (tcb, text) => {
    const refusal = new RangeError(`tcb: got ${text}, want a bigint of 64 bits`);
    expect(() => chip('milan').vcek(tcb as never)).toThrow(refusal);
  });
});
