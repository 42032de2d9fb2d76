/**
 * How a core's slow path says that the guest cannot simply go on: a pending exception (in the state block) or a #VMEXIT that has
 * begun (here). Nothing is thrown: the callers return a LEAVE code, which travels through the generated code to the core's loop.
 */
import { VMEXIT } from '../../abi/vmcb.ts';
import { VECTOR } from '../../abi/x86.ts';
import type { Registers } from './registers.ts';
import { LEAVE, STATE } from './state.ts';

/** A #VMEXIT that has begun: what goes to the VMCB's exit fields, as words. */
export class PendingExit {
  code = 0;
  info1 = 0;
  info1High = 0;
  info2 = 0;
  info2High = 0;
  nextRip = 0;
  nextRipHigh = 0;
  /** EXITINTINFO and its error code. */
  interruptInfo = 0;
  interruptError = 0;
  /** True if the instruction's bytes belong into the VMCB (decode assist). */
  withBytes = false;

  /** An exit without further information. Returns LEAVE.VMEXIT. */
  begin(code: number): number {
    this.code = code;
    this.info1 = 0;
    this.info1High = 0;
    this.info2 = 0;
    this.info2High = 0;
    this.nextRip = 0;
    this.nextRipHigh = 0;
    this.interruptInfo = 0;
    this.interruptError = 0;
    this.withBytes = false;
    return LEAVE.VMEXIT;
  }
}

export class Events {
  readonly exit = new PendingExit();
  /** Linear address of the last page fault, which goes to CR2 when it is delivered. */
  faultAddress = 0;
  faultAddressHigh = 0;
  /** True while the pending #GP comes from a non-canonical data address: for the stack segment it is #SS. */
  notCanonical = false;
  /** `exit` is due when the instruction is done. */
  exitBehind = false;
  /** The guest halted without an exit: nothing happens until the host's timer. */
  halted = false;
  /** The last instruction that was undefined because the core does not have it. */
  #undefined = { mnemonic: '', rip: -1n };
  readonly #registers: Registers;

  constructor(registers: Registers) {
    this.#registers = registers;
  }

  /** Vector of the pending exception. */
  get faultVector(): number {
    return this.#registers.word(STATE.EXCEPTION_VECTOR);
  }

  noteUndefined(mnemonic: string, rip: bigint): void {
    this.#undefined = { mnemonic, rip };
  }

  /** The instruction at RIP, if the core has no such. */
  get undefinedHere(): string | undefined {
    const { mnemonic, rip } = this.#undefined;
    return rip === this.#registers.rip ? mnemonic : undefined;
  }

  /** Makes an exception without error code pending. Returns LEAVE.EXCEPTION. */
  raise(vector: number): number {
    return this.#raise(vector, 0, 0);
  }

  /** Makes an exception with an error code pending. Returns LEAVE.EXCEPTION. */
  raiseWith(vector: number, error: number): number {
    return this.#raise(vector, error, 1);
  }

  /** Makes a page fault at linear address `high:low` pending. */
  raisePageFault(error: number, low: number, high: number): number {
    this.faultAddress = low;
    this.faultAddressHigh = high;
    return this.#raise(VECTOR.PF, error, 1);
  }

  /** A data access with a non-canonical address. */
  raiseNotCanonical(): number {
    this.#raise(VECTOR.GP, 0, 1);
    this.notCanonical = true;
    return LEAVE.EXCEPTION;
  }

  /** A nested page fault: EXITINFO1's words, and the guest physical address as frame number and offset. */
  nestedFault(info1: number, info1High: number, gfn: number, offset: number): number {
    const { exit } = this;
    exit.begin(VMEXIT.NPF);
    exit.info1 = info1;
    exit.info1High = info1High;
    exit.info2 = ((gfn % 0x100000) << 12) | offset;
    exit.info2High = Math.floor(gfn / 0x100000);
    exit.withBytes = true;
    return LEAVE.VMEXIT;
  }

  #raise(vector: number, error: number, hasError: number): number {
    const registers = this.#registers;
    this.notCanonical = false;
    registers.setWord(STATE.EXCEPTION_VECTOR, vector);
    registers.setWord(STATE.EXCEPTION_ERROR, error);
    registers.setWord(STATE.EXCEPTION_HAS_ERROR, hasError);
    return LEAVE.EXCEPTION;
  }
}
