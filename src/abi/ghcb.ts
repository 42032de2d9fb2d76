/**
 * The GHCB: the page and the MSR protocol by which an SEV-ES or SNP guest talks to its host (AMD, "SEV-ES Guest-Hypervisor Communication Block Standardization";
 * Linux arch/x86/include/asm/sev-common.h and uapi/asm/svm.h).
 */
/** Offsets in the page. The valid bit of a field is number offset / 8 of the bitmap. */
export const GHCB = {
  CPL: 0x0cb,
  XSS: 0x140,
  DR7: 0x160,
  RAX: 0x1f8,
  RCX: 0x308,
  RDX: 0x310,
  RBX: 0x318,
  RSI: 0x330,
  SW_EXITCODE: 0x390,
  SW_EXITINFO1: 0x398,
  SW_EXITINFO2: 0x3a0,
  SW_SCRATCH: 0x3a8,
  XCR0: 0x3e8,
  VALID_BITMAP: 0x3f0,
  SHARED_BUFFER: 0x800,
  SHARED_BUFFER_END: 0xff0,
  PROTOCOL_VERSION: 0xffa,
  USAGE: 0xffc,
} as const;

/** Events beyond the exit codes of #VMEXIT. */
export const GHCB_EVENT = {
  MMIO_READ: 0x8000_0001,
  MMIO_WRITE: 0x8000_0002,
  NMI_COMPLETE: 0x8000_0003,
  AP_RESET_HOLD: 0x8000_0004,
  AP_JUMP_TABLE: 0x8000_0005,
  PAGE_STATE_CHANGE: 0x8000_0010,
  GUEST_REQUEST: 0x8000_0011,
  EXTENDED_GUEST_REQUEST: 0x8000_0012,
  AP_CREATION: 0x8000_0013,
  HYPERVISOR_FEATURES: 0x8000_fffd,
  TERMINATION: 0x8000_fffe,
  UNSUPPORTED_EVENT: 0x8000_ffff,
} as const;

/** Codes of the MSR protocol, bits 11:0. */
export const GHCB_MSR = {
  SEV_INFO_RESPONSE: 0x001,
  SEV_INFO_REQUEST: 0x002,
  CPUID_REQUEST: 0x004,
  CPUID_RESPONSE: 0x005,
  AP_RESET_HOLD_REQUEST: 0x006,
  AP_RESET_HOLD_RESPONSE: 0x007,
  PREFERRED_GPA_REQUEST: 0x010,
  PREFERRED_GPA_RESPONSE: 0x011,
  REGISTER_GPA_REQUEST: 0x012,
  REGISTER_GPA_RESPONSE: 0x013,
  PAGE_STATE_CHANGE_REQUEST: 0x014,
  PAGE_STATE_CHANGE_RESPONSE: 0x015,
  HYPERVISOR_FEATURES_REQUEST: 0x080,
  HYPERVISOR_FEATURES_RESPONSE: 0x081,
  TERMINATE: 0x100,
} as const;

/** Low half of SW_EXITINFO1 in the host's answer. */
export const GHCB_ANSWER = { OK: 0, EXCEPTION: 1, MALFORMED: 2 } as const;
/** SW_EXITINFO2 of a malformed request. */
export const GHCB_MALFORMED = {
  NOT_REGISTERED: 1,
  INVALID_USAGE: 2,
  INVALID_SCRATCH: 3,
  MISSING_INPUT: 4,
  INVALID_INPUT: 5,
  INVALID_EVENT: 6,
} as const;

/** Hypervisor features. */
export const GHCB_FEATURE = { SNP: 1, AP_CREATION: 2 } as const;
