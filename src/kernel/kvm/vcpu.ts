/**
 * A vCPU and the ioctls on its registers (Linux virt/kvm/kvm_main.c, kvm_vcpu_ioctl; arch/x86/kvm/x86.c). Each vCPU has a core of its own, made at its first
 * KVM_RUN (run-cycle.ts); between runs the VMCB and `gpr` hold its state.
 *
 * Left out: sync regs.
 */
import type { KvmRun } from '../../abi/kvm-run.ts';
import { kvm_cpuid_entry2, kvm_regs, kvm_sregs } from '../../abi/kvm-structs.ts';
import { checkBytes, checkEntries, u32 } from '../../abi/layout.ts';
import { membersOf } from '../../abi/member-names.ts';
import { INTERCEPT, SAVE, VMCB } from '../../abi/vmcb.ts';
import { spaOf } from '../../base/address.ts';
import type { Entropy } from '../../base/entropy.ts';
import { ERRNO, LinuxError } from '../../base/errors.ts';
import { GPR } from '../../hardware/cpu/state.ts';
import type { CpuidEntry, KvmVcpu, PreFaultRange, Regs, Sregs } from '../interface.ts';
import { type CpuidResult, type CpuidState, GuestCpuid } from './cpuid.ts';
import type { DirtyTracking } from './dirty-log.ts';
import { EventInjection } from './event-injection.ts';
import { GuestFpu } from './fpu.ts';
import { GuestDebug } from './guest-debug.ts';
import type { HostTime } from './host-time.ts';
import type { InterruptController } from './lapic/interrupt-controller.ts';
import { LAPIC_STATE_BYTES } from './lapic/lapic-state.ts';
import { setApicBase, VcpuApic } from './lapic/vcpu-apic.ts';
import type { GuestMemory, InvalidationChecks } from './mmu/guest-memory.ts';
import type { Mmu } from './mmu/mmu.ts';
import { PageFault, PageFaultHandler } from './mmu/page-fault.ts';
import { MpState } from './mp-state.ts';
import type { MsrPermissions } from './msr-filter.ts';
import { GuestMsrs, type MsrAccess } from './msrs.ts';
import { preFaultMemory } from './pre-fault.ts';
import { getRegs, getSregs, type OtherRegisters, resetRegisters, setRegs, setSregs } from './registers.ts';
import { RunCycle } from './run-cycle.ts';
import { MmioEmulation } from './run-mmio.ts';
import type { GuestCore } from './svm/guest-core.ts';
import type { SevVm } from './svm/sev/sev-vm.ts';
import { VcpuSev } from './svm/sev/vcpu-sev.ts';
import type { Vmcb } from './svm/vmcb.ts';
import { VcpuFrames } from './vcpu-frames.ts';
import { VcpuState } from './vcpu-state.ts';
import type { VmCapabilities } from './vm-capabilities.ts';

/** A process does not end before its threads are out of the kernel. */
export interface CallingProcess {
  /** Its threads have a signal pending, SIGKILL: KVM_RUN ends. */
  readonly exiting: boolean;
  enterKernel(): void;
  leaveKernel(): void;
}

/** What a vCPU asks of its VM. */
export interface VcpuVm extends GuestMemory {
  readonly mmu: Mmu;
  readonly capabilities: VmCapabilities;
  /** KVM_X86_SET_MSR_FILTER */
  readonly msrFilter: MsrPermissions | undefined;
  readonly dirtyTracking: DirtyTracking;
  readonly time: HostTime;
  /** Local APICs in the kernel, where user space asked for them. */
  readonly interrupts: InterruptController | undefined;
  /** SEV of the VM, where its type has it. */
  readonly sev: SevVm | undefined;
  /** Whose threads run the vCPUs. */
  readonly process: CallingProcess;
  /** KVM_SET_BOOT_CPU_ID */
  readonly bootCpuId: number;
  /** Instructions until the VMM's thread gets a signal; 0: never. */
  readonly timeslice: number;
  /** Draws the length of each timeslice; absent: all are alike. */
  readonly turns?: Entropy | undefined;
  /** The vCPU's descriptor was closed and its frames are free. */
  vcpuClosed(vcpu: Vcpu): void;
  /** Makes the core that runs vCPU `id`. */
  createCore(id: number): GuestCore;
}

/** Each vCPU's core is its own, so they all use the same tag. */
const ASID = 1;
const APIC_BASE = 0xfee0_0800n;
const APIC_BASE_BSP = 0x100n;
const V_TPR = 0xf;
const NR_INTERRUPTS = 256;

export class Vcpu extends VcpuState implements KvmVcpu {
  readonly id: number;
  readonly vm: VcpuVm;
  readonly kvmRun: KvmRun;
  readonly vmcb: Vmcb;
  readonly faults: PageFaultHandler;
  readonly fault = new PageFault();
  readonly mmio: MmioEmulation;
  readonly events: EventInjection;
  readonly debug: GuestDebug;
  readonly msrs = new GuestMsrs(this);
  readonly fpu = new GuestFpu(() => this.core);
  readonly apic: VcpuApic | undefined;
  readonly mp: MpState;
  /** The vCPU's part of SEV-ES and SNP, where the guest is one. */
  readonly sev: VcpuSev | undefined;
  readonly cpuid = new GuestCpuid();
  readonly cpuidResult: CpuidResult = { eax: 0, ebx: 0, ecx: 0, edx: 0 };
  readonly other: OtherRegisters;
  /** KVM_RUN. */
  readonly cycle: RunCycle;
  pending: Promise<void> | undefined = undefined;
  /** Faults in a row that came to "retry". */
  retries = 0;

  /** The general registers: the core's own once there is one. */
  gpr: BigUint64Array = new BigUint64Array(16);
  gprWords: Int32Array = new Int32Array(this.gpr.buffer);

  readonly #frames: VcpuFrames;
  #core: GuestCore | undefined;
  #closed = false;
  /** In KVM_RUN or KVM_PRE_FAULT_MEMORY: holds vcpu->mutex and a reference to the file. */
  #running = false;

  /** `checks`: see PageFaultHandler. Errors: ENOMEM. */
  constructor(vm: VcpuVm, id: number, checks: InvalidationChecks = vm.invalidation) {
    super();
    this.vm = vm;
    this.id = id;
    this.#frames = new VcpuFrames(vm.memory, vm.dirtyTracking, id);
    this.kvmRun = this.#frames.kvmRun;
    this.vmcb = this.#frames.vmcb;
    this.debug = new GuestDebug(this);
    this.events = new EventInjection(this.vmcb, this.debug);
    this.other = {
      cr8: 0,
      apicBase: this.isBoot ? APIC_BASE | APIC_BASE_BSP : APIC_BASE,
    };
    this.cycle = new RunCycle(this, this.#frames.ring);
    this.faults = new PageFaultHandler(vm, vm.mmu, checks, this.#frames.ring);
    this.mmio = new MmioEmulation(this);
    this.kvmRun.apicBase = this.other.apicBase;
    this.#initControl();
    try {
      this.sev = vm.sev?.active === true ? new VcpuSev(vm.sev, this) : undefined;
    } catch (error) {
      this.#frames.free();
      throw error;
    }
    if (vm.msrFilter !== undefined || this.sev !== undefined) this.msrFilterChanged();
    resetRegisters(this.vmcb, this.gpr, { kind: 'power-on' });
    this.vmcb.setLong(VMCB.TSC_OFFSET, BigInt.asUintN(64, -BigInt(vm.time.now())));
    this.apic = vm.interrupts === undefined ? undefined : new VcpuApic(this, vm.interrupts);
    this.events.source = this.apic?.source;
    this.mp = new MpState(this, this.apic?.lapic, this.isBoot ? 'bsp' : 'ap');
  }

  /** It is the boot processor after reset. */
  get isBoot(): boolean {
    return this.id === this.vm.bootCpuId;
  }
  get time(): HostTime {
    return this.vm.time;
  }
  /** What shows in the guest's CPUID. */
  get cpuidState(): CpuidState {
    return { cr4: this.vmcb.saveWord(SAVE.CR4), apicBase: this.other.apicBase };
  }
  /** The guest's time stamp counter. */
  get guestTsc(): bigint {
    return BigInt.asUintN(64, BigInt(this.vm.time.now()) + this.vmcb.long(VMCB.TSC_OFFSET));
  }
  /** KVM_RUN would go on now, and not block for an event. */
  get ready(): boolean {
    this.vm.time.expire();
    return !this.#closed && !this.cycle.isWaiting && this.mp.ready;
  }

  /** The core that runs this vCPU. Errors: ENOMEM, before there is one. */
  get core(): GuestCore {
    const core = this.#core ?? this.#tryCore();
    if (core === undefined) throw new LinuxError('ENOMEM', `vCPU ${this.id}: no host memory for its core`);
    // A listener of the trace may have closed the vCPU when it heard of the core.
    if (this.#closed && !this.#running) throw new LinuxError('EBADF', `vCPU ${this.id}: closed`);
    return core;
  }

  /** The dirty ring, as user space maps it at page 64 of the vCPU. */
  get dirtyRing(): Int32Array | undefined {
    return this.#closed ? undefined : this.#frames.ring?.entries;
  }

  /** Retired by the core, and those that KVM carried out for the guest. */
  get instructions(): number {
    return (this.#core?.retired ?? 0) + this.cycle.emulated;
  }

  run(): number {
    if (this.#closed) return -ERRNO.EBADF;
    if (this.#running) return -ERRNO.EINTR;
    const { trace } = this.vm;
    this.#enter();
    try {
      const core = this.#core ?? this.#tryCore();
      return core === undefined ? -ERRNO.ENOMEM : this.cycle.run(core);
    } finally {
      this.#leave();
      if (trace.failed) trace.throwFailure();
    }
  }

  getRegs(): Regs {
    this.checkOpen();
    this.sev?.checkUnprotected('KVM_GET_REGS');
    const regs = getRegs(this.vmcb, this.gpr);
    regs.rflags = this.debug.guestFlags(regs.rflags);
    return regs;
  }
  setRegs(regs: Regs): void {
    this.checkOpen();
    kvm_regs.check(regs);
    this.sev?.checkUnprotected('KVM_SET_REGS');
    setRegs(this.vmcb, this.gpr, regs);
    this.debug.setGuestFlags(this.vmcb.save(SAVE.RFLAGS));
    this.events.exception.pending = false;
  }
  getSregs(): Sregs {
    this.checkOpen();
    this.sev?.checkUnprotected('KVM_GET_SREGS');
    const sregs = getSregs(this.vmcb, this.other);
    const { injected, soft, vector } = this.events.interrupt;
    if (!injected || soft) return sregs;
    const interruptBitmap = [0n, 0n, 0n, 0n];
    interruptBitmap[vector >>> 6] = 1n << BigInt(vector & 63);
    return { ...sregs, interruptBitmap };
  }
  setSregs(sregs: Sregs): void {
    this.checkOpen();
    kvm_sregs.check(membersOf(sregs));
    this.sev?.checkUnprotected('KVM_SET_SREGS');
    const oldBase = this.other.apicBase;
    setSregs(this.vmcb, this.other, sregs, this);
    if (sregs.apicBase !== oldBase) this.apic?.baseChanged(oldBase);
    this.setCr8(Number(sregs.cr8 & 15n));
    this.apic?.lapic.setTpr(this.other.cr8 << 4);
    this.#unhaltAfterReset(sregs);
    this.kvmRun.cr8Number = this.other.cr8;
    this.kvmRun.apicBase = this.other.apicBase;
    this.cycle.flushTlb();
    const word = sregs.interruptBitmap.findIndex((bits) => bits !== 0n);
    if (word < 0) return;
    const bits = sregs.interruptBitmap[word]!;
    this.events.queueInterrupt(word * 64 + (bits & -bits).toString(2).length - 1);
  }
  getCpuid2(): CpuidEntry[] {
    this.checkOpen();
    return this.cpuid.get(this.cpuidState);
  }
  setCpuid2(entries: readonly CpuidEntry[]): void {
    this.checkOpen();
    checkEntries(entries, 'kvm_cpuid2.entries');
    for (const entry of entries) kvm_cpuid_entry2.check(entry);
    this.cpuid.set(entries, { ...this.cpuidState, hasRun: this.cycle.hasRun });
    this.#interceptRdtscp();
    this.msrFilterChanged();
    this.apic?.lapic.setVersion();
  }
  getLapic(): Uint8Array {
    this.checkOpen();
    return this.#inKernelApic('KVM_GET_LAPIC').getState();
  }
  setLapic(state: Uint8Array): void {
    this.checkOpen();
    checkBytes(state, LAPIC_STATE_BYTES, 'kvm_lapic_state.regs');
    const apic = this.#inKernelApic('KVM_SET_LAPIC');
    apic.setState(state);
    this.setCr8(apic.lapic.cr8);
  }
  /** KVM_INTERRUPT. Errors: EINVAL (no such vector), ENXIO and EEXIST by the kernel's own interrupt controller. */
  interrupt(vector: number): void {
    this.checkOpen();
    u32.check(vector, 'kvm_interrupt.irq');
    if (vector >= NR_INTERRUPTS)
      throw new LinuxError('EINVAL', `KVM_INTERRUPT ${vector}: vectors are below ${NR_INTERRUPTS}`);
    if (this.apic === undefined) this.events.queueInterrupt(vector);
    else this.apic.queueExternal(vector);
  }
  nmi(): void {
    this.checkOpen();
    this.events.queueNmi();
    this.mp.wake();
  }
  preFaultMemory(range: PreFaultRange & { flags: bigint }): PreFaultRange {
    this.checkOpen();
    this.#enter();
    try {
      return preFaultMemory(this, range);
    } finally {
      this.#leave();
    }
  }

  /**
   * An ioctl begins. Errors: EBADF; EINTR, from within KVM_RUN of the same vCPU (a trace listener): there the one thread would wait
   * for vcpu->mutex, which it holds, until a signal comes (mutex_lock_killable).
   */
  checkOpen(): void {
    if (this.#closed) throw new LinuxError('EBADF', `vCPU ${this.id}: closed`);
    if (this.#running) throw new LinuxError('EINTR', `vCPU ${this.id}: in KVM_RUN`);
  }

  /** close(2) of the descriptor, and munmap of what it shares. KVM_RUN holds the file (fdget): it ends first. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    if (!this.#running) this.#release();
  }

  // What the exit handlers do to a vCPU.

  /** The intercepted instruction was carried out. A run result. */
  skipInstruction(): number {
    return this.cycle.skipInstruction();
  }
  /** IA32_APIC_BASE. False: refused. */
  setApicBase(value: bigint, by: MsrAccess): boolean {
    return setApicBase(this, value, by);
  }
  /** The MSR filter of the VM, or what the guest's CPUID has, changed. */
  msrFilterChanged(): void {
    this.#frames.maps.apply(this.vm.msrFilter, this.sev);
  }
  /** kvm_vcpu_is_legal_gpa */
  isLegalGpa(gpa: bigint): boolean {
    return this.cpuid.isLegalGpa(gpa, this.sev === undefined ? 'plain' : 'encrypted');
  }
  /** msr_write_intercepted */
  interceptsMsrWrite(index: number): boolean {
    return this.#frames.maps.interceptsWrite(index);
  }
  /** `number` as instructions encode it. */
  readGpr(number: number): bigint {
    if (number === GPR.RAX) return this.vmcb.save(SAVE.RAX);
    if (number === GPR.RSP) return this.vmcb.save(SAVE.RSP);
    return this.gpr[number]!;
  }
  writeGpr(number: number, value: bigint): void {
    if (number === GPR.RAX) this.vmcb.setSave(SAVE.RAX, value);
    else if (number === GPR.RSP) this.vmcb.setSave(SAVE.RSP, value);
    else this.gpr[number] = value;
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
    const tscOffset = this.vmcb.long(VMCB.TSC_OFFSET);
    const ghcbMsr = this.vmcb.long(VMCB.GHCB_GPA);
    this.vm.memory.clear(this.vmcb.spa, 4096);
    this.#initControl();
    this.vmcb.setSave(SAVE.G_PAT, pat);
    this.vmcb.setLong(VMCB.TSC_OFFSET, tscOffset);
    resetRegisters(this.vmcb, this.gpr, { kind: 'init', oldCr0, signature: this.cpuid.signature });
    this.sev?.initReceived(ghcbMsr);
    this.setCr8(0);
    this.cycle.flushTlb();
    this.events.reset();
    this.apic?.reset('init');
    this.debug.reset();
  }

  /** SIPI: real mode at vector:0 (kvm_vcpu_deliver_sipi_vector). */
  startAt(vector: number): void {
    if (this.sev?.sipiReceived() === true) return;
    this.vmcb.setSaveWord(SAVE.CS, (this.vmcb.saveWord(SAVE.CS) & ~0xffff) | (vector << 8));
    this.vmcb.setSave(SAVE.CS + 8, BigInt(vector << 12));
    this.vmcb.setSave(SAVE.RIP, 0n);
  }

  #enter(): void {
    this.#running = true;
    this.vm.process.enterKernel();
  }
  #leave(): void {
    this.#running = false;
    if (this.#closed) this.#release();
    this.vm.process.leaveKernel();
  }

  #inKernelApic(call: string): VcpuApic {
    if (this.apic === undefined) throw new LinuxError('EINVAL', `${call}: no local APIC in the kernel`);
    return this.apic;
  }

  /** User space that resets a boot processor by its registers alone means it to run. */
  #unhaltAfterReset(sregs: Sregs): void {
    const { cs } = sregs;
    if ((this.other.apicBase & APIC_BASE_BSP) === 0n || this.vmcb.save(SAVE.RIP) !== 0xfff0n) return;
    if (cs.selector === 0xf000 && cs.base === 0xffff_0000n && (sregs.cr0 & 1n) === 0n) this.mp.makeRunnable();
  }

  #initControl(): void {
    this.vmcb.initControl({
      nestedRoot: this.vm.mmu.root,
      ioPermissions: spaOf(this.#frames.maps.ports),
      msrPermissions: spaOf(this.#frames.maps.msrs),
      asid: ASID,
    });
    this.#interceptRdtscp();
  }

  /** svm_recalc_instruction_intercepts: a guest whose CPUID lacks RDTSCP gets #UD. */
  #interceptRdtscp(): void {
    if (this.cpuid.hasRdtscp) this.vmcb.dropIntercept(INTERCEPT.RDTSCP);
    else this.vmcb.intercept(INTERCEPT.RDTSCP);
  }

  /** The last reference to the file is gone (kvm_vcpu_release). */
  #release(): void {
    this.vm.trace.tellAfter(() => {
      this.mp.endBlock();
      this.apic?.lapic.timer.cancel();
      this.cycle.emulated = this.instructions;
      this.#core?.close();
      this.#core = undefined;
      this.sev?.free();
      this.#frames.free();
      this.vm.vcpuClosed(this);
    });
  }

  /** Makes the core; undefined when the host has no memory for it. */
  #tryCore(): GuestCore | undefined {
    return this.vm.trace.tellAfter(() => {
      let core: GuestCore;
      try {
        core = this.vm.createCore(this.id);
      } catch (error) {
        if (error instanceof RangeError) return undefined;
        throw error;
      }
      this.#core = core;
      core.gpr.set(this.gpr);
      this.gpr = core.gpr;
      this.gprWords = core.gprWords;
      return core;
    });
  }
}
