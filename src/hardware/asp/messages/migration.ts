/**
 * EXPORT, IMPORT, ABSORB, ABSORB_NOMA and VMRK: how guests with or without a migration agent move (AMD's firmware source, SNP_MSG_EXPORT_REQ and its neighbours, in
 * their order of checks). The agent of a guest is named at LAUNCH_START; a guest without one may export itself, and take over a context that it was launched for.
 *
 * Left out with the swapping of pages: a root metadata entry is never valid here, so IMPORT ends in INVALID_MDATA_ENTRY, and a context that claims one is refused with
 * UNSUPPORTED.
 */

import {
  EXPORTED_CONTEXT_SIZE,
  EXPORTED_CONTEXT_VERSION,
  exportRequest,
  importRequest,
  vmrkRequest,
} from '../../../abi/guest-message.ts';
import { bytes, pad, struct, u8, u32, u64 } from '../../../abi/layout.ts';
import { SNP_GUEST_STATE, snpIdBlock } from '../../../abi/sev-firmware.ts';
import { SEV_STATUS } from '../../../abi/sev-status.ts';
import { PAGE_SIZE, type Pfn, type Spa } from '../../../base/address.ts';
import { decommissionContext } from '../activation.ts';
import { isPage, isZero } from '../firmware.ts';
import type { GuestContext } from '../guest-context.ts';
import type { GuestMessage } from '../guest-request.ts';

/** snp_msg_gctx: a guest context on its way. */
const exportedContext = struct('snp_msg_gctx', {
  launchDigest: bytes(48),
  oek: bytes(32),
  vmpck0: bytes(32),
  vmpck1: bytes(32),
  vmpck2: bytes(32),
  vmpck3: bytes(32),
  vmrk: bytes(32),
  hostData: bytes(32),
  idKeyDigest: bytes(48),
  authorKeyDigest: bytes(48),
  reportId: bytes(32),
  imageDigest: bytes(48),
  messageCount0: u64,
  messageCount1: u64,
  messageCount2: u64,
  messageCount3: u64,
  /** Zero: pages are not swapped here. */
  rootMetadata: bytes(64),
  /** AUTHOR_KEY_EN, ID_BLOCK_EN, VCEK_DIS. */
  flags: u64,
  policy: u64,
  state: u8,
  reserved: pad(7),
  oekIvCount: u64,
  idBlock: bytes(96),
  gosvw: bytes(16),
  desiredTscKhz: u32,
  reserved2: u32,
  tscOffset: u64,
  launchTcb: u64,
  reserved3: pad(0x38),
});

const exportHead = struct('snp_msg_export_rsp', { status: u32, size: u32, version: u32, reserved: pad(20) });
/** The answer to EXPORT fills the page behind its header. */
const EXPORT_RESPONSE_SIZE = PAGE_SIZE - 0x60;
const CONTEXT_OFFSET = 0x20;
/** Of a metadata entry: bit 0 says that it is valid. */
const METADATA_WORD = 0x20;

const statusOnly = (status: number): Uint8Array => {
  const response = new Uint8Array(16);
  new DataView(response.buffer).setUint32(0, status, true);
  return response;
};

export function answerExport(message: GuestMessage): Uint8Array {
  const response = new Uint8Array(EXPORT_RESPONSE_SIZE);
  const size = EXPORTED_CONTEXT_SIZE;
  const status = exportInto(message, response);
  response.set(exportHead.encode({ status, size, version: EXPORTED_CONTEXT_VERSION }));
  return response;
}

function exportInto(message: GuestMessage, response: Uint8Array): number {
  const { firmware, context: sender, payload } = message;
  const request = exportRequest.decode(payload);
  const address = firmware.address(request.context);
  if (!isPage(address) || request.flags >>> 1 !== 0 || request.reserved !== 0)
    return SEV_STATUS.INVALID_PARAM;
  const exported = firmware.context(address);
  if (typeof exported === 'number') return exported;
  if (exported.state !== SNP_GUEST_STATE.RUNNING) return SEV_STATUS.INVALID_GUEST_STATE;
  const isSelf = exported === sender && sender.migrationAgent === undefined;
  if (!isSelf && !isAgentOf(message, exported)) return SEV_STATUS.INVALID_GUEST;
  if (isSelf && message.vmpck !== 0) return SEV_STATUS.INVALID_GUEST;
  const image = encodeContext(exported);
  response.set(image, CONTEXT_OFFSET);
  image.fill(0);
  const staysHere = (request.flags & 1) !== 0;
  if (!staysHere) decommissionContext(firmware, (address / PAGE_SIZE) as Pfn, exported);
  return SEV_STATUS.SUCCESS;
}

/** Whether the sender is a guest's migration agent. */
const isAgentOf = ({ context, contextFrame }: GuestMessage, guest: GuestContext): boolean =>
  guest.migrationAgent === contextFrame && guest.reportIdMa.every((byte, i) => byte === context.reportId[i]);

function encodeContext(context: GuestContext): Uint8Array {
  const [messageCount0, messageCount1, messageCount2, messageCount3] = context.messageCounts;
  const [vmpck0, vmpck1, vmpck2, vmpck3] = context.vmpcks;
  const { familyId, imageId, guestSvn } = context.idBlock;
  const { policy } = context;
  return exportedContext.encode({
    launchDigest: context.digest.value,
    oek: context.oek,
    vmpck0: vmpck0!,
    vmpck1: vmpck1!,
    vmpck2: vmpck2!,
    vmpck3: vmpck3!,
    vmrk: context.vmrk,
    hostData: context.hostData,
    idKeyDigest: context.idKeyDigest,
    authorKeyDigest: context.authorKeyDigest,
    reportId: context.reportId,
    imageDigest: context.imageDigest.value,
    messageCount0: messageCount0!,
    messageCount1: messageCount1!,
    messageCount2: messageCount2!,
    messageCount3: messageCount3!,
    flags:
      (context.hasAuthorKey ? 1n : 0n) | (context.hasIdBlock ? 2n : 0n) | (context.isVcekDisabled ? 4n : 0n),
    policy,
    state: context.state,
    ...(context.hasIdBlock && {
      idBlock: snpIdBlock.encode({
        launchDigest: context.digest.value,
        familyId,
        imageId,
        version: 1,
        guestSvn,
        policy,
      }),
    }),
    gosvw: context.gosvw,
    desiredTscKhz: context.desiredTscKhz,
    launchTcb: context.launchTcb,
  });
}

export function answerImport(message: GuestMessage): Uint8Array {
  const { firmware, payload } = message;
  const request = importRequest.decode(payload);
  const address = firmware.address(request.context);
  if (!isPage(address) || !isZero(request.reserved)) return statusOnly(SEV_STATUS.INVALID_PARAM);
  if (!isContextOfOurs(request)) return statusOnly(SEV_STATUS.INVALID_PARAM);
  const guest = firmware.context(address);
  if (typeof guest === 'number') return statusOnly(guest);
  if (guest.state !== SNP_GUEST_STATE.INIT) return statusOnly(SEV_STATUS.INVALID_GUEST_STATE);
  return statusOnly(hasRootMetadata(payload) ? SEV_STATUS.UNSUPPORTED : SEV_STATUS.INVALID_MDATA_ENTRY);
}

export function answerAbsorb(message: GuestMessage): Uint8Array {
  const { firmware, payload } = message;
  const request = importRequest.decode(payload);
  const address = firmware.address(request.context);
  if (!isPage(address) || !isZero(request.reserved)) return statusOnly(SEV_STATUS.INVALID_PARAM);
  const guest = firmware.context(address);
  if (typeof guest === 'number') return statusOnly(guest);
  // What is an image has been launched, and never runs before it is absorbed.
  if (!guest.isMigrationImage) return statusOnly(SEV_STATUS.INVALID_GUEST_STATE);
  const incoming = decodeContext(payload);
  if (!same(incoming.imageDigest, guest.digest.value)) return statusOnly(SEV_STATUS.BAD_MEASUREMENT);
  if (!isContextOfOurs(request)) return statusOnly(SEV_STATUS.INVALID_PARAM);
  if (hasRootMetadata(payload)) return statusOnly(SEV_STATUS.UNSUPPORTED);
  absorb(guest, incoming);
  guest.idKeyDigest.set(incoming.idKeyDigest);
  guest.authorKeyDigest.set(incoming.authorKeyDigest);
  guest.hasAuthorKey = (incoming.flags & 1n) !== 0n;
  guest.hasIdBlock = (incoming.flags & 2n) !== 0n;
  guest.idBlock = snpIdBlock.decode(incoming.idBlock);
  guest.migrationAgent = message.contextFrame;
  guest.reportIdMa.set(message.context.reportId);
  guest.isMigrationImage = false;
  guest.state = SNP_GUEST_STATE.RUNNING;
  if (guest.asid !== 0) firmware.asids.use(guest.asid);
  return statusOnly(SEV_STATUS.SUCCESS);
}

export function answerAbsorbNoAgent(message: GuestMessage): Uint8Array {
  const { context, payload } = message;
  const request = importRequest.decode(payload);
  if (request.context !== 0n || !isZero(request.reserved)) return statusOnly(SEV_STATUS.INVALID_PARAM);
  if (context.migrationAgent !== undefined) return statusOnly(SEV_STATUS.INVALID_GUEST);
  const incoming = decodeContext(payload);
  if (
    !same(incoming.imageDigest, context.digest.value) ||
    !same(incoming.imageDigest, context.imageDigest.value)
  )
    return statusOnly(SEV_STATUS.BAD_MEASUREMENT);
  if (!isContextOfOurs(request)) return statusOnly(SEV_STATUS.INVALID_PARAM);
  if (hasRootMetadata(payload)) return statusOnly(SEV_STATUS.UNSUPPORTED);
  absorb(context, incoming);
  return statusOnly(SEV_STATUS.SUCCESS);
}

export function answerVmrk(message: GuestMessage): Uint8Array {
  const { firmware, payload } = message;
  if (message.vmpck !== 0) return statusOnly(SEV_STATUS.INVALID_PARAM);
  const request = vmrkRequest.decode(payload);
  const address = firmware.address(request.context);
  if (!isPage(address) || !isZero(request.reserved)) return statusOnly(SEV_STATUS.INVALID_PARAM);
  const guest = firmware.context(address as Spa);
  if (typeof guest === 'number') return statusOnly(guest);
  if (guest.state !== SNP_GUEST_STATE.LAUNCH || guest.isMigrationImage)
    return statusOnly(SEV_STATUS.INVALID_GUEST_STATE);
  if (!isAgentOf(message, guest)) return statusOnly(SEV_STATUS.INVALID_GUEST);
  guest.vmrk.set(request.vmrk);
  return statusOnly(SEV_STATUS.SUCCESS);
}

const isContextOfOurs = (request: { contextSize: number; contextVersion: number }): boolean =>
  request.contextSize === EXPORTED_CONTEXT_SIZE && request.contextVersion === EXPORTED_CONTEXT_VERSION;

type ExportedContext = ReturnType<typeof exportedContext.decode>;

const decodeContext = (payload: Uint8Array): ExportedContext =>
  exportedContext.decode(payload.subarray(CONTEXT_OFFSET, CONTEXT_OFFSET + EXPORTED_CONTEXT_SIZE));

/** The VALID bit of the root metadata entry's word. */
const hasRootMetadata = (payload: Uint8Array): boolean =>
  (decodeContext(payload).rootMetadata[METADATA_WORD]! & 1) !== 0;

const same = (a: Uint8Array, b: Uint8Array): boolean => a.every((byte, i) => byte === b[i]);

/** What both kinds of absorption take over. */
function absorb(context: GuestContext, incoming: ExportedContext): void {
  context.digest.set(incoming.launchDigest);
  context.imageDigest.set(incoming.imageDigest);
  context.oek.set(incoming.oek);
  const vmpcks = [incoming.vmpck0, incoming.vmpck1, incoming.vmpck2, incoming.vmpck3];
  const counts = [
    incoming.messageCount0,
    incoming.messageCount1,
    incoming.messageCount2,
    incoming.messageCount3,
  ];
  vmpcks.forEach((vmpck, i) => {
    context.vmpcks[i]!.set(vmpck);
  });
  context.messageCounts.set(counts);
  context.vmrk.set(incoming.vmrk);
  context.hostData.set(incoming.hostData);
  context.policy = incoming.policy;
  context.gosvw.set(incoming.gosvw);
  context.desiredTscKhz = incoming.desiredTscKhz;
  context.launchTcb = incoming.launchTcb;
}
