/** Descriptor-table registers and segment loads (APM volume 3: LGDT, LIDT, SGDT, SIDT, LLDT, LTR, SLDT, STR, MOV Sreg, LAR, LSL, VERR, VERW). */
import { SAVE, VMEXIT } from '../../../abi/vmcb.ts';
import { CR4, RFLAGS, VECTOR } from '../../../abi/x86.ts';
import { SHADOW } from '../interrupts.ts';
import { isCanonicalAddress } from '../memory-access.ts';
import { hasRealSegments, in64BitMode, inLongMode } from '../mode.ts';
import { SEGMENTS } from '../segments.ts';
import { STATE } from '../state.ts';
import type { SystemInstruction, SystemOperation } from './instruction.ts';

/** Intercepts of word 3 that abi/vmcb.ts has no names for: SIDT SGDT SLDT STR LIDT LGDT LLDT LTR, and their exit codes. */
const FIRST_INTERCEPT = 96 + 6;
const FIRST_EXIT = VMEXIT.CR0_SELECTIVE + 1;
const NUMBER = { SIDT: 0, SGDT: 1, SLDT: 2, STR: 3, LIDT: 4, LGDT: 5, LLDT: 6, LTR: 7 } as const;
const TYPE_LDT = 2;
const TYPE_TSS = 9;
const SEGMENT_CS = 1;
const SEGMENT_SS = 2;

const intercepted = (i: SystemInstruction, number: number): boolean =>
  i.parts.intercepts.has(FIRST_INTERCEPT + number);

/** Bytes of the base in a table's pseudo-descriptor: SIZE is all of it, 5 with 16-bit operands, 6 with 32-bit ones. */
const baseBytes = (i: SystemInstruction): number => Math.min(i.size, 10) - 2;

const loadTable =
  (number: number, register: number): SystemOperation =>
  (i) => {
    if (!i.privileged) return i.generalProtection();
    if (intercepted(i, number)) return i.exit(FIRST_EXIT + number);
    const { registers, access } = i.parts;
    const address = registers.long(STATE.TEMP_EA);
    let reason = access.loadSized(address, 2, access.privilege);
    if (reason !== 0) return reason;
    const limit = Number(access.value & 0xffffn);
    reason = access.loadSized(address + 2n, baseBytes(i), access.privilege);
    if (reason !== 0) return reason;
    const base = access.value;
    if (!isCanonicalAddress(base)) return i.generalProtection();
    registers.setSegment(register, 0, 0, limit, base);
    return 0;
  };
export const loadGdt = loadTable(NUMBER.LGDT, SAVE.GDTR);
export const loadIdt = loadTable(NUMBER.LIDT, SAVE.IDTR);

/** UMIP: these are the kernel's when CR4 says so. */
const hidden = (i: SystemInstruction): boolean =>
  !i.privileged && (i.parts.registers.saveWord(SAVE.CR4) & CR4.UMIP) !== 0;

const storeTable =
  (number: number, register: number): SystemOperation =>
  (i) => {
    if (hidden(i)) return i.generalProtection();
    if (intercepted(i, number)) return i.exit(FIRST_EXIT + number);
    const { registers, access } = i.parts;
    const address = registers.long(STATE.TEMP_EA);
    const bytes = in64BitMode(registers) ? 8 : 4;
    const reason = access.probeAt(address, 2 + bytes, access.privilege);
    if (reason !== 0) return reason;
    const first = access.storeSized(address, BigInt(registers.limit(register) & 0xffff), 2, access.privilege);
    if (first !== 0) return first;
    return access.storeSized(address + 2n, registers.base(register), bytes, access.privilege);
  };
export const storeGdt = storeTable(NUMBER.SGDT, SAVE.GDTR);
export const storeIdt = storeTable(NUMBER.SIDT, SAVE.IDTR);

/** Real and virtual-8086 mode have no LDT and no tasks. */
const unknownHere = (i: SystemInstruction): boolean => hasRealSegments(i.parts.registers);

const loadSystemRegister =
  (number: number, register: number, type: number): SystemOperation =>
  (i) => {
    if (unknownHere(i)) return i.undefined();
    if (!i.privileged) return i.generalProtection();
    if (intercepted(i, number)) return i.exit(FIRST_EXIT + number);
    return i.segments.loadSystem(register, i.selector, type);
  };
export const loadLdt = loadSystemRegister(NUMBER.LLDT, SAVE.LDTR, TYPE_LDT);
export const loadTask = loadSystemRegister(NUMBER.LTR, SAVE.TR, TYPE_TSS);

const storeSystemRegister =
  (number: number, register: number): SystemOperation =>
  (i) => {
    if (unknownHere(i)) return i.undefined();
    if (hidden(i)) return i.generalProtection();
    if (intercepted(i, number)) return i.exit(FIRST_EXIT + number);
    i.setOperand(BigInt(i.parts.registers.selector(register)), i.size);
    return 0;
  };
export const storeLdt = storeSystemRegister(NUMBER.SLDT, SAVE.LDTR);
export const storeTask = storeSystemRegister(NUMBER.STR, SAVE.TR);

export function moveToSegment(i: SystemInstruction): number {
  const { number } = i;
  if (number === SEGMENT_CS || number > 5) return i.undefined();
  const reason = i.segments.load(SEGMENTS[number]!, i.selector);
  if (reason !== 0 || number !== SEGMENT_SS) return reason;
  i.parts.interrupts.holdNext(SHADOW.INTERRUPTS_AND_TRAPS);
  return i.nextWithEvents();
}

/** LSS, LFS, LGS and their like: the selector is in A0, the offset is loaded behind it. */
export function loadFarPointer(i: SystemInstruction): number {
  return i.segments.load(SEGMENTS[i.number]!, i.selector);
}

export function moveFromSegment(i: SystemInstruction): number {
  if (i.number > 5) return i.undefined();
  i.setOperand(BigInt(i.parts.registers.selector(SEGMENTS[i.number]!)), i.size);
  return 0;
}

/** ZF says whether the descriptor may be looked at; exceptions of the look itself (#GP for a bad selector) do not exist here. */
const probe =
  (
    accepts: (attributes: number, i: SystemInstruction) => boolean,
    result?: (i: SystemInstruction) => number,
  ): SystemOperation =>
  (i) => {
    if (unknownHere(i)) return i.undefined();
    const { registers, events } = i.parts;
    const selector = result ? i.second & 0xffff : i.selector;
    let good = (selector & 0xfffc) !== 0;
    if (good) {
      const reason = i.segments.read(selector, 0);
      if (reason !== 0 && events.faultVector !== VECTOR.GP) return reason;
      good = reason === 0 && visible(i, selector) && accepts(i.segments.descriptor.attributes, i);
    }
    const flags = registers.rflags & ~RFLAGS.ZF;
    if (good && result) i.setOperand(BigInt(result(i) >>> 0), i.size);
    registers.rflags = good ? flags | RFLAGS.ZF : flags;
    return 0;
  };

function visible(i: SystemInstruction, selector: number): boolean {
  const { attributes } = i.segments.descriptor;
  const conforming = (attributes & 0x1c) === 0x1c;
  return conforming || ((attributes >>> 5) & 3) >= Math.max(i.parts.registers.cpl, selector & 3);
}

/** Types of system descriptors that LSL and LAR know: LDT and TSSs, those of 16 bits in legacy mode alone; LAR knows gates too. */
const LSL_TYPES = { long: [2, 9, 11], legacy: [1, 2, 3, 9, 11] };
const LAR_TYPES = { long: [2, 9, 11, 12], legacy: [1, 2, 3, 4, 5, 9, 11, 12] };
const known =
  (types: typeof LSL_TYPES) =>
  (attributes: number, { parts }: SystemInstruction): boolean =>
    (attributes & 0x10) !== 0 ||
    types[inLongMode(parts.registers) ? 'long' : 'legacy'].includes(attributes & 0xf);
const isCode = (attributes: number): boolean => (attributes & 0x18) === 0x18;

export const loadAccessRights = probe(
  known(LAR_TYPES),
  (i) =>
    ((i.segments.descriptor.attributes & 0xff) << 8) | ((i.segments.descriptor.attributes & 0xf00) << 12),
);
export const loadSegmentLimit = probe(known(LSL_TYPES), (i) => i.segments.descriptor.limit);
export const verifyRead = probe(
  (attributes) => (attributes & 0x10) !== 0 && (!isCode(attributes) || (attributes & 2) !== 0),
);
export const verifyWrite = probe((attributes) => (attributes & 0x1a) === 0x12);
