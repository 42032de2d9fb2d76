/** Regions without a kernel behind them, and how a test writes down a flat view. */
import { hva } from '../../../src/base/address.ts';
import type { AddressSpace } from '../../../src/vmm/memory/address-space.ts';
import type { MemoryRegionSection } from '../../../src/vmm/memory/flat-view.ts';
import type { MemoryListener } from '../../../src/vmm/memory/memory-listener.ts';
import {
  ioRegion,
  type MemoryRegion,
  type MemoryRegionOps,
  ramRegion,
  romDeviceRegion,
} from '../../../src/vmm/memory/memory-region.ts';
import type { RamBlock } from '../../../src/vmm/memory/ram-block.ts';
import type { RamList } from '../../../src/vmm/memory/ram-list.ts';

export const ops: MemoryRegionOps = { maxAccessSize: 4, read: () => 0, write: () => {} };

export const io = (name: string, size: number): MemoryRegion => ioRegion(name, size, ops);

const block = (name: string, size: number): RamBlock => ({
  region: { name },
  host: hva(0x10000000),
  offset: 0,
  usedLength: size,
  maxLength: size,
  resized: undefined,
  flags: 0,
  idstr: name,
  fd: -1,
  fdOffset: 0n,
  guestMemfd: -1,
  attributes: undefined,
  pageSize: 4096,
});

export const ram = (name: string, size: number): MemoryRegion =>
  ramRegion(name, size, () => block(name, size));

export const flash = (name: string, size: number): MemoryRegion =>
  romDeviceRegion({ alloc: () => block(name, size) } as unknown as RamList, name, size, ops);

/** `name start+size @offset`, all in hexadecimal. */
export const written = ({ region, start, size, offsetInRegion }: MemoryRegionSection): string =>
  `${region.name} ${start.toString(16)}+${size.toString(16)} @${offsetInRegion.toString(16)}`;

export const layout = (space: AddressSpace): string[] => space.ranges.map(written);

/** Writes each callback into `log`, with `name` in front. */
export function recorder(log: string[], name: string, priority?: number): MemoryListener {
  return {
    ...(priority === undefined ? {} : { priority }),
    begin: () => log.push(`${name} begin`),
    regionAdd: (section) => log.push(`${name} add ${written(section)}`),
    regionDel: (section) => log.push(`${name} del ${written(section)}`),
    regionNop: (section) => log.push(`${name} nop ${written(section)}`),
    logStart: (section, was, is) => log.push(`${name} log start ${section.region.name} ${was}→${is}`),
    logStop: (section, was, is) => log.push(`${name} log stop ${section.region.name} ${was}→${is}`),
    commit: () => log.push(`${name} commit`),
  };
}
