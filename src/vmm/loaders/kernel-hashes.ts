/**
 * The table of hashes that binds kernel, initial RAM disk and command line to the measurement of a firmware (QEMU target/i386/sev.c:
 * sev_add_kernel_loader_hashes, build_kernel_loader_hashes): SHA-256 of each, at a place that the firmware names. The firmware reads the files from
 * the host and compares.
 *
 * Left out: fw_cfg, by which QEMU hands over the files themselves.
 */
import { createHash } from 'node:crypto';
import { PAGE_SIZE } from '../../base/address.ts';
import { guidBytes } from '../../base/guid.ts';
import { hex, VmmError } from '../error.ts';
import type { OvmfMetadata } from './ovmf-metadata.ts';

const TABLE = '9438d606-4f22-4cc9-b479-a793d411fd21';
const CMDLINE = '97d02dd8-bd20-4c94-aa78-e7714d36ab2a';
const INITRD = '44baf731-3a2f-4bd7-9af1-41e29169781d';
const KERNEL = '4de79437-abd2-427f-b835-d5b172d2045b';

const HEAD_BYTES = 18;
const ENTRY_BYTES = 50;
/** Of PaddedSevHashTable: 168, up to a multiple of 16. */
const PADDED_BYTES = 176;

export interface KernelFiles {
  readonly kernel: Uint8Array;
  readonly initrd?: Uint8Array;
  /** The command line, without a NUL. */
  readonly append?: string;
}

/** The table, and where in its page the firmware wants it. */
export interface KernelHashes {
  readonly offset: number;
  readonly table: Uint8Array;
}

/** `area`: what the firmware says. Throws VmmError. */
export function kernelHashes(files: KernelFiles, area: OvmfMetadata['hashTable']): KernelHashes {
  if (area === undefined)
    throw new VmmError('SEV: kernel specified but guest firmware has no hashes table GUID');
  if (area.base === 0 || area.size < PADDED_BYTES)
    throw new VmmError(
      `SEV: guest firmware hashes table area is invalid (base=${hex(area.base)} size=${hex(area.size)})`,
    );
  return { offset: area.base % PAGE_SIZE, table: hashTable(files) };
}

/** snp_launch_update_kernel_hashes: a section of `size` bytes with the table in it. Throws VmmError. */
export function kernelHashesSection({ offset, table }: KernelHashes, size: number): Uint8Array {
  if (offset + table.length > size)
    throw new VmmError(
      `SEV: guest firmware hashes table: got ${hex(offset)} in its page, want at most ${hex(size - table.length)}`,
    );
  const section = new Uint8Array(size);
  section.set(table, offset);
  return section;
}

function hashTable({ kernel, initrd, append }: KernelFiles): Uint8Array {
  const table = new Uint8Array(PADDED_BYTES);
  const view = new DataView(table.buffer);
  const entries: [string, Uint8Array][] = [
    [CMDLINE, new TextEncoder().encode(`${append ?? ''}\0`)],
    [INITRD, initrd ?? new Uint8Array(0)],
    [KERNEL, kernel],
  ];
  table.set(guidBytes(TABLE));
  view.setUint16(16, HEAD_BYTES + ENTRY_BYTES * entries.length, true);
  entries.forEach(([guid, file], index) => {
    const at = HEAD_BYTES + ENTRY_BYTES * index;
    table.set(guidBytes(guid), at);
    view.setUint16(at + 16, ENTRY_BYTES, true);
    table.set(createHash('sha256').update(file).digest(), at + HEAD_BYTES);
  });
  return table;
}
