/** KVM_MEMORY_ENCRYPT_OP (Linux arch/x86/include/uapi/asm/kvm.h): commands, structs, numbers. */
import { bytes, pad, struct, u8, u16, u32, u64 } from './layout.ts';

export const KVM_SEV = {
  INIT: 0,
  ES_INIT: 1,
  LAUNCH_START: 2,
  SEND_UPDATE_VMSA: 10,
  RECEIVE_UPDATE_VMSA: 14,
  CERT_EXPORT: 19,
  INIT2: 22,
  SNP_LAUNCH_START: 100,
  SNP_LAUNCH_UPDATE: 101,
  SNP_LAUNCH_FINISH: 102,
  SNP_ENABLE_REQ_CERTS: 103,
} as const;
/** The last command of SEV without SNP. */
export const KVM_SEV_LAST_LEGACY = KVM_SEV.INIT2;

export const kvmSevCmd = struct('kvm_sev_cmd', { id: u32, pad0: u32, data: u64, error: u32, sevFd: u32 });
export const kvmSevInit = struct('kvm_sev_init', {
  vmsaFeatures: u64,
  flags: u32,
  ghcbVersion: u16,
  pad1: u16,
  pad2: pad(32),
});
export const kvmSevSnpLaunchStart = struct('kvm_sev_snp_launch_start', {
  policy: u64,
  gosvw: bytes(16),
  flags: u16,
  pad0: pad(6),
  pad1: pad(32),
});
export const kvmSevSnpLaunchUpdate = struct('kvm_sev_snp_launch_update', {
  gfnStart: u64,
  uaddr: u64,
  len: u64,
  type: u8,
  pad0: u8,
  flags: u16,
  pad1: u32,
  pad2: pad(32),
});
export const kvmSevSnpLaunchFinish = struct('kvm_sev_snp_launch_finish', {
  idBlockUaddr: u64,
  idAuthUaddr: u64,
  idBlockEn: u8,
  authKeyEn: u8,
  vcekDisabled: u8,
  hostData: bytes(32),
  pad0: pad(3),
  flags: u16,
  pad1: pad(32),
});

/** Device attributes of /dev/kvm. */
export const KVM_X86_GRP_SEV = 1;
export const KVM_X86_SEV_VMSA_FEATURES = 0;
export const KVM_X86_SNP_POLICY_BITS = 1;
export const KVM_X86_SEV_SNP_REQ_CERTS = 2;

/** VMSA features by their bits. */
export const SVM_SEV_FEAT = { SNP_ACTIVE: 1n, DEBUG_SWAP: 1n << 5n, SECURE_TSC: 1n << 9n } as const;
