/** PEM (RFC 7468) as AMD's key distribution server sends it: several blocks in a file, text between them ignored. */
import { EvidenceError } from './evidence-error.ts';

export interface PemBlock {
  /** What stands after BEGIN: CERTIFICATE, X509 CRL. */
  readonly label: string;
  readonly bytes: Uint8Array;
}

const DER_SEQUENCE = 0x30;
const BLOCK = /-----BEGIN ([A-Z0-9 ]+)-----([^-]*)-----END ([A-Z0-9 ]+)-----/g;

/** True if the bytes hold a PEM block. */
export const isPem = (bytes: Uint8Array): boolean =>
  bytes[0] !== DER_SEQUENCE && new TextDecoder('latin1').decode(bytes).includes('-----BEGIN ');

/** The blocks of `text`, which messages call `name`. Throws EvidenceError. */
export function readPem(text: string, name: string): PemBlock[] {
  const blocks = [...text.matchAll(BLOCK)].map(([, label, body, end], index) => {
    if (label !== end) {
      throw new EvidenceError(`${name}, block ${index}: got END ${end}, want END ${label}`);
    }
    const base64 = body!.replace(/\s+/g, '');
    if (!/^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/.test(base64)) {
      throw new EvidenceError(`${name}, block ${index} (${label}): got something else, want base64`);
    }
    return { label: label!, bytes: Uint8Array.from(atob(base64), (char) => char.charCodeAt(0)) };
  });
  const begun = text.match(/-----BEGIN /g)?.length ?? 0;
  if (begun !== blocks.length) {
    throw new EvidenceError(
      `${name}: got ${begun} BEGIN lines and ${blocks.length} whole blocks, want as many (truncated)`,
    );
  }
  return blocks;
}
