/**
 * SVM instructions inside a guest (APM volume 3; volume 2, 15.5 and 15.30), and hypercalls. There are no nested guests: what the host does not
 * intercept is #UD, as with EFER.SVME off. Intel's VMCALL does not exist on AMD.
 */
import { INTERCEPT, SAVE, VMEXIT } from '../../../abi/vmcb.ts';
import { EFER } from '../../../abi/x86.ts';
import type { SystemInstruction, SystemOperation } from './instruction.ts';

/** VMMCALL needs no privilege: the hypervisor judges. */
export function hypercall(i: SystemInstruction): number {
  return i.parts.intercepts.has(INTERCEPT.VMMCALL) ? i.exit(VMEXIT.VMMCALL) : i.undefined();
}

/** An SEV-ES guest's exit to its host, at any privilege; VMMCALL for others. */
export function ghcbExit(i: SystemInstruction): number {
  return i.parts.guest.es ? i.exit(VMEXIT.VMGEXIT) : hypercall(i);
}

/** #UD without SVME, then #GP above CPL 0, then the intercept. */
const svmInstruction =
  (intercept: number, code: number): SystemOperation =>
  (i) => {
    const { registers, intercepts } = i.parts;
    if ((registers.saveWord(SAVE.EFER) & EFER.SVME) === 0) return i.undefined();
    if (!i.privileged) return i.generalProtection();
    return intercepts.has(intercept) ? i.exit(code) : i.undefined();
  };
export const vmrun = svmInstruction(INTERCEPT.VMRUN, VMEXIT.VMRUN);
export const vmload = svmInstruction(INTERCEPT.VMLOAD, VMEXIT.VMLOAD);
export const vmsave = svmInstruction(INTERCEPT.VMSAVE, VMEXIT.VMSAVE);
export const setGlobalInterrupts = svmInstruction(INTERCEPT.STGI, VMEXIT.STGI);
export const clearGlobalInterrupts = svmInstruction(INTERCEPT.CLGI, VMEXIT.CLGI);
export const secureInit = svmInstruction(INTERCEPT.SKINIT, VMEXIT.SKINIT);
export const invalidatePageOfAsid = svmInstruction(INTERCEPT.INVLPGA, VMEXIT.INVLPGA);

export function resumeFromManagement(i: SystemInstruction): number {
  return i.parts.intercepts.has(INTERCEPT.RSM) ? i.exit(VMEXIT.RSM) : i.undefined();
}
