/**
 * The guest `dirty` on a machine whose VMM logs its RAM, by KVM's bitmaps or its rings: after each of its phases the log must name exactly the pages that the
 * phase wrote to.
 */
import { afterEach, expect, it } from 'vitest';
import { createKernel, type Kernel } from '../../src/kernel/kvm/index.ts';
import { VmmError } from '../../src/vmm/error.ts';
import { createMachine, type Machine, type MachineOptions, type RunResult } from '../../src/vmm/machine.ts';
import { ioRegion } from '../../src/vmm/memory/memory-region.ts';
import { AREA_GFN, dirtyGuest, MEMORY, PAGES, PHASE_PORT, WRITTEN } from './dirty-guest.ts';

let kernel: Kernel;
let machine: Machine;
afterEach(() => {
  machine.close();
  expect(kernel.memory.leaks()).toEqual([]);
  kernel.close();
});

function boot(type: 'default' | 'sw-protected', dirtyRingSize: number): void {
  kernel = createKernel({ memory: 64 * 1024 * 1024, timeslice: 10_000 });
  const options: MachineOptions = {
    ...{ type, dirtyRingSize, memory: MEMORY, smp: 1, console: () => {} },
    ...dirtyGuest(),
  };
  machine = createMachine(kernel.newProcess(), options);
}

/** Runs the guest to its end; the pages of its area that each phase wrote to. */
async function run(): Promise<{ phases: number[][]; end: RunResult }> {
  const phases: number[][] = [];
  const port = ioRegion('phase', 1, {
    maxAccessSize: 1,
    read: () => 0,
    write(_offset, value) {
      phases[value] = machine.dirtyLog
        .snapshotAndClear()
        .map((page) => page - AREA_GFN)
        .filter((page) => page >= 0 && page < PAGES);
    },
  });
  machine.ports.add(port, PHASE_PORT);
  const end = await machine.run({ timeoutMs: 60_000 });
  return { phases, end };
}

it.each([
  ['bitmaps', 0, false],
  // Phase 1 writes to 342 pages; a ring counts as full with 64 entries left.
  ['rings of 256 entries', 256, true],
  ['rings of 65536 entries', 65536, false],
])('with %s the VMM finds the pages that each phase wrote to', async (_, entries, isFull) => {
  boot('default', entries);
  machine.dirtyLog.start();
  const { phases, end } = await run();
  expect(end).toMatchObject({ reason: 'debug-exit', code: 0 });
  expect(phases.slice(1)).toEqual(WRITTEN);
  expect(end.exits.dirty_ring_full > 0).toBe(isFull);
});

it('nothing is found that was written before the log was started, or after it was stopped', async () => {
  boot('default', 0);
  const { phases } = await run();
  expect(phases).toEqual([[], [], [], [], [], []]);
  machine.dirtyLog.start();
  machine.dirtyLog.stop();
  expect(machine.dirtyLog.snapshotAndClear()).toEqual([]);
});

it('RAM with a guest_memfd cannot be logged, and the error says which VM can be', () => {
  boot('sw-protected', 0);
  const refusal = 'dirty log: got RAM with a guest_memfd, which KVM does not log; want a VM of type default';
  expect(() => machine.dirtyLog.start()).toThrow(new VmmError(refusal));
  expect(machine.dirtyLog.snapshotAndClear()).toEqual([]);
  expect(machine.ram.dirtyLogMask).toBe(0);
});
