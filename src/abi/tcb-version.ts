/**
 * TCB_VERSION: eight bytes, one security patch level each. Which byte is whose depends on the chip's generation (AMD 56860, TCB_VERSION
 * and its form from Turin on). Names of generations are those in AMD's certificates: Bergamo and Siena are Genoa there. Leaves out
 * Venice, which has Turin's layout.
 */

export const PRODUCTS = ['Milan', 'Genoa', 'Turin'] as const;
export type Product = (typeof PRODUCTS)[number];

export const TCB_COMPONENTS = ['fmc', 'bootloader', 'tee', 'snp', 'microcode'] as const;
export type TcbComponent = (typeof TCB_COMPONENTS)[number];

/** Security patch levels, 0 to 255. `fmc` is absent before Turin. */
export interface Tcb {
  readonly fmc?: number;
  readonly bootloader: number;
  readonly tee: number;
  readonly snp: number;
  readonly microcode: number;
}

/** Byte of TCB_VERSION that holds a component. */
const MILAN_BYTES = { bootloader: 0, tee: 1, snp: 6, microcode: 7 };
const TURIN_BYTES = { fmc: 0, bootloader: 1, tee: 2, snp: 3, microcode: 7 };

const bytesOf = (product: Product): Partial<Record<TcbComponent, number>> =>
  product === 'Turin' ? TURIN_BYTES : MILAN_BYTES;

/** Components that a generation has, in the order of TCB_COMPONENTS. */
export const tcbComponents = (product: Product): readonly TcbComponent[] =>
  TCB_COMPONENTS.filter((component) => bytesOf(product)[component] !== undefined);

/** The components of a TCB_VERSION; its reserved bytes are dropped. */
export function decodeTcb(product: Product, version: bigint): Tcb {
  const level = (component: TcbComponent): number =>
    Number((version >> BigInt(8 * bytesOf(product)[component]!)) & 0xffn);
  const tcb = {
    bootloader: level('bootloader'),
    tee: level('tee'),
    snp: level('snp'),
    microcode: level('microcode'),
  };
  return product === 'Turin' ? { fmc: level('fmc'), ...tcb } : tcb;
}

/** RangeError: a level that is no byte, or one that the generation does not have. */
export function encodeTcb(product: Product, tcb: Tcb): bigint {
  let version = 0n;
  for (const component of TCB_COMPONENTS) {
    const level = tcb[component];
    const at = bytesOf(product)[component];
    if (level === undefined && (at === undefined || component === 'fmc')) continue;
    if (level === undefined || at === undefined) {
      throw new RangeError(
        `${component}: got ${level}, want ${at === undefined ? 'none' : '0 to 255'} for ${product}`,
      );
    }
    if (!Number.isInteger(level) || level < 0 || level > 255) {
      throw new RangeError(`${component}: got ${level}, want 0 to 255`);
    }
    version |= BigInt(level) << BigInt(8 * at);
  }
  return version;
}

/** Bytes of CHIP_ID that name the chip: eight from Turin on, the rest is zero. */
export const chipIdBytes = (product: Product): 8 | 64 => (product === 'Turin' ? 8 : 64);

/** The generation by CPUID Fn0000_0001: families and models as go-sev-guest and virtee/sev have them. */
export function productOfCpuid(family: number, model: number): Product | undefined {
  if (family === 0x19 && model <= 0x0f) return 'Milan';
  if (family === 0x19 && ((model >= 0x10 && model <= 0x1f) || (model >= 0xa0 && model <= 0xaf)))
    return 'Genoa';
  if (family === 0x1a && model <= 0x11) return 'Turin';
  return undefined;
}
