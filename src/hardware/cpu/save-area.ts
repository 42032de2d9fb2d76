/** The part of the VMCB's save area that a core keeps a mirror of: from ES to DBGCTL, in one copy. */
import { SAVE } from '../../abi/vmcb.ts';

export interface CopyMemory {
  copyInside(to: number, from: number, length: number): void;
}

const BYTES = SAVE.DBGCTL + 8;

/** Copies the mirrored fields from the save area at address `from` to the one at `to`. */
export function copySaveArea(memory: CopyMemory, from: number, to: number): void {
  memory.copyInside(to, from, BYTES);
}
