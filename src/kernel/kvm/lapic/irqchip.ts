/**
 * A VM's ioctls on interrupt controllers in the kernel (Linux arch/x86/kvm/x86.c: kvm_vm_ioctl_enable_cap, kvm_vm_ioctl_irq_line; virt/kvm/irqchip.c:
 * kvm_send_userspace_msi). There are local APICs once KVM_CAP_SPLIT_IRQCHIP was enabled.
 */
import { KVM_X2APIC_API } from '../../../abi/kvm.ts';
import { LinuxError } from '../../../base/errors.ts';
import type { GsiRoute, MsiMessage } from '../../interface.ts';
import type { KvmPolicy } from '../policy.ts';
import { InterruptController, MAX_IRQ_ROUTES } from './interrupt-controller.ts';

export class Irqchip {
  /** Local APICs and what joins them, where user space asked for them. */
  controller: InterruptController | undefined = undefined;
  readonly #policy: KvmPolicy;
  /** Flags of KVM_CAP_X2APIC_API; they may come before the local APICs. */
  #x2apicApi = 0n;

  constructor(policy: KvmPolicy) {
    this.#policy = policy;
  }

  /** KVM_CAP_SPLIT_IRQCHIP. Errors in order: EINVAL (number of routes), EEXIST (there is an irqchip, or a vCPU). */
  split(routes: bigint, vcpus: number): void {
    if (routes > BigInt(MAX_IRQ_ROUTES))
      throw new LinuxError('EINVAL', `KVM_CAP_SPLIT_IRQCHIP: ${routes} routes, at most ${MAX_IRQ_ROUTES}`);
    if (this.controller !== undefined)
      throw new LinuxError('EEXIST', 'KVM_CAP_SPLIT_IRQCHIP: there is an irqchip');
    if (vcpus > 0) throw new LinuxError('EEXIST', 'KVM_CAP_SPLIT_IRQCHIP: there are vCPUs');
    this.controller = new InterruptController(Number(routes));
    this.controller.setX2apicApi(this.#x2apicApi);
  }

  /**
   * KVM_CAP_X2APIC_API. Errors: EINVAL for an unknown flag, for suppressed EOI broadcasts both on and off, for suppression without a split irqchip.
   */
  enableX2apicApi(flags: bigint): void {
    const { ENABLE_SUPPRESS_EOI_BROADCAST, DISABLE_SUPPRESS_EOI_BROADCAST } = KVM_X2APIC_API;
    const refuse = (what: string): never => {
      throw new LinuxError('EINVAL', `KVM_CAP_X2APIC_API: args[0] ${flags}, ${what}`);
    };
    const known = knownFlags(this.#policy);
    if ((flags & ~known) !== 0n) refuse(`want a subset of ${known}`);
    const enable = (flags & ENABLE_SUPPRESS_EOI_BROADCAST) !== 0n;
    if (enable && (flags & DISABLE_SUPPRESS_EOI_BROADCAST) !== 0n) refuse('both on and off');
    if (enable && this.controller === undefined) refuse('suppressed EOI broadcasts want a split irqchip');
    this.#x2apicApi |= flags;
    this.controller?.setX2apicApi(flags);
  }

  /** KVM_IRQ_LINE. Errors: ENXIO without local APICs. */
  setLine(irq: number, level: number): number {
    if (this.controller === undefined)
      throw new LinuxError('ENXIO', 'KVM_IRQ_LINE: no irqchip in the kernel');
    return this.controller.setLine(irq, level);
  }

  /** KVM_SIGNAL_MSI. Errors: EINVAL. */
  signalMsi(message: MsiMessage): number {
    return this.#need('KVM_SIGNAL_MSI').signalMsi(message);
  }

  /** KVM_SET_GSI_ROUTING. Errors: EINVAL. */
  setRoutes(routes: readonly GsiRoute[], flags: number): void {
    this.#need('KVM_SET_GSI_ROUTING').setRoutes(routes, flags);
  }

  #need(call: string): InterruptController {
    if (this.controller === undefined) throw new LinuxError('EINVAL', `${call}: no irqchip in the kernel`);
    return this.controller;
  }
}

/**
 * KVM_CHECK_EXTENSION of KVM_CAP_X2APIC_API. Suppressed EOI broadcasts are for an IOAPIC in user space; a VM that has none yet does not offer
 * them. Without a VM: what some VM can have.
 */
export function x2apicApiFlags(
  policy: KvmPolicy,
  vm?: { readonly interrupts: InterruptController | undefined },
): bigint {
  const known = knownFlags(policy);
  const hasNone = vm !== undefined && vm.interrupts === undefined;
  return hasNone ? known & ~KVM_X2APIC_API.ENABLE_SUPPRESS_EOI_BROADCAST : known;
}

function knownFlags(policy: KvmPolicy): bigint {
  const flags = KVM_X2APIC_API;
  const ids = flags.USE_32BIT_IDS | flags.DISABLE_BROADCAST_QUIRK;
  return policy.eoiSuppressionFlags
    ? ids | flags.ENABLE_SUPPRESS_EOI_BROADCAST | flags.DISABLE_SUPPRESS_EOI_BROADCAST
    : ids;
}
