/**
 * Control and debug registers (APM volume 2, 3.1; volume 3, MOV CRn and MOV DRn): checks in their order, intercepts, and the TLB flushes that
 * a change brings. CR8 is the V_TPR field of the VMCB while a guest runs.
 */
import { INTERCEPT, SAVE, VMCB, VMEXIT } from '../../../abi/vmcb.ts';
import { CR0, CR4, EFER, VECTOR } from '../../../abi/x86.ts';
import { NotImplementedError } from '../../../base/errors.ts';
import { DR6 } from '../debug.ts';
import { in64BitMode } from '../mode.ts';
import { ATTRIBUTE } from '../segments.ts';
import { STATE } from '../state.ts';
import type { SystemInstruction } from './instruction.ts';

/** CR4 bits that this chip has. */
export const CR4_KNOWN =
  CR4.VME |
  CR4.PVI |
  CR4.TSD |
  CR4.DE |
  CR4.PSE |
  CR4.PAE |
  CR4.MCE |
  CR4.PGE |
  CR4.PCE |
  CR4.OSFXSR |
  CR4.OSXMMEXCPT |
  CR4.UMIP |
  CR4.FSGSBASE |
  CR4.OSXSAVE |
  CR4.SMEP |
  CR4.SMAP;
const CR0_KNOWN =
  CR0.PE | CR0.MP | CR0.EM | CR0.TS | CR0.ET | CR0.NE | CR0.WP | CR0.AM | CR0.NW | CR0.CD | CR0.PG;
/** A change of one of these changes what a translation allows. */
const CR0_PAGING = CR0.PG | CR0.WP | CR0.PE;
const CR4_PAGING = CR4.PGE | CR4.PAE | CR4.PSE | CR4.SMEP | CR4.SMAP | CR4.LA57;
const MOV_CR_FORM = 1 << 31;
const V_TPR = 0xf;
const DR6_ONES = 0xffff0ff0n;
const DR7_ONE = 0x400n;
const DR6_WRITABLE = 0xe00fn;
const DR7_WRITABLE = 0xffff2bffn;

export function moveFromControl(i: SystemInstruction): number {
  const { number } = i;
  const { intercepts } = i.parts;
  if (!isControlRegister(number)) return i.undefined();
  if (!i.privileged) return i.generalProtection();
  if (intercepts.readsOfCr(number)) return i.exit(VMEXIT.READ_CR0 + number, registerOf(i), MOV_CR_FORM);
  i.setOperand(controlRegister(i, number), 8);
  return 0;
}

function controlRegister(i: SystemInstruction, number: number): bigint {
  const { registers, intercepts } = i.parts;
  switch (number) {
    case 0:
      return registers.save(SAVE.CR0);
    case 2:
      return registers.save(SAVE.CR2);
    case 3:
      return registers.save(SAVE.CR3);
    case 4:
      return registers.save(SAVE.CR4);
    default:
      return BigInt(intercepts.word(VMCB.INT_CTL) & V_TPR);
  }
}

export function moveToControl(i: SystemInstruction): number {
  const { number } = i;
  const { registers, intercepts } = i.parts;
  const operand = in64BitMode(registers) ? i.operand : i.operand & 0xffffffffn;
  if (!isControlRegister(number)) return i.undefined();
  if (!i.privileged) return i.generalProtection();
  if (intercepts.writesOfCr(number)) return i.exit(VMEXIT.WRITE_CR0 + number, registerOf(i), MOV_CR_FORM);
  switch (number) {
    case 0:
      return writeCr0(i, operand, MOV_CR_FORM);
    case 2:
      registers.setSave(SAVE.CR2, operand);
      return 0;
    case 3:
      return writeCr3(i, operand);
    case 4:
      return writeCr4(i, operand);
    default:
      if (operand > 15n) return i.generalProtection();
      intercepts.setWord(VMCB.INT_CTL, (intercepts.word(VMCB.INT_CTL) & ~V_TPR) | Number(operand));
      return trapped(i, number, Number(operand)) ?? i.nextWithEvents();
  }
}

/** The exit behind a write of a control register, where that is wanted; EXITINFO1 is the new value. */
const trapped = (i: SystemInstruction, number: number, value: number, high = 0): number | undefined =>
  i.parts.intercepts.has(INTERCEPT.CR0_WRITE_TRAP + number)
    ? i.trap(VMEXIT.CR0_WRITE_TRAP + number, value, high)
    : undefined;

const isControlRegister = (number: number): boolean =>
  number === 0 || number === 2 || number === 3 || number === 4 || number === 8;

/** EXITINFO1's register number. */
const registerOf = (i: SystemInstruction): number => i.operandRegister;

function writeCr0(i: SystemInstruction, value: bigint, form: number): number {
  const { registers, intercepts, tlb } = i.parts;
  const old = registers.saveWord(SAVE.CR0);
  if (value >> 32n !== 0n) return i.generalProtection();
  const low = Number(BigInt.asIntN(32, value));
  if ((low & CR0.PG) !== 0 && (low & CR0.PE) === 0) return i.generalProtection();
  if ((low & CR0.NW) !== 0 && (low & CR0.CD) === 0) return i.generalProtection();
  if (((low ^ old) & ~(CR0.TS | CR0.MP)) !== 0 && intercepts.has(INTERCEPT.CR0_SELECTIVE)) {
    return i.exit(VMEXIT.CR0_SELECTIVE, registerOf(i), form);
  }
  if (((low ^ old) & (CR0.PG | CR0.PE)) !== 0) {
    const refused = changeMode(i, old, low);
    if (refused !== 0) return refused;
  }
  registers.setSave(SAVE.CR0, BigInt((low & CR0_KNOWN) >>> 0) | BigInt(CR0.ET));
  if (((low ^ old) & CR0_PAGING) !== 0) tlb.flush();
  return trapped(i, 0, registers.saveWord(SAVE.CR0)) ?? i.resume();
}

/** PG and PE: LMA follows PG where LME is set (APM volume 2, 14.6 and 14.7). 0, or LEAVE.EXCEPTION. */
function changeMode(i: SystemInstruction, old: number, value: number): number {
  const { registers } = i.parts;
  const efer = registers.saveWord(SAVE.EFER);
  const paging = (value & CR0.PG) !== 0;
  if (paging === ((old & CR0.PG) !== 0)) return 0;
  if (!paging) {
    if (in64BitMode(registers)) return i.generalProtection();
    registers.setSaveWord(SAVE.EFER, efer & ~EFER.LMA);
    return 0;
  }
  if ((efer & EFER.LME) === 0) throw new NotImplementedError('paging without long mode');
  const physicalExtension = (registers.saveWord(SAVE.CR4) & CR4.PAE) !== 0;
  if (!physicalExtension || (registers.attributes(SAVE.CS) & ATTRIBUTE.L) !== 0) return i.generalProtection();
  registers.setSaveWord(SAVE.EFER, efer | EFER.LMA);
  return 0;
}

function writeCr3(i: SystemInstruction, value: bigint): number {
  const { registers, tlb } = i.parts;
  if (value >> 48n !== 0n) return i.generalProtection();
  registers.setSave(SAVE.CR3, value);
  tlb.flushNonGlobal();
  return trapped(i, 3, registers.saveWord(SAVE.CR3), registers.saveWord(SAVE.CR3 + 4)) ?? i.resume();
}

function writeCr4(i: SystemInstruction, value: bigint): number {
  const { registers, tlb } = i.parts;
  const old = registers.saveWord(SAVE.CR4);
  const low = Number(BigInt.asIntN(32, value));
  if (value >> 32n !== 0n || (low & CR4.LA57) !== 0) return i.generalProtection();
  if ((low & ~CR4_KNOWN) !== 0) return i.generalProtection();
  const longMode = (registers.saveWord(SAVE.EFER) & EFER.LMA) !== 0;
  if (longMode && (low & CR4.PAE) === 0) return i.generalProtection();
  registers.setSave(SAVE.CR4, BigInt(low >>> 0));
  if (((low ^ old) & CR4_PAGING) !== 0) tlb.flush();
  return trapped(i, 4, low) ?? i.resume();
}

export function clearTaskSwitched(i: SystemInstruction): number {
  const { registers, intercepts } = i.parts;
  if (!i.privileged) return i.generalProtection();
  if (intercepts.writesOfCr(0)) return i.exit(VMEXIT.WRITE_CR0);
  registers.setSaveWord(SAVE.CR0, registers.saveWord(SAVE.CR0) & ~CR0.TS);
  return trapped(i, 0, registers.saveWord(SAVE.CR0)) ?? i.resume();
}

export function loadMachineStatus(i: SystemInstruction): number {
  const { registers, intercepts } = i.parts;
  if (!i.privileged) return i.generalProtection();
  if (intercepts.writesOfCr(0)) return i.exit(VMEXIT.WRITE_CR0);
  const old = registers.saveWord(SAVE.CR0);
  // PE can be set, not cleared.
  const status = (i.selector & 0xf) | (old & CR0.PE);
  return writeCr0(i, BigInt(((old & ~0xf) | status) >>> 0), 0);
}

export function storeMachineStatus(i: SystemInstruction): number {
  const { registers, intercepts } = i.parts;
  if (!i.privileged && (registers.saveWord(SAVE.CR4) & CR4.UMIP) !== 0) return i.generalProtection();
  if (intercepts.readsOfCr(0)) return i.exit(VMEXIT.READ_CR0);
  i.setOperand(registers.save(SAVE.CR0), i.size);
  return 0;
}

export function moveFromDebug(i: SystemInstruction): number {
  const number = debugRegister(i);
  if (number < 0) return i.undefined();
  if (!i.privileged) return i.generalProtection();
  if (i.parts.debug.guarded) return accessDetected(i);
  if (i.parts.intercepts.readsOfDr(i.number)) return i.exit(VMEXIT.READ_DR0 + i.number, registerOf(i));
  const { registers } = i.parts;
  if (number === 6) i.setOperand(registers.save(SAVE.DR6), 8);
  else if (number === 7) i.setOperand(registers.save(SAVE.DR7), 8);
  else i.setOperand(registers.long(STATE.DR0 + 8 * number), 8);
  return 0;
}

export function moveToDebug(i: SystemInstruction): number {
  const number = debugRegister(i);
  if (number < 0) return i.undefined();
  if (!i.privileged) return i.generalProtection();
  if (i.parts.debug.guarded) return accessDetected(i);
  if (i.parts.intercepts.writesOfDr(i.number)) return i.exit(VMEXIT.WRITE_DR0 + i.number, registerOf(i));
  const { registers } = i.parts;
  const { operand } = i;
  if (number >= 6 && operand >> 32n !== 0n) return i.generalProtection();
  if (number === 6) registers.setSave(SAVE.DR6, (operand & DR6_WRITABLE) | DR6_ONES);
  else if (number === 7) registers.setSave(SAVE.DR7, (operand & DR7_WRITABLE) | DR7_ONE);
  else registers.setLong(STATE.DR0 + 8 * number, operand);
  i.parts.debug.load();
  return i.resume();
}

/** DR7.GD: #DB before the access, with DR6.BD. */
function accessDetected(i: SystemInstruction): number {
  i.parts.debug.record(DR6.BD);
  return i.parts.events.raise(VECTOR.DB);
}

/** DR4 and DR5 are DR6 and DR7 while CR4.DE is off. −1: no such register. */
function debugRegister(i: SystemInstruction): number {
  const { number } = i;
  if (number > 7) return -1;
  if (number !== 4 && number !== 5) return number;
  return (i.parts.registers.saveWord(SAVE.CR4) & CR4.DE) !== 0 ? -1 : number + 2;
}
