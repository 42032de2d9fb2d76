/** What the ioctl fuzzer's calls are about: the fuzzed process, its VMs, the memory that it mapped, and a neighbour in it whom nothing may touch. */
import type { Kvm, KvmVcpu } from '../../../src/kernel/interface.ts';
import type { Vm } from '../../../src/kernel/kvm/vm.ts';
import type { Process } from '../../../src/kernel/process.ts';
import type { Bystander } from './fuzz-bystander.ts';
import type { FuzzLog } from './fuzz-log.ts';
import type { FuzzValues } from './fuzz-values.ts';

export const PAGE = 4096;
export const MAX_FILES = 24;

/** How often, and what. */
export type Action = readonly [weight: number, act: () => void];

export interface Machine {
  readonly vm: Vm;
  readonly vcpus: KvmVcpu[];
}

export class FuzzSubject {
  readonly values: FuzzValues;
  readonly log: FuzzLog;
  readonly process: Process;
  readonly neighbour: Bystander;
  readonly kvms: Kvm[] = [];
  readonly machines: Machine[] = [];
  /** Addresses of memory that was mapped once. */
  readonly addresses: number[] = [0x10_0000, 0x7000_0000_0000];

  constructor(values: FuzzValues, log: FuzzLog, process: Process, neighbour: Bystander) {
    this.values = values;
    this.log = log;
    this.process = process;
    this.neighbour = neighbour;
  }

  /** A descriptor of the process, one that is closed, or anything. */
  fd(): number {
    const values = this.values;
    return values.number(values.pick(this.process.files.open()));
  }
  /** One whose loss is no matter. */
  ownFd(): number {
    const fd = this.fd();
    return this.neighbour.fds.includes(fd) ? 4000 : fd;
  }
  address(): number {
    const values = this.values;
    return values.pick(this.addresses) + (values.oneIn(3) ? values.below(64) * PAGE : 0);
  }
  /** A range is none of the neighbour's memory. */
  spares(address: number, length: number): boolean {
    const { hva, end } = this.neighbour;
    return !(address < end && address + Math.max(length, 0) + 2 * PAGE > hva) || Number.isNaN(length);
  }
  /** A VM; one whose descriptor is closed is soon forgotten. */
  machine(): Machine | undefined {
    if (this.machines.length === 0) return undefined;
    const values = this.values;
    const at = values.below(this.machines.length);
    const machine = this.machines[at]!;
    if (!this.process.files.open().includes(machine.vm.fd) && values.oneIn(8)) {
      this.machines.splice(at, 1);
      for (const vcpu of machine.vcpus) this.log.call('close of a vCPU', '', () => vcpu.close());
    }
    for (const [index, vcpu] of machine.vcpus.entries())
      if (vcpu.kvmRun.bytes.byteOffset === 0 && values.oneIn(8)) machine.vcpus.splice(index, 1);
    return machine;
  }
  gpa(): bigint {
    const values = this.values;
    return values.mostly(values.pages(64), values.u64());
  }

  withVm(act: (vm: Vm, machine: Machine) => void): () => void {
    return () => {
      const machine = this.machine();
      if (machine !== undefined) act(machine.vm, machine);
    };
  }
  withVcpu(act: (vcpu: KvmVcpu, machine: Machine) => void): () => void {
    return () => {
      const machine = this.machine();
      if (machine !== undefined && machine.vcpus.length > 0) act(this.values.pick(machine.vcpus), machine);
    };
  }
  /** A call of a vCPU that takes one argument. */
  vcpuCall<T>(name: string, make: () => T, act: (vcpu: KvmVcpu, argument: T) => unknown): () => void {
    return this.withVcpu((vcpu) => {
      const argument = make();
      this.log.call(`vcpu ${vcpu.id} ${name}`, argument, () => act(vcpu, argument));
    });
  }
}
