/** ELF images of guests, and those whose launch nobody can foretell. */
import { describe, expect, it } from 'vitest';
import { imageUpdates, isElfImage } from '../../src/attest/index.ts';

type Put = (view: DataView) => void;
const u16 =
  (at: number, value: number): Put =>
  (view) =>
    view.setUint16(at, value, true);
const u64 =
  (at: number, value: bigint): Put =>
  (view) =>
    view.setBigUint64(at, value, true);

/** A static ELF64 executable: one segment of 0x800 bytes at 0x201800, which takes 0x1000 of memory, and a header that loads nothing. */
function elf(...puts: Put[]): Uint8Array {
  const image = new Uint8Array(0x1000).fill(0xc3, 0x800);
  image.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  const view = new DataView(image.buffer);
  for (const put of [
    ...[u16(16, 2), u16(18, 62), u64(24, 0x201800n), u64(32, 64n), u16(54, 56), u16(56, 2)],
    ...[u16(64, 1), u64(72, 0x800n), u64(80, 0x201800n), u64(96, 0x800n), u64(104, 0x1000n)],
    ...[u16(120, 1), u64(136, 0x5000n)],
    ...puts,
  ]) {
    put(view);
  }
  return image;
}
const [OFFSET, ADDRESS, FILE_BYTES, MEMORY_BYTES] = [72, 80, 96, 104] as const;
const pages = (image: Uint8Array) =>
  imageUpdates({ image, vcpus: 1 })
    .filter(({ label }) => label === 'image')
    .map(({ type, gpa }) => [type, gpa]);

it.each([
  ['as ELF', [0x7f, 0x45, 0x4c, 0x46], true],
  ['with another first byte', [0x7e, 0x45, 0x4c, 0x46], false],
  ['with another second byte', [0x7f, 0x44, 0x4c, 0x46], false],
  ['with another third byte', [0x7f, 0x45, 0x4d, 0x46], false],
  ['with another fourth byte', [0x7f, 0x45, 0x4c, 0x47], false],
] as const)('knows an image that begins %s', (_, bytes, isElf) => {
  expect(isElfImage(Uint8Array.from(bytes))).toBe(isElf);
});

describe('an ELF image', () => {
  it('is launched by pages: bytes of the file, or zeros', () => {
    expect(isElfImage(elf())).toBe(true);
    expect(pages(elf())).toEqual([
      ['normal', 0x201000],
      ['zero', 0x202000],
    ]);
  });

  it('may begin at 64 KiB, end with its file, and have its headers at the end', () => {
    expect(pages(elf(u64(ADDRESS, 0x1_0000n)))).toEqual([['normal', 0x1_0000]]);
    expect(pages(elf(u64(FILE_BYTES, 0x800n), u64(MEMORY_BYTES, 0x800n)))).toEqual([['normal', 0x201000]]);
    const last = elf(u64(32, 0x1000n - 56n), u16(56, 1));
    last.copyWithin(0x1000 - 56, 64, 120);
    expect(pages(last)).toEqual(pages(elf()));
    expect(pages(elf(u64(ADDRESS, 0xffff_f000n)))).toEqual([['normal', 0xffff_f000]]);
  });

  it('of a header alone has no pages', () => {
    expect(pages(elf(u16(56, 0)).subarray(0, 64))).toEqual([]);
  });

  it.each<[what: string, image: Uint8Array, message: string]>([
    ['no ELF image', new Uint8Array(64), 'image: ELF header: got 64 bytes, want a static ELF64 executable'],
    ['cut off within its header', elf().subarray(0, 63), 'image: ELF header: got 63 bytes'],
    ['of 32 bits', elf((view) => view.setUint8(4, 1)), 'got class 1, type 2, machine 62, want class 2'],
    ['a shared object', elf(u16(16, 3)), 'got class 2, type 3, machine 62'],
    ['of another machine', elf(u16(18, 183)), 'got class 2, type 2, machine 183'],
    ['with headers of 32 bytes', elf(u16(54, 32)), 'program headers: got 2 at 0x40'],
    ['with headers beyond its end', elf(u64(32, 0xf91n)), 'program headers: got 2 at 0xf91'],
    [
      'with headers beyond 4 GiB',
      elf(u64(32, 0x1_0000_0000n)),
      'e_phoff: got 0x100000000, want at most 4 GiB',
    ],
    ['with a segment beyond 4 GiB', elf(u64(ADDRESS, 0x1_0000_0000n)), 'p_vaddr: got 0x100000000'],
    ['with a segment beyond its end', elf(u64(OFFSET, 0x801n)), 'program header 0: got 2048 bytes at 0x801'],
    [
      'with more bytes than memory',
      elf(u64(MEMORY_BYTES, 0x7ffn)),
      'program header 0: got 2048 bytes at 0x800',
    ],
    [
      'with a segment below 64 KiB',
      elf(u64(ADDRESS, 0xffffn)),
      'program header 0: p_vaddr: got 0xffff, want at least 0x10000',
    ],
  ])('%s is refused by name', (_what, image, message) => {
    expect(() => imageUpdates({ image, vcpus: 1 })).toThrow(message);
  });

  it('may place a segment’s address at the last that is below 4 GiB', () => {
    expect(pages(elf(u64(ADDRESS, 0xffff_ffffn), u64(FILE_BYTES, 1n), u64(MEMORY_BYTES, 1n)))).toEqual([
      ['normal', 0xffff_f000],
    ]);
  });
});

describe('a flat image', () => {
  it('of no bytes is refused', () => {
    expect(() => imageUpdates({ image: new Uint8Array(0), vcpus: 1, format: 'flat' })).toThrow(
      'image: flat binary: got 0 bytes, want at least one',
    );
  });
});
