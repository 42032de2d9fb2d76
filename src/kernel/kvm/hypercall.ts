/**
 * Hypercalls (Linux arch/x86/kvm/x86.c, kvm_emulate_hypercall; reference facts 1.10). MAP_GPA_RANGE goes to user space once the
 * VM asked for it (KVM_CAP_EXIT_HYPERCALL); every other number is refused with KVM_ENOSYS, which is what a KVM without
 * paravirtual features answers.
 */
import { KVM_EXIT_HYPERCALL, KVM_HC_MAP_GPA_RANGE } from '../../abi/kvm.ts';
import { SAVE } from '../../abi/vmcb.ts';
import { wrapsAround } from '../../base/address.ts';
import { GPR } from '../../hardware/cpu/state.ts';
import { TO_USER_SPACE } from './run-result.ts';
import type { Vcpu } from './vcpu.ts';

const KVM_ENOSYS = 1000n;
const KVM_EINVAL = 22n;
const KVM_EPERM = 1n;
const PAGE_MASK = 0xfffn;
const U64_MASK = (1n << 64n) - 1n;
const U32_MASK = 0xffff_ffffn;

/** RIP is at the call, NEXT_RIP behind it. */
export function handleHypercall(vcpu: Vcpu): number {
  const { vmcb } = vcpu;
  const mask = vmcb.in64BitMode ? U64_MASK : U32_MASK;
  const number = vmcb.save(SAVE.RAX) & mask;
  const refused = vmcb.cpl !== 0 ? KVM_EPERM : mapGpaRange(vcpu, number, mask);
  if (refused === undefined) return TO_USER_SPACE;
  vmcb.setSave(SAVE.RAX, -refused & mask);
  return vcpu.skipInstruction();
}

/** Exits, or says with which KVM errno the guest is refused. */
function mapGpaRange(vcpu: Vcpu, number: bigint, mask: bigint): bigint | undefined {
  if (number !== BigInt(KVM_HC_MAP_GPA_RANGE)) return KVM_ENOSYS;
  if ((vcpu.vm.capabilities.hypercallExits & (1 << KVM_HC_MAP_GPA_RANGE)) === 0) return KVM_ENOSYS;
  const gpr = vcpu.gpr;
  const gpa = gpr[GPR.RBX]! & mask;
  const pages = gpr[GPR.RCX]! & mask;
  if ((gpa & PAGE_MASK) !== 0n || pages === 0n || wrapsAround(gpa, pages * 4096n)) return KVM_EINVAL;

  const run = vcpu.kvmRun;
  run.exitReason = KVM_EXIT_HYPERCALL;
  run.hypercallNrNumber = KVM_HC_MAP_GPA_RANGE;
  run.setHypercallArg(0, gpa);
  run.setHypercallArg(1, pages);
  run.setHypercallArg(2, gpr[GPR.RDX]! & mask);
  if (vcpu.vm.policy.hypercallRetPreset) run.hypercallRet = 0n;
  run.hypercallFlags = mask === U32_MASK ? 0n : 1n;
  vcpu.cycle.awaitHypercall();
  return undefined;
}

/** The VMM's answer goes to RAX (complete_hypercall_exit). */
export function completeHypercall(vcpu: Vcpu): number {
  const result = vcpu.kvmRun.hypercallRet;
  vcpu.vmcb.setSave(SAVE.RAX, vcpu.vmcb.in64BitMode ? result : result & U32_MASK);
  return vcpu.skipInstruction();
}
