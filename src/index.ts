/**
 * The friendly library: a host, the VMs on it, and what happened to them.
 *
 *     using host = createHost({ memory: 512 * MiB, seed: 7 });
 *     using vm = host.createVm({ type: 'sw-protected', memory: 64 * MiB, ...(await readImage('conversions')) });
 *     const end = await vm.run({ timeoutMs: 10_000 });
 *
 * Exact ioctls are one level down: `host.process.openKvm()`, and `softcvm/kvm`.
 */
import { createHash } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type PrintedCertificate, printedEvidence } from './attest/console-evidence.ts';
import {
  type LaunchUpdate,
  launchDigest,
  PAGE_TYPE,
  type PageType,
  VMSA_GPA,
} from './attest/launch-digest.ts';
import { GiB, MiB } from './base/address.ts';
import { type Clock, platformClock } from './base/clock.ts';
import { seededEntropy } from './base/entropy.ts';
import { Trace } from './base/trace.ts';
import type { Chip } from './hardware/chip.ts';
import type { Process } from './kernel/interface.ts';
import { GuestMemfd } from './kernel/kvm/guest-memfd.ts';
import { createKernel, type EarlyForm, type Kernel, type Personality } from './kernel/kvm/index.ts';
import type { Process as OwnProcess } from './kernel/process.ts';
import { LinuxProcess } from './linux/process.ts';
import { updateCertificates } from './vmm/confidential-guest/certificate-updater.ts';
import { type LaunchContents, WrongMeasurement } from './vmm/confidential-guest/sev-snp-guest.ts';
import type { DirtyLog } from './vmm/dirty-log.ts';
import type { Machine } from './vmm/machine.ts';
import { createMachine, type SnpMachineOptions } from './vmm/machine.ts';
import type { ExitCounts, RunOptions } from './vmm/run-loop.ts';

export { GiB, KiB, MiB, PAGE_SIZE, TiB } from './base/address.ts';
export { LinuxError, NotImplementedError } from './base/errors.ts';
export type { TraceEvent, TraceListener } from './base/trace.ts';
export { Trace } from './base/trace.ts';
export type * from './kernel/interface.ts';
export { RealKernelUnavailable } from './linux/koffi.ts';

import { VmmError } from './vmm/error.ts';

export type { PrintedCertificate } from './attest/console-evidence.ts';
export { Chip, type ChipGeneration, type ChipOptions } from './hardware/chip.ts';
export type { DirtyLog } from './vmm/dirty-log.ts';
export type { SnpMachineOptions } from './vmm/machine.ts';
export type { ExitCounts, RunEnd, RunOptions } from './vmm/run-loop.ts';
export { type LaunchContents, updateCertificates, VmmError, WrongMeasurement };

/** Kernel versions that a host can have; the first is the default. */
export const KERNELS = ['7.2', '6.12'] as const satisfies readonly Personality[];
/** Interfaces that can be had in the form in which they were first proposed. */
export const EARLY_FORMS = ['private-fault', 'certs'] as const satisfies readonly EarlyForm[];

/** Name of the process that holds the VMs. */
const VMM = 'vmm';
/** Its RLIMIT_NOFILE: up to the hard one (fs.nr_open), as VMMs raise it, for a descriptor of each vCPU. */
const HARD_FILE_LIMIT = 1_048_576;

/** Instructions after which the next vCPU has its turn and a time-out can be seen. */
const TIMESLICE = 250_000;

/** Kernels that can run a VM; the first is the default. */
export const ACCELERATORS = ['softcvm', 'kvm'] as const;

/** Kinds of VM; the first is the default. */
export const VM_TYPES = ['sw-protected', 'default', 'sev-snp'] as const;
/** Where local APICs are, the default first. */
export const IRQCHIPS = ['off', 'split'] as const;

/** For callers that no type checker watches. */
function requireOneOf(option: string, got: unknown, want: readonly string[]): void {
  if (got !== undefined && !want.includes(got as string))
    throw new VmmError(`${option}: got ${String(got)}, want ${want.join(' or ')}`);
}

function requireSeed(seed: number | undefined): void {
  if (seed !== undefined && (!Number.isInteger(seed) || seed < 0 || seed >= 2 ** 32))
    throw new VmmError(`seed: got ${seed}, want an integer from 0 to ${2 ** 32 - 1}`);
}

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
  /** `split`: local APICs in the kernel, as QEMU's kernel-irqchip=split. Default off: there are none. */
  readonly irqchip?: 'split' | 'off';
  /** A static ELF64 file, or a flat binary if `imageName` ends in `.bin`; see `readImage`. */
  readonly image: Uint8Array;
  /** For messages. */
  readonly imageName?: string;
  /** Entries of each vCPU's dirty ring, a power of two, for `Vm.dirtyLog`; absent: KVM's bitmaps. */
  readonly dirtyRingSize?: number;
  /** Gets what the guest writes to its console, as it comes. */
  readonly onConsole?: (text: Uint8Array) => void;
  /** Where the shared side of RAM comes from. Default: anonymous memory. */
  readonly backend?: { kind: 'anonymous' } | { kind: 'memfd' } | { kind: 'file'; path: string };
}

/** Why a run ended, and what happened until then. */
export interface RunReport {
  readonly exit: {
    /** `shutdown`: a triple fault, or a reset of a machine that cannot be reset. `error`: `message` says which. */
    readonly reason: 'debug-exit' | 'hlt' | 'shutdown' | 'timeout' | 'error';
    /** The guest's byte; 0 after hlt, 124 after a timeout, 125 after shutdown or error. */
    readonly code: number;
    readonly message?: string;
  };
  /** What the guest wrote to its console. */
  readonly console: string;
  /** Instructions retired by all vCPUs; a rep string instruction counts one. NaN on the real kernel, as are numbers of frames. */
  readonly instructions: number;
  readonly exits: ExitCounts;
  readonly memory: MemoryReport;
  readonly wallMs: number;
  /** Of an SNP guest. */
  readonly launch?: LaunchReport;
  /** The attestation report that the guest printed (`SNP-REPORT <hex>`), not verified. */
  readonly report?: Uint8Array;
  /** The certificates that it printed (`SNP-CERTIFICATES <hex>`). */
  readonly certificates?: readonly PrintedCertificate[];
}

export interface LaunchReport {
  /** The launch digest that a report of this guest must show: computed from what the VMM gave to firmware, 48 bytes. */
  readonly measurement: Uint8Array;
  /** Pages that were added, VMSAs not counted. */
  readonly pages: number;
  /** The guest policy. */
  readonly policy: bigint;
}

export interface MemoryReport {
  /** Pages of RAM with the attribute PRIVATE. */
  readonly privatePages: number;
  /** Frames that guest_memfd files hold. */
  readonly privateFrames: number;
  /** Frames that the VMM's memory and shared memory objects hold. */
  readonly sharedFrames: number;
  /** Of the private frames, those that belong to folios of 2 MiB. */
  readonly hugeFrames: number;
  /** Changes of a page between private and shared since the first entry; out and back counts two. */
  readonly conversions: number;
}

/** A VM on a host, ready to enter its image. */
export class Vm {
  readonly machine: Machine;
  readonly #host: Host;
  readonly #clock: Clock;
  readonly #console: Uint8Array[];
  #launch: LaunchReport | undefined;

  /** Made by `Host.createVm`. */
  constructor(host: Host, options: VmOptions, clock: Clock) {
    this.#host = host;
    this.#clock = clock;
    requireOneOf('type', options.type, VM_TYPES);
    requireOneOf('irqchip', options.irqchip, IRQCHIPS);
    if (!(options.image instanceof Uint8Array))
      throw new VmmError(`image: got ${typeof options.image}, want a Uint8Array`);
    const chunks: Uint8Array[] = [];
    this.#console = chunks;
    const { onConsole } = options;
    this.machine = createMachine(host.process, {
      type: options.type ?? 'sw-protected',
      memory: options.memory ?? 64 * MiB,
      smp: options.smp ?? 1,
      irqchip: options.irqchip ?? 'off',
      image: options.image,
      imageName: options.imageName ?? 'image',
      bootStub: readFileSync(prebuilt('boot.bin')),
      trace: host.trace,
      ...(options.snp === undefined ? {} : { snp: options.snp }),
      console(bytes) {
        chunks.push(bytes);
        onConsole?.(bytes);
      },
      ...(options.backend === undefined ? {} : { backend: options.backend }),
      ...(options.dirtyRingSize === undefined ? {} : { dirtyRingSize: options.dirtyRingSize }),
      // Another stream than the kernel's.
      ...(host.seed === undefined ? {} : { turns: seededEntropy(~host.seed) }),
    });
  }

  /** Which pages of RAM the guest writes to; a VM of type `default`, whose RAM has no guest_memfd. */
  get dirtyLog(): DirtyLog {
    return this.machine.dirtyLog;
  }

  /** Instructions that all vCPUs retired so far. */
  get instructions(): number {
    return this.machine.vcpus.reduce((sum, vcpu) => sum + vcpu.instructions, 0);
  }

  /** Runs the guest until it ends or time is up; never throws for what the guest does. */
  async run(options: RunOptions = {}): Promise<RunReport> {
    this.#launch ??= await launchReport(this.machine, this.#host.process);
    const start = this.#clock.now();
    const end = await this.machine.run(options);
    const console = Buffer.concat(this.#console).toString('utf8');
    return {
      exit: {
        reason: end.reason,
        code: end.code,
        ...(end.message === undefined ? {} : { message: end.message }),
      },
      console,
      instructions: end.instructions,
      exits: end.exits,
      memory: {
        privatePages: end.privatePages,
        privateFrames: this.#gmemFrames.all,
        sharedFrames: this.#host.sharedFrames,
        hugeFrames: this.#gmemFrames.huge,
        conversions: end.conversions,
      },
      wallMs: (this.#clock.now() - start) / 1e6,
      ...(this.#launch === undefined ? {} : { launch: this.#launch, ...printedEvidence(console) }),
    };
  }

  /** Frames of RAM's guest_memfd, if it has one. */
  get #gmemFrames(): GmemFrames {
    const fd = this.machine.ram.ramBlock?.guestMemfd ?? -1;
    return fd < 0 ? { all: 0, huge: 0 } : this.#host.gmemFrames(fd);
  }

  close(): void {
    if (!this.#host.processIsGone) this.machine.close();
  }
  [Symbol.dispose](): void {
    this.close();
  }
}

const PAGE_TYPE_NAMES = new Map<number, PageType>(
  Object.entries(PAGE_TYPE).map(([name, type]) => [type, name as PageType]),
);

/** Before the guest has run. Undefined: it is no SNP guest. */
async function launchReport(
  { snp, launchedPages }: Machine,
  process: Process,
): Promise<LaunchReport | undefined> {
  if (snp === undefined) return undefined;
  const measurement = await launchMeasurement(snp.contents(process));
  return { measurement, pages: launchedPages, policy: snp.policy };
}

/** The launch digest of an SNP guest, 48 bytes. */
export async function launchMeasurement(contents: LaunchContents): Promise<Uint8Array> {
  const pages = contents.pages.map(
    ({ gpa, bytes, type }): LaunchUpdate => ({
      ...{ type: PAGE_TYPE_NAMES.get(type)!, gpa, size: bytes.length, bytes, label: 'page' },
    }),
  );
  const vmsas = contents.vmsas.map(
    (bytes): LaunchUpdate => ({ type: 'vmsa', gpa: VMSA_GPA, size: bytes.length, bytes, label: 'VMSA' }),
  );
  const sha384 = (bytes: Uint8Array): Uint8Array => createHash('sha384').update(bytes).digest();
  return await launchDigest([...pages, ...vmsas], { sha384 });
}

interface GmemFrames {
  readonly all: number;
  readonly huge: number;
}

/** What a host asks of the kernel that it runs on. */
interface HostKernel {
  readonly process: Process;
  usage(): ReadonlyMap<string, number>;
  sharedFrames(): number;
  gmemFrames(fd: number): GmemFrames;
  /** The process has ended, and with it all that it held. */
  isGone(): boolean;
  close(): void;
}

/** Throws RangeError: a size of host memory that cannot be. */
function ownKernel(options: HostOptions, trace: Trace): HostKernel {
  const kernel: Kernel = createKernel({
    memory: options.memory ?? GiB,
    kernel: options.kernel ?? KERNELS[0],
    early: options.early ?? [],
    gmemHuge: options.gmemFolio === '2M',
    timeslice: TIMESLICE,
    ...(options.seed === undefined ? {} : { turns: seededEntropy(options.seed) }),
    trace,
    ...(options.chip === undefined ? {} : { chip: options.chip }),
    ...(options.seed === undefined ? {} : { entropy: seededEntropy(options.seed) }),
  });
  const process: OwnProcess = kernel.newProcess(VMM, { fileLimit: HARD_FILE_LIMIT });
  const usage = () => kernel.memory.usage();
  return {
    process,
    usage,
    sharedFrames: () => (usage().get(`process ${VMM}`) ?? 0) + (usage().get('shmem') ?? 0),
    gmemFrames(fd) {
      if (process.isGone) return { all: 0, huge: 0 };
      const file = process.files.get(fd).operations;
      return file instanceof GuestMemfd ? file.frames : { all: 0, huge: 0 };
    },
    isGone: () => process.isGone,
    close: () => kernel.close(),
  };
}

/** Throws RealKernelUnavailable. */
function realKernel(): HostKernel {
  const process = new LinuxProcess();
  return {
    process,
    usage: () => new Map(),
    sharedFrames: () => Number.NaN,
    gmemFrames: () => ({ all: Number.NaN, huge: Number.NaN }),
    isGone: () => process.isGone,
    close: () => process.exit(),
  };
}

/** A host: silicon with memory, a Linux kernel, and one process on it, the VMM. */
export class Host {
  readonly trace: Trace;
  /** The VMM's. */
  readonly process: Process;
  readonly #kernel: HostKernel;
  readonly #clock: Clock = platformClock();
  /** HostOptions.seed */
  readonly seed: number | undefined;
  readonly #vms = new Set<Vm>();
  #closed = false;

  /** Throws VmmError (an option that cannot be), RangeError (a size of host memory that cannot be) or RealKernelUnavailable. */
  constructor(options: HostOptions = {}) {
    requireOneOf('accel', options.accel, ACCELERATORS);
    requireOneOf('kernel', options.kernel, KERNELS);
    for (const form of options.early ?? []) requireOneOf('early', form, EARLY_FORMS);
    requireOneOf('gmemFolio', options.gmemFolio, ['4K', '2M']);
    requireSeed(options.seed);
    this.trace = options.trace ?? new Trace();
    this.seed = options.seed;
    this.#kernel = options.accel === 'kvm' ? realKernel() : ownKernel(options, this.trace);
    this.process = this.#kernel.process;
  }

  /** Throws VmmError (an image or size that cannot be, or the host is closed) or LinuxError (a system call that failed); then nothing is left behind. */
  createVm(options: VmOptions): Vm {
    if (this.#closed) throw new VmmError('createVm: the host is closed');
    const vm = new Vm(this, options, this.#clock);
    this.#vms.add(vm);
    return vm;
  }

  /** Frames in use, by owner; empty where the kernel cannot tell. */
  usage(): ReadonlyMap<string, number> {
    return this.#kernel.usage();
  }

  /** Frames behind the VMM's own memory and shared memory objects. */
  get sharedFrames(): number {
    return this.#kernel.sharedFrames();
  }

  /** Frames behind a guest_memfd of the VMM. */
  gmemFrames(fd: number): GmemFrames {
    return this.#kernel.gmemFrames(fd);
  }

  /** The process has ended, and with it what its VMs held. */
  get processIsGone(): boolean {
    return this.#kernel.isGone();
  }

  /** Closes the VMs, ends the process and gives the memory back. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const vm of this.#vms) vm.close();
    this.#kernel.close();
  }
  [Symbol.dispose](): void {
    this.close();
  }
}

export const createHost = (options: HostOptions = {}): Host => new Host(options);

/** Where the guests that come along lie: beside package.json, whatever file this code was bundled into. */
const prebuilt = (name: string): string => {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'guests/prebuilt')) && dirname(folder) !== folder) folder = dirname(folder);
  return join(folder, 'guests/prebuilt', name);
};

/** An image by the name of a guest that comes along (`hello`; `attester.fd` is its firmware image) or by path. Errors: the file system's. */
export async function readImage(nameOrPath: string): Promise<{ image: Uint8Array; imageName: string }> {
  const own = prebuilt(nameOrPath.endsWith('.fd') ? nameOrPath : `${nameOrPath}.elf`);
  const path = /^[a-z0-9-]+(\.fd)?$/.test(nameOrPath) && existsSync(own) ? own : nameOrPath;
  return { image: await readFile(path), imageName: basename(path) };
}
