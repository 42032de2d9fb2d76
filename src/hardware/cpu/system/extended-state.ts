/**
 * XSAVE, XSAVEOPT, XSAVEC, XRSTOR, XGETBV, XSETBV (APM volume 2, 11.5; volume 4) with the components x87 and SSE. A component is in use when it
 * differs from its initial configuration. XSAVEOPT knows no modified optimisation. XSAVES and XRSTORS are left out (CPUID does not show
 * them).
 */
import { INTERCEPT, SAVE, VMEXIT } from '../../../abi/vmcb.ts';
import { CR0, CR4, VECTOR } from '../../../abi/x86.ts';
import {
  clearVectors,
  FX,
  FX_BYTES,
  FxImage,
  MXCSR_INITIAL,
  vectorsAreInitial,
  X87State,
  XCR0_KNOWN,
  XSAVE_BYTES,
} from '../fx-image.ts';
import type { Registers } from '../registers.ts';
import { GPR, LEAVE, STATE } from '../state.ts';
import { checkImage, loadImage, storeImage } from './image-access.ts';
import type { SystemInstruction } from './instruction.ts';
import { takeMxcsr } from './vector-state.ts';

/** Bits of XCR0, of the header's fields, and of EDX:EAX. */
const X87 = 1n;
const SSE = 2n;
const COMPACTED = 1n << 63n;
const ALIGNMENT = 63n;
/** Longs of the header: XSTATE_BV, XCOMP_BV, and those after them. */
const XSTATE_BV = FX.HEADER >> 3;
const XCOMP_BV = XSTATE_BV + 1;
const RESERVED = XSTATE_BV + 2;
const END = XSAVE_BYTES >> 3;
const U32 = 0xffffffffn;

const LEGACY: readonly [number, number] = [0, FX_BYTES];
const HEADER: readonly [number, number] = [FX.HEADER, XSAVE_BYTES];

/** The components that are not in their initial configuration, as XGETBV of 1 gives them. */
function componentsInUse(registers: Registers): bigint {
  return (new X87State(registers).initial ? 0n : X87) | (vectorsAreInitial(registers) ? 0n : SSE);
}

interface Area {
  readonly address: bigint;
  /** XCR0 and EDX:EAX. */
  readonly requested: bigint;
}

/** Where to and what; undefined: #UD, #NM or #GP is pending. */
function area(i: SystemInstruction): Area | undefined {
  const { registers, events } = i.parts;
  if ((registers.saveWord(SAVE.CR4) & CR4.OSXSAVE) === 0) {
    i.undefined();
    return undefined;
  }
  if ((registers.saveWord(SAVE.CR0) & CR0.TS) !== 0) {
    events.raise(VECTOR.NM);
    return undefined;
  }
  const address = registers.long(STATE.TEMP_EA);
  if ((address & ALIGNMENT) !== 0n) {
    i.generalProtection();
    return undefined;
  }
  return { address, requested: pair(registers) & registers.long(STATE.XCR0) };
}

/** EDX:EAX */
const pair = (registers: Registers): bigint =>
  ((registers.gpr(GPR.RDX) & U32) << 32n) | (registers.gpr(GPR.RAX) & U32);

/** What is written of the legacy region. */
function storeComponents(
  i: SystemInstruction,
  { address }: Area,
  image: FxImage,
  written: bigint,
  mxcsr: boolean,
): number {
  const parts: [number, number][] = [];
  if ((written & X87) !== 0n) {
    image.takeX87(i.size);
    parts.push([0, FX.MXCSR], [FX.ST, FX.XMM]);
  }
  if (mxcsr) {
    image.takeMxcsr();
    parts.push([FX.MXCSR, FX.ST]);
  }
  if ((written & SSE) !== 0n) {
    image.takeVectors();
    parts.push([FX.XMM, FX_BYTES]);
  }
  for (const part of parts) {
    const reason = storeImage(i, address, image, part);
    if (reason !== 0) return reason;
  }
  return 0;
}

/** 0 if the area can be written, all of it whatever is asked for. */
const probeArea = (i: SystemInstruction, { address }: Area): number =>
  checkImage(i, 'write', address, address + BigInt(XSAVE_BYTES - 1));

/** XSAVE writes all requested components; `optimised`, XSAVEOPT, those in use. The header's other bits stay. */
const standard =
  (optimised: boolean) =>
  (i: SystemInstruction): number => {
    const where = area(i);
    if (where === undefined) return LEAVE.EXCEPTION;
    const { registers } = i.parts;
    const image = new FxImage(registers);
    const reason = probeArea(i, where) || loadImage(i, where.address, image, [FX.HEADER, FX.HEADER + 8]);
    if (reason !== 0) return reason;
    const inUse = componentsInUse(registers) & where.requested;
    const written = optimised ? inUse : where.requested;
    const failed = storeComponents(i, where, image, written, (where.requested & SSE) !== 0n);
    if (failed !== 0) return failed;
    image.longs[XSTATE_BV] = (image.longs[XSTATE_BV]! & ~where.requested) | inUse;
    return storeImage(i, where.address, image, [FX.HEADER, FX.HEADER + 8]);
  };
export const saveExtendedState = standard(false);
export const saveExtendedStateOptimised = standard(true);

/** XSAVEC: only what is in use; an MXCSR that is not initial puts SSE in use. */
export function saveExtendedStateCompacted(i: SystemInstruction): number {
  const where = area(i);
  if (where === undefined) return LEAVE.EXCEPTION;
  const reason = probeArea(i, where);
  if (reason !== 0) return reason;
  const { registers } = i.parts;
  const image = new FxImage(registers);
  const changed = registers.word(STATE.MXCSR) === MXCSR_INITIAL ? 0n : SSE;
  const inUse = (componentsInUse(registers) | changed) & where.requested;
  const failed = storeComponents(i, where, image, inUse, (inUse & SSE) !== 0n);
  if (failed !== 0) return failed;
  image.longs[XSTATE_BV] = inUse;
  image.longs[XCOMP_BV] = where.requested | COMPACTED;
  return storeImage(i, where.address, image, [FX.HEADER, FX.HEADER + 16]);
}

/** Whether XRSTOR accepts the header. */
function headerIsValid(image: FxImage, xcr0: bigint): boolean {
  const state = image.longs[XSTATE_BV]!;
  const format = image.longs[XCOMP_BV]!;
  const zero = (from: number, end: number) => image.longs.subarray(from, end).every((long) => long === 0n);
  if ((format & COMPACTED) === 0n) return (state & ~xcr0) === 0n && zero(XCOMP_BV, RESERVED + 1);
  if ((format & ~COMPACTED & ~xcr0) !== 0n || (state & ~format) !== 0n) return false;
  return zero(RESERVED, END);
}

export function restoreExtendedState(i: SystemInstruction): number {
  const where = area(i);
  if (where === undefined) return LEAVE.EXCEPTION;
  const { registers } = i.parts;
  const { address, requested } = where;
  const image = new FxImage(registers);
  let reason = checkImage(i, 'read', address) || loadImage(i, address, image, HEADER);
  if (reason !== 0) return reason;
  if (!headerIsValid(image, registers.long(STATE.XCR0))) return i.generalProtection();
  const present = image.longs[XSTATE_BV]! & requested;
  const compacted = (image.longs[XCOMP_BV]! & COMPACTED) !== 0n;
  // The standard form has MXCSR whether it has vectors or not.
  const withMxcsr = ((compacted ? present : requested) & SSE) !== 0n;
  if (present !== 0n || withMxcsr) reason = loadImage(i, address, image, LEGACY);
  if (reason === 0 && withMxcsr) reason = takeMxcsr(i, image.mxcsr);
  if (reason !== 0) return reason;
  if ((present & X87) !== 0n) image.giveX87(i.size);
  else if ((requested & X87) !== 0n) new X87State(registers).clear();
  if ((present & SSE) !== 0n) image.giveVectors();
  else if ((requested & SSE) !== 0n) clearVectors(registers);
  if ((requested & SSE) !== 0n && !withMxcsr) registers.setWord(STATE.MXCSR, MXCSR_INITIAL);
  return 0;
}

/** ECX 0: XCR0; 1: the components of it that are in use. */
export function getExtendedControl(i: SystemInstruction): number {
  const { registers } = i.parts;
  if ((registers.saveWord(SAVE.CR4) & CR4.OSXSAVE) === 0) return i.undefined();
  const number = registers.gprWord(GPR.RCX) >>> 0;
  if (number > 1) return i.generalProtection();
  const xcr0 = registers.long(STATE.XCR0);
  const value = number === 0 ? xcr0 : xcr0 & componentsInUse(registers);
  registers.setGpr(GPR.RAX, value & U32);
  registers.setGpr(GPR.RDX, value >> 32n);
  return 0;
}

export function setExtendedControl(i: SystemInstruction): number {
  const { registers, intercepts } = i.parts;
  if ((registers.saveWord(SAVE.CR4) & CR4.OSXSAVE) === 0) return i.undefined();
  if (!i.privileged) return i.generalProtection();
  if (intercepts.has(INTERCEPT.XSETBV)) return i.exit(VMEXIT.XSETBV);
  const value = pair(registers);
  if (registers.gprWord(GPR.RCX) !== 0 || !isLegalXcr0(value)) return i.generalProtection();
  registers.setLong(STATE.XCR0, value);
  return 0;
}

/** x87 is always on, and nothing is that the chip does not have. */
const isLegalXcr0 = (value: bigint): boolean => (value & X87) !== 0n && (value & ~XCR0_KNOWN) === 0n;
