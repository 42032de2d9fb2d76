/**
 * Where the accesses of an emulated instruction go that have no nested mapping: MMIO, and whatever else the host decides. The core
 * steps the instruction by its own semantics; there is no second decoder. One element of a repeated string instruction at a time, so
 * that each call of `Core.emulate` either has all the data it needs or has no effect.
 */
import type { Gpa } from '../../base/address.ts';
import type { PendingExit } from './events.ts';
import type { Registers } from './registers.ts';
import { GPR, LEAVE } from './state.ts';

export interface MmioBus {
  /** False: the data are not there yet, the instruction is abandoned without effect. */
  read(gpa: Gpa, into: Uint8Array): boolean;
  write(gpa: Gpa, from: Uint8Array): void;
  /** One element of INS: as `read`, from a port. */
  portRead(port: number, into: Uint8Array): boolean;
  /** One element of OUTS. */
  portWrite(port: number, from: Uint8Array): void;
}

const RCX = 8 * GPR.RCX;

/** One instruction's use of a bus. */
export class MmioStep {
  /** What to do when the instruction was left: `running` means that the bus had no part in it. */
  outcome: 'running' | 'pending' | 'partial' = 'running';
  readonly #bus: MmioBus;
  readonly #registers: Registers;
  readonly #count: number;
  readonly #countHigh: number;

  constructor(bus: MmioBus, registers: Registers) {
    this.#bus = bus;
    this.#registers = registers;
    this.#count = registers.word(RCX);
    this.#countHigh = registers.word(RCX + 4);
  }

  /** 0 or LEAVE.VMEXIT; `outcome` says why. `exit` holds the nested fault that brought us here. */
  read(gpa: Gpa, into: Uint8Array): number {
    if (this.#stopRepeating()) return LEAVE.VMEXIT;
    if (this.#bus.read(gpa, into)) return 0;
    this.outcome = 'pending';
    return LEAVE.VMEXIT;
  }

  write(gpa: Gpa, from: Uint8Array): void {
    this.#bus.write(gpa, from);
  }

  /** 0, or LEAVE.VMEXIT while the port's data are not there. */
  portRead(port: number, into: Uint8Array): number {
    if (this.#bus.portRead(port, into)) return 0;
    this.outcome = 'pending';
    return LEAVE.VMEXIT;
  }

  portWrite(port: number, from: Uint8Array): void {
    this.#bus.portWrite(port, from);
  }

  /** A repeated instruction has done an element already (its count moved): the next access belongs to the next step. */
  mayWrite(): boolean {
    return !this.#stopRepeating();
  }

  #stopRepeating(): boolean {
    const registers = this.#registers;
    if (registers.word(RCX) === this.#count && registers.word(RCX + 4) === this.#countHigh) return false;
    this.outcome = 'partial';
    return true;
  }
}

/** The guest physical address of a nested fault. */
export const faultGpa = (exit: PendingExit): Gpa =>
  ((exit.info2High >>> 0) * 0x1_0000_0000 + (exit.info2 >>> 0)) as Gpa;
