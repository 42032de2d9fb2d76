/**
 * Invalidation in progress: which gfns are being taken away, and whether something was since a fault looked (Linux
 * virt/kvm/kvm_main.c kvm_mmu_invalidate_begin, _range_add, _end; include/linux/kvm_host.h mmu_invalidate_retry_gfn and its
 * unlocked form). All of it happens on the kernel's thread, which is the mmu_lock.
 */
import type { Gfn } from '../../base/address.ts';
import type { InvalidationChecks } from './mmu/guest-memory.ts';

/** INVALID_GPA: the range of an invalidation that has not said yet what it takes away. */
const INVALID = -1;

export class Invalidation implements InvalidationChecks {
  #sequence = 0;
  #inProgress = 0;
  #start = INVALID;
  #end = INVALID;
  #waiters: (() => void)[] = [];

  get inProgress(): number {
    return this.#inProgress;
  }

  begin(): void {
    this.#inProgress++;
    if (this.#inProgress !== 1) return;
    this.#start = INVALID;
    this.#end = INVALID;
  }

  /** Adds [start, end) to what is taken away; one range spans all of them. */
  rangeAdd(start: Gfn, end: Gfn): void {
    if (this.#inProgress === 0) throw new Error('an invalidation range without an invalidation');
    if (this.#start === INVALID) {
      this.#start = start;
      this.#end = end;
      return;
    }
    this.#start = Math.min(this.#start, start);
    this.#end = Math.max(this.#end, end);
  }

  end(): void {
    if (this.#inProgress === 0) throw new Error('the end of an invalidation that did not begin');
    this.#sequence++;
    this.#inProgress--;
    if (this.#inProgress > 0) return;
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const wake of waiters) wake();
  }

  /** Settles when no invalidation is in progress. */
  idle(): Promise<void> {
    if (this.#inProgress === 0) return Promise.resolve();
    return new Promise((wake) => this.#waiters.push(wake));
  }

  snapshot(): number {
    return this.#sequence;
  }

  retryGfn(snapshot: number, gfn: Gfn): boolean {
    if (this.#inProgress !== 0) {
      if (this.#start === INVALID) return true;
      if (gfn >= this.#start && gfn < this.#end) return true;
    }
    return this.#sequence !== snapshot;
  }

  /** The same questions, asked early; `retryGfn` is asked again before anything is mapped. */
  retryGfnUnsafe(snapshot: number, gfn: Gfn): boolean {
    return this.retryGfn(snapshot, gfn);
  }
}
