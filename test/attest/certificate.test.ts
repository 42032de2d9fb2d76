import { describe, expect, it } from 'vitest';
import { writePem } from '../../src/abi/pem.ts';
import { parseCertificate, parseCrl, verifyReport } from '../../src/attest/index.ts';
import { sameAttributes } from '../../src/attest/x509.ts';
import { evidenceOf, signedReport } from './evidence.ts';
import { forged, signerOf, without } from './forged-certificate.ts';

const { authority, chip, report, options } = await evidenceOf('milan');
const [vcek, ask, ark] = options.certificates as [Uint8Array, Uint8Array, Uint8Array];
const vlek = await authority.vlek('Milan', chip.reportedTcb);
const [arkKey, askKey] = [await signerOf('Milan', 'ARK'), await signerOf('Milan', 'ASK')];
const hex = (text: string): string => Buffer.from(text).toString('hex');

it.each([
  ['the same', [['2.5.4.3', 'a']], true],
  ['another value', [['2.5.4.3', 'b']], false],
  ['another type', [['2.5.4.4', 'a']], false],
  [
    'one more',
    [
      ['2.5.4.3', 'a'],
      ['2.5.4.4', 'b'],
    ],
    false,
  ],
  ['none', [], false],
] as const)('a name is another with %s', (_, other, same) => {
  expect(sameAttributes([['2.5.4.3', 'a']], other as never)).toBe(same);
  expect(sameAttributes(other as never, [['2.5.4.3', 'a']])).toBe(same);
});

describe('a certificate', () => {
  it('is known by subject and issuer', () => {
    const kinds = [ark, ask, vcek, vlek].map((bytes) => parseCertificate(bytes));
    expect(kinds.map(({ kind, product }) => [kind, product])).toEqual([
      ['ARK', 'Milan'],
      ['ASK', 'Milan'],
      ['VCEK', 'Milan'],
      ['VLEK', 'Milan'],
    ]);
    for (const [bytes, from, to] of [
      [vcek, hex('SEV-VCEK'), hex('SEV-VCEX')],
      [vcek, hex('SEV-Milan'), hex('SEV-Paris')],
      [vlek, `0c08${hex('SEV-VLEK')}`, `0c08${hex('SEV-VLEX')}`],
      [vlek, hex('VLEK-Milan'), hex('VLEK-Paris')],
    ] as const) {
      expect(parseCertificate(forged(bytes, askKey, [{ from, to }])).kind).toBeUndefined();
    }
  });

  it.each([
    ['a CA by an extension of its own', ask, arkKey, '8837536f667443564d', '8838536f667443564d'],
    ['a leaf by the name of its authority', vcek, askKey, hex('urn:softcvm:'), hex('urn:softcvx:')],
  ])('is known as made in software: %s', (_, bytes, key, from, to) => {
    expect(parseCertificate(bytes).isSoftware).toBe(true);
    expect(parseCertificate(forged(bytes, key, [{ from, to }])).isSoftware).toBe(false);
  });

  it('may have no extensions', () => {
    const { extensions, isCa, keyUsage } = parseCertificate(without(ark, arkKey, 7));
    expect([extensions.size, isCa, keyUsage]).toEqual([0, false, undefined]);
  });

  it('has a key of as many bits as its modulus', () => {
    const { publicKey } = parseCertificate(ask);
    expect([publicKey.bits, publicKey.number.length]).toEqual([4096, 512]);
    const modulus = Buffer.from(publicKey.number).toString('hex');
    const longer = forged(ask, arkKey, [{ from: `00${modulus}`, to: `01${modulus}` }]);
    const { bits, number } = parseCertificate(longer).publicKey;
    expect([bits, number.length]).toEqual([4097, 513]);
  });

  it('may give a path length and be no CA', () => {
    const change = { from: '30060101ff020100', to: '3006020400800000' };
    const { isCa, pathLength } = parseCertificate(forged(ask, arkKey, [change]));
    expect([isCa, pathLength]).toEqual([false, 0x800000]);
  });

  it('has levels from 0 to 255', () => {
    const microcode = '1.3.6.1.4.1.3704.1.3.8';
    const of = (level: string) =>
      parseCertificate(forged(vcek, askKey, [{ from: '0404020200db', to: `04040202${level}` }]), 'VCEK');
    expect(of('00db').amd.levels.get(microcode)).toBe(219);
    expect(of('00ff').amd.levels.get(microcode)).toBe(255);
    expect(() => of('0100')).toThrow(`VCEK.${microcode}.SPL: got 256, want 0 to 255`);
  });
});

describe('what a verdict shows of a chain', () => {
  const shown = async (certificates: Uint8Array[]): Promise<Record<string, [string, string]>> => {
    const { checks } = await verifyReport(report, { ...options, certificates, roots: [certificates[2]!] });
    return Object.fromEntries(checks.map(({ name, got, want }) => [name, [got, want]]));
  };

  it('is what is there and what should be', async () => {
    expect(await shown([vcek, ask, ark])).toMatchObject({
      'ARK.signature-algorithm': [
        'RSASSA-PSS, SHA-384, MGF1 with SHA-384, salt 48, trailer 1',
        'RSASSA-PSS, SHA-384, MGF1 with SHA-384, salt 48, trailer 1',
      ],
      'ARK.basic-constraints': ['CA', 'CA'],
      'ASK.basic-constraints': ['CA, path length 0', 'CA, path length 0'],
      'VCEK.basic-constraints': ['no CA', 'no CA'],
      'ARK.key-usage': ['key usage bits 5, 6', 'certificate signing, bit 5'],
      'ASK.public-key': ['RSA 4096, exponent 65537', 'RSA 4096, exponent 65537'],
      'VCEK.public-key': ['P-384', 'P-384'],
      'VCEK.subject': [
        'OU = Engineering, C = US, L = Santa Clara, ST = CA, O = Advanced Micro Devices, CN = SEV-VCEK',
        'OU = Engineering, C = US, L = Santa Clara, ST = CA, O = Advanced Micro Devices, CN = SEV-VCEK',
      ],
    });
  });

  it('has one text twice where it holds, and two where it fails', async () => {
    const stranger = await evidenceOf('genoa');
    const verdicts = [
      await verifyReport(report, options),
      // Of another generation, and signed by nobody who is here.
      await verifyReport(report, { ...options, certificates: stranger.options.certificates }),
      await verifyReport(stranger.report, options),
      // The root's key where the ASK's should be.
      await verifyReport(report, { ...options, certificates: [forged(vcek, arkKey, []), ask, ark] }),
    ];
    const texts = /^(?:[A-Z]+\.(?:subject|signature|hwid)|report\.signature)$/;
    const seen = verdicts.flatMap(({ checks }) => checks.filter(({ name }) => texts.test(name)));
    for (const { name, ok, got, want } of seen) expect([name, got === want]).toEqual([name, ok]);
    for (const ok of [true, false])
      for (const name of ['VCEK.hwid', 'VCEK.signature', 'report.signature'])
        expect(seen.some((check) => check.name === name && check.ok === ok)).toBe(true);
  });

  it('says who is missing, and of which product', async () => {
    const checks = async (certificates: Uint8Array[], roots: Uint8Array[]) => {
      const verdict = await verifyReport(report, { ...options, certificates, roots });
      return Object.fromEntries(verdict.checks.map(({ name, got, want }) => [name, [got, want]]));
    };
    expect(await checks([], [])).toMatchObject({
      'VCEK.present': ['no certificate', 'VCEK of Milan'],
      'ARK.trusted': ['no ARK', 'a root: none was given'],
    });
    const older = signedReport(chip, { version: 2, cpuidFamily: 0, cpuidModel: 0, cpuidStepping: 0 });
    const { checks: unknown } = await verifyReport(older, { ...options, certificates: [], roots: [] });
    expect(unknown.find(({ name }) => name === 'VCEK.present')!.want).toBe('VCEK');
    expect(await checks([ask, ark], [ark])).toMatchObject({
      'VCEK.present': ['SEV-Milan, ARK-Milan', 'VCEK of Milan'],
      'ASK.present': [expect.stringContaining('CN = SEV-Milan'), 'ASK of Milan'],
    });
  });

  it('names the algorithm that should not be', async () => {
    const algorithm = async (from: string, to: string, where: 'both' | 'outside'): Promise<string> => {
      const one = forged(ask, arkKey, [{ from, to, where }]);
      return (await shown([vcek, one, ark]))['ASK.signature-algorithm']![0];
    };
    expect(await algorithm('a203020130', 'a203020114', 'outside')).toBe('two algorithms that differ');
    expect(await algorithm('a203020130', 'a203020114', 'both')).toBe(
      'RSASSA-PSS, SHA-384, MGF1 with SHA-384, salt 20, trailer 1',
    );
    expect(await algorithm('06092a864886f70d01010a', '06092a864886f70d01010c', 'both')).toBe(
      '1.2.840.113549.1.1.12',
    );
    expect(await algorithm('06092a864886f70d010108', '06092a864886f70d010109', 'both')).toContain(
      'MGF1 with 1.2.840.113549.1.1.9',
    );
  });
});

describe('a revocation list', () => {
  const crl = options.crls![0]!;

  it('may leave open when the next comes, and have no extensions', () => {
    const { nextUpdate, number } = parseCrl(crl);
    expect([nextUpdate, number]).toEqual([expect.any(Date), expect.any(String)]);
    expect(parseCrl(without(crl, arkKey, 4, 'list'))).toMatchObject({ nextUpdate: undefined, number });
    expect(parseCrl(without(crl, arkKey, 5, 'list'))).toMatchObject({ nextUpdate, number: undefined });
  });

  it('in PEM is the one in DER', () => {
    for (const label of ['X509 CRL', 'CRL']) {
      const text = writePem('CERTIFICATE', ark) + writePem(label, crl);
      expect(parseCrl(Buffer.from(text))).toEqual(parseCrl(crl));
    }
  });

  it('is not in PEM that holds none', () => {
    expect(() => parseCrl(Buffer.from(writePem('CERTIFICATE', ark)), 'list')).toThrow(
      'list: got PEM without an X509 CRL, want one',
    );
  });
});
