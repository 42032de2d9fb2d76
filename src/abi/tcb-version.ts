/**
 * TCB_VERSION: the security version numbers (SVN, or SPL) of what a chip runs, a byte each in a u64. Milan and Genoa have one layout; Turin moved the bytes and
 * added the FMC (SNP ABI specification, TCB_VERSION; Linux psp-sev.h, sev_snp_tcb_version_*). Reserved bytes are 0.
 *
 * | byte | Milan, Genoa | Turin |
 * |---|---|---|
 * | 0 | boot loader | FMC |
 * | 1 | TEE | boot loader |
 * | 2 | | TEE |
 * | 3 | | SNP |
 * | 6 | SNP | |
 * | 7 | microcode | microcode |
 */
export type ChipGeneration = 'milan' | 'genoa' | 'turin';

/** SVNs, 0 to 255. `fmc` is Turin's. */
export interface TcbVersion {
  readonly fmc?: number;
  readonly bootLoader: number;
  readonly tee: number;
  readonly snp: number;
  readonly microcode: number;
}

export type TcbComponent = keyof TcbVersion;

/** Components with their byte, the most significant for security first: each rests on those before it. */
const BYTES: Readonly<Record<ChipGeneration, readonly (readonly [TcbComponent, number])[]>> = {
  milan: [
    ['bootLoader', 0],
    ['tee', 1],
    ['snp', 6],
    ['microcode', 7],
  ],
  genoa: [
    ['bootLoader', 0],
    ['tee', 1],
    ['snp', 6],
    ['microcode', 7],
  ],
  turin: [
    ['fmc', 0],
    ['bootLoader', 1],
    ['tee', 2],
    ['snp', 3],
    ['microcode', 7],
  ],
};

/** The components of a generation, in the order in which one rests on the other. */
export const tcbComponents = (generation: ChipGeneration): readonly TcbComponent[] =>
  BYTES[generation].map(([component]) => component);

/** The u64. Components that the generation lacks are left out. RangeError: an SVN is no byte. */
export function encodeTcb(generation: ChipGeneration, tcb: TcbVersion): bigint {
  let value = 0n;
  for (const [component, byte] of BYTES[generation]) {
    const svn = tcb[component] ?? 0;
    if (!Number.isInteger(svn) || svn < 0 || svn > 255)
      throw new RangeError(`TCB ${component}: got ${svn}, want 0 to 255`);
    value |= BigInt(svn) << BigInt(byte * 8);
  }
  return value;
}

/** The components of a u64; reserved bytes are not looked at. */
export function decodeTcb(generation: ChipGeneration, value: bigint): TcbVersion {
  const tcb: Partial<Record<TcbComponent, number>> = {};
  for (const [component, byte] of BYTES[generation])
    tcb[component] = Number((value >> BigInt(byte * 8)) & 0xffn);
  return tcb as TcbVersion;
}

/** Whether no component of `a` is above its counterpart in `b`: how verifiers compare. */
export function tcbAtMost(generation: ChipGeneration, a: bigint, b: bigint): boolean {
  return BYTES[generation].every(([, byte]) => {
    const shift = BigInt(byte * 8);
    return ((a >> shift) & 0xffn) <= ((b >> shift) & 0xffn);
  });
}

/** How firmware orders versions: as one number with the first component most significant. Negative, 0 or positive. */
export function compareTcb(generation: ChipGeneration, a: bigint, b: bigint): number {
  for (const [, byte] of BYTES[generation]) {
    const shift = BigInt(byte * 8);
    const difference = Number((a >> shift) & 0xffn) - Number((b >> shift) & 0xffn);
    if (difference !== 0) return difference;
  }
  return 0;
}

/** Whether a byte that the generation reserves is set. */
export function hasReservedTcbBytes(generation: ChipGeneration, value: bigint): boolean {
  return encodeTcb(generation, decodeTcb(generation, value)) !== value;
}
