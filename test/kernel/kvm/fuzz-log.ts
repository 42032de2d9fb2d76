/** What the ioctl fuzzer asked last, and how it went: what fails says which calls came before. */
import { LinuxError, NotImplementedError } from '../../../src/base/errors.ts';

const CALLS_KEPT = 40;
/** A value that no field holds: the message begins with the structure's or ioctl's name, and the field's. */
const NAMES_A_FIELD = /^(kvm_\w+|KVM_\w+|sev_\w+)(\.[\w[\]]+)*: got .+, want (an? |at most |at least )/s;

export interface FuzzCounts {
  calls: number;
  succeeded: number;
  refused: number;
  notImplemented: number;
  /** No field holds what was asked. */
  outOfRange: number;
  /** KVM_RUN alone. */
  runs: number;
  /** By exit reason, of runs that came back with 0; by −errno. */
  readonly exits: Map<string, number>;
}

interface Note {
  readonly what: string;
  readonly args: unknown;
  outcome: string;
}

export class FuzzLog {
  readonly counts: FuzzCounts = {
    calls: 0,
    succeeded: 0,
    refused: 0,
    notImplemented: 0,
    outOfRange: 0,
    runs: 0,
    exits: new Map(),
  };
  readonly #last: Note[] = [];

  note(what: string, args: unknown): Note {
    const note = { what, args, outcome: '…' };
    this.#last.push(note);
    if (this.#last.length > CALLS_KEPT) this.#last.shift();
    this.counts.calls++;
    return note;
  }

  /** One call. Undefined where it was refused, as a kernel may, or cannot be asked; anything else that it throws is a failure. */
  call<T>(what: string, args: unknown, act: () => T): T | undefined {
    const note = this.note(what, args);
    try {
      const result = act();
      note.outcome = '= ok';
      this.counts.succeeded++;
      return result;
    } catch (error) {
      if (error instanceof LinuxError) this.counts.refused++;
      else if (error instanceof NotImplementedError) this.counts.notImplemented++;
      else if (
        (error instanceof RangeError || error instanceof TypeError) &&
        NAMES_A_FIELD.test(error.message)
      )
        this.counts.outOfRange++;
      else
        this.explained(() => {
          throw error;
        });
      note.outcome = `= ${(error as Error).message}`;
      return undefined;
    }
  }

  /** Has a failure of `act` tell the calls before it. */
  explained(act: () => void): void {
    try {
      act();
    } catch (error) {
      const calls = this.#last.map(({ what, args, outcome }) => `${what}(${inspect(args)}) ${outcome}`);
      throw new Error(`after call ${this.counts.calls}:\n${calls.join('\n')}\n${String(error)}`, {
        cause: error,
      });
    }
  }
}

const inspect = (value: unknown): string =>
  JSON.stringify(value, (_, item: unknown) =>
    typeof item === 'bigint'
      ? `0x${item.toString(16)}`
      : ArrayBuffer.isView(item)
        ? `${item.byteLength} bytes`
        : item,
  ) ?? '';
