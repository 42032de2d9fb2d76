/** What the library is asked for, and the checks of it. Sizes and numbers that depend on the machine are checked where they are used. */
import {
  isObject,
  requireArray,
  requireBytes,
  requireInteger,
  requireKind,
  requireKnownFields,
  requireNumber,
  requireOneOf,
  requireText,
  textOf,
} from './base/option-checks.ts';
import { Trace } from './base/trace.ts';
import { Chip } from './hardware/chip.ts';
import type { EarlyForm, Personality } from './kernel/kvm/index.ts';
import type { CertificateOptions } from './vmm/confidential-guest/certificate-source.ts';
import { GUEST_DATA_BYTES } from './vmm/loaders/snp-boot.ts';
import type { SnpMachineOptions } from './vmm/machine.ts';

/** Kernel versions that a host can have; the first is the default. */
export const KERNELS = ['7.2', '6.12'] as const satisfies readonly Personality[];
/** Interfaces that can be had in the form in which they were first proposed. */
export const EARLY_FORMS = ['private-fault', 'certs'] as const satisfies readonly EarlyForm[];

/** Kernels that can run a VM; the first is the default. */
export const ACCELERATORS = ['softcvm', 'kvm'] as const;

/** Kinds of VM; the first is the default. */
export const VM_TYPES = ['sw-protected', 'default', 'sev-snp'] as const;
/** Where local APICs are, the default first. */
export const IRQCHIPS = ['off', 'split'] as const;

export interface HostOptions {
  /**
   * `softcvm`: the kernel and the cores of this project. `kvm`: the real Linux underneath with its /dev/kvm, as far as that one
   * goes; it needs the package koffi, and has none of the options below but `trace`.
   */
  readonly accel?: (typeof ACCELERATORS)[number];
  /** Bytes of host RAM, 1 MiB to 4 GiB, whole pages; lazily backed. Default 1 GiB. */
  readonly memory?: number;
  readonly kernel?: Personality;
  readonly early?: readonly (typeof EARLY_FORMS)[number][];
  /**
   * With a seed, a run repeats byte for byte, and how long each turn of a vCPU is follows from it: another seed, another interleaving. Without
   * one all turns are alike. An integer from 0 to 2^32 − 1. Time is counted in instructions, so that runs repeat without one too, unless a time-out ends them.
   */
  readonly seed?: number;
  /** `2M`: guest_memfd takes its memory in folios of 2 MiB. Default 4K, as Linux does. */
  readonly gmemFolio?: '4K' | '2M';
  readonly trace?: Trace;
  /** The machine's chip, with its secure processor; absent: a machine without SEV. */
  readonly chip?: Chip;
}

export interface VmOptions {
  /** `sw-protected`, the default: RAM is private from the start. `sev-snp`: an SNP guest, on a host with a chip. */
  readonly type?: (typeof VM_TYPES)[number];
  /** What an SNP guest is launched with; QEMU's names. */
  readonly snp?: SnpMachineOptions;
  /** Bytes of RAM, whole pages. Default 64 MiB. */
  readonly memory?: number;
  /** Number of vCPUs. All enter at the entry point; with `irqchip: 'split'` the first does, and starts the others by INIT and SIPI. Default 1. */
  readonly smp?: number;
  /** CPUID 1 EAX of the vCPUs, which the measurement of firmware holds. Default: the chip's own. `VCPU_TYPES` of `softcvm/attest` has those of QEMU's types. */
  readonly vcpuSignature?: number;
  /** `split`: local APICs in the kernel, as QEMU's kernel-irqchip=split. Default off: there are none. */
  readonly irqchip?: 'split' | 'off';
  /** A static ELF64 file, or a flat binary if `imageName` ends in `.bin`; see `readImage`. */
  readonly image: Uint8Array;
  /** For messages. */
  readonly imageName?: string;
  /** Entries of each vCPU's dirty ring, a power of two from 256, for `Vm.dirtyLog` of a VM of type `default`; absent or 0: KVM's bitmaps. */
  readonly dirtyRingSize?: number;
  /** Gets what the guest writes to its console, as it comes. */
  readonly onConsole?: (text: Uint8Array) => void;
  /** Where the shared side of RAM comes from. Default: anonymous memory. */
  readonly backend?: { kind: 'anonymous' } | { kind: 'memfd' } | { kind: 'file'; path: string };
}

const HOST_OPTIONS: Record<keyof HostOptions, true> = {
  ...{ accel: true, memory: true, kernel: true, early: true },
  ...{ seed: true, gmemFolio: true, trace: true, chip: true },
};

const VM_OPTIONS: Record<keyof VmOptions, true> = {
  ...{ type: true, snp: true, memory: true, smp: true, vcpuSignature: true, irqchip: true },
  ...{ image: true, imageName: true, dirtyRingSize: true, onConsole: true, backend: true },
};

const SNP_OPTIONS: Record<keyof SnpMachineOptions, true> = {
  ...{ guest: true, cBit: true, certificates: true, guestData: true, kernel: true },
};

const CERTIFICATE_OPTIONS: Record<keyof CertificateOptions, true> = { path: true, locking: true, busy: true };

const U32 = 2 ** 32 - 1;

/** Throws RangeError: an option that is none, or cannot be what it is. */
export function checkHostOptions(options: HostOptions): void {
  requireKnownFields('host', options, HOST_OPTIONS);
  const { accel, memory, kernel, early = [], gmemFolio, seed, trace, chip } = options;
  if (accel !== undefined) requireOneOf('accel', accel, ACCELERATORS);
  if (accel === 'kvm') refuseOptionsOfOurKernel(options);
  requireNumber('memory', memory, 'bytes');
  if (kernel !== undefined) requireOneOf('kernel', kernel, KERNELS);
  requireArray('early', early, 'forms');
  for (const form of early) requireOneOf('early', form, EARLY_FORMS);
  if (gmemFolio !== undefined) requireOneOf('gmemFolio', gmemFolio, ['4K', '2M']);
  if (seed !== undefined) requireInteger('seed', seed, 0, U32);
  requireKind('trace', trace, (value) => value instanceof Trace, 'a Trace');
  requireKind('chip', chip, (value) => value instanceof Chip, 'a Chip');
}

/** What the real kernel cannot be told. */
function refuseOptionsOfOurKernel({ accel, trace, ...ours }: HostOptions): void {
  for (const [option, got] of Object.entries(ours))
    if (got !== undefined)
      throw new RangeError(
        `${option}: got it with accel ${accel}, want accel softcvm: the real kernel has no such option`,
      );
}

/** Throws RangeError: an option that is none, or cannot be what it is. `chip` is the host's. */
export function checkVmOptions(options: VmOptions, chip: Chip | undefined): void {
  requireKnownFields('vm', options, VM_OPTIONS);
  const { type = VM_TYPES[0], irqchip, image, imageName, onConsole } = options;
  requireOneOf('type', type, VM_TYPES);
  requireNumber('memory', options.memory, 'bytes');
  requireNumber('smp', options.smp, 'vCPUs');
  if (irqchip !== undefined) requireOneOf('irqchip', irqchip, IRQCHIPS);
  requireBytes('image', image);
  if (options.vcpuSignature !== undefined) requireInteger('vcpuSignature', options.vcpuSignature, 0, U32);
  requireKind('imageName', imageName, (value) => typeof value === 'string', 'a string');
  if (options.snp !== undefined) {
    requireKnownFields('snp', options.snp, SNP_OPTIONS);
    checkSnpOptions(options.snp, chip);
    if (type !== 'sev-snp') throw new RangeError(`snp: got it with type ${type}, want type sev-snp`);
  }
  requireKind('onConsole', onConsole, (value) => typeof value === 'function', 'a function');
  checkDirtyRing(options.dirtyRingSize, type);
  if (options.backend !== undefined) checkBackend(options.backend);
}

const KERNEL_FILES: Record<keyof NonNullable<SnpMachineOptions['kernel']>, true> = {
  ...{ kernel: true, initrd: true, append: true },
};

function checkKernelFiles(files: NonNullable<SnpMachineOptions['kernel']>): void {
  requireKnownFields('snp.kernel', files, KERNEL_FILES);
  requireBytes('snp.kernel.kernel', files.kernel);
  if (files.initrd !== undefined) requireBytes('snp.kernel.initrd', files.initrd);
  if (files.append !== undefined) requireText('snp.kernel.append', files.append);
}

/** Of a page table entry. */
const LAST_BIT = 63;

/** Entries of the least ring: a page of them (KVM_ENABLE_CAP of KVM_CAP_DIRTY_LOG_RING). */
const LEAST_RING = 256;

function checkDirtyRing(size: unknown, type: NonNullable<VmOptions['type']>): void {
  if (size === undefined || size === 0) return;
  const isPowerOfTwo = Number.isSafeInteger(size) && Math.log2(size as number) % 1 === 0;
  if (!isPowerOfTwo || (size as number) < LEAST_RING)
    throw new RangeError(`dirtyRingSize: got ${textOf(size)}, want a power of two from ${LEAST_RING}`);
  if (type !== 'default')
    throw new RangeError(
      `dirtyRingSize: got ${String(size)} with type ${type}, want type default: RAM with a guest_memfd has no dirty log`,
    );
}

function checkBackend(backend: NonNullable<VmOptions['backend']>): void {
  if (typeof backend !== 'object' || backend === null || backend.kind !== 'file') {
    requireKnownFields('backend', backend, { kind: true });
    return;
  }
  requireKnownFields('backend', backend, { kind: true, path: true });
  if (typeof backend.path !== 'string' || backend.path === '')
    throw new RangeError(`backend.path: got ${textOf(backend.path)}, want the name of a file`);
}

function checkSnpOptions(options: SnpMachineOptions, chip: Chip | undefined): void {
  const { guest, cBit, certificates, guestData, kernel } = options;
  requireKind('snp.guest', guest, isObject, 'an object');
  if (cBit !== undefined) requireInteger('snp.cBit', cBit, 0, LAST_BIT);
  const { cBit: want = cBit } = chip?.personality ?? {};
  if (cBit !== undefined && cBit !== want)
    throw new RangeError(`snp.cBit: got ${cBit}, want ${want}, as the chip has it`);
  if (kernel !== undefined) checkKernelFiles(kernel);
  requireKind('snp.guestData', guestData, (value) => value instanceof Uint8Array, 'a Uint8Array');
  if (guestData !== undefined && guestData.length > GUEST_DATA_BYTES)
    throw new RangeError(`snp.guestData: got ${guestData.length} bytes, want at most ${GUEST_DATA_BYTES}`);
  if (certificates === undefined) return;
  requireKnownFields('snp.certificates', certificates, CERTIFICATE_OPTIONS);
  const { path, locking, busy } = certificates;
  requireKind('snp.certificates.path', path, (value) => typeof value === 'string', 'a string');
  if (locking !== undefined) requireOneOf('snp.certificates.locking', locking, ['shared', 'off']);
  requireKind('snp.certificates.busy', busy, (value) => typeof value === 'function', 'a function');
}
