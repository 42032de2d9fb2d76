/**
 * The versioned loaded endorsement key: a seed that AMD makes for a cloud provider and wraps for one chip at one TCB. The blob is that of SNP_VLEK_LOAD: eight
 * hash sticks of 48 bytes under AES-256-GCM; the last stick is the key's seed (AMD's firmware source, snp_mcmd_vlek_load).
 */
import { createCipheriv, createDecipheriv } from 'node:crypto';
import { snpWrappedVlek } from '../../abi/sev-firmware.ts';
import { p384PrivateKey, SEED_SIZE } from './key-derivation.ts';
import { type SignatureMode, SigningKey } from './signing-key.ts';

/** Bytes of a VLEK's hash sticks. */
export const VLEK_SIZE = 8 * SEED_SIZE;

/** The last stick: what keys are derived from. */
export const vlekSeed = (sticks: Uint8Array): Uint8Array => sticks.subarray(VLEK_SIZE - SEED_SIZE, VLEK_SIZE);

/** The key that signs. `sticks`: VLEK_SIZE bytes. */
export const vlekSigningKey = (sticks: Uint8Array, mode: SignatureMode): SigningKey =>
  new SigningKey(p384PrivateKey(vlekSeed(sticks), 'VLEK'), mode);

/**
 * What SNP_VLEK_LOAD takes, 432 bytes. `wrappingKey` is `Chip.vlekWrappingKey(tcb)`, `iv` 12 bytes that are used once, `tcb` the TCB_VERSION that the key is for.
 */
export function wrapVlek(options: {
  sticks: Uint8Array;
  tcb: bigint;
  wrappingKey: Uint8Array;
  iv: Uint8Array;
}): Uint8Array<ArrayBuffer> {
  const { sticks, tcb, wrappingKey, iv } = options;
  if (sticks.length !== VLEK_SIZE)
    throw new RangeError(`VLEK: got ${sticks.length} bytes, want ${VLEK_SIZE}`);
  const blob = snpWrappedVlek.encode({ iv, tcb });
  const cipher = createCipheriv('aes-256-gcm', wrappingKey, iv).setAAD(additionalData(blob));
  blob.set(cipher.update(sticks), snpWrappedVlek.offsets.ciphertext);
  cipher.final();
  blob.set(cipher.getAuthTag(), snpWrappedVlek.offsets.tag);
  return blob;
}

/** The hash sticks of a blob, or undefined when the tag does not hold. */
export function unwrapVlek(blob: Uint8Array, wrappingKey: Uint8Array): Uint8Array | undefined {
  const { iv, ciphertext, tag } = snpWrappedVlek.decode(blob);
  const decipher = createDecipheriv('aes-256-gcm', wrappingKey, iv)
    .setAAD(additionalData(blob))
    .setAuthTag(tag);
  const sticks = decipher.update(ciphertext);
  try {
    decipher.final();
  } catch {
    sticks.fill(0);
    return undefined;
  }
  return sticks;
}

const additionalData = (blob: Uint8Array): Uint8Array =>
  blob.subarray(snpWrappedVlek.offsets.tcb, snpWrappedVlek.offsets.tag);
