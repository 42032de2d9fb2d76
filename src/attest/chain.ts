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
import type { Path } from './path.ts';
import { checkRevocation, type GivenList } from './revocation.ts';
import type { SignatureChecks } from './signatures.ts';
import { attributesText, type Signed, sameAttributes } from './x509.ts';

export interface ChainInput extends Path {
  /** All that the evidence has, for messages. */
  readonly certificates: readonly Certificate[];
  /** Roots that the caller trusts. */
  readonly roots: readonly Certificate[];
  readonly crls: readonly GivenList[];
  /** Without a list for the chain's root: fails, or is passed over. */
  readonly revocation: 'required' | 'if given';
  readonly at: Date;
  /** Which kind of key the report says. */
  readonly leafKind: 'VCEK' | 'VLEK';
  readonly signatures: SignatureChecks;
  /** The generation, where the report tells. */
  readonly product: Product | undefined;
}

const PSS = `RSASSA-PSS, SHA-384, MGF1 with SHA-384, salt 48, trailer 1`;

/** Checks the chain that was found (path.ts) up to the given roots; the outcomes of its signatures come later. */
export function checkChain(checks: Checks, input: ChainInput): void {
  const { certificates, roots, leafKind, leaf, middle, root, at } = input;
  const product = leaf?.product ?? input.product;
  const middleKind = leafKind === 'VCEK' ? 'ASK' : 'ASVK';

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
    checkAlgorithm(checks, name, signed);
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

  if (root !== undefined && roots.some(({ bytes }) => sameBytes(bytes, root.bytes))) {
    const text = `${root.subject.commonName}, serial ${root.serial}`;
    checks.add('ARK.trusted', true, text, text);
  } else checks.addOutcome('ARK.trusted', untrustedRoot(root, roots));

  for (const [certificate, issuer, kind] of [
    [root, root, 'ARK'],
    [middle, root, middleKind],
    [leaf, middle, leafKind],
  ] as const) {
    if (certificate === undefined) continue;
    checkCertificate(checks, kind, certificate, product, at);
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

/** Whether a root is as its own key signed it. */
export async function isSelfSigned(root: Certificate, signatures: SignatureChecks): Promise<boolean> {
  const { publicKey, tbs, signature } = root;
  return isAmdPss(root) && (await signatures.pss(publicKey, tbs, signature));
}

/** The algorithm of AMD's certificates and lists. */
export function checkAlgorithm(checks: Checks, name: string, signed: Signed): void {
  checks.add(`${name}.signature-algorithm`, isAmdPss(signed), describeAlgorithm(signed), PSS);
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

/** What a certificate of that kind must say by itself. */
export function checkCertificate(
  checks: Checks,
  kind: CertificateKind,
  certificate: Certificate,
  product: Product | undefined,
  at: Date,
): void {
  const isCa = kind === 'ARK' || kind === 'ASK' || kind === 'ASVK';
  checks.equal(`${kind}.version`, certificate.version, 3);
  if (product !== undefined) {
    const attributes = distinguishedName(kind, product);
    const isSame = sameAttributes(certificate.subject.attributes, attributes);
    const { text } = certificate.subject;
    checks.add(`${kind}.subject`, isSame, text, attributesText(attributes));
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
    at.toISOString(),
    `${notBefore.toISOString()} to ${notAfter.toISOString()}`,
  );
}

function describeConstraints({ isCa, pathLength }: Certificate): string {
  if (!isCa) return 'no CA';
  return pathLength === undefined ? 'CA' : `CA, path length ${pathLength}`;
}
