/** A VM reached by its ioctls alone, whose vCPUs' cores follow a script (vcpu-bench.ts). */
import { Trace } from '../../../src/base/trace.ts';
import { HostMemory } from '../../../src/hardware/memory/host-memory.ts';
import { HostTime } from '../../../src/kernel/kvm/host-time.ts';
import type { Kvm } from '../../../src/kernel/kvm/kvm.ts';
import { Kvm as KvmDevice } from '../../../src/kernel/kvm/kvm.ts';
import { type EarlyForm, kvmPolicy, type Personality } from '../../../src/kernel/kvm/policy.ts';
import type { Vcpu } from '../../../src/kernel/kvm/vcpu.ts';
import type { Vm } from '../../../src/kernel/kvm/vm.ts';
import { Process } from '../../../src/kernel/process.ts';
import { ScriptedCore, type Step } from './vcpu-bench.ts';

export interface KernelForm {
  readonly kernel: Personality;
  readonly early?: readonly EarlyForm[];
}

export class VmBench {
  readonly trace = new Trace();
  readonly memory = HostMemory.create({ bytes: 64 * 1024 * 1024, trace: this.trace });
  readonly process: Process;
  readonly kvm: Kvm;
  readonly vm: Vm;
  readonly vcpu: Vcpu;
  readonly cores: ScriptedCore[] = [];

  /** `type`: 0 default, 1 software-protected. */
  constructor(form: KernelForm, type: number, options: { gmemHuge?: boolean } = {}) {
    const host = {
      memory: this.memory,
      trace: this.trace,
      policy: kvmPolicy(form.kernel, form.early),
      timeslice: 0,
      time: new HostTime(),
      gmemHuge: options.gmemHuge ?? false,
      sev: undefined,
      createCore: () => {
        const core = new ScriptedCore(this.memory);
        this.cores.push(core);
        return core;
      },
    };
    this.process = new Process({
      memory: this.memory,
      openDevice: (opener) => new KvmDevice(host, opener),
    });
    this.kvm = this.process.openKvm() as Kvm;
    this.vm = this.kvm.createVm(type);
    this.vcpu = this.vm.createVcpu(0);
  }

  /** A slot of `pages` pages at `gpa`. flags 4: with a new guest_memfd. Returns its host address and file. */
  addSlot(request: { slot?: number; gpa: number; pages: number; flags: number; gmemFlags?: bigint }): {
    hva: number;
    fd: number;
  } {
    const bytes = request.pages * 4096;
    const hva = this.process.memory.mmap({ length: bytes, protection: 3, flags: 0x22 });
    const fd =
      (request.flags & 4) === 0
        ? -1
        : this.vm.createGuestMemfd({ size: BigInt(bytes), flags: request.gmemFlags ?? 0n });
    this.vm.setUserMemoryRegion2({
      slot: request.slot ?? 0,
      flags: request.flags,
      guestPhysAddr: BigInt(request.gpa),
      memorySize: BigInt(bytes),
      userspaceAddr: BigInt(hva),
      guestMemfdOffset: 0n,
      guestMemfd: Math.max(fd, 0),
    });
    return { hva, fd };
  }

  deleteSlot(slot = 0): void {
    this.vm.setUserMemoryRegion({
      slot,
      flags: 0,
      guestPhysAddr: 0n,
      memorySize: 0n,
      userspaceAddr: 0n,
    });
  }

  /** KVM_SET_MEMORY_ATTRIBUTES */
  setPrivate(gpa: number, pages: number, attributes: 0n | 8n = 8n): void {
    this.vm.setMemoryAttributes({
      address: BigInt(gpa),
      size: BigInt(pages * 4096),
      attributes,
      flags: 0n,
    });
  }

  /** KVM_RUN of a guest that does these steps; they must be used up. */
  run(...steps: Step[]): number {
    const { core } = this.vcpu;
    const { script } = core as ScriptedCore;
    script.push(...steps);
    const result = this.vcpu.run();
    if (script.length > 0) throw new Error('the guest was left before the end of the script');
    return result;
  }

  /** What the nested tables map at `gpa`. */
  mapped(gpa: number): { pfn: number; level: number; writable: boolean } | undefined {
    return this.vm.mmu.lookup((gpa / 4096) as never);
  }

  close(): void {
    this.process.exit();
    const leaks = this.memory.leaks();
    this.memory.close();
    if (leaks.length > 0) throw new Error(`frames left: ${JSON.stringify(leaks)}`);
  }
}
