/**
 * A change of page states that user space carries out: KVM_EXIT_HYPERCALL with KVM_HC_MAP_GPA_RANGE, as if the guest had asked by hypercall (Linux arch/x86/kvm/svm/sev.c,
 * snp_begin_psc_msr, snp_begin_psc; x86.h, kvm_is_valid_map_gpa_range_ret; reference facts 1.10).
 */
import { KVM_EXIT_HYPERCALL, KVM_HC_MAP_GPA_RANGE } from '../../../../abi/kvm.ts';
import { ERRNO } from '../../../../base/errors.ts';
import { TO_USER_SPACE } from '../../run-result.ts';
import type { VcpuSev } from './vcpu-sev.ts';

const LONG_MODE = 1n;
const ENCRYPTED = 1n << 4n;
/** Preferred page size: 2 MiB. */
const SIZE_2M = 1n;
/** What 7.2 takes for an answer, beside 0. */
const REFUSALS: ReadonlySet<bigint> = new Set([BigInt(ERRNO.EINVAL), BigInt(ERRNO.EAGAIN)]);

export interface MapRange {
  readonly gfn: number;
  readonly pages: number;
  readonly to: 'private' | 'shared';
  /** What the guest's tables map it by. */
  readonly size: '4K' | '2M';
}

/** Whether user space takes such hypercalls. */
export const takesMapRange = ({ vcpu }: VcpuSev): boolean =>
  (vcpu.vm.capabilities.hypercallExits & (1 << KVM_HC_MAP_GPA_RANGE)) !== 0;

/** `answered`: what follows the answer. A run result; an answer that is none is −EINVAL of the next KVM_RUN. */
export function exitToMapRange(
  sev: VcpuSev,
  range: MapRange,
  answered: (outcome: 'done' | 'refused') => number,
): number {
  const { kvmRun, vm } = sev.vcpu;
  kvmRun.exitReason = KVM_EXIT_HYPERCALL;
  kvmRun.hypercallNrNumber = KVM_HC_MAP_GPA_RANGE;
  kvmRun.setHypercallArgNumber(0, range.gfn * 4096);
  kvmRun.setHypercallArgNumber(1, range.pages);
  kvmRun.setHypercallArg(2, (range.to === 'private' ? ENCRYPTED : 0n) | (range.size === '2M' ? SIZE_2M : 0n));
  kvmRun.hypercallRet = 0n;
  kvmRun.hypercallFlags = LONG_MODE;
  sev.awaitUserSpace(() => {
    const { hypercallRet } = kvmRun;
    if (hypercallRet === 0n) return answered('done');
    if (vm.policy.mapRangeAnswersChecked && !REFUSALS.has(hypercallRet)) return -ERRNO.EINVAL;
    return answered('refused');
  });
  return TO_USER_SPACE;
}
