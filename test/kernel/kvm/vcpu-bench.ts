/**
 * A vCPU on a core that follows a script: each step fills the VMCB as a #VMEXIT would and returns its exit code. So each exit can be
 * looked at by itself; guests that run for real are in the tests of the core and of the whole VM.
 */

import type { Spa } from '../../../src/base/address.ts';
import type { HostMemory } from '../../../src/hardware/memory/host-memory.ts';
import type { Regs, Sregs } from '../../../src/kernel/interface.ts';
import { DirtyTracking } from '../../../src/kernel/kvm/dirty-log.ts';
import { HostTime } from '../../../src/kernel/kvm/host-time.ts';
import { InterruptController } from '../../../src/kernel/kvm/lapic/interrupt-controller.ts';
import type { MsrPermissions } from '../../../src/kernel/kvm/msr-filter.ts';
import type { GuestCore, MmioBus } from '../../../src/kernel/kvm/svm/guest-core.ts';
import { Vcpu, type VcpuVm } from '../../../src/kernel/kvm/vcpu.ts';
import { VmCapabilities } from '../../../src/kernel/kvm/vm-capabilities.ts';
import { FaultBench, type PolicyName } from './fault-bench.ts';

export type Step = (core: ScriptedCore) => number;

/** Offsets in the VMCB page, from the manual. */
const EXITCODE = 0x070;
const EXITINFO1 = 0x078;
const EXITINFO2 = 0x080;
const NEXT_RIP = 0x0c8;
const RIP = 0x400 + 0x178;

export class ScriptedCore implements GuestCore {
  readonly gpr = new BigUint64Array(16);
  readonly gprWords = new Int32Array(this.gpr.buffer);
  readonly xmm = new Uint8Array(256);
  mxcsr = 0x1f80;
  /** FCW 0x37f, as after FNINIT. */
  readonly x87 = Uint8Array.from({ length: 160 }, (_, i) => [0x7f, 0x03][i] ?? 0);
  xcr0 = 1n;
  readonly debugAddresses = new BigUint64Array(4);
  tscAux = 0n;
  retired = 0;
  closed = false;
  /** Budgets that VMRUN was given, and TLB_CONTROL at each. */
  readonly budgets: number[] = [];
  readonly tlbControls: number[] = [];
  readonly eventInjections: bigint[] = [];
  readonly script: Step[] = [];
  /** What `emulate` does next. */
  emulation: (core: ScriptedCore, bus: MmioBus) => 'done' | 'pending' | 'failed' | 'exit' = () => 'failed';
  /** What lies at CS:RIP. */
  code: number[] = [];
  vmcb = 0;
  readonly #memory: HostMemory;

  constructor(memory: HostMemory) {
    this.#memory = memory;
  }

  readX87(into: Uint8Array): void {
    into.set(this.x87);
  }
  writeX87(from: Uint8Array): void {
    this.x87.set(from.subarray(0, 160));
  }
  vmrun(vmcb: Spa, budget: number): number {
    this.vmcb = vmcb;
    this.budgets.push(budget);
    this.tlbControls.push(this.word(0x5c) & 0xff);
    this.eventInjections.push(this.long(0xa8));
    this.set(0xa8, this.long(0xa8) & ~0x8000_0000n);
    const step = this.script.shift();
    if (step === undefined) throw new Error('the guest ran past the end of the script');
    return step(this);
  }
  emulate(vmcb: Spa, bus: MmioBus): 'done' | 'pending' | 'failed' | 'exit' {
    this.vmcb = vmcb;
    return this.emulation(this, bus);
  }
  fetchBytes(_vmcb: Spa, into: Uint8Array): number {
    const count = Math.min(into.length, this.code.length);
    into.set(this.code.slice(0, count));
    return count;
  }
  close(): void {
    this.closed = true;
  }

  /** A field of the VMCB, from the page's start. */
  long(offset: number): bigint {
    return this.#memory.load64((this.vmcb + offset) as Spa);
  }
  word(offset: number): number {
    return this.#memory.load32((this.vmcb + offset) as Spa);
  }
  set(offset: number, value: bigint): void {
    this.#memory.store64((this.vmcb + offset) as Spa, value);
  }
}

/** A step that exits with `code`; the instruction is `length` bytes long. */
export const exit =
  (code: number, info1 = 0n, info2 = 0n, length = 0): Step =>
  (core) => {
    core.set(EXITCODE, BigInt.asUintN(64, BigInt(code)));
    core.set(EXITINFO1, info1);
    core.set(EXITINFO2, info2);
    core.set(NEXT_RIP, length === 0 ? 0n : core.long(RIP) + BigInt(length));
    return code;
  };

/** A step that retires instructions and then does `then`. */
export const retire =
  (instructions: number, then: Step): Step =>
  (core) => {
    core.retired += instructions;
    return then(core);
  };

export const HLT = exit(0x78, 0n, 0n, 1);
export const nestedFault = (gpa: number, error: number): Step => exit(0x400, BigInt(error), BigInt(gpa));

export class VcpuBench extends FaultBench implements VcpuVm {
  readonly sev = undefined;
  readonly capabilities = new VmCapabilities();
  msrFilter: MsrPermissions | undefined = undefined;
  readonly dirtyTracking = new DirtyTracking();
  readonly timeslice: number;
  /** What the host's time wants to look at soon. */
  readonly soon: (() => void)[] = [];
  readonly time = new HostTime((check) => void this.soon.push(check));
  readonly interrupts: InterruptController | undefined;
  readonly bootCpuId = 0;
  readonly process = { exiting: false, enterKernel() {}, leaveKernel() {} };
  readonly scripted = new ScriptedCore(this.memory);
  readonly vcpu: Vcpu;

  /** `irqchip`: `split` has a local APIC in the kernel. */
  constructor(policy: PolicyName = '7.2', id = 0, timeslice = 0, irqchip: 'split' | 'off' = 'off') {
    super(policy);
    this.interrupts = irqchip === 'split' ? new InterruptController(24) : undefined;
    this.timeslice = timeslice;
    this.vcpu = new Vcpu(this, id);
  }

  createCore(): GuestCore {
    return this.scripted;
  }
  vcpuClosed(): void {}

  /** Runs the script; it must be used up. */
  runScript(...steps: Step[]): number {
    this.scripted.script.push(...steps);
    const result = this.vcpu.run();
    if (this.scripted.script.length > 0) throw new Error('the guest was left before the end of the script');
    return result;
  }
  setRegs(regs: Partial<Regs>): void {
    this.vcpu.setRegs({ ...this.vcpu.getRegs(), ...regs });
  }
  setSregs(sregs: Partial<Sregs>): void {
    this.vcpu.setSregs({ ...this.vcpu.getSregs(), ...sregs });
  }
  /** 64-bit mode at CPL 0, as a boot loader leaves it. */
  enterLongMode(): void {
    const sregs = this.vcpu.getSregs();
    const flat = { base: 0n, limit: 0xffffffff, present: 1, dpl: 0, s: 1, g: 1, avl: 0, unusable: 0 };
    const data = { ...flat, selector: 0x10, type: 3, db: 1, l: 0 };
    this.vcpu.setSregs({
      ...sregs,
      cs: { ...flat, selector: 8, type: 11, db: 0, l: 1 },
      ds: data,
      es: data,
      ss: data,
      cr0: 0x80000011n,
      cr3: 0x1000n,
      cr4: 0x20n,
      efer: 0x500n,
    });
  }

  override close(): void {
    this.vcpu.close();
    super.close();
  }
}
