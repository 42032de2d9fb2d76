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
export { parseCrl, type RevocationList } from './crl.ts';
export { EvidenceError } from './evidence-error.ts';
export type { ReportPolicy } from './policy.ts';
export { type AttestationReport, parseReport, reportFromHex } from './report.ts';
export { type Verdict, type VerifyOptions, verifyReport } from './verify-report.ts';
