/**
 * RDMSR and WRMSR exits (Linux arch/x86/kvm/x86.c: kvm_emulate_rdmsr, kvm_emulate_wrmsr, kvm_msr_user_space, complete_emulated_rdmsr). An access
 * that fails is #GP, unless user space wants to answer it (KVM_CAP_X86_USER_SPACE_MSR). Pass-through MSRs come here where the filter says
 * so (permission-maps.ts).
 */
import {
  KVM_EXIT_X86_RDMSR,
  KVM_EXIT_X86_WRMSR,
  KVM_MSR_EXIT_REASON_FILTER,
  KVM_MSR_EXIT_REASON_INVAL,
  KVM_MSR_EXIT_REASON_UNKNOWN,
} from '../../../abi/kvm.ts';
import { SAVE } from '../../../abi/vmcb.ts';
import { VECTOR } from '../../../abi/x86.ts';
import { msrAllowed } from '../msr-filter.ts';
import { MSR_RESULT } from '../msrs.ts';
import { GUEST_AGAIN, TO_USER_SPACE } from '../run-result.ts';
import type { Vcpu } from '../vcpu.ts';

const RCX = 1;
const RDX = 2;
const U32 = 0xffff_ffffn;

export function handleMsr(vcpu: Vcpu, write: number): number {
  return write === 0 ? handleRead(vcpu) : handleWrite(vcpu);
}

function handleRead(vcpu: Vcpu): number {
  const { msrs, vm } = vcpu;
  const msr = vcpu.gprWords[RCX * 2]! >>> 0;
  const result = msrAllowed(vm.msrFilter, msr, 'read') ? msrs.read(msr, 'guest') : MSR_RESULT.FILTERED;
  if (result === MSR_RESULT.DONE) {
    setResult(vcpu, msrs.value);
    return vcpu.skipInstruction();
  }
  if (!toUserSpace(vcpu, KVM_EXIT_X86_RDMSR, msr, result, 0n)) return generalProtection(vcpu);
  vcpu.cycle.awaitMsr('read');
  return TO_USER_SPACE;
}

function handleWrite(vcpu: Vcpu): number {
  const { msrs, vm, gpr, vmcb } = vcpu;
  const msr = vcpu.gprWords[RCX * 2]! >>> 0;
  const value = ((gpr[RDX]! & U32) << 32n) | (vmcb.save(SAVE.RAX) & U32);
  const result = msrAllowed(vm.msrFilter, msr, 'write')
    ? msrs.write(msr, value, 'guest')
    : MSR_RESULT.FILTERED;
  if (result === MSR_RESULT.DONE) return vcpu.skipInstruction();
  if (!toUserSpace(vcpu, KVM_EXIT_X86_WRMSR, msr, result, value)) return generalProtection(vcpu);
  vcpu.cycle.awaitMsr('write');
  return TO_USER_SPACE;
}

/** kvm_msr_user_space. False: user space did not ask for this. */
function toUserSpace(vcpu: Vcpu, exit: number, msr: number, result: number, value: bigint): boolean {
  const reason = reasonOf(result);
  if ((vcpu.vm.capabilities.userSpaceMsr & reason) === 0) return false;
  const { kvmRun } = vcpu;
  kvmRun.exitReason = exit;
  kvmRun.msrError = 0;
  kvmRun.msrReason = reason;
  kvmRun.msrIndex = msr;
  kvmRun.msrData = value;
  return true;
}

function reasonOf(result: number): number {
  if (result === MSR_RESULT.UNSUPPORTED) return KVM_MSR_EXIT_REASON_UNKNOWN;
  return result === MSR_RESULT.FILTERED ? KVM_MSR_EXIT_REASON_FILTER : KVM_MSR_EXIT_REASON_INVAL;
}

/** The VMM's answer; anything but 0 in `msrError` is #GP. */
export function completeMsr(vcpu: Vcpu, access: 'read' | 'write'): number {
  const { kvmRun } = vcpu;
  if (kvmRun.msrError !== 0) return generalProtection(vcpu);
  if (access === 'read') setResult(vcpu, kvmRun.msrData);
  return vcpu.skipInstruction();
}

function setResult(vcpu: Vcpu, value: bigint): void {
  vcpu.vmcb.setSave(SAVE.RAX, value & U32);
  vcpu.gpr[RDX] = value >> 32n;
}

function generalProtection(vcpu: Vcpu): number {
  if (vcpu.sev !== undefined) return vcpu.sev.raiseInGuest(VECTOR.GP);
  vcpu.events.queueFault(VECTOR.GP, 0);
  return GUEST_AGAIN;
}
