/**
 * What a kernel of one version, with early forms of interfaces where a VM asks for them, answers to the questions on which they
 * differ (reference facts 1 and 2, where two columns stand). Rule code asks here and never names a version.
 */
import { GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP } from '../../abi/kvm.ts';
import type { ErrnoName } from '../../base/errors.ts';
import { requireOneOf } from '../../base/option-checks.ts';
import type { RunPolicy } from './mmu/guest-memory.ts';

export const PERSONALITIES = ['6.12', '7.2'] as const;
export type Personality = (typeof PERSONALITIES)[number];

/** Interfaces in the form in which they were first proposed: seeds 001, 002, 003, 004. */
export const EARLY_FORMS = ['certs', 'sev-launch', 'private-fault', 'dirty-pages'] as const;
export type EarlyForm = (typeof EARLY_FORMS)[number];

export interface KvmPolicy extends RunPolicy {
  /** KVM_CAP_GUEST_MEMFD_FLAGS is known, and flags exist. */
  readonly guestMemfdFlags: boolean;
  /** Slots may have a guest_memfd, and the capability says so, only where the VM has private memory. */
  readonly guestMemfdNeedsPrivateMemory: boolean;
  /** A slot that binds a file with the MMAP flag is served by the file alone. */
  readonly mmapFileServesSharedFaults: boolean;
  /** Two slots of a VM want the same pages of a file. */
  readonly bindingOverlap: ErrnoName;
  /** KVM_SEV_INIT2 refuses GHCB version 1 for SNP. */
  readonly snpNeedsGhcbVersion2: boolean;
  /** SNP policy bits that KVM_SEV_SNP_LAUNCH_START takes, as far as firmware knows them. */
  readonly snpPolicyBits: bigint;
  /** The SNP policy must allow SMT. */
  readonly snpPolicyNeedsSmt: boolean;
  /** KVM_SEV_SNP_LAUNCH_UPDATE refuses an empty range and an unaligned source. */
  readonly snpUpdateChecksRange: boolean;
  /** KVM_SEV_SNP_ENABLE_REQ_CERTS and its exit are there. */
  readonly certificateExits: boolean;
  /** Every extended guest request exits with VMGEXIT (seed 001). */
  readonly earlyCertificates: boolean;
  /** What is wrong with a GHCB is told to the guest, with 7.2's reasons and in its order; else to the VMM, or as "missing input". */
  readonly ghcbErrorsToGuest: boolean;
  /** SEV_FEATURES in which an AP of an SNP guest must be like the others. */
  readonly apFeaturesCompared: bigint;
  /** KVM_CAP_X2APIC_API has flags for suppressed EOI broadcasts. */
  readonly eoiSuppressionFlags: boolean;
}

const POLICIES: Readonly<Record<Personality, KvmPolicy>> = {
  '6.12': {
    guestMemfdFlags: false,
    guestMemfdNeedsPrivateMemory: true,
    mmapFileServesSharedFaults: false,
    bindingOverlap: 'EINVAL',
    eoiSuppressionFlags: false,
    snpNeedsGhcbVersion2: false,
    snpPolicyBits: 0xb_ffffn,
    snpPolicyNeedsSmt: true,
    snpUpdateChecksRange: false,
    certificateExits: false,
    earlyCertificates: false,
    ghcbErrorsToGuest: false,
    apFeaturesCompared: 0x18n,
    attributeCheckedBeforeSlot: true,
    retryCheckedEarly: true,
    hypercallRetPreset: false,
    mapRangeAnswersChecked: false,
    failEntryReason64: false,
    preFaultOfDyingSlot: 'EINTR',
  },
  '7.2': {
    guestMemfdFlags: true,
    guestMemfdNeedsPrivateMemory: false,
    mmapFileServesSharedFaults: true,
    bindingOverlap: 'EEXIST',
    eoiSuppressionFlags: true,
    snpNeedsGhcbVersion2: true,
    snpPolicyBits: 0x3fb_ffffn,
    snpPolicyNeedsSmt: false,
    snpUpdateChecksRange: true,
    certificateExits: true,
    earlyCertificates: false,
    ghcbErrorsToGuest: true,
    apFeaturesCompared: 0xffff_ffff_ffff_ffffn,
    attributeCheckedBeforeSlot: true,
    retryCheckedEarly: true,
    hypercallRetPreset: true,
    mapRangeAnswersChecked: true,
    failEntryReason64: true,
    preFaultOfDyingSlot: 'EAGAIN',
  },
};

/** Throws RangeError: a version or an early form that is not there. */
export function kvmPolicy(personality: Personality, early: readonly EarlyForm[] = []): KvmPolicy {
  requireOneOf('kernel', personality, PERSONALITIES);
  for (const form of early) requireOneOf('early', form, EARLY_FORMS);
  return {
    ...POLICIES[personality],
    ...(early.includes('private-fault') && { attributeCheckedBeforeSlot: false, retryCheckedEarly: false }),
    ...(early.includes('certs') && { earlyCertificates: true }),
  };
}

/** Flags that KVM_CREATE_GUEST_MEMFD takes. */
export function guestMemfdFlagMask(policy: KvmPolicy, vm: { hasPrivateMemory: boolean }): bigint {
  if (!policy.guestMemfdFlags) return 0n;
  return vm.hasPrivateMemory ? GUEST_MEMFD_FLAG_MMAP : GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED;
}
