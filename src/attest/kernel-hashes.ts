/**
 * The page that binds kernel, initial RAM disk and command line to the measurement of a firmware (QEMU target/i386/sev.c, SevHashTable; edk2
 * OvmfPkg/AmdSev/BlobVerifierLibSevHashes): a table of SHA-256 hashes in an otherwise empty page.
 */

import { guidBytes } from '../base/guid.ts';
import { unshared } from './bytes.ts';

const TABLE_GUID = '9438d606-4f22-4cc9-b479-a793d411fd21';
const CMDLINE_GUID = '97d02dd8-bd20-4c94-aa78-e7714d36ab2a';
const INITRD_GUID = '44baf731-3a2f-4bd7-9af1-41e29169781d';
const KERNEL_GUID = '4de79437-abd2-427f-b835-d5b172d2045b';

const HEAD_BYTES = 18;
const ENTRY_BYTES = 50;
const TABLE_BYTES = HEAD_BYTES + 3 * ENTRY_BYTES;
/** With what fills it up to a multiple of 16. */
export const HASH_TABLE_BYTES = 176;

export interface KernelFiles {
  readonly kernel: Uint8Array;
  readonly initrd?: Uint8Array;
  readonly append?: string;
}

/** The page's 4096 bytes, with the table at `offset`. RangeError: it does not fit there. */
export async function kernelHashesPage(
  { kernel, initrd, append }: KernelFiles,
  offset: number,
): Promise<Uint8Array> {
  if (offset + HASH_TABLE_BYTES > 4096) {
    throw new RangeError(`kernel hashes: got offset ${offset}, want at most ${4096 - HASH_TABLE_BYTES}`);
  }
  const page = new Uint8Array(4096);
  const view = new DataView(page.buffer);
  const put = (at: number, guid: string, length: number): void => {
    page.set(guidBytes(guid), at);
    view.setUint16(at + 16, length, true);
  };
  put(offset, TABLE_GUID, TABLE_BYTES);
  const entries: readonly (readonly [string, Uint8Array])[] = [
    [CMDLINE_GUID, new TextEncoder().encode(`${append ?? ''}\0`)],
    [INITRD_GUID, initrd ?? new Uint8Array(0)],
    [KERNEL_GUID, kernel],
  ];
  for (const [index, [guid, bytes]] of entries.entries()) {
    const at = offset + HEAD_BYTES + ENTRY_BYTES * index;
    put(at, guid, ENTRY_BYTES);
    page.set(new Uint8Array(await crypto.subtle.digest('SHA-256', unshared(bytes))), at + HEAD_BYTES);
  }
  return page;
}
