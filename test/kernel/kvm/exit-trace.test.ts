/** What the trace says of a KVM_RUN that returned. */
import { expect, it } from 'vitest';
import { Trace, type TraceEvent } from '../../../src/base/trace.ts';
import { traceExit } from '../../../src/kernel/kvm/exit-trace.ts';

it.each([
  ['an exit by its name', 0, 2, { what: 'io' }],
  ['an exit that has no name by its number', 0, 77, { what: '77' }],
  ['an errno beside the exit', -14, 39, { what: 'memory-fault', errno: 14 }],
  ['one that waits, whatever exit_reason says', 2, 5, { what: 'pending' }],
])('names %s', (_, result, reason, want) => {
  const trace = new Trace();
  const events: TraceEvent[] = [];
  trace.listen((event) => void events.push({ ...event }));
  traceExit(trace, 7, result, reason);
  expect(events).toMatchObject([{ kind: 'exit', who: 'kernel', vcpu: 7, ...want }]);
  expect('errno' in events[0]!).toBe(result < 0);
});
