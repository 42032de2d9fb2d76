/**
 * X.509 certificates of AMD's kind (RFC 5280; AMD 57230 for the extensions of VCEK and VLEK): what is in one, and nothing of whether it
 * may be believed. Extensions that AMD's certificates do not have are kept as bytes.
 */
import {
  AMD_OID,
  type CertificateKind,
  KNOWN_OIDS,
  MARK_OID,
  MARK_URI,
  OID,
  PRODUCTS,
  type Product,
} from '../abi/amd-certificate.ts';
import { contextPrimitiveTag, DerReader, TAG } from '../abi/der.ts';
import { toHex } from '../base/hex.ts';
import { requireBytes } from '../base/option-checks.ts';
import { EvidenceError } from './evidence-error.ts';
import { isPem, readPem } from './pem.ts';
import {
  type Extension,
  type Name,
  namesAlgorithm,
  readExtensions,
  readName,
  readSigned,
  type Signed,
} from './x509.ts';

export interface PublicKey {
  readonly kind: 'RSA' | 'P-384' | 'unknown';
  /** SubjectPublicKeyInfo. */
  readonly spki: Uint8Array;
  /** Bits of an RSA modulus, or of the curve. */
  readonly bits: number;
  /** RSA's public exponent. */
  readonly exponent: number;
  /** RSA's modulus, big-endian, or the uncompressed point on the curve. */
  readonly number: Uint8Array;
}

/** Extensions of VCEK and VLEK; what a certificate lacks is undefined. */
export interface AmdExtensions {
  readonly structVersion: number | undefined;
  readonly productName: string | undefined;
  /** Security patch level by OID. */
  readonly levels: ReadonlyMap<string, number>;
  readonly hwid: Uint8Array | undefined;
  readonly cspId: string | undefined;
}

export interface Certificate extends Signed {
  readonly bytes: Uint8Array;
  readonly version: number;
  /** In hex. */
  readonly serial: string;
  readonly subject: Name;
  readonly notBefore: Date;
  readonly notAfter: Date;
  readonly publicKey: PublicKey;
  readonly extensions: ReadonlyMap<string, Extension>;
  readonly isCa: boolean;
  readonly pathLength: number | undefined;
  /** Bits of KeyUsage; undefined without that extension. */
  readonly keyUsage: readonly boolean[] | undefined;
  readonly crlUrls: readonly string[];
  readonly amd: AmdExtensions;
  /** Kind and generation by the subject's and issuer's common names; undefined for other names. */
  readonly kind: CertificateKind | undefined;
  readonly product: Product | undefined;
  /** True if SoftCVM's authority marked it as its own. */
  readonly isSoftware: boolean;
}

const latin1 = new TextDecoder('latin1');

/** Bits of KeyUsage. */
export const KEY_CERT_SIGN = 5;
export const CRL_SIGN = 6;

/** What a certificate's key may do, for messages. */
export const keyUsageText = (certificate: Certificate | undefined): string =>
  certificate?.keyUsage === undefined
    ? 'no key usage'
    : `key usage bits ${certificate.keyUsage.flatMap((bit, index) => (bit ? [index] : [])).join(', ')}`;

/** Reads one certificate in DER, which messages call `name`. Throws DerError. */
export function parseCertificate(bytes: Uint8Array, name = 'certificate'): Certificate {
  requireBytes(name, bytes);
  const file = new DerReader(bytes, name);
  const { tbs, signature, signatureAlgorithm } = readSigned(file, 'Certificate', 'tbsCertificate');

  const versionField = tbs.optional('version', 0);
  const version = (versionField?.integer('value') ?? 0) + 1;
  versionField?.end();
  const serial = toHex(tbs.integerBytes('serialNumber'));
  const namesOneAlgorithm = namesAlgorithm(tbs, signatureAlgorithm);
  const issuer = readName(tbs, 'issuer');
  const validity = tbs.inside('validity');
  const notBefore = validity.time('notBefore');
  const notAfter = validity.time('notAfter');
  validity.end();
  const subject = readName(tbs, 'subject');
  const publicKey = readPublicKey(tbs);
  const wrapper = tbs.optional('extensions', 3);
  const extensions = wrapper === undefined ? new Map<string, Extension>() : readExtensions(wrapper);
  tbs.end();

  const inside = (oid: string, field: string): DerReader | undefined => {
    const extension = extensions.get(oid);
    return extension && new DerReader(extension.value, field, file);
  };
  const { isCa, pathLength } = readBasicConstraints(inside(OID.BASIC_CONSTRAINTS, 'basicConstraints'));
  const usage = inside(OID.KEY_USAGE, 'keyUsage');
  const keyUsage = usage?.flags('bits');
  usage?.end();
  return {
    bytes,
    tbs: tbs.encoding,
    signature,
    signatureAlgorithm,
    namesOneAlgorithm,
    version,
    serial,
    issuer,
    subject,
    notBefore,
    notAfter,
    publicKey,
    extensions,
    isCa,
    pathLength,
    keyUsage,
    crlUrls: readDistributionPoints(inside(OID.CRL_DISTRIBUTION_POINTS, 'crlDistributionPoints')),
    amd: readAmdExtensions(extensions, file),
    ...kindByNames(subject.commonName, issuer.commonName),
    isSoftware:
      extensions.has(MARK_OID) ||
      latin1.decode(extensions.get(OID.AUTHORITY_KEY_ID)?.value).includes(MARK_URI),
  };
}

/**
 * Certificates of a file: PEM with any number of them, or one in DER. PEM blocks of other kinds are passed over. Throws DerError or
 * EvidenceError.
 */
export function readCertificates(bytes: Uint8Array, name = 'certificates'): Certificate[] {
  requireBytes(name, bytes);
  if (!isPem(bytes)) return [parseCertificate(bytes, name)];
  const blocks = readPem(latin1.decode(bytes), name).filter(({ label }) => label === 'CERTIFICATE');
  if (blocks.length === 0)
    throw new EvidenceError(`${name}: got PEM without a CERTIFICATE, want at least one`);
  return blocks.map((block, index) => parseCertificate(block.bytes, `${name}, certificate ${index}`));
}

function readPublicKey(tbs: DerReader): PublicKey {
  const info = tbs.inside('subjectPublicKeyInfo');
  const spki = info.encoding;
  const algorithm = info.inside('algorithm');
  const oid = algorithm.oid('algorithm', KNOWN_OIDS);
  let key: PublicKey = { kind: 'unknown', spki, bits: 0, exponent: 0, number: spki.subarray(0, 0) };
  if (oid === OID.RSA_ENCRYPTION) {
    if (!algorithm.isAtEnd) algorithm.nothing('parameters');
    algorithm.end();
    const holder = new DerReader(info.bits('subjectPublicKey'), 'subjectPublicKey', info);
    const rsa = holder.inside('RSAPublicKey');
    holder.end();
    const modulus = rsa.integerBytes('modulus');
    const first = modulus[0] === 0 ? modulus.subarray(1) : modulus;
    key = {
      kind: 'RSA',
      spki,
      bits: 8 * first.length - Math.clz32(first[0] ?? 0) + 24,
      exponent: rsa.integer('publicExponent'),
      number: first,
    };
    rsa.end();
  } else {
    const curve = oid === OID.EC_PUBLIC_KEY ? algorithm.oid('namedCurve', KNOWN_OIDS) : undefined;
    if (curve === undefined && !algorithm.isAtEnd) algorithm.content('parameters', algorithm.nextTag!);
    algorithm.end();
    const isP384 = curve === OID.P384;
    const point = info.bits('subjectPublicKey');
    if (isP384) {
      if (point.length !== 97 || point[0] !== 4) {
        info.fail('subjectPublicKey', `got a point of ${point.length} bytes, want 97, uncompressed`);
      }
      key = { kind: 'P-384', spki, bits: 384, exponent: 0, number: point };
    }
  }
  info.end();
  return key;
}

function readBasicConstraints(extension: DerReader | undefined): Pick<Certificate, 'isCa' | 'pathLength'> {
  if (extension === undefined) return { isCa: false, pathLength: undefined };
  const constraints = extension.inside('BasicConstraints');
  extension.end();
  const isCa = constraints.nextTag === TAG.BOOLEAN && constraints.boolean('cA');
  const pathLength = constraints.isAtEnd ? undefined : constraints.integer('pathLenConstraint');
  constraints.end();
  return { isCa, pathLength };
}

/** URIs of full names; other forms are passed over. */
function readDistributionPoints(extension: DerReader | undefined): string[] {
  if (extension === undefined) return [];
  const urls: string[] = [];
  const points = extension.inside('CRLDistributionPoints');
  extension.end();
  while (!points.isAtEnd) {
    const fullName = points.inside('point').optional('distributionPoint', 0)?.optional('fullName', 0);
    while (fullName !== undefined && !fullName.isAtEnd) {
      const tag = fullName.nextTag!;
      const content = fullName.content('name', tag);
      if (tag === contextPrimitiveTag(6)) urls.push(latin1.decode(content));
    }
  }
  return urls;
}

const LEVELS = [
  AMD_OID.BL_SPL,
  AMD_OID.TEE_SPL,
  AMD_OID.SNP_SPL,
  AMD_OID.SPL4,
  AMD_OID.SPL5,
  AMD_OID.SPL6,
  AMD_OID.SPL7,
  AMD_OID.UCODE_SPL,
  AMD_OID.FMC_SPL,
];

function readAmdExtensions(extensions: ReadonlyMap<string, Extension>, file: DerReader): AmdExtensions {
  const read = <T>(oid: string, field: string, take: (reader: DerReader) => T): T | undefined => {
    const extension = extensions.get(oid);
    if (extension === undefined) return undefined;
    const reader = new DerReader(extension.value, field, file);
    const value = take(reader);
    reader.end();
    return value;
  };
  const levels = new Map<string, number>();
  for (const oid of LEVELS) {
    const level = read(oid, oid, (reader) => {
      const value = reader.integer('SPL');
      return value <= 255 ? value : reader.fail('SPL', `got ${value}, want 0 to 255`);
    });
    if (level !== undefined) levels.set(oid, level);
  }
  return {
    structVersion: read(AMD_OID.STRUCT_VERSION, 'structVersion', (reader) => reader.integer('value')),
    productName: read(AMD_OID.PRODUCT_NAME, 'productName', (reader) => reader.text('value')),
    levels,
    hwid: readHwid(extensions.get(AMD_OID.HWID)?.value, file),
    cspId: read(AMD_OID.CSP_ID, 'cspID', (reader) => reader.text('value')),
  };
}

/** Raw bytes, as AMD writes them; an OCTET STRING around them is accepted too, as other verifiers do. */
function readHwid(value: Uint8Array | undefined, file: DerReader): Uint8Array | undefined {
  if (value === undefined || value.length === 64 || value.length === 8) return value;
  const reader = new DerReader(value, 'hwID', file);
  const hwid = reader.octets('value');
  reader.end();
  if (hwid.length !== 64 && hwid.length !== 8) reader.fail('value', `got ${hwid.length} bytes, want 64 or 8`);
  return hwid;
}

function kindByNames(subject: string, issuer: string): Pick<Certificate, 'kind' | 'product'> {
  for (const product of PRODUCTS) {
    const vlek = issuer === `SEV-VLEK-${product}`;
    if (subject === `ARK-${product}`) return { kind: 'ARK', product };
    if (subject === `SEV-${product}`) return { kind: 'ASK', product };
    if (subject === `SEV-VLEK-${product}`) return { kind: 'ASVK', product };
    if (subject === 'SEV-VCEK' && issuer === `SEV-${product}`) return { kind: 'VCEK', product };
    if (subject === 'SEV-VLEK' && vlek) return { kind: 'VLEK', product };
  }
  return { kind: undefined, product: undefined };
}
