/**
 * The spec of test/kernel/kvm on the real kernel, where the machine has /dev/kvm and koffi is installed. A row with another outcome there
 * has its reason beside it.
 */
import { accessSync, constants, existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { release } from 'node:os';
import { describe } from 'vitest';
import { LinuxProcess } from '../../src/linux/process.ts';
import { dirtyLogSpec } from '../kernel/kvm/spec-dirty-log.ts';
import { eventsSpec } from '../kernel/kvm/spec-events.ts';
import { fieldRangeSpec } from '../kernel/kvm/spec-field-range.ts';
import { guestMemfdSpec } from '../kernel/kvm/spec-guest-memfd.ts';
import { localApicSpec } from '../kernel/kvm/spec-local-apic.ts';
import { memoryRegionSpec } from '../kernel/kvm/spec-memory-region.ts';
import { runSpec } from '../kernel/kvm/spec-run.ts';
import { describeSpec, type Opener, Subject } from '../kernel/kvm/spec-subject.ts';
import { vcpuStateSpec } from '../kernel/kvm/spec-vcpu-state.ts';

function missing(): string | undefined {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
  } catch {
    return 'no access to /dev/kvm';
  }
  try {
    createRequire(import.meta.url).resolve('koffi');
  } catch {
    return 'koffi is not installed';
  }
  return undefined;
}

const lack = missing();
if (lack !== undefined) console.log(`skipped: ${lack}`);

function capability(number: number): number {
  const process = new LinuxProcess();
  try {
    return process.openKvm().checkExtension(number);
  } finally {
    process.exit();
  }
}

const noSmm = {
  want: 'EINVAL',
  why: 'KVM_CAP_MULTI_ADDRESS_SPACE is 1: this kernel was built without CONFIG_KVM_SMM',
};

const noWindow = 'kvm_pvm runs CPL 0 in an emulator that does not leave when IF goes on';
const noDebugger = 'kvm_pvm runs CPL 0 in an emulator that knows no INT3 and no watchpoints';
/** What the paravirtual backend of this project's machines does otherwise. */
const pvmDifferences: Opener['differences'] = {
  'an NMI that comes in the handler of another waits for its IRET': {
    want: [2, 0xdfd8n, 5, 0xe000n, 2, 0x9001n],
    why: noWindow,
  },
  'an address that the process has not mapped is EFAULT, without the last exit’s reason': {
    want: [6, 6],
    why: 'kvm_pvm runs CPL 0 in an emulator, whose reads of what it cannot reach are MMIO',
  },
  'a step over OUT ends when user space has taken the value': {
    want: [2, 4, { exception: 1, pc: 0x8002n, dr6: 0xffff4ff0n }],
    why: 'kvm_pvm runs CPL 0 in an emulator that steps over the instruction behind OUT as well',
  },
  'INT3 goes to the debugger, at the instruction': { want: [17, 1, 1n, 0x8000n], why: noDebugger },
  'a breakpoint that the debugger hands on is the guest’s own INT3': {
    want: [17, 2, 0x8000n, 17, 0x8000n],
    why: noDebugger,
  },
  'a watchpoint stops behind the store': {
    want: [5, { exception: 0, pc: 0n, dr6: 0n }, 7n],
    why: noDebugger,
  },
};

function realKernel(): Opener {
  const types = capability(235);
  const oneAddressSpace = capability(118) <= 1;
  const isPvm = existsSync('/sys/module/kvm_pvm');
  const isSvm = existsSync('/sys/module/kvm_amd');
  const major = Number.parseInt(release(), 10);
  return {
    name: `Linux ${release()}`,
    open() {
      const process = new LinuxProcess();
      return new Subject(process, () => process.exit());
    },
    lacks(need) {
      if (need === 'interrupt windows') return isPvm ? noWindow : undefined;
      return (types & 2) !== 0 ? undefined : `KVM_CAP_VM_TYPES is ${types}: no VM type 1 (SW_PROTECTED)`;
    },
    differences: {
      ...(isPvm && pvmDifferences),
      ...(!isSvm && {
        'a shadow is told as both kinds': {
          want: 1,
          why: 'kvm_amd is not loaded, and SVM alone cannot tell STI from MOV SS',
        },
      }),
      ...(oneAddressSpace && {
        'address space 1': noSmm,
        'a second slot over it in the other address space': noSmm,
      }),
      ...(major < 7 && {
        'pages of a file bound twice': {
          want: 'EINVAL',
          why: 'EEXIST came after 6.18; facts have it for 7.2',
        },
      }),
    },
  };
}

/** The specs need guest_memfd with both flags. */
const specs =
  lack === undefined && capability(244) === 3
    ? [
        memoryRegionSpec,
        guestMemfdSpec,
        runSpec,
        dirtyLogSpec,
        vcpuStateSpec,
        eventsSpec,
        localApicSpec,
        fieldRangeSpec,
      ]
    : [];
if (lack === undefined && specs.length === 0)
  console.log('skipped: guest_memfd with MMAP and INIT_SHARED is not there');

describe.skipIf(specs.length === 0)('the real kernel', () => {
  const real = specs.length === 0 ? undefined : realKernel();
  for (const spec of specs) describeSpec(spec, real!);
});
