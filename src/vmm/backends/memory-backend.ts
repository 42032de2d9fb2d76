/**
 * Where a machine's RAM comes from (QEMU backends/hostmem*.c): a name, a size, and how the host memory is shared and reserved.
 * A machine that needs guest_memfd sets `guestMemfd`, and the backend adds RAM_GUEST_MEMFD to what it allocates.
 */
import type { Process } from '../../kernel/interface.ts';
import { RAM_GUEST_MEMFD, RAM_NORESERVE, RAM_SHARED } from '../memory/ram-flags.ts';
import type { RamList } from '../memory/ram-list.ts';

export interface BackendContext {
  readonly process: Process;
  readonly ramList: RamList;
}

export interface MemoryBackendOptions {
  /** id of the object; becomes the region's name. */
  readonly name: string;
  /** Bytes. */
  readonly size: number;
  /** `shared`: other processes that map the same memory see the writes. */
  readonly sharing: 'shared' | 'private';
  /** Absent: swap space is reserved. */
  readonly reserve?: 'none';
  /** `required`: the RAM gets a guest_memfd for its private side. */
  readonly guestMemfd: 'required' | 'none';
}

/** RAM flags that the options ask for. */
export const backendFlags = (options: MemoryBackendOptions): number =>
  (options.sharing === 'shared' ? RAM_SHARED : 0) |
  (options.reserve === 'none' ? RAM_NORESERVE : 0) |
  (options.guestMemfd === 'required' ? RAM_GUEST_MEMFD : 0);
