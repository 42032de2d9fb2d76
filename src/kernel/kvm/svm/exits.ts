/**
 * What KVM does on each #VMEXIT of a plain guest (Linux arch/x86/kvm/svm/svm.c, svm_exit_handlers; reference svm.md 2 and 7.2). A handler
 * returns a run result (run-result.ts). Instructions that the guest has no use for without nested SVM raise #UD, as there.
 *
 * Left out: task switches.
 */
import {
  KVM_EXIT_FAIL_ENTRY,
  KVM_EXIT_HLT,
  KVM_EXIT_INTERNAL_ERROR,
  KVM_EXIT_SET_TPR,
  KVM_EXIT_SHUTDOWN,
  KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
} from '../../../abi/kvm.ts';
import { IOIO, NPF, SAVE, VMCB, VMEXIT } from '../../../abi/vmcb.ts';
import { VECTOR } from '../../../abi/x86.ts';
import { type Gpa, gfnOf } from '../../../base/address.ts';
import { handleHypercall } from '../hypercall.ts';
import { RET_PF } from '../mmu/page-fault.ts';
import { GUEST_AGAIN, TO_USER_SPACE } from '../run-result.ts';
import type { Vcpu } from '../vcpu.ts';
import { emulateCpuid } from './cpuid-exit.ts';
import { handleMsr } from './msr.ts';
import { handleRmpFault } from './sev/gmem-hooks.ts';
import { handleVmgexit } from './sev/vmgexit.ts';

type Handler = (vcpu: Vcpu) => number;

const RAX = VMCB.SAVE_AREA + SAVE.RAX;
const RIP = VMCB.SAVE_AREA + SAVE.RIP;
const RCX = 1;
const RDX = 2;
/** OUT here finds RIP moved already, for VMMs that reset the vCPU then. */
const PORT_OF_OLD_RESETS = 0x7e;
const DEBUG_REGISTER_CODES = 32;
const WRITE_CR8 = VMEXIT.WRITE_CR0 + 8;
/** What a PAUSE exit takes from the vCPU's slice: who spins waits for another vCPU (kvm_vcpu_on_spin). */
const PAUSE_COST = 10_000;
/** Faults in a row that only say "retry" before the vCPU waits for the end of the invalidation. */
const RETRIES_BEFORE_WAITING = 64;

const handlers: Handler[] = new Array<Handler>(0x100).fill(unexpectedExit);
const set = (handler: Handler, ...codes: number[]): void => {
  for (const code of codes) handlers[code] = handler;
};
set(handleIo, VMEXIT.IOIO);
set((vcpu) => handleMsr(vcpu, vcpu.vmcb.word(VMCB.EXITINFO1)), VMEXIT.MSR);
set(handleCpuid, VMEXIT.CPUID);
set(handleHypercall, VMEXIT.VMMCALL);
set(handleHalt, VMEXIT.HLT);
set(handleShutdown, VMEXIT.SHUTDOWN);
set(handlePause, VMEXIT.PAUSE);
set(handleUndefinedOpcode, VMEXIT.EXCEPTION0 + VECTOR.UD);
set((vcpu) => vcpu.debug.debugException(), VMEXIT.EXCEPTION0 + VECTOR.DB);
set((vcpu) => vcpu.debug.breakpoint(), VMEXIT.EXCEPTION0 + VECTOR.BP);
for (let code = VMEXIT.READ_DR0; code < VMEXIT.READ_DR0 + DEBUG_REGISTER_CODES; code++)
  // Of an SEV-ES guest DR7 is in the VMSA, whatever it asks by its GHCB (dr_interception).
  set((vcpu) => (vcpu.sev === undefined ? vcpu.debug.accessRegister(code) : GUEST_AGAIN), code);
set(handleInterruptWindow, VMEXIT.VINTR);
set(handleIret, VMEXIT.IRET);
set(handleWriteCr8, WRITE_CR8);
set(handleWrittenCr8, VMEXIT.CR0_WRITE_TRAP + 8);
// The budget is used up, or the host's own interrupt, NMI or SMI: the loop around VMRUN sees to it.
set(() => GUEST_AGAIN, VMEXIT.INTR, VMEXIT.NMI, VMEXIT.SMI, VMEXIT.EXCEPTION0 + VECTOR.MC);
set(skip, VMEXIT.WBINVD, VMEXIT.INVD, VMEXIT.MONITOR, VMEXIT.MWAIT);
set(
  undefinedOpcode,
  VMEXIT.VMRUN,
  VMEXIT.VMLOAD,
  VMEXIT.VMSAVE,
  VMEXIT.STGI,
  VMEXIT.CLGI,
  VMEXIT.SKINIT,
  VMEXIT.INVLPGA,
  VMEXIT.RDTSCP,
  VMEXIT.RDPRU,
  VMEXIT.RSM,
);
set(handleXsetbv, VMEXIT.XSETBV);
// There is no PMU.
set(generalProtection, VMEXIT.RDPMC);

/** Deals with the exit in the vCPU's VMCB. `code`: the low 32 bits of EXITCODE, signed. */
export function handleExit(vcpu: Vcpu, code: number): number {
  if (code === VMEXIT.NPF) return handleNestedFault(vcpu);
  if (code === VMEXIT.VMGEXIT) return handleVmgexit(vcpu);
  if (code === VMEXIT.INVALID) return failEntry(vcpu);
  // The core has no such instruction or mode: neither has KVM's emulator.
  if (code === VMEXIT.NOT_IMPLEMENTED) return vcpu.mmio.reportFailure();
  const handler = handlers[code];
  return handler === undefined ? unexpectedExit(vcpu) : handler(vcpu);
}

/** Nested page fault: the MMU's business (svm.md 7.2). */
function handleNestedFault(vcpu: Vcpu): number {
  const { vmcb, vm, fault } = vcpu;
  const gpa = vmcb.number(VMCB.EXITINFO2) as Gpa;
  // A software-protected VM has no C-bit: what the attribute says is what the guest means. Before KVM_SEV_INIT2 there is none either, and all is shared.
  const isPrivate =
    vcpu.sev === undefined
      ? vm.sev === undefined && vm.attributes.isPrivate(gfnOf(gpa))
      : (vmcb.word(VMCB.EXITINFO1 + 4) & NPF.HIGH_ENC) !== 0;
  const error = vmcb.word(VMCB.EXITINFO1);
  fault.begin(gpa, error, isPrivate ? 'private' : 'shared');
  const outcome = vcpu.faults.handle(fault, vcpu.kvmRun);
  if (vcpu.sev !== undefined && (outcome === RET_PF.FIXED || outcome === RET_PF.SPURIOUS))
    handleRmpFault(vcpu.sev.sev, fault.gfn, fault.pfn, error);
  return finishFault(vcpu, outcome);
}

/** What KVM_RUN makes of a fault's outcome. */
export function finishFault(vcpu: Vcpu, outcome: number): number {
  if (outcome < 0) return outcome;
  switch (outcome) {
    case RET_PF.PENDING:
      return vcpu.cycle.waitFor(vcpu.fault.pending!);
    case RET_PF.EMULATE:
      return emulate(vcpu);
    case RET_PF.RETRY:
      if (++vcpu.retries < RETRIES_BEFORE_WAITING) return GUEST_AGAIN;
      vcpu.retries = 0;
      return vcpu.cycle.waitFor(vcpu.vm.invalidation.idle());
    default:
      vcpu.retries = 0;
      return GUEST_AGAIN;
  }
}

/** MMIO. An instruction that cannot even be fetched, or whose page tables are not memory, is not emulated. */
function emulate(vcpu: Vcpu): number {
  if (vcpu.sev !== undefined) {
    // Nobody can emulate what cannot be read. An MMIO entry has the guest's own #VC handler ask.
    vcpu.vm.mmu.mapMmio(vcpu.fault.gfn);
    return GUEST_AGAIN;
  }
  if (vcpu.vmcb.word(VMCB.EXITINTINFO) < 0) return vcpu.mmio.failDelivery();
  const notEmulated = vcpu.fault.exec || (vcpu.vmcb.word(VMCB.EXITINFO1 + 4) & NPF.HIGH_GUEST_PAGE) !== 0;
  return notEmulated ? vcpu.mmio.fail() : vcpu.mmio.begin();
}

/** kvm_fast_pio: one access of 1, 2 or 4 bytes. RIP moves when the VMM has answered, but for one port (quirk OUT_7E_INC_RIP). */
function handleIo(vcpu: Vcpu): number {
  const { vmcb, kvmRun } = vcpu;
  const info = vmcb.word(VMCB.EXITINFO1);
  if ((info & IOIO.STRING) !== 0) return vcpu.mmio.begin(info);
  const direction = (info & IOIO.IN) !== 0 ? 0 : 1;
  const port = info >>> 16;
  const skipped = direction === 1 && port === PORT_OF_OLD_RESETS;
  if (skipped) vcpu.skipInstruction();
  kvmRun.exitForIo(direction, (info >>> 4) & 7, port, 1);
  if (direction === 1) kvmRun.setIoValue(vmcb.word(RAX));
  if (!skipped) vcpu.cycle.awaitIo(direction === 0 ? 'in' : 'out');
  return TO_USER_SPACE;
}

/** The VMM's answer to IN (complete_fast_pio_in): small values leave the rest of RAX alone, 4 bytes clear the upper half. */
export function completeIn(vcpu: Vcpu): void {
  const { vmcb, kvmRun } = vcpu;
  const { pio } = kvmRun;
  // What user space wrote over the exit's size and offset does not count.
  const low = pio[0]! | (pio[1]! << 8);
  switch ((vmcb.word(VMCB.EXITINFO1) >>> 4) & 7) {
    case 1:
      vmcb.setWord(RAX, (vmcb.word(RAX) & ~0xff) | pio[0]!);
      break;
    case 2:
      vmcb.setWord(RAX, (vmcb.word(RAX) & ~0xffff) | low);
      break;
    default:
      vmcb.setWord(RAX, low | (pio[2]! << 16) | (pio[3]! << 24));
      vmcb.setWord(RAX + 4, 0);
  }
}

/** kvm_emulate_xsetbv */
function handleXsetbv(vcpu: Vcpu): number {
  const { vmcb, gprWords } = vcpu;
  const word = (value: number) => BigInt(value >>> 0);
  const value = (word(gprWords[RDX * 2]!) << 32n) | word(vmcb.word(RAX));
  if (gprWords[RCX * 2] !== 0 || !vcpu.fpu.setXcr0(value)) return generalProtection(vcpu);
  return skip(vcpu);
}

function handleCpuid(vcpu: Vcpu): number {
  if (vcpu.msrs.cpuidFaults && vcpu.vmcb.cpl !== 0) return generalProtection(vcpu);
  emulateCpuid(vcpu);
  return skip(vcpu);
}

/** With a local APIC in the kernel the vCPU blocks there; without, user space decides what a halted vCPU does. */
function handleHalt(vcpu: Vcpu): number {
  if (vcpu.apic !== undefined) {
    const result = vcpu.skipInstruction();
    vcpu.mp.halt();
    return result;
  }
  vcpu.skipInstruction();
  vcpu.kvmRun.exitReason = KVM_EXIT_HLT;
  return TO_USER_SPACE;
}

/** Triple fault: the VMCB is undefined, so the vCPU goes through INIT. Of an SEV-ES guest the registers are elsewhere. */
function handleShutdown(vcpu: Vcpu): number {
  if (vcpu.sev === undefined) vcpu.init();
  vcpu.kvmRun.exitReason = KVM_EXIT_SHUTDOWN;
  return TO_USER_SPACE;
}

/** interrupt_window_interception: the guest could take an interrupt now. */
function handleInterruptWindow(vcpu: Vcpu): number {
  vcpu.events.interruptWindowOpened();
  return GUEST_AGAIN;
}

function handleIret(vcpu: Vcpu): number {
  vcpu.events.iretReached();
  return GUEST_AGAIN;
}

function handlePause(vcpu: Vcpu): number {
  vcpu.cycle.spendSlice(PAUSE_COST);
  return skip(vcpu);
}

const VMCALL = [0x0f, 0x01, 0xc1];

/** Intel's VMCALL is undefined here; KVM makes it a hypercall (it patches the guest, quirk FIX_HYPERCALL_INSN). */
function handleUndefinedOpcode(vcpu: Vcpu): number {
  const { vmcb } = vcpu;
  const opcode = new Uint8Array(VMCALL.length);
  vcpu.core.fetchBytes(vmcb.spa, opcode);
  if (opcode.some((byte, i) => byte !== VMCALL[i])) return undefinedOpcode(vcpu);
  vmcb.setLong(VMCB.NEXT_RIP, BigInt.asUintN(64, vmcb.long(RIP) + 3n));
  return handleHypercall(vcpu);
}

/** MOV CR8 sets the task priority of the kernel's local APIC. Where there is none and it is lower than before: the VMM wants to know (SET_TPR). */
function handleWriteCr8(vcpu: Vcpu): number {
  const info = vcpu.vmcb.word(VMCB.EXITINFO1);
  const value = vcpu.readGpr(info & 15);
  if (value > 15n) return generalProtection(vcpu);
  if (vcpu.apic !== undefined) {
    vcpu.apic.lapic.setTpr(Number(value) << 4);
    return vcpu.skipInstruction();
  }
  const lower = value < BigInt(vcpu.other.cr8);
  vcpu.setCr8(Number(value));
  const result = vcpu.skipInstruction();
  if (!lower) return result;
  vcpu.kvmRun.exitReason = KVM_EXIT_SET_TPR;
  return TO_USER_SPACE;
}

/** cr_trap: a guest with protected state has written CR8; the core took the value, so it is one. */
function handleWrittenCr8(vcpu: Vcpu): number {
  const value = vcpu.vmcb.word(VMCB.EXITINFO1);
  if (vcpu.apic !== undefined) vcpu.apic.lapic.setTpr(value << 4);
  else vcpu.setCr8(value);
  return GUEST_AGAIN;
}

function skip(vcpu: Vcpu): number {
  return vcpu.skipInstruction();
}

function undefinedOpcode(vcpu: Vcpu): number {
  vcpu.events.queueException(VECTOR.UD);
  return GUEST_AGAIN;
}

function generalProtection(vcpu: Vcpu): number {
  if (vcpu.sev !== undefined) return vcpu.sev.raiseInGuest(VECTOR.GP, 0);
  vcpu.events.queueFault(VECTOR.GP, 0);
  return GUEST_AGAIN;
}

/** VMRUN refused the VMCB. */
function failEntry(vcpu: Vcpu): number {
  const { kvmRun } = vcpu;
  const code = vcpu.vmcb.long(VMCB.EXITCODE);
  kvmRun.exitReason = KVM_EXIT_FAIL_ENTRY;
  kvmRun.failEntryReason = vcpu.vm.policy.failEntryReason64 ? code : code & 0xffff_ffffn;
  kvmRun.failEntryCpu = vcpu.id;
  return TO_USER_SPACE;
}

function unexpectedExit(vcpu: Vcpu): number {
  const { kvmRun } = vcpu;
  kvmRun.exitReason = KVM_EXIT_INTERNAL_ERROR;
  kvmRun.internalErrorSuberror = KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON;
  kvmRun.internalErrorNdata = 2;
  kvmRun.setInternalErrorData(0, vcpu.vmcb.long(VMCB.EXITCODE));
  kvmRun.setInternalErrorData(1, BigInt(vcpu.id));
  return TO_USER_SPACE;
}
