/**
 * Reads the files of the state directory (state-directory.ts), strictly: whoever damaged one is told where, and nothing is made from it. What is
 * called `path` is for messages. All throw StateError.
 */
import { createPrivateKey, createPublicKey, type KeyObject, X509Certificate } from 'node:crypto';
import { generationOf, hwidBytes, PRODUCTS, type Product } from '../abi/amd-certificate.ts';
import { compareTcb, hasReservedTcbBytes } from '../abi/tcb-version.ts';
import type { ChipGeneration, Fuses } from '../hardware/chip.ts';
import type { Revocation } from './issue.ts';
import { StateError } from './state-error.ts';

const GENERATIONS = PRODUCTS.map(generationOf).join('|');
const ROOTS = `(${PRODUCTS.join('|')})-(ARK|ASK|ASVK)`;

/** Names that files have, by folder; the first is the top. */
export const STATE_NAMES = [
  {
    folder: '',
    names: /^(roots|certificates|chips|secret|revoked\.json)$/,
    want: 'roots, certificates, chips, secret or revoked.json',
  },
  { folder: 'roots', names: new RegExp(`^${ROOTS}\\.pem$`), want: 'a name such as Milan-ARK.pem' },
  { folder: 'certificates', names: new RegExp(`^${ROOTS}\\.der$`), want: 'a name such as Milan-ARK.der' },
  {
    folder: 'chips',
    names: new RegExp(`^(${GENERATIONS})-[0-9a-f]+\\.json$`),
    want: 'a name such as milan-HWID.json',
  },
] as const;

/** RSA of 4096 bits with exponent 65537, PKCS #8 in PEM. */
export function readRootKey(bytes: Uint8Array, path: string): KeyObject {
  let key: KeyObject;
  try {
    key = createPrivateKey(Buffer.from(bytes));
  } catch {
    throw new StateError(path, 'private key', `${bytes.length} bytes that are none`, 'one, PKCS #8 in PEM');
  }
  const { modulusLength, publicExponent } = key.asymmetricKeyDetails ?? {};
  if (key.asymmetricKeyType !== 'rsa' || modulusLength !== 4096 || publicExponent !== 65537n) {
    const got = `${key.asymmetricKeyType} of ${modulusLength} bits, exponent ${publicExponent}`;
    throw new StateError(path, 'private key', got, 'rsa of 4096 bits, exponent 65537');
  }
  return key;
}

/** SubjectPublicKeyInfo, DER, of whom a certificate is for and of whom signed it. */
export interface CertificateKeys {
  readonly subject: Uint8Array;
  readonly issuer: Uint8Array;
}

/** A certificate in DER that the issuer signed for that key: who else has signed one than the authority? */
export function readCertificate(
  bytes: Uint8Array,
  path: string,
  { subject, issuer }: CertificateKeys,
): Uint8Array {
  let certificate: X509Certificate | undefined;
  try {
    certificate = new X509Certificate(bytes);
  } catch {}
  if (certificate === undefined || Buffer.compare(certificate.raw, bytes) !== 0)
    throw new StateError(path, 'certificate', `${bytes.length} bytes that are none`, 'one in DER');
  if (Buffer.compare(certificate.publicKey.export({ format: 'der', type: 'spki' }), subject) !== 0)
    throw new StateError(path, 'public key', 'another', 'the one of the private key in roots');
  const signer = createPublicKey({ key: Buffer.from(issuer), format: 'der', type: 'spki' });
  if (!certificate.verify(signer))
    throw new StateError(path, 'signature', 'a wrong one', "one by the ARK's private key in roots");
  return bytes;
}

const SECRET_BYTES = 48;

/** What VLEKs follow from. */
export function readSecret(bytes: Uint8Array, path: string): Uint8Array {
  if (bytes.length !== SECRET_BYTES)
    throw new StateError(path, '', `${bytes.length} bytes`, `${SECRET_BYTES}`);
  return bytes;
}

/** A chip in the state directory. Bytes in hex, versions as TCB_VERSION in hex. */
export interface ChipRecord {
  readonly generation: ChipGeneration;
  readonly secret: string;
  readonly id: string;
  readonly current: string;
  readonly committed: string;
  readonly reported: string;
}

export interface StoredChip {
  readonly generation: ChipGeneration;
  readonly fuses: Fuses;
  readonly current: bigint;
  readonly committed: bigint;
  readonly reported: bigint;
}

const CHIP_FIELDS = [
  'generation',
  'secret',
  'id',
  'current',
  'committed',
  'reported',
] as const satisfies (keyof ChipRecord)[];

/** Where a chip is kept. */
export const chipFile = (generation: ChipGeneration, id: Uint8Array): string =>
  `chips/${generation}-${Buffer.from(id).toString('hex')}.json`;

/** The record of the chip whose file is called `path`. */
export function readChip(bytes: Uint8Array, path: string): StoredChip {
  const record = objectOf(jsonOf(bytes, path), path, 'file');
  refuseOthers(record, CHIP_FIELDS, path, '');
  const bad = (field: keyof ChipRecord, want: string): StateError =>
    new StateError(path, field, textOf(record[field]), want);
  const { generation: name } = record;
  const product = PRODUCTS.find((one) => generationOf(one) === name);
  if (product === undefined) throw bad('generation', 'milan, genoa or turin');
  const generation = generationOf(product);
  const fuse = (field: 'secret' | 'id', length: number): Uint8Array => {
    const value = record[field];
    if (typeof value !== 'string' || !new RegExp(`^[0-9a-f]{${2 * length}}$`).test(value))
      throw bad(field, `${length} bytes in hex`);
    return Buffer.from(value, 'hex');
  };
  const fuses = { secret: fuse('secret', 48), id: fuse('id', hwidBytes(product)) };
  if (!path.endsWith(`/${chipFile(generation, fuses.id)}`)) throw bad('id', "that of the file's name");
  const version = (field: 'current' | 'committed' | 'reported'): bigint => {
    const value = record[field];
    if (typeof value !== 'string' || !/^0x[0-9a-f]{1,16}$/.test(value))
      throw bad(field, 'a TCB_VERSION in hex');
    if (hasReservedTcbBytes(generation, BigInt(value))) throw bad(field, 'reserved bytes that are zero');
    return BigInt(value);
  };
  const [current, committed, reported] = [version('current'), version('committed'), version('reported')];
  if (compareTcb(generation, committed, current) > 0) throw bad('committed', 'at most what is current');
  if (compareTcb(generation, reported, committed) > 0) throw bad('reported', 'at most what is committed');
  return { generation, fuses, current, committed, reported };
}

/** `{"Milan": [{"serial": 65537, "at": "2026-11-21T08:00:00.000Z"}]}`: serial numbers in decimal. */
export function readRevocations(bytes: Uint8Array, path: string): Map<Product, Revocation[]> {
  const revocations = new Map<Product, Revocation[]>();
  for (const [name, list] of Object.entries(objectOf(jsonOf(bytes, path), path, 'file'))) {
    const product = PRODUCTS.find((one) => one === name);
    if (product === undefined) throw new StateError(path, 'generation', name, PRODUCTS.join(', '));
    if (!Array.isArray(list)) throw new StateError(path, name, textOf(list), 'an array');
    revocations.set(
      product,
      list.map((entry, index) => readRevocation(entry, path, `${name}[${index}]`)),
    );
  }
  return revocations;
}

function readRevocation(entry: unknown, path: string, place: string): Revocation {
  const fields = objectOf(entry, path, place);
  refuseOthers(fields, ['serial', 'at'], path, `${place}.`);
  const { serial, at } = fields;
  if (typeof serial !== 'number' || !Number.isSafeInteger(serial) || serial < 0)
    throw new StateError(path, `${place}.serial`, textOf(serial), 'a serial number, such as 65537');
  const date = new Date(typeof at === 'string' ? at : Number.NaN);
  if (Number.isNaN(date.getTime()) || date.toISOString() !== at)
    throw new StateError(path, `${place}.at`, textOf(at), 'a time such as "2026-11-21T08:00:00.000Z"');
  return { serial, at: date };
}

const LONGEST = 40;
const textOf = (value: unknown): string => {
  const text = JSON.stringify(value) ?? 'nothing';
  return text.length <= LONGEST ? text : `${text.slice(0, LONGEST)}...`;
};

function jsonOf(bytes: Uint8Array, path: string): unknown {
  const text = Buffer.from(bytes).toString();
  try {
    return JSON.parse(text);
  } catch {
    throw new StateError(path, 'file', textOf(text), 'JSON');
  }
}

/** What nobody reads would be believed to count. */
function refuseOthers(
  object: Record<string, unknown>,
  fields: readonly string[],
  path: string,
  place: string,
): void {
  const other = Object.keys(object).find((field) => !fields.includes(field));
  if (other !== undefined)
    throw new StateError(
      path,
      `${place}${other}`,
      textOf(object[other]),
      `no field but ${fields.join(', ')}`,
    );
}

function objectOf(value: unknown, path: string, field: string): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new StateError(path, field, textOf(value), 'an object');
  return value as Record<string, unknown>;
}
