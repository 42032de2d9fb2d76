/**
 * What revocation lists say of a chain (RFC 5280, section 6.3), in whatever order they come: the evidence may bring an old one, a key distribution
 * server the new one. A serial number that any list of the root's has is revoked, also if that list is stale: AMD takes nothing back. The
 * newest list that had been issued at the time must still be current; others may be stale. A list under the root's name that the root did
 * not sign fails, so that what else it says cannot matter. Only what the root signed can be in its lists: neither VCEK nor VLEK.
 */
import { distinguishedName, PRODUCTS } from '../abi/amd-certificate.ts';
import { sameBytes } from './bytes.ts';
import { type Certificate, CRL_SIGN, keyUsageText } from './certificate.ts';
import type { Checks } from './check.ts';
import type { RevocationList } from './crl.ts';
import { type Signed, sameAttributes } from './x509.ts';

/** A list, and what messages call it. */
export interface GivenList {
  readonly name: string;
  readonly list: RevocationList;
}

export interface RevocationInput {
  readonly lists: readonly GivenList[];
  readonly root: Certificate;
  /** ASK or ASVK. */
  readonly middle: Certificate | undefined;
  readonly at: Date;
  /** Without a list of the root's: fails, or is passed over. */
  readonly revocation: 'required' | 'if given';
  /** Checks a signature. */
  verified(name: string, issuer: Certificate, signed: Signed): void;
}

/** Checks root and intermediate against all lists of the root's, and those lists. */
export function checkRevocation(checks: Checks, input: RevocationInput): void {
  const { root, middle, at } = input;
  const own: GivenList[] = [];
  for (const given of input.lists) {
    const { issuer } = given.list;
    if (sameBytes(issuer.bytes, root.subject.bytes)) own.push(given);
    else if (!isOfAnotherProduct(given.list, root))
      checks.add(`${given.name}.issuer`, false, issuer.text, root.subject.text);
  }
  if (own.length === 0) {
    const want = `one of ${root.subject.commonName}`;
    if (input.revocation === 'required') checks.add('CRL.present', false, 'no CRL', want);
    return;
  }
  checkValidity(
    checks,
    own.map(({ list }) => list),
    at,
  );
  for (const certificate of [root, middle]) {
    if (certificate === undefined) continue;
    const { serial } = certificate;
    const revoked = own.map(({ list }) => list.revoked.get(serial)).find((date) => date !== undefined);
    const got = revoked === undefined ? 'not revoked' : `revoked on ${revoked.toISOString()}`;
    const want = `serial ${serial} not in the list`;
    checks.add(`${certificate.kind}.revocation`, revoked === undefined, got, want);
  }
  const maySign = root.keyUsage?.[CRL_SIGN] === true;
  checks.add('CRL.signer', maySign, keyUsageText(root), 'an ARK that may sign CRLs');
  for (const { name, list } of own) input.verified(name, root, list);
}

/** Whoever has the lists of all generations in one place may give them all. */
const isOfAnotherProduct = ({ issuer }: RevocationList, root: Certificate): boolean =>
  PRODUCTS.some(
    (product) =>
      product !== root.product && sameAttributes(issuer.attributes, distinguishedName('ARK', product)),
  );

function checkValidity(checks: Checks, lists: readonly RevocationList[], at: Date): void {
  const issued = lists.filter(({ thisUpdate }) => thisUpdate <= at);
  const newest = (issued.length === 0 ? lists : issued).reduce((a, b) => (isNewer(b, a) ? b : a));
  const { thisUpdate, nextUpdate } = newest;
  const isCurrent = at >= thisUpdate && (nextUpdate === undefined || at <= nextUpdate);
  const until = nextUpdate === undefined ? '' : ` to ${nextUpdate.toISOString()}`;
  checks.add('CRL.validity', isCurrent, at.toISOString(), `${thisUpdate.toISOString()}${until}`);
}

/** By date, of one second by number. */
function isNewer(a: RevocationList, b: RevocationList): boolean {
  const later = a.thisUpdate.getTime() - b.thisUpdate.getTime();
  return later > 0 || (later === 0 && numberOf(a) > numberOf(b));
}

const numberOf = ({ number }: RevocationList): bigint => BigInt(`0x${number ?? '0'}`);
