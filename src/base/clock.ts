/** The host's clock, injected. */
export interface Clock {
  /** Nanoseconds since an arbitrary start; never goes back. */
  now(): number;
}

/** The platform's monotonic clock. */
export const platformClock = (): Clock => ({ now: () => performance.now() * 1e6 });

/** A clock that moves only when told to, for runs with a seed. */
export class ManualClock implements Clock {
  #now = 0;
  now(): number {
    return this.#now;
  }
  advance(nanoseconds: number): void {
    this.#now += nanoseconds;
  }
}
