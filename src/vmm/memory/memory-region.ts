/**
 * What can be mapped into a guest's address space (QEMU include/system/memory.h, system/memory.c: MemoryRegion and its
 * memory_region_init functions). Regions form an acyclic graph: containers hold regions at offsets, an alias shows a part of
 * another region, and RAM, ROM, ROM devices and I/O answer accesses. RAM and I/O may hold regions as well; they then answer
 * where none of these does.
 *
 * A region is data. What changes during its life changes through `MemoryTopology`, which lets the listeners know.
 *
 * Leaves out: RAM devices, IOMMUs, coalesced I/O, ioeventfds, owners (an object model that keeps regions alive).
 */
import { type Hva, offsetBy } from '../../base/address.ts';
import { assert } from '../error.ts';
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
  /** ROM is RAM that is `readOnly`. */
  readonly kind: 'container' | 'alias' | 'ram' | 'rom-device' | 'io';
  /** Of RAM, ROM and ROM devices. */
  readonly ramBlock: RamBlock | undefined;
  /** Of I/O and ROM devices. */
  readonly ops: MemoryRegionOps | undefined;
  /** What an alias shows, from `aliasOffset` on. */
  readonly alias: MemoryRegion | undefined;
  readonly aliasOffset: number;

  /** Where it is mapped: in which region, at which offset, and how it stands to its neighbours there (the highest wins). */
  readonly container: MemoryRegion | undefined;
  readonly address: number;
  readonly priority: number;
  /** What is mapped in it, from the top to the bottom. */
  readonly subregions: readonly MemoryRegion[];
  /** Aliases of it that are mapped, and aliases of these. */
  readonly mappedViaAlias: number;

  readonly enabled: boolean;
  /** Guests cannot write it, nor what lies below it. */
  readonly readOnly: boolean;
  /** Of a ROM device: reads find the memory. Otherwise they reach the device, as writes always do. */
  readonly romdMode: boolean;
  readonly nonvolatile: boolean;
  /** Its ranges stay apart from their neighbours in a flat view. */
  readonly unmergeable: boolean;
  /** One bit a client of dirty logging. */
  readonly dirtyLogMask: number;
}

/** memory_region_init: no more than what is mapped in it. */
export const containerRegion = (name: string, size: number): MemoryRegion =>
  newRegion({ name, size, kind: 'container' });

/**
 * memory_region_init_ram_flags_nomigrate, memory_region_init_ram_from_fd: `allocate` says how the block is made; `access` is
 * given where guests cannot write it (RAM_READONLY).
 */
export const ramRegion = (
  name: string,
  size: number,
  allocate: (region: { name: string }) => RamBlock,
  options: { access?: 'readonly' } = {},
): MemoryRegion =>
  newRegion({
    name,
    size,
    kind: 'ram',
    ramBlock: allocate({ name }),
    readOnly: options.access === 'readonly',
  });

/** memory_region_init_rom: RAM that a guest cannot write. */
export const romRegion = (list: RamList, name: string, size: number): MemoryRegion =>
  ramRegion(name, size, (region) => list.alloc({ region, size, flags: 0 }), { access: 'readonly' });

/** memory_region_init_rom_device: reads find memory, writes reach the device (flash). */
export const romDeviceRegion = (
  list: RamList,
  name: string,
  size: number,
  ops: MemoryRegionOps,
): MemoryRegion =>
  newRegion({
    name,
    size,
    kind: 'rom-device',
    ramBlock: list.alloc({ region: { name }, size, flags: 0 }),
    ops,
  });

/** memory_region_init_io: for memory-mapped and for port I/O. */
export const ioRegion = (name: string, size: number, ops: MemoryRegionOps): MemoryRegion =>
  newRegion({ name, size, kind: 'io', ops });

/** memory_region_init_io without callbacks: a reservation, where the host's kernel answers and the VMM never does. */
export const reservationRegion = (name: string, size: number): MemoryRegion =>
  newRegion({ name, size, kind: 'io' });

/** memory_region_init_alias: shows `size` bytes of `of` from `offset` on; what lies beyond its end is a hole. */
export function aliasRegion(name: string, of: MemoryRegion, offset: number, size: number): MemoryRegion {
  assertBytes(name, 'offset', offset);
  return newRegion({ name, size, kind: 'alias', alias: of, aliasOffset: offset });
}

function newRegion(what: Pick<MemoryRegion, 'name' | 'size' | 'kind'> & Partial<MemoryRegion>): MemoryRegion {
  assertBytes(what.name, 'size', what.size);
  return {
    ramBlock: undefined,
    ops: undefined,
    alias: undefined,
    aliasOffset: 0,
    container: undefined,
    address: 0,
    priority: 0,
    subregions: [],
    mappedViaAlias: 0,
    enabled: true,
    readOnly: false,
    romdMode: true,
    nonvolatile: false,
    unmergeable: false,
    dirtyLogMask: 0,
    ...what,
  };
}

/** Sizes and offsets are whole numbers from 0 to 2^53 − 1. */
export const assertBytes = (name: string, what: 'size' | 'offset', bytes: number): void =>
  assert(
    Number.isSafeInteger(bytes) && bytes >= 0,
    `region ${name} has ${what === 'size' ? 'a' : 'an'} ${what} of whole bytes below 2^53: ${bytes}`,
  );

/** memory_region_is_ram: RAM and ROM, no ROM device. */
export const memoryRegionIsRam = (region: MemoryRegion): boolean => region.kind === 'ram';

/** memory_region_is_romd: a ROM device whose reads find the memory. */
export const memoryRegionIsRomd = (region: MemoryRegion): boolean =>
  region.kind === 'rom-device' && region.romdMode;

/** memory_region_is_mapped: in a container, itself or an alias of it. */
export const memoryRegionIsMapped = (region: MemoryRegion): boolean =>
  region.container !== undefined || region.mappedViaAlias > 0;

/** memory_region_has_guest_memfd: true if the region's RAM block has a valid guest_memfd (seed 000). */
export const memoryRegionHasGuestMemfd = (region: MemoryRegion): boolean =>
  region.ramBlock !== undefined && region.ramBlock.guestMemfd >= 0;

/** memory_region_get_ram_ptr, `offset` bytes further on. Throws TypeError where there is no RAM. */
export function ramPointer(region: MemoryRegion, offset: number): Hva {
  if (region.alias !== undefined) return ramPointer(region.alias, region.aliasOffset + offset);
  const host = region.ramBlock?.host;
  if (host === undefined)
    throw new TypeError(`memory region ${region.name}: got kind ${region.kind}, want RAM`);
  return offsetBy(host, offset);
}
