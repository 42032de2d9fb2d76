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
import {
  requireArray,
  requireBytes,
  requireFiles,
  requireInteger,
  requireKnownFields,
  requireText,
  textOf,
} from './base/option-checks.ts';
import { Trace } from './base/trace.ts';
import type { Chip } from './hardware/chip.ts';
import type { Process } from './kernel/interface.ts';
import { GuestMemfd } from './kernel/kvm/guest-memfd.ts';
import { createKernel, type Kernel } from './kernel/kvm/index.ts';
import type { Process as OwnProcess } from './kernel/process.ts';
import { LinuxProcess } from './linux/process.ts';
import { checkHostOptions, checkVmOptions, type HostOptions, KERNELS, type VmOptions } from './options.ts';
import { updateCertificates } from './vmm/confidential-guest/certificate-updater.ts';
import { type LaunchContents, WrongMeasurement } from './vmm/confidential-guest/sev-snp-guest.ts';
import type { DirtyLog } from './vmm/dirty-log.ts';
import type { Machine } from './vmm/machine.ts';
import { createMachine } from './vmm/machine.ts';
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
export {
  ACCELERATORS,
  EARLY_FORMS,
  type HostOptions,
  IRQCHIPS,
  KERNELS,
  VM_TYPES,
  type VmOptions,
} from './options.ts';
export type { DirtyLog } from './vmm/dirty-log.ts';
export type { SnpMachineOptions } from './vmm/machine.ts';
export type { ExitCounts, RunEnd, RunOptions } from './vmm/run-loop.ts';
export { type LaunchContents, updateCertificates, VmmError, WrongMeasurement };

/** Name of the process that holds the VMs. */
const VMM = 'vmm';
/** Its RLIMIT_NOFILE: up to the hard one (fs.nr_open), as VMMs raise it, for a descriptor of each vCPU. */
const HARD_FILE_LIMIT = 1_048_576;

/** Instructions after which the next vCPU has its turn and a time-out can be seen. */
const TIMESLICE = 250_000;

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
  readonly #onClose: (vm: Vm) => void;
  #launch: LaunchReport | undefined;

  /** Made by `Host.createVm`. */
  constructor(host: Host, options: VmOptions, from: { clock: Clock; onClose: (vm: Vm) => void }) {
    if (!(host instanceof Host))
      throw new RangeError('host: got something else, want a Host: its createVm makes VMs');
    checkVmOptions(options, host.chip);
    this.#host = host;
    this.#clock = from.clock;
    this.#onClose = from.onClose;
    const chunks: Uint8Array[] = [];
    this.#console = chunks;
    const { onConsole } = options;
    this.machine = createMachine(host.process, {
      type: options.type ?? 'sw-protected',
      memory: options.memory ?? 64 * MiB,
      smp: options.smp ?? 1,
      irqchip: options.irqchip ?? 'off',
      ...(options.vcpuSignature === undefined ? {} : { vcpuSignature: options.vcpuSignature }),
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

  /** Runs the guest until it ends or time is up; never throws for what the guest does. Rejects with RangeError for an option that cannot be. */
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
    this.#onClose(this);
    if (this.#host.processIsGone) return;
    try {
      this.machine.close();
    } catch (error) {
      // A listener ended the process meanwhile, and with it what was still to be closed.
      if (!this.#host.processIsGone) throw error;
    }
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

const CONTENTS: Record<keyof LaunchContents, true> = { pages: true, vmsas: true };
const PAGE: Record<keyof LaunchContents['pages'][number], true> = { gpa: true, bytes: true, type: true };

/** RangeError: what is no launch of an SNP guest. */
function requireContents(contents: LaunchContents): void {
  requireKnownFields('contents', contents, CONTENTS);
  requireArray('contents.pages', contents.pages, 'pages');
  for (const [index, page] of contents.pages.entries()) {
    const path = `contents.pages[${index}]`;
    requireKnownFields(path, page, PAGE);
    requireBytes(`${path}.bytes`, page.bytes);
    requireInteger(`${path}.type`, page.type, 1, PAGE_TYPE_NAMES.size);
  }
  requireFiles('contents.vmsas', contents.vmsas);
}

/** The launch digest of an SNP guest, 48 bytes. Rejects with RangeError: what is no launch. */
export async function launchMeasurement(contents: LaunchContents): Promise<Uint8Array> {
  requireContents(contents);
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
  /** HostOptions.chip */
  readonly chip: Chip | undefined;
  /** Those that are not closed. */
  readonly #vms = new Set<Vm>();
  #closed = false;

  /** Throws RangeError (an option that cannot be) or RealKernelUnavailable. */
  constructor(options: HostOptions = {}) {
    checkHostOptions(options);
    this.trace = options.trace ?? new Trace();
    this.seed = options.seed;
    this.chip = options.chip;
    this.#kernel = options.accel === 'kvm' ? realKernel() : ownKernel(options, this.trace);
    this.process = this.#kernel.process;
  }

  /** Throws RangeError (an option that cannot be), VmmError (an image or size that cannot be, or the host is closed) or LinuxError (a system call that failed); then nothing is left behind. */
  createVm(options: VmOptions): Vm {
    if (this.#closed) throw new VmmError('createVm: the host is closed');
    const vm = new Vm(this, options, { clock: this.#clock, onClose: (closed) => this.#vms.delete(closed) });
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

  /** Frames behind a guest_memfd of the VMM. RangeError: no number. LinuxError: EBADF. */
  gmemFrames(fd: number): GmemFrames {
    if (typeof fd !== 'number') throw new RangeError(`fd: got ${textOf(fd)}, want a file descriptor`);
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
    try {
      for (const vm of this.#vms) vm.close();
    } finally {
      this.#kernel.close();
    }
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

/** An image by the name of a guest that comes along (`hello`; `attester.fd` is its firmware image) or by path. Errors: the file system's; RangeError: no text. */
export async function readImage(nameOrPath: string): Promise<{ image: Uint8Array; imageName: string }> {
  requireText('image', nameOrPath);
  const own = prebuilt(nameOrPath.endsWith('.fd') ? nameOrPath : `${nameOrPath}.elf`);
  const path = /^[a-z0-9-]+(\.fd)?$/.test(nameOrPath) && existsSync(own) ? own : nameOrPath;
  return { image: await readFile(path), imageName: basename(path) };
}
