/** Which authority a command means: `--seed N`, or the state directory that `--state` names or the user has. */
import { Authority } from '../authority/authority.ts';
import { defaultStateDirectory } from './files.ts';
import { InputError, parseInteger } from './size.ts';

export interface AuthorityOptions {
  readonly state?: string;
  readonly seed?: string;
}

/** Throws InputError. */
export function openAuthority({ state, seed }: AuthorityOptions): Authority {
  if (seed !== undefined) {
    if (state !== undefined) throw new InputError('--seed: got --state as well, want one of them');
    return Authority.seeded(parseInteger(seed, '--seed', 0, 2 ** 32 - 1));
  }
  if (state === '') throw new InputError('--state: got "", want a directory');
  const path = state ?? defaultStateDirectory();
  try {
    return Authority.stored(path);
  } catch (error) {
    throw new InputError(`--state: got ${path}: ${(error as Error).message}`);
  }
}
