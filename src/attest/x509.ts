/**
 * What certificates and revocation lists have in common (RFC 5280): algorithm, name, extensions. Left out: attributes and extensions that
 * AMD's do not have are kept as bytes.
 */
import { KNOWN_OIDS, OID } from '../abi/amd-certificate.ts';
import { type DerReader, TAG } from '../abi/der.ts';
import { sameBytes } from './bytes.ts';

/** Parameters of RSASSA-PSS (RFC 4055); `undefined` for another signature algorithm. */
export interface PssParameters {
  readonly hash: string;
  /** MGF1's hash, or what is there in place of MGF1. */
  readonly maskHash: string;
  readonly saltLength: number;
  readonly trailer: number;
}

export interface SignatureAlgorithm {
  readonly oid: string;
  readonly pss: PssParameters | undefined;
  /** The whole AlgorithmIdentifier. */
  readonly bytes: Uint8Array;
}

/** What an issuer signed. */
export interface Signed {
  /** What the signature covers. */
  readonly tbs: Uint8Array;
  readonly signature: Uint8Array;
  readonly signatureAlgorithm: SignatureAlgorithm;
  /** False if the two places that name the algorithm differ. */
  readonly namesOneAlgorithm: boolean;
  readonly issuer: Name;
}

/** A distinguished name. */
export interface Name {
  readonly bytes: Uint8Array;
  /** Attribute and value, in order. */
  readonly attributes: readonly (readonly [oid: string, value: string])[];
  readonly commonName: string;
  /** As openssl prints it. */
  readonly text: string;
}

/** The same attributes in the same order, however they are encoded. */
export const sameAttributes = (a: Name['attributes'], b: Name['attributes']): boolean =>
  a.length === b.length && a.every(([oid, value], index) => oid === b[index]![0] && value === b[index]![1]);

export interface Extension {
  readonly isCritical: boolean;
  readonly value: Uint8Array;
}

/** RFC 4055's defaults, SHA-1 and a salt of 20 bytes; nothing may be signed so. */
const SHA1 = '1.3.14.3.2.26';

/** An AlgorithmIdentifier with parameters absent or NULL. */
function plainAlgorithm(reader: DerReader, field: string): string {
  const algorithm = reader.inside(field);
  const oid = algorithm.oid('algorithm', KNOWN_OIDS);
  if (!algorithm.isAtEnd) algorithm.nothing('parameters');
  algorithm.end();
  return oid;
}

/** The outer form, SEQUENCE { tbs, signatureAlgorithm, signatureValue }, with nothing behind it. */
export function readSigned(
  file: DerReader,
  type: string,
  tbsField: string,
): Pick<Signed, 'signature' | 'signatureAlgorithm'> & { readonly tbs: DerReader } {
  const whole = file.inside(type);
  file.end();
  const tbs = whole.inside(tbsField);
  const signatureAlgorithm = readSignatureAlgorithm(whole.inside('signatureAlgorithm'));
  const signature = whole.bits('signatureValue');
  whole.end();
  return { tbs, signature, signatureAlgorithm };
}

/** Whether the algorithm that stands inside what is signed is `outside`, the one beside the signature. */
export const namesAlgorithm = (tbs: DerReader, outside: SignatureAlgorithm): boolean =>
  sameBytes(tbs.inside('signature').encoding, outside.bytes);

function readSignatureAlgorithm(algorithm: DerReader): SignatureAlgorithm {
  const bytes = algorithm.encoding;
  const oid = algorithm.oid('algorithm', KNOWN_OIDS);
  if (oid !== OID.RSASSA_PSS) return { oid, pss: undefined, bytes };
  const parameters = algorithm.inside('parameters');
  const hash = parameters.optional('hashAlgorithm', 0);
  const hashOid = hash === undefined ? SHA1 : plainAlgorithm(hash, 'algorithm');
  hash?.end();
  const mask = parameters.optional('maskGenAlgorithm', 1);
  let maskHash = SHA1;
  if (mask !== undefined) {
    const generator = mask.inside('algorithm');
    const generatorOid = generator.oid('algorithm', KNOWN_OIDS);
    if (generatorOid === OID.MGF1) {
      maskHash = plainAlgorithm(generator, 'parameters');
      generator.end();
    } else maskHash = generatorOid;
    mask.end();
  }
  const salt = parameters.optional('saltLength', 2);
  const saltLength = salt?.integer('value') ?? 20;
  salt?.end();
  // AMD writes this default value out in Milan's certificates, and leaves it out in Turin's.
  const trailerField = parameters.optional('trailerField', 3);
  const trailer = trailerField?.integer('value') ?? 1;
  trailerField?.end();
  parameters.end();
  algorithm.end();
  return { oid, pss: { hash: hashOid, maskHash, saltLength, trailer }, bytes };
}

export function readName(reader: DerReader, field: string): Name {
  const name = reader.inside(field);
  const attributes: (readonly [string, string])[] = [];
  while (!name.isAtEnd) {
    const set = name.inside('relativeDistinguishedName', TAG.SET);
    do {
      const attribute = set.inside('attribute');
      attributes.push([attribute.oid('type', KNOWN_OIDS), attribute.text('value')]);
      attribute.end();
    } while (!set.isAtEnd);
  }
  return {
    bytes: name.encoding,
    attributes,
    commonName: attributes.find(([oid]) => oid === OID.COMMON_NAME)?.[1] ?? '',
    text: attributesText(attributes),
  };
}

const SHORT: Readonly<Record<string, string>> = {
  [OID.COMMON_NAME]: 'CN',
  [OID.COUNTRY]: 'C',
  [OID.LOCALITY]: 'L',
  [OID.STATE]: 'ST',
  [OID.ORGANIZATION]: 'O',
  [OID.ORGANIZATIONAL_UNIT]: 'OU',
};

/** A name as openssl prints it. */
export const attributesText = (attributes: Name['attributes']): string => {
  let text = '';
  for (const [oid, value] of attributes) text += `${text === '' ? '' : ', '}${SHORT[oid] ?? oid} = ${value}`;
  return text;
};

/** The list inside [n] EXPLICIT Extensions. DerError: an extension twice. */
export function readExtensions(wrapper: DerReader): Map<string, Extension> {
  const list = wrapper.inside('list');
  wrapper.end();
  const extensions = new Map<string, Extension>();
  while (!list.isAtEnd) {
    const extension = list.inside('extension');
    const oid = extension.oid('extnID', KNOWN_OIDS);
    const isCritical = extension.nextTag === TAG.BOOLEAN && extension.boolean('critical');
    const value = extension.octets('extnValue');
    extension.end();
    if (extensions.has(oid)) list.fail(oid, 'got the extension twice, want it once');
    extensions.set(oid, { isCritical, value });
  }
  return extensions;
}
