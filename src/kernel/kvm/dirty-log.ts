/**
 * Dirty logging by bitmap, and the choice between it and rings (Linux virt/kvm/kvm_main.c kvm_get_dirty_log_protect, kvm_clear_dirty_log_protect, kvm_prepare_memory_region;
 * arch/x86/kvm/x86.c kvm_mmu_slot_apply_flags; reference facts 1.9). A slot with LOG_DIRTY_PAGES is mapped in pages of 4 KiB, read-only until
 * the guest writes; that fault marks the page. Harvest takes the write right again. Everything that KVM writes for the guest goes
 * through the same fault. What the process writes to its own memory is the process's to know.
 *
 * KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 splits the harvest: GET only copies, CLEAR cleans; with INITIALLY_SET a slot begins all dirty and
 * keeps its mappings writable until they are cleared for the first time.
 */
import { KVM_MEM_LOG_DIRTY_PAGES, KVM_USER_MEM_SLOTS } from '../../abi/kvm.ts';
import { checkBitmap, u32, u64 } from '../../abi/layout.ts';
import type { Gfn, Pfn } from '../../base/address.ts';
import { LinuxError } from '../../base/errors.ts';
import type { HostMemory } from '../../hardware/memory/host-memory.ts';
import type { ClearDirtyLogRequest, DirtyLogRequest } from '../interface.ts';
import { DirtyBitmap, type WriteProtector } from './dirty-bitmap.ts';
import { type DirtyRing, MAX_RING_BYTES, ringOrder } from './dirty-ring.ts';
import type { MemorySlot, MemorySlots } from './memory-slots.ts';

const MANUAL_PROTECT_ENABLE = 1n;
const INITIALLY_SET = 2n;
/** KVM_DIRTY_LOG_MANUAL_CAPS: the answer of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2. */
export const MANUAL_PROTECT_OPTIONS = 3;

/** How a VM tracks dirty pages. */
export class DirtyTracking {
  manualProtect = false;
  initiallySet = false;
  /** Bytes of each vCPU's dirty ring; 0: writes are logged in bitmaps. */
  ringBytes = 0;
  /** Those of the vCPUs that are there. */
  readonly rings = new Set<DirtyRing>();

  /** ENABLE_CAP of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2. Errors: EINVAL. */
  enableManualProtect(options: bigint): void {
    const allowed =
      (options & MANUAL_PROTECT_ENABLE) === 0n
        ? MANUAL_PROTECT_ENABLE
        : MANUAL_PROTECT_ENABLE | INITIALLY_SET;
    if ((options & ~allowed) !== 0n)
      throw new LinuxError('EINVAL', `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: args[0] ${options}, want 0, 1 or 3`);
    this.manualProtect = (options & MANUAL_PROTECT_ENABLE) !== 0n;
    this.initiallySet = (options & INITIALLY_SET) !== 0n;
  }

  /**
   * ENABLE_CAP of KVM_CAP_DIRTY_LOG_RING and …_ACQ_REL, which on x86 are the same. Errors in order: EINVAL (no power of two, less than a
   * page), E2BIG, EINVAL (a second time, or there are vCPUs already).
   */
  enableRings(size: bigint, vcpus: number): void {
    // The argument is a u32 there.
    const bytes = Number(BigInt.asUintN(32, size));
    const isPowerOfTwo = Math.log2(bytes) % 1 === 0;
    if (!isPowerOfTwo || bytes < 4096)
      throw new LinuxError('EINVAL', `dirty ring of ${bytes} bytes: want a power of two, at least a page`);
    if (bytes > MAX_RING_BYTES)
      throw new LinuxError('E2BIG', `dirty ring of ${bytes} bytes: at most ${MAX_RING_BYTES}`);
    if (this.ringBytes !== 0) throw new LinuxError('EINVAL', 'dirty rings are enabled already');
    if (vcpus > 0) throw new LinuxError('EINVAL', 'dirty rings must be enabled before the first vCPU');
    this.ringBytes = bytes;
  }

  /** Frames for a vCPU's ring: the first one, 0 when none is wanted, or NO_FRAME. */
  allocateRing(memory: HostMemory): Pfn | 0 | -1 {
    if (this.ringBytes === 0) return 0;
    return memory.allocate(ringOrder(this.ringBytes), memory.owner('dirty ring'));
  }
}

/** What the dirty log asks of the VM. */
export interface DirtyLogVm {
  readonly dirtyTracking: DirtyTracking;
  /** One per address space. */
  readonly addressSpaces: readonly MemorySlots[];
  readonly mmu: WriteProtector & {
    writeProtectRange(start: Gfn, end: Gfn): boolean;
    zapRange(start: Gfn, end: Gfn): boolean;
    flushRemoteTlbs(): void;
  };
}

/**
 * KVM_GET_DIRTY_LOG. Errors in order: ENXIO (writes go to rings), EINVAL (address space, slot id), ENOENT (no such slot, or it does not log), EFAULT (`bitmap` ends too
 * early; what was dirty is clean all the same).
 */
export function getDirtyLog(vm: DirtyLogVm, { slot: id, bitmap }: DirtyLogRequest): void {
  u32.check(id, 'kvm_dirty_log.slot');
  checkBitmap(bitmap, 'kvm_dirty_log.dirty_bitmap');
  const slot = findSlot(vm, id);
  const dirty = bitmapOf(slot, id);
  if (vm.dirtyTracking.manualProtect) dirty.copyTo(bitmap);
  else if (dirty.take(bitmap, slot!.baseGfn, vm.mmu)) vm.mmu.flushRemoteTlbs();
  if (bitmap.length < dirty.length)
    throw new LinuxError('EFAULT', `bitmap of ${bitmap.length} words, slot ${id} needs ${dirty.length}`);
}

/**
 * KVM_CLEAR_DIRTY_LOG. Errors in order: ENXIO, EINVAL (address space, slot id; first_page no multiple of 64), ENOENT, EINVAL (range outside the slot, or
 * num_pages neither a multiple of 64 nor up to the slot's end), EFAULT (`bitmap` ends too early).
 */
export function clearDirtyLog(vm: DirtyLogVm, request: ClearDirtyLogRequest): void {
  const { slot: id, firstPage, numPages, bitmap } = request;
  u32.check(id, 'kvm_clear_dirty_log.slot');
  u64.check(firstPage, 'kvm_clear_dirty_log.first_page');
  u32.check(numPages, 'kvm_clear_dirty_log.num_pages');
  checkBitmap(bitmap, 'kvm_clear_dirty_log.dirty_bitmap');
  const slot = findSlot(vm, id);
  if (firstPage % 64n !== 0n)
    throw new LinuxError('EINVAL', `first_page ${firstPage}: want a multiple of 64`);
  const dirty = bitmapOf(slot, id);
  const left = BigInt(slot!.npages) - firstPage;
  if (BigInt(numPages) > left || (BigInt(numPages) < left && numPages % 64 !== 0))
    throw new LinuxError(
      'EINVAL',
      `first_page ${firstPage}, num_pages ${numPages}: slot ${id} has ${slot!.npages} pages; want whole 64 or up to its end`,
    );
  const count = DirtyBitmap.wordsFor(numPages);
  if (bitmap.length < count)
    throw new LinuxError('EFAULT', `bitmap of ${bitmap.length} words, ${numPages} pages need ${count}`);
  const range = { firstPage: Number(firstPage), count };
  if (dirty.cleanMasked(bitmap, range, slot!.baseGfn, vm.mmu)) vm.mmu.flushRemoteTlbs();
}

/**
 * The bitmap of a slot that is made or changed: `old`'s where that one logs already; none where rings take its place. Errors: ENOMEM.
 */
export function prepareDirtyBitmap(
  tracking: DirtyTracking,
  slot: { readonly npages: number; readonly flags: number },
  old: MemorySlot | undefined,
): DirtyBitmap | undefined {
  if ((slot.flags & KVM_MEM_LOG_DIRTY_PAGES) === 0) return undefined;
  if (old?.dirty !== undefined) return old.dirty;
  if (tracking.ringBytes !== 0) return undefined;
  let bitmap: DirtyBitmap;
  try {
    bitmap = new DirtyBitmap(slot.npages);
  } catch (error) {
    if (error instanceof RangeError)
      throw new LinuxError('ENOMEM', `no memory for the dirty bitmap of ${slot.npages} pages`);
    throw error;
  }
  if (tracking.initiallySet) bitmap.markAll();
  return bitmap;
}

/** After LOG_DIRTY_PAGES of an existing slot changed: pages can be written unseen no more, or may be large again. */
export function applyLogging(vm: DirtyLogVm, slot: MemorySlot): void {
  const logs = (slot.flags & KVM_MEM_LOG_DIRTY_PAGES) !== 0;
  if (logs && vm.dirtyTracking.initiallySet) return;
  const changed = logs
    ? vm.mmu.writeProtectRange(slot.baseGfn, slot.endGfn)
    : vm.mmu.zapRange(slot.baseGfn, slot.endGfn);
  if (changed) vm.mmu.flushRemoteTlbs();
}

/** KVM_RESET_DIRTY_RINGS: how many entries were taken back. Errors: EINVAL (no rings). */
export function resetDirtyRings(vm: DirtyLogVm): number {
  if (vm.dirtyTracking.ringBytes === 0) throw new LinuxError('EINVAL', 'this VM has no dirty rings');
  let count = 0;
  for (const ring of vm.dirtyTracking.rings) count += ring.reset(vm);
  if (count > 0) vm.mmu.flushRemoteTlbs();
  return count;
}

/** `id`: the address space in the high half. */
function findSlot(vm: DirtyLogVm, id: number): MemorySlot | undefined {
  if (vm.dirtyTracking.ringBytes !== 0)
    throw new LinuxError('ENXIO', 'this VM logs dirty pages in rings, not in bitmaps');
  const slots = vm.addressSpaces[id >>> 16];
  const number = id & 0xffff;
  if (slots === undefined || number >= KVM_USER_MEM_SLOTS)
    throw new LinuxError(
      'EINVAL',
      `slot ${number} of address space ${id >>> 16}: the VM has ${vm.addressSpaces.length}, ids are below ${KVM_USER_MEM_SLOTS}`,
    );
  return slots.byId(number);
}

function bitmapOf(slot: MemorySlot | undefined, id: number): DirtyBitmap {
  if (slot?.dirty === undefined)
    throw new LinuxError(
      'ENOENT',
      slot === undefined ? `no slot ${id}` : `slot ${id} does not log dirty pages`,
    );
  return slot.dirty;
}
