/** TSC_INFO_REQ: scale and offset that secure TSC applies, and how much the clock loses to spread spectrum (AMD's firmware source, SNP_MSG_TSC_INFO_REQ). */
import { TSC_INFO_SIZE, tscInfoResponse } from '../../../abi/guest-message.ts';
import { SEV_STATUS } from '../../../abi/sev-status.ts';
import { isZero } from '../firmware.ts';
import type { GuestMessage } from '../guest-request.ts';
import { TSC_FACTOR, tscScale } from '../tsc.ts';

export function answerTscInfo({ firmware, context, payload }: GuestMessage): Uint8Array {
  if (!isZero(payload.subarray(0, TSC_INFO_SIZE)))
    return tscInfoResponse.encode({ status: SEV_STATUS.INVALID_PARAM });
  const scale = tscScale(context.desiredTscKhz, firmware.chip.personality.referenceClock);
  return tscInfoResponse.encode({ status: SEV_STATUS.SUCCESS, scale, factor: TSC_FACTOR });
}
