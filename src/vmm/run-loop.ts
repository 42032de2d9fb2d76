/**
 * Runs the vCPUs of a machine in turn, one at a time, and serves their exits (QEMU accel/kvm/kvm-all.c: kvm_cpu_exec;
 * target/i386/kvm/kvm.c: kvm_arch_handle_exit). A vCPU keeps its turn until KVM_RUN is interrupted, it waits or halts, or it
 * has left the guest often, so the order depends on nothing but the guests.
 *
 * The loop is synchronous while nobody waits; now and then it lets the event loop run. Nothing makes it spin: a conversion
 * that fails ends the run, and so does a memory fault that a successful conversion did not cure.
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
  KVM_EXIT_MEMORY_FAULT,
  KVM_EXIT_MMIO,
  KVM_EXIT_SHUTDOWN,
  KVM_EXIT_SNP_REQ_CERTS,
  KVM_EXIT_SYSTEM_EVENT,
  KVM_EXIT_UNKNOWN,
  KVM_EXIT_VMGEXIT,
  KVM_HC_MAP_GPA_RANGE,
} from '../abi/kvm.ts';
import type { KvmRun } from '../abi/kvm-run.ts';
import { PAGE_SIZE } from '../base/address.ts';
import { type Clock, platformClock } from '../base/clock.ts';
import type { Entropy } from '../base/entropy.ts';
import { ERRNO, NotImplementedError } from '../base/errors.ts';
import type { Trace, TraceEvent } from '../base/trace.ts';
import { type KvmVcpu, RUN_PENDING } from '../kernel/interface.ts';
import type { CertificateSource } from './confidential-guest/certificate-source.ts';
import type { DebugExit } from './devices/debug-exit.ts';
import type { ResetControl } from './devices/reset-control.ts';
import { hex, nameOfResult, VmmError } from './error.ts';
import type { Conversion } from './memory/convert-memory.ts';
import type { IoDispatch } from './memory/io-dispatch.ts';
import { preFault } from './pre-fault.ts';
import {
  EXIT_CODE_FAILED,
  EXIT_CODE_TIMEOUT,
  type ExitCounts,
  internalError,
  type RunEnd,
  systemEvent,
  where,
} from './run-end.ts';

export type { ExitCounts, RunEnd } from './run-end.ts';

/** Bits of KVM_EXIT_MEMORY_FAULT and of MAP_GPA_RANGE's third argument. */
const FAULT_PRIVATE = 8;
const MAP_ENCRYPTED = 16n;

/** Exits after which the next vCPU has its turn; with a seed, on average. */
const EXITS_A_TURN = 64;
/** Nanoseconds after which the event loop has its turn. */
const SLICE = 10e6;
/** Faults of one vCPU at one place, with conversions by others in between, before the run ends. */
const MAX_FAULT_REPEATS = 1000;
/** vCPUs of which a time-out says where they stand. */
const POSITIONS = 4;

export interface RunOptions {
  /** Milliseconds; absent: for ever. */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
  readonly clock?: Clock;
}

export interface RunLoopOptions {
  readonly vcpus: readonly KvmVcpu[];
  readonly ports: IoDispatch;
  readonly memory: IoDispatch;
  readonly debugExit: DebugExit;
  readonly resetControl: ResetControl;
  /** Resets the machine. Throws VmmError or NotImplementedError: it cannot be, and the run ends. */
  readonly reset: () => void;
  /** KVM_EXIT_IOAPIC_EOI: the machine's IOAPIC hears of an EOI. */
  readonly endOfInterrupt: (vector: number) => void;
  readonly convert: (start: number, size: number, to: 'private' | 'shared') => Conversion;
  /** Whether the kernel can map memory in advance (KVM_CAP_PRE_FAULT_MEMORY). */
  readonly preFaultSupported: boolean;
  /** KVM_EXIT_DIRTY_RING_FULL: makes room in the rings. Throws VmmError. */
  readonly dirtyRingFull: () => void;
  /** What went wrong last, in words. */
  readonly lastReport: () => string;
  /** Hands on what the guest wrote so far. */
  readonly flushConsole: () => void;
  /** Where guests' requests for certificates are answered. */
  readonly certificates: CertificateSource | undefined;
  readonly trace: Trace;
  /** Draws after how many exits a vCPU's turn ends: another order of the vCPUs for each seed. Absent: always alike. */
  readonly turns?: Entropy | undefined;
}

type VcpuState = 'runnable' | 'waiting' | 'halted';

/** The early form's second exit, which says that the report is made: it is served like any exit. */
const isEarlyNotice = (run: KvmRun): boolean => run.exitReason === KVM_EXIT_VMGEXIT;

/** A vCPU with what the loop knows of it. */
interface Turn {
  readonly vcpu: KvmVcpu;
  readonly run: KvmRun;
  state: VcpuState;
  faultGpa: number;
  faultFlags: number;
  faultInstructions: number;
  faultConversions: number;
  faultRepeats: number;
}

export class RunLoop {
  readonly exits: ExitCounts = {
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
  readonly #options: RunLoopOptions;
  readonly #trace: Trace;
  /** What the core said that could not go on in the last KVM_RUN. (After a triple fault KVM has reset the vCPU.) */
  #failure: TraceEvent | undefined;
  readonly #turns: readonly Turn[];
  #next = 0;
  #end: RunEnd | undefined;
  /** Conversions that succeeded. */
  #conversions = 0;
  /** Resolves the promise that an idle loop waits for. */
  #wake: (() => void) | undefined;

  constructor(options: RunLoopOptions) {
    this.#options = options;
    this.#trace = options.trace;
    this.#turns = options.vcpus.map((vcpu) => ({
      vcpu,
      run: vcpu.kvmRun,
      state: 'runnable',
      faultGpa: -1,
      faultFlags: -1,
      faultInstructions: Number.NaN,
      faultConversions: -1,
      faultRepeats: 0,
    }));
  }

  /** Runs until the guest ends, or time is up. A machine that has ended stays ended; one that timed out may run on. */
  async run(options: RunOptions = {}): Promise<RunEnd> {
    const clock = options.clock ?? platformClock();
    const start = clock.now();
    const deadline =
      options.timeoutMs === undefined ? Number.POSITIVE_INFINITY : start + options.timeoutMs * 1e6;
    for (;;) {
      const stopListening = this.#trace.listenToFailures((event) => {
        this.#failure = event;
      });
      const idle = this.#slice(clock, Math.min(clock.now() + SLICE, deadline));
      stopListening();
      this.#options.flushConsole();
      if (this.#end !== undefined) return this.#end;
      if (options.signal?.aborted) {
        return {
          reason: 'error',
          code: EXIT_CODE_FAILED,
          message: `aborted: ${String(options.signal.reason)}`,
        };
      }
      const now = clock.now();
      if (now >= deadline) {
        return {
          reason: 'timeout',
          code: EXIT_CODE_TIMEOUT,
          message: `the guest did not end within ${options.timeoutMs} ms${this.#positions()}`,
        };
      }
      if (idle) await this.#settled((deadline - now) / 1e6, options.signal);
      else await new Promise<void>((resolve) => setImmediate(resolve));
    }
  }

  /** Runs vCPUs until the run ends, time is up, or none can run; says if the last. */
  #slice(clock: Clock, until: number): boolean {
    while (this.#end === undefined) {
      const turn = this.#nextRunnable();
      if (turn === undefined) {
        if (this.#turns.every(({ state }) => state === 'halted')) {
          this.#end = { reason: 'hlt', code: 0 };
          return false;
        }
        return true;
      }
      this.#take(turn);
      if (clock.now() >= until) return false;
    }
    return false;
  }

  #nextRunnable(): Turn | undefined {
    const count = this.#turns.length;
    for (let i = 0; i < count; i++) {
      const turn = this.#turns[this.#next]!;
      this.#next = this.#next + 1 === count ? 0 : this.#next + 1;
      // What a vCPU in the kernel waits for may have come while others ran; its promise would tell too late, and not at the same point of each run.
      if (turn.state === 'waiting' && turn.vcpu.ready) turn.state = 'runnable';
      if (turn.state === 'runnable') return turn;
    }
    return undefined;
  }

  #take(turn: Turn): void {
    const { turns } = this.#options;
    const most = turns === undefined ? EXITS_A_TURN : 1 + turns.below(2 * EXITS_A_TURN - 1);
    for (let exits = 0; exits < most; exits++) {
      this.#failure = undefined;
      const result = turn.vcpu.run();
      if (this.#options.certificates?.holds(turn.vcpu) === true && !isEarlyNotice(turn.run))
        this.#options.certificates.finished(turn.vcpu);
      if (result === 0) {
        this.#exit(turn);
        if (turn.state !== 'runnable' || this.#end !== undefined) return;
      } else if (result === RUN_PENDING) {
        this.exits.pending++;
        this.#await(turn);
        return;
      } else if (result === -ERRNO.EINTR || result === -ERRNO.EAGAIN) {
        this.exits.intr++;
        return;
      } else if (result === -ERRNO.EFAULT && turn.run.exitReason === KVM_EXIT_MEMORY_FAULT) {
        this.#memoryFault(turn);
        if (this.#end !== undefined) return;
      } else {
        this.exits.other++;
        const at =
          turn.run.exitReason === KVM_EXIT_MEMORY_FAULT ? ` at gpa ${hex(turn.run.memoryFaultGpa)}` : '';
        this.#fail(turn, `KVM_RUN failed: ${nameOfResult(result)}${at}`);
        return;
      }
    }
  }

  #exit(turn: Turn): void {
    const { run } = turn;
    switch (run.exitReason) {
      case KVM_EXIT_IO:
        this.exits.io++;
        this.#io(turn);
        break;
      case KVM_EXIT_MMIO:
        this.exits.mmio++;
        this.#mmio(turn);
        break;
      case KVM_EXIT_HYPERCALL:
        this.exits.hypercall++;
        this.#hypercall(turn);
        break;
      case KVM_EXIT_HLT:
        this.exits.hlt++;
        // Without an interrupt controller nothing ever wakes it.
        turn.state = 'halted';
        break;
      case KVM_EXIT_SHUTDOWN:
        this.exits.shutdown++;
        this.#end = {
          reason: 'shutdown',
          code: EXIT_CODE_FAILED,
          message: `vCPU ${turn.vcpu.id}: triple fault${this.#cause(turn)}`,
        };
        break;
      case KVM_EXIT_INTR:
        this.exits.intr++;
        break;
      case KVM_EXIT_SNP_REQ_CERTS:
      case KVM_EXIT_VMGEXIT:
        this.exits.req_certs++;
        this.#certificates(turn);
        break;
      case KVM_EXIT_SYSTEM_EVENT:
        this.exits.system_event++;
        this.#end = systemEvent(turn.vcpu);
        break;
      case KVM_EXIT_AP_RESET_HOLD:
        this.exits.other++;
        // Nothing wakes it but another vCPU's AP creation.
        turn.state = 'halted';
        break;
      case KVM_EXIT_IOAPIC_EOI:
        this.exits.ioapic_eoi++;
        this.#options.endOfInterrupt(run.eoiVector);
        break;
      case KVM_EXIT_DIRTY_RING_FULL:
        this.exits.dirty_ring_full++;
        this.#options.dirtyRingFull();
        break;
      case KVM_EXIT_INTERNAL_ERROR:
        this.exits.internal_error++;
        this.#fail(turn, `KVM internal error: ${internalError(run)}${this.#cause(turn)}`);
        break;
      case KVM_EXIT_FAIL_ENTRY:
        this.exits.fail_entry++;
        this.#fail(turn, `KVM: entry failed, hardware error ${hex(run.failEntryReason)}`);
        break;
      default:
        this.exits.other++;
        this.#fail(turn, `KVM: unhandled exit reason ${run.exitReason}${where(turn.vcpu)}`);
    }
  }

  /** Where the vCPUs stand, as far as they can be asked. */
  #positions(): string {
    const positions = this.#turns.slice(0, POSITIONS).flatMap(({ vcpu }) => {
      const at = where(vcpu);
      return at === '' ? [] : [`vCPU ${vcpu.id}${at}`];
    });
    return positions.length === 0 ? '' : `: ${positions.join(', ')}`;
  }

  /** Where and why the vCPU stopped, if its core said so; else where it stands. */
  #cause({ vcpu }: Turn): string {
    const failure = this.#failure;
    return failure === undefined ? where(vcpu) : ` at rip ${failure['rip']}: ${failure.why}`;
  }

  #io(turn: Turn): void {
    const { run } = turn;
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
        vcpu: turn.vcpu.id,
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
        this.#end = { reason: 'debug-exit', code: debugExit.code };
        return;
      }
      if (resetControl.requested) {
        this.#reset(turn);
        return;
      }
    }
  }

  /** qemu_system_reset_request */
  #reset(turn: Turn): void {
    this.#options.resetControl.requested = false;
    try {
      this.#options.reset();
    } catch (error) {
      if (!(error instanceof VmmError || error instanceof NotImplementedError)) throw error;
      const message = `vCPU ${turn.vcpu.id}: ${error.message}`;
      this.#end = { reason: 'shutdown', code: EXIT_CODE_FAILED, message };
    }
  }

  #mmio(turn: Turn): void {
    const { run } = turn;
    const address = run.mmioPhysAddrNumber;
    const write = run.mmioIsWrite !== 0;
    if (this.#trace.on) {
      this.#trace.emit({
        kind: 'exit',
        who: 'vmm',
        what: write ? 'mmio write' : 'mmio read',
        vcpu: turn.vcpu.id,
        gpa: address,
        size: run.mmioLen,
      });
    }
    if (write) this.#options.memory.write(address, run.mmioLen, run.mmioData, 0);
    else this.#options.memory.read(address, run.mmioLen, run.mmioData, 0);
  }

  /** A request that was wrong from the start is the guest's to handle; one that failed half-way ends the run. */
  #hypercall(turn: Turn): void {
    const { run } = turn;
    if (run.hypercallNrNumber !== KVM_HC_MAP_GPA_RANGE) {
      this.#fail(turn, `hypercall: got ${run.hypercallNr}, want ${KVM_HC_MAP_GPA_RANGE} (MAP_GPA_RANGE)`);
      return;
    }
    const to = (run.hypercallArg(2) & MAP_ENCRYPTED) !== 0n ? 'private' : 'shared';
    const size = run.hypercallArgNumber(1) * PAGE_SIZE;
    const start = run.hypercallArgNumber(0);
    const conversion = this.#convert(turn, start, size, to, 'KVM_HC_MAP_GPA_RANGE');
    run.hypercallRet = BigInt(conversion.result);
    if (to === 'private' && conversion.outcome === 'done' && this.#options.preFaultSupported)
      preFault(turn.vcpu, start, size);
  }

  #memoryFault(turn: Turn): void {
    const { run } = turn;
    const flags = run.memoryFaultFlagsNumber;
    const gpa = run.memoryFaultGpaNumber;
    this.exits.memory_fault++;
    // Not every kernel clears it: a later EFAULT for another reason must not look like this fault again.
    run.exitReason = KVM_EXIT_UNKNOWN;
    if (flags !== 0 && flags !== FAULT_PRIVATE) {
      this.#fail(turn, `memory fault at gpa ${hex(gpa)}: unknown flags ${hex(flags)}, want 0 or 0x8`);
      return;
    }
    const { instructions } = turn.vcpu;
    // Where the kernel cannot count instructions, a fault that repeats counts as no progress.
    const again =
      turn.faultGpa === gpa &&
      turn.faultFlags === flags &&
      (instructions === turn.faultInstructions || Number.isNaN(instructions));
    turn.faultRepeats = again ? turn.faultRepeats + 1 : 0;
    const to = flags === FAULT_PRIVATE ? 'private' : 'shared';
    if (again && (turn.faultConversions === this.#conversions || turn.faultRepeats > MAX_FAULT_REPEATS)) {
      this.#fail(
        turn,
        `memory fault at gpa ${hex(gpa)} repeats: it was converted to ${to} and the guest made no progress`,
      );
      return;
    }
    const conversion = this.#convert(turn, gpa, run.memoryFaultSizeNumber, to, 'KVM_EXIT_MEMORY_FAULT');
    if (conversion.outcome === 'refused') {
      this.#fail(turn, `memory fault at gpa ${hex(gpa)}: ${this.#options.lastReport()}`);
    }
    turn.faultGpa = gpa;
    turn.faultFlags = flags;
    turn.faultInstructions = instructions;
    turn.faultConversions = this.#conversions;
  }

  #convert(turn: Turn, start: number, size: number, to: 'private' | 'shared', why: string): Conversion {
    const conversion = this.#options.convert(start, size, to);
    if (conversion.outcome === 'done') this.#conversions++;
    if (this.#trace.on) {
      this.#trace.emit({
        kind: 'page',
        who: 'vmm',
        what: `convert to ${to}`,
        why,
        vcpu: turn.vcpu.id,
        gfn: Math.floor(start / PAGE_SIZE),
        pages: size / PAGE_SIZE,
        result: conversion.result,
        outcome: conversion.outcome,
      });
    }
    if (conversion.outcome === 'failed') this.#fail(turn, this.#options.lastReport());
    return conversion;
  }

  #certificates(turn: Turn): void {
    const { certificates } = this.#options;
    if (certificates === undefined)
      this.#fail(turn, 'the guest wants certificates, and the machine has none to give');
    else if (turn.run.exitReason === KVM_EXIT_VMGEXIT) certificates.requestedEarly(turn.vcpu);
    else certificates.requested(turn.vcpu);
  }

  #fail(turn: Turn, message: string): void {
    this.#end = { reason: 'error', code: EXIT_CODE_FAILED, message: `vCPU ${turn.vcpu.id}: ${message}` };
  }

  #await(turn: Turn): void {
    turn.state = 'waiting';
    const { pending } = turn.vcpu;
    const ready = (): void => {
      if (turn.vcpu.pending === pending) turn.state = 'runnable';
      this.#wake?.();
    };
    (pending ?? Promise.resolve()).then(ready, ready);
  }

  /** Until a vCPU need wait no longer, time is up, or somebody aborts. */
  async #settled(milliseconds: number, signal: AbortSignal | undefined): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    let wake = (): void => {};
    await new Promise<void>((resolve) => {
      wake = resolve;
      this.#wake = resolve;
      signal?.addEventListener('abort', wake);
      if (Number.isFinite(milliseconds)) {
        timer = setTimeout(resolve, Math.min(Math.ceil(milliseconds), 2 ** 31 - 1));
      }
    });
    this.#wake = undefined;
    signal?.removeEventListener('abort', wake);
    clearTimeout(timer);
  }
}
