/**
 * SNP_DBG_DECRYPT and SNP_DBG_ENCRYPT: 4 KiB out of or into a guest whose policy allows debugging (AMD's firmware source, snp_mcmd_dbg_decrypt and
 * snp_mcmd_dbg_encrypt, in their order of checks). A page inside of a 2 MiB page counts as that one.
 */
import { SNP_POLICY, snpDebug } from '../../abi/sev-firmware.ts';
import { SEV_STATUS } from '../../abi/sev-status.ts';
import { PAGE_SIZE, type Pfn, type Spa } from '../../base/address.ts';
import { type AddressState, type CommandBuffer, type Firmware, isPage } from './firmware.ts';
import type { GuestContext } from './guest-context.ts';

const GUEST_STATES: readonly AddressState[] = ['pre-guest', 'pre-swap', 'guest-invalid', 'guest-valid'];

export function debugDecrypt(firmware: Firmware, command: CommandBuffer): number {
  const request = addressesOf(firmware, command);
  if (!Object.values(request).every(isPage)) return SEV_STATUS.INVALID_PARAM;
  if (!firmware.isInitialised) return SEV_STATUS.INVALID_PLATFORM_STATE;
  const source = stateOf(firmware, request.source);
  const destination = stateOf(firmware, request.destination);
  if (source === 'rmp' || destination === 'rmp') return SEV_STATUS.INVALID_PARAM;
  const context = firmware.context(request.context);
  if (typeof context === 'number') return context;
  if (!GUEST_STATES.includes(source) || destination !== 'firmware') return SEV_STATUS.INVALID_PAGE_STATE;
  const allowed = checkGuest(firmware, context, request.source);
  if (allowed !== SEV_STATUS.SUCCESS) return allowed;
  const page = new Uint8Array(PAGE_SIZE);
  firmware.memory.encryption.readUnder(context.keyId, request.source, page);
  return firmware.write(request.destination, page);
}

export function debugEncrypt(firmware: Firmware, command: CommandBuffer): number {
  if (!firmware.isInitialised) return SEV_STATUS.INVALID_PLATFORM_STATE;
  const request = addressesOf(firmware, command);
  if (!Object.values(request).every(isPage)) return SEV_STATUS.INVALID_PARAM;
  const source = stateOf(firmware, request.source);
  const destination = stateOf(firmware, request.destination);
  if (source === 'rmp' || destination === 'rmp') return SEV_STATUS.INVALID_PARAM;
  const context = firmware.context(request.context);
  if (typeof context === 'number') return context;
  if (destination !== 'pre-swap' && destination !== 'pre-guest') return SEV_STATUS.INVALID_PAGE_STATE;
  const allowed = checkGuest(firmware, context, request.destination);
  if (allowed !== SEV_STATUS.SUCCESS) return allowed;
  const page = new Uint8Array(PAGE_SIZE);
  const readable = firmware.read(request.source, page);
  if (readable !== SEV_STATUS.SUCCESS) return readable;
  firmware.memory.encryption.writeUnder(context.keyId, request.destination, page);
  return SEV_STATUS.SUCCESS;
}

function addressesOf(
  firmware: Firmware,
  command: CommandBuffer,
): { context: Spa; source: Spa; destination: Spa } {
  const { context, source, destination } = snpDebug.decode(command.bytes);
  return {
    context: firmware.address(context),
    source: firmware.address(source),
    destination: firmware.address(destination),
  };
}

/** The state of a page; one inside of a 2 MiB page has that one's. */
function stateOf(firmware: Firmware, address: Spa): AddressState {
  const state = firmware.stateOf(address);
  return state === 'reclaim' ? firmware.rmp.state((address / PAGE_SIZE) as Pfn) : state;
}

/** Whether the guest owns the page, and may be debugged. */
function checkGuest(firmware: Firmware, context: GuestContext, page: Spa): number {
  const { asid } = firmware.rmp.entry((page / PAGE_SIZE) as Pfn);
  if (asid !== context.asid) return SEV_STATUS.INVALID_PAGE_OWNER;
  return (context.policy & SNP_POLICY.DEBUG) === 0n ? SEV_STATUS.POLICY_FAILURE : SEV_STATUS.SUCCESS;
}
