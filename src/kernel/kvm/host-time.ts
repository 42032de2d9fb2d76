/**
 * The host's time as guests see it: nanoseconds, and the host's time stamp counter, which counts one a nanosecond (1 GHz). Time passes by
 * instructions that cores retire, one nanosecond each, so runs repeat. While every vCPU that could run is blocked (HLT, wait for SIPI),
 * it skips to the next timer, like a processor that sleeps. Timers are Linux's hrtimers: one shot, armed for a point in time.
 *
 * Left out: pacing by the platform's clock.
 */

/** The core that runs now, as far as time is concerned. */
interface RunningCore {
  readonly retired: number;
}

/** Kilohertz of the host's time stamp counter. */
export const HOST_TSC_KHZ = 1_000_000;

export class HostTimer {
  /** When it fires; Infinity: not armed. */
  due = Number.POSITIVE_INFINITY;
  readonly fire: () => void;

  constructor(fire: () => void) {
    this.fire = fire;
  }
}

export class HostTime {
  /** When the next timer fires. */
  nextDue = Number.POSITIVE_INFINITY;
  #elapsed = 0;
  #core: RunningCore | undefined;
  #coreStart = 0;
  readonly #timers = new Set<HostTimer>();
  /** vCPUs that wait in the kernel for an event. */
  #blocked = 0;
  #checkScheduled = false;
  /** How often somebody tried to run a vCPU; and at the last look. */
  #attempts = 0;
  #attemptsAtCheck = -1;
  readonly #soon: (check: () => void) => void;

  /** `soon` runs a function after whoever wants to run vCPUs had a chance to; setImmediate when absent. */
  constructor(soon: (check: () => void) => void = (check) => void setImmediate(check)) {
    this.#soon = soon;
  }

  /** Nanoseconds since the host's start; also its time stamp counter. */
  now(): number {
    return this.#core === undefined ? this.#elapsed : this.#elapsed + (this.#core.retired - this.#coreStart);
  }

  /** `core`, which has retired so many instructions, begins to run a guest. */
  enter(core: RunningCore, retired: number): void {
    this.#attempts++;
    this.#core = core;
    this.#coreStart = retired;
  }

  /** It has run, and `instructions` were retired or carried out for it. */
  leave(instructions: number): void {
    this.#core = undefined;
    this.#elapsed += instructions;
  }

  /** hrtimer_start */
  start(timer: HostTimer, due: number): void {
    timer.due = due;
    this.#timers.add(timer);
    this.#findNext();
    if (this.#blocked > 0) this.#checkSoon();
  }

  /** hrtimer_cancel. True if it was armed. */
  cancel(timer: HostTimer): boolean {
    timer.due = Number.POSITIVE_INFINITY;
    const armed = this.#timers.delete(timer);
    if (armed) this.#findNext();
    return armed;
  }

  /** Fires what is due, the earliest first. */
  expire(): void {
    while (this.nextDue <= this.now()) {
      let first: HostTimer | undefined;
      for (const timer of this.#timers) if (first === undefined || timer.due < first.due) first = timer;
      if (first === undefined) return;
      this.cancel(first);
      first.fire();
    }
  }

  /** A vCPU blocks until an event. */
  block(): void {
    this.#blocked++;
    this.#checkSoon();
  }
  unblock(): void {
    this.#attempts++;
    this.#blocked--;
  }

  #findNext(): void {
    let next = Number.POSITIVE_INFINITY;
    for (const timer of this.#timers) if (timer.due < next) next = timer.due;
    this.nextDue = next;
  }

  #checkSoon(): void {
    if (this.#checkScheduled || this.nextDue === Number.POSITIVE_INFINITY) return;
    this.#checkScheduled = true;
    // Whoever has just blocked may not be the last: others get a whole round to try.
    this.#soon(() => {
      this.#attemptsAtCheck = this.#attempts;
      this.#soon(() => this.#check());
    });
  }

  /** Nobody tried to run since the last look: nothing can happen before the next timer. */
  #check(): void {
    this.#checkScheduled = false;
    if (this.#blocked === 0 || this.nextDue === Number.POSITIVE_INFINITY) return;
    if (this.#attempts === this.#attemptsAtCheck) {
      if (this.nextDue > this.#elapsed) this.#elapsed = this.nextDue;
      this.expire();
    }
    this.#checkSoon();
  }
}
