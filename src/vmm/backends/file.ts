/** memory-backend-file (QEMU backends/hostmem-file.c): a named file, created when absent. Leaves out pmem, hugetlbfs and align. */

import { type MemoryRegion, ramRegion } from '../memory/memory-region.ts';
import type { RamBlock, RamOwner } from '../memory/ram-block.ts';
import { RAM_NAMED_FILE, RAM_READONLY, RAM_READONLY_FD } from '../memory/ram-flags.ts';
import { blockFromOpened } from './memfd.ts';
import { type BackendContext, backendFlags, type MemoryBackendOptions } from './memory-backend.ts';

export interface FileBackendOptions extends MemoryBackendOptions {
  readonly path: string;
  /** Bytes into the file, a multiple of the page size. */
  readonly offset?: bigint;
  /** `readonly`: the file is opened for reading; its RAM can be written by a guest only if `sharing` is private. */
  readonly access?: 'readonly';
}

/** Throws VmmError; then the file is closed. */
export function fileBackend(context: BackendContext, options: FileBackendOptions): MemoryRegion {
  const readOnly = options.access === 'readonly';
  const readOnlyFlags = RAM_READONLY_FD | (options.sharing === 'shared' ? RAM_READONLY : 0);
  const flags = backendFlags(options) | RAM_NAMED_FILE | (readOnly ? readOnlyFlags : 0);
  const allocate = (owner: RamOwner): RamBlock =>
    blockFromOpened(
      context,
      () => context.process.open(options.path, { readOnly }),
      (fd) =>
        context.ramList.allocFromFd({
          region: owner,
          size: options.size,
          flags,
          fd,
          ...(options.offset === undefined ? {} : { offset: options.offset }),
        }),
      `${options.name}: can't open backing store ${options.path} for guest RAM`,
    );
  return ramRegion(
    options.name,
    options.size,
    allocate,
    (flags & RAM_READONLY) !== 0 ? { access: 'readonly' } : {},
  );
}
