/**
 * #VMEXIT: from the core into the VMCB (APM volume 2, 15.6; decode assists 15.8.4, 15.25.6). The save area's mirror is copied only when
 * something in it changed.
 */
import { EVENT, NPF, SAVE, VMCB, VMEXIT } from '../../abi/vmcb.ts';
import { RFLAGS } from '../../abi/x86.ts';
import { SHADOW } from './interrupts.ts';
import type { CoreParts } from './parts.ts';
import { peekCode } from './peek-code.ts';
import { copySaveArea } from './save-area.ts';
import { GPR, STATE } from './state.ts';
import type { EncryptedState } from './vmsa.ts';

const INSTRUCTION_BYTES = 15;
const RSP = STATE.GPR + 8 * GPR.RSP;
const INTERRUPT_SHADOW = 1;
const GUEST_INTERRUPT_MASK = 2;

export class GuestExit {
  readonly #parts: CoreParts;
  readonly #words: Int32Array;
  readonly #encrypted: EncryptedState;
  readonly #code = new Uint8Array(INSTRUCTION_BYTES);

  constructor(parts: CoreParts, encrypted: EncryptedState) {
    this.#parts = parts;
    this.#words = parts.memory.words;
    this.#encrypted = encrypted;
  }

  /** Writes guest state and the pending exit to the VMCB. Returns the exit code. */
  store(vmcb: number): number {
    const { exit } = this.#parts.events;
    const words = this.#words;
    const at = vmcb >>> 2;
    this.storeGuest(vmcb);
    const { code } = exit;
    words[at + (VMCB.EXITCODE >> 2)] = code;
    words[at + (VMCB.EXITCODE >> 2) + 1] = code >> 31;
    words[at + (VMCB.EXITINFO1 >> 2)] = exit.info1;
    words[at + (VMCB.EXITINFO1 >> 2) + 1] = exit.info1High;
    words[at + (VMCB.EXITINFO2 >> 2)] = exit.info2;
    words[at + (VMCB.EXITINFO2 >> 2) + 1] = exit.info2High;
    words[at + (VMCB.EXITINTINFO >> 2)] = exit.interruptInfo;
    words[at + (VMCB.EXITINTINFO >> 2) + 1] = exit.interruptError;
    words[at + (VMCB.NEXT_RIP >> 2)] = exit.nextRip;
    words[at + (VMCB.NEXT_RIP >> 2) + 1] = exit.nextRipHigh;
    words[at + (VMCB.EVENTINJ >> 2)]! &= ~EVENT.VALID;
    const isFetch = code === VMEXIT.NPF && (exit.info1 & NPF.FETCH) !== 0;
    this.#storeBytes(vmcb, exit.withBytes && !isFetch && !this.#parts.guest.sev);
    return code;
  }

  /** VMRUN did not enter the guest, of which nothing is written. `code`: INVALID, a check failed. Returns it. */
  storeRefused(vmcb: number, code: number): number {
    const at = vmcb >>> 2;
    const words = this.#words;
    words[at + (VMCB.EXITCODE >> 2)] = code;
    words[at + (VMCB.EXITCODE >> 2) + 1] = code >> 31;
    for (const field of [VMCB.EXITINFO1, VMCB.EXITINFO2, VMCB.EXITINTINFO, VMCB.NEXT_RIP]) {
      words[at + (field >> 2)] = 0;
      words[at + (field >> 2) + 1] = 0;
    }
    return code;
  }

  /** Guest state alone. */
  storeGuest(vmcb: number): void {
    const { registers, guest, interrupts } = this.#parts;
    const words = this.#words;
    const flags = registers.rflags;
    const shadowed =
      words[(registers.state + STATE.INTERRUPT_SHADOW) >>> 2] !== SHADOW.NONE &&
      interrupts.shadow !== SHADOW.NONE;
    const shadow = shadowed ? INTERRUPT_SHADOW : 0;
    const interruptsOn = (flags & RFLAGS.IF) !== 0 ? GUEST_INTERRUPT_MASK : 0;
    words[(vmcb + VMCB.INT_STATE) >>> 2] = shadow | interruptsOn;
    if (guest.es) {
      this.#encrypted.store();
      return;
    }
    const save = vmcb + VMCB.SAVE_AREA;
    if (registers.changed) {
      copySaveArea(this.#parts.memory, registers.state + STATE.SAVE, save);
      registers.changed = false;
    }
    const at = save >>> 2;
    const state = registers.state >>> 2;
    const { longs } = registers;
    longs[(at + (SAVE.RIP >> 2)) >>> 1] = longs[(state + (STATE.RIP >> 2)) >>> 1]!;
    longs[(at + (SAVE.RSP >> 2)) >>> 1] = longs[(state + (RSP >> 2)) >>> 1]!;
    longs[(at + (SAVE.RAX >> 2)) >>> 1] = longs[(state + (STATE.GPR >> 2)) >>> 1]!;
    registers.storedFlags = flags;
    words[at + (SAVE.RFLAGS >> 2)] = flags;
    words[at + (SAVE.RFLAGS >> 2) + 1] = 0;
  }

  #storeBytes(vmcb: number, wanted: boolean): void {
    const { bytes } = this.#parts.memory;
    if (!wanted) {
      bytes[vmcb + VMCB.BYTES_FETCHED] = 0;
      return;
    }
    const count = peekCode(this.#parts, this.#code);
    bytes[vmcb + VMCB.BYTES_FETCHED] = count;
    for (let i = 0; i < count; i++) bytes[vmcb + VMCB.GUEST_BYTES + i] = this.#code[i]!;
  }
}
