/**
 * A VM: its ioctls, and what its vCPUs, slots and files share (Linux virt/kvm/kvm_main.c kvm_vm_ioctl, kvm_create_vm, kvm_destroy_vm;
 * arch/x86/kvm/x86.c kvm_vm_ioctl_enable_cap). It lives as long as its descriptor, a vCPU or a guest_memfd file of it does.
 */
import {
  KVM_CAP_DIRTY_LOG_RING,
  KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
  KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
  KVM_CAP_SPLIT_IRQCHIP,
  KVM_CAP_X2APIC_API,
  KVM_X86_SNP_VM,
  KVM_X86_SW_PROTECTED_VM,
} from '../../abi/kvm.ts';
import type { Gfn, Hva, Pfn } from '../../base/address.ts';
import type { Entropy } from '../../base/entropy.ts';
import { LinuxError, NotImplementedError } from '../../base/errors.ts';
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
import { READ_ACCESS, WRITE_ACCESS } from '../mm/address-space.ts';
import type { Process } from '../process.ts';
import { checkExtension, describeVmTypes, MAX_VCPU_IDS, MAX_VCPUS, vmTypes } from './capabilities.ts';
import { Descriptor } from './descriptor.ts';
import { clearDirtyLog, DirtyTracking, getDirtyLog, resetDirtyRings } from './dirty-log.ts';
import { GuestMemfd, type GuestMemfdVm, type SlotRange } from './guest-memfd.ts';
import type { HostTime } from './host-time.ts';
import { Invalidation } from './invalidation.ts';
import { InterruptController, MAX_IRQ_ROUTES } from './lapic/interrupt-controller.ts';
import { enableX2apicApi } from './lapic/x2apic-api.ts';
import { MemoryAttributes, type MemoryAttributesRequest } from './memory-attributes.ts';
import { type MemorySlot, MemorySlots } from './memory-slots.ts';
import type { BackingPage, FaultSlot } from './mmu/guest-memory.ts';
import { Mmu } from './mmu/mmu.ts';
import { MsrPermissions } from './msr-filter.ts';
import { guestMemfdFlagMask, type KvmPolicy } from './policy.ts';
import { type RegionVm, setUserMemoryRegion, setUserMemoryRegion2 } from './set-memory-region.ts';
import type { GuestCore } from './svm/guest-core.ts';
import { invalidatePages, maxMappingLevel, preparePage } from './svm/sev/gmem-hooks.ts';
import type { SevHost } from './svm/sev/sev-host.ts';
import { refuseSevCommand, SevVm, type SevVmHost } from './svm/sev/sev-vm.ts';
import { Vcpu, type VcpuVm } from './vcpu.ts';
import { VmCapabilities } from './vm-capabilities.ts';

const GUEST_MEMFD_MMAP = 1n;
const GUEST_MEMFD_INIT_SHARED = 2n;
const EFAULT = -14;
/** 1 GiB. */
const MAX_LEVEL = 3;

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
  #msrFilter: MsrPermissions | undefined;
  #references = 1;
  #interrupts: InterruptController | undefined;
  #bootCpuId = 0;
  /** Flags of KVM_CAP_X2APIC_API; they may come before the irqchip. */
  #x2apicApi = 0n;
  readonly #notifier = {
    begin: (start: Hva, end: Hva): void => this.#beginNotifier(start, end),
    end: (start: Hva, end: Hva): void => this.#endNotifier(start, end),
  };

  /** Errors: EINVAL (type), EMFILE, ENOMEM. */
  constructor(host: VmHost, process: Process, type: number) {
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
    process.memory.notifiers.register(this.#notifier);
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
    return checkExtension(capability, { policy: this.policy, hasSnp: this.#host.sev !== undefined }, this);
  }

  /** Errors: EINVAL, E2BIG. */
  enableCap({ cap, flags = 0, args = [] }: { cap: number; flags?: number; args?: readonly bigint[] }): void {
    this.#descriptor.check();
    if (cap === KVM_CAP_DIRTY_LOG_RING || cap === KVM_CAP_DIRTY_LOG_RING_ACQ_REL) {
      // Linux does not look at the flags of these.
      this.dirtyTracking.enableRings(args[0] ?? 0n, this.#vcpus.size);
      return;
    }
    if (flags !== 0) throw new LinuxError('EINVAL', `KVM_ENABLE_CAP ${cap}: flags ${flags}, want 0`);
    if (cap === KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) {
      this.dirtyTracking.enableManualProtect(args[0] ?? 0n);
      return;
    }
    const argument = args[0] ?? 0n;
    if (cap === KVM_CAP_SPLIT_IRQCHIP) this.#splitIrqchip(argument);
    else if (cap === KVM_CAP_X2APIC_API) this.#x2apicApi |= enableX2apicApi(this, argument);
    else this.capabilities.enable(cap, argument);
  }

  /** Local APICs in the kernel, where KVM_CAP_SPLIT_IRQCHIP put them. */
  get interrupts(): InterruptController | undefined {
    return this.#interrupts;
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
    if (this.#vcpus.size > 0) throw new LinuxError('EBUSY', 'KVM_SET_BOOT_CPU_ID: the VM has vCPUs');
    if (id < 0 || id > MAX_VCPU_IDS)
      throw new LinuxError('EINVAL', `KVM_SET_BOOT_CPU_ID: ${id}, want at most ${MAX_VCPU_IDS}`);
    this.#bootCpuId = id;
  }

  /** Errors: ENXIO without local APICs in the kernel. */
  irqLine({ irq, level }: { irq: number; level: number }): number {
    this.#descriptor.check();
    if (this.#interrupts === undefined)
      throw new LinuxError('ENXIO', 'KVM_IRQ_LINE: no irqchip in the kernel');
    return this.#interrupts.setLine(irq, level);
  }

  /** Errors: EINVAL. */
  signalMsi(message: MsiMessage): number {
    this.#descriptor.check();
    return this.#inKernel('KVM_SIGNAL_MSI').signalMsi(message);
  }

  /** Errors: EINVAL. */
  setGsiRouting({ routes, flags }: { routes: readonly GsiRoute[]; flags: number }): void {
    this.#descriptor.check();
    this.#inKernel('KVM_SET_GSI_ROUTING').setRoutes(routes, flags);
  }

  #inKernel(call: string): InterruptController {
    if (this.#interrupts === undefined) throw new LinuxError('EINVAL', `${call}: no irqchip in the kernel`);
    return this.#interrupts;
  }

  /** Errors in order: EINVAL (number of routes), EEXIST (there is an irqchip, or a vCPU). */
  #splitIrqchip(routes: bigint): void {
    if (routes > BigInt(MAX_IRQ_ROUTES))
      throw new LinuxError('EINVAL', `KVM_CAP_SPLIT_IRQCHIP: ${routes} routes, at most ${MAX_IRQ_ROUTES}`);
    if (this.#interrupts !== undefined)
      throw new LinuxError('EEXIST', 'KVM_CAP_SPLIT_IRQCHIP: there is an irqchip');
    if (this.#vcpus.size > 0) throw new LinuxError('EEXIST', 'KVM_CAP_SPLIT_IRQCHIP: there are vCPUs');
    this.#interrupts = new InterruptController(Number(routes));
    this.#interrupts.setX2apicApi(this.#x2apicApi);
  }

  /** Errors: ENOTTY (no SEV here, or not a SEV guest), and the commands' own. */
  memoryEncryptOp(command: SevCommand | undefined): void {
    this.#descriptor.check();
    if (this.#host.sev === undefined)
      throw new LinuxError('ENOTTY', 'KVM_MEMORY_ENCRYPT_OP: KVM has no SEV on this machine');
    if (command === undefined) return;
    if (this.sev === undefined) refuseSevCommand(command.id, this.type);
    else this.sev.memoryEncryptOp(command);
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
    setUserMemoryRegion(this, region);
  }

  setUserMemoryRegion2(region: UserMemoryRegion2): void {
    this.#descriptor.check();
    setUserMemoryRegion2(this, region);
  }

  setMsrFilter(filter: MsrFilter): void {
    this.#descriptor.check();
    this.#msrFilter = new MsrPermissions(filter);
    for (const vcpu of this.#open) vcpu.msrFilterChanged();
  }

  setMemoryAttributes(request: MemoryAttributesRequest): void {
    this.#descriptor.check();
    this.attributes.set(this, request);
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
    const mask = guestMemfdFlagMask(this.policy, this);
    if ((flags & ~mask) !== 0n)
      throw new LinuxError('EINVAL', `KVM_CREATE_GUEST_MEMFD: flags ${flags}, want a subset of ${mask}`);
    if (BigInt.asIntN(64, size) <= 0n) throw new LinuxError('EINVAL', `KVM_CREATE_GUEST_MEMFD: size ${size}`);
    if (size % 4096n !== 0n)
      throw new LinuxError('EINVAL', `KVM_CREATE_GUEST_MEMFD: size ${size} is not whole pages`);
    this.process.files.reserve();
    const file = new GuestMemfd(this, {
      size: Number(size),
      mayMmap: (flags & GUEST_MEMFD_MMAP) !== 0n,
      initShared: (flags & GUEST_MEMFD_INIT_SHARED) !== 0n,
    });
    this.#references++;
    return this.process.files.install(new OpenFile(file));
  }

  /** Errors in order: EINVAL (id, number of vCPUs), EEXIST, EMFILE, ENOMEM. */
  createVcpu(id: number): Vcpu {
    this.#descriptor.check();
    if (id < 0 || id >= MAX_VCPU_IDS)
      throw new LinuxError('EINVAL', `vCPU id ${id}: ids are below ${MAX_VCPU_IDS}`);
    if (this.#vcpus.size >= MAX_VCPUS)
      throw new LinuxError('EINVAL', `vCPU id ${id}: the VM has ${MAX_VCPUS} vCPUs`);
    if (this.#vcpus.has(id)) throw new LinuxError('EEXIST', `vCPU id ${id}: exists`);
    this.process.files.reserve();
    const vcpu = new Vcpu(this, id);
    const descriptor = new Descriptor(this.process.files, `anon_inode:kvm-vcpu:${id}`, () => vcpu.close());
    this.#references++;
    this.#vcpus.set(id, descriptor);
    this.#open.add(vcpu);
    return vcpu;
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

  /** One holder less: the descriptor, a vCPU, a file. */
  release(): void {
    this.#references--;
    if (this.#references > 0) return;
    this.process.memory.notifiers.unregister(this.#notifier);
    this.mmu.destroy();
    this.sev?.destroy();
    if (this.trace.on) this.trace.emit({ kind: 'vm', who: 'kernel', what: 'vm-destroy', type: this.type });
  }

  openFile(fd: number): OpenFile {
    return this.process.files.get(fd);
  }

  gmemGetPfn(slot: FaultSlot, gfn: Gfn, into: BackingPage): number {
    const result = this.gmemGetUnprepared(slot, gfn, into);
    if (result !== 0 || this.sev === undefined) return result;
    return preparePage(this.sev, gfn, into.pfn, into.order);
  }

  /** The same without the RMP's part (__kvm_gmem_get_pfn). */
  gmemGetUnprepared(slot: FaultSlot, gfn: Gfn, into: BackingPage): number {
    const { gmem } = slot as MemorySlot;
    return gmem === undefined ? EFAULT : gmem.getPfn(slot as MemorySlot, gfn, into);
  }

  /** Pages that a guest_memfd gives up are the host's again (kvm_arch_gmem_invalidate). False: they are leaked. */
  gmemInvalidate(frame: Pfn, order: number): boolean {
    if (invalidatePages(this.memory, frame, order)) return true;
    this.#host.sev?.psp.leak(frame, 1 << order);
    return false;
  }

  privateMaxMappingLevel(frame: Pfn): number {
    return this.sev === undefined ? MAX_LEVEL : maxMappingLevel(this.memory, frame);
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

  /** The invalidation around what a guest_memfd gives up; once per VM, however many slots. */
  invalidateGmem(ranges: readonly SlotRange[], why: string, free: () => void): void {
    if (ranges.length === 0) {
      free();
      return;
    }
    this.invalidation.begin();
    let unmapped = false;
    for (const { start, end } of ranges) unmapped = this.#takeAway(start, end, why) || unmapped;
    if (unmapped) this.mmu.flushRemoteTlbs();
    free();
    this.invalidation.end();
  }

  /** kvm_mmu_notifier_invalidate_range_start: pages of the process at [start, end) go. Without a slot there is no invalidation. */
  #beginNotifier(start: Hva, end: Hva): void {
    let begun = false;
    let unmapped = false;
    for (const slots of this.addressSpaces) {
      for (const slot of slots.all()) {
        const from = Math.max(start, slot.userspaceAddr);
        const to = Math.min(end, slot.userspaceEnd);
        if (from >= to) continue;
        if (!begun) this.invalidation.begin();
        begun = true;
        const first = (slot.baseGfn + Math.floor((from - slot.userspaceAddr) / 4096)) as Gfn;
        const last = (slot.baseGfn + Math.ceil((to - slot.userspaceAddr) / 4096)) as Gfn;
        unmapped = this.#takeAway(first, last, 'the process unmaps') || unmapped;
      }
    }
    if (unmapped) this.mmu.flushRemoteTlbs();
  }

  /** kvm_mmu_notifier_invalidate_range_end, of a range whose begin met a slot: slots do not change in between. */
  #endNotifier(start: Hva, end: Hva): void {
    const meets = (slot: MemorySlot): boolean => start < slot.userspaceEnd && slot.userspaceAddr < end;
    if (this.addressSpaces.some((slots) => slots.all().some(meets))) this.invalidation.end();
  }

  /** Within an invalidation. True: a flush is due. */
  #takeAway(start: Gfn, end: Gfn, why: string): boolean {
    this.invalidation.rangeAdd(start, end);
    if (this.trace.on)
      this.trace.emit({
        kind: 'page',
        who: 'kernel',
        what: 'invalidate',
        why,
        gfn: start,
        pages: end - start,
      });
    return this.mmu.zapRange(start, end);
  }
}
