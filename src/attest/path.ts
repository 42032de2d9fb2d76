/**
 * Which certificates of the evidence make the chain (RFC 4158, as far as three levels need it). Others may lie beside them, in any order: the VCEK of
 * an older TCB, an ASK that was renewed, a root that the caller does not trust. Where there is a choice, the certificates count with which the fewest
 * checks fail, and of those that fail alike the first. What is chosen is judged all the same (chain.ts, verify-report.ts): a wrong choice can
 * refuse what holds, and never pass what does not.
 */
import type { CertificateKind, Product } from '../abi/amd-certificate.ts';
import { sameBytes } from './bytes.ts';
import { type Certificate, CRL_SIGN } from './certificate.ts';
import { checkAlgorithm, checkCertificate } from './chain.ts';
import { Checks } from './check.ts';
import type { GivenList } from './revocation.ts';
import type { SignatureChecks } from './signatures.ts';

export interface PathInput {
  /** No two that are the same. */
  readonly certificates: readonly Certificate[];
  /** Roots that the caller trusts; no two that are the same. */
  readonly roots: readonly Certificate[];
  readonly crls: readonly GivenList[];
  readonly at: Date;
  readonly leafKind: 'VCEK' | 'VLEK';
  /** The generation, where the report tells. */
  readonly product: Product | undefined;
  readonly signatures: SignatureChecks;
  /** How many checks fail of that VCEK or VLEK against the report. */
  leafFaults(leaf: Certificate): Promise<number>;
}

export interface Path {
  /** VCEK or VLEK. */
  readonly leaf: Certificate | undefined;
  /** ASK or ASVK. */
  readonly middle: Certificate | undefined;
  /** One of the evidence if none that is trusted signed a certificate of the evidence, or is among it. */
  readonly root: Certificate | undefined;
}

/** What of the evidence, and of the roots, belongs together. */
export async function findPath(input: PathInput): Promise<Path> {
  const { certificates, leafKind, product } = input;
  const leaves = ofKind(certificates, leafKind, [product]);
  const products = leaves.length === 0 ? [product] : leaves.map((leaf) => leaf.product);
  const middles = ofKind(certificates, leafKind === 'VCEK' ? 'ASK' : 'ASVK', products);
  const roots = await rootsOf(input, ofKind(certificates, 'ARK', products), middles);
  if (leaves.length < 2 && middles.length < 2 && roots.length < 2)
    return { leaf: leaves[0], middle: middles[0], root: roots[0] };

  const rootLinks = await links(input, roots, []);
  const middleLinks = await links(input, middles, rootLinks);
  const leaf = fewestFaults(await links(input, leaves, middleLinks));
  const middle = leaf?.issuer ?? fewestFaults(middleLinks);
  const root = middle?.issuer ?? fewestFaults(rootLinks);
  return { leaf: leaf?.certificate, middle: middle?.certificate, root: root?.certificate };
}

/** Those of the products, and where there is none of them those of others: it is said then what is wrong with them. */
function ofKind(
  certificates: readonly Certificate[],
  kind: CertificateKind,
  products: readonly (Product | undefined)[],
): Certificate[] {
  const all = certificates.filter((one) => one.kind === kind);
  const wanted = all.filter((one) => products.includes(one.product));
  return wanted.length === 0 ? all : wanted;
}

/** Trusted ones that the evidence brings or names; only if those signed nothing, and it brings none but others, the others. */
async function rootsOf(
  { roots, signatures }: PathInput,
  presented: readonly Certificate[],
  middles: readonly Certificate[],
): Promise<readonly Certificate[]> {
  const isPresented = (root: Certificate): boolean => isAmong(presented, root);
  const isIssuer = (root: Certificate, { issuer }: Certificate): boolean =>
    sameBytes(issuer.bytes, root.subject.bytes);
  const trusted = roots.filter(
    (root) => isPresented(root) || middles.some((middle) => isIssuer(root, middle)),
  );
  if (presented.length === 0 || roots.some(isPresented)) return trusted;
  for (const root of trusted)
    for (const middle of middles)
      if (isIssuer(root, middle) && (await signatures.pss(root.publicKey, middle.tbs, middle.signature)))
        return trusted;
  return presented;
}

const isAmong = (certificates: readonly Certificate[], { bytes }: Certificate): boolean =>
  certificates.some((one) => sameBytes(one.bytes, bytes));

/** A certificate and what it hangs on. */
interface Link {
  readonly certificate: Certificate;
  /** Checks that fail, of it and of what it hangs on. */
  readonly faults: number;
  /** Undefined for a root. */
  readonly issuer: Link | undefined;
  /** By who is trusted. */
  readonly isSigned: boolean;
}

const fewestFaults = (choice: readonly Link[]): Link | undefined =>
  choice.reduce<Link | undefined>((best, one) => (best && best.faults <= one.faults ? best : one), undefined);

function links(
  input: PathInput,
  certificates: readonly Certificate[],
  above: readonly Link[],
): Promise<Link[]> {
  // What nobody signed who is trusted signs nothing, but for one if there is nothing else: so a stranger's certificates, as many as there are, cost
  // one check each.
  const signed = above.filter(({ isSigned }) => isSigned);
  const best = fewestFaults(above);
  const issuers = signed.length > 0 || best === undefined ? signed : [best];
  return Promise.all(
    certificates.map(async (certificate) => {
      const own = await ownFaults(input, certificate);
      if (certificate.kind === 'ARK') {
        const isSigned = isAmong(input.roots, certificate);
        const faults = own + (isSigned ? await listFaults(input, certificate) : 1);
        return { certificate, faults, issuer: undefined, isSigned };
      }
      const { tbs, signature } = certificate;
      const isMadeBy = await Promise.all(
        issuers.map(
          async (issuer) =>
            sameBytes(certificate.issuer.bytes, issuer.certificate.subject.bytes) &&
            (await input.signatures.pss(issuer.certificate.publicKey, tbs, signature)),
        ),
      );
      const signer = fewestFaults(issuers.filter((_, index) => isMadeBy[index]));
      const issuer = signer ?? fewestFaults(issuers);
      const faults = own + (issuer?.faults ?? 0) + (signer === undefined ? 1 : 0);
      return { certificate, faults, issuer, isSigned: signer?.isSigned === true };
    }),
  );
}

async function ownFaults(input: PathInput, certificate: Certificate): Promise<number> {
  const { at, leafKind, leafFaults, crls } = input;
  const { kind = leafKind, product, issuer, serial } = certificate;
  const checks = new Checks();
  checkCertificate(checks, kind, certificate, product, at);
  checkAlgorithm(checks, kind, certificate);
  const isRevoked = crls.some(
    ({ list }) => sameBytes(list.issuer.bytes, issuer.bytes) && list.revoked.has(serial),
  );
  const faults = checks.list.filter(({ ok }) => !ok).length + (isRevoked ? 1 : 0);
  return kind === leafKind ? faults + (await leafFaults(certificate)) : faults;
}

/** Lists under the root's name that it did not sign, or may not. */
async function listFaults({ crls, signatures }: PathInput, root: Certificate): Promise<number> {
  const lists = crls.filter(({ list }) => sameBytes(list.issuer.bytes, root.subject.bytes));
  if (lists.length === 0) return 0;
  const isMade = await Promise.all(
    lists.map(({ list }) => signatures.pss(root.publicKey, list.tbs, list.signature)),
  );
  return isMade.filter((ok) => !ok).length + (root.keyUsage?.[CRL_SIGN] === true ? 0 : 1);
}
