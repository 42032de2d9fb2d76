/**
 * Certificates and revocation lists beside pkijs, a library of others: it reads in them what we read, and writes them as we write them. Own code reads
 * them in attest/ since the library takes several times as long as all the signature checks of a report, and reads much that is not DER.
 */
import fc from 'fast-check';
import {
  Certificate,
  CertificateRevocationList,
  type Extension,
  type RelativeDistinguishedNames,
} from 'pkijs';
import { describe, expect, it } from 'vitest';
import { parseCertificate, parseCrl } from '../../src/attest/index.ts';
import { Authority } from '../../src/authority/authority.ts';

const authority = Authority.seeded(7);
const certificates: [name: string, bytes: Uint8Array][] = [];
const lists: [name: string, bytes: Uint8Array][] = [];
for (const generation of ['milan', 'genoa', 'turin'] as const) {
  const chip = authority.chip(generation);
  const { product } = chip.personality;
  const own = await authority.certificates(chip);
  const loaded = (await authority.loadedKey(chip)).chain;
  certificates.push(
    [`VCEK of ${product}`, own.leaf],
    [`ASK of ${product}`, own.intermediate],
    [`ARK of ${product}`, own.ark],
    [`VLEK of ${product}`, loaded.leaf],
    [`ASVK of ${product}`, loaded.intermediate],
  );
  lists.push([`list of ${product}`, await authority.crl(product)]);
  const revoking = Authority.seeded(7);
  revoking.revoke(product, 'ASK');
  revoking.revoke(product, 'ASVK');
  lists.push([`list of ${product} with entries`, await revoking.crl(product)]);
}

const hex = (bytes: ArrayBuffer | Uint8Array): string => Buffer.from(bytes as Uint8Array).toString('hex');
const attributesOf = ({ typesAndValues }: RelativeDistinguishedNames): [string, string][] =>
  typesAndValues.map(({ type, value }) => [type, value.valueBlock.value]);
const extensionsOf = (list: readonly Extension[] = []): [string, boolean, string][] =>
  list.map(({ extnID, critical, extnValue }) => [extnID, critical, hex(extnValue.valueBlock.valueHexView)]);

/** What both say of a certificate, in one form. */
function theirs(bytes: Uint8Array) {
  const one = Certificate.fromBER(bytes);
  return {
    version: one.version + 1,
    serial: hex(one.serialNumber.valueBlock.valueHexView),
    algorithm: one.signatureAlgorithm.algorithmId,
    isNamedAlike: hex(one.signatureAlgorithm.toSchema().toBER()) === hex(one.signature.toSchema().toBER()),
    issuer: attributesOf(one.issuer),
    subject: attributesOf(one.subject),
    notBefore: one.notBefore.value,
    notAfter: one.notAfter.value,
    spki: hex(one.subjectPublicKeyInfo.toSchema().toBER()),
    signature: hex(one.signatureValue.valueBlock.valueHexView),
    tbs: hex(one.tbsView),
    extensions: extensionsOf(one.extensions),
  };
}
function ours(bytes: Uint8Array) {
  const one = parseCertificate(bytes);
  return {
    version: one.version,
    serial: one.serial,
    algorithm: one.signatureAlgorithm.oid,
    isNamedAlike: one.namesOneAlgorithm,
    issuer: one.issuer.attributes,
    subject: one.subject.attributes,
    notBefore: one.notBefore,
    notAfter: one.notAfter,
    spki: hex(one.publicKey.spki),
    signature: hex(one.signature),
    tbs: hex(one.tbs),
    extensions: [...one.extensions].map(([oid, { isCritical, value }]) => [oid, isCritical, hex(value)]),
  };
}
function theirList(bytes: Uint8Array) {
  const one = CertificateRevocationList.fromBER(bytes);
  return {
    algorithm: one.signatureAlgorithm.algorithmId,
    isNamedAlike: hex(one.signatureAlgorithm.toSchema().toBER()) === hex(one.signature.toSchema().toBER()),
    issuer: attributesOf(one.issuer),
    thisUpdate: one.thisUpdate.value,
    nextUpdate: one.nextUpdate?.value,
    revoked: (one.revokedCertificates ?? []).map(({ userCertificate, revocationDate }) => [
      hex(userCertificate.valueBlock.valueHexView),
      revocationDate.value,
    ]),
    signature: hex(one.signatureValue.valueBlock.valueHexView),
    tbs: hex(one.tbsView),
  };
}
function ourList(bytes: Uint8Array) {
  const one = parseCrl(bytes);
  return {
    algorithm: one.signatureAlgorithm.oid,
    isNamedAlike: one.namesOneAlgorithm,
    issuer: one.issuer.attributes,
    thisUpdate: one.thisUpdate,
    nextUpdate: one.nextUpdate,
    revoked: [...one.revoked],
    signature: hex(one.signature),
    tbs: hex(one.tbs),
  };
}

/** One to four bytes that are others. */
const writes = fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 4 });
function changed(bytes: Uint8Array, places: readonly [number, number][]): Uint8Array {
  const copy = bytes.slice();
  for (const [at, byte] of places) copy[at % copy.length] = byte;
  return copy;
}

const RSASSA_PSS = '1.2.840.113549.1.1.10';

describe('pkijs', () => {
  it.each(certificates)('reads in the %s what we read', (_name, bytes) => {
    expect(ours(bytes)).toEqual(theirs(bytes));
  });

  it.each(lists)('reads in the %s what we read', (_name, bytes) => {
    expect(ourList(bytes)).toEqual(theirList(bytes));
  });

  it.each(certificates)('writes the %s as we do', (_name, bytes) => {
    expect(hex(Certificate.fromBER(bytes).toSchema(true).toBER())).toBe(hex(bytes));
  });

  it.each(lists)('writes the %s as we do', (_name, bytes) => {
    expect(hex(CertificateRevocationList.fromBER(bytes).toSchema(true).toBER())).toBe(hex(bytes));
  });

  it('reads in changed certificates and lists what we read, where we read them', () => {
    const cases = [
      ...certificates.map(([, bytes]) => ({ bytes, own: ours, other: theirs })),
      ...lists.map(([, bytes]) => ({ bytes, own: ourList, other: theirList })),
    ];
    fc.assert(
      fc.property(fc.nat(cases.length - 1), writes, (index, places) => {
        const { bytes, own, other } = cases[index]!;
        const one = changed(bytes, places);
        let read: ReturnType<typeof own>;
        try {
          read = own(one);
        } catch {
          return;
        }
        // What belongs to another algorithm is not looked into: nothing so signed is believed.
        if (read.algorithm === RSASSA_PSS && read.isNamedAlike) expect(read).toEqual(other(one));
      }),
      { numRuns: 1000 },
    );
  });

  it.each([
    ['a byte behind it', (bytes: Uint8Array) => [...bytes, 0]],
    ['its length in a byte more than it needs', (bytes: Uint8Array) => [0x30, 0x83, 0, ...bytes.subarray(2)]],
    ['an indefinite length', (bytes: Uint8Array) => [0x30, 0x80, ...bytes.subarray(4), 0, 0]],
  ])('reads a certificate with %s, which is no DER; we refuse it', (_what, change) => {
    const [, bytes] = certificates[0]!;
    const changed = Uint8Array.from(change(bytes));
    expect(theirs(changed).serial).toBe('00');
    expect(() => parseCertificate(changed)).toThrow('certificate');
  });
});
