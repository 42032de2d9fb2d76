/**
 * A vCPU: KVM_RUN and the register ioctls (Linux virt/kvm/kvm_main.c, kvm_vcpu_ioctl; arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_run,
 * vcpu_run). Each vCPU has a core of its own, made at its first KVM_RUN; between runs the VMCB and `gpr` hold its state.
 *
 * KVM_RUN: exit_reason becomes 0, the last exit is completed with what the VMM answered, then the guest runs until an exit is due for user
 * space. `run` returns 0, −errno, or RUN_PENDING. With `vm.timeslice` the VMM's thread gets a signal after that many instructions: −EINTR,
 * exit INTR; a VMM that runs several vCPUs on one thread takes turns by it, and time-outs work.
 *
 * Left out: the in-kernel interrupt controller and with it mp_state and interrupt injection; sync regs; guest debugging.
 */
import {
  KVM_EXIT_DIRTY_RING_FULL,
  KVM_EXIT_INTR,
  KVM_EXIT_UNKNOWN,
  KVM_VCPU_MMAP_SIZE,
} from '../../abi/kvm.ts';
import { KvmRun } from '../../abi/kvm-run.ts';
import { SAVE, TLB_CONTROL, VMCB, VMEXIT } from '../../abi/vmcb.ts';
import { RFLAGS } from '../../abi/x86.ts';
import { type Pfn, pfn, spaOf } from '../../base/address.ts';
import { ERRNO, LinuxError } from '../../base/errors.ts';
import { GPR } from '../../hardware/cpu/state.ts';
import type { CpuidEntry, KvmVcpu, PreFaultRange, Regs, Sregs } from '../interface.ts';
import { RUN_PENDING } from '../interface.ts';
import { type CpuidResult, GuestCpuid } from './cpuid.ts';
import type { DirtyTracking } from './dirty-log.ts';
import { DirtyRing, ringOrder } from './dirty-ring.ts';
import { completeHypercall } from './hypercall.ts';
import type { GuestMemory, InvalidationChecks } from './mmu/guest-memory.ts';
import type { Mmu } from './mmu/mmu.ts';
import { PageFault, PageFaultHandler } from './mmu/page-fault.ts';
import { preFaultMemory } from './pre-fault.ts';
import { getRegs, getSregs, type OtherRegisters, resetRegisters, setRegs, setSregs } from './registers.ts';
import { MmioEmulation } from './run-mmio.ts';
import { GUEST_AGAIN, TO_USER_SPACE, WAIT } from './run-result.ts';
import { completeIn, finishFault, handleExit } from './svm/exits.ts';
import type { GuestCore } from './svm/guest-core.ts';
import { MISC_ENABLE_DEFAULT } from './svm/msr.ts';
import { PermissionMaps } from './svm/permission-maps.ts';
import { Vmcb } from './svm/vmcb.ts';

/** What a vCPU asks of its VM. */
export interface VcpuVm extends GuestMemory {
  readonly mmu: Mmu;
  /** KVM_CAP_EXIT_HYPERCALL's bitmap. */
  readonly hypercallExits: number;
  readonly dirtyTracking: DirtyTracking;
  /** Instructions until the VMM's thread gets a signal; 0: never. */
  readonly timeslice: number;
  /** The vCPU's descriptor was closed and its frames are free. */
  vcpuClosed(vcpu: Vcpu): void;
  /** Makes the core that runs vCPU `id`. */
  createCore(id: number): GuestCore;
}

const RUN_ORDER = 2;
/** Each vCPU's core is its own, so they all use the same tag. */
const ASID = 1;
const UNLIMITED = 0x7fff_ffff;
const RIP = VMCB.SAVE_AREA + SAVE.RIP;
const APIC_BASE = 0xfee0_0800n;
const APIC_BASE_BSP = 0x100n;
const V_TPR = 0xf;

/** What the next KVM_RUN has to finish first (vcpu->arch.complete_userspace_io). */
const COMPLETE = { NOTHING: 0, IN: 1, OUT: 2, MMIO_READ: 3, MMIO_WRITE: 4, HYPERCALL: 5 } as const;
/** Whom a pending KVM_RUN waits for. */
const WAITING = { NOBODY: 0, FAULT: 1, MMIO: 2, RETRY: 3 } as const;

export class Vcpu implements KvmVcpu {
  readonly id: number;
  readonly vm: VcpuVm;
  readonly kvmRun: KvmRun;
  readonly vmcb: Vmcb;
  readonly faults: PageFaultHandler;
  readonly fault = new PageFault();
  readonly mmio: MmioEmulation;
  readonly cpuid = new GuestCpuid();
  readonly cpuidResult: CpuidResult = { eax: 0, ebx: 0, ecx: 0, edx: 0 };
  readonly other: OtherRegisters & { miscEnable: bigint };
  pending: Promise<void> | undefined = undefined;
  /** Faults in a row that came to "retry". */
  retries = 0;

  /** The general registers: the core's own once there is one. */
  gpr: BigUint64Array = new BigUint64Array(16);
  gprWords: Int32Array = new Int32Array(this.gpr.buffer);

  readonly #runPfn: Pfn;
  readonly #ring: DirtyRing | undefined;
  readonly #ringPfn: number;
  readonly #vmcbPfn: Pfn;
  readonly #maps: PermissionMaps;
  #core: GuestCore | undefined;
  #complete: number = COMPLETE.NOTHING;
  #waiting: number = WAITING.NOBODY;
  #exitRipLow = 0;
  #exitRipHigh = 0;
  /** Instructions that KVM carried out. */
  #emulated = 0;
  #sliceLeft: number;
  #tlbGeneration = -1;
  #closed = false;

  /** `checks`: see PageFaultHandler. Errors: ENOMEM. */
  constructor(vm: VcpuVm, id: number, checks: InvalidationChecks = vm.invalidation) {
    this.vm = vm;
    this.id = id;
    const { memory } = vm;
    const owner = memory.owner('vCPU');
    this.#maps = new PermissionMaps(memory, owner);
    const vmcb = memory.allocate(0, owner);
    const run = vmcb < 0 ? vmcb : memory.allocate(RUN_ORDER, owner);
    const ring = run < 0 ? run : vm.dirtyTracking.allocateRing(memory);
    if (ring < 0) {
      this.#maps.free();
      if (vmcb >= 0) memory.free(pfn(vmcb), 0);
      if (run >= 0) memory.free(pfn(run), RUN_ORDER);
      throw new LinuxError('ENOMEM', `no frames for vCPU ${id}`);
    }
    this.#vmcbPfn = pfn(vmcb);
    this.#runPfn = pfn(run);
    const { buffer, byteOffset } = memory.page(this.#runPfn);
    this.kvmRun = new KvmRun(new Uint8Array(buffer, byteOffset, KVM_VCPU_MMAP_SIZE));
    this.vmcb = new Vmcb(memory, spaOf(this.#vmcbPfn));
    this.other = {
      cr8: 0,
      apicBase: id === 0 ? APIC_BASE | APIC_BASE_BSP : APIC_BASE,
      miscEnable: MISC_ENABLE_DEFAULT,
    };
    this.#sliceLeft = vm.timeslice;
    this.#ringPfn = ring;
    this.#ring = ring === 0 ? undefined : new DirtyRing(memory, pfn(ring), vm.dirtyTracking.ringBytes);
    if (this.#ring !== undefined) vm.dirtyTracking.rings.add(this.#ring);
    this.faults = new PageFaultHandler(vm, vm.mmu, checks, this.#ring);
    this.mmio = new MmioEmulation(this);
    this.kvmRun.apicBase = this.other.apicBase;
    this.#initControl();
    resetRegisters(this.vmcb, this.gpr, { kind: 'power-on' });
  }

  /** The core that runs this vCPU. */
  get core(): GuestCore {
    return (this.#core ??= this.#makeCore());
  }

  /** The dirty ring, as user space maps it at page 64 of the vCPU. */
  get dirtyRing(): Int32Array | undefined {
    return this.#ring?.entries;
  }

  /** Retired by the core, and those that KVM carried out for the guest. */
  get instructions(): number {
    return (this.#core?.retired ?? 0) + this.#emulated;
  }

  run(): number {
    if (this.#closed) return -ERRNO.EBADF;
    const { kvmRun } = this;
    kvmRun.exitReason = KVM_EXIT_UNKNOWN;
    this.pending = undefined;
    if (kvmRun.cr8Number > V_TPR) return -ERRNO.EINVAL;
    this.setCr8(kvmRun.cr8Number);
    let result = this.#completeExit();
    if (result === GUEST_AGAIN) result = kvmRun.immediateExit !== 0 ? this.#interrupted() : this.#enter();
    this.#saveRunState();
    if (this.vm.trace.on) this.#traceExit(result);
    return result === WAIT ? RUN_PENDING : result;
  }

  getRegs(): Regs {
    return getRegs(this.vmcb, this.gpr);
  }
  setRegs(regs: Regs): void {
    setRegs(this.vmcb, this.gpr, regs);
  }
  getSregs(): Sregs {
    return getSregs(this.vmcb, this.other);
  }
  setSregs(sregs: Sregs): void {
    setSregs(this.vmcb, this.other, sregs, this.cpuid);
    this.setCr8(Number(sregs.cr8 & 15n));
    this.kvmRun.cr8Number = this.other.cr8;
    this.kvmRun.apicBase = this.other.apicBase;
    this.#tlbGeneration = -1;
  }
  getCpuid2(): CpuidEntry[] {
    return this.cpuid.entries;
  }
  setCpuid2(entries: readonly CpuidEntry[]): void {
    this.cpuid.set(entries, { hasRun: this.#core !== undefined });
  }
  preFaultMemory(range: PreFaultRange & { flags: bigint }): PreFaultRange {
    return preFaultMemory(this, range);
  }

  /** close(2) of the descriptor. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#emulated = this.instructions;
    this.#core?.close();
    this.#core = undefined;
    const { memory } = this.vm;
    this.#maps.free();
    memory.free(this.#vmcbPfn, 0);
    memory.free(this.#runPfn, RUN_ORDER);
    if (this.#ring !== undefined) {
      const { dirtyTracking } = this.vm;
      dirtyTracking.rings.delete(this.#ring);
      memory.free(pfn(this.#ringPfn), ringOrder(dirtyTracking.ringBytes));
    }
    this.vm.vcpuClosed(this);
  }

  // What the exit handlers do to a vCPU.

  /** The intercepted instruction was carried out. */
  skipInstruction(): void {
    this.vmcb.skipInstruction();
    this.#emulated++;
  }
  /** Has KVM_RUN return RUN_PENDING; the fault goes on afterwards. */
  waitFor(pending: Promise<void>): number {
    this.pending = pending;
    this.#waiting = pending === this.fault.pending ? WAITING.FAULT : WAITING.RETRY;
    return WAIT;
  }
  /** The same for an access of an emulated instruction. */
  waitForMmio(pending: Promise<void>): number {
    this.pending = pending;
    this.#waiting = WAITING.MMIO;
    return WAIT;
  }
  awaitIo(direction: 'in' | 'out'): void {
    this.#complete = direction === 'in' ? COMPLETE.IN : COMPLETE.OUT;
    this.#exitRipLow = this.vmcb.word(RIP);
    this.#exitRipHigh = this.vmcb.word(RIP + 4);
  }
  awaitMmio(access: 'read' | 'write'): void {
    this.#complete = access === 'read' ? COMPLETE.MMIO_READ : COMPLETE.MMIO_WRITE;
  }
  awaitHypercall(): void {
    this.#complete = COMPLETE.HYPERCALL;
  }
  /** Takes instructions from the slice that the vCPU did not run. */
  spendSlice(instructions: number): void {
    this.#sliceLeft -= instructions;
  }
  /** `number` as instructions encode it. */
  readGpr(number: number): bigint {
    if (number === GPR.RAX) return this.vmcb.save(SAVE.RAX);
    if (number === GPR.RSP) return this.vmcb.save(SAVE.RSP);
    return this.gpr[number]!;
  }
  setCr8(value: number): void {
    if (value === this.other.cr8) return;
    this.other.cr8 = value;
    this.vmcb.setWord(VMCB.INT_CTL, (this.vmcb.word(VMCB.INT_CTL) & ~V_TPR) | value);
  }
  /** INIT (kvm_vcpu_reset with init_event), as after a triple fault. */
  init(): void {
    const oldCr0 = this.vmcb.save(SAVE.CR0);
    const pat = this.vmcb.save(SAVE.G_PAT);
    this.vm.memory.clear(this.vmcb.spa, 4096);
    this.#initControl();
    this.vmcb.setSave(SAVE.G_PAT, pat);
    resetRegisters(this.vmcb, this.gpr, { kind: 'init', oldCr0, signature: this.cpuid.signature });
    this.setCr8(0);
    this.#tlbGeneration = -1;
  }

  #initControl(): void {
    this.vmcb.initControl({
      nestedRoot: this.vm.mmu.root,
      ioPermissions: spaOf(this.#maps.ports),
      msrPermissions: spaOf(this.#maps.msrs),
      asid: ASID,
    });
  }

  #makeCore(): GuestCore {
    const core = this.vm.createCore(this.id);
    core.gpr.set(this.gpr);
    this.gpr = core.gpr;
    this.gprWords = core.gprWords;
    return core;
  }

  /** Finishes what the last KVM_RUN left to the VMM. GUEST_AGAIN: nothing is in the way of the guest. */
  #completeExit(): number {
    const complete = this.#complete;
    this.#complete = COMPLETE.NOTHING;
    switch (complete) {
      case COMPLETE.NOTHING:
        return GUEST_AGAIN;
      case COMPLETE.MMIO_READ:
        return this.mmio.completeRead();
      case COMPLETE.MMIO_WRITE:
        return this.mmio.completeWrite();
      case COMPLETE.HYPERCALL:
        completeHypercall(this);
        return GUEST_AGAIN;
      default:
        // A VMM that moved RIP (a reset) does not want the instruction completed.
        if (this.#exitRipLow !== this.vmcb.word(RIP) || this.#exitRipHigh !== this.vmcb.word(RIP + 4))
          return GUEST_AGAIN;
        if (complete === COMPLETE.IN) completeIn(this);
        this.skipInstruction();
        return GUEST_AGAIN;
    }
  }

  /** vcpu_run: until something is due for user space. */
  #enter(): number {
    const result = this.#resumeWaiting();
    if (result !== GUEST_AGAIN) return result;
    const { vmcb, core, vm } = this;
    for (;;) {
      if (this.#ring?.blocks() === true) {
        this.kvmRun.exitReason = KVM_EXIT_DIRTY_RING_FULL;
        return TO_USER_SPACE;
      }
      const limited = vm.timeslice > 0;
      if (limited && this.#sliceLeft <= 0) {
        this.#sliceLeft = vm.timeslice;
        return this.#interrupted();
      }
      const flush = this.#tlbGeneration !== vm.mmu.tlbGeneration;
      if (flush) {
        this.#tlbGeneration = vm.mmu.tlbGeneration;
        vmcb.setWord(VMCB.TLB_CONTROL, TLB_CONTROL.FLUSH_ASID);
      }
      const before = this.instructions;
      const code = core.vmrun(vmcb.spa, limited ? this.#sliceLeft : UNLIMITED);
      if (flush) vmcb.setWord(VMCB.TLB_CONTROL, TLB_CONTROL.NOTHING);
      vmcb.markAllClean();
      if (code !== VMEXIT.INVALID) vmcb.requeueEvent();
      const result = handleExit(this, code);
      if (limited) this.#sliceLeft -= this.instructions - before;
      if (result !== GUEST_AGAIN) return result;
    }
  }

  #resumeWaiting(): number {
    const waiting = this.#waiting;
    this.#waiting = WAITING.NOBODY;
    if (waiting === WAITING.FAULT) return finishFault(this, this.faults.resume(this.fault, this.kvmRun));
    if (waiting === WAITING.MMIO) return this.mmio.resume();
    return GUEST_AGAIN;
  }

  #interrupted(): number {
    this.kvmRun.exitReason = KVM_EXIT_INTR;
    return -ERRNO.EINTR;
  }

  /** post_kvm_run_save */
  #saveRunState(): void {
    const { kvmRun, vmcb } = this;
    const interruptsOn = (vmcb.rflags & RFLAGS.IF) !== 0 ? 1 : 0;
    const held = vmcb.word(VMCB.INT_STATE) & 1;
    kvmRun.ifFlag = interruptsOn;
    kvmRun.readyForInterruptInjection = interruptsOn === 1 && held === 0 && !vmcb.eventPending ? 1 : 0;
    kvmRun.flags = 0;
    kvmRun.cr8Number = this.other.cr8;
  }

  #traceExit(result: number): void {
    this.vm.trace.emit({
      kind: 'exit',
      who: 'kernel',
      what:
        result === WAIT ? 'pending' : (EXIT_NAMES[this.kvmRun.exitReason] ?? String(this.kvmRun.exitReason)),
      vcpu: this.id,
      ...(result < 0 ? { errno: -result } : {}),
    });
  }
}

const EXIT_NAMES: Readonly<Record<number, string>> = {
  0: 'unknown',
  2: 'io',
  3: 'hypercall',
  5: 'hlt',
  6: 'mmio',
  8: 'shutdown',
  9: 'fail-entry',
  10: 'intr',
  11: 'set-tpr',
  17: 'internal-error',
  31: 'dirty-ring-full',
  39: 'memory-fault',
};
