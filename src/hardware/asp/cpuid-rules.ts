/**
 * What a hypervisor may tell a guest about its processor: firmware checks CPUID pages and CPUID messages against the chip, and corrects them (AMD PPR, "CPUID policy
 * enforcement"; AMD's firmware source for Genoa, cpuid_lookup.c). Leaves outside of 0 to 0xffff and 0x80000000 to 0x8000ffff are not looked at; a leaf that has no
 * rule must be all zero.
 *
 * Milan's and Turin's tables were never published: theirs are Genoa's, changed where the chips are known to differ.
 */
import { signatureOrder } from '../chip/personality.ts';
import type { Personality } from '../chip.ts';

/** An entry of a CPUID page, in place. */
export interface CpuidEntry {
  readonly eaxIn: number;
  readonly ecxIn: number;
  readonly xcr0In: bigint;
  readonly xssIn: bigint;
  eax: number;
  ebx: number;
  ecx: number;
  edx: number;
  readonly reserved: bigint;
}

type Register = 'eax' | 'ebx' | 'ecx' | 'edx';
/** The value that a register should have had; the same when it is fine. */
type Rule = (value: number, entry: CpuidEntry) => number;
type Rules = readonly [eax: Rule, ebx: Rule, ecx: Rule, edx: Rule];

const REGISTERS: readonly Register[] = ['eax', 'ebx', 'ecx', 'edx'];

const exact =
  (wanted: number): Rule =>
  () =>
    wanted >>> 0;
const zero = exact(0);
/** No bit but these. */
const within =
  (mask: number): Rule =>
  (value) =>
    (value & mask) >>> 0;
const atMost =
  (limit: number): Rule =>
  (value) =>
    Math.min(value, limit >>> 0);
/** Anything, reserved bits apart. */
const any = (reserved = 0): Rule => within(~reserved);
/** Fields of a register, each at most that of `limit`. `fields`: their masks. */
const fieldsAtMost =
  (limit: number, ...fields: readonly number[]): Rule =>
  (value) => {
    let corrected = 0;
    for (const field of fields) corrected |= Math.min((value & field) >>> 0, (limit & field) >>> 0);
    return corrected >>> 0;
  };

const SIGNATURE_RESERVED = 0xf000f000;
/** A family, model and stepping that is not newer than the chip's. */
const signatureAtMost =
  (chip: number): Rule =>
  (value) =>
    (signatureOrder(value) <= signatureOrder(chip) ? value & ~SIGNATURE_RESERVED : chip) >>> 0;

/** Bytes of XSAVE's standard form that XCR0 asks for: the end of its last component. */
const standardSize: Rule = (_value, { xcr0In }) => {
  const ends: readonly (readonly [bit: bigint, end: number])[] = [
    [9n, 0x988],
    [7n, 0x980],
    [6n, 0x580],
    [5n, 0x380],
    [2n, 0x340],
  ];
  return ends.find(([bit]) => ((xcr0In >> bit) & 1n) !== 0n)?.[1] ?? 0x240;
};

/** Bytes of its compacted form, the supervisor's components of XSS too. */
const compactedSize: Rule = (_value, { xcr0In, xssIn }) => {
  const has = (mask: bigint, bit: bigint): boolean => ((mask >> bit) & 1n) !== 0n;
  let size = 0x240;
  if (has(xcr0In, 9n)) size += 8;
  if (has(xcr0In, 7n)) size += 0x400;
  if (has(xcr0In, 6n)) size += 0x200;
  if (has(xcr0In, 5n)) size += 0x40;
  if (has(xcr0In, 2n)) size += 0x100;
  if (has(xssIn, 11n)) size += 0x10;
  if (has(xssIn, 12n)) size += 0x18;
  return size;
};

/** x87 and SSE, and no other state than the chip's. */
const xcr0Low =
  (mask: number): Rule =>
  (value) =>
    ((value | 3) & mask) >>> 0;

const OSXSAVE = 1 << 27;
const HYPERVISOR = 1 << 31;
const OSPKE = 1 << 4;

/** What one generation has and another lacks. */
interface Features {
  readonly largestExtended: number;
  readonly leaf7: readonly [ebx: number, ecx: number, edx: number];
  readonly leaf7Sub1: number;
  readonly xcr0: number;
  readonly svm: number;
  readonly leaf80000021: number;
  readonly leaf80000008: number;
}

const GENOA: Features = {
  largestExtended: 0x80000028,
  leaf7: [0xf1bf97a9, 0x00415fce, 0x10000010],
  leaf7Sub1: 0x20,
  xcr0: 0x2e7,
  svm: 0x1fbfbcff,
  leaf80000021: 0x18062fcf,
  leaf80000008: 0x79bef35f,
};

const FEATURES: Readonly<Record<Personality['generation'], Features>> = {
  milan: {
    largestExtended: 0x80000023,
    // Without AVX-512, GFNI and 5-level paging.
    leaf7: [0x219c97a9, 0x0040068c, 0x10000010],
    leaf7Sub1: 0,
    xcr0: 0x207,
    svm: 0x001bb4ff,
    leaf80000021: 0x0000004d,
    leaf80000008: 0x79bef35f,
  },
  genoa: GENOA,
  turin: {
    ...GENOA,
    // With MOVDIRI, MOVDIR64B, VP2INTERSECT and AVX-VNNI.
    leaf7: [0xf1bf97a9, 0x18415fce, 0x10000110],
    leaf7Sub1: 0x30,
    svm: 0x7fbfbcff,
    leaf80000021: 0x78962fcf,
  },
};

const key = (leaf: number, subleaf: number): number => leaf * 256 + subleaf;

/** Rules by leaf and subleaf. */
function rulesOf(chip: Personality): ReadonlyMap<number, Rules> {
  const has = FEATURES[chip.generation];
  const name: Rules = [any(), any(), any(), any()];
  const nothing: Rules = [any(), any(), any(), any()];
  const cache: Rules = [any(0xfc003c00), any(), any(), any(0xfffffffc)];
  const area = (size: number, offset: number, flags: Rule): Rules => [
    exact(size),
    exact(offset),
    flags,
    zero,
  ];
  const wide = (has.xcr0 & 0xe0) !== 0;
  const leaf1Ebx: Rule = (value) => ((value & ~0xffff) | 0x0800) >>> 0;
  const sevBits: Rule = (value) =>
    ((value & 0xfc0) | chip.cBit | Math.min(value & 0xf000, chip.vmpls << 12)) >>> 0;
  const rows: readonly (readonly [leaf: number, subleaf: number, rules: Rules])[] = [
    [0x0, 0, [atMost(0x10), any(), any(), any()]],
    [
      0x1,
      0,
      [
        signatureAtMost(chip.signature),
        leaf1Ebx,
        within(0x76fa320b | OSXSAVE | HYPERVISOR),
        within(0x178bfbff),
      ],
    ],
    [0x2, 0, nothing],
    [0x4, 0, nothing],
    [0x5, 0, [any(0xffff0000), any(0xffff0000), any(0xfffffffc), any(0xffffff00)]],
    [0x6, 0, [within(4), zero, within(1), zero]],
    [0x7, 0, [atMost(1), within(has.leaf7[0]), within(has.leaf7[1] | OSPKE), within(has.leaf7[2])]],
    [0x7, 1, [within(has.leaf7Sub1), zero, zero, zero]],
    ...[0, 1, 2].map((subleaf): [number, number, Rules] => [
      0xb,
      subleaf,
      [any(0xffffffe0), any(0xffff0000), any(0xffff0000), any()],
    ]),
    [0xd, 0, [xcr0Low(has.xcr0), standardSize, any(), zero]],
    [0xd, 1, [within(0xf), compactedSize, within(0x1800), zero]],
    [0xd, 2, area(0x100, 0x240, zero)],
    ...(wide
      ? ([
          [0xd, 5, area(0x40, 0x340, within(3))],
          [0xd, 6, area(0x200, 0x380, within(3))],
          [0xd, 7, area(0x400, 0x580, within(3))],
        ] as const)
      : []),
    [0xd, 9, area(8, 0x980, zero)],
    [0xd, 0xb, area(0x10, 0, exact(1))],
    [0xd, 0xc, area(0x18, 0, exact(1))],
    [0xf, 0, [zero, any(), zero, any(0xfffffffd)]],
    [0xf, 1, [any(0xfffffe00), any(), any(), any(0xfffffff8)]],
    [0x10, 0, [zero, any(0xfffffff9), zero, zero]],
    [0x10, 1, [any(0xffffffe0), any(), any(0xfffffffb), any(0xffff0000)]],
    [0x80000000, 0, [atMost(has.largestExtended), any(), any(), any()]],
    [
      0x80000001,
      0,
      [signatureAtMost(chip.signature), any(0x0fffffff), within(0x75c237ff), within(0x2fd3fbff)],
    ],
    [0x80000002, 0, name],
    [0x80000003, 0, name],
    [0x80000004, 0, name],
    [0x80000005, 0, nothing],
    [0x80000006, 0, [any(), any(), any(), any(0x30000)]],
    [0x80000007, 0, [zero, within(0x3b), any(), within(0x6799)]],
    [
      0x80000008,
      0,
      [
        fieldsAtMost(0xff0000 | chip.addressSizes, 0xff, 0xff00, 0xff0000),
        within(has.leaf80000008),
        any(0xfffc0f00),
        fieldsAtMost(0x10007, 0xffff, 0xff0000),
      ],
    ],
    [0x8000000a, 0, [any(0xffffff00), any(), zero, within(has.svm)]],
    [0x80000019, 0, [any(), any(), zero, zero]],
    [0x8000001a, 0, [any(0xfffffff8), zero, zero, zero]],
    [0x8000001b, 0, [within(0xbff), zero, zero, zero]],
    ...[0, 1, 2, 3].map((subleaf): [number, number, Rules] => [0x8000001d, subleaf, cache]),
    [0x8000001d, 4, [any(0xfffffff0), zero, any(), zero]],
    [0x8000001e, 0, [any(), any(0xffff0000), any(0xfffff800), any(0xffffffff)]],
    [0x8000001f, 0, [within(chip.sevFeatures), sevBits, any(), any()]],
    [0x80000020, 0, [zero, any(0xffffffe1), zero, zero]],
    [0x80000020, 1, [any(), zero, zero, any()]],
    [0x80000020, 2, [any(), zero, zero, any()]],
    [0x80000020, 3, [zero, any(), within(0x7f), zero]],
    [0x80000021, 0, [within(has.leaf80000021), any(0xfffff000), zero, zero]],
    [0x80000022, 0, [within(7), perfCounters, any(), zero]],
    [0x80000023, 0, [within(1), any(), zero, zero]],
    [0x80000024, 0, [atMost(1), within(1), within(3), zero]],
    [0x80000024, 1, [within(0x1ff), zero, zero, zero]],
    ...[0, 1, 2, 3].map((subleaf): [number, number, Rules] => [0x80000026, subleaf, nothing]),
  ];
  return new Map(rows.map(([leaf, subleaf, rules]) => [key(leaf, subleaf), rules]));
}

/** Counters of a core in 3:0, stack entries of the branch record in 9:4; the rest is anything. */
const perfCounters: Rule = (value) =>
  ((value & ~0x3ff) | Math.min(value & 0xf, 6) | Math.min(value & 0x3f0, 0x100)) >>> 0;

/** The rules of a chip. */
export class CpuidRules {
  readonly #rules: ReadonlyMap<number, Rules>;

  constructor(chip: Personality) {
    this.#rules = rulesOf(chip);
  }

  /** Corrects an entry in place. False: something was wrong with it. */
  correct(entry: CpuidEntry): boolean {
    const leaf = entry.eaxIn;
    if (!isChecked(leaf)) return true;
    const found = entry.ecxIn < 256 ? this.#rules.get(key(leaf, entry.ecxIn)) : undefined;
    let right = entry.reserved === 0n;
    REGISTERS.forEach((register, i) => {
      const wanted = found === undefined ? 0 : found[i]!(entry[register], entry);
      if (wanted === entry[register]) return;
      entry[register] = wanted;
      right = false;
    });
    return right;
  }
}

/** Whether firmware looks at a leaf. */
export const isChecked = (leaf: number): boolean =>
  leaf <= 0xffff || (leaf >= 0x80000000 && leaf <= 0x8000ffff);
