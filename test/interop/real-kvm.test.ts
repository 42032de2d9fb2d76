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
import { guestMemfdSpec } from '../kernel/kvm/spec-guest-memfd.ts';
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

function realKernel(): Opener {
  const types = capability(235);
  const oneAddressSpace = capability(118) <= 1;
  const isSvm = existsSync('/sys/module/kvm_amd');
  const major = Number.parseInt(release(), 10);
  return {
    name: `Linux ${release()}`,
    open() {
      const process = new LinuxProcess();
      return new Subject(process, () => process.exit());
    },
    lacks: () =>
      (types & 2) !== 0 ? undefined : `KVM_CAP_VM_TYPES is ${types}: no VM type 1 (SW_PROTECTED)`,
    differences: {
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
    ? [memoryRegionSpec, guestMemfdSpec, runSpec, dirtyLogSpec, vcpuStateSpec]
    : [];
if (lack === undefined && specs.length === 0)
  console.log('skipped: guest_memfd with MMAP and INIT_SHARED is not there');

describe.skipIf(specs.length === 0)('the real kernel', () => {
  const real = specs.length === 0 ? undefined : realKernel();
  for (const spec of specs) describeSpec(spec, real!);
});
