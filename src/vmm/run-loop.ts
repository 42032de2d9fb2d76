/**
 * Runs the vCPUs of a machine in turn, one at a time (what QEMU's vCPU threads do around accel/kvm/kvm-all.c: kvm_cpu_exec). A
 * vCPU keeps its turn until KVM_RUN is interrupted, it waits or halts, or it has left the guest often, so the order depends on
 * nothing but the guests.
 *
 * The loop is synchronous while nobody waits; now and then it lets the event loop run.
 */
import { KVM_EXIT_MEMORY_FAULT, KVM_EXIT_VMGEXIT } from '../abi/kvm.ts';
import type { KvmRun } from '../abi/kvm-run.ts';
import { type Clock, platformClock } from '../base/clock.ts';
import type { Entropy } from '../base/entropy.ts';
import { ERRNO } from '../base/errors.ts';
import { requireKind, requireKnownFields } from '../base/option-checks.ts';
import { type KvmVcpu, RUN_PENDING } from '../kernel/interface.ts';
import { hex, nameOfResult } from './error.ts';
import { ExitHandler, type ExitHandlerOptions, type MachineVcpu } from './exit-handler.ts';
import { noFault } from './guest-conversions.ts';
import {
  EXIT_CODE_FAILED,
  EXIT_CODE_TIMEOUT,
  type ExitCounts,
  failed,
  type RunEnd,
  where,
} from './run-end.ts';

export type { ExitCounts, RunEnd } from './run-end.ts';

/** Exits after which the next vCPU has its turn; with a seed, on average. */
const EXITS_A_TURN = 64;
/** Nanoseconds after which the event loop has its turn. */
const SLICE = 10e6;
/** vCPUs of which a time-out says where they stand. */
const POSITIONS = 4;

export interface RunOptions {
  /** Milliseconds; absent: for ever. */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
  readonly clock?: Clock;
}

const RUN_OPTIONS: Record<keyof RunOptions, true> = { timeoutMs: true, signal: true, clock: true };

export interface RunLoopOptions extends ExitHandlerOptions {
  readonly vcpus: readonly KvmVcpu[];
  /** Hands on what the guest wrote so far. */
  readonly flushConsole: () => void;
  /** Draws after how many exits a vCPU's turn ends: another order of the vCPUs for each seed. Absent: always alike. */
  readonly turns?: Entropy | undefined;
}

/** The early form's second exit, which says that the report is made: it is served like any exit. */
const isEarlyNotice = (run: KvmRun): boolean => run.exitReason === KVM_EXIT_VMGEXIT;

function checkRunOptions(options: RunOptions): void {
  requireKnownFields('run', options, RUN_OPTIONS);
  const { timeoutMs, signal, clock } = options;
  requireKind('timeoutMs', timeoutMs, (value) => typeof value === 'number' && value >= 0, 'a number from 0');
  requireKind('signal', signal, (value) => value instanceof AbortSignal, 'an AbortSignal');
  requireKind('clock', clock, (value) => typeof (value as Clock | null)?.now === 'function', 'a Clock');
}

export class RunLoop {
  readonly #options: RunLoopOptions;
  readonly #handler: ExitHandler;
  readonly #vcpus: readonly MachineVcpu[];
  #next = 0;
  /** Resolves the promise that an idle loop waits for. */
  #wake: (() => void) | undefined;

  constructor(options: RunLoopOptions) {
    this.#options = options;
    this.#handler = new ExitHandler(options);
    this.#vcpus = options.vcpus.map((vcpu) => ({
      vcpu,
      run: vcpu.kvmRun,
      state: 'runnable',
      lastFault: noFault(),
    }));
  }

  get exits(): Readonly<ExitCounts> {
    return this.#handler.counts;
  }

  /** Runs until the guest ends, or time is up. A machine that has ended stays ended; one that timed out may run on. Rejects with RangeError: an option that is none, or cannot be what it is. */
  async run(options: RunOptions = {}): Promise<RunEnd> {
    checkRunOptions(options);
    const clock = options.clock ?? platformClock();
    const start = clock.now();
    const deadline =
      options.timeoutMs === undefined ? Number.POSITIVE_INFINITY : start + options.timeoutMs * 1e6;
    for (;;) {
      const stopListening = this.#options.trace.listenToFailures((event) => {
        this.#handler.failure = event;
      });
      const idle = this.#slice(clock, Math.min(clock.now() + SLICE, deadline));
      stopListening();
      this.#options.flushConsole();
      if (this.#handler.end !== undefined) return this.#handler.end;
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
    while (this.#handler.end === undefined) {
      const cpu = this.#nextRunnable();
      if (cpu === undefined) {
        if (this.#vcpus.every(({ state }) => state === 'halted')) {
          this.#handler.end = { reason: 'hlt', code: 0 };
          return false;
        }
        return true;
      }
      this.#take(cpu);
      if (clock.now() >= until) return false;
    }
    return false;
  }

  #nextRunnable(): MachineVcpu | undefined {
    const count = this.#vcpus.length;
    for (let i = 0; i < count; i++) {
      const cpu = this.#vcpus[this.#next]!;
      this.#next = this.#next + 1 === count ? 0 : this.#next + 1;
      // What a vCPU in the kernel waits for may have come while others ran; its promise would tell too late, and not at the same point of each run.
      if (cpu.state === 'waiting' && cpu.vcpu.ready) cpu.state = 'runnable';
      if (cpu.state === 'runnable') return cpu;
    }
    return undefined;
  }

  #take(cpu: MachineVcpu): void {
    const handler = this.#handler;
    const { turns, certificates } = this.#options;
    const most = turns === undefined ? EXITS_A_TURN : 1 + turns.below(2 * EXITS_A_TURN - 1);
    for (let exits = 0; exits < most; exits++) {
      handler.failure = undefined;
      const result = cpu.vcpu.run();
      if (certificates?.holds(cpu.vcpu) === true && !isEarlyNotice(cpu.run)) certificates.finished(cpu.vcpu);
      if (result === 0) {
        handler.serve(cpu);
        if (cpu.state !== 'runnable' || handler.end !== undefined) return;
      } else if (result === RUN_PENDING) {
        handler.counts.pending++;
        this.#await(cpu);
        return;
      } else if (result === -ERRNO.EINTR || result === -ERRNO.EAGAIN) {
        handler.counts.intr++;
        return;
      } else if (result === -ERRNO.EFAULT && cpu.run.exitReason === KVM_EXIT_MEMORY_FAULT) {
        handler.memoryFault(cpu);
        if (handler.end !== undefined) return;
      } else {
        handler.counts.other++;
        const at =
          cpu.run.exitReason === KVM_EXIT_MEMORY_FAULT ? ` at gpa ${hex(cpu.run.memoryFaultGpa)}` : '';
        handler.end = failed(cpu.vcpu, `KVM_RUN failed: ${nameOfResult(result)}${at}`);
        return;
      }
    }
  }

  /** Where the vCPUs stand, as far as they can be asked. */
  #positions(): string {
    const positions = this.#vcpus.slice(0, POSITIONS).flatMap(({ vcpu }) => {
      const at = where(vcpu);
      return at === '' ? [] : [`vCPU ${vcpu.id}${at}`];
    });
    return positions.length === 0 ? '' : `: ${positions.join(', ')}`;
  }

  #await(cpu: MachineVcpu): void {
    cpu.state = 'waiting';
    const { pending } = cpu.vcpu;
    const ready = (): void => {
      if (cpu.vcpu.pending === pending) cpu.state = 'runnable';
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
