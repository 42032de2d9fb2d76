/**
 * Making guest memory private or shared (QEMU accel/kvm/kvm-all.c: kvm_convert_memory): the attributes first, then the
 * listeners, then the side that is no longer used is given back. One region at a time: of a range that reaches across
 * regions, only the part in the first one is converted, the rest is the caller's business.
 */
import { PAGE_SIZE } from '../../base/address.ts';
import { ERRNO } from '../../base/errors.ts';
import type { Process } from '../../kernel/interface.ts';
import { type ErrorReport, hex, nameOfResult } from '../error.ts';
import type { KvmState } from '../kvm-state.ts';
import type { AddressSpace } from './address-space.ts';
import { discardGuestMemfdRange, discardRange } from './discard.ts';
import { memoryRegionHasGuestMemfd, memoryRegionIsRam, memoryRegionIsRomd } from './memory-region.ts';

export interface ConversionContext {
  readonly kvm: KvmState;
  readonly process: Process;
  readonly systemMemory: AddressSpace;
  readonly report: ErrorReport;
}

export interface Conversion {
  /** 0 or −errno (−1 from a discard that makes no sense). */
  readonly result: number;
  /**
   * `refused`: the request was wrong and nothing has changed. `ignored`: there is nothing to convert there and a guest may
   * ask for it (MMIO). `done`: all steps were taken. `failed`: a step failed, those before it are not undone.
   */
  readonly outcome: 'refused' | 'ignored' | 'done' | 'failed';
}

const refused: Conversion = { result: -ERRNO.EINVAL, outcome: 'refused' };
const ignored: Conversion = { result: 0, outcome: 'ignored' };

/** Converts [start, start+size) `to` private or shared. */
export function convertMemory(
  context: ConversionContext,
  start: number,
  size: number,
  to: 'private' | 'shared',
): Conversion {
  const { kvm, report } = context;
  const what = `conversion of ${hex(start)}+${hex(size)} to ${to}`;
  if (start % PAGE_SIZE !== 0 || size % PAGE_SIZE !== 0 || size === 0) {
    report(`${what}: want whole pages of ${hex(PAGE_SIZE)}, at least one`);
    return refused;
  }
  const section = context.systemMemory.find(start, size);
  if (section === undefined) {
    // A guest makes its MMIO shared, and there may be no device.
    if (to === 'shared') return ignored;
    report(`${what}: no memory region there`);
    return refused;
  }
  const { region, offsetInRegion } = section;
  const block = region.ramBlock;
  if (!memoryRegionHasGuestMemfd(region) || block === undefined) {
    const isMmio = !memoryRegionIsRam(region) && !memoryRegionIsRomd(region);
    if (to === 'shared' && isMmio) return ignored;
    report(`${what}: memory region ${region.name} has no guest_memfd`);
    return refused;
  }
  const attributes =
    to === 'private'
      ? kvm.setMemoryAttributesPrivate(section.start, section.size)
      : kvm.setMemoryAttributesShared(section.start, section.size);
  if (attributes !== 0) {
    report(`${what}: KVM_SET_MEMORY_ATTRIBUTES failed: ${nameOfResult(attributes)}`);
    return finished(attributes);
  }
  const notified =
    block.attributes?.stateChange(
      offsetInRegion,
      section.size,
      to === 'private' ? 'discarded' : 'populated',
    ) ?? 0;
  if (notified !== 0) {
    report(`${what}: a listener of RAM block '${block.idstr}' failed: ${nameOfResult(notified)}`);
    return finished(notified);
  }
  if (to === 'shared') return finished(discardGuestMemfdRange(context, block, offsetInRegion, section.size));
  // Huge pages are reserved in advance: nothing would be gained by giving them back.
  if (block.pageSize !== PAGE_SIZE) return finished(0);
  return finished(discardRange(context, block, offsetInRegion, section.size));
}

const finished = (result: number): Conversion => ({ result, outcome: result === 0 ? 'done' : 'failed' });
