/** /dev/sev (Linux include/uapi/linux/psp-sev.h): the commands of SEV_ISSUE_CMD, and what their `data` points to where firmware has no such struct. */
import { struct, u8, u32, u64 } from './layout.ts';

/** The ioctl, and its argument, packed: cmd u32, data u64, error u32. */
export const SEV_ISSUE_CMD_IOCTL = 0xc010_5300;
export const SEV_ISSUE = { CMD: 0, DATA: 4, ERROR: 12, SIZE: 16 } as const;
export const SEV_ISSUE_CMD = {
  FACTORY_RESET: 0,
  PLATFORM_STATUS: 1,
  PEK_GEN: 2,
  PEK_CSR: 3,
  PDH_GEN: 4,
  PDH_CERT_EXPORT: 5,
  PEK_CERT_IMPORT: 6,
  GET_ID: 7,
  GET_ID2: 8,
  SNP_PLATFORM_STATUS: 9,
  SNP_COMMIT: 10,
  SNP_SET_CONFIG: 11,
  SNP_VLEK_LOAD: 12,
} as const;

/** struct sev_user_data_get_id2, packed: address u64, length u32. */
export const SEV_GET_ID2 = { ADDRESS: 0, LENGTH: 8, SIZE: 12 } as const;
export const sevUserVlekLoad = struct('sev_user_data_snp_vlek_load', {
  length: u32,
  wrappedVersion: u8,
  reserved0: u8,
  reserved1: u8,
  reserved2: u8,
  address: u64,
});
