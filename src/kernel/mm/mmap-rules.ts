/**
 * What mmap refuses, in Linux' order (arch/x86/kernel/sys_x86_64.c `mmap`, mm/mmap.c `do_mmap`). Memory is never refused for
 * its size (as with vm.overcommit_memory=1). Left out: hugetlb, locked, 32-bit and growing mappings, which say so.
 */
import { type Hva, hva, isPageAligned, PAGE_SIZE, pageAlignUp } from '../../base/address.ts';
import { LinuxError, NotImplementedError } from '../../base/errors.ts';
import type { OpenFile } from '../files.ts';
import { MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, PROT_WRITE } from '../interface.ts';
import type { MappingList } from './mapping.ts';

/** End of a process's address space (47 bits less a guard page). */
export const TASK_SIZE = 0x7fff_ffff_f000;
/** Where mappings without an address begin, growing down. */
const MMAP_BASE = 0x7fff_f7ff_f000;
/** vm.mmap_min_addr */
const MIN_ADDRESS = 0x10000;
/** vm.max_map_count */
export const MAX_MAP_COUNT = 65530;
/** Mappings of at least this size start at a multiple of it, so that 2 MiB mappings of a guest are possible. */
const LARGE = 0x200000;

const MAP_TYPE = 0xf;
const MAP_SHARED_VALIDATE = 3;
const MAP_FIXED_NOREPLACE = 0x100000;
export const MAP_POPULATE = 0x8000;
const UNSUPPORTED = { MAP_32BIT: 0x40, MAP_GROWSDOWN: 0x100, MAP_LOCKED: 0x2000, MAP_HUGETLB: 0x40000 };
/** Flags that MAP_SHARED_VALIDATE knows: the old ones, without MAP_SYNC. */
const VALIDATED = 0x17ff3f;

export interface MmapRequest {
  length: number;
  protection: number;
  flags: number;
  fd?: number;
  offset?: bigint;
  address?: Hva;
}

/** A request that passed: where and what. */
export interface CheckedMmap {
  readonly start: Hva;
  readonly end: Hva;
  readonly shared: boolean;
  readonly mayWrite: boolean;
  /** First page of the file. */
  readonly firstPage: number;
}

const refuse = (
  code: 'EINVAL' | 'ENOMEM' | 'EACCES' | 'ENODEV' | 'EOVERFLOW' | 'EPERM' | 'EEXIST',
  what: string,
) => new LinuxError(code, `mmap: ${what}`);

/** The checks that come before the file is looked up. */
export function checkOffset(request: MmapRequest): void {
  const offset = request.offset ?? 0n;
  if ((offset & 0xfffn) !== 0n) throw refuse('EINVAL', `offset ${offset} is not a multiple of 4096`);
  for (const [name, flag] of Object.entries(UNSUPPORTED)) {
    if ((request.flags & flag) !== 0) throw new NotImplementedError(`mmap with ${name}`);
  }
}

/** Checks the rest and finds the address. `file` is undefined for anonymous memory. */
export function checkMmap(
  request: MmapRequest,
  file: OpenFile | undefined,
  mappings: MappingList,
): CheckedMmap {
  const { flags, protection } = request;
  if (request.length === 0) throw refuse('EINVAL', 'length is 0');
  const length = pageAlignUp(request.length);
  if (!(length > 0 && length <= TASK_SIZE))
    throw refuse('ENOMEM', `length ${request.length} is beyond ${TASK_SIZE}`);
  const offset = BigInt.asUintN(64, request.offset ?? 0n);
  if (offset / 4096n + BigInt(length / PAGE_SIZE) > 1n << 52n) {
    throw refuse('EOVERFLOW', `offset ${offset} and length ${length} wrap`);
  }
  if (mappings.count > MAX_MAP_COUNT) throw refuse('ENOMEM', `more than ${MAX_MAP_COUNT} mappings`);
  const start = placeFor(request, length, mappings);
  const type = flags & MAP_TYPE;
  if (file === undefined) {
    if (type !== MAP_SHARED && type !== MAP_PRIVATE) throw refuse('EINVAL', `mapping type ${type}`);
    const shared = type === MAP_SHARED;
    return { start, end: hva(start + length), shared, mayWrite: shared, firstPage: 0 };
  }
  const { name } = file.operations;
  switch (type) {
    case MAP_SHARED_VALIDATE:
    case MAP_SHARED:
      if (type === MAP_SHARED_VALIDATE && (flags & ~VALIDATED) !== 0) {
        throw new LinuxError('EOPNOTSUPP', `mmap: flags ${flags}`);
      }
      if ((protection & PROT_WRITE) !== 0 && !file.writable) {
        throw refuse('EACCES', `${name} is not open for writing`);
      }
      break;
    case MAP_PRIVATE:
      break;
    default:
      throw refuse('EINVAL', `mapping type ${type}`);
  }
  if (!file.readable) throw refuse('EACCES', `${name} is not open for reading`);
  if (!file.operations.mmap) throw refuse('ENODEV', `${name} cannot be mapped`);
  const shared = type !== MAP_PRIVATE;
  return {
    start,
    end: hva(start + length),
    shared,
    mayWrite: shared && file.writable,
    firstPage: Number(offset / 4096n),
  };
}

/** get_unmapped_area */
function placeFor(request: MmapRequest, length: number, mappings: MappingList): Hva {
  const { flags } = request;
  if ((flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) === 0) {
    const gap = mappings.findGap(length, length >= LARGE ? LARGE : PAGE_SIZE, MIN_ADDRESS, MMAP_BASE);
    if (gap === undefined) throw refuse('ENOMEM', `no ${length} bytes of address space are free`);
    return gap;
  }
  const at = request.address ?? hva(0);
  const where = `address 0x${at.toString(16)}`;
  if (!(at >= 0 && at <= TASK_SIZE - length)) throw refuse('ENOMEM', `${where} is beyond the address space`);
  if (!isPageAligned(at)) throw refuse('EINVAL', `${where} is not a multiple of 4096`);
  if (at < MIN_ADDRESS) throw refuse('EPERM', `${where} is below vm.mmap_min_addr`);
  const taken = (flags & MAP_FIXED_NOREPLACE) !== 0 && mappings.overlapping(at, at + length).length > 0;
  if (taken) throw refuse('EEXIST', `${where} is in use`);
  return at;
}

/** Whether the request has no file. */
export const isAnonymous = (request: MmapRequest): boolean => (request.flags & MAP_ANONYMOUS) !== 0;
