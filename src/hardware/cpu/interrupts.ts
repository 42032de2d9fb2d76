/**
 * Virtual interrupts and the interrupt shadow (APM volume 2, 15.21): V_IRQ with its priority against V_TPR, the VINTR intercept, and the one
 * instruction behind STI and MOV SS. Nothing is polled: V_IRQ comes with VMRUN, and what may let it in (STI, POPF, IRET, CR8) goes through the slow path.
 *
 * The interrupt shadow is held by the count of retired instructions, so that it ends without anybody ending it. Left out: virtual NMIs, AVIC.
 */
import { INTERCEPT, VMCB, VMEXIT } from '../../abi/vmcb.ts';
import { RFLAGS } from '../../abi/x86.ts';
import type { Events } from './events.ts';
import type { Exceptions } from './exceptions.ts';
import type { Intercepts } from './intercepts.ts';
import type { Registers } from './registers.ts';
import { STATE } from './state.ts';

const V_TPR = 0xf;
const V_IRQ = 1 << 8;
const V_GIF = 1 << 9;
const V_INTR_PRIO = 16;
const V_IGN_TPR = 1 << 20;
const V_GIF_ENABLE = 1 << 25;

/** STATE.INTERRUPT_SHADOW: what holds interrupts off. */
export const SHADOW = {
  NONE: 0,
  /** STI. */
  INTERRUPTS: 1,
  /** MOV SS and POP SS: debug traps and instruction breakpoints too. */
  INTERRUPTS_AND_TRAPS: 2,
} as const;

export class Interrupts {
  readonly #registers: Registers;
  readonly #intercepts: Intercepts;
  readonly #events: Events;

  constructor(registers: Registers, intercepts: Intercepts, events: Events) {
    this.#registers = registers;
    this.#intercepts = intercepts;
    this.#events = events;
  }

  /** True if V_IRQ is set: whoever may have opened the way for it has to ask `deliverable`. */
  get pending(): boolean {
    return (this.#intercepts.word(VMCB.INT_CTL) & V_IRQ) !== 0;
  }

  /** True if the virtual interrupt is taken as soon as no shadow holds it off. */
  get deliverable(): boolean {
    const control = this.#intercepts.word(VMCB.INT_CTL);
    if ((control & V_IRQ) === 0 || (this.#registers.flagsRest & RFLAGS.IF) === 0) return false;
    if ((control & V_GIF_ENABLE) !== 0 && (control & V_GIF) === 0) return false;
    return (control & V_IGN_TPR) !== 0 || ((control >>> V_INTR_PRIO) & 0xf) > (control & V_TPR);
  }

  /** Takes the deliverable interrupt: exit VINTR, or through the guest's IDT. A LEAVE code. */
  take(exceptions: Exceptions): number {
    const intercepts = this.#intercepts;
    if (intercepts.has(INTERCEPT.VINTR)) return this.#events.exit.begin(VMEXIT.VINTR);
    intercepts.setWord(VMCB.INT_CTL, intercepts.word(VMCB.INT_CTL) & ~V_IRQ);
    return exceptions.deliverInterrupt(intercepts.word(VMCB.INT_VECTOR) & 0xff);
  }

  /** SHADOW: what the instruction at RIP is spared. RETIRED is exact. */
  get shadow(): number {
    const registers = this.#registers;
    const kind = registers.word(STATE.INTERRUPT_SHADOW);
    if (kind === SHADOW.NONE) return kind;
    return registers.word(STATE.RETIRED) === registers.word(STATE.SHADOW_RETIRED) ? kind : SHADOW.NONE;
  }

  /** For the instruction being executed (it is not retired yet): the next one has a shadow. One after another goes on with it, as AMD's processors do. */
  holdNext(kind: number): void {
    const registers = this.#registers;
    registers.setWord(STATE.INTERRUPT_SHADOW, kind);
    registers.setWord(STATE.SHADOW_RETIRED, (registers.word(STATE.RETIRED) + 1) | 0);
  }

  /** An event went through the IDT: its handler's first instruction has no shadow. */
  endShadow(): void {
    this.#registers.setWord(STATE.INTERRUPT_SHADOW, SHADOW.NONE);
  }
}
