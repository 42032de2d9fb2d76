/**
 * A port that ends the run: the lowest byte of what the guest writes is the exit code. QEMU's isa-debug-exit
 * (hw/misc/debugexit.c) at the port that kvm-unit-tests use, but for the code, which QEMU turns into 2·value+1.
 */
import type { MemoryRegionOps } from '../memory/memory-region.ts';

export const DEBUG_EXIT_PORT = 0xf4;
export const DEBUG_EXIT_PORTS = 4;

export class DebugExit implements MemoryRegionOps {
  readonly maxAccessSize = 4;
  /** The guest's byte, −1 before it wrote one. */
  code = -1;

  read(): number {
    return 0;
  }

  write(offset: number, value: number): void {
    if (offset === 0) this.code = value & 0xff;
  }
}
