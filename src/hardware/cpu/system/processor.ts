/** Instructions about the processor itself: CPUID, MSRs, time stamps, HLT, caches and TLB, MONITOR and MWAIT (APM volume 3). */
import { INTERCEPT, SAVE, VMEXIT } from '../../../abi/vmcb.ts';
import { CR4, MSR, RFLAGS } from '../../../abi/x86.ts';
import { type CpuidResult, chipCpuid } from '../cpuid.ts';
import { isCanonicalAddress } from '../memory-access.ts';
import type { MsrFile } from '../msr.ts';
import { GPR, STATE } from '../state.ts';
import type { SystemInstruction, SystemOperation } from './instruction.ts';

const ARITHMETIC = RFLAGS.CF | RFLAGS.PF | RFLAGS.AF | RFLAGS.ZF | RFLAGS.SF | RFLAGS.OF;
const U32 = 0xffffffffn;
/** CPUID leaf 1 ECX: CR4.OSXSAVE is set. */
const OSXSAVE = 1 << 27;
const CPUID_RESULT: CpuidResult = { eax: 0, ebx: 0, ecx: 0, edx: 0 };
/** How many bytes a data access of CLFLUSH counts as. */
const CLFLUSH_BYTES = 1;

export function cpuid(i: SystemInstruction): number {
  const { registers, intercepts, id, personality } = i.parts;
  if (intercepts.has(INTERCEPT.CPUID)) return i.exit(VMEXIT.CPUID);
  const result = { ...CPUID_RESULT };
  const leaf = registers.gprWord(GPR.RAX) >>> 0;
  chipCpuid(leaf, registers.gprWord(GPR.RCX) >>> 0, { id, personality }, result);
  if (leaf === 1 && (registers.saveWord(SAVE.CR4) & CR4.OSXSAVE) !== 0) result.ecx |= OSXSAVE;
  registers.setGprWord(GPR.RAX, result.eax);
  registers.setGprWord(GPR.RBX, result.ebx);
  registers.setGprWord(GPR.RCX, result.ecx);
  registers.setGprWord(GPR.RDX, result.edx);
  return 0;
}

export const readMsr =
  (msrs: MsrFile): SystemOperation =>
  (i) => {
    const { registers, intercepts } = i.parts;
    if (!i.privileged) return i.generalProtection();
    const msr = registers.gprWord(GPR.RCX) >>> 0;
    // SEV_STATUS is never intercepted.
    if (msr !== MSR.SEV_STATUS && intercepts.msr(msr, 'read')) return i.exit(VMEXIT.MSR, 0);
    const value = msrs.read(msr);
    if (value === undefined) return i.generalProtection();
    splitResult(i, value);
    return 0;
  };

export const writeMsr =
  (msrs: MsrFile): SystemOperation =>
  (i) => {
    const { registers, intercepts } = i.parts;
    if (!i.privileged) return i.generalProtection();
    const msr = registers.gprWord(GPR.RCX) >>> 0;
    if (intercepts.msr(msr, 'write')) return i.exit(VMEXIT.MSR, 1);
    const value = ((registers.gpr(GPR.RDX) & U32) << 32n) | (registers.gpr(GPR.RAX) & U32);
    if (!msrs.write(msr, value)) return i.generalProtection();
    if (msr !== MSR.EFER || !intercepts.has(INTERCEPT.EFER_WRITE_TRAP)) return i.resume();
    return i.trap(VMEXIT.EFER_WRITE_TRAP, registers.saveWord(SAVE.EFER));
  };

/** EDX:EAX */
function splitResult(i: SystemInstruction, value: bigint): void {
  const { registers } = i.parts;
  registers.setGpr(GPR.RAX, value & U32);
  registers.setGpr(GPR.RDX, value >> 32n);
}

const timeAllowed = (i: SystemInstruction): boolean =>
  i.privileged || (i.parts.registers.saveWord(SAVE.CR4) & CR4.TSD) === 0;

export const readTimeStamp =
  (msrs: MsrFile): SystemOperation =>
  (i) => {
    if (!timeAllowed(i)) return i.generalProtection();
    if (i.parts.intercepts.has(INTERCEPT.RDTSC)) return i.exit(VMEXIT.RDTSC);
    splitResult(i, msrs.timeStamp);
    return 0;
  };

export const readTimeStampAndAux =
  (msrs: MsrFile): SystemOperation =>
  (i) => {
    if (!timeAllowed(i)) return i.generalProtection();
    if (i.parts.intercepts.has(INTERCEPT.RDTSCP)) return i.exit(VMEXIT.RDTSCP);
    splitResult(i, msrs.timeStamp);
    i.parts.registers.setGpr(GPR.RCX, msrs.tscAux & U32);
    return 0;
  };

/** Six counters exist on the chip, none here. */
export function readPerformanceCounter(i: SystemInstruction): number {
  const pce = (i.parts.registers.saveWord(SAVE.CR4) & CR4.PCE) !== 0;
  if (!i.privileged && !pce) return i.generalProtection();
  if (i.parts.intercepts.has(INTERCEPT.RDPMC)) return i.exit(VMEXIT.RDPMC);
  return i.generalProtection();
}

/** Not intercepted, a halted core waits for an interrupt, and none comes before the host's timer: exit INTR behind the HLT. */
export function halt(i: SystemInstruction): number {
  if (!i.privileged) return i.generalProtection();
  const { intercepts, events } = i.parts;
  if (intercepts.has(INTERCEPT.HLT)) return i.exit(VMEXIT.HLT);
  events.halted = true;
  return i.resume();
}

export function invalidatePage(i: SystemInstruction): number {
  const { registers, intercepts, tlb } = i.parts;
  if (!i.privileged) return i.generalProtection();
  const address = registers.long(STATE.TEMP_EA);
  if (intercepts.has(INTERCEPT.INVLPG)) {
    return i.exit(VMEXIT.INVLPG, registers.word(STATE.TEMP_EA), registers.word(STATE.TEMP_EA + 4));
  }
  if (isCanonicalAddress(address)) tlb.invalidatePage(registers.word(STATE.TEMP_EA));
  return i.resume();
}

/** Caches are coherent here: these have privilege checks and intercepts alone. */
const cacheOperation =
  (intercept: number, code: number): SystemOperation =>
  (i) => {
    if (!i.privileged) return i.generalProtection();
    return i.parts.intercepts.has(intercept) ? i.exit(code) : 0;
  };
export const invalidateCaches = cacheOperation(INTERCEPT.INVD, VMEXIT.INVD);
export const writeBackCaches = cacheOperation(INTERCEPT.WBINVD, VMEXIT.WBINVD);

/** CLFLUSH is a load that keeps nothing. */
export function flushLine(i: SystemInstruction): number {
  const { registers, access } = i.parts;
  registers.setLong(STATE.ADDRESS, registers.long(STATE.TEMP_EA));
  return access.load(CLFLUSH_BYTES, access.privilege);
}

/** No PAUSE filter: each one is an exit where the host wants to know who spins. */
export function pause(i: SystemInstruction): number {
  return i.parts.intercepts.has(INTERCEPT.PAUSE) ? i.exit(VMEXIT.PAUSE) : 0;
}

export function monitor(i: SystemInstruction): number {
  if (!i.privileged) return i.undefined();
  return i.parts.intercepts.has(INTERCEPT.MONITOR) ? i.exit(VMEXIT.MONITOR) : i.undefined();
}
export function wait(i: SystemInstruction): number {
  if (!i.privileged) return i.undefined();
  return i.parts.intercepts.has(INTERCEPT.MWAIT) ? i.exit(VMEXIT.MWAIT) : i.undefined();
}

/** RDRAND and RDSEED always have a number: CF is set, the other arithmetic flags are clear. */
export function randomNumber(i: SystemInstruction): number {
  const { registers, entropy } = i.parts;
  const bytes = new Uint8Array(8);
  entropy.fill(bytes.subarray(0, i.size));
  i.setOperand(new DataView(bytes.buffer).getBigUint64(0, true), i.size);
  registers.rflags = (registers.rflags & ~ARITHMETIC) | RFLAGS.CF;
  return 0;
}

/** RDPID: TSC_AUX, at any privilege. */
export const readProcessorId =
  (msrs: MsrFile): SystemOperation =>
  (i) => {
    i.setOperand(msrs.tscAux & U32, 8);
    return 0;
  };
