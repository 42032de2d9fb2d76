/**
 * RSASSA-PSS as AMD's roots sign (RFC 8017, section 8.1: SHA-384, MGF1 with SHA-384, a salt of 48 bytes), with an RSA key of 4096 bits. Where a
 * run has to repeat byte for byte the salt follows from the message; else the platform signs, with a random one.
 */
import {
  constants,
  createHash,
  createPrivateKey,
  createPublicKey,
  generateKeyPair,
  type KeyObject,
  privateEncrypt,
  sign,
} from 'node:crypto';
import { promisify } from 'node:util';

export type SaltMode = 'random' | 'repeatable';

const HASH_BYTES = 48;
const SALT_BYTES = 48;
const KEY_BYTES = 512;

const sha384 = (...parts: readonly Uint8Array[]): Buffer => {
  const hash = createHash('sha384');
  for (const part of parts) hash.update(part);
  return hash.digest();
};

export class RsaSigner {
  readonly #key: KeyObject;
  readonly #mode: SaltMode;
  /** SubjectPublicKeyInfo, DER. */
  readonly spki: Uint8Array;

  /** `key`: RSA of 4096 bits. */
  constructor(key: KeyObject, mode: SaltMode) {
    this.#key = key;
    this.#mode = mode;
    this.spki = createPublicKey(key).export({ format: 'der', type: 'spki' });
  }

  sign(message: Uint8Array): Uint8Array {
    if (this.#mode === 'random') {
      const padding = { padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: SALT_BYTES };
      return sign('sha384', message, { key: this.#key, ...padding });
    }
    const salt = sha384(Buffer.from('SoftCVM salt'), message);
    return privateEncrypt({ key: this.#key, padding: constants.RSA_NO_PADDING }, encodePss(message, salt));
  }
}

/** EMSA-PSS-ENCODE of RFC 8017, section 9.1.1, for 4095 bits. */
function encodePss(message: Uint8Array, salt: Uint8Array): Buffer {
  const hash = sha384(Buffer.alloc(8), sha384(message), salt);
  const block = Buffer.alloc(KEY_BYTES - HASH_BYTES - 1);
  block[block.length - salt.length - 1] = 1;
  block.set(salt, block.length - salt.length);
  const counter = Buffer.alloc(4);
  for (let at = 0; at < block.length; at += HASH_BYTES) {
    counter.writeUInt32BE(at / HASH_BYTES);
    const mask = sha384(hash, counter);
    for (let i = 0; i < HASH_BYTES && at + i < block.length; i++) block[at + i]! ^= mask[i]!;
  }
  block[0]! &= 0x7f;
  return Buffer.concat([block, hash, Buffer.of(0xbc)]);
}

/** A new key; takes seconds. */
export async function generateRsaKey(): Promise<KeyObject> {
  const { privateKey } = await promisify(generateKeyPair)('rsa', { modulusLength: 8 * KEY_BYTES });
  return privateKey;
}

/** The key of two primes, with exponent 65537. */
export function rsaKeyOfPrimes(p: bigint, q: bigint): KeyObject {
  const e = 65537n;
  const phi = (p - 1n) * (q - 1n);
  const d = inverse(e, phi);
  const field = (value: bigint): string => {
    const hex = value.toString(16);
    return Buffer.from(hex.padStart(hex.length + (hex.length % 2), '0'), 'hex').toString('base64url');
  };
  const jwk = {
    kty: 'RSA',
    n: field(p * q),
    e: field(e),
    d: field(d),
    p: field(p),
    q: field(q),
    dp: field(d % (p - 1n)),
    dq: field(d % (q - 1n)),
    qi: field(inverse(q, p)),
  };
  return createPrivateKey({ format: 'jwk', key: jwk });
}

/** 1 / value modulo `modulus`, by Euclid. */
function inverse(value: bigint, modulus: bigint): bigint {
  let [a, b, x, y] = [value % modulus, modulus, 1n, 0n];
  while (b !== 0n) {
    const quotient = a / b;
    [a, b] = [b, a - quotient * b];
    [x, y] = [y, x - quotient * y];
  }
  return ((x % modulus) + modulus) % modulus;
}
