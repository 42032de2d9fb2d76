/**
 * The address spaces of a host, each a branded `number` (all below 2^53), and the only operations that cross between them.
 *
 * | type | names |
 * |---|---|
 * | `Gpa`, `Gfn` | guest physical address and guest frame number |
 * | `Spa`, `Pfn` | system physical address (KVM's hpa) and page frame number |
 * | `Hva` | address in a host process |
 * | `Iova` | address that a device uses |
 */
declare const space: unique symbol;
type Address<Name extends string> = number & { readonly [space]: Name };

export type Gpa = Address<'gpa'>;
export type Gfn = Address<'gfn'>;
export type Spa = Address<'spa'>;
export type Pfn = Address<'pfn'>;
export type Hva = Address<'hva'>;
export type Iova = Address<'iova'>;

export const PAGE_SHIFT = 12;
export const PAGE_SIZE = 4096;
export const KiB = 1024;
export const MiB = 1024 * KiB;
export const GiB = 1024 * MiB;
export const TiB = 1024 * GiB;

export const gpa = (value: number): Gpa => value as Gpa;
export const gfn = (value: number): Gfn => value as Gfn;
export const spa = (value: number): Spa => value as Spa;
export const pfn = (value: number): Pfn => value as Pfn;
export const hva = (value: number): Hva => value as Hva;
export const iova = (value: number): Iova => value as Iova;

/** The frame that holds `address`. */
export const gfnOf = (address: Gpa): Gfn => Math.floor(address / PAGE_SIZE) as Gfn;
/** The first byte of `frame`. */
export const gpaOf = (frame: Gfn): Gpa => (frame * PAGE_SIZE) as Gpa;
/** The frame that holds `address`. */
export const pfnOf = (address: Spa): Pfn => Math.floor(address / PAGE_SIZE) as Pfn;
/** The first byte of `frame`. */
export const spaOf = (frame: Pfn): Spa => (frame * PAGE_SIZE) as Spa;

/** `address + bytes` in the same space. */
export const offsetBy = <A extends Gpa | Spa | Hva | Iova | Gfn | Pfn>(address: A, bytes: number): A =>
  (address + bytes) as A;

export const isPageAligned = (value: number): boolean => value % PAGE_SIZE === 0;
export const pageAlignDown = (value: number): number => value - (value % PAGE_SIZE);
export const pageAlignUp = (value: number): number => Math.ceil(value / PAGE_SIZE) * PAGE_SIZE;
const TWO_64 = 1n << 64n;
/** Whether `bytes` from `address` on, both u64s, reach 2^64. */
export const wrapsAround = (address: bigint, bytes: bigint): boolean => address + bytes >= TWO_64;
/** Number of pages that `bytes` fill, the last one perhaps in part. */
export const pagesIn = (bytes: number): number => Math.ceil(bytes / PAGE_SIZE);
