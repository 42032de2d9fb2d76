/**
 * A time at which waiting ends. Its signal alone would not do: AbortSignal.timeout, and what the platform's fetch keeps of any signal while a body
 * comes, may be collected with nothing left that aborts (nodejs/undici holds both weakly).
 */
export class Deadline {
  readonly #controller = new AbortController();
  readonly #timer: ReturnType<typeof setTimeout>;
  readonly #passed: Promise<never>;

  /** `ms`: milliseconds from now, an integer below 2^31. */
  constructor(ms: number) {
    let reject: (reason: unknown) => void = () => {};
    this.#passed = new Promise((_resolve, refuse) => {
      reject = refuse;
    });
    this.#timer = setTimeout(() => {
      const reason = new DOMException('The operation was aborted due to timeout', 'TimeoutError');
      this.#controller.abort(reason);
      reject(reason);
    }, ms);
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

  /** Nobody waits any more. */
  end(): void {
    clearTimeout(this.#timer);
  }
}
