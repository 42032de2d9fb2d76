/** How a run ends, what is counted on the way, and the words for it. */
import type { KvmRun } from '../abi/kvm-run.ts';
import type { KvmVcpu } from '../kernel/interface.ts';
import { hex } from './error.ts';

export const EXIT_CODE_TIMEOUT = 124;
export const EXIT_CODE_FAILED = 125;

/** How often KVM_RUN returned, by reason. */
export interface ExitCounts {
  io: number;
  mmio: number;
  hypercall: number;
  memory_fault: number;
  hlt: number;
  shutdown: number;
  /** Interrupted: the vCPU used up its share, or a signal came. */
  intr: number;
  /** An EOI that the machine's IOAPIC wants to hear of. */
  ioapic_eoi: number;
  internal_error: number;
  fail_entry: number;
  /** The vCPU had to wait for a page. */
  pending: number;
  other: number;
}

export interface RunEnd {
  /** `shutdown`: a triple fault. */
  readonly reason: 'debug-exit' | 'hlt' | 'shutdown' | 'timeout' | 'error';
  /** The guest's byte; 0 after hlt, 124 after a timeout, 125 after shutdown or error. */
  readonly code: number;
  readonly message?: string;
}

const INTERNAL_ERRORS: Record<number, string> = {
  1: 'emulation failure',
  2: 'simultaneous exceptions',
  3: 'delivery of an event failed',
  4: 'unexpected exit reason',
};

/** What KVM_EXIT_INTERNAL_ERROR says: its suberror by name, and its data. */
export function internalError(run: KvmRun): string {
  const count = Math.min(run.internalErrorNdata, 16);
  const data = Array.from({ length: count }, (_, index) => hex(run.internalErrorData(index)));
  const name = INTERNAL_ERRORS[run.internalErrorSuberror] ?? `suberror ${run.internalErrorSuberror}`;
  return data.length === 0 ? name : `${name} (${data.join(', ')})`;
}

/** Where the vCPU stands, as far as it can be asked. */
export function where(vcpu: KvmVcpu): string {
  try {
    return ` at rip ${hex(vcpu.getRegs().rip)}`;
  } catch {
    return '';
  }
}
