/** Files that a command line names. */
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { textOf } from '../base/option-checks.ts';
import { readImage } from '../index.ts';
import { InputError } from './size.ts';

/** The file's bytes. InputError: there is none, or it cannot be read. */
export function readInput(path: string, option: string): Buffer {
  try {
    return readFileSync(path);
  } catch (error) {
    throw new InputError(`${option}: got ${textOf(path)}: ${reasonOf(error)}`);
  }
}

/** Writes or replaces a file. InputError: it cannot be written there. */
export function writeOutput(path: string, content: Uint8Array | string, option: string): void {
  try {
    writeFileSync(path, content);
  } catch (error) {
    throw new InputError(`${option}: got ${textOf(path)}: ${reasonOfWrite(error)}`);
  }
}

/** A guest's image, by path or by the name of one that comes along. InputError: there is none, or it cannot be read. */
export async function readGuestImage(
  nameOrPath: string,
  option = 'image',
): Promise<{ image: Uint8Array; imageName: string }> {
  try {
    return await readImage(nameOrPath);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const reason = code === 'ENOENT' ? 'no such file, nor a guest of that name' : reasonOf(error);
    throw new InputError(`${option}: got ${textOf(nameOrPath)}: ${reason}`);
  }
}

/** The files of each path; of a directory, those in it, by name. */
export function filesOf(paths: readonly string[], option: string): string[] {
  return paths.flatMap((path) => {
    try {
      return statSync(path).isDirectory()
        ? readdirSync(path)
            .sort()
            .map((name) => join(path, name))
        : [path];
    } catch (error) {
      throw new InputError(`${option}: got ${textOf(path)}: ${reasonOf(error)}`);
    }
  });
}

const REASONS: Readonly<Record<string, string>> = {
  ENOENT: 'no such file',
  EISDIR: 'is a directory',
  ENOTDIR: 'a part of the path is no directory',
  EACCES: 'permission denied',
};

/** Why the file system refused, in words. */
export function reasonOf(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException;
  return REASONS[code ?? ''] ?? message;
}

/** The same for a file that was to be written: it is the directory that is missing. */
export const reasonOfWrite = (error: unknown): string =>
  (error as NodeJS.ErrnoException).code === 'ENOENT' ? 'no such directory' : reasonOf(error);

/** Where an authority lives unless `--state` says: below XDG_STATE_HOME. */
export function defaultStateDirectory(): string {
  const { XDG_STATE_HOME } = process.env;
  return join(XDG_STATE_HOME || join(homedir(), '.local/state'), 'softcvm');
}
