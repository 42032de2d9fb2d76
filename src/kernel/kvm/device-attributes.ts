/** Device attributes of /dev/kvm (Linux arch/x86/kvm/x86.c kvm_x86_dev_get_attr, svm/sev.c sev_dev_get_attr; reference facts 2.2). */
import {
  KVM_X86_GRP_SEV,
  KVM_X86_SEV_SNP_REQ_CERTS,
  KVM_X86_SEV_VMSA_FEATURES,
  KVM_X86_SNP_POLICY_BITS,
} from '../../abi/kvm-sev.ts';
import { LinuxError } from '../../base/errors.ts';
import type { KvmPolicy } from './policy.ts';
import type { SevHost } from './svm/sev/sev-host.ts';
import { supportedVmsaFeatures } from './svm/sev/sev-vm.ts';

/** Errors: ENXIO. */
export function deviceAttribute(
  host: { readonly policy: KvmPolicy; readonly sev: SevHost | undefined },
  group: number,
  attr: bigint,
): bigint {
  if (group === KVM_X86_GRP_SEV) {
    const isNew = host.policy.certificateExits;
    if (attr === BigInt(KVM_X86_SEV_VMSA_FEATURES)) return supportedVmsaFeatures();
    if (attr === BigInt(KVM_X86_SNP_POLICY_BITS) && isNew)
      return host.sev === undefined ? 0n : host.policy.snpPolicyBits & host.sev.machine.policyBits;
    if (attr === BigInt(KVM_X86_SEV_SNP_REQ_CERTS) && isNew) return host.sev === undefined ? 0n : 1n;
  }
  throw new LinuxError('ENXIO', `device attribute ${attr} of group ${group}: /dev/kvm has none`);
}
