/** Keys of any kind at a check of either signature: only the right one says yes. */
import { constants, generateKeyPairSync, sign } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import type { PublicKey } from '../../src/attest/certificate.ts';
import { SignatureChecks } from '../../src/attest/signatures.ts';

const message = Buffer.from('message');
const nothing = new Uint8Array(0);

function rsa(publicExponent: number) {
  const { publicKey, privateKey } = generateKeyPairSync('rsa', { modulusLength: 1024, publicExponent });
  const { n } = publicKey.export({ format: 'jwk' });
  const key: PublicKey = {
    kind: 'RSA',
    spki: nothing,
    bits: 1024,
    exponent: publicExponent,
    number: new Uint8Array(Buffer.from(n!, 'base64url')),
  };
  const padding = { padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: 48 };
  return { key, signature: sign('sha384', message, { key: privateKey, ...padding }) };
}

const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-384' });
const { x, y } = publicKey.export({ format: 'jwk' });
const point = Buffer.concat([Buffer.of(4), Buffer.from(x!, 'base64url'), Buffer.from(y!, 'base64url')]);
const p384: PublicKey = {
  kind: 'P-384',
  spki: nothing,
  bits: 384,
  exponent: 0,
  number: new Uint8Array(point),
};
const ecdsaSignature = sign('sha384', message, { key: privateKey, dsaEncoding: 'ieee-p1363' });
const unknown: PublicKey = { kind: 'unknown', spki: nothing, bits: 0, exponent: 0, number: nothing };

describe('signatures', () => {
  it.each([3, 257, 65537, 0x1000001])(
    'of an RSA key with exponent %i hold, and of no other',
    async (exponent) => {
      const { key, signature } = rsa(exponent);
      const checks = new SignatureChecks();
      expect(await checks.pss(key, message, signature)).toBe(true);
      expect(await checks.pss(key, Buffer.from('massage'), signature)).toBe(false);
      expect(await checks.pss({ ...key, exponent: exponent + 2 }, message, signature)).toBe(false);
      expect(await checks.pss(p384, message, signature)).toBe(false);
      expect(await checks.pss(unknown, message, signature)).toBe(false);
    },
  );

  it('of a P-384 key hold, and of no other', async () => {
    const checks = new SignatureChecks();
    expect(await checks.ecdsa(p384, message, ecdsaSignature)).toBe(true);
    expect(await checks.ecdsa(p384, Buffer.from('massage'), ecdsaSignature)).toBe(false);
    expect(await checks.ecdsa(p384, message, nothing)).toBe(false);
    expect(await checks.ecdsa(rsa(65537).key, message, ecdsaSignature)).toBe(false);
    expect(await checks.ecdsa(unknown, message, ecdsaSignature)).toBe(false);
  });

  it('of a point that is not on the curve do not hold', async () => {
    const number = new Uint8Array(point);
    number[96]! ^= 1;
    expect(await new SignatureChecks().ecdsa({ ...p384, number }, message, ecdsaSignature)).toBe(false);
  });
});
