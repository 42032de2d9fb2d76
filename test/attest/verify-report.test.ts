import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { attestationReport } from '../../src/abi/attestation-report.ts';
import { type ReportPolicy, type VerifyOptions, verifyReport } from '../../src/attest/index.ts';
import { seededEntropy } from '../../src/base/entropy.ts';
import { Chip, type ChipGeneration, vlekSigningKey } from '../../src/hardware/chip.ts';
import { evidenceOf, NOW, type ReportFields, sign, signedReport } from './evidence.ts';
import { forged, signerOf } from './forged-certificate.ts';

const GENERATIONS: readonly ChipGeneration[] = ['milan', 'genoa', 'turin'];
const failing = async (report: Uint8Array, options: VerifyOptions): Promise<string[]> =>
  (await verifyReport(report, options)).failures.map(({ name }) => name);

const milan = await evidenceOf('milan');
const fill = (length: number, byte: number): string => byte.toString(16).padStart(2, '0').repeat(length);

describe('a report that holds', () => {
  it.each(GENERATIONS)('of a %s verifies with the root that was given', async (generation) => {
    const { report, options } = await evidenceOf(generation);
    const verdict = await verifyReport(report, options);
    expect(verdict.failures).toEqual([]);
    expect(verdict.ok).toBe(true);
    expect(verdict.checks.length).toBeGreaterThan(40);
  });

  it.each([2, 3, 5])('of version %i verifies', async (version) => {
    const mitigations = version === 5 ? { launchMitVector: 1n, currentMitVector: 3n } : {};
    const cpuid = version === 2 ? { cpuidFamily: 0, cpuidModel: 0, cpuidStepping: 0 } : {};
    const { report, options } = await evidenceOf('milan', { version, ...mitigations, ...cpuid });
    expect(await failing(report, options)).toEqual([]);
  });

  it.each(GENERATIONS)('signed by a VLEK of a %s verifies', async (generation) => {
    const { authority, chip, options } = await evidenceOf(generation);
    const { product } = chip.personality;
    const { chain } = await authority.loadedKey(chip);
    const sticks = authority.providerKey(product, chip.reportedTcb);
    const report = signedReport(
      chip,
      { keyInfo: 1 << 2, chipId: new Uint8Array(64) },
      vlekSigningKey(sticks, 'rfc6979'),
    );
    const certificates = [chain.leaf, chain.intermediate, chain.ark];
    expect(await failing(report, { ...options, certificates })).toEqual([]);
  });

  it('signed by a VLEK that names a chip does not verify: a VLEK belongs to a provider', async () => {
    const { authority, chip, options } = await evidenceOf('milan');
    // A name of 6 letters is 8 bytes of DER, as many as a hardware id may have.
    const { chain } = await authority.loadedKey(chip, 'abcdef');
    const sticks = authority.providerKey('Milan', chip.reportedTcb, 'abcdef');
    const report = signedReport(
      chip,
      { keyInfo: 1 << 2, chipId: new Uint8Array(64) },
      vlekSigningKey(sticks, 'rfc6979'),
    );
    const signer = await signerOf('Milan', 'ASVK');
    const withHwid = forged(chain.leaf, signer, [{ from: '2b060104019c780105', to: '2b060104019c780104' }]);
    const verify = (leaf: Uint8Array): Promise<string[]> =>
      failing(report, { ...options, certificates: [leaf, chain.intermediate, chain.ark] });
    expect(await verify(chain.leaf)).toEqual([]);
    expect(await verify(withHwid)).toEqual(['VLEK.csp-id', 'VLEK.hwid']);
    const certificates = [withHwid, chain.intermediate, chain.ark];
    const { checks } = await verifyReport(report, { ...options, certificates });
    expect(checks.find(({ name }) => name === 'VLEK.hwid')!.got).toBe('1606616263646566');
  });

  it('verifies without an ARK among its certificates: the given one judges', async () => {
    const { report, options } = milan;
    const certificates = options.certificates.slice(0, 2);
    expect(await failing(report, { ...options, certificates })).toEqual([]);
  });

  it('verifies inside a response of the firmware', async () => {
    const response = new Uint8Array(0x20 + 0x4a0);
    new DataView(response.buffer).setUint32(4, 0x4a0, true);
    response.set(milan.report, 0x20);
    expect(await failing(response, milan.options)).toEqual([]);
  });

  it('passes a masked chip id', async () => {
    expect(await failing(signedReport(milan.chip, { chipId: new Uint8Array(64) }), milan.options)).toEqual(
      [],
    );
  });

  it('is said to be software’s', async () => {
    expect((await verifyReport(milan.report, milan.options)).isSoftware).toBe(true);
  });

  it('is said to be software’s for certificates of the chain alone', async () => {
    const { chain } = await milan.authority.loadedKey(milan.chip);
    const beside = { ...milan.options, certificates: [chain.leaf, chain.intermediate], roots: [] };
    expect((await verifyReport(milan.report, beside)).isSoftware).toBe(false);
  });
});

describe('a root', () => {
  it('is never implied: without one nothing verifies', async () => {
    expect(await failing(milan.report, { ...milan.options, roots: [] })).toEqual(['ARK.trusted']);
  });

  it('of another authority is not trusted, by its fingerprint', async () => {
    const genoa = await evidenceOf('genoa');
    const verdict = await verifyReport(milan.report, { ...milan.options, roots: genoa.options.roots });
    expect(verdict.failures).toEqual([
      {
        name: 'ARK.trusted',
        ok: false,
        got: await milan.authority.fingerprint('Milan'),
        want: await genoa.authority.fingerprint('Genoa'),
      },
    ]);
  });

  it('that is changed is named once, and only where it counts', async () => {
    const [vcek, ask, ark] = milan.options.certificates as [Uint8Array, Uint8Array, Uint8Array];
    const changed = ark.with(-1, ark.at(-1)! ^ 1);
    const untrusted = { ...milan.options, certificates: [vcek, ask, changed], roots: [] };
    expect(await failing(milan.report, untrusted)).toEqual(['ARK.trusted', 'ARK.signature']);
    const both = { ...milan.options, certificates: [vcek, ask, ark, changed], roots: [ark, changed] };
    expect(await failing(milan.report, both)).toEqual([]);
  });

  it('that is an ASK roots nothing', async () => {
    const roots = [milan.options.certificates[1]!];
    expect(await failing(milan.report, { ...milan.options, roots })).toEqual(['ARK.trusted']);
  });

  it('that is malformed throws and says which', async () => {
    await expect(
      verifyReport(milan.report, { ...milan.options, roots: [Uint8Array.of(0x30, 5)] }),
    ).rejects.toThrow('root 0');
  });
});

describe('one wrong thing in a signed report', () => {
  const rows: readonly (readonly [what: string, fields: ReportFields, failures: string[]])[] = [
    ['a signature algorithm of 2', { signatureAlgo: 2 }, ['report.signature-algorithm']],
    ['signing key "none"', { keyInfo: 7 << 2 }, ['signing-key']],
    ['signing key VLEK', { keyInfo: 1 << 2 }, ['VLEK.present', 'ASVK.present', 'report.signature']],
    ['a reserved signing key', { keyInfo: 3 << 2 }, ['signing-key']],
    ['policy without its reserved bit', { policy: 0x10000n }, ['policy.reserved']],
    ['policy with debug', { policy: 0xb0000n }, ['policy.debug']],
    ['policy with a migration agent', { policy: 0x70000n }, ['policy.migrate-ma']],
    ['policy with CXL', { policy: 0x230000n }, ['policy.cxl-allow']],
    ['another boot loader', { reportedTcb: 0xdb18_0000_0000_0003n }, ['VCEK.tcb.bootLoader']],
    [
      'another TEE',
      {
        reportedTcb: 0xdb18_0000_0000_0104n,
        committedTcb: 0xdb18_0000_0000_0104n,
        currentTcb: 0xdb18_0000_0000_0104n,
      },
      ['VCEK.tcb.tee'],
    ],
    ['another SNP firmware', { reportedTcb: 0xdb17_0000_0000_0004n }, ['VCEK.tcb.snp']],
    ['another microcode', { reportedTcb: 0xda18_0000_0000_0004n }, ['VCEK.tcb.microcode']],
    ['a committed TCB below the reported one', { committedTcb: 0xdb17_0000_0000_0004n }, ['tcb.reported']],
    ['a current TCB below the committed one', { currentTcb: 0xda18_0000_0000_0004n }, ['tcb.committed']],
    ['a reserved byte of the TCB', { reportedTcb: 0xdb18_0001_0000_0004n }, ['tcb.reported.reserved']],
    ['another chip', { chipId: new Uint8Array(64).fill(9) }, ['VCEK.hwid']],
    ['CPUID of a Genoa', { cpuidModel: 0x11 }, ['report.product']],
    ['CPUID of no known generation', { cpuidFamily: 0x17 }, ['report.cpuid']],
  ];
  it.each(rows)('%s', async (_what, fields, failures) => {
    const names = await failing(signedReport(milan.chip, fields), milan.options);
    expect(names).toEqual(failures);
  });

  it('a reserved byte', async () => {
    for (const at of [0x4c, 0x18b, 0x19f, 0x1eb, 0x1ef, 0x1f8, 0x207, 0x208, 0x29f]) {
      const report = milan.report.slice();
      report[at] = 1;
      const names = await failing(sign(report, milan.chip.vcek(milan.chip.reportedTcb)), milan.options);
      expect([at, names]).toEqual([at, ['report.reserved']]);
    }
  });

  it('a byte after the signature, which nothing signs', async () => {
    for (const at of [0x330, 0x49f]) {
      const report = milan.report.slice();
      report[at] = 1;
      expect(await failing(report, milan.options)).toEqual(['report.reserved']);
    }
  });

  it('R or S that does not fit P-384', async () => {
    for (const at of [0x2a0 + 48, 0x2e8 + 71]) {
      const report = milan.report.slice();
      report[at] = 1;
      expect(await failing(report, milan.options)).toEqual(['report.signature']);
    }
  });

  it('FMC of a Turin', async () => {
    const turin = await evidenceOf('turin');
    const tcb = turin.chip.reportedTcb - 1n;
    expect(await failing(signedReport(turin.chip, { reportedTcb: tcb }), turin.options)).toEqual([
      'VCEK.tcb.fmc',
    ]);
  });

  it('a version that nobody knows', async () => {
    const { ok, failures, report } = await verifyReport(
      signedReport(milan.chip, { version: 6 }),
      milan.options,
    );
    expect([ok, report]).toEqual([false, undefined]);
    expect(failures).toEqual([
      { name: 'report.form', ok: false, got: 'report.version: got 6, want 2, 3, 4, 5', want: 'well-formed' },
    ]);
  });

  it('several wrong things are all named', async () => {
    const report = signedReport(milan.chip, {
      policy: 0xb0000n,
      chipId: new Uint8Array(64).fill(9),
      signatureAlgo: 3,
    });
    expect(await failing(report, { ...milan.options, roots: [], policy: { vmpl: 2 } })).toEqual([
      'report.signature-algorithm',
      'ARK.trusted',
      'VCEK.hwid',
      'vmpl',
      'policy.debug',
    ]);
  });
});

describe('a changed report', () => {
  it('never verifies, whichever bit it is', async () => {
    await fc.assert(
      fc.asyncProperty(fc.nat(0x4a0 * 8 - 1), async (bit) => {
        const report = milan.report.slice();
        report[bit >> 3]! ^= 1 << (bit & 7);
        expect((await verifyReport(report, milan.options)).ok).toBe(false);
      }),
      { numRuns: 150 },
    );
  });
});

describe('a changed certificate', () => {
  it('never verifies, whichever bit it is, and never throws', async () => {
    await fc.assert(
      fc.asyncProperty(fc.nat(2), fc.nat(), async (index, seed) => {
        const certificates = milan.options.certificates.map((bytes) => bytes.slice());
        const bytes = certificates[index]!;
        const bit = seed % (bytes.length * 8);
        bytes[bit >> 3]! ^= 1 << (bit & 7);
        expect((await verifyReport(milan.report, { ...milan.options, certificates })).ok).toBe(false);
      }),
      { numRuns: 150 },
    );
  });

  it('whose names are none of AMD’s is not passed over', async () => {
    const [vcek, ask, ark] = milan.options.certificates as [Uint8Array, Uint8Array, Uint8Array];
    const subject = Buffer.from(ark).lastIndexOf('ARK-Milan');
    for (let bit = 0; bit < 8 * 'ARK-Milan'.length; bit++) {
      const changed = ark.slice();
      changed[subject + (bit >> 3)]! ^= 1 << (bit & 7);
      for (const certificates of [
        [vcek, ask, changed],
        [changed, ark, ask, vcek],
      ]) {
        expect(await failing(milan.report, { ...milan.options, certificates })).toEqual([
          expect.stringMatching(/^certificates\[[02]\]\.(kind|form)$/),
        ]);
      }
    }
  });

  it('whose names are another’s is passed over', async () => {
    const ark = milan.options.certificates[2]!;
    const others = Buffer.from(ark)
      .toString('latin1')
      .replaceAll('Advanced Micro Devices', 'Advanced Macro Device.')
      .replaceAll('ARK-Milan', 'CA of ABC');
    const certificates = [Buffer.from(others, 'latin1'), ...milan.options.certificates];
    expect(await failing(milan.report, { ...milan.options, certificates })).toEqual([]);
  });

  it('that has AMD’s name for anything but its organization is another’s', async () => {
    const ark = milan.options.certificates[2]!;
    const others = Buffer.from(ark)
      .toString('latin1')
      .replaceAll('Advanced Micro Devices', 'Advanced Macro Device.')
      .replaceAll('ARK-Milan', 'CA of ABC');
    const organization = Buffer.from('060355040a0c16', 'hex').toString('latin1');
    const department = Buffer.from('060355040b0c16', 'hex').toString('latin1');
    const moved = others.replaceAll(
      `${organization}Advanced Macro Device.`,
      `${department}Advanced Micro Devices`,
    );
    const certificates = [Buffer.from(moved, 'latin1'), ...milan.options.certificates];
    expect(await failing(milan.report, { ...milan.options, certificates })).toEqual([]);
  });

  it('that is truncated says so', async () => {
    const [vcek, ask] = milan.options.certificates;
    const certificates = [vcek!.subarray(0, 700), ask!];
    const { failures } = await verifyReport(milan.report, { ...milan.options, certificates });
    expect(failures[0]).toMatchObject({ name: 'certificates[0].form' });
    expect(failures[0]!.got).toContain('truncated');
  });

  it('that has extra data says so', async () => {
    const certificates = [
      new Uint8Array([...milan.options.certificates[0]!, 0]),
      milan.options.certificates[1]!,
    ];
    const { failures } = await verifyReport(milan.report, { ...milan.options, certificates });
    expect(failures[0]!.got).toBe('certificates[0]: got 1 bytes after its last field, want none');
  });
});

describe('certificates', () => {
  it('of another chip do not fit', async () => {
    const other = new Chip({ generation: 'milan', entropy: seededEntropy(99), signatures: 'rfc6979' });
    const vcek = await milan.authority.vcek(other, other.reportedTcb);
    const certificates = [vcek, ...milan.options.certificates.slice(1)];
    expect(await failing(milan.report, { ...milan.options, certificates })).toEqual([
      'report.signature',
      'VCEK.hwid',
    ]);
  });

  it('of another TCB do not fit', async () => {
    const vcek = await milan.authority.vcek(milan.chip, milan.chip.tcbOf({ snp: 23 }));
    const certificates = [vcek, ...milan.options.certificates.slice(1)];
    expect(await failing(milan.report, { ...milan.options, certificates })).toEqual([
      'report.signature',
      'VCEK.tcb.snp',
    ]);
  });

  it('that are missing are named', async () => {
    const [vcek, ask, ark] = milan.options.certificates;
    const without = (certificates: Uint8Array[]) => failing(milan.report, { ...milan.options, certificates });
    expect(await without([])).toEqual(['VCEK.present', 'ASK.present', 'ARK.trusted', 'report.signature']);
    expect(await without([vcek!, ark!])).toEqual(['ASK.present', 'VCEK.signature']);
    expect(await without([ask!, ark!])).toEqual(['VCEK.present', 'report.signature']);
  });

  it.each([
    ['2025-12-31T23:59:59Z', ['ARK.validity', 'ASK.validity', 'VCEK.validity', 'CRL.validity']],
    ['2026-01-01T00:00:00Z', []],
    ['2033-01-01T00:00:00Z', []],
    ['2033-01-01T00:00:01Z', ['VCEK.validity', 'CRL.validity']],
    ['2051-01-01T00:00:01Z', ['ARK.validity', 'ASK.validity', 'VCEK.validity', 'CRL.validity']],
  ])('at %s: what is not valid is %j', async (at, failures) => {
    expect(await failing(milan.report, { ...milan.options, at: new Date(at) })).toEqual(failures);
  });

  it('may come as one PEM file', async () => {
    const pem = milan.options.certificates
      .map(
        (bytes) =>
          `-----BEGIN CERTIFICATE-----\n${Buffer.from(bytes).toString('base64')}\n-----END CERTIFICATE-----\n`,
      )
      .join('between\n');
    expect(await failing(milan.report, { ...milan.options, certificates: [Buffer.from(pem)] })).toEqual([]);
  });
});

describe('revocation', () => {
  it('of the ASK fails', async () => {
    const { authority, report, options } = await evidenceOf('milan');
    authority.revoke('Milan', 'ASK');
    const crls = [await authority.crl('Milan')];
    expect(await failing(report, { ...options, crls })).toEqual(['ASK.revocation']);
  });

  it('of the ASVK does not touch a VCEK', async () => {
    const { authority, report, options } = await evidenceOf('milan');
    authority.revoke('Milan', 'ASVK');
    expect(await failing(report, { ...options, crls: [await authority.crl('Milan')] })).toEqual([]);
  });

  it('list: none is needed, unless it is demanded', async () => {
    const { report, options } = milan;
    expect(await failing(report, { ...options, crls: [] })).toEqual([]);
    const policy: ReportPolicy = { revocation: 'required' };
    expect(await failing(report, { ...options, crls: [], policy })).toEqual(['CRL.present']);
    expect(await failing(report, { ...options, policy })).toEqual([]);
  });

  it('list of another root is not one of this root', async () => {
    const crls = [await milan.authority.crl('Genoa')];
    const policy: ReportPolicy = { revocation: 'required' };
    expect(await failing(milan.report, { ...milan.options, crls, policy })).toEqual(['CRL.present']);
  });

  it('list with a changed byte fails', async () => {
    const crl = milan.options.crls![0]!.slice();
    crl[crl.length - 1]! ^= 1;
    expect(await failing(milan.report, { ...milan.options, crls: [crl] })).toEqual(['CRL.signature']);
  });
});

/** A policy as a title. */
const inWords = (policy: ReportPolicy): string =>
  JSON.stringify(policy, (_key, value) =>
    typeof value === 'bigint' ? `0x${value.toString(16)}` : value instanceof Uint8Array ? 'bytes' : value,
  );

describe('options', () => {
  it('that nobody knows are refused by name: a misspelt one would check nothing', async () => {
    const misspelt = { ...milan.options, polcy: { vmpl: 3 } };
    await expect(verifyReport(milan.report, misspelt)).rejects.toThrow(
      'options.polcy: got a field that is none, want certificates, roots, crls, policy, at, obtainedAt',
    );
  });
});

describe('a report that does not say its generation', () => {
  it('without a certificate gets a verdict all the same', async () => {
    const cpuid = { cpuidFamily: 0, cpuidModel: 0, cpuidStepping: 0 };
    const report = signedReport(milan.chip, { version: 2, ...cpuid });
    const policy: ReportPolicy = { product: 'Milan', minimumTcb: { snp: 1 } };
    expect(await failing(report, { ...milan.options, certificates: [], policy })).toEqual([
      'VCEK.present',
      'ASK.present',
      'ARK.trusted',
      'report.signature',
      'product.wanted',
      'tcb.minimum.snp',
    ]);
  });
});

describe('policy', () => {
  const rows: readonly (readonly [policy: ReportPolicy, failures: string[]])[] = [
    [{ product: 'Milan' }, []],
    [{ product: 'Genoa' }, ['product.wanted']],
    [{ signingKey: 'VCEK' }, []],
    [{ signingKey: 'VLEK' }, ['signing-key.wanted']],
    [{ measurement: fill(48, 0x11) }, []],
    [{ measurement: fill(48, 0x12) }, ['measurement']],
    [{ measurement: [fill(48, 0x12), fill(48, 0x11)] }, []],
    [{ measurement: new Uint8Array(48).fill(0x11) }, []],
    [{ hostData: fill(32, 0x22) }, []],
    [{ hostData: fill(32, 0) }, ['host-data']],
    [{ reportData: fill(64, 0x33) }, []],
    [{ reportData: fill(64, 0x34) }, ['report-data']],
    [{ vmpl: 0 }, []],
    [{ vmpl: 1 }, ['vmpl']],
    [{ allow: [] }, ['policy.smt']],
    [{ allow: ['smt', 'debug'] }, []],
    [{ demand: ['single-socket', 'rapl-dis'] }, ['policy.single-socket', 'policy.rapl-dis']],
    [
      { demand: ['mem-aes-256-xts', 'ciphertext-hiding', 'page-swap-disable'] },
      ['policy.mem-aes-256-xts', 'policy.ciphertext-hiding', 'policy.page-swap-disable'],
    ],
    [{ guestPolicy: 0x30000n }, []],
    [{ guestPolicy: 0x20000n }, ['policy']],
    [{ minimumAbi: [0, 0] }, []],
    [{ minimumAbi: [0, 1] }, ['policy.abi']],
    [{ minimumAbi: [1, 0] }, ['policy.abi']],
    [{ familyId: fill(16, 0x77), imageId: fill(16, 0x88) }, []],
    [{ familyId: fill(16, 0), imageId: fill(16, 0) }, ['family-id', 'image-id']],
    [{ minimumGuestSvn: 5 }, []],
    [{ minimumGuestSvn: 6 }, ['guest-svn']],
    [{ idKeyDigest: fill(48, 0x44) }, []],
    [{ idKeyDigest: [fill(48, 0x45), fill(48, 0x46)] }, ['id-key-digest']],
    [{ authorKeyDigest: fill(48, 0x55) }, ['author-key']],
    [{ authorKeyDigest: fill(48, 0x56) }, ['author-key', 'author-key-digest']],
    [{ reportId: fill(32, 0x66) }, []],
    [{ reportId: fill(32, 0x67) }, ['report-id']],
    [{ minimumTcb: { bootLoader: 4, tee: 0, snp: 24, microcode: 219 } }, []],
    [
      { minimumTcb: { bootLoader: 5, tee: 1, snp: 25, microcode: 220 } },
      ['tcb.minimum.bootLoader', 'tcb.minimum.tee', 'tcb.minimum.snp', 'tcb.minimum.microcode'],
    ],
    [{ minimumTcb: { fmc: 0 } }, ['tcb.minimum.fmc']],
    [{ minimumLaunchTcb: { snp: 25 } }, ['launch-tcb.minimum.snp']],
    [{ minimumFirmware: [1, 55, 21] }, []],
    [{ minimumFirmware: [1, 55, 22] }, ['firmware']],
    [{ minimumFirmware: [1, 54, 99] }, []],
    [{ minimumFirmware: [2, 0, 0] }, ['firmware']],
    [{ platformInfo: 3n }, []],
    [{ platformInfo: 4n }, ['platform-info']],
    [{ maximumAge: 60 }, ['age']],
  ];
  const named = rows.map(([policy, failures]) => ({ title: inWords(policy), policy, failures }));
  it.each(named)('$title: what fails is $failures', async ({ policy, failures }) => {
    expect(await failing(milan.report, { ...milan.options, policy })).toEqual(failures);
  });

  it.each([
    [0, []],
    [60, []],
    [61, ['age']],
    [-1, ['age']],
  ])('of at most 60 s: a report that was obtained %i s ago fails %j', async (seconds, failures) => {
    const obtainedAt = new Date(NOW.getTime() - seconds * 1000);
    expect(await failing(milan.report, { ...milan.options, obtainedAt, policy: { maximumAge: 60 } })).toEqual(
      failures,
    );
  });

  it.each([
    [[1, 50], []],
    [[1, 51], []],
    [[1, 52], ['policy.abi']],
    [[0, 99], []],
    [[2, 0], ['policy.abi']],
  ] as const)(
    'of at least ABI %j: what fails of a guest whose own policy says 1.51 is %j',
    async (minimumAbi, failures) => {
      const report = signedReport(milan.chip, { policy: 0x3_0133n });
      expect(await failing(report, { ...milan.options, policy: { minimumAbi } })).toEqual(failures);
    },
  );

  it.each([
    ['the report’s', {}, '5a'.repeat(64)],
    ['that it is masked', { chipId: new Uint8Array(64), keyInfo: 1 << 2 }, 'masked'],
  ])('that wants another chip shows %s', async (_, fields, got) => {
    const report = signedReport(milan.chip, { chipId: new Uint8Array(64).fill(0x5a), ...fields } as never);
    const { checks } = await verifyReport(report, { ...milan.options, policy: { chipId: 'ff'.repeat(64) } });
    expect(checks.find(({ name }) => name === 'chip-id.wanted')).toMatchObject({ ok: false, got });
  });

  it('takes a Turin’s chip id in 8 bytes', async () => {
    const turin = await evidenceOf('turin');
    const chipId = Buffer.from(turin.chip.fuses.id).toString('hex');
    expect(await failing(turin.report, { ...turin.options, policy: { chipId } })).toEqual([]);
    const other = 'ff'.repeat(8);
    expect(await failing(turin.report, { ...turin.options, policy: { chipId: other } })).toEqual([
      'chip-id.wanted',
    ]);
  });

  it('counts the author key where it was used', async () => {
    const report = signedReport(milan.chip, { keyInfo: 1 });
    expect(await failing(report, { ...milan.options, policy: { authorKeyDigest: fill(48, 0x55) } })).toEqual(
      [],
    );
  });

  it.each([
    [{ measurement: 'abc' }, 'policy.measurement: got abc, want 48 bytes in hex'],
    [{ hostData: 'xy'.repeat(32) }, 'policy.hostData: got xyxy'],
    [{ hostData: '00' }, 'policy.hostData: got 00, want 32 bytes in hex'],
    [{ minimumAbi: null }, 'policy.minimumAbi: got null, want 2 integers from 0 to 255'],
    [{ minimumAbi: '15' }, 'policy.minimumAbi: got 15, want 2 integers from 0 to 255'],
    [{ minimumFirmware: [1, 55] }, 'policy.minimumFirmware: got 1,55, want 3 integers from 0 to 255'],
    [
      { minimumFirmware: Uint8Array.of(1, 55, 21) },
      'policy.minimumFirmware: got 1,55,21, want 3 integers from 0 to 255',
    ],
    [{ vmpl: 4 }, 'policy.vmpl: got 4, want 0 to 3'],
    [{ bogus: 1 }, 'policy.bogus: got a field that is none, want product, measurement, hostData'],
    [{ hostdata: fill(32, 0x22) }, 'policy.hostdata: got a field that is none'],
    [{ minimumTcb: { ucode: 3 } }, 'policy.minimumTcb.ucode: got a field that is none, want fmc, bootLoader'],
    [{ minimumLaunchTcb: { SNP: 3 } }, 'policy.minimumLaunchTcb.SNP: got a field that is none'],
    [{ allow: ['everything'] }, 'policy.allow: got everything, want debug or migrate-ma or smt or cxl-allow'],
    [{ demand: ['ecc'] }, 'policy.demand: got ecc, want single-socket or mem-aes-256-xts'],
    [{ product: 'Rome' }, 'policy.product: got Rome, want Milan or Genoa or Turin'],
    [{ signingKey: 'vlek' }, 'policy.signingKey: got vlek, want VCEK or VLEK'],
    [{ revocation: 'require' }, 'policy.revocation: got require, want required or if given'],
  ] as [ReportPolicy, string][])('%j is malformed: it throws and says how', async (policy, message) => {
    await expect(verifyReport(milan.report, { ...milan.options, policy })).rejects.toThrow(message);
  });
});

describe('the layout', () => {
  it('has the offsets of the firmware ABI', () => {
    const { offsets, size } = attestationReport;
    expect(size).toBe(1184);
    expect([offsets.reportData, offsets.measurement, offsets.hostData, offsets.reportedTcb]).toEqual([
      0x50, 0x90, 0xc0, 0x180,
    ]);
    expect([offsets.chipId, offsets.committedTcb, offsets.launchTcb, offsets.signature]).toEqual([
      0x1a0, 0x1e0, 0x1f0, 0x2a0,
    ]);
  });
});
