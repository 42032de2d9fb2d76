/** Evidence that brings several certificates of a kind: the one that fits counts, wherever it stands. */
import { describe, expect, it, vi } from 'vitest';
import { parseCertificate, type VerifyOptions, verifyReport } from '../../src/attest/index.ts';
import {
  issueArk,
  issueCrl,
  issueIntermediate,
  issueVcek,
  issueVlek,
  type Validity,
} from '../../src/authority/issue.ts';
import { vlekSigningKey } from '../../src/hardware/chip.ts';
import { evidenceOf, signedReport } from './evidence.ts';
import { forged, signerOf } from './forged-certificate.ts';

const years = (from: number, to: number): Validity => ({
  from: new Date(Date.UTC(from, 0, 1)),
  to: new Date(Date.UTC(to, 0, 1)),
});
const LATER = years(2025, 2040);
const GONE = years(2020, 2025);

const { report, options, chip, authority } = await evidenceOf('milan');
const [vcek, ask, ark] = options.certificates as [Uint8Array, Uint8Array, Uint8Array];
const own = { kind: 'ARK', product: 'Milan', signer: await signerOf('Milan', 'ARK') } as const;
const ownAsk = { kind: 'ASK', product: 'Milan', signer: await signerOf('Milan', 'ASK') } as const;
const ownAsvk = { kind: 'ASVK', product: 'Milan', signer: await signerOf('Milan', 'ASVK') } as const;
/** Milan's names with another's keys. */
const other = { kind: 'ARK', product: 'Milan', signer: await signerOf('Genoa', 'ARK') } as const;
const otherAsk = { kind: 'ASK', product: 'Milan', signer: await signerOf('Genoa', 'ASK') } as const;
const otherAsvk = { kind: 'ASVK', product: 'Milan', signer: await signerOf('Genoa', 'ASVK') } as const;

const request = {
  productName: 'Milan',
  tcb: chip.reportedTcb,
  hwid: chip.chipId,
  spki: chip.vcek(chip.reportedTcb).spki,
};
const otherArk = issueArk(other, LATER);

const failing = async (more: Partial<VerifyOptions>, bytes = report): Promise<string[]> =>
  (await verifyReport(bytes, { ...options, ...more })).failures.map(({ name }) => name);

/** Both orders, and that the one alone does not do. */
async function holdsBothWays(
  right: Uint8Array,
  wrong: Uint8Array,
  others: readonly Uint8Array[],
  more: Partial<VerifyOptions> = {},
  bytes = report,
): Promise<void> {
  expect(await failing({ ...more, certificates: [right, wrong, ...others] }, bytes)).toEqual([]);
  expect(await failing({ ...more, certificates: [wrong, right, ...others] }, bytes)).toEqual([]);
  expect(await failing({ ...more, certificates: [...others, wrong, right] }, bytes)).toEqual([]);
  expect(await failing({ ...more, certificates: [wrong, ...others] }, bytes)).not.toEqual([]);
}

describe('where there is no choice', () => {
  it('each signature is checked once: report, three certificates, one list', async () => {
    const verify = vi.spyOn(crypto.subtle, 'verify');
    try {
      expect(await failing({})).toEqual([]);
      expect(verify).toHaveBeenCalledTimes(5);
    } finally {
      verify.mockRestore();
    }
  });
});

describe('of several VCEKs', async () => {
  const stale = chip.reportedTcb - 1n;
  const otherChip = (await evidenceOf('milan', {}, 8)).options.certificates[0]!;
  it.each<[what: string, wrong: Uint8Array]>([
    ['of another TCB', await authority.vcek(chip, stale)],
    ['of another chip', otherChip],
    ['that has expired', issueVcek(ownAsk, request, GONE)],
    ['by another’s ASK', issueVcek(otherAsk, request, LATER)],
    ['of another key', issueVcek(ownAsk, { ...request, spki: chip.vcek(stale).spki }, LATER)],
    [
      'that are the right one but for a changed product name',
      forged(vcek, ownAsk.signer, [
        { from: Buffer.from('Milan-').toString('hex'), to: Buffer.from('Genoa-').toString('hex') },
      ]),
    ],
    ['of a Genoa', (await evidenceOf('genoa')).options.certificates[0]!],
  ])('the right one counts beside one %s', async (_what, wrong) => {
    await holdsBothWays(vcek, wrong, [ask, ark]);
  });

  it('the right one counts also for a report that does not say its generation', async () => {
    const older = signedReport(chip, { version: 2, cpuidFamily: 0, cpuidModel: 0, cpuidStepping: 0 });
    const genoa = (await evidenceOf('genoa')).options.certificates;
    await holdsBothWays(vcek, genoa[0]!, [genoa[1]!, ask, genoa[2]!, ark], {}, older);
  });

  it('the right one counts also where nobody is trusted, or nobody signed it', async () => {
    const wrong = issueVcek(otherAsk, request, LATER);
    for (const certificates of [
      [vcek, wrong, ask, ark],
      [wrong, vcek, ask, ark],
    ])
      expect(await failing({ certificates, roots: [] })).toEqual(['ARK.trusted']);
    const alone = await authority.vcek(chip, stale);
    for (const certificates of [
      [vcek, alone],
      [alone, vcek],
    ])
      expect(await failing({ certificates, roots: [] })).toEqual([
        'ASK.present',
        'ARK.trusted',
        'VCEK.signature',
      ]);
    const noRoot = [await authority.vcek(chip, stale), vcek, ask];
    expect(await failing({ certificates: noRoot, roots: [] })).toEqual(['ARK.trusted', 'ASK.signature']);
  });

  it('its product’s ASK counts beside another’s, though neither signed it', async () => {
    const older = signedReport(chip, { version: 2, cpuidFamily: 0, cpuidModel: 0, cpuidStepping: 0 });
    const [, genoaAsk, genoaArk] = (await evidenceOf('genoa')).options.certificates;
    const wrong = issueVcek(otherAsk, request, LATER);
    for (const asks of [
      [genoaAsk!, ask],
      [ask, genoaAsk!],
    ]) {
      const roots = [genoaArk!, ark];
      expect(await failing({ certificates: [wrong, ...asks], roots }, older)).toEqual(['VCEK.signature']);
      const withoutVcek = await failing({ certificates: asks, roots });
      expect(withoutVcek).toEqual(['VCEK.present', 'report.signature']);
    }
  });

  it('copies of one are one', async () => {
    const stale = await authority.vcek(chip, chip.reportedTcb - 1n);
    const certificates = [vcek, ask, ark];
    const { checks } = await verifyReport(report, { ...options, certificates });
    const again = await verifyReport(report, {
      ...options,
      certificates: [...certificates, ...certificates.map((bytes) => bytes.slice())],
      roots: [ark.slice(), ark],
    });
    expect(again.checks).toEqual(checks);
    expect(await failing({ certificates: [vcek, stale, vcek, stale, ask] })).toEqual([]);
  });

  it('the one counts whose ASK is good', async () => {
    const expired = issueIntermediate(own, 'ASK', ownAsk.signer.spki, GONE);
    const good = issueIntermediate(own, 'ASK', otherAsk.signer.spki, LATER);
    await holdsBothWays(issueVcek(otherAsk, request, LATER), vcek, [expired, good]);
  });

  it('none of another product counts, however bad the one of the report’s is', async () => {
    const genoa = await evidenceOf('genoa');
    const genoaAsk = { kind: 'ASK', product: 'Genoa', signer: await signerOf('Genoa', 'ASK') } as const;
    const good = issueVcek(genoaAsk, { ...request, productName: 'Genoa' }, LATER);
    const hwid = new Uint8Array(64).fill(9);
    const { spki } = genoa.chip.vcek(genoa.chip.reportedTcb);
    const bad = issueVcek(otherAsk, { productName: 'Milan', tcb: 0n, hwid, spki }, GONE);
    const certificates = [bad, good, genoa.options.certificates[1]!, ask];
    const failures = await failing({ certificates, roots: [ark, genoa.options.certificates[2]!] });
    expect(failures).toContain('VCEK.validity');
    expect(failures).not.toContain('report.product');
  });

  it('the first is named of those that fit alike, none of them well', async () => {
    const certificates = [await authority.vcek(chip, stale), await authority.vcek(chip, stale - 1n), ask];
    expect(await failing({ certificates })).toEqual(['report.signature', 'VCEK.tcb.bootLoader']);
    const { failures } = await verifyReport(report, { ...options, certificates });
    expect(failures[1]!.got).toBe('3');
  });
});

describe('of several ASKs', () => {
  it.each<[what: string, wrong: Uint8Array]>([
    ['of another root', issueIntermediate(other, 'ASK', otherAsk.signer.spki, LATER)],
    ['of another root for the same key', issueIntermediate(other, 'ASK', ownAsk.signer.spki, LATER)],
    ['of another key', issueIntermediate(own, 'ASK', otherAsk.signer.spki, LATER)],
    ['that has expired', issueIntermediate(own, 'ASK', ownAsk.signer.spki, GONE)],
    [
      'with another algorithm',
      forged(ask, own.signer, [{ from: 'a303020101', to: 'a303020102', where: 'both' }]),
    ],
  ])('the right one counts beside one %s, with a root or without among them', async (_what, wrong) => {
    await holdsBothWays(ask, wrong, [vcek, ark]);
    await holdsBothWays(ask, wrong, [vcek]);
  });

  it('the one that is not revoked counts', async () => {
    const renewed = forged(ask, own.signer, [{ from: '020301000130', to: '020301010130' }]);
    const crls = [issueCrl(own, 1, [{ serial: 0x010001, at: LATER.from }], LATER)];
    expect(await failing({ certificates: [vcek, ask, ark], crls })).toEqual(['ASK.revocation']);
    await holdsBothWays(renewed, ask, [vcek, ark], { crls });
  });
});

describe('a list', () => {
  it('of another product revokes nothing, though serial numbers are the same', async () => {
    const genoa = { kind: 'ARK', product: 'Genoa', signer: await signerOf('Genoa', 'ARK') } as const;
    const crls = [
      issueCrl(genoa, 1, [{ serial: 0x010001, at: LATER.from }], LATER),
      issueCrl(own, 1, [], LATER),
    ];
    const expired = forged(issueIntermediate(own, 'ASK', ownAsk.signer.spki, GONE), own.signer, [
      { from: '020301000130', to: '020301010130' },
    ]);
    await holdsBothWays(ask, expired, [vcek, ark], { crls });
  });
});

describe('of several VLEKs and ASVKs', async () => {
  const { chain } = await authority.loadedKey(chip);
  const key = vlekSigningKey(authority.providerKey('Milan', chip.reportedTcb), 'rfc6979');
  const vlekReport = signedReport(chip, { keyInfo: 1 << 2, chipId: new Uint8Array(64) }, key);
  const vlek = { spki: key.spki, tcb: chip.reportedTcb, cspId: 'SoftCVM' };

  it('the right VLEK counts', async () => {
    const others = [chain.intermediate, ark];
    const stale = await authority.vlek('Milan', chip.reportedTcb - 1n);
    const expired = issueVlek(ownAsvk, vlek, GONE);
    const anothers = issueVlek(otherAsvk, vlek, LATER);
    for (const wrong of [stale, expired, anothers])
      await holdsBothWays(chain.leaf, wrong, others, {}, vlekReport);
  });

  it('the right ASVK counts', async () => {
    const anothers = issueIntermediate(other, 'ASVK', otherAsvk.signer.spki, LATER);
    await holdsBothWays(chain.intermediate, anothers, [chain.leaf, ark], {}, vlekReport);
    await holdsBothWays(chain.intermediate, anothers, [chain.leaf], {}, vlekReport);
  });
});

describe('of several ARKs', async () => {
  it('one that is among the roots is no other for want of an ASK', async () => {
    const failures = await failing({ certificates: [vcek, ark] });
    expect(failures).toContain('ASK.present');
    expect(failures).not.toContain('ARK.trusted');
  });

  it('the one that signed the chain counts of several roots, whichever the evidence brings', async () => {
    for (const roots of [
      [ark, otherArk],
      [otherArk, ark],
    ]) {
      expect(await failing({ certificates: [vcek, ask], roots })).toEqual([]);
      expect(await failing({ certificates: [vcek, ask, otherArk], roots })).toEqual([]);
      expect(await failing({ certificates: [otherArk, ark, vcek, ask], roots })).toEqual([]);
    }
  });

  it('the one that has not expired counts of two roots with one key', async () => {
    const expired = issueArk(own, GONE);
    expect(await failing({ certificates: [vcek, ask], roots: [expired] })).toEqual(['ARK.validity']);
    expect(await failing({ certificates: [vcek, ask], roots: [expired, ark] })).toEqual([]);
    expect(await failing({ certificates: [vcek, ask, expired], roots: [expired, ark] })).toEqual([]);
  });

  it.each<[what: string, other: Uint8Array]>([
    ['of another product', (await evidenceOf('genoa')).options.certificates[2]!],
    ['of a stranger', otherArk],
    ['that has expired, of the same key', issueArk(own, GONE)],
  ])('one that nobody trusts takes no root’s place: one %s', async (_what, wrong) => {
    for (const certificates of [
      [vcek, ask, wrong],
      [wrong, vcek, ask],
      [wrong, vcek, ask, ark],
      [ark, wrong, vcek, ask],
    ])
      expect(await failing({ certificates })).toEqual([]);
    expect(await failing({ certificates: [vcek, wrong] })).toContain('ASK.present');
  });

  it('a changed copy of a root is refused, also beside the root', async () => {
    const changed = ark.slice();
    changed[changed.length - 1]! ^= 1;
    expect(await failing({ certificates: [vcek, ask, changed] })).toEqual(['certificates[2].signature']);
    expect(await failing({ certificates: [vcek, ask, ark, changed] })).toEqual(['certificates[3].signature']);
    const relabelled = Buffer.from(ark);
    relabelled[ark.length - 512 - 6]! ^= 1;
    expect(await failing({ certificates: [vcek, ask, relabelled] })).not.toEqual([]);
  });

  it('the one counts whose list is given, of two that signed an ASK of the same key', async () => {
    const roots = [ark, otherArk];
    const askB = issueIntermediate(other, 'ASK', ownAsk.signer.spki, LATER);
    for (const certificates of [
      [vcek, ask, askB],
      [vcek, askB, ask],
    ])
      for (const order of [roots, [...roots].reverse()])
        expect(await failing({ certificates, roots: order })).toEqual([]);
  });

  it('a trusted one that is named counts, though it signed nothing, where the evidence brings none', async () => {
    const unsigned = issueIntermediate(other, 'ASK', ownAsk.signer.spki, LATER);
    expect(await failing({ certificates: [vcek, unsigned] })).toEqual(['ASK.signature']);
  });

  it('the one that may not sign lists is no worse where there are none', async () => {
    const mayNot = forged(ark, own.signer, [{ from: '040403020106', to: '040403020204' }]);
    const roots = [issueArk(own, GONE), mayNot];
    expect(await failing({ certificates: [vcek, ask], roots, crls: [] })).toEqual([]);
  });

  it('the one that may sign lists counts of two with one key, where there are lists', async () => {
    const mayNot = forged(ark, own.signer, [{ from: '040403020106', to: '040403020204' }]);
    for (const roots of [
      [ark, mayNot],
      [mayNot, ark],
    ]) {
      expect(await failing({ certificates: [vcek, ask], roots })).toEqual([]);
      expect(await failing({ certificates: [vcek, ask], roots: [mayNot] })).toEqual(['CRL.signer']);
      expect(await failing({ certificates: [vcek, ask], roots: [mayNot], crls: [] })).toEqual([]);
    }
  });

  describe('with one key and two names', () => {
    const nameOf = (bytes: Uint8Array): string =>
      Buffer.from(parseCertificate(bytes).subject.bytes).toString('hex');
    const name = nameOf(ark);
    const otherName = name.replace(
      Buffer.from('Devices').toString('hex'),
      Buffer.from('Devicez').toString('hex'),
    );
    const renamed = forged(ark, own.signer, [
      { from: `${name}3082`, to: `${otherName}3082` },
      { from: `${name}30`, to: `${otherName}30` },
    ]);
    const byRenamed = forged(ask, own.signer, [{ from: name, to: otherName }]);

    it('the one counts that is named, also if the other is better', async () => {
      for (const roots of [
        [ark, renamed],
        [renamed, ark],
      ])
        expect(await failing({ certificates: [vcek, byRenamed, ark], roots, crls: [] })).toEqual([
          'ARK.subject',
        ]);
    });

    it('a trusted one is no issuer of what names the other: a stranger’s that signed the rest is shown', async () => {
      const anothers = issueIntermediate(other, 'ASK', ownAsk.signer.spki, LATER);
      const certificates = [vcek, anothers, byRenamed, otherArk];
      expect(await failing({ certificates, crls: [] })).toEqual(['ARK.trusted']);
    });

    it('the one counts whose name is right, and a list under it is no fault of it', async () => {
      for (const asks of [
        [ask, byRenamed],
        [byRenamed, ask],
      ])
        expect(await failing({ certificates: [vcek, ...asks], roots: [renamed, ark] })).toEqual([]);
    });
  });

  it('as many as a stranger sends cost a check each', async () => {
    const verify = vi.spyOn(crypto.subtle, 'verify');
    try {
      const serials = Array.from({ length: 20 }, (_, index) => (0x11 + index).toString(16));
      const arks = serials.map((serial) =>
        forged(otherArk, other.signer, [{ from: '0203010000', to: `02030100${serial}` }]),
      );
      const asks = serials.map((serial) =>
        forged(issueIntermediate(other, 'ASK', otherAsk.signer.spki, LATER), other.signer, [
          { from: '020301000130', to: `0203010${serial.padStart(3, '0')}30` },
        ]),
      );
      expect(await failing({ certificates: [...arks, ...asks, vcek] })).toContain('ARK.trusted');
      // A root with its own key, an ASK with the trusted root’s and one stranger’s; one more for each would be 20 more.
      expect(verify.mock.calls.length).toBeLessThan(70);
    } finally {
      verify.mockRestore();
    }
  });

  it('none counts that is not among the roots, though it signed all', async () => {
    const certificates = [
      issueVcek(otherAsk, request, LATER),
      issueIntermediate(other, 'ASK', otherAsk.signer.spki, LATER),
      otherArk,
    ];
    expect(await failing({ certificates, crls: [] })).toEqual(['ARK.trusted']);
    expect(await failing({ certificates: [...certificates, ark], crls: [] })).toContain('ASK.signature');
    expect(await failing({ certificates: [...certificates, vcek, ask, ark], crls: [] })).toEqual([]);
  });
});
