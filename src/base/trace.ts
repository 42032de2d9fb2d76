/**
 * The one stream of state changes: who did what to which page or vCPU, and why.
 *
 * Emitters guard with `if (trace.on)`, a predictable branch, so that a host that nobody watches pays nothing:
 *
 *     if (trace.on) trace.emit({ kind: 'page', who: 'kernel', what: 'private', gfn, why: 'KVM_SET_MEMORY_ATTRIBUTES' });
 *
 * Events are plain data (they are written as one JSON object a line) and never hold a guest's private bytes.
 */
import { requireFunction } from './option-checks.ts';

export type Actor = 'core' | 'kernel' | 'firmware' | 'vmm' | 'device' | 'guest';

export interface TraceEvent {
  /**
   * `page`: a page's owner, attribute or mapping changed. `exit`: a core or vCPU left its guest. `fault`: a nested fault and
   * its outcome. `call`: a system call. `core`: an exception, an undecoded instruction. `vm`: life cycle of VM, slot, file.
   */
  readonly kind: 'page' | 'exit' | 'fault' | 'call' | 'core' | 'vm';
  readonly who: Actor;
  readonly what: string;
  readonly why?: string;
  readonly vcpu?: number;
  readonly gfn?: number;
  readonly pfn?: number;
  /** Number of pages from `gfn` or `pfn` on; one when absent. */
  readonly pages?: number;
  readonly [detail: string]: string | number | boolean | undefined;
}

export type TraceListener = (event: TraceEvent) => void;

export class Trace {
  /** True while somebody listens. */
  on = false;
  #listeners: readonly TraceListener[] = [];
  #failureListeners: readonly TraceListener[] = [];
  /** Whoever is amid a change of state. */
  #holders = 0;
  /** What was emitted meanwhile, and how much of it was told since. */
  readonly #kept: TraceEvent[] = [];
  #told = 0;
  #isTelling = false;
  /** A listener threw, and nobody has heard of it yet. */
  failed = false;
  #failure: unknown;

  /** An event after which a vCPU does not go on: also for those who listen to nothing else. Not to be guarded by `on`. */
  fail(event: TraceEvent): void {
    this.#tell(this.#failureListeners, event);
    this.emit(event);
  }

  /** Calls `listener` for each `fail` until the returned function is called. Leaves `on` alone: all else costs what it did. RangeError: no function. */
  listenToFailures(listener: TraceListener): () => void {
    requireFunction('listener', listener);
    this.#failureListeners = [...this.#failureListeners, listener];
    return () => {
      this.#failureListeners = this.#failureListeners.filter((other) => other !== listener);
    };
  }

  emit(event: TraceEvent): void {
    this.#kept.push(event);
    this.#tellKept();
  }

  /**
   * Listeners hear nothing until `letGo`, and then of all in its order. For a change that must not be met halfway: a listener may close,
   * unmap or exit. Calls nest.
   */
  hold(): void {
    this.#holders++;
  }
  /** Carries out `act`; listeners hear of it afterwards. */
  tellAfter<Result>(act: () => Result): Result {
    this.hold();
    try {
      return act();
    } finally {
      this.letGo();
    }
  }
  /** Ends `hold`. What was looked up before may be gone when it returns. */
  letGo(): void {
    this.#holders--;
    if (this.#kept.length > 0) this.#tellKept();
  }

  /** Calls `listener` for each event until the returned function is called. RangeError: no function. */
  listen(listener: TraceListener): () => void {
    requireFunction('listener', listener);
    this.#listeners = [...this.#listeners, listener];
    this.on = true;
    return () => {
      this.#listeners = this.#listeners.filter((other) => other !== listener);
      this.on = this.#listeners.length > 0;
    };
  }

  /** Throws what a listener threw, once. For the end of a system call. */
  throwFailure(): void {
    if (!this.failed) return;
    const failure = this.#failure;
    this.failed = false;
    this.#failure = undefined;
    throw failure;
  }

  /** What a listener brings about is told when all have heard of the event before it. */
  #tellKept(): void {
    if (this.#isTelling) return;
    this.#isTelling = true;
    while (this.#holders === 0 && this.#told < this.#kept.length)
      this.#tell(this.#listeners, this.#kept[this.#told++]!);
    this.#isTelling = false;
    if (this.#told < this.#kept.length) return;
    this.#kept.length = 0;
    this.#told = 0;
  }

  /** Who emits is amid a change of state: what a listener throws comes out of KVM_RUN, or is an uncaught exception soon after, as with an EventTarget. */
  #tell(listeners: readonly TraceListener[], event: TraceEvent): void {
    for (const listener of listeners) {
      try {
        listener(event);
      } catch (error) {
        if (this.failed) continue;
        this.failed = true;
        this.#failure = error;
        queueMicrotask(() => this.throwFailure());
      }
    }
  }
}
