/**
 * CPUID of the chip (AMD APM volume 3, appendix E): the chip's signature, with the features that this core has and no
 * others. KVM intercepts CPUID and answers from its own table; this one is for whoever does not.
 */
import type { Personality } from '../chip/personality.ts';
import { XCR0_KNOWN, XSAVE_BYTES } from './fx-image.ts';
import type { CoreParts } from './parts.ts';

export interface CpuidResult {
  eax: number;
  ebx: number;
  ecx: number;
  edx: number;
}

const MAX_STANDARD_LEAF = 0xd;
const MAX_EXTENDED_LEAF = 0x8000_0008;
const PHYSICAL_BITS = 48;
const LINEAR_BITS = 48;

/** "AuthenticAMD" in EBX, EDX, ECX. */
const VENDOR_EBX = 0x68747541;
const VENDOR_EDX = 0x69746e65;
const VENDOR_ECX = 0x444d4163;

const bits = (...numbers: number[]): number => numbers.reduce((sum, bit) => sum | (1 << bit), 0);

/** DE PSE TSC MSR PAE MCE CX8 PGE CMOV PAT CLFSH FXSR SSE SSE2. */
const STANDARD_EDX = bits(2, 3, 4, 5, 6, 7, 8, 13, 15, 16, 19, 24, 25, 26);
/** SSE3, PCLMULQDQ, SSSE3, CX16, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE, RDRAND. */
const STANDARD_ECX = bits(0, 1, 9, 13, 19, 20, 22, 23, 25, 26, 30);
/** FSGSBASE, BMI1, SMEP, BMI2, RDSEED, ADX, SMAP, CLFLUSHOPT, CLWB. */
const STRUCTURED_EBX = bits(0, 3, 7, 8, 18, 19, 20, 23, 24);
/** UMIP, RDPID. */
const STRUCTURED_ECX = bits(2, 22);
/** LAHF in 64-bit mode, LOCK MOV CR0 as MOV CR8, LZCNT, PREFETCHW. */
const EXTENDED_ECX = bits(0, 4, 5, 8);
/** The AMD copies of STANDARD_EDX; SYSCALL, NX, FFXSR, 1 GiB pages, RDTSCP, long mode. */
const EXTENDED_EDX = bits(2, 3, 4, 5, 6, 7, 8, 13, 15, 16, 24) | bits(11, 20, 25, 26, 27, 29);
/** Error pointers are always saved (RstrFpErrPtrs). */
const PROCESSOR_EBX = bits(2);
/** XSAVEOPT, XSAVEC, XGETBV of 1. */
const XSAVE_VARIANTS = bits(0, 1, 2);
const CLFLUSH_SIZE = 8 << 8;

/** Fills `result` for a leaf (unsigned) and sub-leaf. `id` is the core's number, its APIC id. Unknown leaves are all zero. */
export function chipCpuid(
  leaf: number,
  subleaf: number,
  { id, personality }: Pick<CoreParts, 'id' | 'personality'>,
  result: CpuidResult,
): void {
  result.eax = 0;
  result.ebx = 0;
  result.ecx = 0;
  result.edx = 0;
  switch (leaf) {
    case 0:
    case 0x8000_0000:
      result.eax = leaf === 0 ? MAX_STANDARD_LEAF : MAX_EXTENDED_LEAF;
      result.ebx = VENDOR_EBX;
      result.ecx = VENDOR_ECX;
      result.edx = VENDOR_EDX;
      break;
    case 1:
      result.eax = personality.signature;
      result.ebx = (id << 24) | CLFLUSH_SIZE;
      result.ecx = STANDARD_ECX;
      result.edx = STANDARD_EDX;
      break;
    case 7:
      if (subleaf !== 0) break;
      result.ebx = STRUCTURED_EBX;
      result.ecx = STRUCTURED_ECX;
      break;
    case 0xd:
      if (subleaf > 1) break;
      result.eax = subleaf === 0 ? Number(XCR0_KNOWN) : XSAVE_VARIANTS;
      result.ebx = XSAVE_BYTES;
      result.ecx = subleaf === 0 ? XSAVE_BYTES : 0;
      break;
    case 0x8000_0001:
      result.eax = personality.signature;
      result.ecx = EXTENDED_ECX;
      result.edx = EXTENDED_EDX;
      break;
    case 0x8000_0002:
    case 0x8000_0003:
    case 0x8000_0004:
      brand(leaf - 0x8000_0002, personality, result);
      break;
    case 0x8000_0008:
      result.eax = PHYSICAL_BITS | (LINEAR_BITS << 8);
      result.ebx = PROCESSOR_EBX;
      break;
  }
}

function brand(part: number, { product }: Personality, result: CpuidResult): void {
  const name = `SoftCVM virtual AMD EPYC-${product}`.padEnd(48, '\0');
  const word = (k: number): number => {
    let sum = 0;
    for (let b = 3; b >= 0; b--) sum = (sum << 8) | name.charCodeAt(16 * part + 4 * k + b);
    return sum;
  };
  result.eax = word(0);
  result.ebx = word(1);
  result.ecx = word(2);
  result.edx = word(3);
}
