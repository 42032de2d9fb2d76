/**
 * What an authority keeps between runs: a directory of small files that only their owner may read.
 *
 *     roots/Milan-ARK.pem ...   private keys, PKCS #8
 *     certificates/Milan-ARK.der ...
 *     secret                    48 bytes, what VLEKs follow from
 *     chips/milan-HWID.json     fuses and versions of a chip
 *     revoked.json              serial numbers by generation
 *
 * Names that begin with a dot or end with a tilde are editors' and do not count; any other is refused, since what it holds would not count either.
 *
 * Several processes may share it: a file appears whole or not at all, and whoever makes a root first wins.
 */
import {
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { StateError } from './state-error.ts';
import { STATE_NAMES } from './state-files.ts';

export class StateDirectory {
  readonly path: string;

  /** Makes what is missing. StateError: the directory is another's, or a file's name is misspelt and what it holds would not count; then nothing was made. */
  constructor(path: string) {
    this.path = path;
    for (const { folder, names, want } of STATE_NAMES) this.#requireNames(folder, names, want);
    for (const folder of ['roots', 'certificates', 'chips']) makeDirectory(resolve(path, folder));
  }

  /** Where a file of this directory lies. */
  pathOf(file: string): string {
    return join(this.path, file);
  }

  /** The file's bytes; undefined if there is none. StateError: it cannot be read. */
  read(file: string): Buffer | undefined {
    try {
      return readFileSync(this.pathOf(file));
    } catch (error) {
      const { code = '' } = error as NodeJS.ErrnoException;
      if (code === 'ENOENT') return undefined;
      throw new StateError(this.pathOf(file), '', code, 'a file that can be read');
    }
  }

  /** Replaces the file. StateError: it cannot be written. */
  write(file: string, bytes: Uint8Array | string): void {
    const temporary = this.#temporary(file, bytes);
    renameSync(temporary, this.pathOf(file));
  }

  /** Makes the file unless another process has made it; returns what is there then. StateError as above. */
  writeOnce(file: string, bytes: Uint8Array | string): Buffer {
    const temporary = this.#temporary(file, bytes);
    try {
      linkSync(temporary, this.pathOf(file));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    } finally {
      rmSync(temporary);
    }
    return readFileSync(this.pathOf(file));
  }

  /** Names in a folder, or at the top, sorted; without our temporary files and what editors and desktops leave. None where there is no folder. */
  list(folder: string): string[] {
    return namesIn(join(this.path, folder))
      .filter((name) => !name.startsWith('.') && !name.endsWith('~'))
      .sort();
  }

  /** StateError: something in a folder, or at the top, has a name under which nothing would look for it. */
  #requireNames(folder: string, names: RegExp, want: string): void {
    const stranger = this.list(folder).find((name) => !names.test(name));
    if (stranger !== undefined)
      throw new StateError(join(this.path, folder, stranger), 'name', stranger, want);
  }

  #temporary(file: string, bytes: Uint8Array | string): string {
    const folder = file.includes('/') ? file.slice(0, file.indexOf('/')) : '';
    const temporary = join(this.path, folder, `.${process.pid}-${temporaries++}`);
    try {
      writeFileSync(temporary, bytes, { mode: 0o600, flag: 'wx' });
    } catch (error) {
      const { code = '' } = error as NodeJS.ErrnoException;
      throw new StateError(this.pathOf(file), '', code, 'to write it');
    }
    return temporary;
  }
}

function namesIn(path: string): string[] {
  try {
    return readdirSync(path);
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') return [];
    throw new StateError(path, '', code, 'a directory that can be read');
  }
}

/** Tells apart the temporary files of this process. */
let temporaries = 0;

/** Level by level: Node's `recursive` never returns where the kernel denies that an existing parent can have children, as below /proc. */
function makeDirectory(path: string): void {
  try {
    mkdirSync(path, { mode: 0o700 });
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'EEXIST' && statSync(path).isDirectory()) return;
    if (code !== 'ENOENT' || existsSync(dirname(path))) throw error;
    makeDirectory(dirname(path));
    makeDirectory(path);
  }
}
