/**
 * Giving back the memory behind a part of a RAM block: its shared side (QEMU system/physmem.c: ram_block_discard_range) and
 * its private side (ram_block_discard_guest_memfd_range). Both answer 0, −errno, or −1 for a request that makes no sense.
 */
import { offsetBy } from '../../base/address.ts';
import { ERRNO } from '../../base/errors.ts';
import {
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  MADV_DONTNEED,
  MADV_REMOVE,
  type Process,
} from '../../kernel/interface.ts';
import { type ErrorReport, hex, nameOfResult, negativeErrno } from '../error.ts';
import { isShared, type RamBlock } from './ram-block.ts';
import { RAM_READONLY_FD } from './ram-flags.ts';

/** Page size of the host. */
const HOST_PAGE_SIZE = 4096;

export interface DiscardContext {
  readonly process: Process;
  readonly report: ErrorReport;
}

/** ram_block_discard_range: the next access to the shared side finds zeros (or the file's bytes, for a private file mapping). */
export function discardRange(
  context: DiscardContext,
  block: RamBlock,
  start: number,
  length: number,
): number {
  const { process, report } = context;
  const what = `discard of RAM block '${block.idstr}' ${hex(start)}+${hex(length)}`;
  if (block.host === undefined || start % block.pageSize !== 0) {
    report(`${what}: unaligned start address, want a multiple of ${hex(block.pageSize)}`);
    return -1;
  }
  if (start < 0 || start + length > block.maxLength) {
    report(`${what}: overrun, want at most ${hex(block.maxLength)}`);
    return -1;
  }
  if (length % block.pageSize !== 0) {
    report(`${what}: unaligned length, want a multiple of ${hex(block.pageSize)}`);
    return -1;
  }
  const needsFallocate = block.fd >= 0;
  const needsMadvise = block.pageSize === HOST_PAGE_SIZE;
  if (needsFallocate && (block.flags & RAM_READONLY_FD) !== 0) {
    report(`${what}: discarding RAM with readonly files is not supported`);
    return -1;
  }
  try {
    if (needsFallocate) {
      process.fallocate(
        block.fd,
        FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
        BigInt(start) + block.fdOffset,
        BigInt(length),
      );
    }
    if (needsMadvise) {
      const advice = isShared(block) && !needsFallocate ? MADV_REMOVE : MADV_DONTNEED;
      process.memory.madvise(offsetBy(block.host, start), length, advice);
    }
    // Huge pages without a file can be discarded by neither.
    return needsFallocate || needsMadvise ? 0 : -1;
  } catch (error) {
    const result = negativeErrno(error);
    report(`${what} failed: ${nameOfResult(result)}`);
    return result;
  }
}

/** ram_block_discard_guest_memfd_range: punches the private side; `start` counts in the guest_memfd, whatever fd_offset is. */
export function discardGuestMemfdRange(
  context: DiscardContext,
  block: RamBlock,
  start: number,
  length: number,
): number {
  if (block.guestMemfd < 0) return -ERRNO.ENOSYS;
  try {
    context.process.fallocate(
      block.guestMemfd,
      FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
      BigInt(start),
      BigInt(length),
    );
    return 0;
  } catch (error) {
    const result = negativeErrno(error);
    context.report(
      `discard of guest_memfd of RAM block '${block.idstr}' ${hex(start)}+${hex(length)} failed: ${nameOfResult(result)}`,
    );
    return result;
  }
}
