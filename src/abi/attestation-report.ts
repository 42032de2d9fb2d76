/**
 * ATTESTATION_REPORT of the SNP firmware ABI (AMD 56860, MSG_REPORT_RSP), versions 2, 3 and 5. Version 3 adds the CPUID bytes, version
 * 5 the mitigation vectors; where a version lacks them, the bytes are reserved. Layout and numbers only.
 */
import { bytes, pad, struct, u8, u32, u64 } from './layout.ts';

/** Bytes of a report. */
export const REPORT_BYTES = 0x4a0;
/** The signature covers what lies before it. */
export const REPORT_SIGNATURE_AT = 0x2a0;

export const attestationReport = struct('attestation_report', {
  version: u32,
  guest_svn: u32,
  policy: u64,
  family_id: bytes(16),
  image_id: bytes(16),
  vmpl: u32,
  signature_algo: u32,
  current_tcb: u64,
  platform_info: u64,
  /** Bit 0 AUTHOR_KEY_EN, bit 1 MASK_CHIP_KEY, bits 4:2 SIGNING_KEY. */
  key_info: u32,
  reserved_04c: bytes(4),
  report_data: bytes(64),
  measurement: bytes(48),
  host_data: bytes(32),
  id_key_digest: bytes(48),
  author_key_digest: bytes(48),
  report_id: bytes(32),
  report_id_ma: bytes(32),
  reported_tcb: u64,
  cpuid_family: u8,
  cpuid_model: u8,
  cpuid_stepping: u8,
  reserved_18b: bytes(21),
  chip_id: bytes(64),
  committed_tcb: u64,
  current_build: u8,
  current_minor: u8,
  current_major: u8,
  reserved_1eb: bytes(1),
  committed_build: u8,
  committed_minor: u8,
  committed_major: u8,
  reserved_1ef: bytes(1),
  launch_tcb: u64,
  launch_mit_vector: u64,
  current_mit_vector: u64,
  reserved_208: bytes(152),
  /** ECDSA P-384, little-endian, 72 bytes each; 48 are significant. */
  signature_r: bytes(72),
  signature_s: bytes(72),
  signature_reserved: pad(368),
});

/** SIGNATURE_ALGO: ECDSA P-384 with SHA-384. */
export const ECDSA_P384_SHA384 = 1;

/** SIGNING_KEY, bits 4:2 of key_info. */
export const SIGNING_KEY = { VCEK: 0, VLEK: 1, NONE: 7 } as const;

/** The guest's policy: bits 7:0 and 15:8 are the least ABI version (minor, major); bit 17 must be one. */
export const GUEST_POLICY_BITS = {
  SMT: 16,
  RESERVED_ONE: 17,
  MIGRATE_MA: 18,
  DEBUG: 19,
  SINGLE_SOCKET: 20,
  CXL_ALLOW: 21,
  MEM_AES_256_XTS: 22,
  RAPL_DIS: 23,
  CIPHERTEXT_HIDING_DRAM: 24,
  PAGE_SWAP_DISABLE: 25,
} as const;

/** PLATFORM_INFO. */
export const PLATFORM_INFO_BITS = {
  SMT_EN: 0,
  TSME_EN: 1,
  ECC_EN: 2,
  RAPL_DIS: 3,
  CIPHERTEXT_HIDING_EN: 4,
  ALIAS_CHECK_COMPLETE: 5,
  TIO_EN: 7,
} as const;
