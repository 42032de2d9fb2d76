/**
 * REPORT_REQ: the attestation report, signed by VCEK or VLEK (AMD's firmware source, SNP_MSG_REPORT_REQ, in its order of checks; reference facts.md 3.6). The version
 * of the report follows the firmware's: 2, from ABI 1.56 on 3 (CPUID signature), from 1.58 on 5 (mitigation vectors). A VMPL above 3 is refused.
 */
import {
  attestationReport,
  ECDSA_NUMBER_SIZE,
  KEY_INFO,
  PLATFORM_INFO,
  REPORT_SIGNED_SIZE,
  REPORT_SIZE,
  SIGNATURE_ALGO_ECDSA_P384_SHA384,
  SIGNING_KEY,
} from '../../../abi/attestation-report.ts';
import { reportRequest, reportResponse } from '../../../abi/guest-message.ts';
import { SEV_STATUS } from '../../../abi/sev-status.ts';
import { decodeSignature } from '../../chip/personality.ts';
import type { Firmware } from '../firmware.ts';
import { isZero } from '../firmware.ts';
import type { GuestContext } from '../guest-context.ts';
import type { GuestMessage } from '../guest-request.ts';
import { endorsementKey } from './endorsement.ts';

const KEY_SELECT_MASK = 3;
const VMPL_MAX = 3;

export function answerReport(message: GuestMessage): Uint8Array {
  const { firmware, context } = message;
  const request = reportRequest.decode(message.payload);
  const response = new Uint8Array(reportResponse.size + REPORT_SIZE);
  const refuse = (status: number): Uint8Array => {
    response.set(reportResponse.encode({ status, reportSize: REPORT_SIZE }));
    return response;
  };
  if (!isZero(request.reserved) || (request.keySelect & ~KEY_SELECT_MASK) !== 0)
    return refuse(SEV_STATUS.INVALID_PARAM);
  const endorsement = endorsementKey(firmware, context, request.keySelect);
  if (endorsement === undefined) return refuse(SEV_STATUS.INVALID_KEY);
  if (request.vmpl < message.vmpck || request.vmpl > VMPL_MAX) return refuse(SEV_STATUS.INVALID_PARAM);
  const { chip, isChipKeyMasked, vlek } = firmware;
  const key = endorsement === 'vlek' ? vlek!.key : isChipKeyMasked ? undefined : chip.vcek(chip.reportedTcb);
  const signingKey =
    key === undefined ? SIGNING_KEY.NONE : endorsement === 'vlek' ? SIGNING_KEY.VLEK : SIGNING_KEY.VCEK;
  const report = response.subarray(reportResponse.size);
  report.set(unsignedReport(firmware, context, { ...request, signingKey }));
  if (key !== undefined) {
    const signature = key.sign(report.subarray(0, REPORT_SIGNED_SIZE));
    setNumber(report, attestationReport.offsets.signature, signature.subarray(0, 48));
    setNumber(report, attestationReport.offsets.signature + ECDSA_NUMBER_SIZE, signature.subarray(48));
  }
  response.set(reportResponse.encode({ status: SEV_STATUS.SUCCESS, reportSize: REPORT_SIZE }));
  return response;
}

function unsignedReport(
  firmware: Firmware,
  context: GuestContext,
  asked: { reportData: Uint8Array; vmpl: number; signingKey: number },
): Uint8Array {
  const { chip } = firmware;
  const version = reportVersion(firmware);
  const { family, model, stepping } = decodeSignature(chip.signature);
  return attestationReport.encode({
    version,
    guestSvn: context.idBlock.guestSvn,
    policy: context.policy,
    familyId: context.idBlock.familyId,
    imageId: context.idBlock.imageId,
    vmpl: asked.vmpl,
    signatureAlgo: SIGNATURE_ALGO_ECDSA_P384_SHA384,
    currentTcb: chip.currentTcb,
    platformInfo: platformInfo(firmware, version),
    keyInfo:
      (context.hasAuthorKey ? KEY_INFO.AUTHOR_KEY_EN : 0) |
      (firmware.isChipKeyMasked ? KEY_INFO.MASK_CHIP_KEY : 0) |
      (asked.signingKey << KEY_INFO.SIGNING_KEY_SHIFT),
    reportData: asked.reportData,
    measurement: context.digest.value,
    hostData: context.hostData,
    idKeyDigest: context.idKeyDigest,
    authorKeyDigest: context.authorKeyDigest,
    reportId: context.reportId,
    reportIdMa: context.reportIdMa,
    reportedTcb: chip.reportedTcb,
    ...(version >= 3 && { cpuidFamily: family, cpuidModel: model, cpuidStepping: stepping }),
    ...(!firmware.isChipIdMasked && { chipId: chip.chipId }),
    committedTcb: chip.committedTcb,
    currentBuild: chip.firmware.build,
    currentMinor: chip.firmware.minor,
    currentMajor: chip.firmware.major,
    committedBuild: chip.committedFirmware.build,
    committedMinor: chip.committedFirmware.minor,
    committedMajor: chip.committedFirmware.major,
    launchTcb: context.launchTcb,
  });
}

/** The version of reports that this firmware makes. */
function reportVersion(firmware: Firmware): 2 | 3 | 5 {
  const { major, minor } = firmware.chip.firmware;
  if (major > 1 || minor >= 58) return 5;
  return minor >= 56 ? 3 : 2;
}

/** The older firmware, that of version 2, knows SMT and TSME alone. */
function platformInfo(firmware: Firmware, version: number): bigint {
  let bits = firmware.smt ? PLATFORM_INFO.SMT_EN : 0;
  if (version > 2) {
    bits |= PLATFORM_INFO.ECC_EN | PLATFORM_INFO.ALIAS_CHECK_COMPLETE;
    if (firmware.isRaplDisabled) bits |= PLATFORM_INFO.RAPL_DIS;
    if (firmware.isCiphertextHidden) bits |= PLATFORM_INFO.CIPHERTEXT_HIDING_EN;
  }
  return BigInt(bits);
}

/** Big endian as little endian. */
function setNumber(into: Uint8Array, offset: number, number: Uint8Array): void {
  for (let i = 0; i < number.length; i++) into[offset + i] = number[number.length - 1 - i]!;
}
