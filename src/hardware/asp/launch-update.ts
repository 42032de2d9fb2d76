/**
 * LAUNCH_UPDATE: a page of the host becomes a page of the guest, measured and encrypted in place (AMD's firmware source, snp_mcmd_launch_update, in its order of
 * checks; reference facts.md 3.3 and 3.8). A page of 2 MiB is 512 steps of 4 KiB.
 *
 * Left out: the register protection of VMSAs (its bitmap in the secrets page is empty, so that nothing is disguised).
 */
import { secretsPage } from '../../abi/guest-message.ts';
import { SNP_GUEST_STATE, SNP_PAGE_TYPE } from '../../abi/sev-firmware.ts';
import { SEV_STATUS } from '../../abi/sev-status.ts';
import { PAGE_SIZE, type Pfn, type Spa } from '../../base/address.ts';
import { RMP_WORD0, RMP_WORD1 } from '../memory/rmp.ts';
import { correctCpuidPage } from './cpuid-page.ts';
import type { CommandBuffer, Firmware } from './firmware.ts';
import type { GuestContext } from './guest-context.ts';
import { TSC_FACTOR, tscScale } from './tsc.ts';

const LARGE_FRAMES = 512;
const SECRETS_VERSION = 3;
const VMSA = { TSC_SCALE: 0x2f0, TSC_OFFSET: 0x2f8, SEV_FEATURES: 0x3b0 } as const;
const SECURE_TSC = 1 << 9;
/** Beside a page type: IMI_PAGE, as PAGE_INFO has it. */
const IMAGE = 1 << 8;
const PRE_GUEST = RMP_WORD0.ASSIGNED | RMP_WORD0.IMMUTABLE;
/** A bit for each page type that may be 2 MiB. */
const LARGE_TYPES = (1 << SNP_PAGE_TYPE.NORMAL) | (1 << SNP_PAGE_TYPE.ZERO) | (1 << SNP_PAGE_TYPE.UNMEASURED);

/** Words of the command buffer: context 0 and 1, flags 2, reserved 3, address 4 and 5, permissions 6, reserved 7. */
export function launchUpdate(firmware: Firmware, command: CommandBuffer): number {
  const { words } = command;
  const flags = words[2]!;
  const permissions = words[6]!;
  const contextAddress = firmware.addressOfWords(words[0]!, words[1]!);
  const address = firmware.addressOfWords(words[4]!, words[5]!);
  const type = (flags >>> 1) & 7;
  const isImage = (flags & 16) !== 0;
  if (((words[0]! | words[4]!) & (PAGE_SIZE - 1)) !== 0) return SEV_STATUS.INVALID_PARAM;
  if (flags >>> 5 !== 0 || words[3] !== 0 || (permissions & 0xff) !== 0 || words[7] !== 0)
    return SEV_STATUS.INVALID_PARAM;
  if (!firmware.isInitialised) return SEV_STATUS.INVALID_PLATFORM_STATE;
  const context = firmware.context(contextAddress);
  if (typeof context === 'number') return context;
  const { rmp } = firmware;
  if (address < rmp.end) return SEV_STATUS.INVALID_PARAM;
  if (!firmware.isMemory(address, PAGE_SIZE)) return SEV_STATUS.INVALID_PAGE_STATE;
  const frame = address >>> 12;
  const at = rmp.ownIndexOf(frame);
  const low = rmp.words[at]!;
  const high = rmp.words[at + 1]!;
  const page = checkPage(low, high, flags);
  if (page !== SEV_STATUS.SUCCESS) return page;
  if (context.state !== SNP_GUEST_STATE.LAUNCH) return SEV_STATUS.INVALID_GUEST_STATE;
  if (context.asid === 0) return SEV_STATUS.INACTIVE;
  if (((high >>> RMP_WORD1.ASID_SHIFT) & RMP_WORD1.ASID) !== context.asid)
    return SEV_STATUS.INVALID_PAGE_OWNER;
  if (context.isMigrationImage && !isImage) return SEV_STATUS.INVALID_PARAM;
  const gpa = rmp.gpaAt(at);
  const frames = (flags & 1) !== 0 ? LARGE_FRAMES : 1;
  const measuredAs = isImage ? type | IMAGE : type;
  for (let i = 0; i < frames; i++) {
    const status = addPage(
      firmware,
      context,
      (frame + i) as Pfn,
      measuredAs,
      permissions,
      gpa + i * PAGE_SIZE,
    );
    if (status !== SEV_STATUS.SUCCESS) return status;
  }
  rmp.enterGuest(at, permissions, type === SNP_PAGE_TYPE.VMSA);
  if (firmware.trace.on) firmware.tracePage(frame, 'guest-valid', 'SNP_LAUNCH_UPDATE', frames);
  return SEV_STATUS.SUCCESS;
}

/** Whether the page may become the guest's: a status. `low` and `high` are words 0 and 1 of its entry. */
function checkPage(low: number, high: number, flags: number): number {
  const large = (flags & 1) !== 0;
  const type = (flags >>> 1) & 7;
  const isPreGuest =
    (low & PRE_GUEST) === PRE_GUEST &&
    (high & RMP_WORD1.VALIDATED) === 0 &&
    (high & (RMP_WORD1.ASID << RMP_WORD1.ASID_SHIFT)) !== 0;
  if (!isPreGuest) return SEV_STATUS.INVALID_PAGE_STATE;
  if (((low & RMP_WORD0.LARGE) !== 0) !== large) return SEV_STATUS.INVALID_PAGE_SIZE;
  if (type === 0 || type > SNP_PAGE_TYPE.CPUID) return SEV_STATUS.INVALID_PARAM;
  return large && ((1 << type) & LARGE_TYPES) === 0 ? SEV_STATUS.INVALID_PAGE_SIZE : SEV_STATUS.SUCCESS;
}

/** Measures 4 KiB as the host sees them, and hands them to the guest's key. `measuredAs`: the page type, and IMAGE. Returns a status. */
function addPage(
  firmware: Firmware,
  context: GuestContext,
  frame: Pfn,
  measuredAs: number,
  permissions: number,
  gpa: number,
): number {
  const { encryption, bytes: ram } = firmware.memory;
  const { digest, imageDigest } = context;
  const type = measuredAs & ~IMAGE;
  encryption.open(frame, 0);
  const bytes = ram.subarray(frame * PAGE_SIZE, (frame + 1) * PAGE_SIZE);
  if (type === SNP_PAGE_TYPE.CPUID) {
    const status = correctCpuidPage(firmware.cpuidRules, bytes);
    if (status !== SEV_STATUS.SUCCESS) return status;
  }
  if (type === SNP_PAGE_TYPE.ZERO) bytes.set(ZERO_PAGE);
  let measured: Uint8Array | undefined;
  if (type === SNP_PAGE_TYPE.NORMAL) measured = bytes;
  else if (type === SNP_PAGE_TYPE.VMSA) measured = takeVmsa(firmware, context, bytes);
  digest.add(measured, measuredAs, permissions, gpa);
  if ((measuredAs & IMAGE) !== 0) imageDigest.addAs(digest, measuredAs, permissions, gpa);
  encryption.adopt(frame, context.keyId);
  if (type === SNP_PAGE_TYPE.SECRETS) {
    const secrets = fillSecrets(firmware, context);
    encryption.writeUnder(context.keyId, (frame * PAGE_SIZE) as Spa, secrets);
    secrets.fill(0);
  }
  return SEV_STATUS.SUCCESS;
}

const ZERO_PAGE = new Uint8Array(PAGE_SIZE);

/** What of a VMSA is measured: as if its TSC fields were zero; with secure TSC firmware sets them. */
function takeVmsa(firmware: Firmware, context: GuestContext, vmsa: Uint8Array): Uint8Array {
  const measured = vmsa.slice();
  measured.fill(0, VMSA.TSC_SCALE, VMSA.TSC_OFFSET + 8);
  const view = new DataView(vmsa.buffer, vmsa.byteOffset, PAGE_SIZE);
  if ((view.getUint32(VMSA.SEV_FEATURES, true) & SECURE_TSC) !== 0) {
    const scale = tscScale(context.desiredTscKhz, firmware.chip.personality.referenceClock);
    view.setBigUint64(VMSA.TSC_SCALE, scale, true);
    view.setBigUint64(VMSA.TSC_OFFSET, 0n, true);
  }
  return measured;
}

function fillSecrets(firmware: Firmware, context: GuestContext): Uint8Array {
  const page = new Uint8Array(PAGE_SIZE);
  const secrets = secretsPage.encode({
    version: SECRETS_VERSION,
    flags: context.isMigrationImage ? 1 : 0,
    fms: firmware.chip.signature,
    gosvw: context.gosvw,
    vmpcks: context.vmpcks,
    tscFactor: TSC_FACTOR,
  });
  page.set(secrets);
  secrets.fill(0);
  return page;
}
