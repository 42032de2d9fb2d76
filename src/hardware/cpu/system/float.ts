/** Floating-point instructions that generated code left to the slow path, and #XM (APM volume 2, 8.2.21). */
import { SAVE } from '../../../abi/vmcb.ts';
import { CR4, VECTOR } from '../../../abi/x86.ts';
import { executeFloat } from '../float/instructions.ts';
import type { SystemInstruction } from './instruction.ts';

/** An exception that MXCSR does not mask is #XM, or #UD where the operating system has not said that it handles that. */
export function floatInstruction(i: SystemInstruction): number {
  const { memory, registers, events } = i.parts;
  if (executeFloat(memory, registers.state, { record: i.record, number: i.number })) return 0;
  return (registers.saveWord(SAVE.CR4) & CR4.OSXMMEXCPT) === 0 ? i.undefined() : events.raise(VECTOR.XF);
}
