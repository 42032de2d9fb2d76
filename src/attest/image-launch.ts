/**
 * What SoftCVM's own VMM adds to an SNP guest that starts from an ELF image without a firmware (vmm/loaders/snp-boot.ts, which says the layout; a
 * test compares the two): GDT and page tables, secrets, CPUID, the image's pages, then the VMSA of each vCPU.
 */
import {
  requireBytes,
  requireInteger,
  requireKnownFields,
  requireOneOf,
  requireU64,
} from '../base/option-checks.ts';
import { EvidenceError } from './evidence-error.ts';
import { type LaunchUpdate, VMSA_GPA } from './launch-digest.ts';
import { entryVmsa } from './vmsa.ts';

const PAGE = 4096;
const ENTRIES = 512;
const GDT = 0x1000;
const TABLES = 0x2000;
const DIRECTORIES = 0x4000;
const FIRST_TABLE = 0x8000;
const SECRETS = 0x9000;
const SHARED = [0xa000, 0xb000];
const CPUID = 0xd000;
const IMAGE_FLOOR = 0x10000;

const C_BIT = 1n << 51n;
/** Present, writable, accessed; and dirty; and large. */
const TABLE = 0x23n;
const PAGE_LEAF = 0x63n;
const LARGE_LEAF = 0xe3n;
const GDT_ENTRIES = [0n, 0x00af_9b00_0000_ffffn, 0x00cf_9300_0000_ffffn];

const PT_LOAD = 1;
const PHDR_BYTES = 56;

export interface ImageLaunch {
  readonly image: Uint8Array;
  /** A static ELF64 executable, or bytes that go to 1 MiB and start there; default ELF. */
  readonly format?: 'ELF' | 'flat';
  readonly vcpus: number;
  /** SEV_FEATURES; default 1: SNP alone. */
  readonly guestFeatures?: bigint;
}

/** True if the bytes begin as an ELF file does. RangeError: no bytes. */
export function isElfImage(image: Uint8Array): boolean {
  requireBytes('image', image);
  return image[0] === 0x7f && image[1] === 0x45 && image[2] === 0x4c && image[3] === 0x46;
}

const LAUNCH: Record<keyof ImageLaunch, true> = {
  image: true,
  format: true,
  vcpus: true,
  guestFeatures: true,
};

/** Throws EvidenceError where the image cannot be started so; RangeError for what no launch can have. */
export function imageUpdates(launch: ImageLaunch): LaunchUpdate[] {
  requireKnownFields('launch', launch, LAUNCH);
  const { image, format = 'ELF', vcpus, guestFeatures = 1n } = launch;
  requireBytes('image', image);
  requireOneOf('format', format, ['ELF', 'flat']);
  requireInteger('vcpus', vcpus, 1, 4096);
  requireU64('guestFeatures', guestFeatures);
  const { entry, segments } = format === 'ELF' ? readSegments(image) : flatSegments(image);
  const tables = bootTables();
  return [
    { type: 'normal', gpa: GDT, size: tables.length, bytes: tables, label: 'GDT and page tables' },
    { type: 'secrets', gpa: SECRETS, size: PAGE, label: 'secrets' },
    { type: 'cpuid', gpa: CPUID, size: PAGE, label: 'CPUID' },
    ...imagePages(segments),
    ...Array.from(
      { length: vcpus },
      (_, index): LaunchUpdate => ({
        type: 'vmsa',
        gpa: VMSA_GPA,
        size: PAGE,
        bytes: entryVmsa({ entry, index, guestFeatures, gdt: GDT, tables: TABLES }),
        label: `VMSA of vCPU ${index}`,
      }),
    ),
  ];
}

interface Segment {
  readonly address: number;
  readonly bytes: Uint8Array;
  readonly memoryBytes: number;
}

const FLAT_BINARY = 0x10_0000;

function flatSegments(bytes: Uint8Array): { entry: bigint; segments: Segment[] } {
  if (bytes.length === 0) throw new EvidenceError('image: flat binary: got 0 bytes, want at least one');
  return {
    entry: BigInt(FLAT_BINARY),
    segments: [{ address: FLAT_BINARY, bytes, memoryBytes: bytes.length }],
  };
}

function readSegments(image: Uint8Array): { entry: bigint; segments: Segment[] } {
  const bad = (field: string, got: string | number, want: string): EvidenceError =>
    new EvidenceError(`image: ${field}: got ${got}, want ${want}`);
  if (!isElfImage(image) || image.length < 64)
    throw bad('ELF header', `${image.length} bytes`, 'a static ELF64 executable');
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
  const [kind, machine] = [view.getUint16(16, true), view.getUint16(18, true)];
  if (image[4] !== 2 || kind !== 2 || machine !== 62) {
    throw bad(
      'ELF header',
      `class ${image[4]}, type ${kind}, machine ${machine}`,
      'class 2, type 2, machine 62',
    );
  }
  const number = (at: number, field: string): number => {
    const value = view.getBigUint64(at, true);
    if (value > 0xffff_ffffn) throw bad(field, `0x${value.toString(16)}`, 'at most 4 GiB');
    return Number(value);
  };
  const table = number(32, 'e_phoff');
  const count = view.getUint16(56, true);
  if (view.getUint16(54, true) !== PHDR_BYTES || table + count * PHDR_BYTES > image.length) {
    throw bad(
      'program headers',
      `${count} at 0x${table.toString(16)}`,
      'headers of 56 bytes within the file',
    );
  }
  const segments: Segment[] = [];
  for (let index = 0; index < count; index++) {
    const at = table + PHDR_BYTES * index;
    if (view.getUint32(at, true) !== PT_LOAD) continue;
    const offset = number(at + 8, 'p_offset');
    const address = number(at + 16, 'p_vaddr');
    const bytes = number(at + 32, 'p_filesz');
    const memoryBytes = number(at + 40, 'p_memsz');
    if (memoryBytes === 0) continue;
    if (offset + bytes > image.length || memoryBytes < bytes) {
      throw bad(
        `program header ${index}`,
        `${bytes} bytes at 0x${offset.toString(16)}`,
        'bytes within file and memory',
      );
    }
    if (address < IMAGE_FLOOR)
      throw bad(`program header ${index}: p_vaddr`, `0x${address.toString(16)}`, 'at least 0x10000');
    segments.push({ address, bytes: image.subarray(offset, offset + bytes), memoryBytes });
  }
  return { entry: view.getBigUint64(24, true), segments };
}

/** GDT and page tables: 4 GiB one to one, with the C-bit but for the shared pages. */
function bootTables(): Uint8Array {
  const bytes = new Uint8Array(SECRETS - GDT);
  const view = new DataView(bytes.buffer);
  const put = (gpa: number, value: bigint): void => view.setBigUint64(gpa - GDT, value, true);
  for (const [index, entry] of GDT_ENTRIES.entries()) put(GDT + 8 * index, entry);
  put(TABLES, BigInt(TABLES + PAGE) | TABLE | C_BIT);
  for (let index = 0; index < 4; index++) {
    put(TABLES + PAGE + 8 * index, BigInt(DIRECTORIES + PAGE * index) | TABLE | C_BIT);
  }
  for (let index = 0; index < 4 * ENTRIES; index++) {
    put(DIRECTORIES + 8 * index, BigInt(index * 0x20_0000) | LARGE_LEAF | C_BIT);
  }
  put(DIRECTORIES, BigInt(FIRST_TABLE) | TABLE | C_BIT);
  for (let index = 0; index < ENTRIES; index++) {
    const gpa = PAGE * index;
    put(FIRST_TABLE + 8 * index, BigInt(gpa) | PAGE_LEAF | (SHARED.includes(gpa) ? 0n : C_BIT));
  }
  return bytes;
}

/** Pages that hold bytes of the file as they are, the others of the segments as zero pages. */
function imagePages(segments: readonly Segment[]): LaunchUpdate[] {
  const pages = new Map<number, Uint8Array | undefined>();
  for (const { address, bytes, memoryBytes } of segments) {
    for (let gpa = address - (address % PAGE); gpa < address + memoryBytes; gpa += PAGE) {
      const [from, to] = [Math.max(gpa, address), Math.min(gpa + PAGE, address + bytes.length)];
      let page = pages.get(gpa);
      if (to > from) {
        page ??= new Uint8Array(PAGE);
        page.set(bytes.subarray(from - address, to - address), from - gpa);
      }
      pages.set(gpa, page);
    }
  }
  return [...pages]
    .sort(([a], [b]) => a - b)
    .map(([gpa, bytes]) =>
      bytes === undefined
        ? { type: 'zero', gpa, size: PAGE, label: 'image' }
        : { type: 'normal', gpa, size: PAGE, bytes, label: 'image' },
    );
}
