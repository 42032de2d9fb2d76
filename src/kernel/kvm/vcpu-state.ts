/**
 * The ioctls that get and set what a vCPU has beside its registers, one to a part (Linux arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl). Once SEV-ES has
 * the registers encrypted, user space has no business with them.
 */
import {
  kvm_debugregs,
  kvm_fpu,
  kvm_guest_debug,
  kvm_msr_entry,
  kvm_vcpu_events,
} from '../../abi/kvm-structs.ts';
import { checkBytes, checkEntries, checkLong, u32, u64 } from '../../abi/layout.ts';
import { membersOf } from '../../abi/member-names.ts';
import type {
  DebugRegisters,
  Fpu,
  GuestDebugRequest,
  MsrEntry,
  Translation,
  VcpuEvents,
  Xcrs,
} from '../interface.ts';
import type { GuestCpuid } from './cpuid.ts';
import type { EventInjection } from './event-injection.ts';
import { checkXcrs, type GuestFpu, XSAVE_BYTES } from './fpu.ts';
import type { GuestDebug } from './guest-debug.ts';
import { HOST_TSC_KHZ } from './host-time.ts';
import type { VcpuApic } from './lapic/vcpu-apic.ts';
import type { MpState } from './mp-state.ts';
import { checkMsrIndices, getMsrs, setMsrs } from './msr-ioctls.ts';
import type { GuestMsrs } from './msrs.ts';
import type { VcpuSev } from './svm/sev/vcpu-sev.ts';
import type { Vmcb } from './svm/vmcb.ts';
import { translate } from './translate.ts';
import { guestTscKhz } from './tsc-khz.ts';
import type { VcpuVm } from './vcpu.ts';
import { getVcpuEvents, setVcpuEvents } from './vcpu-events.ts';

export abstract class VcpuState {
  abstract readonly vm: VcpuVm;
  abstract readonly vmcb: Vmcb;
  abstract readonly cpuid: GuestCpuid;
  abstract readonly events: EventInjection;
  abstract readonly debug: GuestDebug;
  abstract readonly fpu: GuestFpu;
  abstract readonly msrs: GuestMsrs;
  abstract readonly mp: MpState;
  abstract readonly apic: VcpuApic | undefined;
  abstract readonly sev: VcpuSev | undefined;
  #tscKhz = HOST_TSC_KHZ;

  /** An ioctl on the vCPU's descriptor. Errors: EBADF, when it is closed. */
  abstract checkOpen(): void;

  get tscKhz(): number {
    return this.#tscKhz;
  }

  getMpState(): number {
    this.checkOpen();
    return this.mp.get();
  }
  setMpState(state: number): void {
    this.checkOpen();
    u32.check(state, 'kvm_mp_state.mp_state');
    this.mp.set(state);
  }
  getVcpuEvents(): VcpuEvents {
    this.checkOpen();
    return getVcpuEvents(this);
  }
  setVcpuEvents(events: VcpuEvents): void {
    this.checkOpen();
    kvm_vcpu_events.check({ ...membersOf(events), triple_fault: { pending: events.tripleFaultPending } });
    setVcpuEvents(this, events);
  }
  getDebugRegs(): DebugRegisters {
    this.checkOpen();
    this.sev?.checkUnprotected('KVM_GET_DEBUGREGS');
    return this.debug.getRegisters();
  }
  setDebugRegs(registers: DebugRegisters): void {
    this.checkOpen();
    kvm_debugregs.check(registers);
    this.sev?.checkUnprotected('KVM_SET_DEBUGREGS');
    this.debug.setRegisters(registers);
  }
  setGuestDebug(request: GuestDebugRequest): void {
    this.checkOpen();
    kvm_guest_debug.check(request);
    this.sev?.checkUnprotected('KVM_SET_GUEST_DEBUG');
    this.debug.set(request);
  }
  getFpu(): Fpu {
    this.checkOpen();
    this.sev?.checkUnprotected('KVM_GET_FPU');
    return this.fpu.get();
  }
  setFpu(fpu: Fpu): void {
    this.checkOpen();
    kvm_fpu.check(membersOf(fpu));
    this.sev?.checkUnprotected('KVM_SET_FPU');
    this.fpu.set(fpu);
  }
  getXsave(): Uint8Array {
    this.checkOpen();
    this.sev?.checkUnprotected('KVM_GET_XSAVE');
    return this.fpu.image();
  }
  getXsave2(): Uint8Array {
    this.checkOpen();
    this.sev?.checkUnprotected('KVM_GET_XSAVE2');
    return this.fpu.image();
  }
  setXsave(image: Uint8Array): void {
    this.checkOpen();
    checkBytes(image, XSAVE_BYTES, 'kvm_xsave.region');
    this.sev?.checkUnprotected('KVM_SET_XSAVE');
    this.fpu.setImage(image);
  }
  getXcrs(): Xcrs {
    this.checkOpen();
    this.sev?.checkUnprotected('KVM_GET_XCRS');
    return this.fpu.getXcrs();
  }
  setXcrs(xcrs: Xcrs): void {
    this.checkOpen();
    checkXcrs(xcrs);
    this.sev?.checkUnprotected('KVM_SET_XCRS');
    this.fpu.setXcrs(xcrs);
  }
  getMsrs(indices: readonly number[]): MsrEntry[] {
    this.checkOpen();
    checkMsrIndices(indices);
    return getMsrs(this.msrs, indices.slice(0, this.#reachable(indices)));
  }
  setMsrs(entries: readonly MsrEntry[]): number {
    this.checkOpen();
    checkEntries(entries, 'kvm_msrs.entries');
    for (const entry of entries) kvm_msr_entry.check(entry);
    return setMsrs(this.msrs, entries.slice(0, this.#reachable(entries.map(({ index }) => index))));
  }
  /** How many MSRs of the list come before the first that is the guest's alone. */
  #reachable(indices: readonly number[]): number {
    const hidden = indices.findIndex((index) => this.sev?.hidesMsr(index) === true);
    return hidden < 0 ? indices.length : hidden;
  }
  translate(linearAddress: bigint): Translation {
    this.checkOpen();
    u64.check(linearAddress, 'kvm_translation.linear_address');
    return translate(this, linearAddress);
  }
  getTscKhz(): number {
    this.checkOpen();
    return this.#tscKhz;
  }
  setTscKhz(khz: number): void {
    this.checkOpen();
    checkLong(khz, 'KVM_SET_TSC_KHZ.khz');
    this.#tscKhz = guestTscKhz(khz);
  }
}
