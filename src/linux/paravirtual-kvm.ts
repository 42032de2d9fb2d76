/**
 * A KVM without SVM or VMX underneath (the module kvm_pvm, found in clouds' virtual machines): it runs a guest's CPL 3 in hardware, and all of CPL 0 in KVM's
 * emulator, which has few of the instructions that kernels of guests use.
 */
import { existsSync } from 'node:fs';

export const PARAVIRTUAL_KVM =
  "this machine's KVM is paravirtual (kvm_pvm): a guest at CPL 0 is emulated, and its VMCALL or VMMCALL never ends";

export const isParavirtualKvm = (): boolean => existsSync('/sys/module/kvm_pvm');
