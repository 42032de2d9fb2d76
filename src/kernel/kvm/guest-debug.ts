/**
 * Debug registers of a guest, and user space as its debugger (Linux arch/x86/kvm/x86.c: kvm_arch_vcpu_ioctl_set_guest_debug, kvm_set_dr,
 * kvm_update_dr7, kvm_vcpu_do_singlestep, kvm_vcpu_ioctl_x86_set_debugregs; svm.c: db_interception, bp_interception, dr_interception).
 *
 * While user space debugs, its breakpoints may be in the processor's registers and the guest's own are kept here; accesses exit then. Else the guest has the
 * processor's.
 */
import {
  KVM_EXIT_DEBUG,
  KVM_GUESTDBG_BLOCKIRQ,
  KVM_GUESTDBG_ENABLE,
  KVM_GUESTDBG_INJECT_BP,
  KVM_GUESTDBG_INJECT_DB,
  KVM_GUESTDBG_SINGLESTEP,
  KVM_GUESTDBG_USE_HW_BP,
  KVM_GUESTDBG_USE_SW_BP,
} from '../../abi/kvm.ts';
import { SAVE, SEGMENT, VMCB, VMEXIT } from '../../abi/vmcb.ts';
import { RFLAGS, VECTOR } from '../../abi/x86.ts';
import { LinuxError } from '../../base/errors.ts';
import type { DebugRegisters, GuestDebugRequest } from '../interface.ts';
import { GUEST_AGAIN, TO_USER_SPACE } from './run-result.ts';
import type { Vcpu } from './vcpu.ts';

const DR6_FIXED = 0xffff0ff0n;
const DR6_VOLATILE = 0x1e80fn;
const DR6_STEP = 0x4000n;
const DR7_FIXED = 0x400n;
const DR7_VOLATILE = 0xffff2bffn;
const ADDRESSES = 4;
const WRITE = 16;
const USER = KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_HW_BP;

export class GuestDebug {
  /** KVM_GUESTDBG_*; 0: nobody debugs. */
  control = 0;
  readonly #vcpu: Vcpu;
  /** The guest's own registers while user space debugs. */
  readonly #addresses = new BigUint64Array(ADDRESSES);
  #dr6 = DR6_FIXED;
  #dr7 = DR7_FIXED;
  /** User space's breakpoints. */
  readonly #breakpoints = new BigUint64Array(ADDRESSES);
  #breakpointControl = 0n;
  #stepRip = 0n;

  constructor(vcpu: Vcpu) {
    this.#vcpu = vcpu;
  }

  get isSevEs(): boolean {
    return this.#vcpu.sev !== undefined;
  }

  get singleStep(): boolean {
    return (this.control & KVM_GUESTDBG_SINGLESTEP) !== 0;
  }

  /** The guest's DR6. */
  get dr6(): bigint {
    return this.control === 0 ? this.#vcpu.vmcb.save(SAVE.DR6) : this.#dr6;
  }
  set dr6(value: bigint) {
    this.#dr6 = value;
    if (this.control === 0) this.#vcpu.vmcb.setSave(SAVE.DR6, value);
  }
  get dr7(): bigint {
    return this.control === 0 ? this.#vcpu.vmcb.save(SAVE.DR7) : this.#dr7;
  }
  set dr7(value: bigint) {
    this.#dr7 = value;
    if ((this.control & KVM_GUESTDBG_USE_HW_BP) === 0) this.#vcpu.vmcb.setSave(SAVE.DR7, value);
  }
  address(number: number): bigint {
    return this.control === 0 ? this.#vcpu.core.debugAddresses[number]! : this.#addresses[number]!;
  }
  setAddress(number: number, value: bigint): void {
    this.#addresses[number] = value;
    if ((this.control & KVM_GUESTDBG_USE_HW_BP) === 0) this.#vcpu.core.debugAddresses[number] = value;
  }

  /** KVM_GET_DEBUGREGS */
  getRegisters(): DebugRegisters {
    const db = Array.from({ length: ADDRESSES }, (_, i) => this.address(i));
    return { db, dr6: this.dr6, dr7: this.dr7, flags: 0n };
  }

  /** KVM_SET_DEBUGREGS. Errors: EINVAL for flags, and for bits above 31 of DR6 and DR7. */
  setRegisters({ db, dr6, dr7, flags }: DebugRegisters): void {
    if (flags !== 0n) throw new LinuxError('EINVAL', `KVM_SET_DEBUGREGS: flags ${flags}, want 0`);
    if (dr6 >> 32n !== 0n) throw new LinuxError('EINVAL', `KVM_SET_DEBUGREGS: dr6 0x${dr6.toString(16)}`);
    if (dr7 >> 32n !== 0n) throw new LinuxError('EINVAL', `KVM_SET_DEBUGREGS: dr7 0x${dr7.toString(16)}`);
    for (let i = 0; i < ADDRESSES; i++) this.setAddress(i, db[i] ?? 0n);
    this.dr6 = dr6;
    this.dr7 = dr7;
  }

  /** KVM_SET_GUEST_DEBUG. Errors: EBUSY, when an exception is to be injected and another waits. */
  set({ control, debugreg }: GuestDebugRequest): void {
    const { events, vmcb, core } = this.#vcpu;
    if ((control & (KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP)) !== 0) {
      if (events.exception.pending)
        throw new LinuxError('EBUSY', `KVM_SET_GUEST_DEBUG: exception ${events.exception.vector} is pending`);
      events.queueException((control & KVM_GUESTDBG_INJECT_DB) !== 0 ? VECTOR.DB : VECTOR.BP);
    }
    const flags = this.guestFlags(vmcb.save(SAVE.RFLAGS));
    const own = this.getRegisters();
    this.control = (control & KVM_GUESTDBG_ENABLE) === 0 ? 0 : control;
    const withBreakpoints = (this.control & KVM_GUESTDBG_USE_HW_BP) !== 0;
    for (let i = 0; i < ADDRESSES; i++) {
      this.#addresses[i] = own.db[i]!;
      this.#breakpoints[i] = debugreg[i] ?? 0n;
      core.debugAddresses[i] = withBreakpoints ? this.#breakpoints[i]! : own.db[i]!;
    }
    this.#breakpointControl = debugreg[7] ?? 0n;
    this.#dr6 = own.dr6;
    this.#dr7 = own.dr7;
    if (this.singleStep) this.#stepRip = this.linearRip;
    events.singleStepped = this.singleStep;
    events.blocked = (this.control & KVM_GUESTDBG_BLOCKIRQ) !== 0;
    this.setGuestFlags(flags);
    this.program();
  }

  /** Puts into the VMCB what being debugged means (svm_update_exception_bitmap, kvm_update_dr7). */
  program(): void {
    const { vmcb, events } = this.#vcpu;
    const withBreakpoints = (this.control & KVM_GUESTDBG_USE_HW_BP) !== 0;
    vmcb.setSave(SAVE.DR7, withBreakpoints ? this.#breakpointControl : this.#dr7);
    vmcb.setSave(SAVE.DR6, this.control === 0 ? this.#dr6 : DR6_FIXED);
    if (this.control === 0) vmcb.dropDebugRegisterIntercepts();
    else vmcb.interceptDebugRegisters();
    if ((this.control & KVM_GUESTDBG_USE_SW_BP) !== 0) vmcb.interceptException(VECTOR.BP);
    else vmcb.dropExceptionIntercept(VECTOR.BP);
    if ((this.control & USER) !== 0 || events.stepping) vmcb.interceptException(VECTOR.DB);
    else vmcb.dropExceptionIntercept(VECTOR.DB);
    events.requested = true;
  }

  /** INIT and power-on: the guest's registers are the architecture's again. */
  reset(): void {
    for (let i = 0; i < ADDRESSES; i++) this.setAddress(i, 0n);
    this.#dr6 = DR6_FIXED;
    this.#dr7 = DR7_FIXED;
    this.program();
  }

  /** kvm_get_rflags: without a TF that is the debugger's. */
  guestFlags(flags: bigint): bigint {
    const own = this.#vcpu.events.guestFlags(flags);
    return this.singleStep ? own & ~BigInt(RFLAGS.TF) : own;
  }
  /** kvm_set_rflags: the debugger's TF stays where it stepped from. */
  setGuestFlags(flags: bigint): void {
    const step = this.singleStep && this.linearRip === this.#stepRip;
    this.#vcpu.vmcb.setSave(SAVE.RFLAGS, step ? flags | BigInt(RFLAGS.TF) : flags);
    this.#vcpu.events.requested = true;
  }

  /** kvm_get_linear_rip */
  get linearRip(): bigint {
    const { vmcb } = this.#vcpu;
    const rip = vmcb.save(SAVE.RIP);
    if (vmcb.in64BitMode) return rip;
    return (vmcb.save(SAVE.CS + SEGMENT.BASE) + rip) & 0xffff_ffffn;
  }

  /** Length of the INT3, INTO or INT n at RIP. */
  softEventLength(vector: number): number {
    const code = new Uint8Array(2);
    const count = this.#vcpu.core.fetchBytes(this.#vcpu.vmcb.spa, code);
    if (vector === VECTOR.BP) return code[0] === 0xcc ? 1 : 0;
    if (vector === VECTOR.OF) return code[0] === 0xce ? 1 : 0;
    return count > 1 && code[0] === 0xcd ? 2 : 0;
  }

  /** KVM stepped over an instruction while TF was set (kvm_vcpu_do_singlestep). */
  stepped(): number {
    if (!this.singleStep) {
      this.#vcpu.events.queueDebug(DR6_STEP);
      return GUEST_AGAIN;
    }
    const { kvmRun } = this.#vcpu;
    kvmRun.exitReason = KVM_EXIT_DEBUG;
    kvmRun.debugDr6 = DR6_STEP | DR6_FIXED;
    kvmRun.debugPc = this.linearRip;
    kvmRun.debugException = VECTOR.DB;
    return TO_USER_SPACE;
  }

  /** #DB was intercepted. */
  debugException(): number {
    const { vmcb, events, kvmRun } = this.#vcpu;
    const dr6 = vmcb.save(SAVE.DR6);
    if ((this.control & USER) === 0 && !events.stepping) {
      events.queueDebug(dr6 ^ DR6_FIXED);
      return GUEST_AGAIN;
    }
    if (events.stepping) {
      events.endStep();
      this.#dropStepIntercept();
    }
    if ((this.control & USER) === 0) return GUEST_AGAIN;
    kvmRun.exitReason = KVM_EXIT_DEBUG;
    kvmRun.debugDr6 = dr6;
    kvmRun.debugDr7 = vmcb.save(SAVE.DR7);
    kvmRun.debugPc = BigInt.asUintN(64, vmcb.save(SAVE.CS + SEGMENT.BASE) + vmcb.save(SAVE.RIP));
    kvmRun.debugException = VECTOR.DB;
    vmcb.setSave(SAVE.DR6, DR6_FIXED);
    return TO_USER_SPACE;
  }

  #dropStepIntercept(): void {
    if ((this.control & USER) === 0) this.#vcpu.vmcb.dropExceptionIntercept(VECTOR.DB);
  }

  /** INT3 was intercepted. */
  breakpoint(): number {
    const { vmcb, kvmRun } = this.#vcpu;
    kvmRun.exitReason = KVM_EXIT_DEBUG;
    kvmRun.debugPc = BigInt.asUintN(64, vmcb.save(SAVE.CS + SEGMENT.BASE) + vmcb.save(SAVE.RIP));
    kvmRun.debugException = VECTOR.BP;
    return TO_USER_SPACE;
  }

  /** MOV to or from a debug register was intercepted. `code`: the exit's. */
  accessRegister(code: number): number {
    const vcpu = this.#vcpu;
    const register = vcpu.vmcb.word(VMCB.EXITINFO1) & 15;
    const number = code - VMEXIT.READ_DR0;
    if (number >= WRITE) {
      if (!this.#write(number - WRITE, vcpu.readGpr(register))) {
        vcpu.events.queueFault(VECTOR.GP, 0);
        return GUEST_AGAIN;
      }
    } else vcpu.writeGpr(register, this.#read(number));
    return vcpu.skipInstruction();
  }

  #read(number: number): bigint {
    if (number < ADDRESSES) return this.address(number);
    return number === 4 || number === 6 ? this.dr6 : this.dr7;
  }

  /** kvm_set_dr. False: #GP. */
  #write(number: number, value: bigint): boolean {
    if (number < ADDRESSES) {
      this.setAddress(number, value);
      return true;
    }
    if (value >> 32n !== 0n) return false;
    if (number === 4 || number === 6) this.dr6 = (value & DR6_VOLATILE) | DR6_FIXED;
    else this.dr7 = (value & DR7_VOLATILE) | DR7_FIXED;
    return true;
  }
}
