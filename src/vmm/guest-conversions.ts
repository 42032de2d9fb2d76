/**
 * Conversions that a guest asks for, by the hypercall MAP_GPA_RANGE, or by an access that does not fit the memory's attributes
 * (QEMU target/i386/kvm/kvm.c: kvm_handle_hc_map_gpa_range; accel/kvm/kvm-all.c: KVM_EXIT_MEMORY_FAULT).
 *
 * Nothing makes the machine spin: a conversion that fails ends the run, and so does a memory fault that a successful
 * conversion did not cure.
 */
import { KVM_EXIT_UNKNOWN, KVM_HC_MAP_GPA_RANGE } from '../abi/kvm.ts';
import type { KvmRun } from '../abi/kvm-run.ts';
import { PAGE_SIZE } from '../base/address.ts';
import type { Trace } from '../base/trace.ts';
import type { KvmVcpu } from '../kernel/interface.ts';
import { hex } from './error.ts';
import type { Conversion } from './memory/convert-memory.ts';
import { preFault } from './pre-fault.ts';

/** Bits of KVM_EXIT_MEMORY_FAULT and of MAP_GPA_RANGE's third argument. */
const FAULT_PRIVATE = 8;
const MAP_ENCRYPTED = 16n;

/** Faults of one vCPU at one place, with conversions by others in between, before the run ends. */
const MAX_FAULT_REPEATS = 1000;

export interface GuestConversionOptions {
  readonly convert: (start: number, size: number, to: 'private' | 'shared') => Conversion;
  /** Whether the kernel can map memory in advance (KVM_CAP_PRE_FAULT_MEMORY). */
  readonly preFaultSupported: boolean;
  /** What went wrong last, in words. */
  readonly lastReport: () => string;
  readonly trace: Trace;
}

/** The last memory fault of a vCPU. */
interface LastFault {
  gpa: number;
  flags: number;
  /** How far the vCPU, and all conversions, had come. */
  instructions: number;
  conversions: number;
  repeats: number;
}

export const noFault = (): LastFault => ({
  gpa: -1,
  flags: -1,
  instructions: Number.NaN,
  conversions: -1,
  repeats: 0,
});

/** A vCPU that faults. */
export interface FaultingVcpu {
  readonly vcpu: KvmVcpu;
  readonly run: KvmRun;
  readonly lastFault: LastFault;
}

export class GuestConversions {
  readonly #options: GuestConversionOptions;
  readonly #trace: Trace;
  /** Conversions that succeeded. */
  #conversions = 0;

  constructor(options: GuestConversionOptions) {
    this.#options = options;
    this.#trace = options.trace;
  }

  /**
   * KVM_EXIT_HYPERCALL. A request that was wrong from the start is the guest's to handle; one that failed half-way ends the
   * run: why, in words.
   */
  hypercall({ vcpu, run }: FaultingVcpu): string | undefined {
    if (run.hypercallNrNumber !== KVM_HC_MAP_GPA_RANGE)
      return `hypercall: got ${run.hypercallNr}, want ${KVM_HC_MAP_GPA_RANGE} (MAP_GPA_RANGE)`;
    const to = (run.hypercallArg(2) & MAP_ENCRYPTED) !== 0n ? 'private' : 'shared';
    const size = run.hypercallArgNumber(1) * PAGE_SIZE;
    const start = run.hypercallArgNumber(0);
    const { result, outcome } = this.#convert(vcpu, start, size, to, 'KVM_HC_MAP_GPA_RANGE');
    run.hypercallRet = BigInt(result);
    if (outcome === 'failed') return this.#options.lastReport();
    if (to === 'private' && outcome === 'done' && this.#options.preFaultSupported)
      preFault(vcpu, start, size);
    return undefined;
  }

  /** KVM_EXIT_MEMORY_FAULT. Why it ends the run, in words. */
  memoryFault({ vcpu, run, lastFault }: FaultingVcpu): string | undefined {
    const flags = run.memoryFaultFlagsNumber;
    const gpa = run.memoryFaultGpaNumber;
    // Not every kernel clears it: a later EFAULT for another reason must not look like this fault again.
    run.exitReason = KVM_EXIT_UNKNOWN;
    if (flags !== 0 && flags !== FAULT_PRIVATE)
      return `memory fault at gpa ${hex(gpa)}: unknown flags ${hex(flags)}, want 0 or 0x8`;
    const { instructions } = vcpu;
    // Where the kernel cannot count instructions, a fault that repeats counts as no progress.
    const again =
      lastFault.gpa === gpa &&
      lastFault.flags === flags &&
      (instructions === lastFault.instructions || Number.isNaN(instructions));
    lastFault.repeats = again ? lastFault.repeats + 1 : 0;
    const to = flags === FAULT_PRIVATE ? 'private' : 'shared';
    if (again && (lastFault.conversions === this.#conversions || lastFault.repeats > MAX_FAULT_REPEATS))
      return `memory fault at gpa ${hex(gpa)} repeats: it was converted to ${to} and the guest made no progress`;
    const { outcome } = this.#convert(vcpu, gpa, run.memoryFaultSizeNumber, to, 'KVM_EXIT_MEMORY_FAULT');
    if (outcome === 'failed') return this.#options.lastReport();
    if (outcome === 'refused') return `memory fault at gpa ${hex(gpa)}: ${this.#options.lastReport()}`;
    lastFault.gpa = gpa;
    lastFault.flags = flags;
    lastFault.instructions = instructions;
    lastFault.conversions = this.#conversions;
    return undefined;
  }

  #convert(vcpu: KvmVcpu, start: number, size: number, to: 'private' | 'shared', why: string): Conversion {
    const conversion = this.#options.convert(start, size, to);
    if (conversion.outcome === 'done') this.#conversions++;
    if (this.#trace.on) {
      this.#trace.emit({
        kind: 'page',
        who: 'vmm',
        what: `convert to ${to}`,
        why,
        vcpu: vcpu.id,
        gfn: Math.floor(start / PAGE_SIZE),
        pages: size / PAGE_SIZE,
        result: conversion.result,
        outcome: conversion.outcome,
      });
    }
    return conversion;
  }
}
