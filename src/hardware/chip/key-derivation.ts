/**
 * Keys that a chip derives from its fuses: hash sticks, the counter-mode KDF of NIST SP 800-108, and private keys of P-384 out of seeds (SP 800-56A, 5.6.1.2.1:
 * extra random bits). AMD says in its firmware source that VCEKs hang on hash sticks, and which KDF it uses; what it puts into the fuses and the labels of the
 * sticks nobody knows, so those are ours.
 */
import { createHash, createHmac } from 'node:crypto';

export const SEED_SIZE = 48;
/** The order of P-384's group (SEC 2, secp384r1). */
export const P384_ORDER =
  0xffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973n;

const sha384 = (...parts: readonly Uint8Array[]): Uint8Array => {
  const hash = createHash('sha384');
  for (const part of parts) hash.update(part);
  return hash.digest();
};

/**
 * A stick for each of `svns` (0 to 255, the most fundamental component first). A stick is the one before it, hashed once for every version that is still to
 * come: whoever holds a stick can make those of lower versions, and of no higher one.
 */
export function hashSticks(secret: Uint8Array, svns: readonly number[]): Uint8Array[] {
  let stick = secret;
  return svns.map((svn, component) => {
    stick = sha384(stick, Uint8Array.of(component));
    for (let version = 255; version > svn; version--) stick = sha384(stick);
    return stick;
  });
}

/** HMAC-SHA-256 in counter mode, as AMD's firmware does it: counter and length little endian. `length` bytes. */
export function nistKdf(
  key: Uint8Array,
  label: string,
  context: Uint8Array,
  length: number,
): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(length);
  const word = (value: number): Uint8Array => new Uint8Array(new Uint32Array([value]).buffer);
  for (let i = 0; i * 32 < length; i++) {
    const block = createHmac('sha256', key)
      .update(word(i + 1))
      .update(label)
      .update(Uint8Array.of(0))
      .update(context)
      .update(word(length * 8))
      .digest();
    out.set(block.subarray(0, Math.min(32, length - i * 32)), i * 32);
  }
  return out;
}

/** A private key of P-384, 48 bytes big endian, out of a seed. */
export function p384PrivateKey(seed: Uint8Array, label: string): Uint8Array<ArrayBuffer> {
  const wide = nistKdf(seed, label, new Uint8Array(0), SEED_SIZE + 8);
  return bigEndian((bigIntOf(wide) % (P384_ORDER - 1n)) + 1n);
}

/** Big endian bytes as a number. */
export const bigIntOf = (bytes: Uint8Array): bigint => BigInt(`0x${Buffer.from(bytes).toString('hex')}`);

/** A number as 48 bytes, big endian. */
export const bigEndian = (value: bigint): Uint8Array<ArrayBuffer> =>
  new Uint8Array(Buffer.from(value.toString(16).padStart(SEED_SIZE * 2, '0'), 'hex'));
