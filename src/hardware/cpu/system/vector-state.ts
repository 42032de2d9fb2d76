/**
 * The SSE state in memory: FXSAVE, FXRSTOR, LDMXCSR, STMXCSR (APM volume 2, 11.5.5; volume 4). There is no x87 here: its part of the image is
 * that of an FPU after FNINIT and is not taken back.
 */
import { SAVE } from '../../../abi/vmcb.ts';
import { CR0, CR4, VECTOR } from '../../../abi/x86.ts';
import { STATE } from '../state.ts';
import type { SystemInstruction } from './instruction.ts';

const MXCSR_MASK = 0xffff;
const FCW_INITIAL = 0x37fn;
const MXCSR_AT = 24n;
const XMM_AT = 160n;
const IMAGE_BYTES = 512;

/** 0, or #UD (no OSFXSR, EM) or #NM (TS) pending. */
function available(i: SystemInstruction): number {
  const { registers, events } = i.parts;
  const cr0 = registers.saveWord(SAVE.CR0);
  if ((cr0 & CR0.EM) !== 0 || (registers.saveWord(SAVE.CR4) & CR4.OSFXSR) === 0) return i.undefined();
  return (cr0 & CR0.TS) !== 0 ? events.raise(VECTOR.NM) : 0;
}

export function loadMxcsr(i: SystemInstruction): number {
  const reason = available(i);
  if (reason !== 0) return reason;
  return takeMxcsr(i, Number(BigInt.asIntN(32, i.operand)));
}

export function storeMxcsr(i: SystemInstruction): number {
  const reason = available(i);
  if (reason !== 0) return reason;
  i.setOperand(BigInt(i.parts.registers.word(STATE.MXCSR) >>> 0), 4);
  return 0;
}

/** Reserved bits are #GP. A flag that is set together with the clearing of its mask raises nothing: the next instruction that finds it does. */
function takeMxcsr(i: SystemInstruction, value: number): number {
  if ((value & ~MXCSR_MASK) !== 0) return i.generalProtection();
  i.parts.registers.setWord(STATE.MXCSR, value);
  return 0;
}

export function saveVectorState(i: SystemInstruction): number {
  const { registers, access } = i.parts;
  const unavailable = (registers.saveWord(SAVE.CR0) & (CR0.EM | CR0.TS)) !== 0;
  if (unavailable) return i.parts.events.raise(VECTOR.NM);
  const image = registers.long(STATE.TEMP_EA);
  if ((image & 15n) !== 0n) return i.generalProtection();
  const { privilege } = access;
  for (const end of [image, image + BigInt(IMAGE_BYTES - 8)]) {
    const reason = access.probeAt(end, 8, privilege);
    if (reason !== 0) return reason;
  }
  const mxcsr = BigInt(registers.word(STATE.MXCSR) >>> 0) | (BigInt(MXCSR_MASK) << 32n);
  let reason = access.storeLong(image, FCW_INITIAL, privilege);
  for (let at = 8n; at < XMM_AT && reason === 0; at += 8n) {
    reason = access.storeLong(image + at, at === MXCSR_AT ? mxcsr : 0n, privilege);
  }
  for (let k = 0; k < 32 && reason === 0; k++) {
    reason = access.storeLong(image + XMM_AT + BigInt(8 * k), registers.long(STATE.XMM + 8 * k), privilege);
  }
  return reason;
}

export function restoreVectorState(i: SystemInstruction): number {
  const { registers, access } = i.parts;
  const unavailable = (registers.saveWord(SAVE.CR0) & (CR0.EM | CR0.TS)) !== 0;
  if (unavailable) return i.parts.events.raise(VECTOR.NM);
  const image = registers.long(STATE.TEMP_EA);
  if ((image & 15n) !== 0n) return i.generalProtection();
  const { privilege } = access;
  let reason = access.loadLong(image + MXCSR_AT, privilege);
  if (reason !== 0) return reason;
  const mxcsr = Number(BigInt.asIntN(32, access.value));
  const loaded: bigint[] = [];
  for (let k = 0; k < 32; k++) {
    reason = access.loadLong(image + XMM_AT + BigInt(8 * k), privilege);
    if (reason !== 0) return reason;
    loaded.push(access.value);
  }
  reason = takeMxcsr(i, mxcsr);
  if (reason !== 0) return reason;
  for (let k = 0; k < 32; k++) registers.setLong(STATE.XMM + 8 * k, loaded[k]!);
  return 0;
}
