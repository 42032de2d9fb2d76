/**
 * A key of P-384 that signs with ECDSA over SHA-384: VCEK or VLEK. Signatures are random as a chip's are, or by RFC 6979 where a run has to repeat byte for byte.
 * The curve is the platform's in both cases: a deterministic signature takes its point from an ECDH key pair whose private half is the nonce.
 */
import {
  createECDH,
  createHash,
  createHmac,
  createPrivateKey,
  createPublicKey,
  type KeyObject,
  sign,
} from 'node:crypto';
import { bigEndian, bigIntOf, P384_ORDER } from './key-derivation.ts';

const SIZE = 48;
export type SignatureMode = 'random' | 'rfc6979';

export class SigningKey {
  /** Uncompressed point: 4, X, Y; 97 bytes. */
  readonly publicPoint: Uint8Array;
  readonly #scalar: Uint8Array;
  readonly #private: KeyObject;
  readonly #mode: SignatureMode;

  /** `scalar`: the private key, 48 bytes big endian, from 1 to the group's order − 1. */
  constructor(scalar: Uint8Array, mode: SignatureMode) {
    this.#scalar = scalar;
    this.#mode = mode;
    const pair = createECDH('secp384r1');
    pair.setPrivateKey(scalar);
    this.publicPoint = new Uint8Array(pair.getPublicKey());
    this.#private = createPrivateKey({ format: 'jwk', key: { ...this.#jwk(), d: base64Url(scalar) } });
  }

  /** The public key. */
  get publicKey(): KeyObject {
    return createPublicKey({ format: 'jwk', key: this.#jwk() });
  }

  /** SubjectPublicKeyInfo, DER. */
  get spki(): Uint8Array {
    return this.publicKey.export({ format: 'der', type: 'spki' });
  }

  /** R and S of a signature over `message`, 48 bytes big endian each. */
  sign(message: Uint8Array): Uint8Array {
    if (this.#mode === 'random') return sign('sha384', message, this.#signer);
    return signDeterministic(this.#scalar, message);
  }

  get #signer() {
    return { key: this.#private, dsaEncoding: 'ieee-p1363' } as const;
  }

  #jwk(): { kty: string; crv: string; x: string; y: string } {
    return {
      kty: 'EC',
      crv: 'P-384',
      x: base64Url(this.publicPoint.subarray(1, 1 + SIZE)),
      y: base64Url(this.publicPoint.subarray(1 + SIZE)),
    };
  }
}

const base64Url = (bytes: Uint8Array): string => Buffer.from(bytes).toString('base64url');

/** RFC 6979, section 3.2, with SHA-384: digest and order have the same length, so nothing is cut off. */
function signDeterministic(scalar: Uint8Array, message: Uint8Array): Uint8Array {
  const digest = createHash('sha384').update(message).digest();
  const z = bigIntOf(digest) % P384_ORDER;
  const d = bigIntOf(scalar);
  const seed = Buffer.concat([scalar, bigEndian(z)]);
  const mac = (key: Uint8Array, ...parts: readonly Uint8Array[]): Uint8Array =>
    createHmac('sha384', key).update(Buffer.concat(parts)).digest();
  let k: Uint8Array = new Uint8Array(SIZE);
  let v: Uint8Array = new Uint8Array(SIZE).fill(1);
  for (const round of [0, 1]) {
    k = mac(k, v, Uint8Array.of(round), seed);
    v = mac(k, v);
  }
  for (;;) {
    v = mac(k, v);
    const nonce = bigIntOf(v);
    if (nonce > 0n && nonce < P384_ORDER) {
      const point = createECDH('secp384r1');
      point.setPrivateKey(v);
      const r = bigIntOf(point.getPublicKey().subarray(1, 1 + SIZE)) % P384_ORDER;
      const s = (inverse(nonce) * (z + r * d)) % P384_ORDER;
      if (r !== 0n && s !== 0n) return Buffer.concat([bigEndian(r), bigEndian(s)]);
    }
    k = mac(k, v, Uint8Array.of(0));
    v = mac(k, v);
  }
}

/** 1 / `value` in the group's order, by Euclid. */
function inverse(value: bigint): bigint {
  let [a, b] = [value % P384_ORDER, P384_ORDER];
  let [x, y] = [1n, 0n];
  while (b !== 0n) {
    const quotient = a / b;
    [a, b] = [b, a - quotient * b];
    [x, y] = [y, x - quotient * y];
  }
  return ((x % P384_ORDER) + P384_ORDER) % P384_ORDER;
}
