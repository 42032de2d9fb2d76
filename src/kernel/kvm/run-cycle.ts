/**
 * KVM_RUN (Linux arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_run, vcpu_run, vcpu_enter_guest): the last exit is completed with what the VMM
 * answered, then exit_reason becomes 0 and the guest runs until an exit is due for user space; with immediate_exit it does not run, and
 * exit_reason stays. With `vm.timeslice` the VMM's thread gets a signal after that many instructions: −EINTR, exit
 * INTR; a VMM that runs several vCPUs on one thread takes turns by it, and time-outs work.
 */
import {
  KVM_EXIT_DIRTY_RING_FULL,
  KVM_EXIT_INTR,
  KVM_EXIT_IOAPIC_EOI,
  KVM_EXIT_IRQ_WINDOW_OPEN,
  KVM_EXIT_SHUTDOWN,
  KVM_EXIT_UNKNOWN,
} from '../../abi/kvm.ts';
import { SAVE, TLB_CONTROL, VMCB, VMEXIT } from '../../abi/vmcb.ts';
import { RFLAGS } from '../../abi/x86.ts';
import { ERRNO } from '../../base/errors.ts';
import { RUN_PENDING } from '../interface.ts';
import type { DirtyRing } from './dirty-ring.ts';
import { ENTRY } from './event-injection.ts';
import { traceExit } from './exit-trace.ts';
import { completeHypercall } from './hypercall.ts';
import type { VcpuApic } from './lapic/vcpu-apic.ts';
import { GUEST_AGAIN, TO_USER_SPACE, WAIT } from './run-result.ts';
import { completeIn, finishFault, handleExit } from './svm/exits.ts';
import type { GuestCore } from './svm/guest-core.ts';
import { completeMsr } from './svm/msr.ts';
import type { VcpuSev } from './svm/sev/vcpu-sev.ts';
import { nextTimeslice } from './timeslice.ts';
import type { Vcpu } from './vcpu.ts';

const UNLIMITED = 0x7fff_ffff;
const RIP = VMCB.SAVE_AREA + SAVE.RIP;
/** CR8 has four bits. */
const MAX_CR8 = 0xf;

/** What the next KVM_RUN has to finish first (vcpu->arch.complete_userspace_io). */
const COMPLETE = {
  NOTHING: 0,
  IN: 1,
  OUT: 2,
  MMIO_READ: 3,
  MMIO_WRITE: 4,
  HYPERCALL: 5,
  RDMSR: 6,
  WRMSR: 7,
} as const;
/** Whom a pending KVM_RUN waits for. */
const WAITING = { NOBODY: 0, FAULT: 1, MMIO: 2, RETRY: 3 } as const;

export class RunCycle {
  /** Instructions that KVM carried out for the guest. */
  emulated = 0;
  /** KVM_RUN entered the guest at least once. */
  hasRun = false;
  readonly #vcpu: Vcpu;
  readonly #ring: DirtyRing | undefined;
  #complete: number = COMPLETE.NOTHING;
  #waiting: number = WAITING.NOBODY;
  #exitRipLow = 0;
  #exitRipHigh = 0;
  #sliceLeft: number;
  #tlbGeneration = -1;

  /** `ring`: the vCPU's dirty ring, where it has one. */
  constructor(vcpu: Vcpu, ring: DirtyRing | undefined) {
    this.#vcpu = vcpu;
    this.#ring = ring;
    this.#sliceLeft = nextTimeslice(vcpu.vm.timeslice, vcpu.vm.turns);
  }

  /** A KVM_RUN that returned RUN_PENDING has something to finish. */
  get isWaiting(): boolean {
    return this.#waiting !== WAITING.NOBODY;
  }

  /** The next entry drops all translations. */
  flushTlb(): void {
    this.#tlbGeneration = -1;
  }

  /** KVM_RUN on the vCPU's core. 0, −errno, or RUN_PENDING. */
  run(core: GuestCore): number {
    const vcpu = this.#vcpu;
    const { kvmRun } = vcpu;
    vcpu.pending = undefined;
    this.#vcpu.mp.endBlock();
    this.#vcpu.sev?.beforeRun();
    let result: number;
    if (this.#vcpu.mp.isUninitialized) result = this.#waitForStart();
    else if (this.#vcpu.apic === undefined && !this.#takeCr8()) result = -ERRNO.EINVAL;
    else {
      result = this.#vcpu.sev === undefined ? this.#completeExit() : this.#completeSevExit(this.#vcpu.sev);
      if (result === GUEST_AGAIN) result = kvmRun.immediateExit !== 0 ? -ERRNO.EINTR : this.#enter(core);
    }
    this.#saveRunState();
    if (this.#vcpu.vm.trace.on) traceExit(this.#vcpu.vm.trace, this.#vcpu.id, result, kvmRun.exitReason);
    return result === WAIT ? RUN_PENDING : result;
  }

  /** The intercepted instruction was carried out (kvm_skip_emulated_instruction). A run result: where TF is set, it was a step. */
  skipInstruction(): number {
    const { vmcb, events } = this.#vcpu;
    if (this.#vcpu.sev !== undefined) {
      // The guest's own #VC handler steps over it.
      this.emulated++;
      return GUEST_AGAIN;
    }
    const stepped = events.trapsSteps;
    vmcb.skipInstruction();
    this.emulated++;
    return stepped ? this.#vcpu.debug.stepped() : GUEST_AGAIN;
  }
  /** Has KVM_RUN return RUN_PENDING; the fault goes on afterwards. */
  waitFor(pending: Promise<void>): number {
    this.#vcpu.pending = pending;
    this.#waiting = pending === this.#vcpu.fault.pending ? WAITING.FAULT : WAITING.RETRY;
    return WAIT;
  }
  /** The same for an access of an emulated instruction. */
  waitForMmio(pending: Promise<void>): number {
    this.#vcpu.pending = pending;
    this.#waiting = WAITING.MMIO;
    return WAIT;
  }
  awaitIo(direction: 'in' | 'out'): void {
    this.#complete = direction === 'in' ? COMPLETE.IN : COMPLETE.OUT;
    this.#exitRipLow = this.#vcpu.vmcb.word(RIP);
    this.#exitRipHigh = this.#vcpu.vmcb.word(RIP + 4);
  }
  awaitMmio(access: 'read' | 'write'): void {
    this.#complete = access === 'read' ? COMPLETE.MMIO_READ : COMPLETE.MMIO_WRITE;
  }
  awaitHypercall(): void {
    this.#complete = COMPLETE.HYPERCALL;
  }
  awaitMsr(access: 'read' | 'write'): void {
    this.#complete = access === 'read' ? COMPLETE.RDMSR : COMPLETE.WRMSR;
  }
  /** Takes instructions from the slice that the vCPU did not run. */
  spendSlice(instructions: number): void {
    this.#sliceLeft -= instructions;
  }
  /** KVM_RUN of a vCPU that was never started: −EAGAIN as soon as something came. */
  #waitForStart(): number {
    const { kvmRun, mp } = this.#vcpu;
    if (kvmRun.immediateExit !== 0) return -ERRNO.EINTR;
    if (!mp.ready) {
      this.#vcpu.pending = mp.block();
      return WAIT;
    }
    mp.acceptEvents();
    return -ERRNO.EAGAIN;
  }
  /** User space's CR8 is the vCPU's, where no APIC in the kernel has it. False: it has more bits than CR8. */
  #takeCr8(): boolean {
    const { cr8Number } = this.#vcpu.kvmRun;
    if (cr8Number > MAX_CR8) return false;
    this.#vcpu.setCr8(cr8Number);
    return true;
  }

  /** vcpu_block: a vCPU that does not run goes on, or waits for what has it go on. A run result. */
  #awaitEvents({ lapic }: VcpuApic): number {
    const { mp } = this.#vcpu;
    if (lapic.timerPending) lapic.injectTimer();
    if (!mp.isRunning && mp.ready) mp.unblock();
    if (mp.isRunning) return GUEST_AGAIN;
    this.#vcpu.pending = mp.block();
    return WAIT;
  }

  /** What the kernel's APIC wants done before an entry: an EOI for user space's IOAPIC, INIT and SIPI, the task priority. A run result. */
  #serveApic(apic: VcpuApic): number {
    const { lapic } = apic;
    const { mp, kvmRun } = this.#vcpu;
    if (lapic.pendingIoapicEoi >= 0) {
      kvmRun.exitReason = KVM_EXIT_IOAPIC_EOI;
      kvmRun.eoiVector = lapic.pendingIoapicEoi;
      lapic.pendingIoapicEoi = -1;
      return TO_USER_SPACE;
    }
    mp.acceptEvents();
    if (!mp.isRunning) return this.#awaitEvents(apic);
    this.#vcpu.setCr8(lapic.cr8);
    return GUEST_AGAIN;
  }

  #completeSevExit(sev: VcpuSev): number {
    const result = this.#completeExit();
    return result === GUEST_AGAIN ? sev.complete() : result;
  }

  /** Finishes what the last KVM_RUN left to the VMM. GUEST_AGAIN: nothing is in the way of the guest. */
  #completeExit(): number {
    const complete = this.#complete;
    this.#complete = COMPLETE.NOTHING;
    switch (complete) {
      case COMPLETE.NOTHING:
        return GUEST_AGAIN;
      case COMPLETE.MMIO_READ:
        return this.#vcpu.mmio.completeRead();
      case COMPLETE.MMIO_WRITE:
        return this.#vcpu.mmio.completeWrite();
      case COMPLETE.HYPERCALL:
        return completeHypercall(this.#vcpu);
      case COMPLETE.RDMSR:
        return completeMsr(this.#vcpu, 'read');
      case COMPLETE.WRMSR:
        return completeMsr(this.#vcpu, 'write');
      default:
        // A VMM that moved RIP (a reset) does not want the instruction completed.
        if (
          this.#exitRipLow !== this.#vcpu.vmcb.word(RIP) ||
          this.#exitRipHigh !== this.#vcpu.vmcb.word(RIP + 4)
        )
          return GUEST_AGAIN;
        if (complete === COMPLETE.IN) completeIn(this.#vcpu);
        return this.skipInstruction();
    }
  }

  /** vcpu_run: until something is due for user space. */
  #enter(core: GuestCore): number {
    this.#vcpu.kvmRun.exitReason = KVM_EXIT_UNKNOWN;
    const waited = this.#resumeWaiting();
    if (waited !== GUEST_AGAIN) return waited;
    this.hasRun = true;
    const { vmcb, vm, events, kvmRun, apic, sev } = this.#vcpu;
    const { time, process } = vm;
    const ring = this.#ring;
    for (;;) {
      if (process.exiting) return this.#interrupted();
      if (time.nextDue <= time.now()) time.expire();
      if (apic !== undefined) {
        const awake = this.#awaitEvents(apic);
        if (awake !== GUEST_AGAIN) return awake;
      }
      if (ring?.blocks() === true) {
        kvmRun.exitReason = KVM_EXIT_DIRTY_RING_FULL;
        return TO_USER_SPACE;
      }
      if (apic !== undefined) {
        const served = this.#serveApic(apic);
        if (served !== GUEST_AGAIN) return served;
      }
      const limited = vm.timeslice > 0;
      if (limited && this.#sliceLeft <= 0) {
        this.#sliceLeft = nextTimeslice(vm.timeslice, vm.turns);
        return this.#interrupted();
      }
      const windowWanted = kvmRun.requestInterruptWindow !== 0 && events.acceptsUserInterrupt;
      let budget = limited ? this.#sliceLeft : UNLIMITED;
      if (apic !== undefined) budget = Math.min(budget, apic.lapic.timer.due - time.now());
      if (events.requested || windowWanted) {
        const entry = events.inject(windowWanted);
        if (entry === ENTRY.TRIPLE_FAULT) {
          kvmRun.exitReason = KVM_EXIT_SHUTDOWN;
          return TO_USER_SPACE;
        }
        if (entry === ENTRY.AND_BACK) budget = 0;
      }
      const flush = this.#tlbGeneration !== vm.mmu.tlbGeneration;
      if (flush) {
        this.#tlbGeneration = vm.mmu.tlbGeneration;
        vmcb.setWord(VMCB.TLB_CONTROL, TLB_CONTROL.FLUSH_ASID);
      }
      if (sev !== undefined) {
        const refusal = sev.beforeEntry();
        if (refusal !== 0) return refusal;
      }
      const { retired } = core;
      const emulated = this.emulated;
      time.enter(core, retired);
      const delivers = vmcb.eventPending;
      const code = core.vmrun(vmcb.spa, budget);
      if (flush) vmcb.setWord(VMCB.TLB_CONTROL, TLB_CONTROL.NOTHING);
      vmcb.markAllClean();
      if (sev !== undefined) sev.afterExit();
      if (code !== VMEXIT.INVALID && events.inFlight) events.complete();
      const result = handleExit(this.#vcpu, code);
      let ran = core.retired - retired + this.emulated - emulated;
      // Exceptions alone retire nothing, and yet take time.
      if (ran === 0 && budget > 0 && (delivers || code === VMEXIT.INTR)) ran = 1;
      time.leave(ran);
      if (limited) this.#sliceLeft -= ran;
      if (result !== GUEST_AGAIN) return result;
      if (kvmRun.requestInterruptWindow !== 0 && events.readyForUserInterrupt) {
        kvmRun.exitReason = KVM_EXIT_IRQ_WINDOW_OPEN;
        return TO_USER_SPACE;
      }
    }
  }

  #resumeWaiting(): number {
    const waiting = this.#waiting;
    this.#waiting = WAITING.NOBODY;
    if (waiting === WAITING.FAULT)
      return finishFault(this.#vcpu, this.#vcpu.faults.resume(this.#vcpu.fault, this.#vcpu.kvmRun));
    if (waiting === WAITING.MMIO) return this.#vcpu.mmio.resume();
    return GUEST_AGAIN;
  }

  #interrupted(): number {
    this.#vcpu.kvmRun.exitReason = KVM_EXIT_INTR;
    return -ERRNO.EINTR;
  }

  /** post_kvm_run_save */
  #saveRunState(): void {
    const { kvmRun, vmcb, events, other } = this.#vcpu;
    const ifFlag = (vmcb.rflags & RFLAGS.IF) !== 0 ? 1 : 0;
    kvmRun.saveRunState(ifFlag, events.readyForUserInterrupt ? 1 : 0, other.cr8, other.apicBase);
  }
}
