/**
 * One instruction at a time, where something has to be looked at between two: RFLAGS.TF, breakpoints, an interrupt that waits for the end of a shadow
 * (APM volume 2, 13.1.4 and 8.1.4). Repeated string instructions are stepped by the element, as the processor's traps see them.
 */
import { RFLAGS, VECTOR } from '../../abi/x86.ts';
import { DR6 } from './debug.ts';
import { SHADOW } from './interrupts.ts';
import { codeBits } from './mode.ts';
import type { CoreParts } from './parts.ts';
import { peekCode } from './peek-code.ts';
import { GPR, LEAVE, STATE } from './state.ts';

const LONGEST = 15;
const ADDRESS_SIZE = 0x67;
/** Counts right before the opcode alone; earlier ones do nothing. */
const REX = 0x40;
const REPNE = 0xf2;
const REPE = 0xf3;
const PREFIXES = new Set([0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, ADDRESS_SIZE, 0xf0, REPNE, REPE]);

export class Stepping {
  readonly #parts: CoreParts;
  readonly #execute: () => number;
  readonly #code = new Uint8Array(LONGEST);

  /** `execute` runs exactly the instruction at RIP: LEAVE.STOP, BUDGET or RESUME when it is done. */
  constructor(parts: CoreParts, execute: () => number) {
    this.#parts = parts;
    this.#execute = execute;
  }

  /** True if the next instruction must be stepped, whatever the reason. */
  get needed(): boolean {
    const { registers, debug, interrupts } = this.#parts;
    return (registers.flagsRest & RFLAGS.TF) !== 0 || debug.pending !== 0 || interrupts.deliverable;
  }

  /** LEAVE.RESUME: the instruction is done, and `debug.pending` says whether it traps. Else as `Interpreter.run`. */
  step(): number {
    const { registers, events, debug, interrupts } = this.#parts;
    const breakpoints = interrupts.shadow === SHADOW.INTERRUPTS_AND_TRAPS ? 0 : debug.atInstruction();
    if (breakpoints !== 0) {
      debug.record(breakpoints);
      return events.raise(VECTOR.DB);
    }
    const trap = (registers.flagsRest & RFLAGS.TF) !== 0;
    debug.settled = false;
    const reason = this.#executeElement();
    if (reason === LEAVE.EXCEPTION || reason === LEAVE.VMEXIT || reason === LEAVE.FETCH) {
      debug.pending = 0;
      return reason;
    }
    if (trap && !debug.settled) debug.pending |= DR6.BS;
    return LEAVE.RESUME;
  }

  /** The #DB that waits, as a trap: a LEAVE code with the exception pending. */
  trap(): number {
    const { debug, events } = this.#parts;
    debug.record(debug.pending);
    debug.pending = 0;
    return events.raise(VECTOR.DB);
  }

  /** The instruction at RIP; of a repeated MOVS, STOS, LODS, CMPS or SCAS one element. */
  #executeElement(): number {
    const { registers } = this.#parts;
    const { rip } = registers;
    const found = this.#repeated(codeBits(registers));
    if (found === undefined) return this.#execute();
    const count = registers.gpr(GPR.RCX);
    const above = found.countBits === 16 ? count & ~0xffffn : 0n;
    const left = BigInt.asUintN(found.countBits, count);
    if (left <= 1n) return this.#execute();
    const resumed = registers.rflags & RFLAGS.RF;
    registers.setGpr(GPR.RCX, 1n);
    const reason = this.#execute();
    if (reason !== LEAVE.STOP && reason !== LEAVE.RESUME) {
      registers.setGpr(GPR.RCX, count);
      return reason;
    }
    registers.setGpr(GPR.RCX, above | (left - 1n));
    const equal = (registers.rflags & RFLAGS.ZF) !== 0;
    const ended = found.compares && equal !== (found.prefix === REPE);
    if (!ended) {
      registers.setLong(STATE.RIP, rip);
      // RF holds until all of it is done.
      if (resumed !== 0) registers.rflags |= resumed;
    }
    return reason;
  }

  #repeated(mode: 16 | 32 | 64): { prefix: number; compares: boolean; countBits: number } | undefined {
    const code = this.#code;
    const length = peekCode(this.#parts, code);
    let prefix = 0;
    let countBits: number = mode;
    let at = 0;
    const isPrefix = (byte: number) => PREFIXES.has(byte) || (mode === 64 && (byte & 0xf0) === REX);
    for (; at < length && isPrefix(code[at]!); at++) {
      if (code[at] === REPE || code[at] === REPNE) prefix = code[at]!;
      if (code[at] === ADDRESS_SIZE) countBits = mode === 32 ? 16 : 32;
    }
    if (prefix === 0) return undefined;
    const opcode = at < length ? code[at]! : 0;
    const moves = opcode === 0xa4 || opcode === 0xa5 || (opcode >= 0xaa && opcode <= 0xad);
    const compares = opcode === 0xa6 || opcode === 0xa7 || opcode === 0xae || opcode === 0xaf;
    return moves || compares ? { prefix, compares, countBits } : undefined;
  }
}
