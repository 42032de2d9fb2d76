/**
 * The SSE and x87 state in memory: FXSAVE, FXRSTOR, LDMXCSR, STMXCSR (APM volume 2, 11.5; volume 4). With EFER.FFXSR, FXSAVE and FXRSTOR leave
 * the vectors out at CPL 0.
 */
import { SAVE } from '../../../abi/vmcb.ts';
import { CR0, EFER, VECTOR } from '../../../abi/x86.ts';
import { FX, FX_BYTES, FxImage, MXCSR_KNOWN } from '../fx-image.ts';
import { LEAVE, STATE } from '../state.ts';
import { checkImage, loadImage, storeImage } from './image-access.ts';
import type { SystemInstruction } from './instruction.ts';

const ALIGNMENT = 15n;
const CHECKED_ALIGNMENT = 3n;
/** The image's last byte: of those from FX_BYTES on, which the program may use, too, the pages must be there. */
const LAST = 511n;

/** Whether it is available is decided when it is decoded (vector-mode.ts). */
export function loadMxcsr(i: SystemInstruction): number {
  return takeMxcsr(i, Number(BigInt.asIntN(32, i.operand)));
}

export function storeMxcsr(i: SystemInstruction): number {
  i.setOperand(BigInt(i.parts.registers.word(STATE.MXCSR) >>> 0), 4);
  return 0;
}

/** Reserved bits are #GP. A flag that is set together with the clearing of its mask raises nothing: the next instruction that finds it does. */
export function takeMxcsr(i: SystemInstruction, value: number): number {
  if ((value & ~MXCSR_KNOWN) !== 0) return i.generalProtection();
  i.parts.registers.setWord(STATE.MXCSR, value);
  return 0;
}

/** The linear address of the image; undefined: an exception is pending. Where alignment is checked, an EPYC has #AC for less than 4 bytes of it. */
function imageAddress(i: SystemInstruction): bigint | undefined {
  const { registers, events, access } = i.parts;
  if ((registers.saveWord(SAVE.CR0) & (CR0.EM | CR0.TS)) !== 0) {
    events.raise(VECTOR.NM);
    return undefined;
  }
  const address = registers.long(STATE.TEMP_EA);
  if ((address & ALIGNMENT) !== 0n) {
    if ((address & CHECKED_ALIGNMENT) !== 0n && access.checksAlignment) events.raiseWith(VECTOR.AC, 0);
    else i.generalProtection();
    return undefined;
  }
  return address;
}

const withoutVectors = (i: SystemInstruction): boolean =>
  i.privileged && (i.parts.registers.saveWord(SAVE.EFER) & EFER.FFXSR) !== 0;

export function saveVectorState(i: SystemInstruction): number {
  const address = imageAddress(i);
  if (address === undefined) return LEAVE.EXCEPTION;
  const end = withoutVectors(i) ? FX.XMM : FX_BYTES;
  const reason = checkImage(i, 'write', address + LAST, address);
  if (reason !== 0) return reason;
  const image = new FxImage(i.parts.registers);
  image.takeX87(i.size);
  image.takeMxcsr();
  image.takeVectors();
  return storeImage(i, address, image, [0, end]);
}

export function restoreVectorState(i: SystemInstruction): number {
  const address = imageAddress(i);
  if (address === undefined) return LEAVE.EXCEPTION;
  const end = withoutVectors(i) ? FX.XMM : FX_BYTES;
  const image = new FxImage(i.parts.registers);
  let reason = checkImage(i, 'read', address + LAST, address);
  if (reason === 0) reason = loadImage(i, address, image, [0, end]);
  if (reason === 0) reason = takeMxcsr(i, image.mxcsr);
  if (reason !== 0) return reason;
  image.giveX87(i.size);
  if (end === FX_BYTES) image.giveVectors();
  return 0;
}
