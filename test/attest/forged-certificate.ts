/** Certificates and revocation lists that are wrong in exactly one way, and signed by the key that should have. */
import type { Product } from '../../src/abi/amd-certificate.ts';
import { DerReader, derBits, derSequence } from '../../src/abi/der.ts';
import { parseCertificate, parseCrl } from '../../src/attest/index.ts';
import { SeededKeeper } from '../../src/authority/keeper.ts';
import { RsaSigner } from '../../src/authority/rsa-signer.ts';

/** The key of a root or intermediate of a seeded authority. */
export const signerOf = async (product: Product, kind: 'ARK' | 'ASK' | 'ASVK'): Promise<RsaSigner> =>
  new RsaSigner(await new SeededKeeper(7).rootKey(product, kind), 'repeatable');

/** Hex that stands once where it is looked for, and hex as long in its place. */
export interface Change {
  readonly from: string;
  readonly to: string;
  /** In the algorithm beside the signature, in what is signed, or in both. Default: what is signed. */
  readonly where?: 'outside' | 'both';
}

function replaced(bytes: Uint8Array, { from, to }: Change): Uint8Array {
  const parts = Buffer.from(bytes).toString('hex').split(from);
  if (parts.length !== 2 || from.length !== to.length)
    throw new Error(`got ${parts.length - 1} of ${from}, want one, replaced by as many digits: ${to}`);
  return Buffer.from(parts.join(to), 'hex');
}

/** `der`, a certificate or a list, with changes, signed anew by `signer`. */
export function forged(
  der: Uint8Array,
  signer: RsaSigner,
  changes: readonly Change[],
  form: 'certificate' | 'list' = 'certificate',
): Uint8Array {
  const parsed = form === 'certificate' ? parseCertificate(der) : parseCrl(der);
  let { tbs } = parsed;
  let algorithm = parsed.signatureAlgorithm.bytes;
  for (const change of changes) {
    if (change.where !== 'outside') tbs = replaced(tbs, change);
    if (change.where !== undefined) algorithm = replaced(algorithm, change);
  }
  return derSequence(tbs, algorithm, derBits(signer.sign(tbs)));
}

/** `der`, a certificate or a list, without the element at `index` of what is signed, signed anew by `signer`. */
export function without(
  der: Uint8Array,
  signer: RsaSigner,
  index: number,
  form: 'certificate' | 'list' = 'certificate',
): Uint8Array {
  const parsed = form === 'certificate' ? parseCertificate(der) : parseCrl(der);
  const inside = new DerReader(parsed.tbs, 'tbs').inside('inside');
  const elements: Uint8Array[] = [];
  while (!inside.isAtEnd) elements.push(inside.inside('element', inside.nextTag!).encoding);
  const tbs = derSequence(...elements.toSpliced(index, 1));
  return derSequence(tbs, parsed.signatureAlgorithm.bytes, derBits(signer.sign(tbs)));
}
