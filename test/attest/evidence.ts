/** Evidence for tests: reports that a chip of a seeded authority signed, whatever they say. */
import { attestationReport } from '../../src/abi/attestation-report.ts';
import type { VerifyOptions } from '../../src/attest/index.ts';
import { Authority } from '../../src/authority/authority.ts';
import type { Chip, ChipGeneration, SigningKey } from '../../src/hardware/chip.ts';

export type ReportFields = Partial<Parameters<typeof attestationReport.encode>[0]>;

const CPUID = {
  milan: { cpuidFamily: 0x19, cpuidModel: 1, cpuidStepping: 1 },
  genoa: { cpuidFamily: 0x19, cpuidModel: 0x11, cpuidStepping: 1 },
  turin: { cpuidFamily: 0x1a, cpuidModel: 2, cpuidStepping: 1 },
};

/** A time at which what a seeded authority issues is valid. */
export const NOW = new Date('2026-06-01T00:00:00Z');

/** A report of `chip`, version 3, with `fields` in place of the usual ones, signed by `key` (the chip's VCEK unless given). */
export function signedReport(chip: Chip, fields: ReportFields = {}, key?: SigningKey): Uint8Array {
  const report = attestationReport.encode({
    version: 3,
    policy: 0x30000n,
    signatureAlgo: 1,
    currentTcb: chip.currentTcb,
    reportedTcb: chip.reportedTcb,
    committedTcb: chip.committedTcb,
    launchTcb: chip.currentTcb,
    chipId: chip.chipId,
    reportIdMa: new Uint8Array(32).fill(0xff),
    measurement: new Uint8Array(48).fill(0x11),
    hostData: new Uint8Array(32).fill(0x22),
    reportData: new Uint8Array(64).fill(0x33),
    idKeyDigest: new Uint8Array(48).fill(0x44),
    authorKeyDigest: new Uint8Array(48).fill(0x55),
    reportId: new Uint8Array(32).fill(0x66),
    familyId: new Uint8Array(16).fill(0x77),
    imageId: new Uint8Array(16).fill(0x88),
    guestSvn: 5,
    committedMajor: 1,
    committedMinor: 55,
    committedBuild: 21,
    platformInfo: 3n,
    ...CPUID[chip.generation],
    ...fields,
  });
  return sign(report, key ?? chip.vcek(chip.reportedTcb));
}

/** Signs bytes 0 to 0x29f anew. */
export function sign(report: Uint8Array, key: SigningKey): Uint8Array {
  const signature = key.sign(report.subarray(0, 0x2a0));
  report.fill(0, 0x2a0);
  report.set(signature.slice(0, 48).reverse(), 0x2a0);
  report.set(signature.slice(48).reverse(), 0x2e8);
  return report;
}

export interface Evidence {
  readonly chip: Chip;
  readonly authority: Authority;
  readonly report: Uint8Array;
  /** Complete: chain, root, revocation list. */
  readonly options: VerifyOptions;
}

export async function evidenceOf(
  generation: ChipGeneration,
  fields: ReportFields = {},
  seed = 7,
): Promise<Evidence> {
  const authority = Authority.seeded(seed);
  const chip = authority.chip(generation);
  const { leaf, intermediate, ark } = await authority.certificates(chip);
  const crl = await authority.crl(chip.personality.product);
  return {
    chip,
    authority,
    report: signedReport(chip, fields),
    options: { certificates: [leaf, intermediate, ark], roots: [ark], crls: [crl], at: NOW },
  };
}
