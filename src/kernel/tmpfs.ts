/**
 * The host's tmpfs (Linux mm/shmem.c): files by path, shared by all processes of the host; they last until unlinked.
 * Directories are not kept: a path is a name.
 */
import { LinuxError } from '../base/errors.ts';
import type { HostMemory } from '../hardware/memory/host-memory.ts';
import { OpenFile } from './files.ts';
import { SharedMemory } from './mm/shared-memory.ts';

interface Inode {
  readonly content: SharedMemory;
  /** Open file descriptions. */
  opens: number;
  linked: boolean;
}

export class Tmpfs {
  readonly #memory: HostMemory;
  readonly #inodes = new Map<string, Inode>();

  constructor(memory: HostMemory) {
    this.#memory = memory;
  }

  /** An open file of that path; it is made when absent, but not when opened read-only: ENOENT. */
  open(path: string, options: { readOnly?: boolean } = {}): OpenFile {
    const readOnly = options.readOnly ?? false;
    if (path === '') throw new LinuxError('ENOENT', 'open: the path is empty');
    let inode = this.#inodes.get(path);
    if (inode === undefined) {
      if (readOnly) throw new LinuxError('ENOENT', `open: ${path} does not exist`);
      const created: Inode = {
        content: new SharedMemory({
          memory: this.#memory,
          name: path,
          onRelease: () => this.#release(created),
        }),
        opens: 0,
        linked: true,
      };
      this.#inodes.set(path, created);
      inode = created;
    }
    inode.opens++;
    return new OpenFile(inode.content, { readable: true, writable: !readOnly });
  }

  /** Takes the name away; the file lasts while it is open or mapped. Errors: ENOENT. */
  unlink(path: string): void {
    const inode = this.#inodes.get(path);
    if (inode === undefined) throw new LinuxError('ENOENT', `unlink: ${path} does not exist`);
    this.#inodes.delete(path);
    inode.linked = false;
    if (inode.opens === 0) inode.content.destroy();
  }

  /** Unlinks every file. */
  unmount(): void {
    for (const path of [...this.#inodes.keys()]) this.unlink(path);
  }

  #release(inode: Inode): void {
    inode.opens--;
    if (inode.opens === 0 && !inode.linked) inode.content.destroy();
  }
}
