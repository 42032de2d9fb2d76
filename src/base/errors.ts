/** Errors that have the shape of the field: a system call's errno, and what this house does not implement yet. */

/** Linux errno numbers (asm-generic/errno*.h) of those that our calls return. */
export const ERRNO = {
  EPERM: 1,
  ENOENT: 2,
  EINTR: 4,
  EIO: 5,
  ENXIO: 6,
  E2BIG: 7,
  EBADF: 9,
  EAGAIN: 11,
  ENOMEM: 12,
  EACCES: 13,
  EFAULT: 14,
  EBUSY: 16,
  EEXIST: 17,
  ENODEV: 19,
  EINVAL: 22,
  EMFILE: 24,
  ENOTTY: 25,
  EFBIG: 27,
  ENOSPC: 28,
  ESPIPE: 29,
  EROFS: 30,
  ERANGE: 34,
  ENOSYS: 38,
  EBADMSG: 74,
  EOVERFLOW: 75,
  EOPNOTSUPP: 95,
  ETIMEDOUT: 110,
  EHWPOISON: 133,
} as const;

export type ErrnoName = keyof typeof ERRNO;

/**
 * A failed system call. `code` is the errno's name, as in Node's own errors. An access to a mapping that Linux answers
 * with a signal has `signal` set as well (SIGBUS beyond a file's end, SIGSEGV outside every mapping).
 */
export class LinuxError extends Error {
  override readonly name = 'LinuxError';
  readonly errno: number;
  readonly code: ErrnoName;
  readonly signal: 'SIGBUS' | 'SIGSEGV' | undefined;

  /** `what` says what was wrong with which value: field, got, want. */
  constructor(code: ErrnoName, what: string, signal?: 'SIGBUS' | 'SIGSEGV') {
    super(`${code}: ${what}`);
    this.code = code;
    this.errno = ERRNO[code];
    this.signal = signal;
  }
}

/** The errno's name for a (positive) number; EINVAL's table row is the caller's business. */
export function errnoName(errno: number): ErrnoName | undefined {
  return (Object.keys(ERRNO) as ErrnoName[]).find((name) => ERRNO[name] === errno);
}

/** Something that the real system has and this house does not have yet. Nothing pretends: it throws this, by name. */
export class NotImplementedError extends Error {
  override readonly name = 'NotImplementedError';
  readonly what: string;

  constructor(what: string) {
    super(`not implemented: ${what}`);
    this.what = what;
  }
}
