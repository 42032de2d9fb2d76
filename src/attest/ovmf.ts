/**
 * What a firmware image says of its launch (edk2 OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm and the GUIDed table that ends 32 bytes before
 * the image's end; QEMU hw/i386/pc_sysfw_ovmf.c): where its sections lie and where its other vCPUs start. Here as a relying party reads it; the VMM
 * has its own, and a test compares the two.
 */
import { guidAt } from '../base/guid.ts';
import { requireBytes } from '../base/option-checks.ts';
import { EvidenceError } from './evidence-error.ts';

export const FOUR_GIB = 0x1_0000_0000;

const FOOTER_GUID = '96b582de-1fb2-45f7-baea-a366c55a082d';
const SEV_METADATA_GUID = 'dc886566-984a-4798-a75e-5585a7bf67cc';
const SEV_ES_RESET_BLOCK_GUID = '00f771de-1a7e-4fcb-890e-68c77e2fb44e';
const SEV_HASH_TABLE_GUID = '7255371f-3a3b-4b04-927b-1da6efa8d454';

const TABLE_END = 32;
const ENTRY_HEAD = 18;
const METADATA_HEAD = 16;
const DESCRIPTOR_BYTES = 12;
const ASEV = 0x5645_5341;

/** Types of sections. */
export const SECTION_TYPE = { secMem: 1, secrets: 2, cpuid: 3, svsmCaa: 4, kernelHashes: 0x10 } as const;

export interface FirmwareSection {
  readonly gpa: number;
  readonly size: number;
  /** A number of SECTION_TYPE, or another. */
  readonly type: number;
}

export interface Firmware {
  readonly bytes: Uint8Array;
  /** Where it lies in the guest: it ends at 4 GiB. */
  readonly gpa: number;
  /** In the table's order. */
  readonly sections: readonly FirmwareSection[];
  /** Where vCPUs but the first start; undefined if the image does not say. */
  readonly apEip: number | undefined;
  /** Where the table of kernel hashes belongs; undefined if the image has no place for it. */
  readonly hashTableGpa: number | undefined;
}

/** RangeError: `firmware` is not what `parseFirmware` returns. */
export function requireFirmware(firmware: unknown): asserts firmware is Firmware {
  const { bytes, gpa, sections } = (firmware ?? {}) as Partial<Firmware>;
  if (!(bytes instanceof Uint8Array) || typeof gpa !== 'number' || !Array.isArray(sections))
    throw new RangeError('firmware: got something else, want what parseFirmware returns');
}

/** True if the image ends with a GUIDed table. RangeError: no bytes. */
export function isFirmware(image: Uint8Array): boolean {
  requireBytes('image', image);
  return (
    image.length >= TABLE_END + ENTRY_HEAD && guidAt(image, image.length - TABLE_END - 16) === FOOTER_GUID
  );
}

/** Reads a firmware image, which messages call `name`. Throws EvidenceError that names the field. */
export function parseFirmware(bytes: Uint8Array, name = 'firmware'): Firmware {
  requireBytes(name, bytes);
  if (bytes.length === 0 || bytes.length % 4096 !== 0 || bytes.length > FOUR_GIB / 2) {
    throw new EvidenceError(`${name}: got ${bytes.length} bytes, want a multiple of 4096 up to 2 GiB`);
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const entries = readTable(bytes, view, name);
  const number = (guid: string, field: string): number | undefined => {
    const entry = entries.get(guid);
    if (entry === undefined) return undefined;
    if (entry.size < 4)
      throw new EvidenceError(`${name}: ${field}: got ${entry.size} bytes, want at least 4`);
    return view.getUint32(entry.at, true);
  };
  const hashTable = number(SEV_HASH_TABLE_GUID, 'SEV hash table entry');
  const metadata = number(SEV_METADATA_GUID, 'SEV metadata entry');
  return {
    bytes,
    gpa: FOUR_GIB - bytes.length,
    sections: metadata === undefined ? [] : readSections(view, bytes.length - metadata, name),
    apEip: number(SEV_ES_RESET_BLOCK_GUID, 'SEV-ES reset block'),
    hashTableGpa: hashTable === 0 ? undefined : hashTable,
  };
}

/** Entries of the table, which is read from its end, the nearest to it of several; empty if there is no table. */
function readTable(
  bytes: Uint8Array,
  view: DataView,
  name: string,
): Map<string, { at: number; size: number }> {
  const entries = new Map<string, { at: number; size: number }>();
  if (!isFirmware(bytes)) return entries;
  const end = bytes.length - TABLE_END - ENTRY_HEAD;
  const total = view.getUint16(end, true);
  const first = end + ENTRY_HEAD - total;
  if (total < ENTRY_HEAD || first < 0) {
    throw new EvidenceError(
      `${name}: GUIDed table, length: got ${total}, want ${ENTRY_HEAD} to ${end + ENTRY_HEAD}`,
    );
  }
  let at = end;
  while (at - first >= ENTRY_HEAD) {
    const size = view.getUint16(at - ENTRY_HEAD, true);
    const guid = guidAt(bytes, at - 16);
    if (size < ENTRY_HEAD || size > at - first) {
      throw new EvidenceError(
        `${name}: GUIDed table, entry ${guid}, length: got ${size}, want ${ENTRY_HEAD} to ${at - first}`,
      );
    }
    if (!entries.has(guid)) entries.set(guid, { at: at - size, size: size - ENTRY_HEAD });
    at -= size;
  }
  return entries;
}

function readSections(view: DataView, at: number, name: string): FirmwareSection[] {
  const bad = (field: string, got: string | number, want: string): EvidenceError =>
    new EvidenceError(`${name}: SEV metadata, ${field}: got ${got}, want ${want}`);
  if (at < 0 || at + METADATA_HEAD > view.byteLength)
    throw bad('offset', view.byteLength - at, 'a place within the image');
  const signature = view.getUint32(at, true);
  if (signature !== ASEV) throw bad('signature', `0x${signature.toString(16)}`, '"ASEV"');
  const length = view.getUint32(at + 4, true);
  const version = view.getUint32(at + 8, true);
  if (version !== 1) throw bad('version', version, '1');
  const count = view.getUint32(at + 12, true);
  if (count * DESCRIPTOR_BYTES + METADATA_HEAD > length) {
    throw bad('length', length, `room for ${count} sections of ${DESCRIPTOR_BYTES} bytes`);
  }
  if (at + length > view.byteLength) throw bad('length', length, 'an end within the image');
  return Array.from({ length: count }, (_, index) => {
    const descriptor = at + METADATA_HEAD + DESCRIPTOR_BYTES * index;
    const section = {
      gpa: view.getUint32(descriptor, true),
      size: view.getUint32(descriptor + 4, true),
      type: view.getUint32(descriptor + 8, true),
    };
    const place = `0x${section.gpa.toString(16)} + 0x${section.size.toString(16)}`;
    if (
      section.gpa % 4096 !== 0 ||
      section.size % 4096 !== 0 ||
      section.size === 0 ||
      section.gpa + section.size > FOUR_GIB
    ) {
      throw bad(`section ${index}`, place, 'whole pages below 4 GiB');
    }
    return section;
  });
}
