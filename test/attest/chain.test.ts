/** Each rule for the certificates of a chain, by one that breaks it and is signed by the right key all the same. */
import { describe, expect, it } from 'vitest';
import { type VerifyOptions, verifyReport } from '../../src/attest/index.ts';
import { issueArk, issueCrl, issueIntermediate, issueVcek } from '../../src/authority/issue.ts';
import { evidenceOf } from './evidence.ts';
import { type Change, forged, signerOf } from './forged-certificate.ts';

const { report, options, chip } = await evidenceOf('milan');
const [vcek, ask, ark] = options.certificates as [Uint8Array, Uint8Array, Uint8Array];
const keys = { ARK: await signerOf('Milan', 'ARK'), ASK: await signerOf('Milan', 'ASK') };

const failing = async (more: Partial<VerifyOptions>): Promise<string[]> =>
  (await verifyReport(report, { ...options, ...more })).failures.map(({ name }) => name);

/** Failures with one certificate replaced; a replaced ARK is the trusted one. */
function failingWith(kind: 'ARK' | 'ASK' | 'VCEK', changes: readonly Change[]): Promise<string[]> {
  const own = { ARK: ark, ASK: ask, VCEK: vcek }[kind];
  const one = forged(own, keys[kind === 'VCEK' ? 'ASK' : 'ARK'], changes);
  const certificates = [vcek, ask, ark].map((bytes) => (bytes === own ? one : bytes));
  return failing({ certificates, roots: [certificates[2]!] });
}

const VERSION_2 = { from: 'a003020102', to: 'a003020101' };
/** An OID of SHA-2, but for its last byte. */
const SHA = '06096086480165030402';
const hex = (text: string): string => Buffer.from(text).toString('hex');

describe('a chain', () => {
  it('of certificates that are signed anew without a change holds', async () => {
    for (const kind of ['ARK', 'ASK', 'VCEK'] as const) expect(await failingWith(kind, [])).toEqual([]);
  });

  it.each<[kind: 'ARK' | 'ASK' | 'VCEK', what: string, change: Change, failures: string[]]>([
    ['ARK', 'version 2', VERSION_2, ['ARK.version']],
    ['ASK', 'version 2', VERSION_2, ['ASK.version']],
    ['VCEK', 'version 2', VERSION_2, ['VCEK.version']],
    ['ARK', 'no CA', { from: '30030101ff', to: '3003010100' }, ['ARK.basic-constraints']],
    ['ASK', 'no CA', { from: '30060101ff020100', to: '3006010100020100' }, ['ASK.basic-constraints']],
    ['ASK', 'path length 1', { from: '30060101ff020100', to: '30060101ff020101' }, ['ASK.basic-constraints']],
    ['ARK', 'a key that signs lists alone', { from: '03020106', to: '03020102' }, ['ARK.key-usage']],
    ['ARK', 'a key that signs certificates alone', { from: '03020106', to: '03020204' }, ['CRL.signer']],
    ['ASK', 'a key that signs lists alone', { from: '03020204', to: '03020102' }, ['ASK.key-usage']],
    [
      'ASK',
      'a critical extension that nobody knows in place of its key usage',
      { from: '0603551d0f0101ff', to: '0603551d240101ff' },
      ['ASK.key-usage', 'ASK.critical-extensions'],
    ],
    [
      'ASK',
      'another exponent',
      { from: '0203010001a3', to: '0203010003a3' },
      ['ASK.public-key', 'VCEK.signature'],
    ],
    [
      'ASK',
      'another organization',
      {
        from: `${hex('Devices')}3112301006035504030c09${hex('SEV-M')}`,
        to: `${hex('Devicez')}3112301006035504030c09${hex('SEV-M')}`,
      },
      ['ASK.subject', 'VCEK.issuer'],
    ],
    [
      'ASK',
      'an issuer of another organization',
      {
        from: `${hex('Devices')}3112301006035504030c09${hex('ARK-M')}`,
        to: `${hex('Devicez')}3112301006035504030c09${hex('ARK-M')}`,
      },
      ['ASK.issuer'],
    ],
    [
      'VCEK',
      'another organization',
      {
        from: `${hex('Devices')}3111300f06035504030c08${hex('SEV-V')}`,
        to: `${hex('Devicez')}3111300f06035504030c08${hex('SEV-V')}`,
      },
      ['VCEK.subject'],
    ],
    [
      'VCEK',
      'a salt of 32 bytes',
      { from: 'a203020130', to: 'a203020120', where: 'both' },
      ['VCEK.signature-algorithm'],
    ],
    [
      'VCEK',
      'a salt of 32 bytes in one of two places',
      { from: 'a203020130', to: 'a203020120', where: 'outside' },
      ['VCEK.signature-algorithm'],
    ],
    [
      'ASK',
      'SHA-512',
      { from: `a00f300d${SHA}02`, to: `a00f300d${SHA}03`, where: 'both' },
      ['ASK.signature-algorithm'],
    ],
    [
      'ASK',
      'MGF1 with SHA-512',
      { from: `010108300d${SHA}02`, to: `010108300d${SHA}03`, where: 'both' },
      ['ASK.signature-algorithm'],
    ],
    [
      'ARK',
      'another mask than MGF1',
      { from: '06092a864886f70d010108', to: '06092a864886f70d010109', where: 'both' },
      ['ARK.signature-algorithm'],
    ],
    [
      'ARK',
      'a trailer of 2',
      { from: 'a303020101', to: 'a303020102', where: 'both' },
      ['ARK.signature-algorithm'],
    ],
    [
      'ARK',
      'another algorithm than RSASSA-PSS',
      { from: '06092a864886f70d01010a', to: '06092a864886f70d01010c', where: 'both' },
      ['ARK.signature-algorithm'],
    ],
    ['VCEK', 'the product name Genoa', { from: hex('Milan-'), to: hex('Genoa-') }, ['VCEK.product-name']],
  ])('whose %s has %s', async (kind, _what, change, failures) => {
    expect(await failingWith(kind, [change])).toEqual(failures);
  });
});

describe('an impostor', async () => {
  // AMD's names, our names: another's keys.
  const validity = { from: new Date('2026-01-01T00:00:00Z'), to: new Date('2033-01-01T00:00:00Z') };
  const issuer = { kind: 'ARK', product: 'Milan', signer: await signerOf('Genoa', 'ARK') } as const;
  const middle = { kind: 'ASK', product: 'Milan', signer: await signerOf('Genoa', 'ASK') } as const;
  const falseArk = issueArk(issuer, validity);
  const falseAsk = issueIntermediate(issuer, 'ASK', middle.signer.spki, validity);
  const request = { productName: 'Milan', tcb: chip.reportedTcb, hwid: chip.chipId };
  const falseVcek = issueVcek(middle, { ...request, spki: chip.vcek(chip.reportedTcb).spki }, validity);

  it('with a whole chain of its own under the root’s names is told by the root alone', async () => {
    const certificates = [falseVcek, falseAsk, falseArk];
    expect(await failing({ certificates, crls: [] })).toEqual(['ARK.trusted']);
    expect(await failing({ certificates, crls: [], roots: [falseArk] })).toEqual([]);
    expect(await failing({ certificates, crls: [], roots: [falseArk, ark] })).toEqual([]);
    expect(await failing({ certificates: options.certificates, roots: [falseArk] })).toEqual(['ARK.trusted']);
  });

  it('without its root has a signature that is not the root’s', async () => {
    expect(await failing({ certificates: [falseVcek, falseAsk], crls: [] })).toEqual(['ASK.signature']);
    expect(await failing({ certificates: [falseVcek, ask, ark], crls: [] })).toEqual(['VCEK.signature']);
  });

  it('with a list of its own has no say', async () => {
    const list = issueCrl(issuer, 1, [], validity);
    expect(await failing({ crls: [list] })).toEqual(['CRL.signature']);
  });
});
