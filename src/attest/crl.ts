/** Certificate revocation lists (RFC 5280, section 5) as AMD's key distribution server has them: signed by the ARK, with serial numbers. */
import { OID } from '../abi/amd-certificate.ts';
import { DerReader, TAG } from '../abi/der.ts';
import { toHex } from '../base/hex.ts';
import { requireBytes } from '../base/option-checks.ts';
import { EvidenceError } from './evidence-error.ts';
import { isPem, readPem } from './pem.ts';
import { type Extension, namesAlgorithm, readExtensions, readName, readSigned, type Signed } from './x509.ts';

export interface RevocationList extends Signed {
  readonly bytes: Uint8Array;
  readonly thisUpdate: Date;
  /** Undefined where the list does not say when the next one comes. */
  readonly nextUpdate: Date | undefined;
  /** Serial numbers in hex, and when each was revoked. */
  readonly revoked: ReadonlyMap<string, Date>;
  /** In hex. */
  readonly number: string | undefined;
}

/** Reads a list in DER or PEM, which messages call `name`. Throws DerError or EvidenceError. */
export function parseCrl(input: Uint8Array, name = 'CRL'): RevocationList {
  requireBytes(name, input);
  const bytes = isPem(input) ? fromPem(input, name) : input;
  const file = new DerReader(bytes, name);
  const { tbs, signature, signatureAlgorithm } = readSigned(file, 'CertificateList', 'tbsCertList');

  if (tbs.nextTag === TAG.INTEGER) {
    const version = tbs.integer('version');
    if (version !== 1) tbs.fail('version', `got ${version}, want 1 (v2)`);
  }
  const namesOneAlgorithm = namesAlgorithm(tbs, signatureAlgorithm);
  const issuer = readName(tbs, 'issuer');
  const thisUpdate = tbs.time('thisUpdate');
  const hasNext = tbs.nextTag === TAG.UTC_TIME || tbs.nextTag === TAG.GENERALIZED_TIME;
  const nextUpdate = hasNext ? tbs.time('nextUpdate') : undefined;
  const revoked = new Map<string, Date>();
  if (tbs.nextTag === TAG.SEQUENCE) {
    const list = tbs.inside('revokedCertificates');
    while (!list.isAtEnd) {
      const entry = list.inside('entry');
      revoked.set(toHex(entry.integerBytes('userCertificate')), entry.time('revocationDate'));
      if (!entry.isAtEnd) entry.inside('crlEntryExtensions');
      entry.end();
    }
  }
  const wrapper = tbs.optional('crlExtensions', 0);
  const extensions = wrapper === undefined ? new Map<string, Extension>() : readExtensions(wrapper);
  tbs.end();
  const number = extensions.get(OID.CRL_NUMBER);
  return {
    bytes,
    tbs: tbs.encoding,
    signature,
    signatureAlgorithm,
    namesOneAlgorithm,
    issuer,
    thisUpdate,
    nextUpdate,
    revoked,
    number: number && toHex(new DerReader(number.value, 'crlNumber', file).integerBytes('value')),
  };
}

function fromPem(input: Uint8Array, name: string): Uint8Array {
  const blocks = readPem(new TextDecoder('latin1').decode(input), name);
  const list = blocks.find(({ label }) => label === 'X509 CRL' || label === 'CRL');
  if (list === undefined) throw new EvidenceError(`${name}: got PEM without an X509 CRL, want one`);
  return list.bytes;
}
