/**
 * PAGE_RECLAIM, PAGE_SET_STATE and PAGE_UNSMASH (AMD's firmware source, snp_mcmd_page_*, in its order of checks). PAGE_SET_STATE turns firmware pages into HV-Fixed
 * ones; its ranges start at 2 MiB.
 */
import {
  SNP_RANGES_MAX,
  snpAddress,
  snpPageSetState,
  snpRange,
  snpRangeList,
} from '../../abi/sev-firmware.ts';
import { SEV_STATUS } from '../../abi/sev-status.ts';
import { PAGE_SIZE, type Pfn, type Spa } from '../../base/address.ts';
import { HYPERVISOR_ENTRY } from '../memory/rmp.ts';
import { type CommandBuffer, type Firmware, isPage } from './firmware.ts';

const LARGE_FRAMES = 512;
const LARGE_SIZE = LARGE_FRAMES * PAGE_SIZE;

export function pageReclaim(firmware: Firmware, command: CommandBuffer): number {
  const { address: addressAndSize } = snpAddress.decode(command.bytes);
  if ((addressAndSize & 0xffen) !== 0n) return SEV_STATUS.INVALID_PARAM;
  const large = (addressAndSize & 1n) !== 0n;
  const address = firmware.address(addressAndSize & ~1n);
  if (!firmware.isInitialised) return SEV_STATUS.INVALID_PLATFORM_STATE;
  if (!firmware.isMemory(address, large ? LARGE_SIZE : PAGE_SIZE)) return SEV_STATUS.INVALID_ADDRESS;
  const state = firmware.stateOf(address);
  const frame = (address / PAGE_SIZE) as Pfn;
  const entry = firmware.entryOf(frame);
  if (entry.large !== large) return SEV_STATUS.INVALID_PAGE_SIZE;
  if (!entry.immutable) return SEV_STATUS.SUCCESS;
  switch (state) {
    case 'metadata':
    case 'firmware':
      firmware.rmp.setEntry(frame, { ...entry, immutable: false, gpa: 0 });
      break;
    case 'pre-guest':
    case 'pre-swap':
      firmware.rmp.setEntry(frame, { ...entry, immutable: false });
      break;
    default:
      return SEV_STATUS.INVALID_PAGE_STATE;
  }
  if (firmware.trace.on)
    firmware.tracePage(frame, firmware.rmp.state(frame), 'SNP_PAGE_RECLAIM', large ? LARGE_FRAMES : 1);
  return SEV_STATUS.SUCCESS;
}

export function pageSetState(firmware: Firmware, command: CommandBuffer): number {
  const request = snpPageSetState.decode(command.bytes);
  if (request.length !== snpPageSetState.size) return SEV_STATUS.INVALID_LENGTH;
  const list = firmware.address(request.list);
  if (request.reserved !== 0 || !isPage(list)) return SEV_STATUS.INVALID_PARAM;
  if (!firmware.isInitialised) return SEV_STATUS.INVALID_PLATFORM_STATE;
  const { ranges, status } = readRanges(firmware, list, LARGE_SIZE);
  if (status !== SEV_STATUS.SUCCESS) return status;
  for (const { first, frames } of ranges) {
    if (!firmware.hasFrame(first + frames - 1)) return SEV_STATUS.INVALID_ADDRESS;
    for (let frame = first; frame < first + frames; frame++)
      if (firmware.stateOf((frame * PAGE_SIZE) as Spa) !== 'firmware') return SEV_STATUS.INVALID_PAGE_STATE;
  }
  for (const range of ranges) fixPages(firmware, range);
  return SEV_STATUS.SUCCESS;
}

/** Pages from frame `first` on. */
export interface FrameRange {
  readonly first: number;
  readonly frames: number;
}

/**
 * The ranges of a list, without what of them is the RMP. Those before the first bad one are returned beside the status, as firmware has them by then. `alignment` of
 * a range's base, bytes.
 */
export function readRanges(
  firmware: Firmware,
  list: Spa,
  alignment: number,
): { ranges: FrameRange[]; status: number } {
  const ranges: FrameRange[] = [];
  const page = new Uint8Array(PAGE_SIZE);
  const status = isPage(list) ? firmware.read(list, page) : SEV_STATUS.INVALID_ADDRESS;
  if (status !== SEV_STATUS.SUCCESS) return { ranges, status };
  const { count, reserved } = snpRangeList.decode(page);
  if (reserved !== 0 || count > SNP_RANGES_MAX) return { ranges, status: SEV_STATUS.INVALID_PARAM };
  const { rmp } = firmware.memory;
  const rmpFirst = (rmp?.base ?? 0) / PAGE_SIZE;
  const rmpEnd = (rmp?.end ?? 0) / PAGE_SIZE;
  for (let i = 0; i < count; i++) {
    const at = snpRangeList.size + i * snpRange.size;
    const range = snpRange.decode(page.subarray(at, at + snpRange.size));
    const base = firmware.address(range.base);
    if (range.reserved !== 0 || base % alignment !== 0) return { ranges, status: SEV_STATUS.INVALID_PARAM };
    const first = base / PAGE_SIZE;
    const end = first + range.pageCount;
    for (const [from, to] of [
      [first, Math.min(end, rmpFirst)],
      [Math.max(first, rmpEnd), end],
    ] as const) {
      if (to > from) ranges.push({ first: from, frames: to - from });
    }
  }
  return { ranges, status: SEV_STATUS.SUCCESS };
}

/** Makes pages HV-Fixed: the hypervisor's for as long as SNP is on. What is no memory is left alone. */
export function fixPages(firmware: Firmware, range: FrameRange): void {
  const end = Math.min(range.first + range.frames, firmware.memory.frameCount);
  for (let frame = range.first; frame < end; frame++) {
    firmware.rmp.setEntry(frame as Pfn, { ...HYPERVISOR_ENTRY, immutable: true });
  }
}

export function pageUnsmash(firmware: Firmware, command: CommandBuffer): number {
  const { address: raw } = snpAddress.decode(command.bytes);
  const address = firmware.address(raw);
  if (address % LARGE_SIZE !== 0) return SEV_STATUS.INVALID_PARAM;
  if (!firmware.isInitialised) return SEV_STATUS.INVALID_PLATFORM_STATE;
  if (!firmware.isMemory(address, LARGE_SIZE)) return SEV_STATUS.INVALID_ADDRESS;
  const { rmp } = firmware;
  const frame = (address / PAGE_SIZE) as Pfn;
  const first = firmware.entryOf(frame);
  if (first.gpa % LARGE_SIZE !== 0) return SEV_STATUS.INVALID_PAGE_STATE;
  for (let i = 0; i < LARGE_FRAMES; i++) {
    const entry = firmware.entryOf((frame + i) as Pfn);
    // Of a 2 MiB page all but the first are as Reclaim: not immutable.
    const fits =
      entry.immutable &&
      !entry.vmsa &&
      entry.asid !== 0 &&
      entry.asid === first.asid &&
      entry.validated === first.validated &&
      entry.gpa === first.gpa + i * PAGE_SIZE &&
      entry.permissions === first.permissions;
    if (!fits) return SEV_STATUS.INVALID_PAGE_STATE;
  }
  rmp.setEntry(frame, { ...first, large: true });
  if (firmware.trace.on) firmware.tracePage(frame, rmp.state(frame), 'SNP_PAGE_UNSMASH', LARGE_FRAMES);
  return SEV_STATUS.SUCCESS;
}
