/** The ioctls of a real vCPU that get and set its state: one structure each (abi/kvm-structs.ts). Each check and errno is the kernel's. */
import * as abi from '../abi/kvm.ts';
import {
  kvm_debugregs,
  kvm_fpu,
  kvm_guest_debug,
  kvm_interrupt,
  kvm_translation,
  kvm_vcpu_events,
  kvm_xcrs,
  kvm_xsave,
} from '../abi/kvm-structs.ts';
import { checkBytes, checkEntries, checkLong, u64 } from '../abi/layout.ts';
import { membersOf } from '../abi/member-names.ts';
import type {
  DebugRegisters,
  Fpu,
  GuestDebugRequest,
  MsrEntry,
  Translation,
  VcpuEvents,
  Xcrs,
} from '../kernel/interface.ts';
import { encodeRequest } from './kvm-encoding.ts';
import { decodeMsrs, encodeMsrs } from './msr-encoding.ts';

/** A structure's layout, as far as it is needed here. */
interface Structure<Value, Input> {
  readonly size: number;
  encode(value: Input): Uint8Array;
  decode(bytes: Uint8Array): Value;
}

export abstract class LinuxVcpuState {
  /** An ioctl with a structure, or with a number. Throws LinuxError. */
  protected abstract ioctl(request: number, argument: Uint8Array | number, what: string): number;
  /** KVM_CAP_XSAVE2 of the VM. */
  protected abstract readonly xsaveBytes: number;

  #get<Value>(layout: Structure<Value, never>, request: number, what: string): Value {
    const bytes = new Uint8Array(layout.size);
    this.ioctl(request, bytes, what);
    return layout.decode(bytes);
  }

  interrupt(vector: number): void {
    this.ioctl(abi.KVM_INTERRUPT, encodeRequest(kvm_interrupt, { irq: vector }), `KVM_INTERRUPT ${vector}`);
  }

  nmi(): void {
    this.ioctl(abi.KVM_NMI, 0, 'KVM_NMI');
  }

  getVcpuEvents(): VcpuEvents {
    const { exception, interrupt, nmi, smi, ...rest } = this.#get(
      kvm_vcpu_events,
      abi.KVM_GET_VCPU_EVENTS,
      'KVM_GET_VCPU_EVENTS',
    );
    return {
      exception: {
        injected: exception.injected,
        nr: exception.nr,
        hasErrorCode: exception.has_error_code,
        pending: exception.pending,
        errorCode: exception.error_code,
      },
      interrupt,
      nmi: { injected: nmi.injected, pending: nmi.pending, masked: nmi.masked },
      sipiVector: rest.sipi_vector,
      flags: rest.flags,
      smi: {
        smm: smi.smm,
        pending: smi.pending,
        smmInsideNmi: smi.smm_inside_nmi,
        latchedInit: smi.latched_init,
      },
      tripleFaultPending: rest.triple_fault.pending,
      exceptionHasPayload: rest.exception_has_payload,
      exceptionPayload: rest.exception_payload,
    };
  }

  setVcpuEvents(events: VcpuEvents): void {
    const bytes = encodeRequest(kvm_vcpu_events, {
      ...membersOf(events),
      triple_fault: { pending: events.tripleFaultPending },
    });
    this.ioctl(abi.KVM_SET_VCPU_EVENTS, bytes, `KVM_SET_VCPU_EVENTS, flags ${events.flags}`);
  }

  getDebugRegs(): DebugRegisters {
    const { db, dr6, dr7, flags } = this.#get(kvm_debugregs, abi.KVM_GET_DEBUGREGS, 'KVM_GET_DEBUGREGS');
    return { db, dr6, dr7, flags };
  }

  setDebugRegs(registers: DebugRegisters): void {
    this.ioctl(abi.KVM_SET_DEBUGREGS, encodeRequest(kvm_debugregs, registers), 'KVM_SET_DEBUGREGS');
  }

  setGuestDebug(request: GuestDebugRequest): void {
    const bytes = encodeRequest(kvm_guest_debug, request);
    const what = `KVM_SET_GUEST_DEBUG, control 0x${request.control.toString(16)}`;
    this.ioctl(abi.KVM_SET_GUEST_DEBUG, bytes, what);
  }

  getFpu(): Fpu {
    const fpu = this.#get(kvm_fpu, abi.KVM_GET_FPU, 'KVM_GET_FPU');
    return {
      fpr: fpu.fpr,
      fcw: fpu.fcw,
      fsw: fpu.fsw,
      ftwx: fpu.ftwx,
      lastOpcode: fpu.last_opcode,
      lastIp: fpu.last_ip,
      lastDp: fpu.last_dp,
      xmm: fpu.xmm,
      mxcsr: fpu.mxcsr,
    };
  }

  setFpu(fpu: Fpu): void {
    this.ioctl(abi.KVM_SET_FPU, encodeRequest(kvm_fpu, membersOf(fpu)), 'KVM_SET_FPU');
  }

  getXsave(): Uint8Array {
    return this.#get(kvm_xsave, abi.KVM_GET_XSAVE, 'KVM_GET_XSAVE').region;
  }

  getXsave2(): Uint8Array {
    const bytes = new Uint8Array(this.xsaveBytes);
    this.ioctl(abi.KVM_GET_XSAVE2, bytes, 'KVM_GET_XSAVE2');
    return bytes;
  }

  /** The kernel reads as many bytes as KVM_CAP_XSAVE2 says. */
  setXsave(image: Uint8Array): void {
    checkBytes(image, kvm_xsave.size, 'kvm_xsave.region');
    const bytes = new Uint8Array(this.xsaveBytes);
    bytes.set(image.subarray(0, bytes.length));
    this.ioctl(abi.KVM_SET_XSAVE, bytes, 'KVM_SET_XSAVE');
  }

  getXcrs(): Xcrs {
    const { nr_xcrs, flags, xcrs } = this.#get(kvm_xcrs, abi.KVM_GET_XCRS, 'KVM_GET_XCRS');
    return { flags, xcrs: xcrs.slice(0, nr_xcrs).map(({ xcr, value }) => ({ xcr, value })) };
  }

  /** More registers than the structure has room for are counted all the same. */
  setXcrs({ flags, xcrs }: Xcrs): void {
    checkEntries(xcrs, 'kvm_xcrs.xcrs');
    const bytes = encodeRequest(kvm_xcrs, { nr_xcrs: xcrs.length, flags, xcrs: xcrs.slice(0, 16) });
    this.ioctl(abi.KVM_SET_XCRS, bytes, `KVM_SET_XCRS of ${xcrs.length}`);
  }

  getMsrs(indices: readonly number[]): MsrEntry[] {
    checkEntries(indices, 'kvm_msrs.entries');
    const bytes = encodeMsrs(indices.map((index) => ({ index, data: 0n })));
    const count = this.ioctl(abi.KVM_GET_MSRS, bytes, `KVM_GET_MSRS of ${indices.length}`);
    return decodeMsrs(bytes, count);
  }

  setMsrs(entries: readonly MsrEntry[]): number {
    return this.ioctl(abi.KVM_SET_MSRS, encodeMsrs(entries), `KVM_SET_MSRS of ${entries.length}`);
  }

  translate(linearAddress: bigint): Translation {
    u64.check(linearAddress, 'kvm_translation.linear_address');
    const bytes = kvm_translation.encode({ linear_address: linearAddress });
    this.ioctl(abi.KVM_TRANSLATE, bytes, 'KVM_TRANSLATE');
    const { physical_address, valid, writeable, usermode } = kvm_translation.decode(bytes);
    return { physicalAddress: physical_address, valid, writeable, usermode };
  }

  getTscKhz(): number {
    return this.ioctl(abi.KVM_GET_TSC_KHZ, 0, 'KVM_GET_TSC_KHZ');
  }

  setTscKhz(khz: number): void {
    checkLong(khz, 'KVM_SET_TSC_KHZ.khz');
    this.ioctl(abi.KVM_SET_TSC_KHZ, khz, `KVM_SET_TSC_KHZ ${khz}`);
  }
}
