/**
 * Exceptions, interrupts and their delivery through a 64-bit IDT (APM volume 2, chapter 8): gates, IST, inner-level stacks of the TSS, error
 * codes, RFLAGS; the rules by which a second exception becomes a double fault and a third a shutdown; exception intercepts and
 * EXITINTINFO (15.7.2, 15.12). Left out: task gates, #AC, shadow stacks.
 */
import { EVENT, INTERCEPT, SAVE, VMEXIT } from '../../abi/vmcb.ts';
import { RFLAGS, VECTOR } from '../../abi/x86.ts';
import { NotImplementedError } from '../../base/errors.ts';
import { PRIVILEGE } from './access.ts';
import { loadStackPointer } from './inner-stack.ts';
import { enterLegacy } from './legacy/interrupts.ts';
import { isCanonicalAddress } from './memory-access.ts';
import { inLongMode } from './mode.ts';
import type { CoreParts } from './parts.ts';
import { ProcessorStack } from './processor-stack.ts';
import { VC_PAGE_NOT_VALIDATED } from './rmp-check.ts';
import { ATTRIBUTE, dpl, type Segmentation } from './segments.ts';
import { usesStackSegment } from './stack-segment.ts';
import { GPR, LEAVE, STATE } from './state.ts';

/** #DE #TS #NP #SS #GP: two of them in a row, or one after #PF, are a double fault. */
const CONTRIBUTORY = new Set<number>([VECTOR.DE, VECTOR.TS, VECTOR.NP, VECTOR.SS, VECTOR.GP, VECTOR.VC]);
const INTERRUPT_GATE = 0xe;
const TRAP_GATE = 0xf;
const FROM_IDT = 2;
const EXTERNAL = 1;

/** An event on its way through the IDT. */
interface Delivery {
  readonly vector: number;
  readonly error: number | undefined;
  /** INT n, INT3: the gate's DPL counts. */
  readonly software: boolean;
  /** What EXITINTINFO says of it. */
  readonly type: number;
  readonly rip: bigint;
}

export class Exceptions {
  readonly #parts: CoreParts;
  readonly #segments: Segmentation;
  /** What a chain of exceptions began with. */
  #first = 0;

  constructor(parts: CoreParts, segments: Segmentation) {
    this.#parts = parts;
    this.#segments = segments;
  }

  /** Delivers the pending exception (STATE.EXCEPTION_*). 0: the handler is next. LEAVE.VMEXIT: intercepted, or shutdown. */
  deliverPending(): number {
    return this.#raised(undefined);
  }

  /** INT n, INT3: an event of the program itself, with RIP behind it. `type` is EVENT.TYPE_SOFTWARE or TYPE_EXCEPTION. */
  deliverSoftware(vector: number, type: number, nextRip: bigint): number {
    const event = { vector, error: undefined, software: true, type, rip: nextRip };
    const reason = this.#enter(event);
    return this.#afterEntering(reason, event);
  }

  /** INT1: the same, but the gate's DPL does not count. */
  deliverPrivilegedSoftware(vector: number, nextRip: bigint): number {
    const event = { vector, error: undefined, software: false, type: EVENT.TYPE_EXCEPTION, rip: nextRip };
    return this.#afterEntering(this.#enter(event), event);
  }

  /** An external (virtual) interrupt, which the caller has seen to be allowed. */
  deliverInterrupt(vector: number): number {
    const { rip } = this.#parts.registers;
    const event = { vector, error: undefined, software: false, type: EVENT.TYPE_INTR, rip };
    return this.#afterEntering(this.#enter(event), event);
  }

  /** EVENTINJ: not intercepted itself, and not held off by anything. `nextRip` is the VMCB's. */
  inject(info: number, error: number, nextRip: bigint): number {
    const { registers } = this.#parts;
    const type = info & 0x700;
    const vector = type === EVENT.TYPE_NMI ? VECTOR.NMI : info & 0xff;
    const isException = type === EVENT.TYPE_EXCEPTION;
    const withError = isException && (info & EVENT.ERROR_CODE_VALID) !== 0;
    const afterInstruction =
      type === EVENT.TYPE_SOFTWARE || (isException && (vector === VECTOR.BP || vector === VECTOR.OF));
    const event = {
      vector,
      error: withError ? error : undefined,
      software: afterInstruction,
      type,
      rip: afterInstruction && nextRip !== 0n ? nextRip : registers.rip,
    };
    return this.#afterEntering(this.#enter(event), event);
  }

  /** The pending exception, which came while `first` was delivered. */
  #raised(first: Delivery | undefined): number {
    let delivering = first;
    this.#first = first?.vector ?? this.#parts.registers.word(STATE.EXCEPTION_VECTOR);
    for (;;) {
      const { registers, events } = this.#parts;
      let vector = registers.word(STATE.EXCEPTION_VECTOR);
      let error: number | undefined;
      if (registers.word(STATE.EXCEPTION_HAS_ERROR) !== 0) error = registers.word(STATE.EXCEPTION_ERROR);
      if (events.notCanonical) {
        events.notCanonical = false;
        if (delivering === undefined && usesStackSegment(this.#parts)) vector = VECTOR.SS;
      }
      if (delivering?.vector === VECTOR.DF && delivering.type === EVENT.TYPE_EXCEPTION)
        return this.#shutdown();
      if (
        this.#parts.intercepts.exception(vector) &&
        this.#parts.guest.reflects(VMEXIT.EXCEPTION0 + vector)
      ) {
        error = VMEXIT.EXCEPTION0 + vector;
        vector = VECTOR.VC;
      }
      const double = delivering !== undefined && isDoubleFault(delivering, vector);
      if (
        this.#parts.intercepts.exception(vector) ||
        (double && this.#parts.intercepts.exception(VECTOR.DF))
      ) {
        // The first of two is intercepted by what it is; only where nobody wants it do both become a double fault.
        if (this.#parts.intercepts.exception(vector)) return this.#intercepted(vector, error, delivering);
        return this.#intercepted(VECTOR.DF, 0, undefined);
      }
      if (vector === VECTOR.PF || (vector === VECTOR.VC && error === VC_PAGE_NOT_VALIDATED)) this.#setCr2();
      if (double) {
        vector = VECTOR.DF;
        error = 0;
      }
      this.#trace(vector, error);
      const event: Delivery = {
        vector,
        error,
        software: false,
        type: EVENT.TYPE_EXCEPTION,
        rip: registers.rip,
      };
      const reason = this.#enter(event);
      if (reason !== LEAVE.EXCEPTION) return this.#exitWhileDelivering(reason, event);
      delivering = event;
    }
  }

  #afterEntering(reason: number, event: Delivery): number {
    return reason === LEAVE.EXCEPTION ? this.#raised(event) : this.#exitWhileDelivering(reason, event);
  }

  #exitWhileDelivering(reason: number, event: Delivery): number {
    if (reason === LEAVE.VMEXIT) this.#setInterruptInfo(event);
    return reason;
  }

  #intercepted(vector: number, error: number | undefined, delivering: Delivery | undefined): number {
    const { exit, faultAddress, faultAddressHigh } = this.#parts.events;
    exit.begin(VMEXIT.EXCEPTION0 + vector);
    exit.info1 = error ?? 0;
    if (vector === VECTOR.PF) {
      exit.info2 = faultAddress;
      exit.info2High = faultAddressHigh;
      exit.withBytes = true;
    }
    if (delivering) this.#setInterruptInfo(delivering);
    return LEAVE.VMEXIT;
  }

  #setInterruptInfo({ vector, type, error }: Delivery): void {
    const { exit } = this.#parts.events;
    exit.interruptInfo =
      vector |
      type |
      EVENT.VALID |
      (error === undefined || type !== EVENT.TYPE_EXCEPTION ? 0 : EVENT.ERROR_CODE_VALID);
    exit.interruptError = error ?? 0;
  }

  #shutdown(): number {
    const { events, intercepts } = this.#parts;
    if (!intercepts.has(INTERCEPT.SHUTDOWN))
      throw new NotImplementedError('a shutdown that the host does not intercept');
    this.#traceShutdown();
    return events.exit.begin(VMEXIT.SHUTDOWN);
  }

  #traceShutdown(): void {
    const { events, trace, registers, id } = this.#parts;
    const absent = events.undefinedHere;
    const first =
      nameOf(this.#first) + (absent === undefined ? '' : ` of ${absent}, which this core does not have`);
    trace.fail({
      kind: 'core',
      who: 'core',
      what: 'shutdown',
      vcpu: id,
      vector: this.#first,
      rip: `0x${registers.rip.toString(16)}`,
      why: `${first}; ${nameOf(registers.word(STATE.EXCEPTION_VECTOR))} while the double fault was delivered`,
    });
  }

  #setCr2(): void {
    const { registers, events } = this.#parts;
    registers.setSaveWord(SAVE.CR2, events.faultAddress);
    registers.setSaveWord(SAVE.CR2 + 4, events.faultAddressHigh);
  }

  /** Goes through the gate. 0, or a LEAVE code with nothing changed. */
  #enter(event: Delivery): number {
    const { registers, events, access } = this.#parts;
    const { vector, software } = event;
    if (!inLongMode(registers)) return this.#enterLegacy(event);
    const external = software ? 0 : EXTERNAL;
    const gateError = vector * 8 + FROM_IDT + external;
    if (vector * 16 + 15 > registers.limit(SAVE.IDTR)) return events.raiseWith(VECTOR.GP, gateError);
    const gate = registers.base(SAVE.IDTR) + BigInt(vector * 16);
    let reason = access.loadLong(gate, PRIVILEGE.IMPLICIT);
    if (reason !== 0) return reason;
    const low = access.value;
    reason = access.loadLong(gate + 8n, PRIVILEGE.IMPLICIT);
    if (reason !== 0) return reason;
    const target = (low & 0xffffn) | ((low >> 32n) & 0xffff0000n) | ((access.value & 0xffffffffn) << 32n);
    const type = Number((low >> 40n) & 0x1fn);
    if (type !== INTERRUPT_GATE && type !== TRAP_GATE) return events.raiseWith(VECTOR.GP, gateError);
    if (software && Number((low >> 45n) & 3n) < registers.cpl) return events.raiseWith(VECTOR.GP, gateError);
    if (((low >> 47n) & 1n) === 0n) return events.raiseWith(VECTOR.NP, gateError);
    const selector = Number((low >> 16n) & 0xffffn);
    reason = this.#segments.loadCode(selector, 'gate', external);
    if (reason !== 0) return reason;
    if (!isCanonicalAddress(target)) return events.raiseWith(VECTOR.GP, external);
    return this.#switchTo(event, { target, selector, ist: Number((low >> 32n) & 7n), type, external });
  }

  #enterLegacy(event: Delivery): number {
    const { registers } = this.#parts;
    const flags = isFault(event) ? registers.rflags | RFLAGS.RF : registers.rflags;
    const reason = enterLegacy(this.#parts, this.#segments, { ...event, flags });
    if (reason === 0) this.#entered();
    return reason;
  }

  /** The handler is next: no shadow and no trap of before is left. */
  #entered(): void {
    const { interrupts, debug } = this.#parts;
    interrupts.endShadow();
    debug.settled = true;
    debug.pending = 0;
  }

  #switchTo(
    event: Delivery,
    gate: { target: bigint; selector: number; ist: number; type: number; external: number },
  ): number {
    const { registers, access } = this.#parts;
    const { attributes } = this.#segments.descriptor;
    const oldCpl = registers.cpl;
    const conforming = (attributes & ATTRIBUTE.CONFORMING) !== 0;
    const cpl = conforming ? oldCpl : dpl(attributes);
    let top = registers.gpr(GPR.RSP);
    if (gate.ist !== 0 || cpl < oldCpl) {
      const reason = loadStackPointer(this.#parts, cpl, gate);
      if (reason !== 0) return reason;
      top = access.value;
    }
    const privilege = cpl === oldCpl && cpl === 3 ? PRIVILEGE.USER : PRIVILEGE.IMPLICIT;
    const stack = new ProcessorStack(this.#parts).inner(top & ~0xfn, undefined, gate.external, privilege);
    const flags = registers.rflags;
    const pushed = isFault(event) ? flags | RFLAGS.RF : flags;
    const frame = [
      BigInt(registers.selector(SAVE.SS)),
      registers.gpr(GPR.RSP),
      BigInt(pushed >>> 0),
      BigInt(registers.selector(SAVE.CS)),
      event.rip,
    ];
    if (event.error !== undefined) frame.push(BigInt(event.error >>> 0));
    const missing = stack.pushAll(frame, 8);
    if (missing !== 0) return missing;
    registers.setGpr(GPR.RSP, stack.pointer);
    if (cpl !== oldCpl) registers.setSegment(SAVE.SS, cpl, cpl << 5, 0, 0n);
    this.#segments.put(SAVE.CS, (gate.selector & 0xfffc) | cpl);
    if (cpl !== oldCpl) registers.cpl = cpl;
    let cleared = RFLAGS.TF | RFLAGS.NT | RFLAGS.RF | RFLAGS.VM;
    if (gate.type === INTERRUPT_GATE) cleared |= RFLAGS.IF;
    registers.flagsRest &= ~cleared;
    registers.rip = gate.target;
    this.#entered();
    return 0;
  }

  #trace(vector: number, error: number | undefined): void {
    const { trace, registers, id } = this.#parts;
    if (!trace.on) return;
    trace.emit({
      kind: 'core',
      who: 'core',
      what: 'exception',
      vcpu: id,
      vector,
      error: error ?? 0,
      rip: `0x${registers.rip.toString(16)}`,
    });
  }
}

/** #UD, #GP, … or the vector's number. */
function nameOf(vector: number): string {
  const name = Object.entries(VECTOR).find(([, value]) => value === vector)?.[0];
  return name === undefined ? `vector ${vector}` : `#${name}`;
}

/** APM volume 2, table 8-5. */
function isDoubleFault(first: Delivery, second: number): boolean {
  if (first.type !== EVENT.TYPE_EXCEPTION) return false;
  if (CONTRIBUTORY.has(first.vector)) return CONTRIBUTORY.has(second);
  return first.vector === VECTOR.PF && (second === VECTOR.PF || CONTRIBUTORY.has(second));
}

/** Faults push RF, traps and interrupts do not. */
function isFault({ type, software, vector }: Delivery): boolean {
  const trapOrAbort =
    vector === VECTOR.BP || vector === VECTOR.OF || vector === VECTOR.DF || vector === VECTOR.DB;
  return type === EVENT.TYPE_EXCEPTION && !software && !trapOrAbort;
}
