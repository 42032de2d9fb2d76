/** Operating modes (APM volume 2, 1.3; volume 1, 2.1.2), as CR0, EFER.LMA, RFLAGS.VM and the code segment say them. */
import { SAVE } from '../../abi/vmcb.ts';
import { CR0, EFER, RFLAGS } from '../../abi/x86.ts';
import type { Registers } from './registers.ts';

export type Mode = 'real' | 'virtual-8086' | 'protected' | 'compatibility' | '64-bit';

/** A segment's attributes: L of code in long mode; D of code, B of a stack. */
const LONG = 0x200;
const BIG = 0x400;

export function modeOf(registers: Registers): Mode {
  if ((registers.saveWord(SAVE.EFER) & EFER.LMA) !== 0)
    return (registers.attributes(SAVE.CS) & LONG) !== 0 ? '64-bit' : 'compatibility';
  if ((registers.saveWord(SAVE.CR0) & CR0.PE) === 0) return 'real';
  return (registers.flagsRest & RFLAGS.VM) !== 0 ? 'virtual-8086' : 'protected';
}

/** True in long mode, compatibility mode included. */
export const inLongMode = (registers: Registers): boolean => (registers.saveWord(SAVE.EFER) & EFER.LMA) !== 0;

export const in64BitMode = (registers: Registers): boolean =>
  inLongMode(registers) && (registers.attributes(SAVE.CS) & LONG) !== 0;

/** True where a selector is a base divided by 16: in real and virtual-8086 mode. */
export const hasRealSegments = (registers: Registers): boolean => {
  const mode = modeOf(registers);
  return mode === 'real' || mode === 'virtual-8086';
};

/** Bits of the default operand and address size. */
export function codeBits(registers: Registers): 16 | 32 | 64 {
  if (in64BitMode(registers)) return 64;
  return (registers.attributes(SAVE.CS) & BIG) !== 0 ? 32 : 16;
}

/** Bits of the stack pointer. */
export function stackBits(registers: Registers): 16 | 32 | 64 {
  if (in64BitMode(registers)) return 64;
  return (registers.attributes(SAVE.SS) & BIG) !== 0 ? 32 : 16;
}
