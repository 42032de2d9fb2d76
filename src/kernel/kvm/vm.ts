/**
 * A VM: its ioctls, and what its vCPUs, slots and files share (Linux virt/kvm/kvm_main.c kvm_vm_ioctl, kvm_create_vm, kvm_destroy_vm;
 * arch/x86/kvm/x86.c kvm_vm_ioctl_enable_cap). It lives as long as its descriptor, a vCPU or a guest_memfd file of it does.
 */
import {
  GUEST_MEMFD_FLAG_INIT_SHARED,
  GUEST_MEMFD_FLAG_MMAP,
  KVM_CAP_DIRTY_LOG_RING,
  KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
  KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
  KVM_CAP_SPLIT_IRQCHIP,
  KVM_CAP_X2APIC_API,
  KVM_X86_SNP_VM,
  KVM_X86_SW_PROTECTED_VM,
} from '../../abi/kvm.ts';
import { kvm_enable_cap, kvm_irq_routing_entry, kvm_msi } from '../../abi/kvm-structs.ts';
import { checkEntries, checkLong, u32, u64 } from '../../abi/layout.ts';
import { membersOf } from '../../abi/member-names.ts';
import type { Gfn, Hva, Pfn } from '../../base/address.ts';
import type { Entropy } from '../../base/entropy.ts';
import { ERRNO, LinuxError, NotImplementedError } from '../../base/errors.ts';
import type { Trace } from '../../base/trace.ts';
import type { HostMemory } from '../../hardware/memory/host-memory.ts';
import { OpenFile } from '../files.ts';
import type {
  ClearDirtyLogRequest,
  DirtyLogRequest,
  GsiRoute,
  KvmVm,
  MsiMessage,
  MsrFilter,
  SevCommand,
  UserMemoryRegion,
  UserMemoryRegion2,
} from '../interface.ts';
import { READ_ACCESS, WRITE_ACCESS } from '../mm/page-table.ts';
import type { Process } from '../process.ts';
import { checkExtension, describeVmTypes, MAX_VCPU_IDS, MAX_VCPUS, vmTypes } from './capabilities.ts';
import { Descriptor } from './descriptor.ts';
import { clearDirtyLog, DirtyTracking, getDirtyLog, resetDirtyRings } from './dirty-log.ts';
import { GuestMemfd, type GuestMemfdVm, type SlotRange } from './guest-memfd.ts';
import type { HostTime } from './host-time.ts';
import { Invalidation } from './invalidation.ts';
import type { InterruptController } from './lapic/interrupt-controller.ts';
import { Irqchip } from './lapic/irqchip.ts';
import { MemoryAttributes, type MemoryAttributesRequest } from './memory-attributes.ts';
import { type MemorySlot, MemorySlots } from './memory-slots.ts';
import { type BackingPage, type FaultSlot, LEVEL_1G } from './mmu/guest-memory.ts';
import { Mmu } from './mmu/mmu.ts';
import { checkMsrFilter, MsrPermissions } from './msr-filter.ts';
import { guestMemfdFlagMask, type KvmPolicy } from './policy.ts';
import { type RegionVm, setUserMemoryRegion, setUserMemoryRegion2 } from './set-memory-region.ts';
import type { GuestCore } from './svm/guest-core.ts';
import { invalidatePages, maxMappingLevel, preparePage } from './svm/sev/gmem-hooks.ts';
import { checkSevCommand } from './svm/sev/sev-command.ts';
import type { SevHost } from './svm/sev/sev-host.ts';
import { refuseSevCommand, SevVm, type SevVmHost } from './svm/sev/sev-vm.ts';
import { RangeUnmapper } from './unmap-range.ts';
import { Vcpu, type VcpuVm } from './vcpu.ts';
import { VmCapabilities } from './vm-capabilities.ts';

const NO_BYTES = new Uint8Array(0);

/** What a host gives all of its VMs. */
export interface VmHost {
  readonly memory: HostMemory;
  readonly trace: Trace;
  readonly policy: KvmPolicy;
  /** Instructions until the VMM's thread gets a signal; 0: never. */
  readonly timeslice: number;
  /** Draws the length of each timeslice. */
  readonly turns?: Entropy | undefined;
  readonly gmemHuge: boolean;
  readonly time: HostTime;
  /** The machine's SEV; undefined where KVM has none. */
  readonly sev: SevHost | undefined;
  createCore(id: number): GuestCore;
}

export class Vm implements KvmVm, VcpuVm, RegionVm, GuestMemfdVm, SevVmHost {
  readonly type: number;
  readonly process: Process;
  readonly memory: HostMemory;
  readonly trace: Trace;
  readonly policy: KvmPolicy;
  readonly timeslice: number;
  readonly turns: Entropy | undefined;
  readonly time: HostTime;
  readonly gmemHuge: boolean;
  readonly hasPrivateMemory: boolean;
  readonly sev: SevVm | undefined;
  readonly addressSpaces: readonly MemorySlots[];
  readonly attributes = new MemoryAttributes();
  readonly dirtyTracking = new DirtyTracking();
  readonly capabilities = new VmCapabilities();
  readonly invalidation = new Invalidation();
  readonly mmu: Mmu;
  readonly #host: VmHost;
  readonly #descriptor: Descriptor;
  /** Descriptors of all vCPUs that were ever created, by id: a vCPU keeps its place until the VM ends. */
  readonly #vcpus = new Map<number, Descriptor>();
  /** vCPUs that are not closed. */
  readonly #open = new Set<Vcpu>();
  readonly #irqchip: Irqchip;
  readonly #unmapper: RangeUnmapper;
  #msrFilter: MsrPermissions | undefined;
  #bootCpuId = 0;
  #references = 1;

  /** Errors: EINVAL (type), EMFILE, ENOMEM. */
  constructor(host: VmHost, process: Process, type: number) {
    checkLong(type, 'KVM_CREATE_VM.type');
    if (type < 0 || type > KVM_X86_SNP_VM || ((vmTypes(host.sev !== undefined) >>> type) & 1) === 0)
      throw new LinuxError(
        'EINVAL',
        `VM type ${type}: this host has ${describeVmTypes(host.sev !== undefined)}`,
      );
    process.files.reserve();
    this.#host = host;
    this.type = type;
    this.process = process;
    this.memory = host.memory;
    this.trace = host.trace;
    this.policy = host.policy;
    this.timeslice = host.timeslice;
    this.turns = host.turns;
    this.time = host.time;
    this.gmemHuge = host.gmemHuge;
    this.hasPrivateMemory = type === KVM_X86_SW_PROTECTED_VM || type === KVM_X86_SNP_VM;
    this.sev = type === KVM_X86_SNP_VM ? new SevVm(this, host.sev!) : undefined;
    const count = this.hasPrivateMemory ? 1 : 2;
    this.addressSpaces = Array.from({ length: count }, () => new MemorySlots());
    this.mmu = new Mmu(host.memory, host.trace);
    this.#irqchip = new Irqchip(host.policy);
    this.#unmapper = new RangeUnmapper(this);
    process.memory.notifiers.register(this.#unmapper);
    this.#descriptor = new Descriptor(process.files, 'anon_inode:kvm-vm', () => this.release());
    if (this.trace.on) this.trace.emit({ kind: 'vm', who: 'kernel', what: 'vm-create', type });
  }

  get fd(): number {
    return this.#descriptor.fd;
  }

  /** The slots of address space 0, in which vCPUs run. */
  get slots(): MemorySlots {
    return this.addressSpaces[0]!;
  }

  get msrFilter(): MsrPermissions | undefined {
    return this.#msrFilter;
  }

  checkExtension(capability: number): number {
    this.#descriptor.check();
    checkLong(capability, 'KVM_CHECK_EXTENSION.cap');
    return checkExtension(capability, { policy: this.policy, hasSnp: this.#host.sev !== undefined }, this);
  }

  /** Errors: EINVAL, E2BIG. */
  enableCap({ cap, flags = 0, args = [] }: { cap: number; flags?: number; args?: readonly bigint[] }): void {
    this.#descriptor.check();
    kvm_enable_cap.check({ cap, flags, args, pad: NO_BYTES });
    const argument = args[0] ?? 0n;
    if (cap === KVM_CAP_DIRTY_LOG_RING || cap === KVM_CAP_DIRTY_LOG_RING_ACQ_REL) {
      // Linux does not look at the flags of these.
      this.dirtyTracking.enableRings(argument, this.#vcpus.size);
      return;
    }
    if (flags !== 0) throw new LinuxError('EINVAL', `KVM_ENABLE_CAP ${cap}: flags ${flags}, want 0`);
    if (cap === KVM_CAP_SPLIT_IRQCHIP) this.#irqchip.split(argument, this.#vcpus.size);
    else if (cap === KVM_CAP_X2APIC_API) this.#irqchip.enableX2apicApi(argument);
    else if (cap === KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) this.dirtyTracking.enableManualProtect(argument);
    else this.capabilities.enable(cap, argument);
  }

  /** Local APICs in the kernel, where KVM_CAP_SPLIT_IRQCHIP put them. */
  get interrupts(): InterruptController | undefined {
    return this.#irqchip.controller;
  }
  get bootCpuId(): number {
    return this.#bootCpuId;
  }

  createIrqchip(): void {
    this.#descriptor.check();
    throw new NotImplementedError(
      'PIC and IOAPIC in the kernel (KVM_CREATE_IRQCHIP); KVM_CAP_SPLIT_IRQCHIP is there',
    );
  }

  /** Errors: EBUSY (there are vCPUs), EINVAL (id). */
  setBootCpuId(id: number): void {
    this.#descriptor.check();
    checkLong(id, 'KVM_SET_BOOT_CPU_ID.id');
    if (this.#vcpus.size > 0) throw new LinuxError('EBUSY', 'KVM_SET_BOOT_CPU_ID: the VM has vCPUs');
    if (id < 0 || id > MAX_VCPU_IDS)
      throw new LinuxError('EINVAL', `KVM_SET_BOOT_CPU_ID: ${id}, want at most ${MAX_VCPU_IDS}`);
    this.#bootCpuId = id;
  }

  /** Errors: ENXIO without local APICs in the kernel. */
  irqLine({ irq, level }: { irq: number; level: number }): number {
    this.#descriptor.check();
    u32.check(irq, 'kvm_irq_level.irq');
    u32.check(level, 'kvm_irq_level.level');
    return this.#irqchip.setLine(irq, level);
  }

  /** Errors: EINVAL. */
  signalMsi(message: MsiMessage): number {
    this.#descriptor.check();
    kvm_msi.check(membersOf(message));
    return this.#irqchip.signalMsi(message);
  }

  /** Errors: EINVAL. */
  setGsiRouting({ routes, flags }: { routes: readonly GsiRoute[]; flags: number }): void {
    this.#descriptor.check();
    u32.check(flags, 'kvm_irq_routing.flags');
    checkEntries(routes, 'kvm_irq_routing.entries');
    for (const { msi, ...route } of routes)
      kvm_irq_routing_entry.check({ ...membersOf(msi), ...route, devid: 0 });
    this.#irqchip.setRoutes(routes, flags);
  }

  /** Errors: ENOTTY (no SEV here, or not a SEV guest), and the commands' own. */
  memoryEncryptOp(command: SevCommand | undefined): void {
    this.#descriptor.check();
    if (this.#host.sev === undefined)
      throw new LinuxError('ENOTTY', 'KVM_MEMORY_ENCRYPT_OP: KVM has no SEV on this machine');
    if (command === undefined) return;
    checkSevCommand(command);
    const { sev } = this;
    if (sev === undefined) refuseSevCommand(command.id, this.type);
    else this.#whileHeld(() => this.trace.tellAfter(() => sev.memoryEncryptOp(command)));
  }

  /** vCPUs that were ever created. */
  get vcpuCount(): number {
    return this.#vcpus.size;
  }
  openVcpus(): readonly Vcpu[] {
    return [...this.#open].sort((a, b) => a.id - b.id);
  }

  setUserMemoryRegion(region: UserMemoryRegion): void {
    this.#descriptor.check();
    this.#whileHeld(() => setUserMemoryRegion(this, region));
  }

  setUserMemoryRegion2(region: UserMemoryRegion2): void {
    this.#descriptor.check();
    this.#whileHeld(() => setUserMemoryRegion2(this, region));
  }

  setMsrFilter(filter: MsrFilter): void {
    this.#descriptor.check();
    checkMsrFilter(filter);
    this.#msrFilter = new MsrPermissions(filter);
    for (const vcpu of this.#open) vcpu.msrFilterChanged();
  }

  setMemoryAttributes(request: MemoryAttributesRequest): void {
    this.#descriptor.check();
    this.#whileHeld(() => this.attributes.set(this, request));
  }

  getDirtyLog(request: DirtyLogRequest): void {
    this.#descriptor.check();
    getDirtyLog(this, request);
  }

  clearDirtyLog(request: ClearDirtyLogRequest): void {
    this.#descriptor.check();
    clearDirtyLog(this, request);
  }

  resetDirtyRings(): number {
    this.#descriptor.check();
    return resetDirtyRings(this);
  }

  /** Errors in the order of reference facts 1.3: EINVAL (flags, size), EMFILE. */
  createGuestMemfd({ size, flags }: { size: bigint; flags: bigint }): number {
    this.#descriptor.check();
    u64.check(size, 'kvm_create_guest_memfd.size');
    u64.check(flags, 'kvm_create_guest_memfd.flags');
    const mask = guestMemfdFlagMask(this.policy, this);
    if ((flags & ~mask) !== 0n)
      throw new LinuxError('EINVAL', `KVM_CREATE_GUEST_MEMFD: flags ${flags}, want a subset of ${mask}`);
    if (BigInt.asIntN(64, size) <= 0n) throw new LinuxError('EINVAL', `KVM_CREATE_GUEST_MEMFD: size ${size}`);
    if (size % 4096n !== 0n)
      throw new LinuxError('EINVAL', `KVM_CREATE_GUEST_MEMFD: size ${size} is not whole pages`);
    this.process.files.reserve();
    return this.trace.tellAfter(() => {
      const file = new GuestMemfd(this, {
        size: Number(size),
        mayMmap: (flags & GUEST_MEMFD_FLAG_MMAP) !== 0n,
        initShared: (flags & GUEST_MEMFD_FLAG_INIT_SHARED) !== 0n,
      });
      this.#references++;
      return this.process.files.install(new OpenFile(file));
    });
  }

  /** Errors in order: EINVAL (id, number of vCPUs), EEXIST, EMFILE, ENOMEM. */
  createVcpu(id: number): Vcpu {
    this.#descriptor.check();
    checkLong(id, 'KVM_CREATE_VCPU.id');
    if (id < 0 || id >= MAX_VCPU_IDS)
      throw new LinuxError('EINVAL', `vCPU id ${id}: ids are below ${MAX_VCPU_IDS}`);
    if (this.#vcpus.size >= MAX_VCPUS)
      throw new LinuxError('EINVAL', `vCPU id ${id}: the VM has ${MAX_VCPUS} vCPUs`);
    if (this.#vcpus.has(id)) throw new LinuxError('EEXIST', `vCPU id ${id}: exists`);
    this.process.files.reserve();
    return this.trace.tellAfter(() => {
      const vcpu = new Vcpu(this, id);
      const descriptor = new Descriptor(this.process.files, `anon_inode:kvm-vcpu:${id}`, () => vcpu.close());
      this.#references++;
      this.#vcpus.set(id, descriptor);
      this.#open.add(vcpu);
      return vcpu;
    });
  }

  vcpuClosed(vcpu: Vcpu): void {
    const descriptor = this.#vcpus.get(vcpu.id);
    if (descriptor === undefined) return;
    this.#open.delete(vcpu);
    descriptor.close();
    this.release();
  }

  createCore(id: number): GuestCore {
    return this.#host.createCore(id);
  }

  close(): void {
    this.#descriptor.close();
  }

  /** An ioctl that tells the trace of what it does holds the file (fdget): a listener that closes the VM or ends the process does so after it. */
  #whileHeld(ioctl: () => void): void {
    this.#references++;
    this.process.enterKernel();
    try {
      ioctl();
    } finally {
      this.release();
      this.process.leaveKernel();
    }
  }

  /** One holder less: the descriptor, a vCPU, a file, an ioctl. */
  release(): void {
    this.#references--;
    if (this.#references > 0) return;
    this.trace.tellAfter(() => {
      this.process.memory.notifiers.unregister(this.#unmapper);
      this.mmu.destroy();
      this.sev?.destroy();
      if (this.trace.on) this.trace.emit({ kind: 'vm', who: 'kernel', what: 'vm-destroy', type: this.type });
    });
  }

  openFile(fd: number): OpenFile {
    return this.process.files.get(fd);
  }

  gmemGetPfn(slot: FaultSlot, gfn: Gfn, into: BackingPage): number {
    const { sev } = this;
    if (sev === undefined) return this.gmemGetUnprepared(slot, gfn, into);
    return this.trace.tellAfter(() => {
      const result = this.gmemGetUnprepared(slot, gfn, into);
      return result === 0 ? preparePage(sev, gfn, into.pfn, into.order) : result;
    });
  }

  /** The same without the RMP's part (__kvm_gmem_get_pfn). */
  gmemGetUnprepared(slot: FaultSlot, gfn: Gfn, into: BackingPage): number {
    const { gmem } = slot as MemorySlot;
    return gmem === undefined ? -ERRNO.EFAULT : gmem.getPfn(slot as MemorySlot, gfn, into);
  }

  /** Pages that a guest_memfd gives up are the host's again (kvm_arch_gmem_invalidate). False: they are leaked. */
  gmemInvalidate(frame: Pfn, order: number): boolean {
    if (invalidatePages(this.memory, frame, order)) return true;
    this.#host.sev?.psp.leak(frame, 1 << order);
    return false;
  }

  privateMaxMappingLevel(frame: Pfn): number {
    return this.sev === undefined ? LEVEL_1G : maxMappingLevel(this.memory, frame);
  }

  faultInHva(hva: Hva, access: 'read' | 'write', into: BackingPage): number {
    const { memory } = this.process;
    const result = memory.faultIn(hva, access === 'write' ? WRITE_ACCESS : READ_ACCESS);
    if (result === 0) {
      into.pfn = memory.page.pfn;
      into.order = memory.page.order;
      into.writable = memory.page.writable;
    } else if (result > 0) {
      into.pending = memory.pending;
    }
    return result;
  }

  invalidateGmem(ranges: readonly SlotRange[], why: string, free: () => void): void {
    this.#unmapper.unmapGmem(ranges, why, free);
  }
}
