/**
 * The x87 instructions that only move control and status: FNINIT, FNCLEX, FNSTCW, FLDCW, FNSTSW, WAIT (APM volume 5). Operating systems start
 * with them and ask by them whether there is an FPU. No other x87 instruction exists here, nor MMX, and CPUID shows neither.
 */
import { SAVE } from '../../../abi/vmcb.ts';
import { CR0, VECTOR } from '../../../abi/x86.ts';
import { iced } from '../decode/iced.ts';
import { X87State } from '../fx-image.ts';
import { STATE } from '../state.ts';
import type { SystemInstruction, SystemOperation } from './instruction.ts';

/** An instruction that does not look at waiting exceptions; #NM with CR0.EM or CR0.TS. */
const control =
  (body: (i: SystemInstruction, x87: X87State) => number): SystemOperation =>
  (i) => {
    const { registers, events } = i.parts;
    if ((registers.saveWord(SAVE.CR0) & (CR0.EM | CR0.TS)) !== 0) return events.raise(VECTOR.NM);
    return body(i, new X87State(registers));
  };

const storeWord = (i: SystemInstruction, value: number): number => {
  const { registers, access } = i.parts;
  return access.storeSized(registers.long(STATE.TEMP_EA), BigInt(value), 2, access.privilege);
};

export const initialize = control((_, x87) => {
  x87.initialize();
  return 0;
});
export const clearExceptions = control((_, x87) => {
  x87.clearExceptions();
  return 0;
});
export const storeControl = control((i, x87) => storeWord(i, x87.fcw));
export const storeStatus = control((i, x87) => storeWord(i, x87.fsw));
export const statusToRegister = control((i, x87) => {
  i.setOperand(BigInt(x87.fsw), 2);
  return 0;
});
export const loadControl = control((i, x87) => {
  if (x87.waiting) return raiseWaiting(i);
  const { registers, access } = i.parts;
  const reason = access.loadSized(registers.long(STATE.TEMP_EA), 2, access.privilege);
  if (reason === 0) x87.setControl(Number(access.value & 0xffffn));
  return reason;
});

/** WAIT: #NM takes CR0.TS and CR0.MP together. */
export function wait(i: SystemInstruction): number {
  const { registers, events } = i.parts;
  const monitored = CR0.MP | CR0.TS;
  if ((registers.saveWord(SAVE.CR0) & monitored) === monitored) return events.raise(VECTOR.NM);
  return new X87State(registers).waiting ? raiseWaiting(i) : 0;
}

/** #NM where an operating system would emulate; else #UD, named in the trace. */
export const other = control((i) => {
  const { trace, id, registers } = i.parts;
  if (trace.on) {
    const rip = `0x${registers.rip.toString(16)}`;
    trace.emit({
      kind: 'core',
      who: 'core',
      what: 'undefined',
      why: iced().Mnemonic[i.second] ?? 'x87',
      vcpu: id,
      rip,
    });
  }
  return i.undefined();
});

/** #MF. Without CR0.NE the chip would ask for an external interrupt by FERR, which no machine here listens to. */
function raiseWaiting(i: SystemInstruction): number {
  const { registers, events } = i.parts;
  return (registers.saveWord(SAVE.CR0) & CR0.NE) !== 0 ? events.raise(VECTOR.MF) : 0;
}
