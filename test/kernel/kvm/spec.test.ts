/** The spec that both kernels must meet, on ours; test/interop/real-kvm.test.ts has it on the real one. */
import { createKernel } from '../../../src/kernel/kvm/index.ts';
import { dirtyLogSpec } from './spec-dirty-log.ts';
import { eventsSpec } from './spec-events.ts';
import { fieldRangeSpec } from './spec-field-range.ts';
import { guestMemfdSpec } from './spec-guest-memfd.ts';
import { localApicSpec } from './spec-local-apic.ts';
import { memoryRegionSpec } from './spec-memory-region.ts';
import { runSpec } from './spec-run.ts';
import { describeSpec, type Opener, Subject } from './spec-subject.ts';
import { vcpuStateSpec } from './spec-vcpu-state.ts';

const ours: Opener = {
  name: 'our kernel 7.2',
  open() {
    const kernel = createKernel({ memory: 64 * 1024 * 1024, timeslice: 100_000 });
    return new Subject(kernel.newProcess(), () => kernel.close());
  },
  lacks: () => undefined,
  differences: {},
};

for (const spec of [
  memoryRegionSpec,
  guestMemfdSpec,
  runSpec,
  dirtyLogSpec,
  vcpuStateSpec,
  eventsSpec,
  localApicSpec,
  fieldRangeSpec,
])
  describeSpec(spec, ours);
