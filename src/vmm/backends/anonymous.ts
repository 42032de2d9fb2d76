/** memory-backend-ram (QEMU backends/hostmem-ram.c): anonymous memory of the VMM's process. */
import { type MemoryRegion, ramRegion } from '../memory/memory-region.ts';
import { type BackendContext, backendFlags, type MemoryBackendOptions } from './memory-backend.ts';

/** Throws VmmError. */
export function anonymousBackend(context: BackendContext, options: MemoryBackendOptions): MemoryRegion {
  return ramRegion(options.name, options.size, (region) =>
    context.ramList.alloc({ region, size: options.size, flags: backendFlags(options) }),
  );
}
