/** KVM_EXIT_SYSTEM_EVENT of a guest that asked to be ended (reference facts 5.2 and 5.3). */
import { KVM_EXIT_SYSTEM_EVENT, KVM_SYSTEM_EVENT_SEV_TERM } from '../../../../abi/kvm.ts';
import { TO_USER_SPACE } from '../../run-result.ts';
import type { Vcpu } from '../../vcpu.ts';

/** `data`: the MSR, or the GHCB's address where the request came by a page. */
export function exitTerminated(vcpu: Vcpu, data: bigint): number {
  vcpu.kvmRun.exitReason = KVM_EXIT_SYSTEM_EVENT;
  vcpu.sev!.exits.setSystemEvent(KVM_SYSTEM_EVENT_SEV_TERM, data);
  return TO_USER_SPACE;
}
