/**
 * Serves the exits of vCPUs (QEMU accel/kvm/kvm-all.c: the switch of kvm_cpu_exec; target/i386/kvm/kvm.c:
 * kvm_arch_handle_exit): each is counted, then answered by a device, by a conversion, or by the end of the run.
 */
import {
  KVM_EXIT_AP_RESET_HOLD,
  KVM_EXIT_DIRTY_RING_FULL,
  KVM_EXIT_FAIL_ENTRY,
  KVM_EXIT_HLT,
  KVM_EXIT_HYPERCALL,
  KVM_EXIT_INTERNAL_ERROR,
  KVM_EXIT_INTR,
  KVM_EXIT_IO,
  KVM_EXIT_IO_IN,
  KVM_EXIT_IOAPIC_EOI,
  KVM_EXIT_MMIO,
  KVM_EXIT_SHUTDOWN,
  KVM_EXIT_SNP_REQ_CERTS,
  KVM_EXIT_SYSTEM_EVENT,
  KVM_EXIT_VMGEXIT,
} from '../abi/kvm.ts';
import { NotImplementedError } from '../base/errors.ts';
import type { Trace, TraceEvent } from '../base/trace.ts';
import type { CertificateSource } from './confidential-guest/certificate-source.ts';
import type { DebugExit } from './devices/debug-exit.ts';
import type { ResetControl } from './devices/reset-control.ts';
import { hex, VmmError } from './error.ts';
import { type FaultingVcpu, type GuestConversionOptions, GuestConversions } from './guest-conversions.ts';
import type { IoDispatch } from './memory/io-dispatch.ts';
import {
  EXIT_CODE_FAILED,
  type ExitCounts,
  failed,
  internalError,
  type RunEnd,
  systemEvent,
  where,
} from './run-end.ts';

export interface ExitHandlerOptions extends GuestConversionOptions {
  readonly ports: IoDispatch;
  readonly memory: IoDispatch;
  readonly debugExit: DebugExit;
  readonly resetControl: ResetControl;
  /** Resets the machine. Throws VmmError or NotImplementedError: it cannot be, and the run ends. */
  readonly reset: () => void;
  /** KVM_EXIT_IOAPIC_EOI: the machine's IOAPIC hears of an EOI. */
  readonly endOfInterrupt: (vector: number) => void;
  /** KVM_EXIT_DIRTY_RING_FULL: makes room in the rings. Throws VmmError. */
  readonly dirtyRingFull: () => void;
  /** Where guests' requests for certificates are answered. */
  readonly certificates: CertificateSource | undefined;
}

/** A vCPU with what the VMM knows of it. */
export interface MachineVcpu extends FaultingVcpu {
  state: 'runnable' | 'waiting' | 'halted';
}

export class ExitHandler {
  readonly counts: ExitCounts = {
    io: 0,
    mmio: 0,
    hypercall: 0,
    memory_fault: 0,
    hlt: 0,
    shutdown: 0,
    intr: 0,
    ioapic_eoi: 0,
    dirty_ring_full: 0,
    req_certs: 0,
    system_event: 0,
    internal_error: 0,
    fail_entry: 0,
    pending: 0,
    other: 0,
  };
  /** Set once the run has ended. */
  end: RunEnd | undefined;
  /** What the core said that could not go on in the last KVM_RUN. (After a triple fault KVM has reset the vCPU.) */
  failure: TraceEvent | undefined;
  readonly #options: ExitHandlerOptions;
  readonly #conversions: GuestConversions;
  readonly #trace: Trace;

  constructor(options: ExitHandlerOptions) {
    this.#options = options;
    this.#conversions = new GuestConversions(options);
    this.#trace = options.trace;
  }

  /** KVM_RUN returned 0. */
  serve(cpu: MachineVcpu): void {
    const { run } = cpu;
    switch (run.exitReason) {
      case KVM_EXIT_IO:
        this.counts.io++;
        this.#io(cpu);
        break;
      case KVM_EXIT_MMIO:
        this.counts.mmio++;
        this.#mmio(cpu);
        break;
      case KVM_EXIT_HYPERCALL:
        this.counts.hypercall++;
        this.#endIfFailed(cpu, this.#conversions.hypercall(cpu));
        break;
      case KVM_EXIT_HLT:
        this.counts.hlt++;
        // Without an interrupt controller nothing ever wakes it.
        cpu.state = 'halted';
        break;
      case KVM_EXIT_SHUTDOWN:
        this.counts.shutdown++;
        this.end = {
          reason: 'shutdown',
          code: EXIT_CODE_FAILED,
          message: `vCPU ${cpu.vcpu.id}: triple fault${this.#cause(cpu)}`,
        };
        break;
      case KVM_EXIT_INTR:
        this.counts.intr++;
        break;
      case KVM_EXIT_SNP_REQ_CERTS:
      case KVM_EXIT_VMGEXIT:
        this.counts.req_certs++;
        this.#certificates(cpu);
        break;
      case KVM_EXIT_SYSTEM_EVENT:
        this.counts.system_event++;
        this.end = systemEvent(cpu.vcpu);
        break;
      case KVM_EXIT_AP_RESET_HOLD:
        this.counts.other++;
        // Nothing wakes it but another vCPU's AP creation.
        cpu.state = 'halted';
        break;
      case KVM_EXIT_IOAPIC_EOI:
        this.counts.ioapic_eoi++;
        this.#options.endOfInterrupt(run.eoiVector);
        break;
      case KVM_EXIT_DIRTY_RING_FULL:
        this.counts.dirty_ring_full++;
        this.#options.dirtyRingFull();
        break;
      case KVM_EXIT_INTERNAL_ERROR:
        this.counts.internal_error++;
        this.end = failed(cpu.vcpu, `KVM internal error: ${internalError(run)}${this.#cause(cpu)}`);
        break;
      case KVM_EXIT_FAIL_ENTRY:
        this.counts.fail_entry++;
        this.end = failed(cpu.vcpu, `KVM: entry failed, hardware error ${hex(run.failEntryReason)}`);
        break;
      default:
        this.counts.other++;
        this.end = failed(cpu.vcpu, `KVM: unhandled exit reason ${run.exitReason}${where(cpu.vcpu)}`);
    }
  }

  /** KVM_RUN failed with EFAULT and KVM_EXIT_MEMORY_FAULT. */
  memoryFault(cpu: MachineVcpu): void {
    this.counts.memory_fault++;
    this.#endIfFailed(cpu, this.#conversions.memoryFault(cpu));
  }

  /** Where and why the vCPU stopped, if its core said so; else where it stands. */
  #cause({ vcpu }: MachineVcpu): string {
    const failure = this.failure;
    return failure === undefined ? where(vcpu) : ` at rip ${failure['rip']}: ${failure.why}`;
  }

  #io(cpu: MachineVcpu): void {
    const { run } = cpu;
    const size = run.ioSize;
    const port = run.ioPort;
    const count = run.ioCount;
    const into = run.ioDirection === KVM_EXIT_IO_IN;
    const { ports, debugExit, resetControl } = this.#options;
    if (this.#trace.on) {
      this.#trace.emit({
        kind: 'exit',
        who: 'vmm',
        what: into ? 'io in' : 'io out',
        vcpu: cpu.vcpu.id,
        port,
        size,
        count,
      });
    }
    let at = run.ioDataOffset;
    for (let i = 0; i < count; i++, at += size) {
      if (into) ports.read(port, size, run.bytes, at);
      else ports.write(port, size, run.bytes, at);
      if (debugExit.code >= 0) {
        this.end = { reason: 'debug-exit', code: debugExit.code };
        return;
      }
      if (resetControl.requested) {
        this.#reset(cpu);
        return;
      }
    }
  }

  /** qemu_system_reset_request */
  #reset(cpu: MachineVcpu): void {
    this.#options.resetControl.requested = false;
    try {
      this.#options.reset();
    } catch (error) {
      if (!(error instanceof VmmError || error instanceof NotImplementedError)) throw error;
      const message = `vCPU ${cpu.vcpu.id}: ${error.message}`;
      this.end = { reason: 'shutdown', code: EXIT_CODE_FAILED, message };
    }
  }

  #mmio(cpu: MachineVcpu): void {
    const { run } = cpu;
    const address = run.mmioPhysAddrNumber;
    const write = run.mmioIsWrite !== 0;
    if (this.#trace.on) {
      this.#trace.emit({
        kind: 'exit',
        who: 'vmm',
        what: write ? 'mmio write' : 'mmio read',
        vcpu: cpu.vcpu.id,
        gpa: address,
        size: run.mmioLen,
      });
    }
    if (write) this.#options.memory.write(address, run.mmioLen, run.mmioData, 0);
    else this.#options.memory.read(address, run.mmioLen, run.mmioData, 0);
  }

  #certificates(cpu: MachineVcpu): void {
    const { certificates } = this.#options;
    if (certificates === undefined)
      this.end = failed(cpu.vcpu, 'the guest wants certificates, and the machine has none to give');
    else if (cpu.run.exitReason === KVM_EXIT_VMGEXIT) certificates.requestedEarly(cpu.vcpu);
    else certificates.requested(cpu.vcpu);
  }

  #endIfFailed({ vcpu }: MachineVcpu, message: string | undefined): void {
    if (message !== undefined) this.end = failed(vcpu, message);
  }
}
