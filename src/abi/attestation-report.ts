/**
 * ATTESTATION_REPORT, 1184 bytes (SNP ABI specification; reference: virtee/sev and go-sev-guest for versions 3 and 5). The signature covers bytes 0 to 0x29f.
 * Version 3 fills the CPUID bytes, version 5 the mitigation vectors; before, they are reserved and zero.
 */
import { bytes, pad, struct, u8, u32, u64 } from './layout.ts';

export const REPORT_SIZE = 0x4a0;
/** Bytes that the signature covers. */
export const REPORT_SIGNED_SIZE = 0x2a0;

export const attestationReport = struct('attestation_report', {
  version: u32,
  guestSvn: u32,
  policy: u64,
  familyId: bytes(16),
  imageId: bytes(16),
  vmpl: u32,
  signatureAlgo: u32,
  currentTcb: u64,
  platformInfo: u64,
  /** KEY_INFO. */
  keyInfo: u32,
  reserved0: pad(4),
  reportData: bytes(64),
  measurement: bytes(48),
  hostData: bytes(32),
  idKeyDigest: bytes(48),
  authorKeyDigest: bytes(48),
  reportId: bytes(32),
  reportIdMa: bytes(32),
  reportedTcb: u64,
  cpuidFamily: u8,
  cpuidModel: u8,
  cpuidStepping: u8,
  reserved1: pad(21),
  chipId: bytes(64),
  committedTcb: u64,
  currentBuild: u8,
  currentMinor: u8,
  currentMajor: u8,
  reserved2: pad(1),
  committedBuild: u8,
  committedMinor: u8,
  committedMajor: u8,
  reserved3: pad(1),
  launchTcb: u64,
  launchMitVector: u64,
  currentMitVector: u64,
  reserved4: pad(152),
  /** R, then S: 72 bytes each, little endian; the rest zero. */
  signature: bytes(512),
});

/** Bits of `keyInfo`. */
export const KEY_INFO = {
  AUTHOR_KEY_EN: 1,
  MASK_CHIP_KEY: 2,
  SIGNING_KEY_SHIFT: 2,
  SIGNING_KEY_MASK: 7,
} as const;
/** Values of KEY_INFO's SIGNING_KEY. */
export const SIGNING_KEY = { VCEK: 0, VLEK: 1, NONE: 7 } as const;

/** Bits of `platformInfo`. */
export const PLATFORM_INFO = {
  SMT_EN: 1,
  TSME_EN: 2,
  ECC_EN: 4,
  RAPL_DIS: 8,
  CIPHERTEXT_HIDING_EN: 16,
  ALIAS_CHECK_COMPLETE: 32,
  TIO_EN: 128,
} as const;

/** `signatureAlgo`. */
export const SIGNATURE_ALGO_ECDSA_P384_SHA384 = 1;
/** Bytes that R and S of a signature, and a coordinate of a public key, take. */
export const ECDSA_NUMBER_SIZE = 72;
