/**
 * The two signatures of AMD's evidence, by Web Crypto: RSASSA-PSS over certificates and lists, ECDSA P-384 over reports; SHA-384 both. Keys go in by
 * their numbers, which takes a third of the time that SubjectPublicKeyInfo does. A key that the platform refuses, or of another kind, verifies nothing.
 */
import { unshared } from './bytes.ts';
import type { PublicKey } from './certificate.ts';

/** Salt of AMD's RSASSA-PSS signatures, bytes. */
const SALT = 48;

type CryptoKey = Awaited<ReturnType<typeof crypto.subtle.importKey>>;

/** Checks signatures of one chain; a key that signed twice is read once. */
export class SignatureChecks {
  readonly #keys = new Map<PublicKey, Promise<CryptoKey>>();

  /** Whether `signature` over `message` was made with `key`, an RSA key. */
  pss(key: PublicKey, message: Uint8Array, signature: Uint8Array): Promise<boolean> {
    return this.#verify(key, { name: 'RSA-PSS', saltLength: SALT }, message, signature);
  }

  /** `signature`: R and S, 48 bytes big-endian each. */
  ecdsa(key: PublicKey, message: Uint8Array, signature: Uint8Array): Promise<boolean> {
    return this.#verify(key, { name: 'ECDSA', hash: 'SHA-384' }, message, signature);
  }

  /** Resolves when the platform works on the signatures that were asked for with `key` up to now. */
  async begun(key: PublicKey): Promise<void> {
    await this.#keys.get(key)?.catch(() => undefined);
  }

  async #verify(
    key: PublicKey,
    algorithm: { name: string; saltLength?: number; hash?: string },
    message: Uint8Array,
    signature: Uint8Array,
  ): Promise<boolean> {
    try {
      let imported = this.#keys.get(key);
      if (imported === undefined) {
        imported = importKey(key);
        this.#keys.set(key, imported);
      }
      return await crypto.subtle.verify(algorithm, await imported, unshared(signature), unshared(message));
    } catch {
      return false;
    }
  }
}

async function importKey({ kind, number, exponent }: PublicKey): Promise<CryptoKey> {
  if (kind === 'P-384') {
    const algorithm = { name: 'ECDSA', namedCurve: 'P-384' };
    return crypto.subtle.importKey('raw', unshared(number), algorithm, false, ['verify']);
  }
  const jwk = { kty: 'RSA', n: base64Url(number), e: base64Url(bytesOf(exponent)) };
  return crypto.subtle.importKey('jwk', jwk, { name: 'RSA-PSS', hash: 'SHA-384' }, false, ['verify']);
}

function bytesOf(value: number): Uint8Array {
  const bytes: number[] = [];
  for (let rest = value; rest > 0; rest = Math.floor(rest / 256)) bytes.unshift(rest % 256);
  return Uint8Array.from(bytes);
}

const BASE64URL = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';

/** btoa with what has to be replaced in its result takes five times as long. */
function base64Url(bytes: Uint8Array): string {
  let text = '';
  for (let at = 0; at < bytes.length; at += 3) {
    const left = bytes.length - at;
    const group = (bytes[at]! << 16) | ((bytes[at + 1] ?? 0) << 8) | (bytes[at + 2] ?? 0);
    text += BASE64URL[group >> 18]! + BASE64URL[(group >> 12) & 63];
    if (left > 1) text += BASE64URL[(group >> 6) & 63];
    if (left > 2) text += BASE64URL[group & 63];
  }
  return text;
}
