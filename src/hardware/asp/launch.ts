/**
 * LAUNCH_START and LAUNCH_FINISH (AMD's firmware source, snp_mcmd_launch_start and snp_mcmd_launch_finish, in its order of checks; the policy bits above 20 from
 * Linux' psp-sev.h).
 */
import {
  SNP_GUEST_STATE,
  SNP_LAUNCH_FINISH_FLAG,
  SNP_LAUNCH_START_FLAG,
  SNP_POLICY,
  snpIdAuth,
  snpIdBlock,
  snpLaunchFinish,
  snpLaunchStart,
} from '../../abi/sev-firmware.ts';
import { SEV_STATUS } from '../../abi/sev-status.ts';
import { PAGE_SIZE } from '../../base/address.ts';
import type { Chip } from '../chip.ts';
import { type CommandBuffer, type Firmware, isPage } from './firmware.ts';
import type { GuestContext } from './guest-context.ts';
import { verifyIdBlock } from './id-block.ts';

export function launchStart(firmware: Firmware, command: CommandBuffer): number {
  const request = snpLaunchStart.decode(command.bytes);
  const address = firmware.address(request.context);
  const agentAddress = firmware.address(request.migrationAgent);
  const { flags, policy } = request;
  if (!isPage(address) || flags >>> 2 !== 0 || !isPage(agentAddress)) return SEV_STATUS.INVALID_PARAM;
  if (!firmware.isInitialised) return SEV_STATUS.INVALID_PLATFORM_STATE;
  const context = firmware.context(address);
  if (typeof context === 'number') return context;
  if (context.state !== SNP_GUEST_STATE.INIT) return SEV_STATUS.INVALID_GUEST_STATE;
  let agent: GuestContext | undefined;
  if ((flags & SNP_LAUNCH_START_FLAG.MA_EN) !== 0) {
    const found = firmware.context(agentAddress);
    if (typeof found === 'number') return found;
    agent = found;
  }
  if (!allowsPolicy(firmware, policy, agent)) return SEV_STATUS.POLICY_FAILURE;
  context.policy = policy;
  context.migrationAgent = agent === undefined ? undefined : agentAddress / PAGE_SIZE;
  context.generateSecrets(firmware.entropy);
  if (agent !== undefined) context.reportIdMa.set(agent.reportId);
  context.isMigrationImage = (flags & SNP_LAUNCH_START_FLAG.IMI_EN) !== 0;
  context.gosvw.set(request.gosvw);
  context.desiredTscKhz = request.desiredTscKhz;
  context.launchTcb = firmware.chip.currentTcb;
  context.keyId = firmware.newMemoryKey((policy & SNP_POLICY.MEM_AES_256_XTS) !== 0n ? 64 : 32);
  firmware.guestCount++;
  context.state = SNP_GUEST_STATE.LAUNCH;
  return SEV_STATUS.SUCCESS;
}

/** Whether this machine can keep a guest's policy. */
function allowsPolicy(firmware: Firmware, policy: bigint, agent: GuestContext | undefined): boolean {
  const { firmware: version } = firmware.chip;
  const has = (bit: bigint): boolean => (policy & bit) !== 0n;
  const major = Number((policy >> 8n) & 0xffn);
  const minor = Number(policy & 0xffn);
  if (agent !== undefined && (!has(SNP_POLICY.MIGRATE_MA) || agent.migrationAgent !== undefined))
    return false;
  if (!has(SNP_POLICY.RESERVED_MUST_BE_ONE)) return false;
  if (!has(SNP_POLICY.SMT) && firmware.smt) return false;
  if (major > version.major || (major === version.major && minor > version.minor)) return false;
  if ((policy & ~supportedPolicyBits(firmware.chip)) !== 0n) return false;
  if (has(SNP_POLICY.RAPL_DIS) && !firmware.isRaplDisabled) return false;
  if (has(SNP_POLICY.CIPHERTEXT_HIDING) && !firmware.isCiphertextHidden) return false;
  return (
    agent === undefined || !has(SNP_POLICY.SINGLE_SOCKET) || (agent.policy & SNP_POLICY.SINGLE_SOCKET) !== 0n
  );
}

/** Policy bits that a chip's firmware knows (SNP_FEATURE_INFO tells the kernel). */
export function supportedPolicyBits(chip: Pick<Chip, 'firmware' | 'personality'>): bigint {
  const { firmware: version, personality } = chip;
  const { raplDisable, ciphertextHiding, aes256Xts } = personality.features;
  let bits = 0x1f_ffffn;
  if (raplDisable) bits |= SNP_POLICY.RAPL_DIS;
  if (ciphertextHiding) bits |= SNP_POLICY.CIPHERTEXT_HIDING;
  if (aes256Xts) bits |= SNP_POLICY.MEM_AES_256_XTS | SNP_POLICY.CXL_ALLOW;
  if (version.major > 1 || version.minor >= 58) bits |= SNP_POLICY.PAGE_SWAP_DISABLE;
  return bits;
}

export function launchFinish(firmware: Firmware, command: CommandBuffer): number {
  const request = snpLaunchFinish.decode(command.bytes);
  const address = firmware.address(request.context);
  const { flags } = request;
  if (!isPage(address) || flags >> 3n !== 0n) return SEV_STATUS.INVALID_PARAM;
  if (!firmware.isInitialised) return SEV_STATUS.INVALID_PLATFORM_STATE;
  const context = firmware.context(address);
  if (typeof context === 'number') return context;
  if (context.state !== SNP_GUEST_STATE.LAUNCH || context.isMigrationImage)
    return SEV_STATUS.INVALID_GUEST_STATE;
  if (context.asid === 0) return SEV_STATUS.INACTIVE;
  const hasIdBlock = (flags & SNP_LAUNCH_FINISH_FLAG.ID_BLOCK_EN) !== 0n;
  const hasAuthorKey = (flags & SNP_LAUNCH_FINISH_FLAG.AUTH_KEY_EN) !== 0n;
  if (hasIdBlock) {
    const block = new Uint8Array(snpIdBlock.size);
    const auth = new Uint8Array(snpIdAuth.size);
    const status =
      firmware.read(firmware.address(request.idBlock), block) ||
      firmware.read(firmware.address(request.idAuth), auth);
    if (status !== SEV_STATUS.SUCCESS) return status;
    const verdict = verifyIdBlock({
      block,
      auth,
      hasAuthorKey,
      digest: context.digest.value,
      policy: context.policy,
    });
    if (typeof verdict === 'number') return verdict;
    context.idBlock = verdict.idBlock;
    context.idKeyDigest.set(verdict.idKeyDigest);
    if (verdict.authorKeyDigest !== undefined) context.authorKeyDigest.set(verdict.authorKeyDigest);
  }
  context.hostData.set(request.hostData);
  context.hasIdBlock = hasIdBlock;
  context.hasAuthorKey = hasAuthorKey;
  context.isVcekDisabled = (flags & SNP_LAUNCH_FINISH_FLAG.VCEK_DISABLED) !== 0n;
  firmware.asids.use(context.asid);
  context.state = SNP_GUEST_STATE.RUNNING;
  return SEV_STATUS.SUCCESS;
}
