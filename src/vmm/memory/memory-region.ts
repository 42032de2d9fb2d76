/**
 * What can be mapped into a guest's address space (QEMU system/memory.c: MemoryRegion): RAM, ROM, and I/O whose accesses call
 * a device. Leaves out, by name: aliases, containers, priorities, ROM devices, RAM devices, IOMMUs.
 */
import { type Hva, offsetBy } from '../../base/address.ts';
import { NotImplementedError } from '../../base/errors.ts';
import type { RamBlock } from './ram-block.ts';
import type { RamList } from './ram-list.ts';

/** A device's side of an I/O region. Offsets count from the region's start; values are unsigned, little-endian. */
export interface MemoryRegionOps {
  /** Largest access that the device takes, in bytes; a larger one arrives in parts, the lowest address first. */
  readonly maxAccessSize: 1 | 2 | 4;
  read(offset: number, size: number): number;
  write(offset: number, value: number, size: number): void;
}

export interface MemoryRegion {
  readonly name: string;
  /** Bytes. */
  readonly size: number;
  readonly kind: 'ram' | 'rom' | 'io';
  /** Of RAM and ROM. */
  readonly ramBlock: RamBlock | undefined;
  /** Of I/O. */
  readonly ops: MemoryRegionOps | undefined;
}

/** memory_region_init_ram_flags_nomigrate, memory_region_init_ram_from_fd: `allocate` says how the block is made. */
export function ramRegion(
  name: string,
  size: number,
  allocate: (region: { name: string }) => RamBlock,
): MemoryRegion {
  return { name, size, kind: 'ram', ramBlock: allocate({ name }), ops: undefined };
}

/** memory_region_init_rom: RAM that a guest cannot write. */
export function romRegion(list: RamList, name: string, size: number): MemoryRegion {
  return {
    name,
    size,
    kind: 'rom',
    ramBlock: list.alloc({ region: { name }, size, flags: 0 }),
    ops: undefined,
  };
}

/** memory_region_init_io: for memory-mapped and for port I/O. */
export function ioRegion(name: string, size: number, ops: MemoryRegionOps): MemoryRegion {
  return { name, size, kind: 'io', ramBlock: undefined, ops };
}

/** memory_region_init_alias */
export function aliasRegion(name: string): never {
  throw new NotImplementedError(`memory region aliases (${name})`);
}

/** memory_region_init */
export function containerRegion(name: string): never {
  throw new NotImplementedError(`memory region containers (${name})`);
}

/** memory_region_has_guest_memfd: true if the region's RAM block has a valid guest_memfd (seed 000). */
export const memoryRegionHasGuestMemfd = (region: MemoryRegion): boolean =>
  region.ramBlock !== undefined && region.ramBlock.guestMemfd >= 0;

/** memory_region_get_ram_ptr, `offset` bytes further on. */
export function ramPointer(region: MemoryRegion, offset: number): Hva {
  const host = region.ramBlock?.host;
  if (host === undefined)
    throw new TypeError(`memory region ${region.name}: got kind ${region.kind}, want RAM`);
  return offsetBy(host, offset);
}
