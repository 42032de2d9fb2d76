/**
 * The life of a guest context: GCTX_CREATE, ACTIVATE, ACTIVATE_EX, DECOMMISSION, GUEST_STATUS (AMD's firmware source, snp_mcmd_*, in its order of checks).
 *
 * Left out: activation on some core complexes only; ACTIVATE_EX checks its list of APIC ids and activates everywhere.
 */
import {
  SNP_GUEST_STATE,
  SNP_POLICY,
  snpActivate,
  snpActivateEx,
  snpAddress,
  snpGuestStatus,
  snpGuestStatusRequest,
} from '../../abi/sev-firmware.ts';
import { SEV_STATUS } from '../../abi/sev-status.ts';
import { PAGE_SIZE, type Pfn } from '../../base/address.ts';
import { RMP_WORD1 } from '../memory/rmp.ts';
import { type CommandBuffer, type Firmware, isPage } from './firmware.ts';
import { GuestContext } from './guest-context.ts';

const ASID_COUNTERS = 1024;
const APIC_IDS_MAX = 1024;

export function gctxCreate(firmware: Firmware, command: CommandBuffer): number {
  const address = firmware.address(snpAddress.decode(command.bytes).address);
  if (!isPage(address)) return SEV_STATUS.INVALID_PARAM;
  if (!firmware.isInitialised) return SEV_STATUS.INVALID_PLATFORM_STATE;
  const state = firmware.stateOf(address);
  if (state === 'rmp') return SEV_STATUS.INVALID_PARAM;
  if (state !== 'firmware') return SEV_STATUS.INVALID_PAGE_STATE;
  const frame = (address / PAGE_SIZE) as Pfn;
  const entry = firmware.entryOf(frame);
  if (entry.large) return SEV_STATUS.INVALID_PAGE_SIZE;
  firmware.adoptContextPage(frame, new GuestContext());
  firmware.rmp.setEntry(frame, { ...entry, vmsa: true });
  if (firmware.trace.on) firmware.tracePage(frame, 'context', 'SNP_GCTX_CREATE');
  return SEV_STATUS.SUCCESS;
}

export function activate(firmware: Firmware, command: CommandBuffer): number {
  const request = snpActivate.decode(command.bytes);
  const address = firmware.address(request.context);
  if (!isPage(address)) return SEV_STATUS.INVALID_PARAM;
  if (!firmware.isInitialised) return SEV_STATUS.INVALID_PLATFORM_STATE;
  const context = firmware.context(address);
  if (typeof context === 'number') return context;
  if (context.state === SNP_GUEST_STATE.INIT) return SEV_STATUS.INVALID_GUEST_STATE;
  const { asid } = request;
  const pages = checkPagesOf(firmware, asid);
  if (pages !== SEV_STATUS.SUCCESS) return pages;
  if ((context.policy & SNP_POLICY.SINGLE_SOCKET) !== 0n && firmware.sockets > 1)
    return SEV_STATUS.POLICY_FAILURE;
  if (!firmware.asids.valid(asid)) return SEV_STATUS.INVALID_ASID;
  if (firmware.asids.owned(asid)) return SEV_STATUS.ASID_OWNED;
  if (context.asid !== 0) return SEV_STATUS.ACTIVE;
  return give(firmware, context, asid);
}

export function activateEx(firmware: Firmware, command: CommandBuffer): number {
  const request = snpActivateEx.decode(command.bytes);
  if (request.length !== snpActivateEx.size) return SEV_STATUS.INVALID_PARAM;
  const address = firmware.address(request.context);
  if (request.reserved !== 0 || !isPage(address)) return SEV_STATUS.INVALID_PARAM;
  if (!firmware.isInitialised) return SEV_STATUS.INVALID_PLATFORM_STATE;
  const context = firmware.context(address);
  if (typeof context === 'number') return context;
  if (context.state === SNP_GUEST_STATE.INIT) return SEV_STATUS.INVALID_GUEST_STATE;
  const { asid, apicIdCount } = request;
  if (context.asid === 0) {
    const pages = checkPagesOf(firmware, asid);
    if (pages !== SEV_STATUS.SUCCESS) return pages;
  }
  if (!firmware.asids.valid(asid)) return SEV_STATUS.INVALID_ASID;
  if (apicIdCount === 0 || apicIdCount > APIC_IDS_MAX) return SEV_STATUS.INVALID_PARAM;
  if (!firmware.isMemory(firmware.address(request.apicIds), apicIdCount * 4))
    return SEV_STATUS.INVALID_ADDRESS;
  if (context.asid !== 0) return context.asid === asid ? SEV_STATUS.SUCCESS : SEV_STATUS.ACTIVE;
  return give(firmware, context, asid);
}

export function decommission(firmware: Firmware, command: CommandBuffer): number {
  const address = firmware.address(snpAddress.decode(command.bytes).address);
  if (!isPage(address)) return SEV_STATUS.INVALID_PARAM;
  if (!firmware.isInitialised) return SEV_STATUS.INVALID_PLATFORM_STATE;
  const context = firmware.context(address);
  if (typeof context === 'number') return context;
  decommissionContext(firmware, (address / PAGE_SIZE) as Pfn, context);
  return SEV_STATUS.SUCCESS;
}

/** Takes the ASID and the key from a guest, and turns its context page into a firmware page. */
export function decommissionContext(firmware: Firmware, frame: Pfn, context: GuestContext): void {
  const { encryption } = firmware.memory;
  if (context.asid !== 0) {
    encryption.bind(context.asid, 0);
    firmware.asids.release(context.asid);
  }
  if (context.keyId !== 0) encryption.removeKey(context.keyId);
  if (context.state !== SNP_GUEST_STATE.INIT) firmware.guestCount--;
  firmware.releaseContextPage(frame);
  firmware.rmp.setEntry(frame, { ...firmware.entryOf(frame), vmsa: false });
  if (firmware.trace.on) firmware.tracePage(frame, 'firmware', 'SNP_DECOMMISSION');
}

export function guestStatus(firmware: Firmware, command: CommandBuffer): number {
  const request = snpGuestStatusRequest.decode(command.bytes);
  const address = firmware.address(request.context);
  const answer = firmware.address(request.address);
  if (!isPage(address)) return SEV_STATUS.INVALID_PARAM;
  if ((answer % PAGE_SIZE) + snpGuestStatus.size > PAGE_SIZE) return SEV_STATUS.INVALID_PARAM;
  if (!firmware.isInitialised) return SEV_STATUS.INVALID_PLATFORM_STATE;
  const context = firmware.context(address);
  if (typeof context === 'number') return context;
  const writable = firmware.checkAnswerPage(answer);
  if (writable !== SEV_STATUS.SUCCESS) return writable;
  const { policy, asid, state, isVcekDisabled } = context;
  return firmware.write(
    answer,
    snpGuestStatus.encode({ policy, asid, state, flags: isVcekDisabled ? 1 : 0 }),
  );
}

/** INVALID_CONFIG while pages of the RMP still belong to the ASID. */
function checkPagesOf(firmware: Firmware, asid: number): number {
  if (asid >= ASID_COUNTERS) return SEV_STATUS.INVALID_ASID;
  return asid !== 0 && ownsPages(firmware, asid) ? SEV_STATUS.INVALID_CONFIG : SEV_STATUS.SUCCESS;
}

/** Real firmware has counters that the cores keep; this walks the table. */
function ownsPages(firmware: Firmware, asid: number): boolean {
  const { rmp, memory } = firmware;
  for (let frame = 0; frame < memory.frameCount; frame++) {
    if (((rmp.words[rmp.indexOf(frame) + 1]! >>> RMP_WORD1.ASID_SHIFT) & RMP_WORD1.ASID) === asid)
      return true;
  }
  return false;
}

function give(firmware: Firmware, context: GuestContext, asid: number): number {
  const runs = context.state === SNP_GUEST_STATE.RUNNING;
  const status = firmware.asids.take(asid, runs ? 'in-use' : 'allocated');
  if (status !== SEV_STATUS.SUCCESS) return status;
  context.asid = asid;
  firmware.memory.encryption.bind(asid, context.keyId);
  return SEV_STATUS.SUCCESS;
}
