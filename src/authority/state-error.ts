/** A file of the state directory cannot be read, written or believed. The message names the file, the field, what is there and what should be. */
export class StateError extends Error {
  override readonly name = 'StateError';

  constructor(path: string, field: string, got: string, want: string) {
    super(`${path}: ${field === '' ? '' : `${field}: `}got ${got}, want ${want}`);
  }
}
