/**
 * KEY_REQ: a key that the guest can have again, derived from VCEK, VLEK or VMRK and from what the guest is (AMD's firmware source, SNP_MSG_KEY_REQ, in its order of
 * checks). Version 2 (ABI 1.58) may mix in a launch mitigation vector, which is 0 here.
 */
import { GUEST_FIELD, KEY_ROOT, keyRequest, keyResponse } from '../../../abi/guest-message.ts';
import { bytes, struct, u32, u64 } from '../../../abi/layout.ts';
import { SEV_STATUS } from '../../../abi/sev-status.ts';
import { hasReservedTcbBytes, tcbAtMost } from '../../../abi/tcb-version.ts';
import { nistKdf } from '../../chip/key-derivation.ts';
import { vlekSeed } from '../../chip/vlek.ts';
import type { GuestMessage } from '../guest-request.ts';
import { endorsementKey } from './endorsement.ts';

const LABEL = 'gmsg-keyreq';
const KEY_SIZE = 32;
const ROOT_RESERVED = ~7;

/** What goes into the key beside the root key. */
const mixData = struct('snp_mix_data', {
  /** Root key in bit 0; in bits 2:1 whose digest `idBlockKey` is: 0 nobody's, 1 the ID key's, 2 the author key's. */
  select: u32,
  reserved: u32,
  guestFieldSelect: u64,
  vmpl: u32,
  guestSvn: u32,
  tcbVersion: u64,
  policy: u64,
  imageId: bytes(16),
  familyId: bytes(16),
  measurement: bytes(48),
  hostData: bytes(32),
  idBlockKey: bytes(48),
});

export function answerKey(message: GuestMessage): Uint8Array {
  const derived = deriveKey(message);
  return typeof derived === 'number'
    ? keyResponse.encode({ status: derived })
    : keyResponse.encode({ status: SEV_STATUS.SUCCESS, derivedKey: derived });
}

/** The key, or a status. */
function deriveKey(message: GuestMessage): Uint8Array | number {
  const { firmware, context, version, payload } = message;
  const { chip } = firmware;
  const request = keyRequest.decode(payload);
  const fields = Number(BigInt.asUintN(32, request.guestFieldSelect));
  const known = version >= 2 ? 0x7fn : 0x3fn;
  if ((request.rootKeySelect & ROOT_RESERVED) !== 0 || request.reserved !== 0)
    return SEV_STATUS.INVALID_PARAM;
  const isVmrk = (request.rootKeySelect & KEY_ROOT.VMRK) !== 0;
  const endorsement = endorsementKey(firmware, context, request.rootKeySelect >>> KEY_ROOT.SELECT_SHIFT);
  if (!isVmrk && (firmware.isChipKeyMasked || endorsement === undefined)) return SEV_STATUS.INVALID_KEY;
  if (request.vmpl < message.vmpck) return SEV_STATUS.INVALID_PARAM;
  if ((request.guestFieldSelect & ~known) !== 0n) return SEV_STATUS.INVALID_PARAM;
  let tcb = chip.reportedTcb;
  if ((fields & GUEST_FIELD.TCB_VERSION) !== 0) {
    tcb = request.tcbVersion;
    const { generation } = chip;
    if (hasReservedTcbBytes(generation, tcb) || !tcbAtMost(generation, tcb, chip.committedTcb))
      return SEV_STATUS.INVALID_PARAM;
  }
  if ((fields & GUEST_FIELD.GUEST_SVN) !== 0 && request.guestSvn > context.idBlock.guestSvn)
    return SEV_STATUS.INVALID_PARAM;
  if ((fields & GUEST_FIELD.LAUNCH_MIT_VECTOR) !== 0 && !isZeroVector(payload))
    return SEV_STATUS.INVALID_PARAM;
  const root = isVmrk
    ? context.vmrk
    : endorsement === 'vlek'
      ? vlekSeed(firmware.vlek!.sticks)
      : chip.vcekSeed(tcb);
  return nistKdf(root, LABEL, mix(message, fields, request), KEY_SIZE);
}

function mix(
  message: GuestMessage,
  fields: number,
  request: ReturnType<typeof keyRequest.decode>,
): Uint8Array {
  const { context } = message;
  const has = (field: number): boolean => (fields & field) !== 0;
  const vouchedBy = context.hasAuthorKey ? 2 : context.hasIdBlock ? 1 : 0;
  return mixData.encode({
    select: (request.rootKeySelect & KEY_ROOT.VMRK) | (vouchedBy << 1),
    guestFieldSelect: request.guestFieldSelect,
    vmpl: request.vmpl,
    hostData: context.hostData,
    ...(vouchedBy !== 0 && { idBlockKey: vouchedBy === 2 ? context.authorKeyDigest : context.idKeyDigest }),
    ...(has(GUEST_FIELD.TCB_VERSION) && { tcbVersion: request.tcbVersion }),
    ...(has(GUEST_FIELD.GUEST_SVN) && { guestSvn: request.guestSvn }),
    ...(has(GUEST_FIELD.MEASUREMENT) && { measurement: context.digest.value }),
    ...(has(GUEST_FIELD.FAMILY_ID) && { familyId: context.idBlock.familyId }),
    ...(has(GUEST_FIELD.IMAGE_ID) && { imageId: context.idBlock.imageId }),
    ...(has(GUEST_FIELD.POLICY) && { policy: context.policy }),
  });
}

/** The launch mitigation vector of version 2, behind the fields of version 1: not above the guest's, which is 0. */
function isZeroVector(payload: Uint8Array): boolean {
  const vector = payload.subarray(keyRequest.size, keyRequest.size + 8);
  return vector.every((byte) => byte === 0);
}
