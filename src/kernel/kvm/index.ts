/**
 * `softcvm/kvm`: the exact level. A kernel of a given version on a host with so much memory; processes on it open /dev/kvm and call
 * ioctls as methods (kernel/interface.ts).
 */

import { type Entropy, platformEntropy, requireEntropy } from '../../base/entropy.ts';
import {
  requireArray,
  requireInteger,
  requireKind,
  requireKnownFields,
  requireNumber,
  requireText,
} from '../../base/option-checks.ts';
import { Trace } from '../../base/trace.ts';
import { supportedPolicyBits } from '../../hardware/asp/launch.ts';
import { SecureProcessor } from '../../hardware/asp/secure-processor.ts';
import { Chip } from '../../hardware/chip.ts';
import { Core } from '../../hardware/cpu/core.ts';
import { HostMemory } from '../../hardware/memory/host-memory.ts';
import { Psp } from '../ccp/psp.ts';
import { Process, type ProcessOptions } from '../process.ts';
import { HostTime } from './host-time.ts';
import { Kvm } from './kvm.ts';
import { type EarlyForm, kvmPolicy, type Personality } from './policy.ts';
import { SevHost, type SevMachine } from './svm/sev/sev-host.ts';
import { checkTimeslice } from './timeslice.ts';
import type { VmHost } from './vm.ts';

export * from '../../abi/kvm.ts';
export { LinuxError, NotImplementedError } from '../../base/errors.ts';
export { Trace, type TraceEvent } from '../../base/trace.ts';
export * from '../interface.ts';
export { GuestMemfd, type PageFiller } from './guest-memfd.ts';
export { EARLY_FORMS, type EarlyForm, PERSONALITIES, type Personality } from './policy.ts';
export { Vcpu } from './vcpu.ts';
export { Vm } from './vm.ts';

export interface KernelOptions {
  /** Bytes of host RAM; 256 MiB when absent, 4 GiB at most. */
  readonly memory?: number;
  /** Which Linux; 7.2 when absent. */
  readonly kernel?: Personality;
  /** Interfaces in the form in which they were first proposed. */
  readonly early?: readonly EarlyForm[];
  /** guest_memfd in folios of 2 MiB where possible. */
  readonly gmemHuge?: boolean;
  /** Instructions after which KVM_RUN is interrupted (−EINTR), so that vCPUs take turns; 0, when absent: never. */
  readonly timeslice?: number;
  /** Draws the length of each timeslice, up to twice `timeslice`: another order of the vCPUs for each seed. Absent: all are alike. */
  readonly turns?: Entropy;
  readonly trace?: Trace;
  /** The machine's chip, with its secure processor; absent: a machine without SEV. */
  readonly chip?: Chip;
  /** Where the secure processor's keys come from; the platform's generator when absent. */
  readonly entropy?: Entropy;
}

const OPTIONS: Record<keyof KernelOptions, true> = {
  ...{ memory: true, kernel: true, early: true, gmemHuge: true, timeslice: true },
  ...{ turns: true, trace: true, chip: true, entropy: true },
};
const LIMITS: Record<keyof Pick<ProcessOptions, 'fileLimit'>, true> = { fileLimit: true };

/** RangeError: an option that is none, or of a wrong kind. Sizes and versions are checked where they are used. */
function checkOptions(options: KernelOptions): void {
  requireKnownFields('kernel', options, OPTIONS);
  const { memory, early = [], gmemHuge, turns, trace, chip, entropy } = options;
  requireNumber('memory', memory, 'bytes');
  requireArray('early', early, 'forms');
  requireKind('gmemHuge', gmemHuge, (value) => typeof value === 'boolean', 'true or false');
  requireEntropy('turns', turns);
  requireEntropy('entropy', entropy);
  requireKind('trace', trace, (value) => value instanceof Trace, 'a Trace');
  requireKind('chip', chip, (value) => value instanceof Chip, 'a Chip');
}

export class Kernel {
  readonly memory: HostMemory;
  readonly trace: Trace;
  /** Firmware itself, for who injects failures; the kernel's driver of it. */
  readonly secureProcessor: SecureProcessor | undefined;
  readonly psp: Psp | undefined;
  readonly #host: VmHost;
  readonly #processes = new Set<Process>();
  #closing = false;

  /** Throws RangeError: an option that is none, or cannot be what it is. */
  constructor(options: KernelOptions = {}) {
    checkOptions(options);
    const trace = options.trace ?? new Trace();
    const { chip, timeslice = 0, kernel = '7.2', early = [] } = options;
    checkTimeslice(timeslice);
    const policy = kvmPolicy(kernel, early);
    const memory = HostMemory.create({
      bytes: options.memory ?? 256 * 1024 * 1024,
      trace,
      rmp: chip !== undefined,
    });
    this.memory = memory;
    this.trace = trace;
    const time = new HostTime();
    if (chip !== undefined) {
      this.secureProcessor = new SecureProcessor({
        memory,
        chip,
        entropy: options.entropy ?? platformEntropy(),
        trace,
      });
      this.psp = new Psp(memory, this.secureProcessor);
      this.psp.initialise();
    }
    this.#host = {
      memory,
      trace,
      policy,
      timeslice,
      turns: options.turns,
      time,
      sev: this.psp === undefined ? undefined : new SevHost(this.psp, sevMachine(chip!)),
      gmemHuge: options.gmemHuge ?? false,
      createCore: (id) =>
        new Core({
          id,
          memory,
          trace,
          tsc: () => BigInt(time.now()),
          ...(chip === undefined ? {} : { personality: chip.personality }),
        }),
    };
  }

  /** `fileLimit`: its RLIMIT_NOFILE, 1024 when absent. Throws Error: the kernel is closed; RangeError: an argument of a wrong kind. */
  newProcess(name?: string, limits: Pick<ProcessOptions, 'fileLimit'> = {}): Process {
    if (name !== undefined) requireText('name', name);
    requireKnownFields('limits', limits, LIMITS);
    if (limits.fileLimit !== undefined) requireInteger('fileLimit', limits.fileLimit, 0);
    if (this.#closing) throw new Error('newProcess: the kernel is closed');
    const process = new Process({
      memory: this.memory,
      openDevice: (opener) => new Kvm(this.#host, opener),
      ...(this.psp === undefined ? {} : { psp: this.psp }),
      ...(name === undefined ? {} : { name }),
      onEnd: (ended) => this.#processEnded(ended),
      ...limits,
    });
    this.#processes.add(process);
    return process;
  }

  /** Ends every process and gives the host's memory back; from within a KVM_RUN, when that is over. */
  close(): void {
    this.#closing = true;
    for (const process of this.#processes) process.exit();
    this.#shutDown();
  }

  #processEnded(process: Process): void {
    this.#processes.delete(process);
    if (this.#closing) this.#shutDown();
  }

  /** Once the last process is gone. */
  #shutDown(): void {
    if (this.#processes.size > 0) return;
    this.psp?.shutDown();
    this.memory.close();
  }
}

/** As BIOS sets it: ASIDs below are for SEV-ES and SNP. */
const MIN_SEV_ASID = 100;

const sevMachine = ({ personality, firmware }: Chip): SevMachine => ({
  maxAsid: personality.maxAsid,
  minSevAsid: MIN_SEV_ASID,
  policyBits: supportedPolicyBits({ personality, firmware }),
  sevFeatures: personality.sevFeatures,
  cBit: personality.cBit,
  signature: personality.signature,
});

export const createKernel = (options?: KernelOptions): Kernel => new Kernel(options);
