/**
 * The chain from a root that the caller gave to the key that signed a report (AMD 57230; RFC 5280, section 6, as far as these chains go):
 * ARK, ASK or ASVK, VCEK or VLEK. There is no root but those given. Every check is made, also behind one that failed, so that a verdict names
 * all that is wrong. Left out: name constraints and certificate policies, which AMD's certificates do not have: an unknown critical extension
 * fails.
 */
import {
  type CertificateKind,
  distinguishedName,
  MARK_OID,
  OID,
  type Product,
} from '../abi/amd-certificate.ts';
import { fingerprint, sameBytes } from './bytes.ts';
import { type Certificate, KEY_CERT_SIGN, keyUsageText } from './certificate.ts';
import type { Checks, Outcome } from './check.ts';
import { checkRevocation, type GivenList } from './revocation.ts';
import type { SignatureChecks } from './signatures.ts';
import { attributesText, type Signed, sameAttributes } from './x509.ts';

export interface ChainInput {
  /** The chain's certificates, in any order, and others. */
  readonly certificates: readonly Certificate[];
  /** Roots that the caller trusts. */
  readonly roots: readonly Certificate[];
  readonly crls: readonly GivenList[];
  /** Without a list for the chain's root: fails, or is passed over. */
  readonly revocation: 'required' | 'if given';
  readonly at: Date;
  /** Which kind of key the report says. */
  readonly leafKind: 'VCEK' | 'VLEK';
  /** The certificate of that key. */
  readonly leaf: Certificate | undefined;
  readonly signatures: SignatureChecks;
  /** The generation, where the report tells. */
  readonly product: Product | undefined;
}

/** The certificate of that kind, of `product` where there is one. */
export const findCertificate = (
  certificates: readonly Certificate[],
  kind: CertificateKind,
  product: Product | undefined,
): Certificate | undefined =>
  certificates.find((one) => one.kind === kind && one.product === product) ??
  certificates.find((one) => one.kind === kind);

const PSS = `RSASSA-PSS, SHA-384, MGF1 with SHA-384, salt 48, trailer 1`;

/** Checks the chain up to the given roots; the outcomes of its signatures come later. */
export function checkChain(checks: Checks, input: ChainInput): void {
  const { certificates, roots, leafKind, leaf, at } = input;
  const product = leaf?.product ?? input.product;
  const now = at.toISOString();
  const ofKind = (kind: CertificateKind): Certificate | undefined =>
    findCertificate(certificates, kind, product);
  const middleKind = leafKind === 'VCEK' ? 'ASK' : 'ASVK';
  const middle = ofKind(middleKind);
  const presented = ofKind('ARK');
  // Where the evidence brings no ARK, or another than the one given, the given one judges it.
  const trusted =
    roots.find((root) => presented !== undefined && sameBytes(root.bytes, presented.bytes)) ??
    roots.find((root) => middle !== undefined && sameBytes(root.subject.bytes, middle.issuer.bytes));
  const root = presented ?? trusted;

  const present = (kind: string, certificate: Certificate | undefined): void => {
    const got = certificate === undefined ? listed(certificates) : certificate.subject.text;
    checks.add(
      `${kind}.present`,
      certificate !== undefined,
      got,
      product === undefined ? kind : `${kind} of ${product}`,
    );
  };
  present(leafKind, leaf);
  present(middleKind, middle);

  const verified = (name: string, issuer: Certificate | undefined, signed: Signed): void => {
    checks.add(`${name}.signature-algorithm`, isAmdPss(signed), describeAlgorithm(signed), PSS);
    if (issuer === undefined) {
      checks.add(`${name}.signature`, false, 'no issuer', `a certificate of ${signed.issuer.text}`);
      return;
    }
    const want = `made by ${issuer.subject.commonName}, serial ${issuer.serial}`;
    checks.addOutcome(
      `${name}.signature`,
      input.signatures
        .pss(issuer.publicKey, signed.tbs, signed.signature)
        .then((ok) => ({ ok, got: ok ? want : 'wrong', want })),
    );
  };

  if (trusted !== undefined && root !== undefined && sameBytes(trusted.bytes, root.bytes)) {
    const text = `${root.subject.commonName}, serial ${root.serial}`;
    checks.add('ARK.trusted', true, text, text);
  } else checks.addOutcome('ARK.trusted', untrustedRoot(root, roots));

  for (const [certificate, issuer, kind] of [
    [root, root, 'ARK'],
    [middle, root, middleKind],
    [leaf, middle, leafKind],
  ] as const) {
    if (certificate === undefined) continue;
    checkCertificate(checks, kind, certificate, product, at, now);
    if (issuer !== undefined) {
      const isIssuer = sameBytes(certificate.issuer.bytes, issuer.subject.bytes);
      checks.add(`${kind}.issuer`, isIssuer, certificate.issuer.text, issuer.subject.text);
    }
    verified(kind, issuer, certificate);
  }
  if (root !== undefined) {
    checkRevocation(checks, { lists: input.crls, root, middle, at, revocation: input.revocation, verified });
  }
}

/** By fingerprint: the names are all the same. */
async function untrustedRoot(root: Certificate | undefined, roots: readonly Certificate[]): Promise<Outcome> {
  const wanted = await Promise.all(roots.map(({ bytes }) => fingerprint(bytes)));
  return {
    ok: false,
    got: root === undefined ? 'no ARK' : await fingerprint(root.bytes),
    want: wanted.length === 0 ? 'a root: none was given' : wanted.join(' or '),
  };
}

const listed = (certificates: readonly Certificate[]): string =>
  certificates.length === 0
    ? 'no certificate'
    : certificates.map(({ subject }) => subject.commonName).join(', ');

const isAmdPss = ({ signatureAlgorithm: { pss }, namesOneAlgorithm }: Signed): boolean =>
  namesOneAlgorithm &&
  pss?.hash === OID.SHA384 &&
  pss.maskHash === OID.SHA384 &&
  pss.saltLength === 48 &&
  pss.trailer === 1;

function describeAlgorithm(signed: Signed): string {
  const { pss, oid } = signed.signatureAlgorithm;
  if (!signed.namesOneAlgorithm) return 'two algorithms that differ';
  if (pss === undefined) return oid;
  const hash = (one: string): string => (one === OID.SHA384 ? 'SHA-384' : one);
  return `RSASSA-PSS, ${hash(pss.hash)}, MGF1 with ${hash(pss.maskHash)}, salt ${pss.saltLength}, trailer ${pss.trailer}`;
}

/** Extensions that are understood, so may be critical. */
const UNDERSTOOD: readonly string[] = [
  OID.SUBJECT_KEY_ID,
  OID.AUTHORITY_KEY_ID,
  OID.BASIC_CONSTRAINTS,
  OID.KEY_USAGE,
  OID.CRL_DISTRIBUTION_POINTS,
  MARK_OID,
];

function checkCertificate(
  checks: Checks,
  kind: CertificateKind,
  certificate: Certificate,
  product: Product | undefined,
  at: Date,
  now: string,
): void {
  const isCa = kind === 'ARK' || kind === 'ASK' || kind === 'ASVK';
  checks.equal(`${kind}.version`, certificate.version, 3);
  if (product !== undefined) {
    const attributes = distinguishedName(kind, product);
    const isSame = sameAttributes(certificate.subject.attributes, attributes);
    const { text } = certificate.subject;
    checks.add(`${kind}.subject`, isSame, text, isSame ? text : attributesText(attributes));
  }
  const { publicKey } = certificate;
  const key =
    publicKey.kind === 'RSA' ? `RSA ${publicKey.bits}, exponent ${publicKey.exponent}` : publicKey.kind;
  checks.equal(`${kind}.public-key`, key, isCa ? 'RSA 4096, exponent 65537' : 'P-384');
  const mayBe =
    kind === 'ARK'
      ? certificate.isCa
      : isCa
        ? certificate.isCa && certificate.pathLength === 0
        : !certificate.isCa;
  const wantConstraints = kind === 'ARK' ? 'CA' : isCa ? 'CA, path length 0' : 'no CA';
  checks.add(`${kind}.basic-constraints`, mayBe, describeConstraints(certificate), wantConstraints);
  if (isCa) {
    const signs = certificate.keyUsage?.[KEY_CERT_SIGN] === true;
    checks.add(`${kind}.key-usage`, signs, keyUsageText(certificate), 'certificate signing, bit 5');
  }
  const unknown = [...certificate.extensions].find(
    ([oid, { isCritical }]) => isCritical && !UNDERSTOOD.includes(oid),
  );
  if (unknown !== undefined) {
    checks.add(`${kind}.critical-extensions`, false, unknown[0], 'none that is unknown');
  }
  const { notBefore, notAfter } = certificate;
  checks.add(
    `${kind}.validity`,
    at >= notBefore && at <= notAfter,
    now,
    `${notBefore.toISOString()} to ${notAfter.toISOString()}`,
  );
}

function describeConstraints({ isCa, pathLength }: Certificate): string {
  if (!isCa) return 'no CA';
  return pathLength === undefined ? 'CA' : `CA, path length ${pathLength}`;
}
