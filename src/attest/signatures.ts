/**
 * The two signatures of AMD's evidence, by Web Crypto: RSASSA-PSS over certificates and lists, ECDSA P-384 over reports; SHA-384 both.
 * Each answers true or false; a key that the platform refuses is false too.
 */

import { unshared } from './bytes.ts';
import type { PublicKey } from './certificate.ts';

/** Salt of AMD's RSASSA-PSS signatures, bytes. */
const SALT = 48;

/** Whether `signature` over `message` was made with `key`, an RSA key. */
export async function verifyPss(
  key: PublicKey,
  message: Uint8Array,
  signature: Uint8Array,
): Promise<boolean> {
  if (key.kind !== 'RSA') return false;
  const algorithm = { name: 'RSA-PSS', hash: 'SHA-384' };
  try {
    const imported = await crypto.subtle.importKey('spki', unshared(key.spki), algorithm, false, ['verify']);
    return await crypto.subtle.verify(
      { name: 'RSA-PSS', saltLength: SALT },
      imported,
      unshared(signature),
      unshared(message),
    );
  } catch {
    return false;
  }
}

/** `signature`: R and S, 48 bytes big-endian each. */
export async function verifyEcdsa(
  key: PublicKey,
  message: Uint8Array,
  signature: Uint8Array,
): Promise<boolean> {
  if (key.kind !== 'P-384') return false;
  const algorithm = { name: 'ECDSA', namedCurve: 'P-384' };
  try {
    const imported = await crypto.subtle.importKey('spki', unshared(key.spki), algorithm, false, ['verify']);
    return await crypto.subtle.verify(
      { name: 'ECDSA', hash: 'SHA-384' },
      imported,
      unshared(signature),
      unshared(message),
    );
  } catch {
    return false;
  }
}
