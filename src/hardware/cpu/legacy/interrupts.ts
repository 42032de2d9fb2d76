/**
 * Exceptions and interrupts outside long mode (APM volume 2, 8.6 and 8.7): the real-mode vector table, and gates of 16 and 32 bits in a
 * protected-mode IDT with inner stacks from the TSS. Task gates are the host's (#VMEXIT TASK_SWITCH) or throw by name.
 */
import { SAVE } from '../../../abi/vmcb.ts';
import { RFLAGS, VECTOR } from '../../../abi/x86.ts';
import { NotImplementedError } from '../../../base/errors.ts';
import { PRIVILEGE } from '../access.ts';
import { legacyInnerStack, type SegmentTarget } from '../inner-stack.ts';
import { modeOf } from '../mode.ts';
import type { CoreParts } from '../parts.ts';
import { ProcessorStack } from '../processor-stack.ts';
import { ATTRIBUTE, dpl, type Segmentation } from '../segments.ts';

const GATE = { TASK: 5, INTERRUPT16: 6, TRAP16: 7, INTERRUPT: 14, TRAP: 15 } as const;
const FROM_IDT = 2;

/** What is delivered: `flags` are those to push, `rip` where it goes back to. */
export interface LegacyEvent {
  readonly vector: number;
  readonly error: number | undefined;
  readonly software: boolean;
  readonly flags: number;
  readonly rip: bigint;
}

/** 0: the handler is next. Or a LEAVE code with nothing changed. */
export function enterLegacy(parts: CoreParts, segments: Segmentation, event: LegacyEvent): number {
  switch (modeOf(parts.registers)) {
    case 'real':
      return enterReal(parts, segments, event);
    case 'protected':
      return enterProtected(parts, segments, event);
    default:
      throw new NotImplementedError('virtual-8086 mode');
  }
}

function enterReal(parts: CoreParts, segments: Segmentation, event: LegacyEvent): number {
  const { registers, access, events } = parts;
  const { vector, flags, rip } = event;
  if (4 * vector + 3 > registers.limit(SAVE.IDTR)) return events.raiseWith(VECTOR.GP, 0);
  const entry = registers.base(SAVE.IDTR) + BigInt(4 * vector);
  const reason = access.loadSized(entry, 4, PRIVILEGE.IMPLICIT);
  if (reason !== 0) return reason;
  const target = access.value;
  const stack = new ProcessorStack(parts).current();
  const frame = [BigInt(flags & 0xffff), BigInt(registers.selector(SAVE.CS)), rip & 0xffffn];
  const pushed = stack.pushAll(frame, 2);
  if (pushed !== 0) return pushed;
  stack.commit();
  segments.putReal(SAVE.CS, Number(target >> 16n));
  registers.flagsRest &= ~(RFLAGS.IF | RFLAGS.TF | RFLAGS.AC | RFLAGS.RF);
  registers.rip = target & 0xffffn;
  return 0;
}

function enterProtected(parts: CoreParts, segments: Segmentation, event: LegacyEvent): number {
  const { registers, access, events } = parts;
  const { vector, error, software, flags, rip } = event;
  const external = software ? 0 : 1;
  const gateError = vector * 8 + FROM_IDT + external;
  if (8 * vector + 7 > registers.limit(SAVE.IDTR)) return events.raiseWith(VECTOR.GP, gateError);
  let reason = access.loadLong(registers.base(SAVE.IDTR) + BigInt(8 * vector), PRIVILEGE.IMPLICIT);
  if (reason !== 0) return reason;
  const gate = access.value;
  const type = Number((gate >> 40n) & 0x1fn);
  const known = Object.values(GATE).some((value) => value === type);
  if (!known) return events.raiseWith(VECTOR.GP, gateError);
  if (software && Number((gate >> 45n) & 3n) < registers.cpl) return events.raiseWith(VECTOR.GP, gateError);
  if (((gate >> 47n) & 1n) === 0n) return events.raiseWith(VECTOR.NP, gateError);
  if (type === GATE.TASK) throw new NotImplementedError('a task gate');
  const wide = type >= GATE.INTERRUPT;
  const size = wide ? 4 : 2;
  const selector = Number((gate >> 16n) & 0xffffn);
  const target = wide ? (gate & 0xffffn) | ((gate >> 32n) & 0xffff0000n) : gate & 0xffffn;
  reason = segments.loadCode(selector, 'gate', external);
  if (reason !== 0) return reason;
  const { attributes, limit, base } = segments.descriptor;
  const oldCpl = registers.cpl;
  const cpl = (attributes & ATTRIBUTE.CONFORMING) !== 0 ? oldCpl : dpl(attributes);
  if (target > BigInt(limit)) return events.raiseWith(VECTOR.GP, external);
  const frame = [BigInt(flags >>> 0), BigInt(registers.selector(SAVE.CS)), rip];
  if (error !== undefined) frame.push(BigInt(error >>> 0));
  let stack = new ProcessorStack(parts).current();
  let inner: SegmentTarget | undefined;
  if (cpl < oldCpl) {
    frame.unshift(BigInt(registers.selector(SAVE.SS)), stack.pointer);
    const found = legacyInnerStack({ parts, segments }, cpl);
    if (typeof found === 'number') return found;
    stack = found.stack;
    inner = found.segment;
  }
  const pushed = stack.pushAll(frame, size);
  if (pushed !== 0) return pushed;
  if (inner) registers.setSegment(SAVE.SS, inner.selector, inner.attributes, inner.limit, inner.base);
  if (cpl !== oldCpl) registers.cpl = cpl;
  stack.commit();
  registers.setSegment(SAVE.CS, (selector & 0xfffc) | cpl, attributes, limit, base);
  let cleared = RFLAGS.TF | RFLAGS.NT | RFLAGS.RF | RFLAGS.VM;
  if (type === GATE.INTERRUPT || type === GATE.INTERRUPT16) cleared |= RFLAGS.IF;
  registers.flagsRest &= ~cleared;
  registers.rip = target;
  return 0;
}
