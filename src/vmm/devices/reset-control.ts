/**
 * The reset control register of the south bridge at port CF9h, by which a guest asks for a reset of the system (QEMU hw/isa/lpc_ich9.c: ich9_rst_cnt_write). What a reset
 * is, is the machine's business.
 */
import type { MemoryRegionOps } from '../memory/memory-region.ts';

export const RESET_CONTROL_PORT = 0xcf9;
export const RESET_CONTROL_PORTS = 1;

/** Bits that keep their value: full reset, system reset. */
const KEPT = 0xa;
const RESET_CPU = 4;

export class ResetControl implements MemoryRegionOps {
  readonly maxAccessSize = 1;
  /** The guest asked for a reset. */
  requested = false;
  #value = 0;

  read(): number {
    return this.#value;
  }

  write(_offset: number, value: number): void {
    if ((value & RESET_CPU) !== 0) this.requested = true;
    else this.#value = value & KEPT;
  }
}
