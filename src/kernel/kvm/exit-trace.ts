/** What a trace shows of a KVM_RUN that returned. */
import type { Trace } from '../../base/trace.ts';
import { WAIT } from './run-result.ts';

const NAMES: Readonly<Record<number, string>> = {
  0: 'unknown',
  2: 'io',
  3: 'hypercall',
  4: 'debug',
  5: 'hlt',
  6: 'mmio',
  7: 'irq-window-open',
  8: 'shutdown',
  9: 'fail-entry',
  10: 'intr',
  11: 'set-tpr',
  17: 'internal-error',
  29: 'rdmsr',
  30: 'wrmsr',
  31: 'dirty-ring-full',
  39: 'memory-fault',
};

export function traceExit(trace: Trace, vcpu: number, result: number, exitReason: number): void {
  trace.emit({
    kind: 'exit',
    who: 'kernel',
    what: result === WAIT ? 'pending' : (NAMES[exitReason] ?? String(exitReason)),
    vcpu,
    ...(result < 0 ? { errno: -result } : {}),
  });
}
