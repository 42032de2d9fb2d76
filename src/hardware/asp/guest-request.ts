/**
 * GUEST_REQUEST: unwraps a guest's message, has it answered, wraps the answer (AMD's firmware source, snp_mcmd_guest_request, in its order of checks; reference
 * facts.md 3.5). A fault of the host is a status of the command and moves no counter; a fault of the guest is a status in an answer that only the guest can read.
 *
 * Stricter than that source in two things, as the specification is: reserved bytes outside of what is authenticated have to be zero, and a payload has to be as long as
 * its message.
 */
import { createCipheriv, createDecipheriv } from 'node:crypto';
import {
  GUEST_MESSAGE,
  GUEST_MESSAGE_AAD_OFFSET,
  GUEST_MESSAGE_ALGO_AES_256_GCM,
  GUEST_MESSAGE_HEADER_SIZE,
  GUEST_MESSAGE_HEADER_VERSION,
  guestMessageHeader,
} from '../../abi/guest-message.ts';
import { SNP_GUEST_STATE, snpGuestRequest } from '../../abi/sev-firmware.ts';
import { SEV_STATUS } from '../../abi/sev-status.ts';
import { PAGE_SIZE, type Pfn, type Spa } from '../../base/address.ts';
import { type CommandBuffer, type Firmware, isPage, isZero } from './firmware.ts';
import type { GuestContext } from './guest-context.ts';
import { answerCpuid } from './messages/cpuid.ts';
import { answerKey } from './messages/key.ts';
import {
  answerAbsorb,
  answerAbsorbNoAgent,
  answerExport,
  answerImport,
  answerVmrk,
} from './messages/migration.ts';
import { answerReport } from './messages/report.ts';
import { answerTscInfo } from './messages/tsc-info.ts';

/** A message that a guest sent, unwrapped. */
export interface GuestMessage {
  readonly firmware: Firmware;
  /** Who sent it, and the frame of its context page. */
  readonly context: GuestContext;
  readonly contextFrame: Pfn;
  /** The number of the key it came under: the most privileged VMPL that the sender may speak for. */
  readonly vmpck: number;
  readonly version: number;
  readonly payload: Uint8Array;
}

/** Answers a message: the payload of the answer, which says how it went. */
export type Answer = (message: GuestMessage) => Uint8Array;

interface MessageKind {
  readonly answer: Answer;
  /** Bytes of the smallest payload. */
  readonly size: number;
}

const KINDS: ReadonlyMap<number, MessageKind> = new Map([
  [GUEST_MESSAGE.CPUID_REQ, { answer: answerCpuid, size: 16 }],
  [GUEST_MESSAGE.KEY_REQ, { answer: answerKey, size: 32 }],
  [GUEST_MESSAGE.REPORT_REQ, { answer: answerReport, size: 96 }],
  [GUEST_MESSAGE.EXPORT_REQ, { answer: answerExport, size: 16 }],
  [GUEST_MESSAGE.IMPORT_REQ, { answer: answerImport, size: 0x320 }],
  [GUEST_MESSAGE.ABSORB_REQ, { answer: answerAbsorb, size: 0x320 }],
  [GUEST_MESSAGE.VMRK_REQ, { answer: answerVmrk, size: 64 }],
  [GUEST_MESSAGE.ABSORB_NOMA_REQ, { answer: answerAbsorbNoAgent, size: 0x320 }],
  [GUEST_MESSAGE.TSC_INFO_REQ, { answer: answerTscInfo, size: 128 }],
]);

/** ABI minor version from which KEY_REQ has a version 2. */
const KEY_REQ_2_SINCE = 58;
const TAG_SIZE = 16;
const COUNT_MAX = 0xffff_ffff_ffff_fffen;

export function guestRequest(firmware: Firmware, command: CommandBuffer): number {
  const addresses = snpGuestRequest.decode(command.bytes);
  const contextAddress = firmware.address(addresses.context);
  const request = firmware.address(addresses.request);
  const response = firmware.address(addresses.response);
  if (!isPage(contextAddress)) return SEV_STATUS.INVALID_PARAM;
  if (!firmware.isInitialised) return SEV_STATUS.INVALID_PLATFORM_STATE;
  const requestState = firmware.stateOf(request);
  const responseState = firmware.stateOf(response);
  if (requestState === 'rmp' || responseState === 'rmp') return SEV_STATUS.INVALID_PARAM;
  const context = firmware.context(contextAddress);
  if (typeof context === 'number') return context;
  if (responseState !== 'firmware') return SEV_STATUS.INVALID_PAGE_STATE;
  if (isLarge(firmware, request) || isLarge(firmware, response)) return SEV_STATUS.INVALID_PAGE_SIZE;
  if (context.state !== SNP_GUEST_STATE.RUNNING) return SEV_STATUS.INVALID_GUEST_STATE;
  const room = PAGE_SIZE - (request % PAGE_SIZE) - GUEST_MESSAGE_HEADER_SIZE;
  if (room < 0) return SEV_STATUS.INVALID_PARAM;
  const bytes = new Uint8Array(GUEST_MESSAGE_HEADER_SIZE + room);
  const readable = firmware.read(request, bytes);
  if (readable !== SEV_STATUS.SUCCESS) return readable;
  const opened = open(context, bytes);
  if (typeof opened === 'number') return opened;
  const { header, payload } = opened;
  const status = answer(firmware, context, { header, payload, contextAddress, response });
  payload.fill(0);
  return status;
}

/** What of a header matters once it is checked. */
interface Header {
  readonly sequence: bigint;
  readonly type: number;
  readonly version: number;
  readonly vmpck: number;
}

const HEADER = guestMessageHeader.offsets;

/** Checks a message's header and its tag. Returns a status, or what it says. */
function open(context: GuestContext, bytes: Uint8Array): { header: Header; payload: Uint8Array } | number {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const size = view.getUint16(HEADER.size, true);
  const vmpck = view.getUint8(HEADER.vmpck);
  const sequence = view.getBigUint64(HEADER.sequence, true);
  if (
    view.getUint8(HEADER.headerVersion) !== GUEST_MESSAGE_HEADER_VERSION ||
    view.getUint16(HEADER.headerSize, true) !== GUEST_MESSAGE_HEADER_SIZE ||
    view.getUint8(HEADER.algo) !== GUEST_MESSAGE_ALGO_AES_256_GCM ||
    size === 0 ||
    size % 16 !== 0
  )
    return SEV_STATUS.INVALID_PARAM;
  if (GUEST_MESSAGE_HEADER_SIZE + size > bytes.length) return SEV_STATUS.INVALID_PARAM;
  if (vmpck > 3) return SEV_STATUS.INVALID_PARAM;
  if (!isZero(bytes.subarray(TAG_SIZE, 32)) || !isZero(bytes.subarray(0x28, 0x30)))
    return SEV_STATUS.INVALID_PARAM;
  const decipher = createDecipheriv('aes-256-gcm', context.vmpcks[vmpck]!, initialVector(sequence))
    .setAAD(bytes.subarray(GUEST_MESSAGE_AAD_OFFSET, GUEST_MESSAGE_HEADER_SIZE))
    .setAuthTag(bytes.subarray(0, TAG_SIZE));
  const payload = decipher.update(
    bytes.subarray(GUEST_MESSAGE_HEADER_SIZE, GUEST_MESSAGE_HEADER_SIZE + size),
  );
  try {
    decipher.final();
  } catch {
    payload.fill(0);
    return SEV_STATUS.BAD_MEASUREMENT;
  }
  const header = {
    sequence,
    vmpck,
    type: view.getUint8(HEADER.type),
    version: view.getUint8(HEADER.version),
  };
  return { header, payload };
}

function answer(
  firmware: Firmware,
  context: GuestContext,
  message: { header: Header; payload: Uint8Array; contextAddress: Spa; response: Spa },
): number {
  const { header, payload, contextAddress, response } = message;
  const { vmpck, type, version, sequence } = header;
  const count = context.messageCounts[vmpck]!;
  if (count === COUNT_MAX || sequence !== count + 1n) return SEV_STATUS.AEAD_OFLOW;
  if (version === 0) return SEV_STATUS.INVALID_PARAM;
  const kind = KINDS.get(type);
  if (kind === undefined || version > newestVersion(firmware, type)) return SEV_STATUS.INVALID_PARAM;
  if (payload.length < kind.size) return SEV_STATUS.INVALID_PARAM;
  // The sender may lose its context, and with it the key, while its message is answered.
  const key = context.vmpcks[vmpck]!.slice();
  const answered = kind.answer({
    firmware,
    context,
    contextFrame: (contextAddress / PAGE_SIZE) as Pfn,
    vmpck,
    version,
    payload,
  });
  const size = answered.length;
  if ((response % PAGE_SIZE) + GUEST_MESSAGE_HEADER_SIZE + size > PAGE_SIZE) {
    answered.fill(0);
    return SEV_STATUS.INVALID_PARAM;
  }
  const sealed = seal(key, { vmpck, type: type + 1, version, size, sequence: sequence + 1n }, answered);
  key.fill(0);
  answered.fill(0);
  const status = firmware.write(response, sealed);
  if (status === SEV_STATUS.SUCCESS) context.messageCounts[vmpck]! += 2n;
  return status;
}

function seal(
  key: Uint8Array,
  header: { vmpck: number; type: number; version: number; size: number; sequence: bigint },
  payload: Uint8Array,
): Uint8Array {
  const sealed = new Uint8Array(GUEST_MESSAGE_HEADER_SIZE + payload.length);
  const view = new DataView(sealed.buffer);
  view.setBigUint64(HEADER.sequence, header.sequence, true);
  view.setUint8(HEADER.algo, GUEST_MESSAGE_ALGO_AES_256_GCM);
  view.setUint8(HEADER.headerVersion, GUEST_MESSAGE_HEADER_VERSION);
  view.setUint16(HEADER.headerSize, GUEST_MESSAGE_HEADER_SIZE, true);
  view.setUint8(HEADER.type, header.type);
  // Linux takes no answer of another version than its request's (sev-guest.c, verify_and_dec_payload).
  view.setUint8(HEADER.version, header.version);
  view.setUint16(HEADER.size, header.size, true);
  view.setUint8(HEADER.vmpck, header.vmpck);
  const cipher = createCipheriv('aes-256-gcm', key, initialVector(header.sequence)).setAAD(
    sealed.subarray(GUEST_MESSAGE_AAD_OFFSET, GUEST_MESSAGE_HEADER_SIZE),
  );
  sealed.set(cipher.update(payload), GUEST_MESSAGE_HEADER_SIZE);
  cipher.final();
  sealed.set(cipher.getAuthTag(), 0);
  return sealed;
}

function initialVector(sequence: bigint): Uint8Array {
  const iv = new Uint8Array(12);
  new DataView(iv.buffer).setBigUint64(0, sequence, true);
  return iv;
}

function newestVersion(firmware: Firmware, type: number): number {
  const { major, minor } = firmware.chip.firmware;
  return type === GUEST_MESSAGE.KEY_REQ && (major > 1 || minor >= KEY_REQ_2_SINCE) ? 2 : 1;
}

function isLarge(firmware: Firmware, address: Spa): boolean {
  const frame = Math.floor(address / PAGE_SIZE);
  return firmware.hasFrame(frame) && firmware.entryOf(frame as Pfn).large;
}
