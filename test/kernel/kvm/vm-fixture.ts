/** A VM of a given kernel on a small host, whose vCPU's core follows a script; all is closed and checked for leaks after each test. */
import { afterEach, expect } from 'vitest';
import { Trace } from '../../../src/base/trace.ts';
import { HostMemory } from '../../../src/hardware/memory/host-memory.ts';
import type { UserMemoryRegion2 } from '../../../src/kernel/interface.ts';
import { GuestMemfd } from '../../../src/kernel/kvm/guest-memfd.ts';
import { HostTime } from '../../../src/kernel/kvm/host-time.ts';
import { Kvm } from '../../../src/kernel/kvm/kvm.ts';
import type { MemorySlot } from '../../../src/kernel/kvm/memory-slots.ts';
import { type EarlyForm, kvmPolicy, type Personality } from '../../../src/kernel/kvm/policy.ts';
import type { Vcpu } from '../../../src/kernel/kvm/vcpu.ts';
import type { Vm } from '../../../src/kernel/kvm/vm.ts';
import { Process } from '../../../src/kernel/process.ts';
import { HLT, nestedFault, ScriptedCore } from './vcpu-bench.ts';

export const DEFAULT = 0;
export const SW_PROTECTED = 1;
export const BOTH_KERNELS: Personality[] = ['6.12', '7.2'];

export interface VmOptions {
  readonly kernel?: Personality;
  readonly early?: readonly EarlyForm[];
  /** 0 default, 1 software-protected (when absent). */
  readonly type?: number;
  /** Host RAM; 16 MiB when absent. */
  readonly bytes?: number;
  readonly gmemHuge?: boolean;
  readonly fileLimit?: number;
}

const started: TestVm[] = [];

afterEach(() => {
  for (const { process, memory } of started.splice(0)) {
    process.exit();
    expect(memory.leaks()).toEqual([]);
    memory.close();
  }
});

export class TestVm {
  readonly trace = new Trace();
  readonly memory: HostMemory;
  readonly process: Process;
  readonly kvm: Kvm;
  readonly vm: Vm;
  #vcpu: Vcpu | undefined;

  constructor(options: VmOptions = {}) {
    this.memory = HostMemory.create({ bytes: options.bytes ?? 16 * 1024 * 1024, trace: this.trace });
    const host = {
      memory: this.memory,
      trace: this.trace,
      policy: kvmPolicy(options.kernel ?? '7.2', options.early),
      timeslice: 0,
      time: new HostTime(),
      gmemHuge: options.gmemHuge ?? false,
      sev: undefined,
      createCore: () => new ScriptedCore(this.memory),
    };
    this.process = new Process({
      memory: this.memory,
      openDevice: (opener) => new Kvm(host, opener),
      ...(options.fileLimit === undefined ? {} : { fileLimit: options.fileLimit }),
    });
    started.push(this);
    this.kvm = this.process.openKvm() as Kvm;
    this.vm = this.kvm.createVm(options.type ?? SW_PROTECTED);
  }

  get vcpu(): Vcpu {
    this.#vcpu ??= this.vm.createVcpu(0);
    return this.#vcpu;
  }

  /** KVM_SET_USER_MEMORY_REGION2 of slot 0: 16 pages at 2 MiB, at user address 0x7000_0020_0000, or as asked. */
  setRegion(request: Partial<UserMemoryRegion2> = {}): void {
    this.vm.setUserMemoryRegion2({
      slot: 0,
      flags: 0,
      guestPhysAddr: 0x20_0000n,
      memorySize: 0x1_0000n,
      userspaceAddr: 0x7000_0020_0000n,
      guestMemfdOffset: 0n,
      guestMemfd: 0,
      ...request,
    });
  }

  /** KVM_CREATE_GUEST_MEMFD of 64 KiB, or as asked. */
  createFile(size = 0x1_0000n, flags = 0n): number {
    return this.vm.createGuestMemfd({ size, flags });
  }

  /** A file and a slot that binds all of it. */
  addFileSlot(
    request: { slot?: number; gpa?: bigint; size?: bigint; fileFlags?: bigint; hva?: bigint } = {},
  ): { fd: number; file: GuestMemfd } {
    const { slot = 0, gpa = 0x20_0000n, size = 0x1_0000n, fileFlags = 0n } = request;
    const fd = this.createFile(size, fileFlags);
    const userspaceAddr = request.hva ?? 0x7000_0000_0000n + gpa;
    this.setRegion({ slot, flags: 4, guestPhysAddr: gpa, memorySize: size, userspaceAddr, guestMemfd: fd });
    return { fd, file: this.file(fd) };
  }

  file(fd: number): GuestMemfd {
    const { operations } = this.process.files.get(fd);
    if (!(operations instanceof GuestMemfd)) throw new Error(`${fd} is no guest_memfd`);
    return operations;
  }

  setAttributes(address: bigint, size: bigint, attributes: bigint): void {
    this.vm.setMemoryAttributes({ address, size, attributes, flags: 0n });
  }

  /** KVM_RUN of a guest that writes to `gpa` and halts: 0, or what KVM_RUN returned instead. */
  touch(gpa: number): number {
    const { script } = this.vcpu.core as ScriptedCore;
    script.push(nestedFault(gpa, 6), HLT);
    const result = this.vcpu.run();
    script.length = 0;
    return result;
  }

  /** KVM_RUN again, of a guest that waited for a page and halts when it has it. */
  goOn(): number {
    (this.vcpu.core as ScriptedCore).script.push(HLT);
    return this.vcpu.run();
  }

  /** Where the nested tables map `gpa`. */
  mapped(gpa: number): { pfn: number; level: number; writable: boolean } | undefined {
    return this.vm.mmu.lookup((gpa / 4096) as never);
  }

  /** The first word of the page that the guest sees at `gpa`. */
  guestWord(gpa: number): number {
    return this.memory.load32((this.mapped(gpa)!.pfn * 4096) as never);
  }

  setGuestWord(gpa: number, value: number): void {
    this.memory.store32((this.mapped(gpa)!.pfn * 4096) as never, value);
  }

  slot(id = 0, addressSpace = 0): MemorySlot | undefined {
    return this.vm.addressSpaces[addressSpace]!.byId(id);
  }

  /** Frames that files hold. */
  get fileFrames(): number {
    return this.memory.usage().get('guest_memfd') ?? 0;
  }
}

export const startVm = (options?: VmOptions): TestVm => new TestVm(options);
