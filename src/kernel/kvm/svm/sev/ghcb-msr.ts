/**
 * The GHCB's MSR protocol (Linux arch/x86/kvm/svm/sev.c, sev_handle_vmgexit_msr_protocol; reference facts 5.2): small requests in the MSR itself, for guests that have no
 * GHCB page yet.
 */
import { GHCB_FEATURE, GHCB_MSR } from '../../../../abi/ghcb.ts';
import { SAVE, VMCB } from '../../../../abi/vmcb.ts';
import { GUEST_AGAIN } from '../../run-result.ts';
import { emulateCpuid } from '../cpuid-exit.ts';
import { exitToMapRange, takesMapRange } from './map-range-exit.ts';
import type { SevVm } from './sev-vm.ts';
import { exitTerminated } from './termination.ts';
import type { VcpuSev } from './vcpu-sev.ts';

const MIN_VERSION = 1n;
const CODE = 0xfffn;
const GFN = 0xf_ffff_ffff_f000n;
const NO_GPA = 0xf_ffff_ffff_ffffn << 12n;
const PSC_PRIVATE = 1n;
const PSC_SHARED = 2n;
const PSC_ERROR = 1n << 63n;
const RCX = 1;
/** Codes that only SNP guests may use. */
const SNP_ONLY: ReadonlySet<number> = new Set([
  GHCB_MSR.PREFERRED_GPA_REQUEST,
  GHCB_MSR.REGISTER_GPA_REQUEST,
  GHCB_MSR.PAGE_STATE_CHANGE_REQUEST,
  GHCB_MSR.HYPERVISOR_FEATURES_REQUEST,
]);

/** What the MSR says before the guest wrote it: the answer to an SEV information request. */
export const initialGhcbMsr = (sev: SevVm): bigint =>
  (BigInt(sev.ghcbVersion) << 48n) |
  (MIN_VERSION << 32n) |
  (BigInt(sev.host.machine.cBit) << 24n) |
  BigInt(GHCB_MSR.SEV_INFO_RESPONSE);

/** Features of the hypervisor for an SNP guest. */
export const HYPERVISOR_FEATURES = BigInt(GHCB_FEATURE.SNP | GHCB_FEATURE.AP_CREATION);

/** `value`: the MSR. A run result. */
export function handleMsrProtocol(sev: VcpuSev, value: bigint): number {
  const { vcpu } = sev;
  const { vmcb } = vcpu;
  const set = (answer: bigint): number => {
    vmcb.setLong(VMCB.GHCB_GPA, BigInt.asUintN(64, answer));
    return GUEST_AGAIN;
  };
  const code = Number(value & CODE);
  const isSnp = (sev.sev.vmsaFeatures & 1n) !== 0n;
  if (SNP_ONLY.has(code) && !isSnp) return exitTerminated(vcpu, value);
  switch (code) {
    case GHCB_MSR.SEV_INFO_REQUEST:
      return set(initialGhcbMsr(sev.sev));
    case GHCB_MSR.CPUID_REQUEST: {
      const register = (value >> 30n) & 3n;
      vmcb.setSave(SAVE.RAX, value >> 32n);
      vcpu.gpr[RCX] = 0n;
      emulateCpuid(vcpu);
      const result = [vmcb.save(SAVE.RAX), vcpu.gpr[3]!, vcpu.gpr[1]!, vcpu.gpr[2]!][Number(register)]!;
      return set(((result & 0xffff_ffffn) << 32n) | (register << 30n) | BigInt(GHCB_MSR.CPUID_RESPONSE));
    }
    case GHCB_MSR.AP_RESET_HOLD_REQUEST:
      set(BigInt(GHCB_MSR.AP_RESET_HOLD_RESPONSE));
      return sev.holdReset('msr');
    case GHCB_MSR.PREFERRED_GPA_REQUEST:
      return set(NO_GPA | BigInt(GHCB_MSR.PREFERRED_GPA_RESPONSE));
    case GHCB_MSR.REGISTER_GPA_REQUEST:
      sev.registeredGhcb = Number((value & GFN) >> 12n);
      return set((value & GFN) | BigInt(GHCB_MSR.REGISTER_GPA_RESPONSE));
    case GHCB_MSR.PAGE_STATE_CHANGE_REQUEST:
      return changePageState(sev, value, set);
    case GHCB_MSR.HYPERVISOR_FEATURES_REQUEST:
      return set((HYPERVISOR_FEATURES << 12n) | BigInt(GHCB_MSR.HYPERVISOR_FEATURES_RESPONSE));
    case GHCB_MSR.TERMINATE:
      return exitTerminated(vcpu, value);
    default:
      // Linux leaves the MSR as it is and the guest runs on.
      return GUEST_AGAIN;
  }
}

/** One page (snp_begin_psc_msr): user space converts it. */
function changePageState(sev: VcpuSev, value: bigint, set: (answer: bigint) => number): number {
  const operation = (value >> 52n) & 0xfn;
  const response = BigInt(GHCB_MSR.PAGE_STATE_CHANGE_RESPONSE);
  const known = operation === PSC_PRIVATE || operation === PSC_SHARED;
  if (!known || !takesMapRange(sev)) return set(PSC_ERROR | response);
  const gfn = Number((value & GFN) >> 12n);
  const to = operation === PSC_PRIVATE ? 'private' : 'shared';
  return exitToMapRange(sev, { gfn, pages: 1, to, size: '4K' }, (outcome) =>
    set(outcome === 'done' ? response : PSC_ERROR | response),
  );
}
