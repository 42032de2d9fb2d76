/** KVM_CHECK_EXTENSION (Linux virt/kvm/kvm_main.c and arch/x86/kvm/x86.c): what works here, and nothing else. */
import * as kvm from '../../abi/kvm.ts';
import { MANUAL_PROTECT_OPTIONS } from './dirty-log.ts';
import { MAX_RING_BYTES } from './dirty-ring.ts';
import { XSAVE_BYTES } from './fpu.ts';
import { type InterruptController, MAX_IRQ_ROUTES } from './lapic/interrupt-controller.ts';
import { x2apicApiFlags } from './lapic/irqchip.ts';
import { supportedAttributes } from './memory-attributes.ts';
import { guestMemfdFlagMask, type KvmPolicy } from './policy.ts';

export const MAX_VCPUS = 1024;
export const MAX_VCPU_IDS = 4096;
/** VM types of KVM_CREATE_VM, as the bitmap of KVM_CAP_VM_TYPES. */
export const vmTypes = (hasSnp: boolean): number =>
  (1 << kvm.KVM_X86_DEFAULT_VM) | (1 << kvm.KVM_X86_SW_PROTECTED_VM) | (hasSnp ? 1 << kvm.KVM_X86_SNP_VM : 0);
export const describeVmTypes = (hasSnp: boolean): string =>
  `DEFAULT 0${hasSnp ? ', SW_PROTECTED 1 and SNP 4' : ' and SW_PROTECTED 1'}`;
/** Hypercalls that may exit to user space (KVM_CAP_EXIT_HYPERCALL). */
export const EXIT_HYPERCALLS = 1 << kvm.KVM_HC_MAP_GPA_RANGE;

/** What KVM_SET_GUEST_DEBUG knows. */
const GUEST_DEBUG_CONTROLS =
  kvm.KVM_GUESTDBG_ENABLE |
  kvm.KVM_GUESTDBG_SINGLESTEP |
  kvm.KVM_GUESTDBG_USE_SW_BP |
  kvm.KVM_GUESTDBG_USE_HW_BP |
  kvm.KVM_GUESTDBG_INJECT_DB |
  kvm.KVM_GUESTDBG_INJECT_BP |
  kvm.KVM_GUESTDBG_BLOCKIRQ;

/** Yes, whatever the VM. */
const ALWAYS: ReadonlySet<number> = new Set([
  kvm.KVM_CAP_HLT,
  kvm.KVM_CAP_USER_MEMORY,
  kvm.KVM_CAP_EXT_CPUID,
  kvm.KVM_CAP_SYNC_MMU,
  kvm.KVM_CAP_DESTROY_MEMORY_REGION_WORKS,
  kvm.KVM_CAP_JOIN_MEMORY_REGIONS_WORKS,
  kvm.KVM_CAP_INTERNAL_ERROR_DATA,
  kvm.KVM_CAP_USER_NMI,
  kvm.KVM_CAP_SET_GUEST_DEBUG,
  kvm.KVM_CAP_VCPU_EVENTS,
  kvm.KVM_CAP_INTR_SHADOW,
  kvm.KVM_CAP_DEBUGREGS,
  kvm.KVM_CAP_X86_ROBUST_SINGLESTEP,
  kvm.KVM_CAP_XSAVE,
  kvm.KVM_CAP_XCRS,
  kvm.KVM_CAP_GET_TSC_KHZ,
  kvm.KVM_CAP_GET_MSR_FEATURES,
  kvm.KVM_CAP_EXCEPTION_PAYLOAD,
  kvm.KVM_CAP_X86_USER_SPACE_MSR,
  kvm.KVM_CAP_X86_MSR_FILTER,
  kvm.KVM_CAP_X86_TRIPLE_FAULT_EVENT,
  kvm.KVM_CAP_READONLY_MEM,
  kvm.KVM_CAP_ENABLE_CAP_VM,
  kvm.KVM_CAP_CHECK_EXTENSION_VM,
  kvm.KVM_CAP_IMMEDIATE_EXIT,
  kvm.KVM_CAP_USER_MEMORY2,
  kvm.KVM_CAP_MEMORY_FAULT_INFO,
  kvm.KVM_CAP_PRE_FAULT_MEMORY,
  kvm.KVM_CAP_MP_STATE,
  kvm.KVM_CAP_IRQ_INJECT_STATUS,
  kvm.KVM_CAP_SET_BOOT_CPU_ID,
  kvm.KVM_CAP_TSC_DEADLINE_TIMER,
  kvm.KVM_CAP_SIGNAL_MSI,
  kvm.KVM_CAP_SPLIT_IRQCHIP,
]);

/** `vm`: asked on a VM; without it, on /dev/kvm, where an answer says what some VM can have. 0: not there. */
export function checkExtension(
  capability: number,
  { policy, hasSnp }: { policy: KvmPolicy; hasSnp: boolean },
  vm?: {
    readonly hasPrivateMemory: boolean;
    readonly addressSpaces: readonly unknown[];
    readonly interrupts: InterruptController | undefined;
  },
): number {
  if (ALWAYS.has(capability)) return 1;
  switch (capability) {
    case kvm.KVM_CAP_NR_VCPUS:
    case kvm.KVM_CAP_MAX_VCPUS:
      return MAX_VCPUS;
    case kvm.KVM_CAP_MAX_VCPU_ID:
      return MAX_VCPU_IDS;
    case kvm.KVM_CAP_IRQ_ROUTING:
      return MAX_IRQ_ROUTES;
    case kvm.KVM_CAP_X2APIC_API:
      return Number(x2apicApiFlags(policy, vm));
    case kvm.KVM_CAP_NR_MEMSLOTS:
      return kvm.KVM_USER_MEM_SLOTS;
    case kvm.KVM_CAP_MULTI_ADDRESS_SPACE:
      return vm?.addressSpaces.length ?? 2;
    case kvm.KVM_CAP_EXIT_HYPERCALL:
      return EXIT_HYPERCALLS;
    case kvm.KVM_CAP_DIRTY_LOG_RING:
    case kvm.KVM_CAP_DIRTY_LOG_RING_ACQ_REL:
      return MAX_RING_BYTES;
    case kvm.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2:
      return MANUAL_PROTECT_OPTIONS;
    case kvm.KVM_CAP_XSAVE2:
      return XSAVE_BYTES;
    case kvm.KVM_CAP_SET_GUEST_DEBUG2:
      return GUEST_DEBUG_CONTROLS;
    case kvm.KVM_CAP_VM_TYPES:
      return vmTypes(hasSnp);
    case kvm.KVM_CAP_MEMORY_ATTRIBUTES:
      return Number(supportedAttributes(vm ?? { hasPrivateMemory: true }));
    case kvm.KVM_CAP_GUEST_MEMFD:
      return policy.guestMemfdNeedsPrivateMemory && vm?.hasPrivateMemory === false ? 0 : 1;
    case kvm.KVM_CAP_GUEST_MEMFD_FLAGS:
      return Number(guestMemfdFlagMask(policy, vm ?? { hasPrivateMemory: false }));
    default:
      return 0;
  }
}
