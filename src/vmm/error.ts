/**
 * The two ways in which QEMU's side fails beside a plain errno: an `Error` that names object, property, got and want
 * (qapi/error.h), and an assertion, which only a bug in the caller can reach.
 */
import { errnoName, LinuxError } from '../base/errors.ts';

/** QEMU's `Error`: something that the user of the VMM asked for cannot be done. */
export class VmmError extends Error {
  override readonly name = 'VmmError';
  /** The errno behind it (positive), where a system call was. */
  readonly errno: number | undefined;
  /** The property whose value the system call refused, where that is known. */
  readonly property: string | undefined;

  constructor(message: string, errno?: number, property?: string) {
    super(message);
    this.errno = errno;
    this.property = property;
  }

  /** error_setg_errno: `message`, then what the system call said. */
  static because(message: string, cause: unknown, property?: string): VmmError {
    if (!(cause instanceof LinuxError)) throw cause;
    return new VmmError(`${message}: ${cause.message}`, cause.errno, property);
  }
}

/** assert(): the caller broke the rule that the message states. */
export class AssertionError extends Error {
  override readonly name = 'AssertionError';
}

/** Throws when `holds` is false; `rule` is what should have held. */
export function assert(holds: boolean, rule: string): asserts holds {
  if (!holds) throw new AssertionError(`assertion failed: ${rule}`);
}

/** error_report: a message for whoever runs the VMM, where the call itself can give an errno alone. */
export type ErrorReport = (message: string) => void;

/** What a system call threw, as −errno. Anything but a LinuxError passes through. */
export function negativeErrno(error: unknown): number {
  if (error instanceof LinuxError) return -error.errno;
  throw error;
}

/** `-22` as `EINVAL`, for messages. */
export const nameOfResult = (result: number): string => errnoName(-result) ?? `errno ${-result}`;

export const hex = (value: number | bigint): string => `0x${value.toString(16)}`;
