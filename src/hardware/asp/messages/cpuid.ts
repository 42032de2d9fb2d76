/**
 * CPUID_REQ: a guest asks firmware whether what the hypervisor says of the processor may be so (AMD's firmware source, SNP_MSG_CPUID_REQ). The answer is as long as the
 * request and has the entries as they should have been.
 */
import { CPUID_ENTRIES_MAX, cpuidFunction, cpuidPage } from '../../../abi/guest-message.ts';
import { SEV_STATUS } from '../../../abi/sev-status.ts';
import { correctEntries } from '../cpuid-page.ts';
import type { GuestMessage } from '../guest-request.ts';

const ENTRIES = cpuidPage.offsets.entries;

export function answerCpuid({ firmware, payload }: GuestMessage): Uint8Array {
  const response = new Uint8Array(payload.length);
  const view = new DataView(response.buffer);
  const request = new DataView(payload.buffer, payload.byteOffset);
  const count = request.getUint32(0, true);
  const isReservedSet = request.getUint32(4, true) !== 0 || request.getBigUint64(8, true) !== 0n;
  const fits = count <= CPUID_ENTRIES_MAX && ENTRIES + count * cpuidFunction.size <= payload.length;
  if (isReservedSet || !fits) {
    view.setUint32(0, SEV_STATUS.INVALID_PARAM, true);
    return response;
  }
  response.set(payload.subarray(ENTRIES, ENTRIES + count * cpuidFunction.size), ENTRIES);
  const { status, checked } = correctEntries(firmware.cpuidRules, response, ENTRIES, count);
  view.setUint32(0, status, true);
  view.setUint32(4, checked, true);
  return response;
}
