/**
 * The secure processor's mailbox: command numbers and command buffers (SNP ABI specification; Linux include/linux/psp-sev.h). All addresses are system physical.
 */
import { bytes, pad, struct, u8, u16, u32, u64 } from './layout.ts';

/** Command numbers. Of SEV without SNP those that /dev/sev can ask for. */
export const SEV_CMD = {
  PLATFORM_RESET: 0x03,
  PLATFORM_STATUS: 0x04,
  PEK_GEN: 0x05,
  PEK_CSR: 0x06,
  PEK_CERT_IMPORT: 0x07,
  PDH_CERT_EXPORT: 0x08,
  PDH_GEN: 0x09,
  GET_ID: 0x0c,
  SNP_INIT: 0x81,
  SNP_SHUTDOWN: 0x82,
  SNP_PLATFORM_STATUS: 0x83,
  SNP_DF_FLUSH: 0x84,
  SNP_INIT_EX: 0x85,
  SNP_SHUTDOWN_EX: 0x86,
  SNP_DECOMMISSION: 0x90,
  SNP_ACTIVATE: 0x91,
  SNP_GUEST_STATUS: 0x92,
  SNP_GCTX_CREATE: 0x93,
  SNP_GUEST_REQUEST: 0x94,
  SNP_ACTIVATE_EX: 0x95,
  SNP_LAUNCH_START: 0xa0,
  SNP_LAUNCH_UPDATE: 0xa1,
  SNP_LAUNCH_FINISH: 0xa2,
  SNP_DBG_DECRYPT: 0xb0,
  SNP_DBG_ENCRYPT: 0xb1,
  SNP_PAGE_SWAP_OUT: 0xc0,
  SNP_PAGE_SWAP_IN: 0xc1,
  SNP_PAGE_MOVE: 0xc2,
  SNP_PAGE_MD_INIT: 0xc3,
  SNP_PAGE_SET_STATE: 0xc6,
  SNP_PAGE_RECLAIM: 0xc7,
  SNP_PAGE_UNSMASH: 0xc8,
  SNP_CONFIG: 0xc9,
  SNP_DOWNLOAD_FIRMWARE_EX: 0xca,
  SNP_COMMIT: 0xcb,
  SNP_VLEK_LOAD: 0xcd,
  SNP_FEATURE_INFO: 0xce,
} as const;

export type SevCommandName = keyof typeof SEV_CMD;

/** The name of a command number. */
export const sevCommandName = (command: number): SevCommandName | undefined =>
  (Object.keys(SEV_CMD) as SevCommandName[]).find((name) => SEV_CMD[name] === command);

/** Buffers of commands that take one address: PLATFORM_STATUS (where to write), GCTX_CREATE, DECOMMISSION, PAGE_RECLAIM and PAGE_UNSMASH. */
export const snpAddress = struct('sev_data_snp_addr', { address: u64 });

export const snpInitEx = struct('sev_data_snp_init_ex', {
  /** SNP_INIT_FLAG. */
  flags: u32,
  reserved: u32,
  listAddress: u64,
  /** With CIPHERTEXT_HIDING_EN. */
  maxSnpAsid: u16,
  reserved2: bytes(46),
});
export const SNP_INIT_FLAG = {
  INIT_RMP: 1,
  LIST_PADDR_EN: 2,
  RAPL_DIS: 4,
  CIPHERTEXT_HIDING_EN: 8,
  TIO_EN: 16,
} as const;
/** The head of a range list, and a range. */
export const snpRangeList = struct('sev_data_range_list', { count: u32, reserved: u32 });
export const snpRange = struct('sev_data_range', { base: u64, pageCount: u32, reserved: u32 });
/** Ranges that fit a page behind the head. */
export const SNP_RANGES_MAX = 255;

export const snpShutdownEx = struct('sev_data_snp_shutdown_ex', { length: u32, flags: u32 });
export const SNP_SHUTDOWN_FLAG = { IOMMU_SNP_SHUTDOWN: 1, X86_SNP_SHUTDOWN: 2 } as const;

/** What SNP_PLATFORM_STATUS writes. */
export const snpPlatformStatus = struct('sev_user_data_snp_status', {
  apiMajor: u8,
  apiMinor: u8,
  state: u8,
  /** SNP_PLATFORM_FLAG. */
  flags: u8,
  buildId: u32,
  /** SNP_PLATFORM_CAPABILITY. */
  capabilities: u32,
  guestCount: u32,
  currentTcb: u64,
  reportedTcb: u64,
});
export const SNP_PLATFORM_STATE = { UNINIT: 0, INIT: 1 } as const;
export const SNP_PLATFORM_FLAG = { IS_RMP_INIT: 1, ALIAS_CHECK_COMPLETE: 2, TIO_EN: 8 } as const;
export const SNP_PLATFORM_CAPABILITY = {
  MASK_CHIP_ID: 1,
  MASK_CHIP_KEY: 2,
  VLEK_EN: 4,
  FEATURE_INFO: 8,
  RAPL_DIS: 16,
  CIPHERTEXT_HIDING_CAP: 32,
  CIPHERTEXT_HIDING_EN: 64,
} as const;

export const snpActivate = struct('sev_data_snp_activate', { context: u64, asid: u32 });
export const snpActivateEx = struct('sev_data_snp_activate_ex', {
  length: u32,
  reserved: u32,
  context: u64,
  asid: u32,
  apicIdCount: u32,
  apicIds: u64,
});

export const snpGuestStatusRequest = struct('sev_data_snp_guest_status', { context: u64, address: u64 });
/** What SNP_GUEST_STATUS writes. */
export const snpGuestStatus = struct('snp_guest_status', {
  policy: u64,
  asid: u32,
  state: u8,
  reserved: pad(3),
  /** Bit 0: VCEK_DIS. */
  flags: u32,
  reserved2: pad(12),
});
export const SNP_GUEST_STATE = { INIT: 0, LAUNCH: 1, RUNNING: 2 } as const;

export const snpGuestRequest = struct('sev_data_snp_guest_request', {
  context: u64,
  request: u64,
  response: u64,
});

export const snpLaunchStart = struct('sev_data_snp_launch_start', {
  context: u64,
  policy: u64,
  migrationAgent: u64,
  /** SNP_LAUNCH_START_FLAG. */
  flags: u32,
  desiredTscKhz: u32,
  gosvw: bytes(16),
});
export const SNP_LAUNCH_START_FLAG = { MA_EN: 1, IMI_EN: 2 } as const;

/** The guest policy (bits of a u64): ABI minor 7:0 and major 15:8, the least that the guest accepts. */
export const SNP_POLICY = {
  SMT: 1n << 16n,
  RESERVED_MUST_BE_ONE: 1n << 17n,
  MIGRATE_MA: 1n << 18n,
  DEBUG: 1n << 19n,
  SINGLE_SOCKET: 1n << 20n,
  CXL_ALLOW: 1n << 21n,
  MEM_AES_256_XTS: 1n << 22n,
  RAPL_DIS: 1n << 23n,
  CIPHERTEXT_HIDING: 1n << 24n,
  PAGE_SWAP_DISABLE: 1n << 25n,
} as const;

export const snpLaunchUpdate = struct('sev_data_snp_launch_update', {
  context: u64,
  /** Page size bit 0, SNP_PAGE_TYPE bits 3:1, IMI_PAGE bit 4. */
  flags: u32,
  reserved: u32,
  address: u64,
  /** Permissions of VMPL1 to 3 in bytes 1 to 3. */
  permissions: u32,
  reserved2: u32,
});
export const SNP_PAGE_TYPE = { NORMAL: 1, VMSA: 2, ZERO: 3, UNMEASURED: 4, SECRETS: 5, CPUID: 6 } as const;

export const snpLaunchFinish = struct('sev_data_snp_launch_finish', {
  context: u64,
  idBlock: u64,
  idAuth: u64,
  /** SNP_LAUNCH_FINISH_FLAG; a u64 whose other bits are reserved. */
  flags: u64,
  hostData: bytes(32),
});
export const SNP_LAUNCH_FINISH_FLAG = { ID_BLOCK_EN: 1n, AUTH_KEY_EN: 2n, VCEK_DISABLED: 4n } as const;

/** ID block, 96 bytes. */
export const snpIdBlock = struct('snp_id_block', {
  launchDigest: bytes(48),
  familyId: bytes(16),
  imageId: bytes(16),
  version: u32,
  guestSvn: u32,
  policy: u64,
});
/** ID authentication page, 4096 bytes. */
export const snpIdAuth = struct('snp_id_auth', {
  idKeyAlgo: u32,
  authorKeyAlgo: u32,
  reserved: pad(0x38),
  idBlockSignature: bytes(512),
  idKey: bytes(0x404),
  reserved2: pad(0x3c),
  idKeySignature: bytes(512),
  authorKey: bytes(0x404),
  reserved3: pad(0x37c),
});
/** A public key of an ID authentication page: curve, then X and Y of 72 bytes, little endian. */
export const SNP_PUBLIC_KEY = { CURVE: 0, X: 4, Y: 0x4c, SIZE: 0x404, CURVE_P384: 2 } as const;

export const snpDebug = struct('sev_data_snp_dbg', { context: u64, source: u64, destination: u64 });

export const snpPageSetState = struct('snp_page_set_state', { length: u32, reserved: u32, list: u64 });

/** SNP_CONFIG; its buffer is /dev/sev's as well. */
export const snpConfig = struct('sev_user_data_snp_config', {
  reportedTcb: u64,
  /** SNP_CONFIG_FLAG. */
  flags: u32,
  reserved: bytes(52),
});
export const SNP_CONFIG_FLAG = { MASK_CHIP_ID: 1, MASK_CHIP_KEY: 2 } as const;

export const snpCommit = struct('sev_data_snp_commit', { length: u32 });

export const snpVlekLoad = struct('sev_user_data_snp_vlek_load', {
  length: u32,
  wrappedVersion: u8,
  reserved: bytes(3),
  address: u64,
});
/** The wrapped VLEK: hash sticks under AES-256-GCM, additional data are `tcb` and `reserved2`. */
export const snpWrappedVlek = struct('sev_user_data_snp_wrapped_vlek_hashstick', {
  iv: bytes(12),
  reserved: bytes(4),
  ciphertext: bytes(384),
  tcb: u64,
  reserved2: bytes(8),
  tag: bytes(16),
});

export const snpFeatureInfo = struct('sev_data_snp_feature_info', { length: u32, ecxIn: u32, address: u64 });
/** What SNP_FEATURE_INFO writes. */
export const snpFeatureInfoResult = struct('snp_feature_info', { eax: u32, ebx: u32, ecx: u32, edx: u32 });
/** Bits of subfunction 0's EBX and ECX. */
export const SNP_FEATURE_EBX = { SEV_LEGACY: 1, SEV_TIO: 2 } as const;
export const SNP_FEATURE_ECX = {
  VLEK: 1,
  X86_SNP_SHUTDOWN: 2,
  RAPL_DISABLE: 4,
  CIPHERTEXT_HIDING: 8,
  AES_256_XTS_POLICY: 16,
  CXL_ALLOW_POLICY: 32,
} as const;

/** SEV GET_ID: where to write, and how many bytes there are. */
export const sevGetId = struct('sev_data_get_id', { address: u64, length: u32 });
/** SEV PLATFORM_STATUS, written into the command buffer; packed: u32 flags from byte 3 on, u32 guest count from byte 8 on. */
export const sevPlatformStatus = struct('sev_user_data_status', {
  apiMajor: u8,
  apiMinor: u8,
  state: u8,
  flags: bytes(4),
  build: u8,
  guestCount: u32,
});
