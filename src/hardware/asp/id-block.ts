/**
 * The ID block and its authentication: a guest's owner says which digest and policy the guest has to have, and signs that with an ID key, which an author key may
 * vouch for (SNP ABI specification, "ID block"; AMD's firmware source, snp_mcmd_launch_finish, in its order of checks). The block's version is not looked at there.
 */
import { createPublicKey, verify } from 'node:crypto';
import { ECDSA_NUMBER_SIZE, SIGNATURE_ALGO_ECDSA_P384_SHA384 } from '../../abi/attestation-report.ts';
import { SNP_PUBLIC_KEY, snpIdAuth, snpIdBlock } from '../../abi/sev-firmware.ts';
import { SEV_STATUS } from '../../abi/sev-status.ts';
import { sha384 } from './launch-digest.ts';

const SIZE = 48;

export interface Identity {
  idBlock: { familyId: Uint8Array; imageId: Uint8Array; guestSvn: number };
  idKeyDigest: Uint8Array;
  authorKeyDigest: Uint8Array | undefined;
}

/** What the block says of the guest, or the status of the first check that fails. */
export function verifyIdBlock(options: {
  block: Uint8Array;
  auth: Uint8Array;
  hasAuthorKey: boolean;
  /** Of the launched guest. */
  digest: Uint8Array;
  policy: bigint;
}): Identity | number {
  const { block, hasAuthorKey } = options;
  const { launchDigest, policy, familyId, imageId, guestSvn } = snpIdBlock.decode(block);
  const auth = snpIdAuth.decode(options.auth);
  if (!launchDigest.every((byte, i) => byte === options.digest[i])) return SEV_STATUS.BAD_MEASUREMENT;
  if (policy !== options.policy) return SEV_STATUS.POLICY_FAILURE;
  const algos = hasAuthorKey ? [auth.idKeyAlgo, auth.authorKeyAlgo] : [auth.idKeyAlgo];
  if (algos.some((algo) => algo !== SIGNATURE_ALGO_ECDSA_P384_SHA384)) return SEV_STATUS.INVALID_PARAM;
  if (!isSigned(block, auth.idBlockSignature, auth.idKey)) return SEV_STATUS.BAD_SIGNATURE;
  if (hasAuthorKey && !isSigned(auth.idKey, auth.idKeySignature, auth.authorKey))
    return SEV_STATUS.BAD_SIGNATURE;
  return {
    idBlock: { familyId, imageId, guestSvn },
    idKeyDigest: sha384(auth.idKey),
    authorKeyDigest: hasAuthorKey ? sha384(auth.authorKey) : undefined,
  };
}

/** Whether `signature` (R and S, 72 bytes each, little endian) is one of `message` by the key of `publicKey` (SNP_PUBLIC_KEY). */
function isSigned(message: Uint8Array, signature: Uint8Array, publicKey: Uint8Array): boolean {
  const curve = new DataView(publicKey.buffer, publicKey.byteOffset).getUint32(SNP_PUBLIC_KEY.CURVE, true);
  if (curve !== SNP_PUBLIC_KEY.CURVE_P384) return false;
  try {
    const x = number(publicKey, SNP_PUBLIC_KEY.X).toString('base64url');
    const y = number(publicKey, SNP_PUBLIC_KEY.Y).toString('base64url');
    const key = createPublicKey({ format: 'jwk', key: { kty: 'EC', crv: 'P-384', x, y } });
    const raw = Buffer.concat([number(signature, 0), number(signature, ECDSA_NUMBER_SIZE)]);
    return verify('sha384', message, { key, dsaEncoding: 'ieee-p1363' }, raw);
  } catch {
    return false;
  }
}

/** A number of 72 bytes, little endian, as 48 bytes, big endian. Throws RangeError when it is longer. */
function number(bytes: Uint8Array, offset: number): Buffer {
  const field = bytes.subarray(offset, offset + ECDSA_NUMBER_SIZE);
  if (field.subarray(SIZE).some((byte) => byte !== 0))
    throw new RangeError('a number of P-384 of more than 48 bytes');
  return Buffer.from(field.subarray(0, SIZE)).reverse();
}
