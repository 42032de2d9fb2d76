/** KVM_CAP_X2APIC_API: which of its flags a VM knows, and enabling them (Linux arch/x86/kvm/x86.c, kvm_vm_ioctl_enable_cap). */
import { KVM_X2APIC_API } from '../../../abi/kvm.ts';
import { LinuxError } from '../../../base/errors.ts';
import type { KvmPolicy } from '../policy.ts';
import type { InterruptController } from './interrupt-controller.ts';

interface X2apicVm {
  readonly policy: KvmPolicy;
  readonly interrupts: InterruptController | undefined;
}

/** KVM_CHECK_EXTENSION. Suppressed EOI broadcasts are for an IOAPIC in user space; a VM that has none yet does not offer them. */
export function x2apicApiFlags(policy: KvmPolicy, vm?: Pick<X2apicVm, 'interrupts'>): bigint {
  const { ENABLE_SUPPRESS_EOI_BROADCAST } = KVM_X2APIC_API;
  const known = knownFlags(policy);
  return vm !== undefined && vm.interrupts === undefined ? known & ~ENABLE_SUPPRESS_EOI_BROADCAST : known;
}

function knownFlags(policy: KvmPolicy): bigint {
  const flags = KVM_X2APIC_API;
  const ids = flags.USE_32BIT_IDS | flags.DISABLE_BROADCAST_QUIRK;
  return policy.eoiSuppressionFlags
    ? ids | flags.ENABLE_SUPPRESS_EOI_BROADCAST | flags.DISABLE_SUPPRESS_EOI_BROADCAST
    : ids;
}

/** Tells the interrupt controller, if it is there, and returns the flags. Errors: EINVAL for an unknown flag, for suppression both on and off, for suppression without a split irqchip. */
export function enableX2apicApi(vm: X2apicVm, flags: bigint): bigint {
  const { ENABLE_SUPPRESS_EOI_BROADCAST, DISABLE_SUPPRESS_EOI_BROADCAST } = KVM_X2APIC_API;
  const refuse = (what: string): never => {
    throw new LinuxError('EINVAL', `KVM_CAP_X2APIC_API: args[0] ${flags}, ${what}`);
  };
  if ((flags & ~knownFlags(vm.policy)) !== 0n) refuse(`want a subset of ${knownFlags(vm.policy)}`);
  const enable = (flags & ENABLE_SUPPRESS_EOI_BROADCAST) !== 0n;
  if (enable && (flags & DISABLE_SUPPRESS_EOI_BROADCAST) !== 0n) refuse('both on and off');
  if (enable && vm.interrupts === undefined) refuse('suppressed EOI broadcasts want a split irqchip');
  vm.interrupts?.setX2apicApi(flags);
  return flags;
}
