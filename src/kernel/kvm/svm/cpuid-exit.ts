/** CPUID, as KVM answers it: EAX and ECX ask, the four registers get the answer (Linux arch/x86/kvm/cpuid.c, kvm_emulate_cpuid). */
import { SAVE, VMCB } from '../../../abi/vmcb.ts';
import type { Vcpu } from '../vcpu.ts';

const RAX = VMCB.SAVE_AREA + SAVE.RAX;
const RCX = 1;
const RDX = 2;
const RBX = 3;

/** RIP stays where it is. */
export function emulateCpuid(vcpu: Vcpu): void {
  const { vmcb, gprWords, cpuidResult } = vcpu;
  vcpu.cpuid.execute(vmcb.word(RAX), gprWords[RCX * 2]!, vcpu.cpuidState, cpuidResult);
  vmcb.setWord(RAX, cpuidResult.eax);
  vmcb.setWord(RAX + 4, 0);
  gprWords[RBX * 2] = cpuidResult.ebx;
  gprWords[RBX * 2 + 1] = 0;
  gprWords[RCX * 2] = cpuidResult.ecx;
  gprWords[RCX * 2 + 1] = 0;
  gprWords[RDX * 2] = cpuidResult.edx;
  gprWords[RDX * 2 + 1] = 0;
}
