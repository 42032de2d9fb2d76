/**
 * What a firmware image tells the VMM (QEMU hw/i386/pc_sysfw_ovmf.c: pc_system_parse_ovmf_flash, pc_system_ovmf_table_find; target/i386/sev.c:
 * pc_system_parse_sev_metadata, sev_es_find_reset_vector; reference facts 8.6): a table of GUIDs that grows downwards from 32 bytes below the image's
 * end, and the SEV metadata that one entry points to. An image without a table is none of OVMF's and says nothing.
 *
 * Stricter than QEMU, which goes on without a table that makes no sense, and does not look at the metadata's version.
 */
import { PAGE_SIZE } from '../../base/address.ts';
import { guidAt, guidBytes } from '../../base/guid.ts';
import { hex } from '../error.ts';
import { imageError } from './image.ts';

const FOOTER = '96b582de-1fb2-45f7-baea-a366c55a082d';
const SEV_METADATA = 'dc886566-984a-4798-a75e-5585a7bf67cc';
const RESET_BLOCK = '00f771de-1a7e-4fcb-890e-68c77e2fb44e';
const HASH_TABLE = '7255371f-3a3b-4b04-927b-1da6efa8d454';

const GUID_BYTES = 16;
/** u16 length and GUID, behind an entry's data. */
const ENTRY_TAIL = 2 + GUID_BYTES;
const TABLE_END = 32;

const METADATA_HEAD = 16;
const DESCRIPTOR_BYTES = 12;
const ASEV = 0x5645_5341;
const METADATA_VERSION = 1;

/** OvmfSevMetadataDesc.type */
export const SEV_SECTION = { SEC_MEM: 1, SECRETS: 2, CPUID: 3, SVSM_CAA: 4, KERNEL_HASHES: 0x10 } as const;

/** A range of the guest's memory that is launched with the image. */
export interface SevSection {
  readonly gpa: number;
  /** Whole pages. */
  readonly size: number;
  /** SEV_SECTION, or one that is not known. */
  readonly type: number;
}

export interface OvmfMetadata {
  /** In the table's order; undefined where the image has none. */
  readonly sections: readonly SevSection[] | undefined;
  /** Where vCPUs but the first start when their state is encrypted; undefined where the image does not say. */
  readonly resetAddress: number | undefined;
  /** Where the kernel's hashes belong; undefined where the image has no entry for them. */
  readonly hashTable: { readonly base: number; readonly size: number } | undefined;
}

interface Entry {
  readonly at: number;
  readonly size: number;
}

/** Throws VmmError, which names the image and the field. */
export function readOvmfMetadata(bytes: Uint8Array, image: string): OvmfMetadata {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const table = readTable(bytes, view, image);
  const word = (guid: string, field: string, words: number): number[] | undefined => {
    const entry = table.get(guid);
    if (entry === undefined) return undefined;
    if (entry.size < 4 * words)
      throw imageError(image, field, `${entry.size} bytes`, `at least ${4 * words}`);
    return Array.from({ length: words }, (_, index) => view.getUint32(entry.at + 4 * index, true));
  };
  const offset = word(SEV_METADATA, 'SEV metadata entry', 1)?.[0];
  const hashTable = word(HASH_TABLE, 'SEV hash table entry', 2);
  return {
    sections: offset === undefined ? undefined : readSections(view, offset, image),
    resetAddress: word(RESET_BLOCK, 'SEV-ES reset block', 1)?.[0] ?? oldResetAddress(bytes, view, image),
    hashTable: hashTable === undefined ? undefined : { base: hashTable[0]!, size: hashTable[1]! },
  };
}

const hasGuid = (bytes: Uint8Array, at: number, guid: Uint8Array): boolean =>
  at >= 0 && guid.every((byte, index) => bytes[at + index] === byte);

/** Entries by GUID, the one nearest to the end of several. */
function readTable(bytes: Uint8Array, view: DataView, image: string): Map<string, Entry> {
  const entries = new Map<string, Entry>();
  if (bytes.length < PAGE_SIZE || !hasGuid(bytes, bytes.length - TABLE_END - GUID_BYTES, guidBytes(FOOTER)))
    return entries;
  let end = bytes.length - TABLE_END - ENTRY_TAIL;
  let left = view.getUint16(end, true) - ENTRY_TAIL;
  if (left < 0 || left > end)
    throw imageError(
      image,
      'OVMF table, length',
      `${left + ENTRY_TAIL}`,
      `${ENTRY_TAIL} to ${end + ENTRY_TAIL}`,
    );
  while (left >= ENTRY_TAIL) {
    const length = view.getUint16(end - ENTRY_TAIL, true);
    const guid = guidAt(bytes, end - GUID_BYTES);
    if (length < ENTRY_TAIL || length > left)
      throw imageError(image, `OVMF table, entry ${guid}, length`, `${length}`, `${ENTRY_TAIL} to ${left}`);
    end -= length;
    left -= length;
    if (!entries.has(guid)) entries.set(guid, { at: end, size: length - ENTRY_TAIL });
  }
  return entries;
}

/** The block alone, without a table, as images had it first. */
function oldResetAddress(bytes: Uint8Array, view: DataView, image: string): number | undefined {
  const end = bytes.length - TABLE_END;
  if (!hasGuid(bytes, end - GUID_BYTES, guidBytes(RESET_BLOCK))) return undefined;
  const length = view.getUint16(end - ENTRY_TAIL, true);
  if (length < ENTRY_TAIL + 4 || length > end)
    throw imageError(image, 'SEV-ES reset block, length', `${length}`, `${ENTRY_TAIL + 4} to ${end}`);
  return view.getUint32(end - length, true);
}

function readSections(view: DataView, offset: number, image: string): SevSection[] {
  const at = view.byteLength - offset;
  const bad = (field: string, got: string, want: string): Error =>
    imageError(image, `SEV metadata, ${field}`, got, want);
  if (at < 0 || offset < METADATA_HEAD) throw bad('offset', hex(offset), 'a place within the image');
  const signature = view.getUint32(at, true);
  if (signature !== ASEV) throw bad('signature', hex(signature), '"ASEV"');
  const length = view.getUint32(at + 4, true);
  if (length < METADATA_HEAD || length > offset)
    throw bad('length', `${length}`, `${METADATA_HEAD} to ${offset}`);
  const version = view.getUint32(at + 8, true);
  if (version !== METADATA_VERSION) throw bad('version', `${version}`, `${METADATA_VERSION}`);
  const count = view.getUint32(at + 12, true);
  if (count > (length - METADATA_HEAD) / DESCRIPTOR_BYTES)
    throw bad('count', `${count}`, `at most what a length of ${length} holds`);
  return Array.from({ length: count }, (_, index) => {
    const [gpa, size, type] = [0, 4, 8].map((field) =>
      view.getUint32(at + METADATA_HEAD + DESCRIPTOR_BYTES * index + field, true),
    ) as [number, number, number];
    if (gpa % PAGE_SIZE !== 0) throw bad(`section ${index}, base`, hex(gpa), `a multiple of ${PAGE_SIZE}`);
    if (size === 0 || size % PAGE_SIZE !== 0)
      throw bad(`section ${index}, length`, hex(size), `whole pages of ${PAGE_SIZE} bytes, at least one`);
    return { gpa, size, type };
  });
}
