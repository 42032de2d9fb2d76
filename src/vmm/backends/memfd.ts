/** memory-backend-memfd (QEMU backends/hostmem-memfd.c): a shared memory object of its own. Leaves out hugetlb and seals. */
import { VmmError } from '../error.ts';
import { type MemoryRegion, ramRegion } from '../memory/memory-region.ts';
import type { RamBlock } from '../memory/ram-block.ts';
import { type BackendContext, backendFlags, type MemoryBackendOptions } from './memory-backend.ts';

/** Throws VmmError; then the object is gone. */
export function memfdBackend(context: BackendContext, options: MemoryBackendOptions): MemoryRegion {
  return ramRegion(options.name, options.size, (region) =>
    blockFromOpened(
      context,
      () => context.process.memfdCreate(`memory-backend-memfd-${options.name}`),
      (fd) => context.ramList.allocFromFd({ region, size: options.size, flags: backendFlags(options), fd }),
      `${options.name}: can't create memfd`,
    ),
  );
}

/** Opens a file and makes a block of it; a block that cannot be made closes the file. */
export function blockFromOpened(
  context: BackendContext,
  open: () => number,
  allocate: (fd: number) => RamBlock,
  message: string,
): RamBlock {
  let fd: number;
  try {
    fd = open();
  } catch (error) {
    throw VmmError.because(message, error);
  }
  try {
    return allocate(fd);
  } catch (error) {
    context.process.close(fd);
    throw error;
  }
}
