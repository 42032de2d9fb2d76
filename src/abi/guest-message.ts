/**
 * Messages between a guest and firmware: the header of 0x60 bytes and the payloads (SNP ABI specification, "Guest messages"; Linux sev-guest.h). The payload is
 * AES-256-GCM under a VMPCK; header bytes 0x30 to 0x5f are authenticated; the IV is the sequence number, little endian, in 12 bytes.
 */
import { array, bytes, pad, struct, u8, u16, u32, u64 } from './layout.ts';

export const GUEST_MESSAGE_HEADER_SIZE = 0x60;
/** What of the header is authenticated: from here to its end. */
export const GUEST_MESSAGE_AAD_OFFSET = 0x30;
export const GUEST_MESSAGE_ALGO_AES_256_GCM = 1;
export const GUEST_MESSAGE_HEADER_VERSION = 1;

export const guestMessageHeader = struct('snp_guest_msg_hdr', {
  /** 16 bytes are used. */
  authTag: bytes(32),
  sequence: u64,
  reserved0: pad(8),
  algo: u8,
  headerVersion: u8,
  headerSize: u16,
  type: u8,
  version: u8,
  /** Bytes of payload. */
  size: u16,
  reserved1: pad(4),
  vmpck: u8,
  reserved2: pad(35),
});

/** A response's type is its request's plus one. */
export const GUEST_MESSAGE = {
  CPUID_REQ: 1,
  KEY_REQ: 3,
  REPORT_REQ: 5,
  EXPORT_REQ: 7,
  IMPORT_REQ: 9,
  ABSORB_REQ: 11,
  VMRK_REQ: 13,
  ABSORB_NOMA_REQ: 15,
  TSC_INFO_REQ: 17,
} as const;

/** An entry of CPUID messages and of the CPUID page. */
export const cpuidFunction = struct('snp_cpuid_function', {
  eaxIn: u32,
  ecxIn: u32,
  xcr0In: u64,
  xssIn: u64,
  eax: u32,
  ebx: u32,
  ecx: u32,
  edx: u32,
  reserved: u64,
});
export const CPUID_ENTRIES_MAX = 64;

/** The page of LAUNCH_UPDATE type CPUID, and CPUID_REQ. */
export const cpuidPage = struct('snp_cpuid_page', {
  count: u32,
  reserved: u32,
  reserved2: u64,
  entries: array(cpuidFunction, CPUID_ENTRIES_MAX),
});

export const keyRequest = struct('snp_msg_key_req', {
  /** KEY_ROOT bits. */
  rootKeySelect: u32,
  reserved: u32,
  /** GUEST_FIELD bits. */
  guestFieldSelect: u64,
  vmpl: u32,
  guestSvn: u32,
  tcbVersion: u64,
});
/** `rootKeySelect`: bit 0 is 1 for the VMRK, bits 2:1 are KEY_SELECT. */
export const KEY_ROOT = { VMRK: 1, SELECT_SHIFT: 1 } as const;
/** Which chip key: VLEK if loaded, else VCEK; VCEK; VLEK; reserved. */
export const KEY_SELECT = { AUTO: 0, VCEK: 1, VLEK: 2, RESERVED: 3 } as const;
export const GUEST_FIELD = {
  POLICY: 1,
  IMAGE_ID: 2,
  FAMILY_ID: 4,
  MEASUREMENT: 8,
  GUEST_SVN: 16,
  TCB_VERSION: 32,
  /** Message version 2. */
  LAUNCH_MIT_VECTOR: 64,
} as const;
export const keyResponse = struct('snp_msg_key_rsp', {
  status: u32,
  reserved: pad(28),
  derivedKey: bytes(32),
});

export const reportRequest = struct('snp_msg_report_req', {
  reportData: bytes(64),
  vmpl: u32,
  /** KEY_SELECT in bits 1:0. */
  keySelect: u32,
  reserved: bytes(24),
});
/** The report follows. */
export const reportResponse = struct('snp_msg_report_rsp', {
  status: u32,
  reportSize: u32,
  reserved: pad(24),
});

export const tscInfoResponse = struct('snp_msg_tsc_info_rsp', {
  status: u32,
  reserved: u32,
  scale: u64,
  offset: u64,
  factor: u32,
  reserved2: pad(100),
});
export const TSC_INFO_SIZE = 128;

/** The start of EXPORT_REQ. */
export const exportRequest = struct('snp_msg_export_req', {
  context: u64,
  /** Bit 0: IMI_EN. */
  flags: u32,
  reserved: u32,
});
/** The start of IMPORT_REQ, ABSORB_REQ and ABSORB_NOMA_REQ (`context` reserved there); a context of 0x300 bytes follows. */
export const importRequest = struct('snp_msg_import_req', {
  context: u64,
  contextSize: u32,
  contextVersion: u32,
  reserved: bytes(16),
});
export const vmrkRequest = struct('snp_msg_vmrk_req', { context: u64, reserved: bytes(24), vmrk: bytes(32) });
export const EXPORTED_CONTEXT_SIZE = 0x300;
export const EXPORTED_CONTEXT_VERSION = 3;

/** The page of LAUNCH_UPDATE type SECRETS. */
export const secretsPage = struct('snp_secrets_page', {
  version: u32,
  /** Bit 0: IMI_EN. */
  flags: u32,
  /** CPUID 1 EAX of the chip. */
  fms: u32,
  reserved: u32,
  gosvw: bytes(16),
  vmpcks: array(bytes(32), 4),
  /** For the guest's own use: four u32 sequence numbers first. */
  guestArea: bytes(96),
  vmsaTweakBitmap: bytes(64),
  svsm: bytes(32),
  tscFactor: u32,
});
