/**
 * AP Creation (Linux arch/x86/kvm/svm/sev.c, sev_snp_ap_creation; reference facts 5.3): a vCPU gives another one a VMSA that the guest made, at once or at its next INIT, or
 * takes it away.
 */
import type { GhcbRequest } from './ghcb-page.ts';
import type { VcpuSev } from './vcpu-sev.ts';

const REQUEST = { CREATE_ON_INIT: 0, CREATE: 1, DESTROY: 2 } as const;
const LARGE_PAGE = 0x20_0000n;

/** False: the request makes no sense. */
export function createAp(sev: VcpuSev, request: GhcbRequest): boolean {
  const target = sev.sev.vm.openVcpus().find((vcpu) => BigInt(vcpu.id) === request.info1 >> 32n)?.sev;
  if (target === undefined) return false;
  switch (Number(request.info1 & 0xffff_ffffn)) {
    case REQUEST.CREATE_ON_INIT:
      if (!isVmsaValid(sev, request)) return false;
      target.nextVmsa = Number(request.info2);
      target.resetOnInit = true;
      return true;
    case REQUEST.CREATE:
      if (!isVmsaValid(sev, request)) return false;
      target.nextVmsa = Number(request.info2);
      break;
    case REQUEST.DESTROY:
      target.nextVmsa = -1;
      break;
    default:
      return false;
  }
  target.resetRequested = true;
  target.vcpu.mp.wake();
  return true;
}

/** 2 MiB-aligned VMSAs are refused for the sake of an erratum of real parts. */
const isVmsaValid = ({ sev, vcpu }: VcpuSev, { rax, info2 }: GhcbRequest): boolean =>
  ((rax ^ sev.vmsaFeatures) & sev.vm.policy.apFeaturesCompared) === 0n &&
  info2 % 4096n === 0n &&
  vcpu.isLegalGpa(info2) &&
  info2 % LARGE_PAGE !== 0n;
