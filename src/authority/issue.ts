/**
 * Certificates and revocation lists as AMD issues them (AMD 57230; samples of AMD's own for what that leaves open): names, serial numbers,
 * order of extensions, explicit RSASSA-PSS parameters. Each carries SoftCVM's mark (abi/amd-certificate.ts).
 */
import { createHash } from 'node:crypto';
import {
  AMD_OID,
  type CertificateKind,
  crlUrl,
  distinguishedName,
  generationOf,
  MARK_OID,
  MARK_TEXT,
  MARK_URI,
  OID,
  type Product,
  TCB_OID,
} from '../abi/amd-certificate.ts';
import {
  contextPrimitiveTag,
  contextTag,
  der,
  derBits,
  derBoolean,
  derInteger,
  derNull,
  derOctets,
  derOid,
  derSequence,
  derSet,
  derText,
  derTime,
  TAG,
} from '../abi/der.ts';
import { decodeTcb } from '../abi/tcb-version.ts';
import type { RsaSigner } from './rsa-signer.ts';

/** A certificate's first and last second. */
export interface Validity {
  readonly from: Date;
  readonly to: Date;
}

export interface Issuer {
  readonly kind: 'ARK' | 'ASK' | 'ASVK';
  readonly product: Product;
  readonly signer: RsaSigner;
}

/** Serial numbers of AMD's own; VCEK and VLEK have 0. */
const SERIALS = {
  Milan: { ARK: 0x10000, ASK: 0x10001, ASVK: 0x10101 },
  Genoa: { ARK: 0x20000, ASK: 0x20002, ASVK: 0x20101 },
  Turin: { ARK: 0x30000, ASK: 0x30001, ASVK: 0x30101 },
} as const;

export const serialOf = (kind: CertificateKind, product: Product): number =>
  kind === 'VCEK' || kind === 'VLEK' ? 0 : SERIALS[product][kind];

const sha384Algorithm = (): Uint8Array => derSequence(derOid(OID.SHA384), derNull());

/** AMD writes the default trailer out; Turin's VCEKs alone do without. */
const pssAlgorithm = (): Uint8Array =>
  derSequence(
    derOid(OID.RSASSA_PSS),
    derSequence(
      der(contextTag(0), sha384Algorithm()),
      der(contextTag(1), derSequence(derOid(OID.MGF1), sha384Algorithm())),
      der(contextTag(2), derInteger(48)),
      der(contextTag(3), derInteger(1)),
    ),
  );

function name(kind: CertificateKind, product: Product): Uint8Array {
  return derSequence(
    ...distinguishedName(kind, product).map(([oid, value]) => {
      const tag = oid === OID.COUNTRY ? TAG.PRINTABLE_STRING : TAG.UTF8_STRING;
      return derSet(derSequence(derOid(oid), derText(tag, value)));
    }),
  );
}

const extension = (oid: string, value: Uint8Array): Uint8Array => derSequence(derOid(oid), derOctets(value));
const critical = (oid: string, value: Uint8Array): Uint8Array =>
  derSequence(derOid(oid), derBoolean(true), derOctets(value));

/** SHA-1 of the public key's bits (RFC 5280, section 4.2.1.2). */
function keyId(spki: Uint8Array): Uint8Array {
  const RSA_4096_SPKI_HEAD = 24;
  return createHash('sha1').update(spki.subarray(RSA_4096_SPKI_HEAD)).digest();
}

const subjectKeyId = (spki: Uint8Array): Uint8Array => extension(OID.SUBJECT_KEY_ID, derOctets(keyId(spki)));
const authorityKeyId = (spki: Uint8Array): Uint8Array =>
  extension(OID.AUTHORITY_KEY_ID, derSequence(der(contextPrimitiveTag(0), keyId(spki))));
const mark = (): Uint8Array => extension(MARK_OID, derText(TAG.UTF8_STRING, MARK_TEXT));

/** The key id of the issuer, and the mark as the issuer's other name. RFC 5280 wants the serial number with it. */
const markedAuthorityKeyId = ({ kind, product, signer }: Issuer): Uint8Array =>
  extension(
    OID.AUTHORITY_KEY_ID,
    derSequence(
      der(contextPrimitiveTag(0), keyId(signer.spki)),
      der(contextTag(1), derText(contextPrimitiveTag(6), MARK_URI)),
      der(contextPrimitiveTag(2), derInteger(serialOf(kind, product)).subarray(2)),
    ),
  );

const distributionPoint = (endpoint: 'vcek' | 'vlek', product: Product): Uint8Array =>
  extension(
    OID.CRL_DISTRIBUTION_POINTS,
    derSequence(
      derSequence(
        der(contextTag(0), der(contextTag(0), derText(contextPrimitiveTag(6), crlUrl(endpoint, product)))),
      ),
    ),
  );

const CA = () => derSequence(derBoolean(true));
const CA_OF_LEAVES = () => derSequence(derBoolean(true), derInteger(0));
/** keyCertSign and cRLSign; keyCertSign. */
const SIGNS_ALL = () => der(TAG.BIT_STRING, Uint8Array.of(1, 0x06));
const SIGNS_CERTIFICATES = () => der(TAG.BIT_STRING, Uint8Array.of(2, 0x04));

function sign(signer: RsaSigner, tbs: Uint8Array): Uint8Array {
  return derSequence(tbs, pssAlgorithm(), derBits(signer.sign(tbs)));
}

function certificate(
  kind: CertificateKind,
  issuer: Issuer,
  spki: Uint8Array,
  { from, to }: Validity,
  extensions: readonly Uint8Array[],
): Uint8Array {
  const { product } = issuer;
  return sign(
    issuer.signer,
    derSequence(
      der(contextTag(0), derInteger(2)),
      derInteger(serialOf(kind, product)),
      pssAlgorithm(),
      name(issuer.kind, product),
      derSequence(derTime(from), derTime(to)),
      name(kind, product),
      spki,
      der(contextTag(3), derSequence(...extensions)),
    ),
  );
}

/** The root, signed by itself. DER. */
export const issueArk = (ark: Issuer, validity: Validity): Uint8Array =>
  certificate('ARK', ark, ark.signer.spki, validity, [
    critical(OID.KEY_USAGE, SIGNS_ALL()),
    subjectKeyId(ark.signer.spki),
    critical(OID.BASIC_CONSTRAINTS, CA()),
    distributionPoint('vcek', ark.product),
    mark(),
  ]);

/** ASK or ASVK, signed by the root. DER. */
export const issueIntermediate = (
  ark: Issuer,
  kind: 'ASK' | 'ASVK',
  spki: Uint8Array,
  validity: Validity,
): Uint8Array =>
  certificate(kind, ark, spki, validity, [
    subjectKeyId(spki),
    authorityKeyId(ark.signer.spki),
    critical(OID.BASIC_CONSTRAINTS, CA_OF_LEAVES()),
    critical(OID.KEY_USAGE, SIGNS_CERTIFICATES()),
    distributionPoint(kind === 'ASK' ? 'vcek' : 'vlek', ark.product),
    mark(),
  ]);

const level = (oid: string, value: number): Uint8Array => extension(oid, derInteger(value));

/** structVersion, product name and levels, in the order of AMD's own. */
function tcbExtensions(product: Product, productName: string, version: bigint): Uint8Array[] {
  const tcb = decodeTcb(generationOf(product), version);
  const head = [
    level(AMD_OID.STRUCT_VERSION, product === 'Turin' ? 1 : 0),
    extension(AMD_OID.PRODUCT_NAME, derText(TAG.IA5_STRING, productName)),
  ];
  const bootLoaderAndTee = [level(TCB_OID.bootLoader, tcb.bootLoader), level(TCB_OID.tee, tcb.tee)];
  const reserved = [AMD_OID.SPL5, AMD_OID.SPL6, AMD_OID.SPL7].map((oid) => level(oid, 0));
  const snp = level(TCB_OID.snp, tcb.snp);
  const microcode = level(TCB_OID.microcode, tcb.microcode);
  return product === 'Turin'
    ? [...head, level(TCB_OID.fmc, tcb.fmc ?? 0), ...bootLoaderAndTee, snp, ...reserved, microcode]
    : [...head, ...bootLoaderAndTee, level(AMD_OID.SPL4, 0), ...reserved, snp, microcode];
}

export interface VcekRequest {
  readonly spki: Uint8Array;
  readonly productName: string;
  /** TCB_VERSION. */
  readonly tcb: bigint;
  readonly hwid: Uint8Array;
}

/** A chip's key for one TCB, signed by the ASK. DER. */
export const issueVcek = (ask: Issuer, request: VcekRequest, validity: Validity): Uint8Array =>
  certificate('VCEK', ask, request.spki, validity, [
    ...tcbExtensions(ask.product, request.productName, request.tcb),
    extension(AMD_OID.HWID, request.hwid),
    markedAuthorityKeyId(ask),
  ]);

export interface VlekRequest {
  readonly spki: Uint8Array;
  /** TCB_VERSION. */
  readonly tcb: bigint;
  /** The cloud provider's name. */
  readonly cspId: string;
}

/** A cloud provider's key for one TCB, signed by the ASVK. DER. */
export const issueVlek = (asvk: Issuer, request: VlekRequest, validity: Validity): Uint8Array =>
  certificate('VLEK', asvk, request.spki, validity, [
    ...tcbExtensions(asvk.product, asvk.product, request.tcb),
    extension(AMD_OID.CSP_ID, derText(TAG.IA5_STRING, request.cspId)),
    markedAuthorityKeyId(asvk),
  ]);

export interface Revocation {
  readonly serial: number;
  readonly at: Date;
}

/** The root's revocation list; `validity` is this update and the next. DER. */
export function issueCrl(
  ark: Issuer,
  number: number,
  revoked: readonly Revocation[],
  validity: Validity,
): Uint8Array {
  const entries = revoked.map(({ serial, at }) => derSequence(derInteger(serial), derTime(at)));
  return sign(
    ark.signer,
    derSequence(
      derInteger(1),
      pssAlgorithm(),
      name('ARK', ark.product),
      derTime(validity.from),
      derTime(validity.to),
      ...(entries.length === 0 ? [] : [derSequence(...entries)]),
      der(
        contextTag(0),
        derSequence(authorityKeyId(ark.signer.spki), extension(OID.CRL_NUMBER, derInteger(number)), mark()),
      ),
    ),
  );
}
