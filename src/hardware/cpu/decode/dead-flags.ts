/**
 * Flags that nobody can see: an instruction on registers whose flags the next one overwrites gets the handler that does not compute
 * them. Between the two there may only be instructions on registers that leave the flags alone: nothing may fault,
 * branch or be interrupted in between.
 */
import { GROUPS } from '../semantics/groups.ts';
import type { HandlerNumber } from './operands.ts';

export class DeadFlags {
  readonly #effects: ('set' | 'keep' | undefined)[] = [];
  readonly #quiet: (number | undefined)[] = [];
  readonly #words: Int32Array;
  /** Address of the record whose flags may turn out to be dead, or 0. */
  #pending = 0;

  constructor(handler: HandlerNumber, words: Int32Array) {
    this.#words = words;
    for (const { operations } of GROUPS) {
      for (const [name, operation] of Object.entries(operations)) {
        for (const size of operation.sizes) {
          const number = handler(`${name}.${size}`);
          if (number === undefined) continue;
          this.#effects[number] = operation.flags;
          this.#quiet[number] = handler(`${name}.${size} quiet`);
        }
      }
    }
  }

  /** Nothing is known of what comes before the next instruction. */
  reset(): void {
    this.#pending = 0;
  }

  /** The next instruction has been written, as one record or more; `record` is the last one. */
  note(record: number, records: number): void {
    const handler = this.#words[record >>> 2]!;
    const effect = records === 1 ? this.#effects[handler] : undefined;
    if (effect === 'keep') return;
    if (effect === 'set' && this.#pending !== 0) {
      this.#words[this.#pending >>> 2] = this.#quiet[this.#words[this.#pending >>> 2]!]!;
    }
    this.#pending = effect === 'set' && this.#quiet[handler] !== undefined ? record : 0;
  }
}
