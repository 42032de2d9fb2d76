import { describe, expect, it } from 'vitest';
import { describeReport, parseReport } from '../../src/attest/index.ts';
import { evidenceOf, type ReportFields, signedReport } from './evidence.ts';

const { chip } = await evidenceOf('milan');
const NO_CPUID = { cpuidFamily: 0, cpuidModel: 0, cpuidStepping: 0 };
const described = (fields: ReportFields, product?: 'Milan'): Record<string, string> =>
  Object.fromEntries(describeReport(parseReport(signedReport(chip, fields)), product));

describe('a report in words', () => {
  it('says what bits mean', () => {
    expect(described({ policy: 0x1f3_0133n | (1n << 25n), platformInfo: 0x25n, keyInfo: 3 })).toMatchObject({
      version: '3',
      policy:
        '0x3f30133 (ABI 1.51, SMT allowed, single socket, CXL allowed, AES-256-XTS, RAPL off, ciphertext hiding, page swap off)',
      'platform info': '0x25 (SMT_EN, ECC_EN, ALIAS_CHECK_COMPLETE)',
      'signing key': 'VCEK',
      'author key': 'used',
      'chip key': 'masked',
      'signature algorithm': 'ECDSA P-384 with SHA-384',
      'migration agent': 'none',
      cpuid: 'family 0x19, model 0x1, stepping 1 (Milan)',
      'committed firmware': '1.55.21',
      'reported tcb': '0xdb18000000000004 (bootLoader 4, tee 0, snp 24, microcode 219)',
    });
    expect(
      described({ policy: 0xc0000n, platformInfo: 0n, vmpl: 0xffff_ffff, signatureAlgo: 2 }),
    ).toMatchObject({
      policy: '0xc0000 (ABI 0.0, migration agent allowed, debug allowed)',
      'platform info': '0x0',
      vmpl: 'asked for by the host',
      'signature algorithm': '2',
    });
  });

  it('says who asked, whose agent migrates it, and which chip, unless that is masked', () => {
    expect(
      described({ vmpl: 3, reportIdMa: new Uint8Array(32).fill(0xab), chipId: new Uint8Array(64) }),
    ).toMatchObject({
      vmpl: '3',
      'migration agent': 'ab'.repeat(32),
      'chip id': 'masked',
    });
    expect(described({ chipId: new Uint8Array(64).fill(0x5a) })['chip id']).toBe('5a'.repeat(64));
  });

  it.each([
    [2, []],
    [3, ['cpuid']],
    [4, ['cpuid']],
    [5, ['cpuid', 'launch mitigations', 'current mitigations']],
  ])('of version %i has beside the usual fields %j', (version, fields) => {
    const own = ['cpuid', 'launch mitigations', 'current mitigations'];
    const report = described({ version, ...(version === 2 ? NO_CPUID : {}) });
    expect(Object.keys(report).filter((field) => own.includes(field))).toEqual(fields);
  });

  it('that does not say its generation has its TCB as a number, unless somebody says it', () => {
    const older = { version: 2, ...NO_CPUID };
    expect(described(older)['reported tcb']).toBe('0xdb18000000000004');
    expect(described(older, 'Milan')['reported tcb']).toContain('snp 24');
    expect(described({ cpuidFamily: 0x17 })).toMatchObject({
      cpuid: 'family 0x17, model 0x1, stepping 1 (unknown generation)',
    });
  });

  it('shows numbers of its signature as numbers, and says which do not fit', () => {
    const report = signedReport(chip);
    const r = Buffer.from(report.slice(0x2a0, 0x2a0 + 48).reverse()).toString('hex');
    const text = Object.fromEntries(describeReport(parseReport(report)));
    expect(text['signature r']).toBe(r);
    report[0x2a0 + 48] = 1;
    expect(Object.fromEntries(describeReport(parseReport(report)))['signature r']).toBe(
      `${'00'.repeat(23)}01${r} (too large)`,
    );
  });
});
