/**
 * Evidence that a guest prints on its console, as the guest `attester` does: a line `SNP-REPORT <hex>`, and `SNP-CERTIFICATES <hex>` with the table that its host gave it.
 * Nothing here is verified: the console is the host's to forge, which the report's signature shows.
 */
import {
  type CertificateTableEntry,
  CertificateTableError,
  certificateName,
  decodeCertificateTable,
} from '../abi/certificate-table.ts';
import { writePem } from '../abi/pem.ts';
import { fromHex } from '../base/hex.ts';
import { requireText } from '../base/option-checks.ts';

/** A certificate or revocation list of the table. */
export interface PrintedCertificate {
  /** VCEK, VLEK, ASK, ARK, CRL, or the GUID of another one. */
  readonly kind: string;
  readonly pem: string;
}

export interface PrintedEvidence {
  readonly report?: Uint8Array;
  readonly certificates?: readonly PrintedCertificate[];
}

/** What the console's text holds; of several reports the last one. Lines that are not as they should be count for nothing. RangeError: no text. */
export function printedEvidence(console: string): PrintedEvidence {
  requireText('console', console);
  const report = lastOf(console, 'SNP-REPORT');
  const table = lastOf(console, 'SNP-CERTIFICATES');
  const entries = table === undefined ? undefined : entriesOf(table);
  return {
    ...(report === undefined ? {} : { report }),
    ...(entries === undefined ? {} : { certificates: entries.map(certificate) }),
  };
}

function lastOf(console: string, title: string): Uint8Array | undefined {
  const hex = [...console.matchAll(new RegExp(`^${title} ((?:[0-9a-f]{2})+)\\r?$`, 'gm'))].at(-1)?.[1];
  return hex === undefined ? undefined : fromHex(hex);
}

function entriesOf(table: Uint8Array): CertificateTableEntry[] | undefined {
  try {
    return decodeCertificateTable(table);
  } catch (error) {
    if (error instanceof CertificateTableError) return undefined;
    throw error;
  }
}

function certificate({ guid, bytes }: CertificateTableEntry): PrintedCertificate {
  const kind = certificateName(guid) ?? guid;
  return { kind, pem: writePem(kind === 'CRL' ? 'X509 CRL' : 'CERTIFICATE', bytes) };
}
