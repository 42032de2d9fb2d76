/**
 * A time at which waiting ends. Its signal alone would not do: AbortSignal.timeout, and what the platform's fetch keeps of any signal while a body
 * comes, may be collected with nothing left that aborts (nodejs/undici holds both weakly).
 */
export class Deadline {
  readonly #controller = new AbortController();
  readonly #timer: ReturnType<typeof setTimeout>;
  readonly #passed: Promise<never>;
  readonly #refuse: (reason: unknown) => void;

  /** `ms`: milliseconds from now, an integer below 2^31. */
  constructor(ms: number) {
    let reject: (reason: unknown) => void = () => {};
    this.#passed = new Promise((_resolve, refuse) => {
      reject = refuse;
    });
    this.#refuse = reject;
    this.#timer = setTimeout(
      () => this.#pass(new DOMException('The operation was aborted due to timeout', 'TimeoutError')),
      ms,
    );
    this.#passed.catch(() => undefined);
  }

  /** For who can be told to stop. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** What comes of `step`; rejects with a TimeoutError if the time comes first. */
  of<T>(step: Promise<T>): Promise<T> {
    return Promise.race([step, this.#passed]);
  }

  /** Nobody waits any more: what waits still rejects with an AbortError. */
  end(): void {
    clearTimeout(this.#timer);
    this.#pass(new DOMException('Nobody waits any more', 'AbortError'));
  }

  #pass(reason: DOMException): void {
    this.#controller.abort(reason);
    this.#refuse(reason);
  }
}
