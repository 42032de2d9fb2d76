/**
 * The local APIC's timer: one-shot, periodic, TSC deadline (Linux arch/x86/kvm/lapic.c: start_apic_timer, apic_timer_fn,
 * apic_update_lvtt, apic_get_tmcct). A count of the timer is one nanosecond (apic_bus_cycle_ns) times the divider. It expires in host time; what
 * has expired waits as `pending` until the vCPU's run loop turns it into an interrupt.
 *
 * Left out: firing early to hide the cost of an exit (timer_advance_ns): exits cost no time here.
 */
import { APIC, LVT } from '../../../abi/apic.ts';
import { type HostTime, HostTimer } from '../host-time.ts';

/** What a timer knows of the vCPU around it. */
export interface TimerVcpu {
  readonly time: HostTime;
  readonly guestTsc: bigint;
  readonly tscKhz: number;
  /** The timer has expired: a blocked vCPU goes on. */
  kick(): void;
}

const MODES = LVT.TIMER_PERIODIC | LVT.TIMER_TSC_DEADLINE;
/** Nanoseconds; Linux's module parameter min_timer_period_us. */
const MIN_PERIOD = 200_000;
/** Later than this is never. */
const FAR = 2 ** 52;

export class LapicTimer {
  /** Bits of LVTT that say the mode; TSC deadline only where the guest's CPUID has it. */
  modeMask = 0;
  mode = 0;
  /** Expired, and not yet an interrupt. */
  pending = false;
  tscDeadline = 0n;
  divideCount = 1;
  readonly #page: Int32Array;
  readonly #vcpu: TimerVcpu;
  readonly #timer: HostTimer;
  /** Nanoseconds. */
  #period = 0;
  #target = 0;

  constructor(page: Int32Array, vcpu: TimerVcpu) {
    this.#page = page;
    this.#vcpu = vcpu;
    this.#timer = new HostTimer(() => this.#fire());
  }

  get isTscDeadline(): boolean {
    return this.mode === LVT.TIMER_TSC_DEADLINE;
  }
  #isPeriodic(): boolean {
    return this.mode === LVT.TIMER_PERIODIC;
  }

  /** When the timer expires, in host time. */
  get due(): number {
    return this.#timer.due;
  }

  /** hrtimer_cancel alone: what has expired stays pending. */
  stop(): void {
    this.#vcpu.time.cancel(this.#timer);
  }

  /** cancel_apic_timer */
  cancel(): void {
    this.stop();
    this.pending = false;
  }

  /** LVTT was written. Going into or out of TSC-deadline mode disarms the timer. */
  updateMode(): void {
    const mode = this.#register(APIC.LVT_TIMER) & MODES & this.modeMask;
    if (this.isTscDeadline !== (mode === LVT.TIMER_TSC_DEADLINE)) {
      this.cancel();
      this.#setRegister(APIC.INITIAL_COUNT, 0);
      this.#period = 0;
      this.tscDeadline = 0n;
    }
    this.mode = mode;
    this.#limitFrequency();
  }

  /** From the divide configuration register. */
  updateDivider(): void {
    const value = this.#register(APIC.DIVIDE);
    this.divideCount = 1 << ((((value & 3) | ((value & 8) >>> 1)) + 1) & 7);
  }

  /** The divide configuration was written: a running timer goes on with the new divider. */
  changeDivider(): void {
    const old = this.divideCount;
    this.updateDivider();
    if (this.divideCount === old || this.#period === 0) return;
    this.stop();
    this.#period = this.#countToNs(APIC.INITIAL_COUNT);
    this.#limitFrequency();
    const now = this.#vcpu.time.now();
    const remaining = Math.max(this.#target - now, 0);
    this.#target = now + Math.floor((remaining * this.divideCount) / old);
    this.#restart();
  }

  /** start_apic_timer. `from`: the register that says how much is left; after a restore, the current count. */
  start(from: typeof APIC.INITIAL_COUNT | typeof APIC.CURRENT_COUNT = APIC.INITIAL_COUNT): void {
    this.pending = false;
    if (!this.isTscDeadline && !this.#setTarget(from)) return;
    this.#restart();
  }

  /** IA32_TSC_DEADLINE was written, in that mode. */
  startDeadline(deadline: bigint): void {
    this.stop();
    this.tscDeadline = deadline;
    this.start();
  }

  /** apic_get_tmcct. At the moment at which it begins, which no reader meets on Linux, a timer has its whole period left. */
  get currentCount(): number {
    if (this.#period === 0 || this.#register(APIC.INITIAL_COUNT) === 0) return 0;
    const remaining = this.#target - this.#vcpu.time.now();
    if (remaining <= 0) return 0;
    return Math.floor((remaining % this.#period || this.#period) / this.divideCount);
  }

  /** The interrupt was delivered. */
  delivered(): void {
    this.pending = false;
    if (this.isTscDeadline) this.tscDeadline = 0n;
  }

  #register(offset: number): number {
    return this.#page[offset >>> 2]!;
  }
  #setRegister(offset: number, value: number): void {
    this.#page[offset >>> 2] = value;
  }
  #countToNs(register: number): number {
    return (this.#register(register) >>> 0) * this.divideCount;
  }

  #limitFrequency(): void {
    if (this.#isPeriodic() && this.#period > 0) this.#period = Math.max(this.#period, MIN_PERIOD);
  }

  /** False: no count, no timer. */
  #setTarget(from: number): boolean {
    this.#period = this.#countToNs(APIC.INITIAL_COUNT);
    if (this.#period === 0) return false;
    this.#limitFrequency();
    let deadline = this.#period;
    if (from !== APIC.INITIAL_COUNT) {
      deadline = Math.min(this.#countToNs(from), this.#period);
      if (deadline === 0 && this.#isPeriodic()) deadline = this.#period;
    }
    this.#target = this.#vcpu.time.now() + deadline;
    return true;
  }

  #restart(): void {
    if (!this.#isPeriodic() && this.pending) return;
    if (this.isTscDeadline) this.#startDeadline();
    else if (this.#period !== 0) this.#vcpu.time.start(this.#timer, this.#target);
  }

  #startDeadline(): void {
    const { time, guestTsc, tscKhz } = this.#vcpu;
    if (this.tscDeadline === 0n) return;
    if (this.tscDeadline <= guestTsc) {
      this.#expire();
      return;
    }
    const ns = (Number(this.tscDeadline - guestTsc) * 1e6) / tscKhz;
    if (ns < FAR) time.start(this.#timer, time.now() + Math.ceil(ns));
  }

  /** The next period; one that is over already is not made up for. */
  #advance(): void {
    this.#target = Math.max(this.#target + this.#period, this.#vcpu.time.now());
  }

  /** apic_timer_fn */
  #fire(): void {
    this.#expire();
    if (!this.#isPeriodic()) return;
    this.#advance();
    this.#vcpu.time.start(this.#timer, this.#target);
  }

  #expire(): void {
    this.pending = true;
    this.#vcpu.kick();
  }
}
