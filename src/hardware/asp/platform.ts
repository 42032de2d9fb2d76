/**
 * The platform: SNP_INIT(_EX), SNP_SHUTDOWN(_EX), SNP_PLATFORM_STATUS, SNP_DF_FLUSH (AMD's firmware source, snp_mcmd_init_common and its neighbours, in their order of
 * checks; newer flags from Linux' psp-sev.h).
 *
 * Left out: checks of MSRs of all cores, the IOMMU's logs, diagnostic parts; SEV-TIO.
 */
import {
  SNP_INIT_FLAG,
  SNP_PLATFORM_CAPABILITY,
  SNP_PLATFORM_FLAG,
  SNP_PLATFORM_STATE,
  SNP_SHUTDOWN_FLAG,
  sevPlatformStatus,
  snpAddress,
  snpInitEx,
  snpPlatformStatus,
  snpShutdownEx,
} from '../../abi/sev-firmware.ts';
import { SEV_STATUS } from '../../abi/sev-status.ts';
import { PAGE_SIZE } from '../../base/address.ts';
import { type CommandBuffer, type Firmware, isZero } from './firmware.ts';
import { fixPages, readRanges } from './page-commands.ts';

/** SNP_INIT: SNP_INIT_EX with a full initialisation of the RMP. */
export function snpInit(firmware: Firmware): number {
  return initialise(firmware, SNP_INIT_FLAG.INIT_RMP, 0n);
}

export function initEx(firmware: Firmware, command: CommandBuffer): number {
  const request = snpInitEx.decode(command.bytes);
  const { flags } = request;
  const { ciphertextHiding, raplDisable } = firmware.chip.personality.features;
  let known = SNP_INIT_FLAG.INIT_RMP | SNP_INIT_FLAG.LIST_PADDR_EN;
  if (raplDisable) known |= SNP_INIT_FLAG.RAPL_DIS;
  if (ciphertextHiding) known |= SNP_INIT_FLAG.CIPHERTEXT_HIDING_EN;
  if ((flags & ~known) !== 0 || request.reserved !== 0 || !isZero(request.reserved2))
    return SEV_STATUS.INVALID_PARAM;
  const hides = (flags & SNP_INIT_FLAG.CIPHERTEXT_HIDING_EN) !== 0;
  if (request.maxSnpAsid !== 0 && (!hides || request.maxSnpAsid > firmware.asids.max))
    return SEV_STATUS.INVALID_PARAM;
  return initialise(firmware, flags, request.listAddress);
}

function initialise(firmware: Firmware, flags: number, listAddress: bigint): number {
  if (firmware.isInitialised) return SEV_STATUS.INVALID_PLATFORM_STATE;
  const { chip, memory } = firmware;
  const initialisesRmp = (flags & SNP_INIT_FLAG.INIT_RMP) !== 0;
  if (!initialisesRmp && firmware.rmpTcb !== chip.committedTcb) return SEV_STATUS.RMP_INIT_REQUIRED;
  const hasList = (flags & SNP_INIT_FLAG.LIST_PADDR_EN) !== 0;
  if (hasList && !initialisesRmp) return SEV_STATUS.INVALID_PARAM;
  const { rmp } = memory;
  if (rmp === undefined) return SEV_STATUS.INVALID_CONFIG;
  if (initialisesRmp) {
    // As firmware does: ranges behind a bad one are lost, and nobody is told.
    const { ranges } = hasList
      ? readRanges(firmware, firmware.address(listAddress), PAGE_SIZE)
      : { ranges: [] };
    rmp.initialise();
    for (const range of ranges) fixPages(firmware, range);
    firmware.rmpTcb = chip.committedTcb;
  }
  chip.reportedTcb = chip.committedTcb;
  firmware.asids.invalidateAll();
  firmware.isChipIdMasked = false;
  firmware.isChipKeyMasked = false;
  firmware.isRaplDisabled = (flags & SNP_INIT_FLAG.RAPL_DIS) !== 0;
  firmware.isCiphertextHidden = (flags & SNP_INIT_FLAG.CIPHERTEXT_HIDING_EN) !== 0;
  firmware.guestCount = 0;
  firmware.vlek = undefined;
  firmware.isInitialised = true;
  return SEV_STATUS.SUCCESS;
}

/** SNP_SHUTDOWN: the RMP stays as it is. */
export function snpShutdown(firmware: Firmware): number {
  const ready = checkShutdown(firmware);
  if (ready === SEV_STATUS.SUCCESS) shutDown(firmware, 0);
  return ready;
}

export function shutdownEx(firmware: Firmware, command: CommandBuffer): number {
  const ready = checkShutdown(firmware);
  if (ready !== SEV_STATUS.SUCCESS || !firmware.isInitialised) return ready;
  const { length, flags } = snpShutdownEx.decode(command.bytes);
  if (length !== snpShutdownEx.size || flags >>> 2 !== 0) return SEV_STATUS.INVALID_PARAM;
  if (flags === SNP_SHUTDOWN_FLAG.X86_SNP_SHUTDOWN) return SEV_STATUS.INVALID_PARAM;
  shutDown(firmware, flags);
  return SEV_STATUS.SUCCESS;
}

/** Before SNP_INIT every ASID is clean. */
function checkShutdown(firmware: Firmware): number {
  return firmware.asids.allClean ? SEV_STATUS.SUCCESS : SEV_STATUS.DF_FLUSH_REQUIRED;
}

function shutDown(firmware: Firmware, flags: number): void {
  const { encryption } = firmware.memory;
  for (const [frame, context] of firmware.contexts) {
    if (context.keyId !== 0) encryption.removeKey(context.keyId);
    context.wipe();
    firmware.contexts.delete(frame);
  }
  firmware.guestCount = 0;
  firmware.vlek = undefined;
  firmware.isInitialised = false;
  if ((flags & SNP_SHUTDOWN_FLAG.IOMMU_SNP_SHUTDOWN) !== 0) firmware.rmpTcb = undefined;
  if ((flags & SNP_SHUTDOWN_FLAG.X86_SNP_SHUTDOWN) !== 0) firmware.rmp.reset();
}

export function dfFlush(firmware: Firmware): number {
  return firmware.asids.flush();
}

export function platformStatus(firmware: Firmware, command: CommandBuffer): number {
  const address = firmware.address(snpAddress.decode(command.bytes).address);
  if ((address % PAGE_SIZE) + snpPlatformStatus.size > PAGE_SIZE) return SEV_STATUS.INVALID_PARAM;
  const writable = firmware.checkAnswerPage(address);
  if (writable !== SEV_STATUS.SUCCESS) return writable;
  const { chip } = firmware;
  const { features } = chip.personality;
  const CAP = SNP_PLATFORM_CAPABILITY;
  const capabilities =
    CAP.FEATURE_INFO |
    (firmware.isChipIdMasked ? CAP.MASK_CHIP_ID : 0) |
    (firmware.isChipKeyMasked ? CAP.MASK_CHIP_KEY : 0) |
    (firmware.vlek !== undefined ? CAP.VLEK_EN : 0) |
    (firmware.isRaplDisabled ? CAP.RAPL_DIS : 0) |
    (features.ciphertextHiding ? CAP.CIPHERTEXT_HIDING_CAP : 0) |
    (firmware.isCiphertextHidden ? CAP.CIPHERTEXT_HIDING_EN : 0);
  return firmware.write(
    address,
    snpPlatformStatus.encode({
      apiMajor: chip.firmware.major,
      apiMinor: chip.firmware.minor,
      state: firmware.isInitialised ? SNP_PLATFORM_STATE.INIT : SNP_PLATFORM_STATE.UNINIT,
      flags:
        firmware.rmpTcb === undefined
          ? 0
          : SNP_PLATFORM_FLAG.IS_RMP_INIT | SNP_PLATFORM_FLAG.ALIAS_CHECK_COMPLETE,
      buildId: chip.firmware.build,
      capabilities,
      guestCount: firmware.guestCount,
      currentTcb: chip.currentTcb,
      reportedTcb: chip.reportedTcb,
    }),
  );
}

/** PLATFORM_STATUS of SEV without SNP, which is never initialised here: versions alone. */
export function legacyPlatformStatus(firmware: Firmware, command: CommandBuffer): number {
  const { major, minor, build } = firmware.chip.firmware;
  command.bytes.set(sevPlatformStatus.encode({ apiMajor: major, apiMinor: minor, build }));
  return SEV_STATUS.SUCCESS;
}
