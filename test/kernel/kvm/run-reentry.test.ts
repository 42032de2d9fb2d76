/** What a listener of the trace does in the middle of KVM_RUN, on the one thread that there is: each run is left consistent, and no frame leaks. */
import { describe, expect, it } from 'vitest';
import type { TraceEvent } from '../../../src/base/trace.ts';
import { createKernel } from '../../../src/kernel/kvm/index.ts';

const HLT = 0xf4;

/** A vCPU in real mode at a HLT at 0, and what `act` does at the event number `at` of its first KVM_RUN. */
function runWith(at: number, act: (bench: Bench, event: TraceEvent) => void): Bench & { result: unknown } {
  const kernel = createKernel({ memory: 64 << 20 });
  const process = kernel.newProcess();
  const vm = process.openKvm().createVm(0);
  const hva = process.memory.mmap({ length: 0x1_0000, protection: 3, flags: 0x22 });
  process.memory.write(hva, Uint8Array.of(HLT));
  vm.setUserMemoryRegion2({
    slot: 0,
    flags: 0,
    guestPhysAddr: 0n,
    memorySize: 0x1_0000n,
    userspaceAddr: BigInt(hva),
    guestMemfdOffset: 0n,
    guestMemfd: 0,
  });
  const vcpu = vm.createVcpu(0);
  const sregs = vcpu.getSregs();
  vcpu.setSregs({ ...sregs, cs: { ...sregs.cs, base: 0n, selector: 0 } });
  vcpu.setRegs({ ...vcpu.getRegs(), rip: 0n, rflags: 2n });
  const bench = { kernel, process, vm, vcpu, usage: () => Object.fromEntries(kernel.memory.usage()) };
  let count = 0;
  const stop = kernel.trace.listen((event) => {
    if (count++ === at) act(bench, event);
  });
  let result: unknown;
  try {
    result = vcpu.run();
  } catch (error) {
    result = error;
  }
  stop();
  expect(count).toBeGreaterThan(at);
  return { ...bench, result };
}

interface Bench {
  readonly kernel: ReturnType<typeof createKernel>;
  readonly process: ReturnType<ReturnType<typeof createKernel>['newProcess']>;
  readonly vm: ReturnType<ReturnType<Bench['process']['openKvm']>['createVm']>;
  readonly vcpu: ReturnType<Bench['vm']['createVcpu']>;
  usage(): Record<string, number>;
}

function expectNoLeak({ kernel, process, usage }: Bench): void {
  process.exit();
  expect(usage()).toEqual({});
  kernel.close();
}

/** The first events of that KVM_RUN, all before the guest halts. */
const EVENTS = [0, 1, 2, 3, 4, 5];

describe('in the middle of KVM_RUN', () => {
  it.each(EVENTS)('(event %i) a vCPU that is closed ends after the run', (at) => {
    const bench = runWith(at, ({ vcpu, vm }) => {
      vcpu.close();
      vm.close();
    });
    expect(bench.result).toBe(0);
    expect([bench.vcpu.kvmRun.exitReason, bench.vcpu.kvmRun.ifFlag]).toEqual([5, 0]);
    expect(bench.vcpu.run()).toBe(-9);
    expectNoLeak(bench);
  });

  it.each(EVENTS)('(event %i) a process that exits ends after the run, which is interrupted', (at) => {
    const exits: string[] = [];
    const bench = runWith(at, ({ kernel, process }) => {
      kernel.trace.listen(({ kind, what }) => kind === 'exit' && exits.push(what));
      process.exit();
    });
    expect([bench.result, ...exits]).toEqual([-4, 'intr']);
    expect(bench.usage()).toEqual({});
    bench.kernel.close();
  });

  it.each(EVENTS)('(event %i) a kernel that is closed ends after the run, with all its processes', (at) => {
    const bench = runWith(at, ({ kernel }) => {
      const other = kernel.newProcess('other');
      kernel.close();
      expect([other.isGone, kernel.memory.bytes.length]).toEqual([true, 64 << 20]);
    });
    expect([bench.result, bench.vcpu.kvmRun.exitReason]).toEqual([-4, 10]);
    expect(bench.kernel.memory.bytes.length).toBe(0);
    expect(bench.usage()).toEqual({});
    expect(bench.vcpu.run()).toBe(-9);
    bench.kernel.close();
  });

  it.each(EVENTS)(
    '(event %i) KVM_RUN and the other ioctls of that vCPU do not get the mutex: EINTR',
    (at) => {
      const seen: unknown[] = [];
      const bench = runWith(at, ({ vcpu }) => {
        seen.push(vcpu.run());
        try {
          vcpu.getRegs();
        } catch (error) {
          seen.push((error as { code: string }).code);
        }
      });
      expect(seen).toEqual([-4, 'EINTR']);
      expect(bench.result).toBe(0);
      expect(bench.vcpu.kvmRun.exitReason).toBe(5);
      expect(bench.vcpu.getRegs().rip).toBe(1n);
      expectNoLeak(bench);
    },
  );

  it.each(EVENTS)('(event %i) what a listener throws comes out of a run that went to its end', (at) => {
    const error = new Error('of the listener');
    const bench = runWith(at, () => {
      throw error;
    });
    expect(bench.result).toBe(error);
    expect(bench.vcpu.kvmRun.exitReason).toBe(5);
    expect(bench.vcpu.getRegs().rip).toBe(1n);
    expectNoLeak(bench);
  });
});
