/** How a run ends, what is counted on the way, and the words for it. */
import { KVM_SYSTEM_EVENT_SEV_TERM } from '../abi/kvm.ts';
import type { KvmRun } from '../abi/kvm-run.ts';
import { SevExits } from '../abi/kvm-run-sev.ts';
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
  /** A vCPU's dirty ring was full, and was reaped. */
  dirty_ring_full: number;
  /** The guest asked for certificates. */
  req_certs: number;
  system_event: number;
  internal_error: number;
  fail_entry: number;
  /** The vCPU had to wait for a page. */
  pending: number;
  other: number;
}

export interface RunEnd {
  /** `shutdown`: a triple fault, or a reset of a machine that cannot be reset. */
  readonly reason: 'debug-exit' | 'hlt' | 'shutdown' | 'timeout' | 'error';
  /** The guest's byte; 0 after hlt, 124 after a timeout, 125 after shutdown or error. */
  readonly code: number;
  readonly message?: string;
}

/** The run ends because of what happened to one vCPU. */
export const failed = (vcpu: KvmVcpu, message: string): RunEnd => ({
  reason: 'error',
  code: EXIT_CODE_FAILED,
  message: `vCPU ${vcpu.id}: ${message}`,
});

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

const GENERIC_REASONS = ['general', 'GHCB protocol version unsupported', 'SNP features unsupported'];
const LINUX_REASONS = [
  'GHCB registration failed',
  'page state change failed',
  'PVALIDATE failed',
  'not at VMPL0',
  'CPUID failed',
  'CPUID by the hypervisor',
  'secrets page',
  'no SVSM',
  'SVSM at VMPL0',
  'SVSM calling area',
];

/** What KVM_EXIT_SYSTEM_EVENT means for the run. An SNP guest's own termination request says why, by set and code of the GHCB protocol. */
export function systemEvent(vcpu: KvmVcpu): RunEnd {
  const exits = new SevExits(vcpu.kvmRun.bytes);
  const type = exits.systemEventType;
  const data = exits.systemEventData(0);
  const message =
    type === KVM_SYSTEM_EVENT_SEV_TERM
      ? `the guest asked to be terminated: ${termination(data)}`
      : `system event ${type}`;
  return failed(vcpu, message);
}

function termination(data: bigint): string {
  if ((data & 0xfffn) !== 0x100n) return `by its GHCB at ${hex(data)}`;
  const set = Number((data >> 12n) & 0xfn);
  const code = Number((data >> 16n) & 0xffn);
  const reasons = set === 0 ? GENERIC_REASONS : set === 1 ? LINUX_REASONS : [];
  return `reason ${set}:${code}${reasons[code] === undefined ? '' : ` (${reasons[code]})`}`;
}

/** Where the vCPU stands, as far as it can be asked. */
export function where(vcpu: KvmVcpu): string {
  try {
    return ` at rip ${hex(vcpu.getRegs().rip)}`;
  } catch {
    return '';
  }
}
