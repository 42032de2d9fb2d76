/**
 * How an ELF image starts as an SNP guest: no firmware, nothing that depends on the size of RAM or on how many vCPUs there are, so that the measurement says what was
 * loaded and nothing else.
 *
 *     0x1000           GDT
 *     0x2000           page tables: PML4, PDPT, four page directories, and the table of the first 2 MiB; 4 GiB one to one, with the C-bit
 *     0x9000           secrets, by firmware
 *     0xa000, 0xb000   shared, not measured: the first vCPU's GHCB, and what the host has to say (below)
 *     0xd000           CPUID table
 *     the image        pages with bytes of the file, and zero pages
 *
 * The host's page: u64 bytes of RAM, u64 vCPUs, u64 bytes of guest data, and those at +0x40.
 *
 * At the entry: 64-bit mode at CPL 0, interrupts off, no IDT, the vCPU's index in EDI, other registers 0, no stack. RAM that is none of the above is private but not
 * validated: PVALIDATE comes first.
 */
import { SNP_PAGE_TYPE } from '../../abi/sev-firmware.ts';
import { PTE } from '../../abi/x86.ts';
import { MiB, PAGE_SIZE } from '../../base/address.ts';
import type { CpuidEntry, Sregs } from '../../kernel/interface.ts';
import { hex, VmmError } from '../error.ts';
import type { LoadedImage } from './image.ts';
import { GDT_ENTRIES, longModeSregs } from './long-mode-entry.ts';

export const SNP_BOOT = {
  GDT: 0x1000,
  TABLES: 0x2000,
  DIRECTORIES: 0x4000,
  FIRST_TABLE: 0x8000,
  SECRETS: 0x9000,
  GHCB: 0xa000,
  HOST_PAGE: 0xb000,
  CPUID: 0xd000,
  /** Images lie above. */
  IMAGE_FLOOR: 0x10000,
} as const;

const C_BIT = 1n << 51n;
const TABLE = BigInt(PTE.P | PTE.W | PTE.A);
const PAGE_LEAF = TABLE | BigInt(PTE.D);
const LARGE_LEAF = PAGE_LEAF | BigInt(PTE.PS);
const ENTRIES = 512;
const GIGABYTES = 4;
const GUEST_DATA_AT = 0x40;
const CPUID_ENTRIES_MAX = 64;
const CPUID_ENTRY_BYTES = 48;

/** Pages in the order in which they are launched. `bytes` undefined: none are needed. */
export interface SnpLaunchRange {
  readonly gpa: number;
  readonly type: number;
  /** Whole pages. */
  readonly size: number;
  readonly bytes: Uint8Array | undefined;
}

/** What is launched before the VMSAs. Throws VmmError. */
export function snpLaunchRanges(image: LoadedImage, cpuid: Uint8Array): SnpLaunchRange[] {
  const tables = bootTables();
  const page = (gpa: number, type: number, bytes: Uint8Array): SnpLaunchRange => ({
    gpa,
    type,
    size: bytes.length,
    bytes,
  });
  return [
    page(SNP_BOOT.GDT, SNP_PAGE_TYPE.NORMAL, tables),
    page(SNP_BOOT.SECRETS, SNP_PAGE_TYPE.SECRETS, new Uint8Array(PAGE_SIZE)),
    page(SNP_BOOT.CPUID, SNP_PAGE_TYPE.CPUID, cpuid),
    ...imageRanges(image),
  ];
}

/** GDT and page tables, from 0x1000 on. */
function bootTables(): Uint8Array {
  const base = SNP_BOOT.GDT;
  const bytes = new Uint8Array(SNP_BOOT.SECRETS - base);
  const view = new DataView(bytes.buffer);
  const put = (gpa: number, value: bigint): void => view.setBigUint64(gpa - base, value, true);
  GDT_ENTRIES.forEach((entry, index) => {
    put(SNP_BOOT.GDT + 8 * index, entry);
  });
  put(SNP_BOOT.TABLES, BigInt(SNP_BOOT.TABLES + PAGE_SIZE) | TABLE | C_BIT);
  for (let i = 0; i < GIGABYTES; i++)
    put(SNP_BOOT.TABLES + PAGE_SIZE + 8 * i, BigInt(SNP_BOOT.DIRECTORIES + i * PAGE_SIZE) | TABLE | C_BIT);
  for (let i = 0; i < GIGABYTES * ENTRIES; i++)
    put(SNP_BOOT.DIRECTORIES + 8 * i, BigInt(i * 2 * MiB) | LARGE_LEAF | C_BIT);
  put(SNP_BOOT.DIRECTORIES, BigInt(SNP_BOOT.FIRST_TABLE) | TABLE | C_BIT);
  for (let i = 0; i < ENTRIES; i++) {
    const gpa = i * PAGE_SIZE;
    const isShared = gpa === SNP_BOOT.GHCB || gpa === SNP_BOOT.HOST_PAGE;
    put(SNP_BOOT.FIRST_TABLE + 8 * i, BigInt(gpa) | PAGE_LEAF | (isShared ? 0n : C_BIT));
  }
  return bytes;
}

/** Pages that hold bytes of the file as they are, the others of the segments as zero pages. */
function imageRanges({ segments }: LoadedImage): SnpLaunchRange[] {
  const pages = new Map<number, Uint8Array | undefined>();
  for (const { address, bytes, memoryBytes } of segments) {
    if (address < SNP_BOOT.IMAGE_FLOOR)
      throw new VmmError(
        `image: a segment at ${hex(address)}, want all above ${hex(SNP_BOOT.IMAGE_FLOOR)}, where an SNP guest's tables lie`,
      );
    for (let gpa = address - (address % PAGE_SIZE); gpa < address + memoryBytes; gpa += PAGE_SIZE) {
      const from = Math.max(gpa, address);
      const to = Math.min(gpa + PAGE_SIZE, address + bytes.length);
      let page = pages.get(gpa);
      if (to > from) {
        page ??= new Uint8Array(PAGE_SIZE);
        page.set(bytes.subarray(from - address, to - address), from - gpa);
      }
      pages.set(gpa, page);
    }
  }
  return [...pages]
    .sort(([a], [b]) => a - b)
    .map(([gpa, bytes]) => ({
      gpa,
      type: bytes === undefined ? SNP_PAGE_TYPE.ZERO : SNP_PAGE_TYPE.NORMAL,
      size: PAGE_SIZE,
      bytes,
    }));
}

/** What fits into the host's page. */
export const GUEST_DATA_BYTES = 64;

/** The host's page. `guestData`: at most GUEST_DATA_BYTES. */
export function hostPage(machine: { memory: number; smp: number; guestData: Uint8Array }): Uint8Array {
  const bytes = new Uint8Array(PAGE_SIZE);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, BigInt(machine.memory), true);
  view.setBigUint64(8, BigInt(machine.smp), true);
  view.setBigUint64(16, BigInt(machine.guestData.length), true);
  bytes.set(machine.guestData, GUEST_DATA_AT);
  return bytes;
}

/** The CPUID table of an SNP guest: what KVM tells the vCPU, in the form that firmware checks (QEMU snp_populate_cpuid_table). */
export function snpCpuidTable(entries: readonly CpuidEntry[]): Uint8Array {
  if (entries.length > CPUID_ENTRIES_MAX)
    throw new VmmError(
      `CPUID: ${entries.length} entries, want at most ${CPUID_ENTRIES_MAX} for an SNP guest`,
    );
  const bytes = new Uint8Array(PAGE_SIZE);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, entries.length, true);
  entries.forEach((entry, index) => {
    const at = 16 + CPUID_ENTRY_BYTES * index;
    view.setUint32(at, entry.function, true);
    view.setUint32(at + 4, entry.index, true);
    // Leaf Dh, 0 and 1: the answer for XCR0 as it is after reset.
    if (entry.function === 0xd && entry.index <= 1) view.setBigUint64(at + 8, 1n, true);
    view.setUint32(at + 24, entry.eax, true);
    view.setUint32(at + 28, entry.ebx, true);
    view.setUint32(at + 32, entry.ecx, true);
    view.setUint32(at + 36, entry.edx, true);
  });
  return bytes;
}

export const snpEntrySregs = (reset: Sregs): Sregs =>
  longModeSregs(reset, { gdt: SNP_BOOT.GDT, tables: SNP_BOOT.TABLES });
