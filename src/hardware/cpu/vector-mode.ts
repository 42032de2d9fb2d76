/**
 * Whether instructions on XMM registers may run (APM volume 2, 11.3; volume 4, the exceptions of each): with CR0.EM set or CR4.OSFXSR clear
 * they are #UD, else with CR0.TS set #NM, before anything else of theirs is looked at. Decoded code depends on it, so that nothing
 * needs to be asked when it runs: page maps are per frame and mode.
 */
import { CR0, CR4 } from '../../abi/x86.ts';

export const VECTOR_MODE = { AVAILABLE: 0, UNDEFINED: 1, UNAVAILABLE: 2 } as const;
export const VECTOR_MODES = 3;

/** A VECTOR_MODE. */
export function vectorMode(cr0: number, cr4: number): number {
  if ((cr0 & CR0.EM) !== 0 || (cr4 & CR4.OSFXSR) === 0) return VECTOR_MODE.UNDEFINED;
  return (cr0 & CR0.TS) !== 0 ? VECTOR_MODE.UNAVAILABLE : VECTOR_MODE.AVAILABLE;
}
