/** Each rule for revocation lists, of which there may be several: what counts does not depend on their order. */
import { describe, expect, it } from 'vitest';
import { parseCrl, type VerifyOptions, verifyReport } from '../../src/attest/index.ts';
import { issueCrl, type Revocation } from '../../src/authority/issue.ts';
import { evidenceOf } from './evidence.ts';
import { type Change, forged, signerOf, without } from './forged-certificate.ts';

const { report, options, authority } = await evidenceOf('milan');
const crl = options.crls![0]!;
const keys = { ARK: await signerOf('Milan', 'ARK') };
const issuer = { kind: 'ARK', product: 'Milan', signer: keys.ARK } as const;

const failing = async (more: Partial<VerifyOptions>): Promise<string[]> =>
  (await verifyReport(report, { ...options, ...more })).failures.map(({ name }) => name);

const year = (from: number, to: number) => ({
  from: new Date(Date.UTC(from, 0, 1)),
  to: new Date(Date.UTC(to, 0, 1)),
});
const revoked = (...serials: number[]): Revocation[] =>
  serials.map((serial) => ({ serial, at: new Date('2026-02-01T00:00:00Z') }));

const hex = (text: string): string => Buffer.from(text).toString('hex');

describe('a revocation list', () => {
  const list = (serial: number): Uint8Array => issueCrl(issuer, 1, revoked(serial), year(2026, 2027));

  it.each([
    // The serial number of every VCEK, whose issuer is the ASK and not the list's.
    [0, []],
    [0x10000, ['ARK.revocation']],
    [0x10001, ['ASK.revocation']],
    [0x10002, []],
  ])('with serial number 0x%x', async (serial, failures) => {
    expect(await failing({ crls: [list(serial)] })).toEqual(failures);
  });

  it.each([
    ['2025-12-31T23:59:59Z', ['CRL.validity']],
    ['2026-01-01T00:00:00Z', []],
    ['2027-01-01T00:00:00Z', []],
    ['2027-01-01T00:00:01Z', ['CRL.validity']],
  ])('counts at %s', async (at, failures) => {
    const names = await failing({ crls: [list(9)], at: new Date(at) });
    expect(names.filter((name) => name.startsWith('CRL'))).toEqual(failures);
  });

  it.each([
    ['2025-12-31T23:59:59Z', ['CRL.validity']],
    ['2026-01-01T00:00:00Z', []],
    ['2030-01-01T00:00:00Z', []],
  ])('that does not say when the next comes counts at %s', async (at, failures) => {
    const crls = [without(list(9), keys.ARK, 4, 'list')];
    expect(
      await failing({ crls, at: new Date(at) }).then((all) => all.filter((name) => /^CRL/.test(name))),
    ).toEqual(failures);
  });

  it('is of the root whose name it has byte by byte', async () => {
    const { issuer: name } = parseCrl(crl);
    const organization = `0c16${hex('Advanced Micro Devices')}`;
    const text = Buffer.from(name.bytes).toString('hex');
    const other = text.replace(organization, organization.replace(/^0c/, '13'));
    const relabelled = forged(crl, keys.ARK, [{ from: text, to: other }], 'list');
    expect(await failing({ crls: [relabelled] })).toEqual(['CRL.issuer']);
  });

  it('counts until a year beyond 2049, which is written otherwise', async () => {
    const late = issueCrl(issuer, 1, revoked(9), year(2026, 2051));
    const counts = async (at: string) =>
      (await failing({ crls: [late], at: new Date(at) })).includes('CRL.validity');
    expect([await counts('2050-12-31T00:00:00Z'), await counts('2051-01-02T00:00:00Z')]).toEqual([
      false,
      true,
    ]);
  });

  it.each<[what: string, change: Change, failures: string[]]>([
    [
      'a salt of 32 bytes',
      { from: 'a203020130', to: 'a203020120', where: 'both' },
      ['CRL.signature-algorithm'],
    ],
    [
      'a salt of 32 bytes in one of two places',
      { from: 'a203020130', to: 'a203020120', where: 'outside' },
      ['CRL.signature-algorithm'],
    ],
    [
      'a salt of 32 bytes in the other place',
      { from: 'a203020130', to: 'a203020120' },
      ['CRL.signature-algorithm'],
    ],
  ])('with %s', async (_what, change, failures) => {
    expect(await failing({ crls: [forged(crl, keys.ARK, [change], 'list')] })).toEqual(failures);
  });
});

describe('several revocation lists', () => {
  /** Judged at 2026-06-01. */
  const lists = {
    current: issueCrl(issuer, 1, [], year(2026, 2027)),
    'another current': issueCrl(issuer, 1, [], year(2025, 2027)),
    'higher number': issueCrl(issuer, 0x80, [], year(2026, 2028)),
    'longer, lower number': issueCrl(issuer, 0x7f, [], year(2026, 2029)),
    stale: issueCrl(issuer, 0, [], year(2025, 2026)),
    'newer, but stale': issueCrl(issuer, 2, [], {
      from: new Date('2026-03-01T00:00:00Z'),
      to: new Date('2026-04-01T00:00:00Z'),
    }),
    future: issueCrl(issuer, 3, [], year(2027, 2028)),
    'revokes the ASK': issueCrl(issuer, 2, revoked(0x10001), year(2026, 2027)),
    'stale, revokes the ASK': issueCrl(issuer, 2, revoked(0x10001), year(2025, 2026)),
    'older, revokes the ASK': issueCrl(issuer, 0, revoked(0x10001), year(2025, 2027)),
    'revokes the ARK': issueCrl(issuer, 2, revoked(0x10000), year(2026, 2027)),
    'revokes the ASVK': issueCrl(issuer, 2, revoked(0x10101), year(2026, 2027)),
    'has a changed byte': crl.with(-1, crl.at(-1)! ^ 1),
  };
  type Name = keyof typeof lists;

  it.each<[one: Name, other: Name, failures: string[]]>([
    ['current', 'stale', []],
    ['current', 'another current', []],
    ['current', 'future', []],
    ['current', 'newer, but stale', ['CRL.validity']],
    ['stale', 'future', ['CRL.validity']],
    ['stale', 'newer, but stale', ['CRL.validity']],
    ['current', 'revokes the ASK', ['ASK.revocation']],
    ['current', 'older, revokes the ASK', ['ASK.revocation']],
    ['current', 'stale, revokes the ASK', ['ASK.revocation']],
    ['stale', 'revokes the ASK', ['ASK.revocation']],
    ['current', 'revokes the ARK', ['ARK.revocation']],
    ['revokes the ASK', 'revokes the ARK', ['ARK.revocation', 'ASK.revocation']],
    ['current', 'revokes the ASVK', []],
  ])('one %s, the other %s: the same fails in either order', async (one, other, failures) => {
    expect(await failing({ crls: [lists[one], lists[other]] })).toEqual(failures);
    expect(await failing({ crls: [lists[other], lists[one]] })).toEqual(failures);
  });

  it('one that is issued this very second counts beside a stale one', async () => {
    const at = new Date('2026-01-01T00:00:00Z');
    const stale = issueCrl(issuer, 0, [], {
      from: new Date('2025-01-01T00:00:00Z'),
      to: new Date('2025-06-01T00:00:00Z'),
    });
    const { checks } = await verifyReport(report, { ...options, crls: [stale, lists.current], at });
    expect(checks.find(({ name }) => name === 'CRL.validity')!.want).toMatch(/^2026-01-01/);
  });

  it('of one day: the number says which is the newest', async () => {
    const crls = [lists['higher number'], lists['longer, lower number']];
    for (const given of [crls, crls.toReversed()]) {
      const { checks } = await verifyReport(report, { ...options, crls: given });
      expect(checks.find(({ name }) => name === 'CRL.validity')!.want).toMatch(/to 2028-01-01/);
    }
  });

  it('a revoked ASVK fails for a report that a VLEK signed, in either order', async () => {
    const { leaf, intermediate, ark } = { ...(await authority.loadedKey(authority.chip('milan'))).chain };
    const vlekReport = report.slice();
    vlekReport[0x48] = 1 << 2;
    const certificates = [leaf, intermediate, ark];
    for (const crls of [
      [lists.current, lists['revokes the ASVK']],
      [lists['revokes the ASVK'], lists.current],
    ]) {
      const { failures } = await verifyReport(vlekReport, { ...options, certificates, crls });
      expect(failures.map(({ name }) => name)).toContain('ASVK.revocation');
    }
  });

  it('the one that is forged is named', async () => {
    expect(await failing({ crls: [lists.current, lists['has a changed byte']] })).toEqual([
      'CRL[1].signature',
    ]);
    expect(await failing({ crls: [lists['has a changed byte'], lists.current] })).toEqual([
      'CRL[0].signature',
    ]);
  });

  it('of other generations are passed over', async () => {
    const crls = [await authority.crl('Genoa'), crl, await authority.crl('Turin')];
    expect(await failing({ crls, policy: { revocation: 'required' } })).toEqual([]);
  });
});

describe('a list of no root of AMD’s', () => {
  it('is not taken for one of another generation', async () => {
    const changed = forged(crl, keys.ARK, [{ from: hex('ARK-Milan'), to: hex('ARK-Mjlan') }], 'list');
    expect(await failing({ crls: [changed] })).toEqual(['CRL.issuer']);
    expect(await failing({ crls: [crl, changed], policy: { revocation: 'required' } })).toEqual([
      'CRL[1].issuer',
    ]);
  });

  it('with any byte changed is refused', async () => {
    const accepted: number[] = [];
    for (let at = 0; at < crl.length; at += 3) {
      const changed = crl.with(at, crl[at]! ^ 1);
      if ((await verifyReport(report, { ...options, crls: [changed] })).ok) accepted.push(at);
    }
    expect(accepted).toEqual([]);
  });
});
