/**
 * KVM_GET_VCPU_EVENTS and KVM_SET_VCPU_EVENTS (Linux arch/x86/kvm/x86.c, kvm_vcpu_ioctl_x86_get_vcpu_events and …_set_vcpu_events).
 * Left out: system management mode (throws by name where it is asked for).
 */
import {
  KVM_VCPUEVENT_VALID_NMI_PENDING,
  KVM_VCPUEVENT_VALID_PAYLOAD,
  KVM_VCPUEVENT_VALID_SHADOW,
  KVM_VCPUEVENT_VALID_SIPI_VECTOR,
  KVM_VCPUEVENT_VALID_SMM,
  KVM_VCPUEVENT_VALID_TRIPLE_FAULT,
} from '../../abi/kvm.ts';
import { VECTOR } from '../../abi/x86.ts';
import { LinuxError, NotImplementedError } from '../../base/errors.ts';
import type { VcpuEvents } from '../interface.ts';
import type { Vcpu } from './vcpu.ts';

const KNOWN =
  KVM_VCPUEVENT_VALID_NMI_PENDING |
  KVM_VCPUEVENT_VALID_SIPI_VECTOR |
  KVM_VCPUEVENT_VALID_SHADOW |
  KVM_VCPUEVENT_VALID_SMM |
  KVM_VCPUEVENT_VALID_PAYLOAD |
  KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
/** KVM_X86_SHADOW_INT_MOV_SS and …_STI: SVM does not tell them apart. */
const SHADOW_OF_EITHER = 3;

const bit = (value: boolean): number => (value ? 1 : 0);

export function getVcpuEvents(vcpu: Pick<Vcpu, 'events' | 'vm' | 'apic' | 'mp'>): VcpuEvents {
  const { events, vm } = vcpu;
  const { exceptionPayload, tripleFaultEvent } = vm.capabilities;
  const { exception, interrupt } = events;
  if (!exceptionPayload && exception.pending) events.deliverPayload();
  // The length of an INT3 or INTO has no place here; it is at RIP and comes again.
  const soft = exception.vector === VECTOR.BP || exception.vector === VECTOR.OF;
  const injected = exception.injected || (!exceptionPayload && exception.pending);
  return {
    exception: {
      injected: bit(!soft && injected),
      nr: exception.vector,
      hasErrorCode: bit(exception.hasError),
      pending: bit(!soft && exception.pending),
      errorCode: exception.error >>> 0,
    },
    interrupt: {
      injected: bit(interrupt.injected && !interrupt.soft),
      nr: interrupt.vector,
      soft: 0,
      shadow: events.inShadow ? SHADOW_OF_EITHER : 0,
    },
    nmi: { injected: bit(events.nmiInjected), pending: events.pendingNmis, masked: bit(events.nmiMasked) },
    sipiVector: 0,
    flags:
      KVM_VCPUEVENT_VALID_NMI_PENDING |
      KVM_VCPUEVENT_VALID_SHADOW |
      KVM_VCPUEVENT_VALID_SMM |
      (exceptionPayload ? KVM_VCPUEVENT_VALID_PAYLOAD : 0) |
      (tripleFaultEvent ? KVM_VCPUEVENT_VALID_TRIPLE_FAULT : 0),
    smi: { smm: 0, pending: 0, smmInsideNmi: 0, latchedInit: bit(vcpu.apic?.lapic.initPending === true) },
    tripleFaultPending: bit(tripleFaultEvent && events.tripleFault),
    exceptionHasPayload: bit(exception.hasPayload),
    exceptionPayload: exception.payload,
  };
}

/**
 * Errors: EINVAL for a flag that is unknown or whose capability is not enabled, for an exception that does not exist, for an SMI behind an INIT. As in Linux, what a wrong
 * TRIPLE_FAULT comes after has been set by then.
 */
export function setVcpuEvents(vcpu: Pick<Vcpu, 'events' | 'vm' | 'apic' | 'mp'>, request: VcpuEvents): void {
  const { events, vm } = vcpu;
  const { flags, nmi, interrupt, smi } = request;
  const has = (flag: number): boolean => (flags & flag) !== 0;
  if ((flags & ~KNOWN) !== 0) invalid(`flags 0x${flags.toString(16)}, known are 0x${KNOWN.toString(16)}`);
  let { injected, pending } = request.exception;
  let hasPayload = request.exceptionHasPayload;
  if (has(KVM_VCPUEVENT_VALID_PAYLOAD)) {
    if (!vm.capabilities.exceptionPayload) invalid('flag PAYLOAD without KVM_CAP_EXCEPTION_PAYLOAD');
    if (pending !== 0) injected = 0;
    else hasPayload = 0;
  } else {
    pending = 0;
    hasPayload = 0;
  }
  const { nr } = request.exception;
  if ((injected !== 0 || pending !== 0) && (nr > 31 || nr === VECTOR.NMI)) invalid(`exception ${nr}`);
  if (has(KVM_VCPUEVENT_VALID_SMM) && (smi.smm !== 0 || smi.pending !== 0)) {
    // INITs wait while in SMM.
    if (vcpu.mp.isInitReceived) invalid('an SMI for a vCPU that has received INIT');
    throw new NotImplementedError('system management mode');
  }

  const { exception } = events;
  exception.injected = injected !== 0;
  exception.pending = pending !== 0;
  exception.vector = nr;
  exception.hasError = request.exception.hasErrorCode !== 0;
  exception.error = request.exception.errorCode | 0;
  exception.hasPayload = hasPayload !== 0;
  exception.payload = request.exceptionPayload;
  events.interrupt.injected = interrupt.injected !== 0;
  events.interrupt.vector = interrupt.nr;
  events.interrupt.soft = interrupt.soft !== 0;
  if (has(KVM_VCPUEVENT_VALID_SHADOW)) events.setShadow(interrupt.shadow === 0 ? 0 : 1);
  events.nmiInjected = nmi.injected !== 0;
  // Those that wait are counted when the mask is known (process_nmi comes with the next entry).
  events.setNmiMask(nmi.masked !== 0);
  if (has(KVM_VCPUEVENT_VALID_NMI_PENDING)) events.setPendingNmis(nmi.pending);
  if (vcpu.apic !== undefined) {
    const { lapic } = vcpu.apic;
    if (has(KVM_VCPUEVENT_VALID_SIPI_VECTOR)) lapic.sipiVector = request.sipiVector & 0xff;
    if (has(KVM_VCPUEVENT_VALID_SMM)) lapic.initPending = smi.latchedInit !== 0;
    vcpu.mp.wake();
  }
  if (has(KVM_VCPUEVENT_VALID_TRIPLE_FAULT)) {
    if (!vm.capabilities.tripleFaultEvent)
      invalid('flag TRIPLE_FAULT without KVM_CAP_X86_TRIPLE_FAULT_EVENT');
    events.tripleFault = request.tripleFaultPending !== 0;
  }
  events.requested = true;
}

function invalid(what: string): never {
  throw new LinuxError('EINVAL', `KVM_SET_VCPU_EVENTS: ${what}`);
}
