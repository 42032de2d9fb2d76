/**
 * What a host's owner configures: SNP_CONFIG, SNP_COMMIT, SNP_VLEK_LOAD, SNP_FEATURE_INFO, and SEV's GET_ID (AMD's firmware source, snp_mcmd_config and its neighbours,
 * in their order of checks; feature bits from Linux' psp-sev.h). A new reported TCB has another VCEK; a VLEK that is loaded stays.
 */

import {
  SNP_CONFIG_FLAG,
  SNP_FEATURE_ECX,
  sevGetId,
  snpCommit,
  snpConfig,
  snpFeatureInfo,
  snpFeatureInfoResult,
  snpVlekLoad,
  snpWrappedVlek,
} from '../../abi/sev-firmware.ts';
import { SEV_STATUS } from '../../abi/sev-status.ts';
import { compareTcb, hasReservedTcbBytes } from '../../abi/tcb-version.ts';
import { PAGE_SIZE } from '../../base/address.ts';
import { unwrapVlek } from '../chip/vlek.ts';
import { compareFirmware, type FirmwareVersion, vlekSigningKey } from '../chip.ts';
import { type CommandBuffer, type Firmware, isZero } from './firmware.ts';

export function config(firmware: Firmware, command: CommandBuffer): number {
  const { reportedTcb, flags, reserved } = snpConfig.decode(command.bytes);
  const { chip } = firmware;
  if (flags >>> 2 !== 0 || !isZero(reserved)) return SEV_STATUS.INVALID_PARAM;
  if (!firmware.isInitialised) return SEV_STATUS.INVALID_PLATFORM_STATE;
  const tcb = reportedTcb === 0n ? chip.committedTcb : reportedTcb;
  if (hasReservedTcbBytes(chip.generation, tcb)) return SEV_STATUS.INVALID_PARAM;
  if (compareTcb(chip.generation, tcb, chip.committedTcb) > 0) return SEV_STATUS.INVALID_PARAM;
  chip.reportedTcb = tcb;
  firmware.isChipIdMasked = (flags & SNP_CONFIG_FLAG.MASK_CHIP_ID) !== 0;
  firmware.isChipKeyMasked = (flags & SNP_CONFIG_FLAG.MASK_CHIP_KEY) !== 0;
  return SEV_STATUS.SUCCESS;
}

export function commit(firmware: Firmware, command: CommandBuffer): number {
  if (snpCommit.decode(command.bytes).length !== snpCommit.size) return SEV_STATUS.INVALID_PARAM;
  const { chip } = firmware;
  chip.committedTcb = chip.currentTcb;
  chip.committedFirmware = chip.firmware;
  return SEV_STATUS.SUCCESS;
}

/** New firmware or microcode in place of what runs. */
export interface FirmwareUpdate {
  /** TCB_VERSION. */
  readonly tcb?: bigint;
  readonly version?: FirmwareVersion;
  /** Commit it at once. */
  readonly commit?: boolean;
}

/** DOWNLOAD_FIRMWARE_EX, without an image: nothing below what is committed. Returns a status. */
export function updateFirmware(firmware: Firmware, update: FirmwareUpdate): number {
  const { chip } = firmware;
  const tcb = update.tcb ?? chip.currentTcb;
  const version = update.version ?? chip.firmware;
  if (hasReservedTcbBytes(chip.generation, tcb)) return SEV_STATUS.INVALID_PARAM;
  if (compareTcb(chip.generation, tcb, chip.committedTcb) < 0) return SEV_STATUS.BAD_SVN;
  if (compareFirmware(version, chip.committedFirmware) < 0) return SEV_STATUS.BAD_VERSION;
  chip.currentTcb = tcb;
  chip.firmware = version;
  if (update.commit) {
    chip.committedTcb = tcb;
    chip.committedFirmware = version;
  }
  return SEV_STATUS.SUCCESS;
}

export function vlekLoad(firmware: Firmware, command: CommandBuffer): number {
  const request = snpVlekLoad.decode(command.bytes);
  const { chip } = firmware;
  if (request.length !== snpVlekLoad.size || request.wrappedVersion !== 0 || !isZero(request.reserved))
    return SEV_STATUS.INVALID_PARAM;
  if (!firmware.isInitialised) return SEV_STATUS.INVALID_PLATFORM_STATE;
  const blob = new Uint8Array(snpWrappedVlek.size);
  const readable = firmware.read(firmware.address(request.address), blob);
  if (readable !== SEV_STATUS.SUCCESS) return readable;
  const { tcb, reserved, reserved2 } = snpWrappedVlek.decode(blob);
  if (!isZero(reserved) || !isZero(reserved2)) return SEV_STATUS.INVALID_PARAM;
  if (tcb !== chip.reportedTcb) return SEV_STATUS.BAD_SVN;
  const sticks = unwrapVlek(blob, chip.vlekWrappingKey(tcb));
  if (sticks === undefined) return SEV_STATUS.BAD_MEASUREMENT;
  firmware.vlek = { sticks, key: vlekSigningKey(sticks, chip.signatures) };
  return SEV_STATUS.SUCCESS;
}

/** Messages that guests may send: a bit each, CPUID first. */
const GUEST_MESSAGES = 0x1ff;

export function featureInfo(firmware: Firmware, command: CommandBuffer): number {
  const request = snpFeatureInfo.decode(command.bytes);
  const address = firmware.address(request.address);
  const { size } = snpFeatureInfoResult;
  if (request.length !== snpFeatureInfo.size) return SEV_STATUS.INVALID_PARAM;
  if (address % 4 !== 0 || PAGE_SIZE - (address % PAGE_SIZE) < size) return SEV_STATUS.INVALID_ADDRESS;
  const writable = firmware.checkAnswerPage(address);
  if (writable !== SEV_STATUS.SUCCESS) return writable;
  if (request.ecxIn > 1) return SEV_STATUS.INVALID_PARAM;
  const result = request.ecxIn === 0 ? { eax: 1, ecx: features(firmware) } : { eax: GUEST_MESSAGES };
  return firmware.write(address, snpFeatureInfoResult.encode(result));
}

/** ECX of subfunction 0. EBX is 0: no SEV without SNP here, and no SEV-TIO. */
function features(firmware: Firmware): number {
  const { raplDisable, ciphertextHiding, aes256Xts } = firmware.chip.personality.features;
  return (
    SNP_FEATURE_ECX.VLEK |
    SNP_FEATURE_ECX.X86_SNP_SHUTDOWN |
    (raplDisable ? SNP_FEATURE_ECX.RAPL_DISABLE : 0) |
    (ciphertextHiding ? SNP_FEATURE_ECX.CIPHERTEXT_HIDING : 0) |
    (aes256Xts ? SNP_FEATURE_ECX.AES_256_XTS_POLICY | SNP_FEATURE_ECX.CXL_ALLOW_POLICY : 0)
  );
}

/** Writes the ids of all sockets, 64 bytes each; answers with the length that is needed when the buffer is too short. */
export function getId(firmware: Firmware, command: CommandBuffer): number {
  const request = sevGetId.decode(command.bytes);
  const ids = new Uint8Array(firmware.sockets * 64);
  ids.set(firmware.chip.chipId);
  const isShort = request.length < ids.length;
  new DataView(command.bytes.buffer).setUint32(sevGetId.offsets.length, ids.length, true);
  if (isShort) return SEV_STATUS.INVALID_LENGTH;
  return firmware.write(firmware.address(request.address), ids);
}
