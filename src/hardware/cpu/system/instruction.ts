/**
 * The `system` record that is being executed (record.ts), and the ways in which such an instruction ends: go on behind it, go on
 * elsewhere, raise an exception, leave the guest.
 */
import { RFLAGS, VECTOR } from '../../../abi/x86.ts';
import type { Exceptions } from '../exceptions.ts';
import type { CoreParts } from '../parts.ts';
import { RECORD } from '../record.ts';
import type { Segmentation } from '../segments.ts';
import { LEAVE, STATE } from '../state.ts';

export class SystemInstruction {
  readonly parts: CoreParts;
  readonly segments: Segmentation;
  readonly exceptions: Exceptions;
  readonly #words: Int32Array;
  readonly #longs: BigUint64Array;
  readonly #bytes: Uint8Array;
  #record = 0;

  constructor(parts: CoreParts, segments: Segmentation, exceptions: Exceptions) {
    this.parts = parts;
    this.segments = segments;
    this.exceptions = exceptions;
    this.#words = parts.memory.words;
    this.#longs = parts.memory.longs;
    this.#bytes = parts.memory.bytes;
  }

  /** Takes up the record at that address. Returns its SYSTEM code. */
  begin(record: number): number {
    this.#record = record;
    return this.#words[(record + RECORD.SYSTEM) >>> 2]!;
  }

  /** Its address. */
  get record(): number {
    return this.#record;
  }

  /** Operand size in bytes. */
  get size(): number {
    return this.#bytes[(this.#record >>> 0) + RECORD.SIZE]!;
  }
  /** Number of the control, debug or segment register; vector of INT. */
  get number(): number {
    return this.#bytes[(this.#record >>> 0) + RECORD.NUMBER]!;
  }
  get repeats(): boolean {
    return this.#bytes[(this.#record >>> 0) + RECORD.REP] !== 0;
  }
  get addressSize(): number {
    return this.#bytes[(this.#record >>> 0) + RECORD.ADDRESS_SIZE]!;
  }

  /** Operand A0 as 64 bits; the caller takes as many as it wants. A register or a temporary is always 8 bytes. */
  get operand(): bigint {
    return this.#longs[this.#word(RECORD.A0) >>> 3]!;
  }
  /** Number of the general register that operand A0 is. */
  get operandRegister(): number {
    return (this.#word(RECORD.A0) - this.parts.registers.state - STATE.GPR) >>> 3;
  }
  /** The low 16 bits of operand A0, a selector. */
  get selector(): number {
    return this.#words[this.#word(RECORD.A0) >>> 2]! & 0xffff;
  }
  /** Sets operand A0: `size` 2 leaves the upper bytes alone, 4 clears them. */
  setOperand(value: bigint, size: number): void {
    const at = this.#word(RECORD.A0) >>> 3;
    if (size === 8) this.#longs[at] = BigInt.asUintN(64, value);
    else if (size === 4) this.#longs[at] = value & 0xffffffffn;
    else this.#longs[at] = (this.#longs[at]! & ~0xffffn) | (value & 0xffffn);
  }
  /** Operand A1: a register, or the record's immediate; its low word. */
  get second(): number {
    return this.#words[this.#word(RECORD.A1) >>> 2]!;
  }
  /** The segment's base for OUTS. */
  get segmentBase(): bigint {
    return this.#longs[this.#word(RECORD.BASE) >>> 3]!;
  }
  /** Address of that base in the state block, which tells FS and GS apart. */
  get segmentBaseOffset(): number {
    return this.#word(RECORD.BASE) - this.parts.registers.state;
  }

  /** RIP behind the instruction. */
  get nextRip(): bigint {
    return BigInt.asUintN(64, this.parts.registers.rip + BigInt(this.#length()));
  }

  /** Goes on with the records that follow. */
  next(): number {
    return 0;
  }

  /** Goes on behind the instruction, with RIP looked up anew: mappings, mode or privilege changed. */
  resume(): number {
    this.parts.registers.rip = this.nextRip;
    return LEAVE.RESUME;
  }

  /** Goes on behind the instruction, which has changed IF, TF or V_TPR, or begun a shadow: what may now matter is looked at. */
  nextWithEvents(): number {
    const { interrupts, registers } = this.parts;
    return interrupts.pending || (registers.flagsRest & RFLAGS.TF) !== 0 ? this.resume() : 0;
  }

  /** Goes on at `rip`. */
  resumeAt(rip: bigint): number {
    this.parts.registers.rip = rip;
    return LEAVE.RESUME;
  }

  undefined(): number {
    return this.parts.events.raise(VECTOR.UD);
  }
  generalProtection(error = 0): number {
    return this.parts.events.raiseWith(VECTOR.GP, error);
  }

  /**
   * #VMEXIT before the instruction, with NEXT_RIP behind it. To an SEV-ES guest it comes as #VC, but for automatic exits (APM volume 2, 15.35.5).
   */
  exit(code: number, info1 = 0, info1High = 0): number {
    const { events, registers, guest } = this.parts;
    const { exit } = events;
    if (guest.reflects(code)) return events.raiseWith(VECTOR.VC, code);
    exit.begin(code);
    exit.info1 = info1;
    exit.info1High = info1High;
    const low = registers.word(STATE.RIP);
    const next = (low + this.#length()) | 0;
    exit.nextRip = next;
    exit.nextRipHigh = registers.word(STATE.RIP + 4) + (next >>> 0 < low >>> 0 ? 1 : 0);
    return LEAVE.VMEXIT;
  }

  /** #VMEXIT behind the instruction, which is done: write traps. Automatic, for an SEV-ES guest too. */
  trap(code: number, info1: number, info1High = 0): number {
    const { events } = this.parts;
    events.exit.begin(code);
    events.exit.info1 = info1;
    events.exit.info1High = info1High;
    events.exitBehind = true;
    return this.resume();
  }

  /** True at CPL 0. */
  get privileged(): boolean {
    return this.parts.registers.cpl === 0;
  }
  /** I/O privilege: CPL ≤ IOPL. */
  get ioPrivileged(): boolean {
    const { registers } = this.parts;
    return registers.cpl <= (registers.flagsRest & RFLAGS.IOPL) >>> 12;
  }

  // Not an accessor: V8 calls into its runtime for a private one.
  #length(): number {
    return this.#bytes[(this.#record >>> 0) + RECORD.LENGTH]!;
  }

  #word(field: number): number {
    return this.#words[(this.#record + field) >>> 2]! >>> 0;
  }
}

/** What a system operation is: 0, or a LEAVE code. */
export type SystemOperation = (instruction: SystemInstruction) => number;
