/**
 * The guest `dirty` on a whole machine, its RAM logged by bitmap or by ring: after each of its phases the log must name exactly the pages
 * that the phase wrote to.
 */
import { afterEach, describe, expect, it } from 'vitest';
import { createKernel, type Kernel, type KvmVcpu, type KvmVm } from '../../../src/kernel/kvm/index.ts';
import type { Process } from '../../../src/kernel/process.ts';
import { createMachine, type Machine } from '../../../src/vmm/machine.ts';
import { ALL, AREA_GFN, dirtyGuest, MEMORY, PAGES, PHASE_PORT, WRITTEN } from '../../vmm/dirty-guest.ts';

let kernel: Kernel;
let machine: Machine;
afterEach(() => {
  machine.close();
  expect(kernel.memory.leaks()).toEqual([]);
  kernel.close();
});

/** What a VMM that tracks dirty pages adds to one that does not. */
interface Tracker {
  enable(vm: KvmVm): void;
  /** Pages of the area that were written to since the last call. */
  harvest(vm: KvmVm, vcpu: KvmVcpu): number[];
}

function bitmapTracker(options: bigint): Tracker {
  const bitmap = new Int32Array(MEMORY / 4096 / 32);
  return {
    enable: (vm) => vm.enableCap({ cap: 168, args: [options] }),
    harvest: (vm) => {
      vm.getDirtyLog({ slot: 0, bitmap });
      if (options !== 0n) vm.clearDirtyLog({ slot: 0, firstPage: 0n, numPages: MEMORY / 4096, bitmap });
      return ALL.filter((page) => ((bitmap[(AREA_GFN + page) >> 5]! >>> ((AREA_GFN + page) & 31)) & 1) === 1);
    },
  };
}

function ringTracker(bytes: bigint): Tracker {
  let next = 0;
  return {
    enable: (vm) => vm.enableCap({ cap: 223, args: [bytes] }),
    harvest: (vm, vcpu) => {
      const ring = vcpu.dirtyRing!;
      const found: number[] = [];
      for (; ring[next] === 1; next = (next + 4) % ring.length) {
        const page = ring[next + 2]! - AREA_GFN;
        if (page >= 0 && page < PAGES) found.push(page);
        ring[next] = 3;
      }
      vm.resetDirtyRings();
      return found;
    },
  };
}

/** Runs the guest to its end; the pages of each phase, and how often the ring was full. */
async function run(
  tracker: Tracker,
): Promise<{ phases: number[][]; full: number; code: number; text: string }> {
  kernel = createKernel({ memory: 64 * 1024 * 1024, timeslice: 10_000 });
  const process = kernel.newProcess();
  const phases: number[][] = [];
  let found = new Set<number>();
  let full = 0;
  let text = '';
  track(process, tracker, (vm, vcpu) => {
    const { kvmRun } = vcpu;
    for (const page of tracker.harvest(vm, vcpu)) found.add(page);
    if (kvmRun.exitReason === 31) {
      full++;
      return;
    }
    phases[kvmRun.ioValue(0)] = [...found].sort((a, b) => a - b);
    found = new Set();
  });
  machine = createMachine(process, {
    type: 'default',
    memory: MEMORY,
    smp: 1,
    ...dirtyGuest(),
    console: (bytes) => {
      text += new TextDecoder().decode(bytes);
    },
  });
  const { code } = await machine.run({ timeoutMs: 60_000 });
  return { phases, full, code, text };
}

/** Has the machine's slots log, and calls `stop` where the guest ends a phase or its ring is full. */
function track(process: Process, tracker: Tracker, stop: (vm: KvmVm, vcpu: KvmVcpu) => void): void {
  const openKvm = process.openKvm.bind(process);
  process.openKvm = () => {
    const kvm = openKvm();
    const createVm = kvm.createVm.bind(kvm);
    kvm.createVm = (type) => {
      const vm = createVm(type);
      tracker.enable(vm);
      // The VMM's own choice of how to log (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) does not count here.
      const enableCap = vm.enableCap.bind(vm);
      vm.enableCap = (options) => (options.cap === 168 ? undefined : enableCap(options));
      const setRegion = vm.setUserMemoryRegion2.bind(vm);
      vm.setUserMemoryRegion2 = (region) =>
        setRegion({ ...region, flags: region.memorySize === 0n ? region.flags : region.flags | 1 });
      const createVcpu = vm.createVcpu.bind(vm);
      vm.createVcpu = (id) => {
        const vcpu = createVcpu(id);
        const enter = vcpu.run.bind(vcpu);
        vcpu.run = () => {
          for (;;) {
            const result = enter();
            const { exitReason, ioPort } = vcpu.kvmRun;
            const isFull = result === 0 && exitReason === 31;
            if (isFull || (result === 0 && exitReason === 2 && ioPort === PHASE_PORT)) stop(vm, vcpu);
            if (!isFull) return result;
          }
        };
        return vcpu;
      };
      return vm;
    };
    return kvm;
  };
}

describe('the guest `dirty` writes to the pages that', () => {
  it.each([
    ['a bitmap', bitmapTracker(0n)],
    ['a bitmap with manual protection', bitmapTracker(1n)],
    ['a bitmap that begins all set', bitmapTracker(3n)],
    ['a ring of 256 entries', ringTracker(4096n)],
    ['a ring of 65536 entries', ringTracker(0x10_0000n)],
  ])('%s names', async (name, tracker) => {
    const { phases, full, code, text } = await run(tracker);
    expect({ code, text }).toEqual({
      code: 0,
      text: expect.stringMatching(/^dirty: 5 phases over 1024 pages/) as string,
    });
    expect(phases.slice(1)).toEqual(WRITTEN);
    // 341 pages in phase 1 are more than 192.
    expect(full > 0).toBe(name === 'a ring of 256 entries');
  });
});
