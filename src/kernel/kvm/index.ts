/**
 * `softcvm/kvm`: the exact level. A kernel of a given version on a host with so much memory; processes on it open /dev/kvm and call
 * ioctls as methods (kernel/interface.ts).
 */
import { Trace } from '../../base/trace.ts';
import { Core } from '../../hardware/cpu/core.ts';
import { HostMemory } from '../../hardware/memory/host-memory.ts';
import { Process } from '../process.ts';
import { HostTime } from './host-time.ts';
import { Kvm } from './kvm.ts';
import { type EarlyForm, kvmPolicy, type Personality } from './policy.ts';
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
  readonly trace?: Trace;
}

export class Kernel {
  readonly memory: HostMemory;
  readonly trace: Trace;
  readonly #host: VmHost;
  readonly #processes = new Set<Process>();

  constructor(options: KernelOptions = {}) {
    const trace = options.trace ?? new Trace();
    const memory = HostMemory.create({ bytes: options.memory ?? 256 * 1024 * 1024, trace });
    this.memory = memory;
    this.trace = trace;
    const time = new HostTime();
    this.#host = {
      memory,
      trace,
      policy: kvmPolicy(options.kernel ?? '7.2', options.early ?? []),
      timeslice: options.timeslice ?? 0,
      time,
      gmemHuge: options.gmemHuge ?? false,
      createCore: (id) => new Core({ id, memory, trace, tsc: () => BigInt(time.now()) }),
    };
  }

  newProcess(name?: string): Process {
    const process = new Process({
      memory: this.memory,
      openDevice: (opener) => new Kvm(this.#host, opener),
      ...(name === undefined ? {} : { name }),
    });
    this.#processes.add(process);
    return process;
  }

  /** Ends every process and gives the host's memory back. */
  close(): void {
    for (const process of this.#processes) process.exit();
    this.#processes.clear();
    this.memory.close();
  }
}

export const createKernel = (options?: KernelOptions): Kernel => new Kernel(options);
