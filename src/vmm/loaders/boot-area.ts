/**
 * How a guest gets into private memory. No host call fills the private memory of a software-protected VM, so the image lies
 * in shared memory outside the guest's RAM, with a stub: guest code that copies it in and jumps. The boot area starts at the
 * first multiple of 2 MiB above RAM:
 *
 *     +0x0000  boot information (below), at most a page
 *     +0x1000  boot stub (guests/boot/boot.S); finds the boot information a page before itself
 *     +0x2000  GDT
 *     +0x3000  page tables: PML4, then PDPTs, then page directories
 *     ...      the image's segments, as they are in the file
 *
 * Boot information: u64 entry, u64 rsp, u32 ready (vCPU 0 sets it when the image is in place), u32 count, u64 reserved, then
 * `count` records { u64 source, u64 destination, u64 bytes to copy, u64 bytes to clear after them }.
 *
 * At the entry: 64-bit mode at CPL 0, interrupts off, no IDT, all memory below 4 GiB, RAM and the boot area mapped one to
 * one, RSP at the top of RAM minus 8, the vCPU's index in EDI, other registers 0. Fresh RAM is zero, so of a segment's zero
 * bytes only those in a page that the copy touches are cleared.
 */
import { PTE } from '../../abi/x86.ts';
import { GiB, MiB, PAGE_SIZE, pageAlignUp } from '../../base/address.ts';
import type { Regs, Sregs } from '../../kernel/interface.ts';
import { VmmError } from '../error.ts';
import type { LoadedImage } from './image.ts';
import { GDT_ENTRIES, longModeRegs, longModeSregs } from './long-mode-entry.ts';

const INFO = 0;
const STUB = 0x1000;
const GDT = 0x2000;
const TABLES = 0x3000;

const RECORDS = 0x20;
const RECORD_BYTES = 0x20;

const TABLE_ENTRIES = 512;
const BELOW_4G = 4;

export interface BootAreaOptions {
  /** Bytes of RAM from address 0. */
  readonly memory: number;
  readonly image: LoadedImage;
  readonly stub: Uint8Array;
  /** How memory above 4 GiB is mapped: by pages of 1 GiB where the vCPU has them. */
  readonly largestPage: '1G' | '2M';
}

export interface BootArea {
  /** Guest-physical address. */
  readonly base: number;
  /** Whole pages. */
  readonly bytes: Uint8Array;
}

/** Guest-physical address of the boot area of a guest with `memory` bytes of RAM. */
export const bootAreaBase = (memory: number): number => Math.ceil(memory / (2 * MiB)) * 2 * MiB;

/** Lays out the boot area. Throws VmmError. */
export function buildBootArea(options: BootAreaOptions): BootArea {
  const { memory, image, stub } = options;
  if (stub.length === 0 || stub.length > GDT - STUB) {
    throw new VmmError(`boot stub: got ${stub.length} bytes, want 1 to ${GDT - STUB}`);
  }
  const room = (STUB - RECORDS) / RECORD_BYTES;
  if (image.segments.length > room) {
    throw new VmmError(`image: got ${image.segments.length} segments, want at most ${room}`);
  }
  const base = bootAreaBase(memory);
  const fileBytes = image.segments.reduce((sum, { bytes }) => sum + pageAlignUp(bytes.length), 0);

  // Page tables reach over the boot area, whose size depends on them: one more GiB than RAM and image need covers them.
  const gigabytes = Math.max(BELOW_4G, Math.ceil((base + fileBytes) / GiB) + 1);
  const directories = options.largestPage === '1G' ? BELOW_4G : gigabytes;
  const pointerTables = Math.ceil(gigabytes / TABLE_ENTRIES);
  const segmentsAt = TABLES + (1 + pointerTables + directories) * PAGE_SIZE;

  const bytes = new Uint8Array(segmentsAt + fileBytes);
  const view = new DataView(bytes.buffer);
  const u64 = (at: number, value: number | bigint): void => view.setBigUint64(at, BigInt(value), true);

  u64(INFO, image.entry);
  u64(INFO + 8, memory - 8);
  view.setUint32(INFO + 0x14, image.segments.length, true);
  let source = segmentsAt;
  image.segments.forEach((segment, index) => {
    const record = INFO + RECORDS + index * RECORD_BYTES;
    const end = segment.address + segment.bytes.length;
    const clear = segment.bytes.length === 0 ? 0 : pageAlignUp(end) - end;
    u64(record, base + source);
    u64(record + 8, segment.address);
    u64(record + 16, segment.bytes.length);
    u64(record + 24, Math.min(clear, segment.memoryBytes - segment.bytes.length));
    bytes.set(segment.bytes, source);
    source += pageAlignUp(segment.bytes.length);
  });

  bytes.set(stub, STUB);
  GDT_ENTRIES.forEach((entry, index) => {
    u64(GDT + 8 * index, entry);
  });

  const pointerTablesAt = TABLES + PAGE_SIZE;
  const directoriesAt = pointerTablesAt + pointerTables * PAGE_SIZE;
  const table = PTE.P | PTE.W | PTE.A;
  const leaf = table | PTE.D | PTE.PS;
  for (let index = 0; index < pointerTables; index++) {
    u64(TABLES + 8 * index, base + pointerTablesAt + index * PAGE_SIZE + table);
  }
  for (let index = 0; index < gigabytes; index++) {
    const entry = index < directories ? base + directoriesAt + index * PAGE_SIZE + table : index * GiB + leaf;
    u64(pointerTablesAt + 8 * index, entry);
  }
  for (let index = 0; index < directories * TABLE_ENTRIES; index++) {
    u64(directoriesAt + 8 * index, index * 2 * MiB + leaf);
  }
  return { base, bytes };
}

/** General registers of vCPU `index` at the stub. */
export const entryRegs = (base: number, index: number): Regs => longModeRegs(base + STUB, index);

/** Control registers and segments at the stub; what they do not set stays as in `reset`. */
export const entrySregs = (base: number, reset: Sregs): Sregs =>
  longModeSregs(reset, { gdt: base + GDT, tables: base + TABLES });
