/** `softcvm/attest`: what a relying party needs, in Node and in a browser. */
export type { Product } from '../abi/amd-certificate.ts';
export {
  type CertificateTableEntry,
  CertificateTableError,
  decodeCertificateTable,
} from '../abi/certificate-table.ts';
export { DerError } from '../abi/der.ts';
export type { TcbVersion } from '../abi/tcb-version.ts';
export { type Certificate, parseCertificate, readCertificates } from './certificate.ts';
export type { Check } from './check.ts';
export { type PrintedCertificate, type PrintedEvidence, printedEvidence } from './console-evidence.ts';
export { parseCrl, type RevocationList } from './crl.ts';
export { EvidenceError } from './evidence-error.ts';
export {
  type FirmwareLaunch,
  firmwareUpdates,
  imageUpdate,
  sectionUpdates,
} from './firmware-launch.ts';
export { type ImageLaunch, imageUpdates, isElfImage } from './image-launch.ts';
export { fetchEvidence, KdsError, type KdsEvidence, type KdsOptions } from './kds-client.ts';
export type { KernelFiles } from './kernel-hashes.ts';
export { type LaunchDifference, launchDifference } from './launch-difference.ts';
export {
  type LaunchDigestOptions,
  type LaunchStep,
  type LaunchUpdate,
  launchDigest,
  PAGE_TYPE,
  type PageType,
  type Sha384,
} from './launch-digest.ts';
export { type Firmware, isFirmware, parseFirmware } from './ovmf.ts';
export type { ReportPolicy } from './policy.ts';
export { type AttestationReport, parseReport, reportFromHex } from './report.ts';
export { describeReport } from './report-text.ts';
export { type Verdict, type VerifyOptions, verifyReport } from './verify-report.ts';
export { resetVmsa, VCPU_TYPES, VMM_TYPES, type VmmType, vcpuSignature } from './vmsa.ts';
