/**
 * Far JMP, CALL, RET and IRET in every mode (APM volume 3; volume 2, 4.11): code segments conforming or not, call gates of 16, 32 and 64 bits,
 * inner stacks from the TSS, returns to outer levels, IRET's flags. Everything that can fault is done before a register changes.
 *
 * AMD's cores take REX.W with a far pointer in memory as m16:32 and push 8 bytes each, and so do we. A hardware task switch is the host's (#VMEXIT TASK_SWITCH) or
 * throws by name, and so does an IRET into virtual-8086 mode.
 */
import { INTERCEPT, SAVE, VMEXIT } from '../../../abi/vmcb.ts';
import { RFLAGS, VECTOR } from '../../../abi/x86.ts';
import { NotImplementedError } from '../../../base/errors.ts';
import { PRIVILEGE } from '../access.ts';
import { legacyInnerStack, longInnerStack, type SegmentTarget } from '../inner-stack.ts';
import { isCanonicalAddress } from '../memory-access.ts';
import { hasRealSegments, in64BitMode, inLongMode, modeOf } from '../mode.ts';
import { ProcessorStack } from '../processor-stack.ts';
import { ATTRIBUTE, dpl } from '../segments.ts';
import { GPR, LEAVE } from '../state.ts';
import type { SystemInstruction } from './instruction.ts';
import { flagsAfterReturn } from './transfers.ts';

/** Types of system descriptors that a far transfer may name. */
const TYPE = { TSS16: 1, CALL16: 4, TASK_GATE: 5, TSS: 9, CALL: 12 } as const;
/** EXITINFO2's high word for a task switch: by IRET (bit 36), by far JMP (38). */
const TASK_BY_IRET = 1 << 4;
const TASK_BY_JUMP = 1 << 6;

type Kind = 'jump' | 'call';

/** Far JMP: offset in A0, selector in A1. */
export const farJump = (i: SystemInstruction): number => farTransfer(i, 'jump');
/** Far CALL alike. */
export const farCall = (i: SystemInstruction): number => farTransfer(i, 'call');

const cut = (value: bigint, size: number): bigint => BigInt.asUintN(8 * size, value);

function farTransfer(i: SystemInstruction, kind: Kind): number {
  const { registers } = i.parts;
  const selector = i.second & 0xffff;
  const rip = cut(i.operand, i.size);
  if (hasRealSegments(registers)) return realTransfer(i, kind, selector, rip);
  if ((selector & 0xfffc) === 0) return i.generalProtection();
  const reason = i.segments.read(selector, 0);
  if (reason !== 0) return reason;
  const { attributes } = i.segments.descriptor;
  if ((attributes & ATTRIBUTE.S) === 0) return systemTransfer(i, kind, selector);
  const checked = i.segments.loadCode(selector, 'jump', 0);
  if (checked !== 0) return checked;
  const target = targetOf(i, (selector & 0xfffc) | registers.cpl);
  if (!reaches(i, target, rip)) return i.generalProtection();
  if (kind === 'call') {
    const pushed = pushReturn(i, i.number);
    if (pushed !== 0) return pushed;
  }
  enter(i, target, rip);
  return i.resumeAt(rip);
}

function realTransfer(i: SystemInstruction, kind: Kind, selector: number, rip: bigint): number {
  const { registers } = i.parts;
  if (rip > BigInt(registers.limit(SAVE.CS))) return i.generalProtection();
  if (kind === 'call') {
    const pushed = pushReturn(i, i.number);
    if (pushed !== 0) return pushed;
  }
  i.segments.putReal(SAVE.CS, selector);
  return i.resumeAt(rip);
}

/** CS and the address behind the instruction, onto the stack in use. */
function pushReturn(i: SystemInstruction, size: number): number {
  const stack = new ProcessorStack(i.parts).current();
  const reason = stack.pushAll([BigInt(i.parts.registers.selector(SAVE.CS)), i.nextRip], size);
  if (reason === 0) stack.commit();
  return reason;
}

/** The descriptor just read, as what the segment register will hold. */
function targetOf({ segments }: SystemInstruction, selector: number): SegmentTarget {
  const { attributes, limit, base } = segments.descriptor;
  return { selector, attributes, limit, base };
}

const is64BitCode = (i: SystemInstruction, { attributes }: SegmentTarget): boolean =>
  inLongMode(i.parts.registers) && (attributes & ATTRIBUTE.L) !== 0;

/** Whether the new RIP is canonical, or inside the segment. */
const reaches = (i: SystemInstruction, target: SegmentTarget, rip: bigint): boolean =>
  is64BitCode(i, target) ? isCanonicalAddress(rip) : rip <= BigInt(target.limit >>> 0);

function enter(
  i: SystemInstruction,
  { selector, attributes, limit, base }: SegmentTarget,
  rip: bigint,
): void {
  i.parts.registers.setSegment(SAVE.CS, selector, attributes, limit, base);
  i.parts.registers.rip = rip;
}

/** The selector names a gate or a TSS, whose descriptor has been read. */
function systemTransfer(i: SystemInstruction, kind: Kind, selector: number): number {
  const { registers, events } = i.parts;
  const { attributes } = i.segments.descriptor;
  const error = selector & 0xfffc;
  const type = attributes & 0xf;
  const long = inLongMode(registers);
  const isGate = type === TYPE.CALL || (!long && type === TYPE.CALL16);
  const isTask = !long && (type === TYPE.TSS || type === TYPE.TSS16 || type === TYPE.TASK_GATE);
  if (!isGate && !isTask) return i.generalProtection(error);
  if (dpl(attributes) < Math.max(registers.cpl, selector & 3)) return i.generalProtection(error);
  if ((attributes & ATTRIBUTE.P) === 0) return events.raiseWith(VECTOR.NP, error);
  if (isTask) return switchTask(i, selector, kind === 'jump' ? TASK_BY_JUMP : 0);
  return throughGate(i, kind, selector);
}

function switchTask(i: SystemInstruction, selector: number, why: number): number {
  if (!i.parts.intercepts.has(INTERCEPT.TASK_SWITCH)) throw new NotImplementedError('a hardware task switch');
  const reason = i.exit(VMEXIT.TASK_SWITCH, selector);
  i.parts.events.exit.info2High = why;
  return reason;
}

function throughGate(i: SystemInstruction, kind: Kind, selector: number): number {
  const { registers, access, events } = i.parts;
  const { address, attributes } = i.segments.descriptor;
  const long = inLongMode(registers);
  let reason = access.loadLong(address, PRIVILEGE.IMPLICIT);
  if (reason !== 0) return reason;
  const low = access.value;
  let rip = (low & 0xffffn) | ((low >> 32n) & 0xffff0000n);
  let size = 8;
  if (long) {
    if ((selector & 0xfff8) + 15 > registers.limit((selector & 4) !== 0 ? SAVE.LDTR : SAVE.GDTR))
      return i.generalProtection(selector & 0xfffc);
    reason = access.loadLong(address + 8n, PRIVILEGE.IMPLICIT);
    if (reason !== 0) return reason;
    if (((access.value >> 40n) & 0x1fn) !== 0n) return i.generalProtection(selector & 0xfffc);
    rip |= (access.value & 0xffffffffn) << 32n;
  } else if ((attributes & 0xf) === TYPE.CALL) size = 4;
  else {
    size = 2;
    rip &= 0xffffn;
  }
  const code = Number((low >> 16n) & 0xffffn);
  reason = i.segments.loadCode(code, 'gate', 0);
  if (reason !== 0) return reason;
  const conforming = (i.segments.descriptor.attributes & ATTRIBUTE.CONFORMING) !== 0;
  const privilege = dpl(i.segments.descriptor.attributes);
  const cpl = conforming || kind === 'jump' ? registers.cpl : privilege;
  if (kind === 'jump' && !conforming && privilege !== registers.cpl)
    return i.generalProtection(code & 0xfffc);
  const target = targetOf(i, (code & 0xfffc) | cpl);
  if (!reaches(i, target, rip)) return events.raiseWith(VECTOR.GP, 0);
  if (kind === 'call') {
    const parameters = long ? 0 : Number((low >> 32n) & 0x1fn);
    const pushed = cpl < registers.cpl ? innerCall(i, cpl, size, parameters) : pushReturn(i, size);
    if (pushed !== 0) return pushed;
  }
  enter(i, target, rip);
  return i.resumeAt(rip);
}

/** A call to an inner level: its stack from the TSS, with SS, rSP, the parameters, CS and rIP. */
function innerCall(i: SystemInstruction, cpl: number, size: number, parameters: number): number {
  const { registers } = i.parts;
  const outer = new ProcessorStack(i.parts).current();
  const values = [BigInt(registers.selector(SAVE.SS)), cut(registers.gpr(GPR.RSP), size)];
  const copied: bigint[] = [];
  for (let k = 0; k < parameters; k++) {
    const reason = outer.pop(size);
    if (reason !== 0) return reason;
    copied.unshift(outer.value);
  }
  values.push(...copied, BigInt(registers.selector(SAVE.CS)), i.nextRip);
  const found = inLongMode(registers) ? longInnerStack(i.parts, cpl) : legacyInnerStack(i, cpl);
  if (typeof found === 'number') return found;
  const { stack, segment } = found;
  const reason = stack.pushAll(values, size);
  if (reason !== 0) return reason;
  registers.setSegment(SAVE.SS, segment.selector, segment.attributes, segment.limit, segment.base);
  registers.cpl = cpl;
  if (stack.bits === 64) registers.setGpr(GPR.RSP, stack.pointer);
  else stack.commit();
  return 0;
}

/** RETF: SIZE; the immediate at A1 is released on both stacks. */
export function farReturn(i: SystemInstruction): number {
  const { registers } = i.parts;
  const { size } = i;
  const released = i.second & 0xffff;
  const stack = new ProcessorStack(i.parts).current();
  const popped: bigint[] = [];
  for (let k = 0; k < 2; k++) {
    const reason = stack.pop(size);
    if (reason !== 0) return reason;
    popped.push(stack.value);
  }
  const rip = popped[0]!;
  const cs = Number(popped[1]! & 0xffffn);
  stack.release(released);
  if (hasRealSegments(registers)) {
    if (rip > BigInt(registers.limit(SAVE.CS))) return i.generalProtection();
    stack.commit();
    i.segments.putReal(SAVE.CS, cs);
    return i.resumeAt(rip);
  }
  if ((cs & 3) <= registers.cpl) return returnTo(i, rip, cs, stack, undefined, 0);
  return returnToOuter(i, rip, cs, stack, size, released);
}

/** IRET: SIZE. */
export function interruptReturn(i: SystemInstruction): number {
  const { registers, intercepts } = i.parts;
  if (intercepts.has(INTERCEPT.IRET)) return i.exit(VMEXIT.IRET);
  const mode = modeOf(registers);
  if (mode === 'virtual-8086') throw new NotImplementedError('virtual-8086 mode');
  if (mode !== 'real' && (registers.flagsRest & RFLAGS.NT) !== 0) return returnFromTask(i);
  const { size } = i;
  const stack = new ProcessorStack(i.parts).current();
  const popped: bigint[] = [];
  for (let k = 0; k < 3; k++) {
    const reason = stack.pop(size);
    if (reason !== 0) return reason;
    popped.push(stack.value);
  }
  const rip = popped[0]!;
  const cs = Number(popped[1]! & 0xffffn);
  const image = Number(BigInt.asIntN(32, popped[2]!));
  const flags = flagsAfterReturn(i, image, size);
  if (mode === 'real') {
    if (rip > BigInt(registers.limit(SAVE.CS))) return i.generalProtection();
    stack.commit();
    i.segments.putReal(SAVE.CS, cs);
    registers.rflags = flags;
    registers.keepResumeFlag();
    return i.resumeAt(rip);
  }
  if (mode === 'protected' && size === 4 && (image & RFLAGS.VM) !== 0 && i.privileged)
    throw new NotImplementedError('virtual-8086 mode');
  const withStack = in64BitMode(registers) || (cs & 3) > registers.cpl;
  const reason = withStack
    ? returnToOuter(i, rip, cs, stack, size, 0)
    : returnTo(i, rip, cs, stack, undefined, 0);
  if (reason === LEAVE.RESUME) {
    registers.rflags = flags;
    registers.keepResumeFlag();
  }
  return reason;
}

/** IRET with NT: back to the task whose TSS the current one names; long mode has no tasks. */
function returnFromTask(i: SystemInstruction): number {
  const { registers, access } = i.parts;
  if (inLongMode(registers)) return i.generalProtection();
  const reason = access.loadSized(registers.base(SAVE.TR), 2, PRIVILEGE.IMPLICIT);
  return reason !== 0 ? reason : switchTask(i, Number(access.value), TASK_BY_IRET);
}

function returnToOuter(
  i: SystemInstruction,
  rip: bigint,
  cs: number,
  stack: ProcessorStack,
  size: number,
  released: number,
): number {
  const popped: bigint[] = [];
  for (let k = 0; k < 2; k++) {
    const reason = stack.pop(size);
    if (reason !== 0) return reason;
    popped.push(stack.value);
  }
  stack.pointer = popped[0]!;
  return returnTo(i, rip, cs, stack, Number(popped[1]! & 0xffffn), released);
}

/** To CS:rIP of the same or an outer level with the stack pointer of `stack`. `ss` undefined keeps SS. */
function returnTo(
  i: SystemInstruction,
  rip: bigint,
  cs: number,
  stack: ProcessorStack,
  ss: number | undefined,
  released: number,
): number {
  const { segments } = i;
  const { registers } = i.parts;
  const oldCpl = registers.cpl;
  const reason = segments.loadCode(cs, 'return', 0);
  if (reason !== 0) return reason;
  const target = targetOf(i, cs);
  const cpl = cs & 3;
  const to64Bit = is64BitCode(i, target);
  if (ss !== undefined) {
    const loaded = segments.loadStack(ss, cpl, to64Bit ? '64-bit' : 'legacy');
    if (loaded !== 0) return loaded;
    const big = (segments.descriptor.attributes & ATTRIBUTE.D) !== 0;
    stack.bits = to64Bit ? 64 : big ? 32 : 16;
  }
  if (!reaches(i, target, rip)) return i.generalProtection();
  if (ss !== undefined) segments.put(SAVE.SS, ss);
  registers.setSegment(SAVE.CS, cs, target.attributes, target.limit, target.base);
  stack.release(released);
  stack.commit();
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
