import { readdirSync, readFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { VmmError } from '../../../src/vmm/error.ts';
import { isElf, loadElf64 } from '../../../src/vmm/loaders/elf64.ts';
import { loadFlatBinary } from '../../../src/vmm/loaders/flat-binary.ts';

const MEMORY = 0x1000000;

interface Program {
  type?: number;
  offset?: number;
  address?: bigint;
  fileBytes?: bigint;
  memoryBytes?: bigint;
}

/** A good file with one segment of 16 bytes at 0x400000, 32 in memory; `change` breaks it. */
function elf(
  programs: Program[] = [{}],
  change: (view: DataView, bytes: Uint8Array) => void = () => {},
): Uint8Array {
  const bytes = new Uint8Array(64 + 56 * programs.length + 256);
  const view = new DataView(bytes.buffer);
  bytes.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setUint16(16, 2, true);
  view.setUint16(18, 62, true);
  view.setUint32(20, 1, true);
  view.setBigUint64(24, 0x400004n, true);
  view.setBigUint64(32, 64n, true);
  view.setUint16(52, 64, true);
  view.setUint16(54, 56, true);
  view.setUint16(56, programs.length, true);
  const data = 64 + 56 * programs.length;
  programs.forEach((program, index) => {
    const at = 64 + 56 * index;
    view.setUint32(at, program.type ?? 1, true);
    view.setBigUint64(at + 8, BigInt(program.offset ?? data), true);
    view.setBigUint64(at + 16, program.address ?? 0x400000n, true);
    view.setBigUint64(at + 32, program.fileBytes ?? 16n, true);
    view.setBigUint64(at + 40, program.memoryBytes ?? 32n, true);
  });
  for (let i = data; i < bytes.length; i++) bytes[i] = i - data + 1;
  change(view, bytes);
  return bytes;
}

describe('a static ELF64 file', () => {
  it('gives its segments and its entry', () => {
    const image = loadElf64(
      elf([{}, { address: 0x500000n, fileBytes: 0n, memoryBytes: 0x2000n }]),
      'a',
      MEMORY,
    );
    expect(image.entry).toBe(0x400004);
    expect(
      image.segments.map(({ address, bytes, memoryBytes }) => [address, [...bytes], memoryBytes]),
    ).toEqual([
      [0x400000, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], 32],
      [0x500000, [], 0x2000],
    ]);
  });

  it('may have segments in any order, empty ones, and headers that are not loaded', () => {
    const programs = [
      { address: 0x500000n },
      { type: 0x6474e551, address: 0n },
      { memoryBytes: 0n, fileBytes: 0n, address: 2n ** 60n },
      {},
    ];
    expect(loadElf64(elf(programs), 'a', MEMORY).segments.map(({ address }) => address)).toEqual([
      0x400000, 0x500000,
    ]);
  });

  it('may fill the memory to its last byte', () => {
    const last = { address: 0xfffff0n, memoryBytes: 16n };
    expect(loadElf64(elf([{}, last]), 'a', MEMORY).segments[1]?.address).toBe(0xfffff0);
  });
});

const PREBUILT = new URL('../../../guests/prebuilt/', import.meta.url);

it.each(readdirSync(PREBUILT).filter((name) => name.endsWith('.elf')))('the guest %s loads', (name) => {
  const image = loadElf64(readFileSync(new URL(name, PREBUILT)), name, 0x4000000);
  expect(image.segments.some(({ address, bytes }) => image.entry - address < bytes.length)).toBe(true);
});

describe('a bad ELF file is refused by the field that is wrong, with what it holds and what it should', () => {
  const rows: [string, Uint8Array, string][] = [
    ['an empty file', new Uint8Array(0), 'a: e_ident magic: got an empty file, want 7f 45 4c 46'],
    [
      'a script',
      new TextEncoder().encode('#!/bin/sh\n'),
      'a: e_ident magic: got 23 21 2f 62, want 7f 45 4c 46',
    ],
    [
      'a truncated header',
      elf().subarray(0, 63),
      'a: ELF header: got 63 bytes, want 64 bytes (truncated file)',
    ],
    ['32 bits', elf([{}], (_, bytes) => bytes.fill(1, 4, 5)), 'e_ident[EI_CLASS]: got 1, want 2'],
    ['big-endian', elf([{}], (_, bytes) => bytes.fill(2, 5, 6)), 'e_ident[EI_DATA]: got 2, want 1'],
    [
      'identification version',
      elf([{}], (_, bytes) => bytes.fill(0, 6, 7)),
      'e_ident[EI_VERSION]: got 0, want 1',
    ],
    ['another machine', elf([{}], (view) => view.setUint16(18, 183, true)), 'e_machine: got 183, want 62'],
    [
      'position-independent',
      elf([{}], (view) => view.setUint16(16, 3, true)),
      'e_type: got 3 (ET_DYN, position-independent), want 2 (ET_EXEC): link with -static -no-pie',
    ],
    ['an object file', elf([{}], (view) => view.setUint16(16, 1, true)), 'e_type: got 1, want 2'],
    ['version', elf([{}], (view) => view.setUint32(20, 7, true)), 'e_version: got 7, want 1'],
    ['header size', elf([{}], (view) => view.setUint16(52, 52, true)), 'e_ehsize: got 52, want 64'],
    [
      'program header size',
      elf([{}], (view) => view.setUint16(54, 32, true)),
      'e_phentsize: got 32, want 56',
    ],
    [
      'no program headers',
      elf([{}], (view) => view.setUint16(56, 0, true)),
      'e_phnum: got 0, want at least one',
    ],
    [
      'too many program headers',
      elf([{}], (view) => view.setUint16(56, 0xffff, true)),
      'e_phnum: got 0xffff',
    ],
    [
      'a table beyond the file',
      elf([{}], (view) => view.setUint16(56, 100, true)),
      'e_phoff: got 0x40, want 100 program headers within the file',
    ],
    [
      'a table at the end of numbers',
      elf([{}], (view) => view.setBigUint64(32, 2n ** 64n - 1n, true)),
      'e_phoff: got 0xffffffffffffffff',
    ],
    ['dynamically linked', elf([{ type: 3 }, {}]), 'program header 0: p_type: got 3 (PT_INTERP'],
    [
      'a segment beyond the file',
      elf([{ fileBytes: 0x10000n, memoryBytes: 0x10000n }]),
      'program header 0: p_offset + p_filesz: got 0x78 + 0x10000, want at most the file',
    ],
    [
      'a segment whose end wraps',
      elf([{ fileBytes: 2n ** 64n - 1n, memoryBytes: 2n ** 64n - 1n }]),
      'p_offset + p_filesz: got 0x78 + 0xffffffffffffffff',
    ],
    [
      'less memory than file',
      elf([{ memoryBytes: 15n }]),
      'program header 0: p_memsz: got 0xf, want at least p_filesz 0x10',
    ],
    [
      'beyond the memory',
      elf([{ address: 0xfffff0n }]),
      'program header 0: p_vaddr + p_memsz: got 0xfffff0 + 0x20, want at most the memory',
    ],
    [
      'the upper half of the address space',
      elf([{ address: 0xffffffff80000000n }]),
      'p_vaddr + p_memsz: got 0xffffffff80000000 + 0x20',
    ],
    ['nothing to load', elf([{ type: 4 }]), 'program headers: got no PT_LOAD with bytes, want at least one'],
    [
      'segments that overlap',
      elf([{}, { address: 0x40001fn }]),
      'p_vaddr of two PT_LOAD: got 0x40001f before 0x400020, want segments that do not overlap',
    ],
    [
      'an entry outside',
      elf([{}], (view) => view.setBigUint64(24, 0x400020n, true)),
      'e_entry: got 0x400020, want an address within a PT_LOAD segment',
    ],
  ];
  it.each(rows)('%s', (_, bytes, message) => {
    expect(() => loadElf64(bytes, 'a', MEMORY)).toThrow(VmmError);
    expect(() => loadElf64(bytes, 'a', MEMORY)).toThrow(message);
  });
});

it('a file with any bytes changed or cut off either loads within memory or fails with a VmmError (property)', () => {
  const good = elf([{}, { address: 0x500000n }]);
  fc.assert(
    fc.property(
      fc.array(
        fc.tuple(
          fc.nat(64 + 112 - 1),
          fc.oneof(fc.integer({ min: 0, max: 255 }), fc.constantFrom(0, 1, 0x7f, 0xff)),
        ),
        { minLength: 1, maxLength: 12 },
      ),
      fc.nat(good.length),
      (changes, length) => {
        const bytes = good.slice();
        for (const [at, value] of changes) bytes[at] = value;
        try {
          const image = loadElf64(bytes.subarray(0, length % 3 === 0 ? length : bytes.length), 'a', MEMORY);
          for (const segment of image.segments) {
            expect(segment.address + segment.memoryBytes).toBeLessThanOrEqual(MEMORY);
            expect(segment.bytes.length).toBeLessThanOrEqual(segment.memoryBytes);
          }
          expect(image.entry).toBeLessThan(MEMORY);
        } catch (error) {
          expect(error).toBeInstanceOf(VmmError);
          expect((error as Error).message).toMatch(/^a: .*: got .*, want /);
        }
      },
    ),
    { numRuns: 3000 },
  );
});

it('random bytes are not ELF, or fail with a VmmError (property)', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), fc.boolean(), (bytes, disguised) => {
      if (disguised) bytes.set([0x7f, 0x45, 0x4c, 0x46].slice(0, bytes.length));
      expect(() => loadElf64(bytes, 'a', MEMORY)).toThrow(VmmError);
      expect(isElf(bytes)).toBe(disguised && bytes.length >= 4);
    }),
  );
});

describe('a flat binary', () => {
  it('lies at 1 MiB and starts there', () => {
    expect(loadFlatBinary(Uint8Array.of(0xf4), 'x.bin', MEMORY)).toEqual({
      segments: [{ bytes: Uint8Array.of(0xf4), address: 0x100000, memoryBytes: 1 }],
      entry: 0x100000,
    });
  });

  it('is refused when it is empty or does not fit', () => {
    expect(() => loadFlatBinary(new Uint8Array(0), 'x.bin', MEMORY)).toThrow(
      'x.bin: flat binary: got 0 bytes',
    );
    expect(() => loadFlatBinary(new Uint8Array(0x1001), 'x.bin', 0x101000)).toThrow(
      'x.bin: memory: got 0x101000 bytes, want at least 0x101001',
    );
  });
});
