/**
 * Events on their way into a guest (Linux arch/x86/kvm/x86.c: kvm_check_and_inject_events, process_nmi; svm.c:
 * svm_inject_irq, svm_enable_irq_window, svm_enable_nmi_window, svm_complete_interrupts). An exception is pending until an entry takes it; what an
 * entry took is injected until an exit says that it was delivered.
 *
 * Software events (INT n, INT3, INTO) that were in the middle of their delivery are dropped unless user space asked for them: the instruction is still at RIP and
 * raises them anew. Linux injects them again with the RIP behind it, which the guest cannot tell apart.
 *
 * Left out: SMIs, virtual NMIs, nested guests.
 */
import { EVENT, INTERCEPT, SAVE, VMCB } from '../../abi/vmcb.ts';
import { RFLAGS, VECTOR } from '../../abi/x86.ts';
import { QueuedException } from './queued-exception.ts';
import type { Vmcb } from './svm/vmcb.ts';

const SHADOW = 1;
const V_IRQ = 1 << 8;
const V_INTR_PRIO = 0xf << 16;
const V_IGN_TPR = 1 << 20;
const TYPE_MASK = 0x700;
const STEP_FLAGS = RFLAGS.TF | RFLAGS.RF;
const MAX_PENDING_NMIS = 2;
const DR7_GD = 1n << 13n;

/** What goes into a guest at the next entry. */
export const ENTRY = {
  /** Nothing holds the guest back. */
  GO: 0,
  /** The guest must be left as soon as what was injected is on its stack: more waits (req_immediate_exit). */
  AND_BACK: 1,
  /** A triple fault: there is no entry. */
  TRIPLE_FAULT: 2,
} as const;

/** The kernel's interrupt controller, where there is one. */
export interface InterruptSource {
  /** An interrupt is ready to be taken by the processor (kvm_cpu_has_injectable_intr). */
  readonly pending: boolean;
  /** Its vector, which the controller counts as in service from now on; −1: none after all. */
  acknowledge(): number;
  /** Whether user space's own interrupts (KVM_INTERRUPT) have a place here (kvm_cpu_accept_dm_intr). */
  readonly acceptsUserInterrupt: boolean;
}

/** What of the guest lies elsewhere. */
export interface EventGuest {
  /** SEV-ES or SNP: it says by its GHCB when an NMI is complete; nobody else steps through it (is_sev_es_guest). */
  readonly isSevEs: boolean;
  dr6: bigint;
  dr7: bigint;
  /** Length of the INT3, INTO or INT n at RIP that raises `vector`; 0: something else is there. */
  softEventLength(vector: number): number;
}

export class EventInjection {
  /** KVM_REQ_EVENT: something is to be looked at before the next entry. */
  requested = false;
  /** KVM_REQ_NMI: an NMI came since the last entry. It wakes a halted vCPU even while NMIs are masked (kvm_vcpu_has_events). */
  nmiRequested = false;
  readonly exception = new QueuedException();
  readonly interrupt = { injected: false, soft: false, vector: 0 };
  nmiInjected = false;
  nmiMasked = false;
  tripleFault = false;
  /** KVM_GUESTDBG_BLOCKIRQ */
  blocked = false;
  source: InterruptSource | undefined = undefined;
  /** User space steps through the guest: TF is not only ours. */
  singleStepped = false;
  readonly #vmcb: Vmcb;
  readonly #guest: EventGuest;
  #nmiPending = 0;
  /** An IRET is at RIP and will end the NMI's handler. */
  #iretAwaited = false;
  #iretRip = 0n;
  /** TF is ours, until an NMI can be taken. */
  #stepping = false;
  #flagsBeforeStep = 0;
  #userSoftEvent = false;

  constructor(vmcb: Vmcb, guest: EventGuest) {
    this.#vmcb = vmcb;
    this.#guest = guest;
  }

  /** kvm_queue_exception */
  queueException(vector: number): void {
    this.#queue(vector, false, 0, undefined);
  }
  /** kvm_queue_exception_e */
  queueFault(vector: number, error: number): void {
    this.#queue(vector, true, error, undefined);
  }
  /** kvm_queue_exception_p: #DB, whose payload are bits of DR6. */
  queueDebug(payload: bigint): void {
    this.#queue(VECTOR.DB, false, 0, payload);
  }

  #queue(vector: number, hasError: boolean, error: number, payload: bigint | undefined): void {
    this.requested = true;
    if (!this.exception.queue(vector, hasError, error, payload)) this.tripleFault = true;
    else this.deliverPayload();
  }

  /** CR2 of #PF, DR6 of #DB. */
  deliverPayload(): void {
    this.exception.deliverPayload(this.#vmcb, this.#guest);
  }

  /** kvm_queue_interrupt: the next entry injects it, whatever RFLAGS.IF says. */
  queueInterrupt(vector: number): void {
    this.requested = true;
    this.interrupt.injected = true;
    this.interrupt.soft = false;
    this.interrupt.vector = vector;
  }

  /** kvm_inject_nmi. Of those that come while one is handled a single one is kept, else two. */
  queueNmi(): void {
    this.setPendingNmis(this.#nmiPending + 1);
  }
  get pendingNmis(): number {
    return this.#nmiPending;
  }
  setPendingNmis(count: number): void {
    const limit = this.nmiMasked || this.nmiInjected ? 1 : MAX_PENDING_NMIS;
    this.#nmiPending = Math.min(count, limit);
    this.requested = true;
    if (count > 0) this.nmiRequested = true;
  }

  /** An event was injected and its delivery is not known to have succeeded (kvm_event_needs_reinjection). */
  get needsReinjection(): boolean {
    return this.exception.injected || this.interrupt.injected || this.nmiInjected;
  }

  /** svm_interrupt_blocked, negated. */
  get interruptsAllowed(): boolean {
    return (this.#vmcb.rflags & RFLAGS.IF) !== 0 && !this.inShadow;
  }
  get inShadow(): boolean {
    return (this.#vmcb.word(VMCB.INT_STATE) & SHADOW) !== 0;
  }
  setShadow(on: 0 | 1): void {
    this.#vmcb.setWord(VMCB.INT_STATE, (this.#vmcb.word(VMCB.INT_STATE) & ~SHADOW) | on);
  }

  /** svm_set_nmi_mask, svm_set_iret_intercept: while masked, IRET is what ends it, or an SEV-ES guest's word (SVM_VMGEXIT_NMI_COMPLETE). */
  setNmiMask(masked: boolean): void {
    this.nmiMasked = masked;
    if (this.#guest.isSevEs) return;
    if (masked) this.#vmcb.intercept(INTERCEPT.IRET);
    else this.#vmcb.dropIntercept(INTERCEPT.IRET);
  }

  /** kvm_cpu_accept_dm_intr */
  get acceptsUserInterrupt(): boolean {
    return this.source === undefined ? !this.interrupt.injected : this.source.acceptsUserInterrupt;
  }

  /** kvm_vcpu_ready_for_interrupt_injection */
  get readyForUserInterrupt(): boolean {
    return (
      this.interruptsAllowed && this.acceptsUserInterrupt && !this.needsReinjection && !this.exception.pending
    );
  }

  /** kvm_check_and_inject_events, before an entry. `windowWanted`: user space wants to know when it could inject. Returns ENTRY. */
  inject(windowWanted: boolean): number {
    this.requested = this.nmiRequested = false;
    if (this.tripleFault) {
      this.tripleFault = false;
      return ENTRY.TRIPLE_FAULT;
    }
    const andBack = this.#injectAll();
    if (windowWanted) this.enableInterruptWindow();
    // Our TF must not get onto the guest's stack.
    if (this.#stepping && this.#vmcb.eventPending) {
      this.endStep();
      this.requested = true;
      return ENTRY.AND_BACK;
    }
    if (andBack) this.requested = true;
    return andBack ? ENTRY.AND_BACK : ENTRY.GO;
  }

  /** True: something waits that could go in, were it not for what goes in now. */
  #injectAll(): boolean {
    const { exception, interrupt } = this;
    this.#userSoftEvent = false;
    if (exception.injected) this.#injectException();
    else if (!exception.pending) {
      if (this.nmiInjected) this.#injectNmi();
      else if (interrupt.injected) this.#injectInterrupt();
    }
    let free = !this.needsReinjection;
    if (exception.pending) {
      this.#preparePending();
      this.#injectException();
      exception.pending = false;
      exception.injected = true;
      free = false;
    }
    if (this.blocked) return false;
    if (this.#nmiPending > 0) {
      if (!free) return true;
      if (!this.nmiMasked && !this.inShadow) {
        this.#nmiPending--;
        this.nmiInjected = true;
        this.#injectNmi();
        free = false;
      }
      if (this.#nmiPending > 0) this.#enableNmiWindow();
    }
    const { source } = this;
    if (source?.pending === true) {
      if (!free) return true;
      if (this.interruptsAllowed) {
        const vector = source.acknowledge();
        if (vector >= 0) {
          this.queueInterrupt(vector);
          this.requested = false;
          this.#injectInterrupt();
        }
      }
      if (source.pending) this.enableInterruptWindow();
    }
    return false;
  }

  /** Faults push RF; a #DB switches general detection off. */
  #preparePending(): void {
    const vmcb = this.#vmcb;
    const { vector } = this.exception;
    const isFault =
      vector !== VECTOR.DB &&
      vector !== VECTOR.BP &&
      vector !== VECTOR.OF &&
      vector !== VECTOR.DF &&
      vector !== VECTOR.MC;
    if (isFault) vmcb.setSaveWord(SAVE.RFLAGS, vmcb.rflags | RFLAGS.RF);
    this.deliverPayload();
    if (vector === VECTOR.DB && (this.#guest.dr7 & DR7_GD) !== 0n) this.#guest.dr7 &= ~DR7_GD;
  }

  #injectException(): void {
    const { vector, hasError, error } = this.exception;
    if (isSoft(vector) && !this.#prepareSoftEvent(vector)) return;
    this.#vmcb.injectEvent(EVENT.TYPE_EXCEPTION | (hasError ? EVENT.ERROR_CODE_VALID : 0) | vector, error);
  }

  #injectInterrupt(): void {
    const { vector, soft } = this.interrupt;
    if (soft && !this.#prepareSoftEvent(vector)) return;
    this.#vmcb.injectEvent((soft ? EVENT.TYPE_SOFTWARE : EVENT.TYPE_INTR) | vector, 0);
  }

  /** svm_update_soft_interrupt_rip: the handler returns behind the instruction. False: it is not there, nothing is injected. */
  #prepareSoftEvent(vector: number): boolean {
    const length = this.#guest.softEventLength(vector);
    if (length === 0) return false;
    this.#userSoftEvent = true;
    this.#vmcb.setLong(VMCB.NEXT_RIP, BigInt.asUintN(64, this.#vmcb.save(SAVE.RIP) + BigInt(length)));
    return true;
  }

  #injectNmi(): void {
    this.setNmiMask(true);
    this.#vmcb.injectEvent(EVENT.TYPE_NMI, 0);
  }

  /** svm_set_vintr: a virtual interrupt of the highest priority, never delivered, since it exits when it could be. */
  enableInterruptWindow(): void {
    const vmcb = this.#vmcb;
    vmcb.intercept(INTERCEPT.VINTR);
    vmcb.setWord(VMCB.INT_VECTOR, 0);
    vmcb.setWord(VMCB.INT_CTL, vmcb.word(VMCB.INT_CTL) | V_IRQ | V_INTR_PRIO);
  }

  /** interrupt_window_interception */
  interruptWindowOpened(): void {
    const vmcb = this.#vmcb;
    this.requested = true;
    vmcb.dropIntercept(INTERCEPT.VINTR);
    vmcb.setWord(VMCB.INT_CTL, vmcb.word(VMCB.INT_CTL) & ~(V_IRQ | V_INTR_PRIO | V_IGN_TPR));
  }

  /** svm_enable_nmi_window: IRET says when, or else a step over what is in the way. */
  #enableNmiWindow(): void {
    if ((this.nmiMasked && !this.#iretAwaited) || this.#guest.isSevEs) return;
    const vmcb = this.#vmcb;
    if (!this.#stepping) this.#flagsBeforeStep = vmcb.rflags;
    this.#stepping = true;
    vmcb.setSaveWord(SAVE.RFLAGS, vmcb.rflags | STEP_FLAGS);
    vmcb.interceptException(VECTOR.DB);
  }

  /** iret_interception: the handler of an NMI ends with the instruction at RIP. */
  iretReached(): void {
    this.#iretAwaited = true;
    this.#vmcb.dropIntercept(INTERCEPT.IRET);
    this.#iretRip = this.#vmcb.save(SAVE.RIP);
    this.requested = true;
  }

  /** Whether TF is set for an NMI's sake. */
  get stepping(): boolean {
    return this.#stepping;
  }
  /** TF is set, and not for an NMI's sake alone: what svm_get_rflags says of it. */
  get trapsSteps(): boolean {
    if ((this.#vmcb.rflags & RFLAGS.TF) === 0) return false;
    return !this.#stepping || (this.#flagsBeforeStep & RFLAGS.TF) !== 0;
  }
  /** RFLAGS as the guest has them (svm_get_rflags). */
  guestFlags(flags: bigint): bigint {
    return this.#stepping ? flags & ~BigInt(STEP_FLAGS & ~this.#flagsBeforeStep) : flags;
  }
  /** disable_nmi_singlestep. The #DB intercept is the caller's to look at. */
  endStep(): void {
    this.#stepping = false;
    this.requested = true;
    if (this.singleStepped) return;
    this.#vmcb.setSaveWord(SAVE.RFLAGS, this.#vmcb.rflags & ~(STEP_FLAGS & ~this.#flagsBeforeStep));
  }

  /** svm_complete_interrupts, after an exit: what was injected is delivered, unless EXITINTINFO says that it was in the middle. */
  complete(): void {
    const vmcb = this.#vmcb;
    if (this.#iretAwaited && vmcb.save(SAVE.RIP) !== this.#iretRip) {
      this.#iretAwaited = false;
      this.nmiMasked = false;
      this.requested = true;
    }
    const { exception, interrupt } = this;
    this.nmiInjected = false;
    exception.clear();
    interrupt.injected = false;
    const event = vmcb.word(VMCB.EXITINTINFO);
    if (event >= 0) return;
    this.requested = true;
    const vector = event & 0xff;
    switch (event & TYPE_MASK) {
      case EVENT.TYPE_NMI:
        this.nmiInjected = true;
        break;
      case EVENT.TYPE_INTR:
        this.queueInterrupt(vector);
        break;
      case EVENT.TYPE_SOFTWARE:
        if (!this.#userSoftEvent) return;
        this.queueInterrupt(vector);
        interrupt.soft = true;
        break;
      case EVENT.TYPE_EXCEPTION:
        if (vector === VECTOR.VC || (isSoft(vector) && !this.#userSoftEvent)) return;
        exception.reinject(vector, (event & EVENT.ERROR_CODE_VALID) !== 0, vmcb.word(VMCB.EXITINTINFO + 4));
    }
  }

  /** Whether `complete` would change anything. */
  get inFlight(): boolean {
    return this.needsReinjection || this.#iretAwaited || this.#vmcb.word(VMCB.EXITINTINFO) < 0;
  }

  /** kvm_vcpu_reset */
  reset(): void {
    const { exception, interrupt } = this;
    exception.clear();
    interrupt.injected = false;
    this.#nmiPending = 0;
    this.nmiRequested = this.nmiInjected = this.nmiMasked = false;
    this.#iretAwaited = this.#stepping = false;
    this.tripleFault = false;
    this.requested = true;
  }
}

/** kvm_exception_is_soft */
const isSoft = (vector: number): boolean => vector === VECTOR.BP || vector === VECTOR.OF;
