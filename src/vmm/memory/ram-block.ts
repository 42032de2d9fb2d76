/**
 * One block of guest RAM (QEMU include/system/ramblock.h: RAMBlock): its host memory, the file behind it, and with
 * RAM_GUEST_MEMFD the guest_memfd that holds its private side. Leaves out what migration keeps in it (bitmaps, postcopy).
 */
import type { Hva } from '../../base/address.ts';
import type { RamBlockAttributes } from './ram-block-attributes.ts';
import { RAM_SHARED } from './ram-flags.ts';

/** The region that a block belongs to, as far as a block knows it. */
export interface RamOwner {
  readonly name: string;
}

export interface RamBlock {
  readonly region: RamOwner;
  /** Where the block is mapped in the VMM's process. */
  host: Hva | undefined;
  /** ram_addr_t of its first byte. */
  offset: number;
  /** Bytes in use; `maxLength` is what is reserved. */
  usedLength: number;
  readonly maxLength: number;
  /** Called after a resize. */
  readonly resized: ((block: RamBlock) => void) | undefined;
  readonly flags: number;
  /** Name of the block, unique in the machine. */
  readonly idstr: string;
  /** File behind the host memory, −1: none. */
  readonly fd: number;
  readonly fdOffset: bigint;
  /** −1: none. */
  guestMemfd: number;
  /** Which pages are shared; with a guest_memfd only. */
  attributes: RamBlockAttributes | undefined;
  /** Page size of the backing (2 MiB for hugetlb). */
  readonly pageSize: number;
}

/** qemu_ram_is_shared */
export const isShared = (block: RamBlock): boolean => (block.flags & RAM_SHARED) !== 0;
