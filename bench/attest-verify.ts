/**
 * `attest.verify`: attestation reports verified, each from another chip, with nothing kept from one to the next: certificates parsed, chain of three
 * and report's signature checked, chip and TCB bound, policy judged. The bound is the same four signature checks alone, by the same Web Crypto and the same way
 * of handing it the keys, from certificates and report that were parsed before.
 */
import { attestationReport, REPORT_SIGNED_SIZE } from '../src/abi/attestation-report.ts';
import { parseCertificate } from '../src/attest/certificate.ts';
import { verifyReport } from '../src/attest/index.ts';
import { parseReport } from '../src/attest/report.ts';
import { SignatureChecks } from '../src/attest/signatures.ts';
import { Authority } from '../src/authority/authority.ts';
import { seededEntropy } from '../src/base/entropy.ts';
import { Chip } from '../src/hardware/chip.ts';

const REPORTS = 60;
const ROUNDS = 7;

interface Evidence {
  readonly report: Uint8Array;
  readonly certificates: readonly Uint8Array[];
}

async function makeEvidence(authority: Authority): Promise<Evidence[]> {
  const evidence: Evidence[] = [];
  for (let seed = 0; seed < REPORTS; seed++) {
    const chip = new Chip({ generation: 'milan', entropy: seededEntropy(seed) });
    const tcb = chip.reportedTcb;
    const report = attestationReport.encode({
      ...{ version: 3, policy: 0x30000n, signatureAlgo: 1, chipId: chip.chipId },
      ...{ currentTcb: tcb, reportedTcb: tcb, committedTcb: tcb, launchTcb: tcb },
      ...{ cpuidFamily: 0x19, cpuidModel: 1, cpuidStepping: 1 },
    });
    const signature = chip.vcek(tcb).sign(report.subarray(0, REPORT_SIGNED_SIZE));
    report.set(signature.slice(0, 48).reverse(), REPORT_SIGNED_SIZE);
    report.set(signature.slice(48).reverse(), REPORT_SIGNED_SIZE + 72);
    const { leaf, intermediate, ark } = await authority.certificates(chip);
    evidence.push({ report, certificates: [leaf, intermediate, ark] });
  }
  return evidence;
}

/** Reports a second. */
async function rate(
  evidence: readonly Evidence[],
  verify: (index: number) => Promise<boolean>,
): Promise<number> {
  const start = performance.now();
  for (let index = 0; index < evidence.length; index++) {
    if (!(await verify(index))) throw new Error(`attest.verify: report ${index} does not verify`);
  }
  return (evidence.length / (performance.now() - start)) * 1000;
}

export async function bench() {
  const authority = Authority.seeded(1);
  const roots = [await authority.ark('Milan')];
  const evidence = await makeEvidence(authority);
  const raw = evidence.map(({ report, certificates }) => {
    const [vcek, ask, ark] = certificates.map((bytes) => parseCertificate(bytes));
    const { signedBytes, p1363 } = parseReport(report);
    return { vcek: vcek!, ask: ask!, ark: ark!, signedBytes, p1363: p1363! };
  });
  const values: number[] = [];
  const bounds: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    values.push(
      await rate(evidence, async (index) => {
        const { report, certificates } = evidence[index]!;
        return (await verifyReport(report, { certificates, roots })).ok;
      }),
    );
    bounds.push(
      await rate(evidence, async (index) => {
        const { vcek, ask, ark, signedBytes, p1363 } = raw[index]!;
        const signatures = new SignatureChecks();
        const checks = [
          signatures.pss(ark.publicKey, ark.tbs, ark.signature),
          signatures.pss(ark.publicKey, ask.tbs, ask.signature),
          signatures.pss(ask.publicKey, vcek.tbs, vcek.signature),
          signatures.ecdsa(vcek.publicKey, signedBytes, p1363),
        ];
        return (await Promise.all(checks)).every(Boolean);
      }),
    );
  }
  const value = Math.max(...values);
  const bound = Math.max(...bounds);
  return {
    value,
    unit: 'reports/s',
    bound,
    ratio: value / bound,
    note: 'a new chip for each report, nothing cached; bound: the four signature checks alone, all at once; wanted 0.8',
  };
}
