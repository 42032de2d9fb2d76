/**
 * Whether a vCPU runs, is halted, or waits to be started (Linux arch/x86/kvm/x86.c: kvm_arch_vcpu_ioctl_get/set_mpstate, vcpu_block,
 * kvm_vcpu_has_events, __kvm_emulate_halt; lapic.c: kvm_apic_accept_events). Without a local APIC in the kernel a vCPU is always RUNNABLE.
 *
 * A vCPU that blocks leaves KVM_RUN with RUN_PENDING; `wake` settles its promise. Left out: SMM.
 */

import { APIC_BASE } from '../../abi/apic.ts';
import {
  KVM_MP_STATE_AP_RESET_HOLD,
  KVM_MP_STATE_HALTED,
  KVM_MP_STATE_INIT_RECEIVED,
  KVM_MP_STATE_RUNNABLE,
  KVM_MP_STATE_SIPI_RECEIVED,
  KVM_MP_STATE_UNINITIALIZED,
} from '../../abi/kvm.ts';
import { LinuxError } from '../../base/errors.ts';
import type { EventInjection } from './event-injection.ts';
import type { HostTime } from './host-time.ts';
import type { Lapic } from './lapic/lapic.ts';

const KNOWN = new Set<number>([
  KVM_MP_STATE_RUNNABLE,
  KVM_MP_STATE_UNINITIALIZED,
  KVM_MP_STATE_INIT_RECEIVED,
  KVM_MP_STATE_HALTED,
  KVM_MP_STATE_SIPI_RECEIVED,
  KVM_MP_STATE_AP_RESET_HOLD,
]);

/** What INIT and SIPI do to a vCPU. */
export interface StartableVcpu {
  readonly time: HostTime;
  readonly events: EventInjection;
  /** kvm_vcpu_reset for INIT. */
  init(): void;
  /** Real mode at vector:0. */
  startAt(vector: number): void;
}

export class MpState {
  readonly #vcpu: StartableVcpu;
  readonly #lapic: Lapic | undefined;
  #state: number;
  #blocked = false;
  #wake: (() => void) | undefined;

  /** `bsp`: runs from the start, also with a local APIC in the kernel. */
  constructor(vcpu: StartableVcpu, lapic: Lapic | undefined, role: 'bsp' | 'ap') {
    this.#vcpu = vcpu;
    this.#lapic = lapic;
    this.#state = lapic === undefined || role === 'bsp' ? KVM_MP_STATE_RUNNABLE : KVM_MP_STATE_UNINITIALIZED;
  }

  /** KVM_GET_MP_STATE; takes INIT and SIPI that wait. */
  get(): number {
    this.acceptEvents();
    return this.#state;
  }

  /** KVM_SET_MP_STATE. Errors: EINVAL for an unknown one, and for all but RUNNABLE without a local APIC in the kernel. */
  set(state: number): void {
    if (!KNOWN.has(state)) throw new LinuxError('EINVAL', `KVM_SET_MP_STATE: ${state}`);
    if (state !== KVM_MP_STATE_RUNNABLE && this.#lapic === undefined)
      throw new LinuxError('EINVAL', `KVM_SET_MP_STATE: ${state} without a local APIC in the kernel`);
    if (state === KVM_MP_STATE_SIPI_RECEIVED) {
      this.#state = KVM_MP_STATE_INIT_RECEIVED;
      this.#lapic!.sipiPending = true;
    } else this.#state = state;
    this.#vcpu.events.requested = true;
    this.wake();
  }

  get isRunning(): boolean {
    return this.#state === KVM_MP_STATE_RUNNABLE;
  }
  get isUninitialized(): boolean {
    return this.#state === KVM_MP_STATE_UNINITIALIZED;
  }

  get isInitReceived(): boolean {
    return this.#state === KVM_MP_STATE_INIT_RECEIVED;
  }

  /** User space set the registers of a boot processor after reset: it runs. */
  makeRunnable(): void {
    this.#state = KVM_MP_STATE_RUNNABLE;
  }

  /** HLT: RIP is behind it. What waits already keeps the vCPU running. */
  halt(): void {
    if (!this.#hasEvents()) this.#state = KVM_MP_STATE_HALTED;
  }

  /** AP reset hold, asked for by the guest (SEV-ES). What waits already keeps the vCPU running. */
  holdForReset(): void {
    if (!this.#hasEvents()) this.#state = KVM_MP_STATE_AP_RESET_HOLD;
  }

  /** Whether the vCPU would go on: kvm_arch_vcpu_runnable, or its timer has expired. */
  get ready(): boolean {
    return this.isRunning || this.#hasEvents() || this.#lapic?.timerPending === true;
  }

  /** vcpu_block's end, for a vCPU that is ready: it starts, or is RUNNABLE again. */
  unblock(): void {
    this.acceptEvents();
    if (this.#state === KVM_MP_STATE_HALTED || this.#state === KVM_MP_STATE_AP_RESET_HOLD)
      this.#state = KVM_MP_STATE_RUNNABLE;
  }

  /** Once a KVM_RUN, which ends any earlier one first. The promise of a vCPU that blocks; it settles when something has happened that may be what it waits for. */
  block(): Promise<void> {
    this.#vcpu.time.block();
    this.#blocked = true;
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }
  /** KVM_RUN came back, or the vCPU is gone. */
  endBlock(): void {
    if (!this.#blocked) return;
    this.#vcpu.time.unblock();
    this.#blocked = false;
    this.wake();
  }
  wake(): void {
    const wake = this.#wake;
    this.#wake = undefined;
    wake?.();
  }

  /** kvm_apic_accept_events: INIT resets the vCPU and has it wait for SIPI, unless it is the boot processor; SIPI starts it. */
  acceptEvents(): void {
    const lapic = this.#lapic;
    if (lapic === undefined) return;
    if (lapic.initPending) {
      lapic.initPending = false;
      this.#vcpu.init();
      const isBsp = (lapic.vcpu.apicBase & APIC_BASE.BSP) !== 0n;
      this.#state = isBsp ? KVM_MP_STATE_RUNNABLE : KVM_MP_STATE_INIT_RECEIVED;
    }
    if (!lapic.sipiPending) return;
    lapic.sipiPending = false;
    if (this.#state !== KVM_MP_STATE_INIT_RECEIVED) return;
    this.#vcpu.startAt(lapic.sipiVector);
    this.#state = KVM_MP_STATE_RUNNABLE;
  }

  /** kvm_vcpu_has_events */
  #hasEvents(): boolean {
    const { events } = this.#vcpu;
    const lapic = this.#lapic;
    if (lapic?.initPending === true || lapic?.sipiPending === true) return true;
    if (events.exception.pending || events.tripleFault) return true;
    if (events.nmiRequested) return true;
    if (events.pendingNmis > 0 && !events.nmiMasked && !events.inShadow) return true;
    return events.interruptsAllowed && events.source?.pending === true;
  }
}
