/**
 * The certificate table of the extended guest request (AMD 56421 GHCB, SNP extended guest request; struct cert_table): entries of
 * { GUID, offset, length }, an entry of zeros, then the certificates. GUIDs lie in the order in which they are written.
 */
import { fromHex, toHex } from '../base/hex.ts';
import { requireBytes } from '../base/option-checks.ts';

const ENTRY_BYTES = 24;
const GUID_BYTES = 16;

/** GUIDs of the table's entries. */
export const CERTIFICATE_GUID = {
  VCEK: '63da758d-e664-4564-adc5-f4b93be8accd',
  VLEK: 'a8074bc2-a25a-483e-aae6-39c045a0b8a1',
  ASK: '4ab7b379-bbac-4fe4-a02f-05aef327c782',
  ARK: 'c0b406a4-a803-4952-9743-3fb6014cd0ae',
  CRL: '92f81bc3-5811-4d3d-97ff-d19f88dc67ea',
} as const;

export interface CertificateTableEntry {
  /** In lower case, with hyphens. */
  readonly guid: string;
  readonly bytes: Uint8Array;
}

export class CertificateTableError extends Error {
  override readonly name = 'CertificateTableError';
}

/** The name that CERTIFICATE_GUID gives to `guid`. */
export const certificateName = (guid: string): keyof typeof CERTIFICATE_GUID | undefined =>
  (Object.keys(CERTIFICATE_GUID) as (keyof typeof CERTIFICATE_GUID)[]).find(
    (name) => CERTIFICATE_GUID[name] === guid,
  );

/** The table's bytes, filled up with zeros to a multiple of `multiple` bytes. */
export function encodeCertificateTable(
  entries: readonly CertificateTableEntry[],
  multiple = 4096,
): Uint8Array<ArrayBuffer> {
  const head = ENTRY_BYTES * (entries.length + 1);
  const size = entries.reduce((sum, { bytes }) => sum + bytes.length, head);
  const table = new Uint8Array(Math.ceil(size / multiple) * multiple);
  const view = new DataView(table.buffer);
  let at = head;
  for (const [index, { guid, bytes }] of entries.entries()) {
    const hex = guid.replaceAll('-', '');
    if (!/^[0-9a-f]{32}$/i.test(hex))
      throw new CertificateTableError(`entry ${index}: got GUID ${guid}, want 32 hex digits`);
    table.set(fromHex(hex), ENTRY_BYTES * index);
    view.setUint32(ENTRY_BYTES * index + GUID_BYTES, at, true);
    view.setUint32(ENTRY_BYTES * index + GUID_BYTES + 4, bytes.length, true);
    table.set(bytes, at);
    at += bytes.length;
  }
  return table;
}

/** The table's entries, as views. CertificateTableError: the table ends before its last entry, or an entry lies elsewhere. */
export function decodeCertificateTable(table: Uint8Array): CertificateTableEntry[] {
  requireBytes('certificate table', table);
  const view = new DataView(table.buffer, table.byteOffset, table.byteLength);
  const entries: { guid: string; offset: number; length: number }[] = [];
  for (let at = 0; ; at += ENTRY_BYTES) {
    if (at + ENTRY_BYTES > table.length) {
      throw new CertificateTableError(
        `certificate table: got ${table.length} bytes without an entry of zeros, want one at its end`,
      );
    }
    const entry = table.subarray(at, at + ENTRY_BYTES);
    if (entry.every((byte) => byte === 0)) break;
    const hex = toHex(entry.subarray(0, GUID_BYTES));
    entries.push({
      guid: hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5'),
      offset: view.getUint32(at + GUID_BYTES, true),
      length: view.getUint32(at + GUID_BYTES + 4, true),
    });
  }
  const head = ENTRY_BYTES * (entries.length + 1);
  return entries.map(({ guid, offset, length }, index) => {
    if (offset < head || offset + length > table.length) {
      throw new CertificateTableError(
        `certificate table, entry ${index} (${certificateName(guid) ?? guid}): got bytes ${offset} to ${offset + length}, want them within ${head} to ${table.length}`,
      );
    }
    return { guid, bytes: table.subarray(offset, offset + length) };
  });
}
