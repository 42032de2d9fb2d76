/** What user space enables on a VM by KVM_ENABLE_CAP and its vCPUs look at (Linux arch/x86/kvm/x86.c, kvm_vm_ioctl_enable_cap). */
import {
  KVM_CAP_EXCEPTION_PAYLOAD,
  KVM_CAP_EXIT_HYPERCALL,
  KVM_CAP_X86_TRIPLE_FAULT_EVENT,
  KVM_CAP_X86_USER_SPACE_MSR,
  KVM_MSR_EXIT_REASON_FILTER,
  KVM_MSR_EXIT_REASON_INVAL,
  KVM_MSR_EXIT_REASON_UNKNOWN,
} from '../../abi/kvm.ts';
import { LinuxError } from '../../base/errors.ts';
import { EXIT_HYPERCALLS } from './capabilities.ts';

const MSR_REASONS = KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER;

export class VmCapabilities {
  /** Numbers of hypercalls that exit to user space, as a bitmap. */
  hypercallExits = 0;
  /** KVM_MSR_EXIT_REASON_* for which an access to an MSR exits to user space. */
  userSpaceMsr = 0;
  exceptionPayload = false;
  tripleFaultEvent = false;

  /** Errors: EINVAL for a capability that is not here, and for arguments outside of its mask. */
  enable(cap: number, argument: bigint): void {
    const subset = (name: string, mask: number): number => {
      if ((argument & ~BigInt(mask)) !== 0n)
        throw new LinuxError('EINVAL', `${name}: args[0] ${argument}, want a subset of ${mask}`);
      return Number(argument);
    };
    switch (cap) {
      case KVM_CAP_EXIT_HYPERCALL:
        this.hypercallExits = subset('KVM_CAP_EXIT_HYPERCALL', EXIT_HYPERCALLS);
        return;
      case KVM_CAP_X86_USER_SPACE_MSR:
        this.userSpaceMsr = subset('KVM_CAP_X86_USER_SPACE_MSR', MSR_REASONS);
        return;
      case KVM_CAP_EXCEPTION_PAYLOAD:
        this.exceptionPayload = argument !== 0n;
        return;
      case KVM_CAP_X86_TRIPLE_FAULT_EVENT:
        this.tripleFaultEvent = argument !== 0n;
        return;
      default:
        throw new LinuxError('EINVAL', `KVM_ENABLE_CAP ${cap}: no capability that can be enabled on a VM`);
    }
  }
}
