/**
 * Transfers between privilege levels and the flags that go with them, in 64-bit mode (APM volume 3: IRET, RET far, INT, INT3, SYSCALL, SYSRET,
 * SWAPGS, POPF, CLI, STI, CLAC, STAC). Left out: compatibility mode (throws by name).
 */
import { EVENT, INTERCEPT, SAVE, VMEXIT } from '../../../abi/vmcb.ts';
import { CR4, EFER, RFLAGS, VECTOR } from '../../../abi/x86.ts';
import { NotImplementedError } from '../../../base/errors.ts';
import { SHADOW } from '../interrupts.ts';
import { isCanonicalAddress } from '../memory-access.ts';
import { ATTRIBUTE, dpl, FLAT_CODE_64, FLAT_DATA, FLAT_LIMIT } from '../segments.ts';
import { GPR, LEAVE } from '../state.ts';
import type { SystemInstruction } from './instruction.ts';

const ARITHMETIC = RFLAGS.CF | RFLAGS.PF | RFLAGS.AF | RFLAGS.ZF | RFLAGS.SF | RFLAGS.OF;
/** What POPF and IRET change at any privilege. */
const ALWAYS = ARITHMETIC | RFLAGS.DF | RFLAGS.NT | RFLAGS.TF | RFLAGS.AC | RFLAGS.ID;
const UPPER_16 = 0xffff0000 | 0;

/** RFLAGS after a load of `value`: IOPL changes at CPL 0 alone, IF where CPL ≤ IOPL. */
function mergedFlags(i: SystemInstruction, value: number, also: number): number {
  const { registers } = i.parts;
  let mask = ALWAYS | also;
  if (i.privileged) mask |= RFLAGS.IOPL;
  if (i.ioPrivileged) mask |= RFLAGS.IF;
  return (registers.rflags & ~mask) | (value & mask) | RFLAGS.FIXED;
}

export function popFlags(i: SystemInstruction): number {
  const { registers, intercepts } = i.parts;
  if (intercepts.has(INTERCEPT.POPF)) return i.exit(VMEXIT.POPF);
  const popped = Number(BigInt.asIntN(32, i.operand));
  const kept = i.size === 2 ? UPPER_16 : 0;
  const old = registers.rflags;
  const merged = mergedFlags(i, (popped & ~kept) | (old & kept), 0) & ~RFLAGS.RF;
  registers.rflags = merged;
  registers.setGpr(GPR.RSP, BigInt.asUintN(64, registers.gpr(GPR.RSP) + BigInt(i.size)));
  return i.nextWithEvents();
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
  const flags = registers.rflags & ~RFLAGS.RF;
  registers.setGpr(GPR.RCX, i.nextRip);
  registers.setGpr(11, BigInt(flags >>> 0));
  const selector = Number((registers.save(SAVE.STAR) >> 32n) & 0xfffcn);
  registers.setSegment(SAVE.CS, selector, FLAT_CODE_64, FLAT_LIMIT, 0n);
  registers.setSegment(SAVE.SS, selector + 8, FLAT_DATA, FLAT_LIMIT, 0n);
  registers.cpl = 0;
  registers.rflags = flags & ~registers.saveWord(SAVE.SFMASK);
  i.parts.debug.settle(registers.flagsRest);
  return i.resumeAt(registers.save(SAVE.LSTAR));
}

export function systemReturn(i: SystemInstruction): number {
  const { registers } = i.parts;
  if ((registers.saveWord(SAVE.EFER) & EFER.SCE) === 0) return i.undefined();
  if (!i.privileged) return i.generalProtection();
  if (i.size !== 8) throw new NotImplementedError('compatibility mode (SYSRET of 32 bits)');
  const base = Number((registers.save(SAVE.STAR) >> 48n) & 0xffffn);
  registers.setSegment(SAVE.CS, ((base + 16) & 0xffff) | 3, FLAT_CODE_64 | ATTRIBUTE.DPL, FLAT_LIMIT, 0n);
  registers.setSegment(SAVE.SS, ((base + 8) & 0xffff) | 3, FLAT_DATA | ATTRIBUTE.DPL, FLAT_LIMIT, 0n);
  registers.cpl = 3;
  const flags = registers.gprWord(11) & ~(RFLAGS.RF | RFLAGS.VM);
  registers.rflags = flags;
  i.parts.debug.settle(flags);
  return i.resumeAt(registers.gpr(GPR.RCX));
}

export function softwareInterrupt(i: SystemInstruction): number {
  if (i.parts.intercepts.has(INTERCEPT.INTN)) return i.exit(VMEXIT.SWINT, i.number);
  return delivered(i.exceptions.deliverSoftware(i.number, EVENT.TYPE_SOFTWARE, i.nextRip));
}

export function breakpoint(i: SystemInstruction): number {
  if (i.parts.intercepts.exception(VECTOR.BP)) return i.exit(VMEXIT.EXCEPTION0 + VECTOR.BP);
  return delivered(i.exceptions.deliverSoftware(VECTOR.BP, EVENT.TYPE_EXCEPTION, i.nextRip));
}

/** INT1: #DB that leaves DR6 alone and does not ask for the gate's DPL. */
export function debugTrap(i: SystemInstruction): number {
  const { intercepts } = i.parts;
  if (intercepts.has(INTERCEPT.ICEBP)) return i.exit(VMEXIT.ICEBP);
  if (intercepts.exception(VECTOR.DB)) return i.exit(VMEXIT.EXCEPTION0 + VECTOR.DB);
  return delivered(i.exceptions.deliverPrivilegedSoftware(VECTOR.DB, i.nextRip));
}

const delivered = (reason: number): number => (reason === 0 ? LEAVE.RESUME : reason);

/** What a far return pops. */
interface Frame {
  rip: bigint;
  cs: number;
}

export function interruptReturn(i: SystemInstruction): number {
  const { registers, intercepts, access } = i.parts;
  if (intercepts.has(INTERCEPT.IRET)) return i.exit(VMEXIT.IRET);
  if ((registers.flagsRest & RFLAGS.NT) !== 0) return i.generalProtection();
  if (i.size !== 8) throw new NotImplementedError('IRET of 16 or 32 bits');
  const popped: bigint[] = [];
  for (let k = 0n; k < 5n; k++) {
    const reason = access.loadLong(registers.gpr(GPR.RSP) + 8n * k, access.privilege);
    if (reason !== 0) return reason;
    popped.push(access.value);
  }
  const frame = { rip: popped[0]!, cs: Number(popped[1]! & 0xffffn) };
  const flags = mergedFlags(i, Number(BigInt.asIntN(32, popped[2]!)), RFLAGS.RF);
  const reason = returnTo(i, frame, popped[3]!, Number(popped[4]! & 0xffffn));
  if (reason === LEAVE.RESUME) {
    registers.rflags = flags;
    registers.keepResumeFlag();
  }
  return reason;
}

export function farReturn(i: SystemInstruction): number {
  const { registers, access } = i.parts;
  const { size } = i;
  const bytes = BigInt(size);
  const top = registers.gpr(GPR.RSP);
  const popped: bigint[] = [];
  for (let k = 0n; k < 2n; k++) {
    const reason = access.loadSized(top + bytes * k, size, access.privilege);
    if (reason !== 0) return reason;
    popped.push(access.value);
  }
  const frame = { rip: popped[0]!, cs: Number(popped[1]! & 0xffffn) };
  const released = top + 2n * bytes + BigInt(i.second & 0xffff);
  if ((frame.cs & 3) === registers.cpl) return returnTo(i, frame, released, undefined);
  const outer: bigint[] = [];
  for (let k = 0n; k < 2n; k++) {
    const reason = access.loadSized(released + bytes * k, size, access.privilege);
    if (reason !== 0) return reason;
    outer.push(access.value);
  }
  return returnTo(i, frame, outer[0]! + BigInt(i.second & 0xffff), Number(outer[1]! & 0xffffn));
}

/** To CS:RIP of the same or an outer level. `ss` undefined keeps SS. LEAVE.RESUME when done. */
function returnTo(i: SystemInstruction, { rip, cs }: Frame, rsp: bigint, ss: number | undefined): number {
  const { segments } = i;
  const { registers } = i.parts;
  const oldCpl = registers.cpl;
  const reason = segments.loadCode(cs, 'return', 0);
  if (reason !== 0) return reason;
  const { attributes, limit, base } = segments.descriptor;
  const cpl = cs & 3;
  if (ss !== undefined) {
    const stack = segments.loadStack(ss, cpl);
    if (stack !== 0) return stack;
  }
  if (!isCanonicalAddress(rip)) return i.generalProtection();
  if (ss !== undefined) segments.put(SAVE.SS, ss);
  registers.setSegment(SAVE.CS, cs, attributes, limit, base);
  registers.setGpr(GPR.RSP, BigInt.asUintN(64, rsp));
  if (cpl !== oldCpl) {
    registers.cpl = cpl;
    for (const segment of [SAVE.ES, SAVE.DS, SAVE.FS, SAVE.GS]) dropInner(i, segment, cpl);
  }
  return i.resumeAt(rip);
}

/** A data segment that the outer level may not use becomes null. */
function dropInner(i: SystemInstruction, segment: number, cpl: number): void {
  const { registers } = i.parts;
  const attributes = registers.attributes(segment);
  const conforming =
    (attributes & (ATTRIBUTE.CODE | ATTRIBUTE.CONFORMING)) === (ATTRIBUTE.CODE | ATTRIBUTE.CONFORMING);
  if ((attributes & ATTRIBUTE.P) === 0 || conforming || dpl(attributes) >= cpl) return;
  registers.setSegment(segment, 0, 0, 0, registers.base(segment));
}
