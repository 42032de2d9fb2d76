/**
 * Numbers and names of AMD's certificates for SNP (AMD 57230, VCEK certificate and KDS interface; X.509 as RFC 5280 and 4055 have it), and
 * the mark that tells SoftCVM's certificates from AMD's.
 */
import { KnownOids } from './der.ts';
import type { ChipGeneration, TcbComponent } from './tcb-version.ts';

/** Generations as AMD's certificates and URLs name them; Bergamo and Siena are Genoa there. */
export const PRODUCTS = ['Milan', 'Genoa', 'Turin'] as const;
export type Product = (typeof PRODUCTS)[number];

export const generationOf = (product: Product): ChipGeneration => product.toLowerCase() as ChipGeneration;

/** Bytes of CHIP_ID that name the chip: eight from Turin on, the rest is zero. */
export const hwidBytes = (product: Product): 8 | 64 => (product === 'Turin' ? 8 : 64);

/** The generation by family and model of CPUID Fn0000_0001, as go-sev-guest and virtee/sev have them; undefined: none of ours. */
export function productOfCpuid(family: number, model: number): Product | undefined {
  if (family === 0x19 && model <= 0x0f) return 'Milan';
  if (family === 0x19 && ((model >= 0x10 && model <= 0x1f) || (model >= 0xa0 && model <= 0xaf)))
    return 'Genoa';
  if (family === 0x1a && model <= 0x11) return 'Turin';
  return undefined;
}

export const OID = {
  RSA_ENCRYPTION: '1.2.840.113549.1.1.1',
  RSASSA_PSS: '1.2.840.113549.1.1.10',
  MGF1: '1.2.840.113549.1.1.8',
  SHA384: '2.16.840.1.101.3.4.2.2',
  EC_PUBLIC_KEY: '1.2.840.10045.2.1',
  P384: '1.3.132.0.34',
  COMMON_NAME: '2.5.4.3',
  COUNTRY: '2.5.4.6',
  LOCALITY: '2.5.4.7',
  STATE: '2.5.4.8',
  ORGANIZATION: '2.5.4.10',
  ORGANIZATIONAL_UNIT: '2.5.4.11',
  SUBJECT_KEY_ID: '2.5.29.14',
  KEY_USAGE: '2.5.29.15',
  BASIC_CONSTRAINTS: '2.5.29.19',
  CRL_NUMBER: '2.5.29.20',
  CRL_DISTRIBUTION_POINTS: '2.5.29.31',
  AUTHORITY_KEY_ID: '2.5.29.35',
} as const;

/** AMD's own extensions. */
export const AMD_OID = {
  STRUCT_VERSION: '1.3.6.1.4.1.3704.1.1',
  PRODUCT_NAME: '1.3.6.1.4.1.3704.1.2',
  BL_SPL: '1.3.6.1.4.1.3704.1.3.1',
  TEE_SPL: '1.3.6.1.4.1.3704.1.3.2',
  SNP_SPL: '1.3.6.1.4.1.3704.1.3.3',
  SPL4: '1.3.6.1.4.1.3704.1.3.4',
  SPL5: '1.3.6.1.4.1.3704.1.3.5',
  SPL6: '1.3.6.1.4.1.3704.1.3.6',
  SPL7: '1.3.6.1.4.1.3704.1.3.7',
  UCODE_SPL: '1.3.6.1.4.1.3704.1.3.8',
  FMC_SPL: '1.3.6.1.4.1.3704.1.3.9',
  HWID: '1.3.6.1.4.1.3704.1.4',
  CSP_ID: '1.3.6.1.4.1.3704.1.5',
} as const;

/** Where a certificate says a component's level. */
export const TCB_OID: Readonly<Record<TcbComponent, string>> = {
  fmc: AMD_OID.FMC_SPL,
  bootLoader: AMD_OID.BL_SPL,
  tee: AMD_OID.TEE_SPL,
  snp: AMD_OID.SNP_SPL,
  microcode: AMD_OID.UCODE_SPL,
};

/** Whose certificates these are, in their names. */
export const AMD_ORGANIZATION = 'Advanced Micro Devices';

/** A distinguished name of AMD's, but for the common name: attribute and value in AMD's order. */
const AMD_NAME: readonly (readonly [oid: string, value: string])[] = [
  [OID.ORGANIZATIONAL_UNIT, 'Engineering'],
  [OID.COUNTRY, 'US'],
  [OID.LOCALITY, 'Santa Clara'],
  [OID.STATE, 'CA'],
  [OID.ORGANIZATION, AMD_ORGANIZATION],
];

/** ARK signs ASK and ASVK, ASK signs VCEK, ASVK signs VLEK. */
export type CertificateKind = 'ARK' | 'ASK' | 'ASVK' | 'VCEK' | 'VLEK';

/** Subject common names. */
export const commonName = (kind: CertificateKind, product: Product): string =>
  ({
    ARK: `ARK-${product}`,
    ASK: `SEV-${product}`,
    ASVK: `SEV-VLEK-${product}`,
    VCEK: 'SEV-VCEK',
    VLEK: 'SEV-VLEK',
  })[kind];

/** The whole distinguished name: attribute and value in AMD's order. */
export const distinguishedName = (kind: CertificateKind, product: Product): typeof AMD_NAME => [
  ...AMD_NAME,
  [OID.COMMON_NAME, commonName(kind, product)],
];

/** The key distribution server's host. */
export const AMD_KDS = 'https://kdsintf.amd.com';

/** Where the ARK's revocation list is. */
export const crlUrl = (endpoint: 'vcek' | 'vlek', product: Product): string =>
  `${AMD_KDS}/${endpoint}/v1/${product}/crl`;

/**
 * SoftCVM's mark. CA certificates carry it as an extension under OID, below the arc that X.660 keeps for examples, since nobody owns it.
 * VCEK and VLEK carry it as a URI in their AuthorityKeyIdentifier: go-sev-guest refuses any other extension there that is not AMD's.
 */
export const MARK_OID = '2.999.83.111.102.116.67.86.77';
export const MARK_TEXT = 'Made by SoftCVM, a confidential-VM host in software. Not by AMD.';
export const MARK_URI = 'urn:softcvm:made-in-software-not-by-amd';

/** All of these. */
export const KNOWN_OIDS = new KnownOids([...Object.values(OID), ...Object.values(AMD_OID), MARK_OID]);
