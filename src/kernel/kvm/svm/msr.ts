/**
 * RDMSR and WRMSR exits (Linux svm_get_msr, svm_set_msr, kvm_get_msr_common): the MSRs that a 64-bit guest without an in-kernel APIC needs. Every
 * other one is #GP, as KVM answers an MSR that it does not know. Pass-through MSRs never come here (permission-maps.ts).
 * Left out: writes of TSC.
 */
import { SAVE } from '../../../abi/vmcb.ts';
import { CR0, EFER, MSR, VECTOR } from '../../../abi/x86.ts';
import { GUEST_AGAIN } from '../run-result.ts';
import type { Vcpu } from '../vcpu.ts';

const MICROCODE = 0x8b;
const MTRR_CAP = 0xfe;
const RCX = 1;
const RDX = 2;
/** svm.md 7.4: KVM stuffs feature MSRs (quirk STUFF_FEATURE_MSRS). */
const MICROCODE_REVISION = 0x0100_0065n << 32n;
/** BTS and PEBS unavailable. */
export const MISC_ENABLE_DEFAULT = 0x1800n;
/** 8 variable ranges, fixed ranges, write combining. */
const MTRR_CAP_VALUE = 0x508n;
/** Addresses in MSRs are made canonical. */
const LINEAR_BITS = 48;
const U32 = 0xffff_ffffn;
const VALID_PAT_TYPES = new Set([0, 1, 4, 5, 6, 7]);

export function handleMsr(vcpu: Vcpu, write: number): number {
  const { vmcb, gpr, gprWords } = vcpu;
  const msr = gprWords[RCX * 2]! >>> 0;
  if (write === 0) {
    const value = readMsr(vcpu, msr);
    if (value === undefined) return generalProtection(vcpu);
    vmcb.setSave(SAVE.RAX, value & U32);
    gpr[RDX] = value >> 32n;
  } else {
    const value = ((gpr[RDX]! & U32) << 32n) | (vmcb.save(SAVE.RAX) & U32);
    if (!writeMsr(vcpu, msr, value)) return generalProtection(vcpu);
  }
  vcpu.skipInstruction();
  return GUEST_AGAIN;
}

function generalProtection(vcpu: Vcpu): number {
  vcpu.vmcb.injectFault(VECTOR.GP, 0);
  return GUEST_AGAIN;
}

/** Fields of the save area that are an address in an MSR. */
const IN_SAVE_AREA = new Map<number, number>([
  [MSR.SYSENTER_ESP, SAVE.SYSENTER_ESP],
  [MSR.SYSENTER_EIP, SAVE.SYSENTER_EIP],
]);

function readMsr(vcpu: Vcpu, msr: number): bigint | undefined {
  const field = IN_SAVE_AREA.get(msr);
  if (field !== undefined) return vcpu.vmcb.save(field);
  switch (msr) {
    case MSR.EFER:
      return vcpu.vmcb.save(SAVE.EFER) & ~BigInt(EFER.SVME);
    case MSR.PAT:
      return vcpu.vmcb.save(SAVE.G_PAT);
    case MSR.APIC_BASE:
      return vcpu.other.apicBase;
    case MSR.MISC_ENABLE:
      return vcpu.other.miscEnable;
    case MICROCODE:
      return MICROCODE_REVISION;
    case MTRR_CAP:
      return MTRR_CAP_VALUE;
    default:
      return undefined;
  }
}

/** False: #GP. */
function writeMsr(vcpu: Vcpu, msr: number, value: bigint): boolean {
  const field = IN_SAVE_AREA.get(msr);
  if (field !== undefined) {
    vcpu.vmcb.setSave(field, BigInt.asUintN(64, BigInt.asIntN(LINEAR_BITS, value)));
    return true;
  }
  switch (msr) {
    case MSR.EFER:
      return writeEfer(vcpu, value);
    case MSR.PAT:
      if (!isValidPat(value)) return false;
      vcpu.vmcb.setSave(SAVE.G_PAT, value);
      return true;
    case MSR.MISC_ENABLE:
      vcpu.other.miscEnable = value;
      return true;
    case MICROCODE:
      return true;
    default:
      return false;
  }
}

const EFER_WRITABLE = BigInt(EFER.SCE | EFER.LME | EFER.LMA | EFER.NXE | EFER.FFXSR);

/** set_efer: LMA is the hardware's, LME is fixed while paging is on, and the rest wants the guest's CPUID. */
function writeEfer(vcpu: Vcpu, value: bigint): boolean {
  const old = vcpu.vmcb.save(SAVE.EFER);
  if ((value & ~EFER_WRITABLE) !== 0n || (value & vcpu.cpuid.reservedEferBits) !== 0n) return false;
  const paging = (vcpu.vmcb.saveWord(SAVE.CR0) & CR0.PG) !== 0;
  if (paging && ((old ^ value) & BigInt(EFER.LME)) !== 0n) return false;
  const kept = BigInt(EFER.LMA | EFER.SVME);
  vcpu.vmcb.setSave(SAVE.EFER, (value & ~kept) | (old & kept));
  return true;
}

function isValidPat(value: bigint): boolean {
  for (let i = 0n; i < 64n; i += 8n) if (!VALID_PAT_TYPES.has(Number((value >> i) & 0xffn))) return false;
  return true;
}
