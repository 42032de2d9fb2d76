/**
 * The local APIC as part of a vCPU: its page and MSRs among the vCPU's own, what KVM_RUN looks at before each entry (Linux
 * arch/x86/kvm/x86.c: vcpu_mmio_read, kvm_set_msr_common, vcpu_enter_guest's requests, kvm_arch_vcpu_ioctl_get/set_lapic).
 */
import { APIC_PAGE_BYTES, MSR_TSC_DEADLINE, X2APIC_MSR, X2APIC_MSR_END } from '../../../abi/apic.ts';
import type { EventInjection } from '../event-injection.ts';
import type { HostTime } from '../host-time.ts';
import type { MpState } from '../mp-state.ts';
import { apicBaseIsValid } from './apic-base.ts';
import type { InterruptController } from './interrupt-controller.ts';
import { LapicInterruptSource } from './interrupt-source.ts';
import { Lapic, type LapicVcpu } from './lapic.ts';
import { getLapic, setLapic } from './lapic-state.ts';

/** What the local APIC asks of its vCPU. */
export interface ApicOwner {
  readonly id: number;
  readonly other: { apicBase: bigint };
  readonly cpuid: { readonly hasX2apic: boolean; readonly hasTscDeadline: boolean };
  readonly events: EventInjection;
  readonly time: HostTime;
  readonly guestTsc: bigint;
  readonly tscKhz: number;
  readonly mp: MpState;
  /** KVM_SET_BOOT_CPU_ID names this one. */
  readonly isBoot: boolean;
}

export class VcpuApic implements LapicVcpu {
  readonly lapic: Lapic;
  readonly source: LapicInterruptSource;
  readonly #owner: ApicOwner;
  readonly #controller: InterruptController;

  constructor(owner: ApicOwner, controller: InterruptController) {
    this.#owner = owner;
    this.#controller = controller;
    this.lapic = new Lapic(this, controller);
    this.source = new LapicInterruptSource(this.lapic);
    this.reset('power-on');
    controller.add(this.lapic);
  }

  // LapicVcpu.

  get id(): number {
    return this.#owner.id;
  }
  get apicBase(): bigint {
    return this.#owner.other.apicBase;
  }
  get hasX2apic(): boolean {
    return this.#owner.cpuid.hasX2apic;
  }
  get hasTscDeadline(): boolean {
    return this.#owner.cpuid.hasTscDeadline;
  }
  get time(): HostTime {
    return this.#owner.time;
  }
  get guestTsc(): bigint {
    return this.#owner.guestTsc;
  }
  get tscKhz(): number {
    return this.#owner.tscKhz;
  }
  queueNmi(): void {
    this.#owner.events.queueNmi();
  }
  kick(): void {
    this.#owner.events.requested = true;
    this.#owner.mp.wake();
  }

  /** kvm_lapic_reset. An interrupt that user space gave stays. */
  reset(event: 'power-on' | 'init'): void {
    this.lapic.reset(event, this.#owner.isBoot ? 'extint' : 'masked');
  }

  /** The base register was `old`. */
  baseChanged(old: bigint): void {
    this.lapic.baseChanged(old);
    this.kick();
  }

  /** KVM_INTERRUPT */
  queueExternal(vector: number): void {
    this.source.queueExternal(vector);
    this.kick();
  }

  getState(): Uint8Array {
    return getLapic(this.lapic, this.#controller);
  }
  setState(state: Uint8Array): void {
    setLapic(this.lapic, this.#controller, state);
  }

  // The page. Disabled, or in x2APIC mode, it reads as ones and takes no stores (quirk LAPIC_MMIO_HOLE).

  covers(gpa: number): boolean {
    const offset = gpa - this.lapic.address;
    return offset >= 0 && offset < APIC_PAGE_BYTES;
  }
  readPage(gpa: number, into: Uint8Array): void {
    if (this.#pageIsHole()) into.fill(0xff);
    else this.lapic.readPage(gpa - this.lapic.address, into);
  }
  writePage(gpa: number, from: Uint8Array): void {
    if (!this.#pageIsHole()) this.lapic.writePage(gpa - this.lapic.address, from);
  }
  #pageIsHole(): boolean {
    return !this.lapic.hardwareEnabled || this.lapic.isX2apic;
  }
}

/** Whether `msr` is the local APIC's, except for the base register. */
export const isApicMsr = (msr: number): boolean =>
  msr === MSR_TSC_DEADLINE || (msr >= X2APIC_MSR && msr < X2APIC_MSR_END);

/** `undefined`: #GP. Without a local APIC in the kernel the deadline reads 0. */
export function readApicMsr(apic: VcpuApic | undefined, msr: number): bigint | undefined {
  if (msr === MSR_TSC_DEADLINE) return apic?.lapic.tscDeadline ?? 0n;
  return apic?.lapic.readMsr((msr - X2APIC_MSR) << 4);
}

/** False: #GP. */
export function writeApicMsr(apic: VcpuApic | undefined, msr: number, value: bigint): boolean {
  if (msr !== MSR_TSC_DEADLINE) return apic?.lapic.writeMsr((msr - X2APIC_MSR) << 4, value) ?? false;
  if (apic !== undefined) apic.lapic.tscDeadline = value;
  return true;
}

/** IA32_APIC_BASE, by WRMSR, KVM_SET_MSRS or KVM_SET_SREGS. False: refused. */
export function setApicBase(
  vcpu: {
    readonly other: { apicBase: bigint };
    readonly cpuid: { readonly physicalBits: number; readonly hasX2apic: boolean };
    readonly apic: VcpuApic | undefined;
  },
  value: bigint,
  by: 'guest' | 'host',
): boolean {
  const old = vcpu.other.apicBase;
  const { physicalBits, hasX2apic } = vcpu.cpuid;
  if (!apicBaseIsValid(old, value, { physicalBits, hasX2apic, by })) return false;
  if (value === old) return true;
  vcpu.other.apicBase = value;
  vcpu.apic?.baseChanged(old);
  return true;
}
