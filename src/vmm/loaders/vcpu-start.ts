/** Where and how a machine's vCPUs start: what each way of loading sets before the first entry. */
import type { Regs, Sregs } from '../../kernel/interface.ts';

export interface VcpuStart {
  /** General registers of vCPU `index`. */
  regs(index: number): Regs;
  /** Special registers of vCPU `index`, which has `current` from KVM. */
  sregs(index: number, current: Sregs): Sregs;
}
