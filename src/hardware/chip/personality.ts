/**
 * What tells a Milan from a Genoa from a Turin: the numbers that CPUID, firmware and certificates show (reference svm.md 4.1 and 9; facts.md 3.6 and 4). Firmware
 * versions are of published releases; a chip may be given another one.
 *
 * Left out: Bergamo, Siena, Venice; the segmented RMP, and with it CPUID 0x80000025.
 */
import type { ChipGeneration, TcbVersion } from '../../abi/tcb-version.ts';

export interface FirmwareVersion {
  readonly major: number;
  readonly minor: number;
  readonly build: number;
}

export interface Personality {
  readonly generation: ChipGeneration;
  /** In certificates' names: ARK-Milan. */
  readonly product: 'Milan' | 'Genoa' | 'Turin';
  /** The productName extension of a VCEK. */
  readonly productName: string;
  /** CPUID 1 EAX. */
  readonly signature: number;
  /** CPUID 0x80000008 EAX: address sizes. */
  readonly addressSizes: number;
  /** CPUID 0x8000001F EAX: SEV's features. */
  readonly sevFeatures: number;
  /** Bit of a page table entry that means encrypted. */
  readonly cBit: number;
  /** Physical address bits that encryption takes away. */
  readonly physAddrReduction: number;
  readonly vmpls: number;
  /** Highest ASID of an encrypted guest. */
  readonly maxAsid: number;
  /** Bytes of the hardware id: what a key server is asked with; a report has 64 bytes, zero behind these. */
  readonly idSize: 8 | 64;
  /** Frequency that TSC scaling refers to, kHz. */
  readonly referenceClock: number;
  /** What firmware can do that others cannot: SNP_FEATURE_ECX bits beside VLEK and X86_SNP_SHUTDOWN. */
  readonly features: {
    readonly raplDisable: boolean;
    readonly ciphertextHiding: boolean;
    readonly aes256Xts: boolean;
  };
  readonly firmware: FirmwareVersion;
  readonly tcb: TcbVersion;
}

/** Family, model and stepping of CPUID 1 EAX. */
export function decodeSignature(signature: number): { family: number; model: number; stepping: number } {
  return {
    family: ((signature >>> 8) & 0xf) + ((signature >>> 20) & 0xff),
    model: ((signature >>> 4) & 0xf) | ((signature >>> 12) & 0xf0),
    stepping: signature & 0xf,
  };
}

/** Later families, models and steppings have higher numbers. */
export function signatureOrder(signature: number): number {
  const { family, model, stepping } = decodeSignature(signature);
  return family * 0x1000 + model * 0x10 + stepping;
}

export const PERSONALITIES: Readonly<Record<ChipGeneration, Personality>> = {
  milan: {
    generation: 'milan',
    product: 'Milan',
    productName: 'Milan-B1',
    signature: 0x00a00f11,
    addressSizes: 0x3030,
    sevFeatures: 0x0101fd3f,
    cBit: 51,
    physAddrReduction: 5,
    vmpls: 4,
    maxAsid: 509,
    idSize: 64,
    referenceClock: 99_800,
    features: { raplDisable: false, ciphertextHiding: false, aes256Xts: false },
    firmware: { major: 1, minor: 55, build: 21 },
    tcb: { bootLoader: 4, tee: 0, snp: 24, microcode: 219 },
  },
  genoa: {
    generation: 'genoa',
    product: 'Genoa',
    productName: 'Genoa-B1',
    signature: 0x00a10f11,
    addressSizes: 0x3934,
    sevFeatures: 0x030fffff,
    cBit: 51,
    physAddrReduction: 6,
    vmpls: 4,
    maxAsid: 1006,
    idSize: 64,
    referenceClock: 99_800,
    features: { raplDisable: true, ciphertextHiding: false, aes256Xts: true },
    firmware: { major: 1, minor: 57, build: 9 },
    tcb: { bootLoader: 10, tee: 0, snp: 24, microcode: 84 },
  },
  turin: {
    generation: 'turin',
    product: 'Turin',
    productName: 'Turin',
    signature: 0x00b00f21,
    addressSizes: 0x3934,
    // Genoa's with RMPREAD and AllowedSevFeatures; SegmentedRmp only with a table that is segmented.
    sevFeatures: 0x0b2fffff,
    cBit: 51,
    physAddrReduction: 6,
    vmpls: 4,
    maxAsid: 1006,
    idSize: 8,
    referenceClock: 99_800,
    features: { raplDisable: true, ciphertextHiding: true, aes256Xts: true },
    firmware: { major: 1, minor: 58, build: 3 },
    tcb: { fmc: 1, bootLoader: 1, tee: 1, snp: 4, microcode: 76 },
  },
};
