/**
 * Transfers between privilege levels and the flags that go with them, in 64-bit mode (APM volume 3: INT, INT3, SYSCALL, SYSRET, SWAPGS,
 * POPF, CLI, STI, CLAC,  STAC). Left out: SYSCALL, SYSENTER and their returns in legacy mode (throw by name).
 */
import { EVENT, INTERCEPT, SAVE, VMEXIT } from '../../../abi/vmcb.ts';
import { CR4, EFER, RFLAGS, VECTOR } from '../../../abi/x86.ts';
import { NotImplementedError } from '../../../base/errors.ts';
import { SHADOW } from '../interrupts.ts';
import { isCanonicalAddress } from '../memory-access.ts';
import { in64BitMode, inLongMode, modeOf } from '../mode.ts';
import { ATTRIBUTE, FLAT_CODE_32, FLAT_CODE_64, FLAT_DATA, FLAT_LIMIT } from '../segments.ts';
import { GPR, LEAVE } from '../state.ts';
import type { SystemInstruction } from './instruction.ts';

const ARITHMETIC = RFLAGS.CF | RFLAGS.PF | RFLAGS.AF | RFLAGS.ZF | RFLAGS.SF | RFLAGS.OF;
/** What POPF and IRET change at any privilege. */
const ALWAYS = ARITHMETIC | RFLAGS.DF | RFLAGS.NT | RFLAGS.TF | RFLAGS.AC | RFLAGS.ID;
const UPPER_16 = 0xffff0000 | 0;

/** Who changes flags. */
type FlagRights = Pick<SystemInstruction, 'parts' | 'privileged' | 'ioPrivileged'>;

/** RFLAGS after a load of `value`: IOPL changes at CPL 0 alone, IF where CPL ≤ IOPL. */
function mergedFlags(i: FlagRights, value: number, also: number): number {
  const { registers } = i.parts;
  let mask = ALWAYS | also;
  if (i.privileged) mask |= RFLAGS.IOPL;
  if (i.ioPrivileged) mask |= RFLAGS.IF;
  return (registers.rflags & ~mask) | (value & mask) | RFLAGS.FIXED;
}

/** RFLAGS after IRET of `size` bytes popped `value`, by the privilege before it. */
export function flagsAfterReturn(i: FlagRights, value: number, size: number): number {
  if (size !== 2) return mergedFlags(i, value, RFLAGS.RF);
  const old = i.parts.registers.rflags;
  return mergedFlags(i, (value & ~UPPER_16) | (old & UPPER_16), 0);
}

/** RFLAGS after POPF: as after IRET, but RF is cleared. */
export const flagsAfterPop = (i: FlagRights, value: number, size: number): number =>
  flagsAfterReturn(i, value, size) & ~RFLAGS.RF;

export function popFlags(i: SystemInstruction): number {
  const { registers, intercepts } = i.parts;
  if (intercepts.has(INTERCEPT.POPF)) return i.exit(VMEXIT.POPF);
  const before = registers.flagsRest;
  registers.rflags = flagsAfterPop(i, Number(BigInt.asIntN(32, i.operand)), i.size);
  registers.setGpr(GPR.RSP, BigInt.asUintN(64, registers.gpr(GPR.RSP) + BigInt(i.size)));
  return ((before ^ registers.flagsRest) & RFLAGS.AC) !== 0 ? i.resume() : i.nextWithEvents();
}

export function clearInterrupts(i: SystemInstruction): number {
  if (!i.ioPrivileged) return i.generalProtection();
  i.parts.registers.flagsRest &= ~RFLAGS.IF;
  return 0;
}

export function setInterrupts(i: SystemInstruction): number {
  const { registers } = i.parts;
  if (!i.ioPrivileged) return i.generalProtection();
  if ((registers.flagsRest & RFLAGS.IF) === 0) {
    registers.flagsRest |= RFLAGS.IF;
    i.parts.interrupts.holdNext(SHADOW.INTERRUPTS);
  }
  return i.nextWithEvents();
}

/** CLAC and STAC are there where SMAP is, at CPL 0 alone. */
export function clearAlignmentCheck(i: SystemInstruction): number {
  if (!i.privileged) return i.undefined();
  i.parts.registers.flagsRest &= ~RFLAGS.AC;
  return 0;
}
export function setAlignmentCheck(i: SystemInstruction): number {
  if (!i.privileged) return i.undefined();
  i.parts.registers.flagsRest |= RFLAGS.AC;
  return 0;
}

export function swapGs(i: SystemInstruction): number {
  const { registers } = i.parts;
  if (!i.privileged) return i.generalProtection();
  const base = registers.base(SAVE.GS);
  registers.setSave(SAVE.GS + 8, registers.save(SAVE.KERNEL_GS_BASE));
  registers.setSave(SAVE.KERNEL_GS_BASE, base);
  return 0;
}

/** RDFSBASE and its like. `segment`: SAVE.FS or SAVE.GS. */
export const readBase =
  (segment: number) =>
  (i: SystemInstruction): number => {
    const { registers } = i.parts;
    if ((registers.saveWord(SAVE.CR4) & CR4.FSGSBASE) === 0) return i.undefined();
    i.setOperand(registers.base(segment), i.size);
    return 0;
  };
export const writeBase =
  (segment: number) =>
  (i: SystemInstruction): number => {
    const { registers } = i.parts;
    if ((registers.saveWord(SAVE.CR4) & CR4.FSGSBASE) === 0) return i.undefined();
    const value = i.size === 8 ? i.operand : i.operand & 0xffffffffn;
    if (!isCanonicalAddress(value)) return i.generalProtection();
    registers.setSave(segment + 8, value);
    return 0;
  };

export function systemCall(i: SystemInstruction): number {
  const { registers } = i.parts;
  if ((registers.saveWord(SAVE.EFER) & EFER.SCE) === 0) return i.undefined();
  if (!inLongMode(registers)) throw new NotImplementedError('SYSCALL in legacy mode');
  const entry = registers.save(in64BitMode(registers) ? SAVE.LSTAR : SAVE.CSTAR);
  const flags = registers.rflags & ~RFLAGS.RF;
  registers.setGpr(GPR.RCX, i.nextRip);
  registers.setGpr(11, BigInt(flags >>> 0));
  const selector = Number((registers.save(SAVE.STAR) >> 32n) & 0xfffcn);
  registers.setSegment(SAVE.CS, selector, FLAT_CODE_64, FLAT_LIMIT, 0n);
  registers.setSegment(SAVE.SS, selector + 8, FLAT_DATA, FLAT_LIMIT, 0n);
  registers.cpl = 0;
  registers.rflags = flags & ~registers.saveWord(SAVE.SFMASK);
  i.parts.debug.settle(registers.flagsRest);
  return i.resumeAt(entry);
}

export function systemReturn(i: SystemInstruction): number {
  const { registers } = i.parts;
  if ((registers.saveWord(SAVE.EFER) & EFER.SCE) === 0) return i.undefined();
  if (!i.privileged) return i.generalProtection();
  if (!inLongMode(registers)) throw new NotImplementedError('SYSRET in legacy mode');
  const base = Number((registers.save(SAVE.STAR) >> 48n) & 0xffffn);
  const long = i.size === 8;
  const selector = long ? base + 16 : base;
  const code = long ? FLAT_CODE_64 : FLAT_CODE_32;
  registers.setSegment(SAVE.CS, (selector & 0xffff) | 3, code | ATTRIBUTE.DPL, FLAT_LIMIT, 0n);
  // AMD's cores leave the hidden part of SS (Linux's X86_BUG_SYSRET_SS_ATTRS).
  registers.setSelector(SAVE.SS, ((base + 8) & 0xffff) | 3);
  registers.cpl = 3;
  const flags = registers.gprWord(11) & ~(RFLAGS.RF | RFLAGS.VM);
  registers.rflags = flags;
  i.parts.debug.settle(flags);
  return i.resumeAt(long ? registers.gpr(GPR.RCX) : registers.gpr(GPR.RCX) & 0xffffffffn);
}

/** SYSENTER and SYSEXIT: AMD has neither in long mode, and real mode has none. */
export function legacyCall(i: SystemInstruction): number {
  const { registers } = i.parts;
  if (inLongMode(registers)) return i.undefined();
  if (modeOf(registers) === 'real') return i.generalProtection();
  throw new NotImplementedError('SYSENTER and SYSEXIT in legacy mode');
}

export function softwareInterrupt(i: SystemInstruction): number {
  if (i.parts.intercepts.has(INTERCEPT.INTN)) return i.exit(VMEXIT.SWINT, i.number);
  return delivered(i.exceptions.deliverSoftware(i.number, EVENT.TYPE_SOFTWARE, i.nextRip));
}

export function breakpoint(i: SystemInstruction): number {
  if (i.parts.intercepts.exception(VECTOR.BP)) return i.exit(VMEXIT.EXCEPTION0 + VECTOR.BP);
  return delivered(i.exceptions.deliverSoftware(VECTOR.BP, EVENT.TYPE_EXCEPTION, i.nextRip));
}

/** INTO: #OF behind the instruction where OF is set. */
export function overflow(i: SystemInstruction): number {
  if ((i.parts.registers.rflags & RFLAGS.OF) === 0) return 0;
  if (i.parts.intercepts.exception(VECTOR.OF)) return i.exit(VMEXIT.EXCEPTION0 + VECTOR.OF);
  return delivered(i.exceptions.deliverSoftware(VECTOR.OF, EVENT.TYPE_EXCEPTION, i.nextRip));
}

/** INT1: #DB that leaves DR6 alone and does not ask for the gate's DPL. */
export function debugTrap(i: SystemInstruction): number {
  const { intercepts } = i.parts;
  if (intercepts.has(INTERCEPT.ICEBP)) return i.exit(VMEXIT.ICEBP);
  if (intercepts.exception(VECTOR.DB)) return i.exit(VMEXIT.EXCEPTION0 + VECTOR.DB);
  return delivered(i.exceptions.deliverPrivilegedSoftware(VECTOR.DB, i.nextRip));
}

const delivered = (reason: number): number => (reason === 0 ? LEAVE.RESUME : reason);
