/**
 * How the VMM harvests KVM's dirty log (QEMU accel/kvm/kvm-all.c: kvm_slot_get_dirty_log, kvm_slot_sync_dirty_pages, kvm_log_clear_one_slot, kvm_dirty_ring_reap,
 * kvm_log_sync_global, and kvm_init for which of them). Each slot that logs has a bitmap of what is dirty and not yet cleared; what is harvested goes on into the dirty
 * pages of the RAM blocks, from which displays and migration take it.
 *
 * Leaves out: the reaper thread (whoever syncs reaps), the bitmap beside the ring, dirty limits.
 */
import {
  KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
  KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
  KVM_DIRTY_GFN_F_DIRTY,
  KVM_DIRTY_GFN_F_RESET,
  KVM_MEM_LOG_DIRTY_PAGES,
} from '../../abi/kvm.ts';
import { PAGE_SIZE } from '../../base/address.ts';
import { LinuxError } from '../../base/errors.ts';
import type { KvmVcpu } from '../../kernel/interface.ts';
import { assert, VmmError } from '../error.ts';
import type { KvmState } from '../kvm-state.ts';
import type { KvmSlot } from './kvm-slots.ts';
import type { RamDirtyPages } from './ram-dirty-pages.ts';

/** Bytes of struct kvm_dirty_gfn, and its words. */
const ENTRY_BYTES = 16;
const WORDS = 4;
/** KVM_CLEAR_DIRTY_LOG takes ranges of so many pages. */
const CLEAR_PAGES = 64;
/** KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE and KVM_DIRTY_LOG_INITIALLY_SET. */
const MANUAL_CAPS = 3;

export interface KvmDirtyLogOptions {
  readonly kvm: KvmState;
  readonly ram: RamDirtyPages;
  /** Entries of each vCPU's dirty ring, a power of two; 0 or absent: bitmaps. */
  readonly ringEntries?: number;
  /** vCPUs whose rings are to be reaped. */
  readonly vcpus?: () => readonly KvmVcpu[];
}

export class KvmDirtyLog {
  readonly #kvm: KvmState;
  readonly #ram: RamDirtyPages;
  readonly #vcpus: () => readonly KvmVcpu[];
  /** The log is in rings, else in bitmaps. */
  readonly usesRings: boolean;
  /** KVM_CLEAR_DIRTY_LOG is to be called for what was harvested. */
  readonly #isManual: boolean;
  /** By slot id: pages that KVM said are dirty and that were not cleared since; 32 pages a word. */
  readonly #bitmaps = new Map<number, { readonly pages: number; readonly bits: Int32Array }>();
  /** The next entry of each ring. */
  readonly #fetched = new Map<KvmVcpu, number>();

  /** Enables what KVM has, before there is any vCPU. Throws VmmError. */
  constructor({ kvm, ram, ringEntries = 0, vcpus = () => [] }: KvmDirtyLogOptions) {
    this.#kvm = kvm;
    this.#ram = ram;
    this.#vcpus = vcpus;
    this.usesRings = ringEntries > 0 && enableRings(kvm, ringEntries);
    const manual = this.usesRings
      ? 0
      : kvm.vm.checkExtension(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) & MANUAL_CAPS;
    this.#isManual = manual !== 0;
    if (this.#isManual) kvm.vm.enableCap({ cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, args: [BigInt(manual)] });
  }

  /** kvm_slot_init_dirty_bitmap, and the end of a slot's: with each change of a slot's flags. */
  slotChanged(slot: KvmSlot, isThere: boolean): void {
    const logs = isThere && (slot.flags & KVM_MEM_LOG_DIRTY_PAGES) !== 0;
    if (!logs) this.#bitmaps.delete(slot.slot);
    else if (!this.#bitmaps.has(slot.slot)) {
      const pages = slot.size / PAGE_SIZE;
      this.#bitmaps.set(slot.slot, { pages, bits: new Int32Array(Math.ceil(pages / 64) * 2) });
    }
  }

  /** log_sync of one slot (kvm_physical_sync_dirty_bitmap), with bitmaps. Throws VmmError. */
  sync(slot: KvmSlot): void {
    const log = this.#bitmaps.get(slot.slot);
    if (log === undefined) return;
    try {
      this.#kvm.vm.getDirtyLog({ slot: slot.slot, bitmap: log.bits });
    } catch (error) {
      // The kernel has no bitmap of this slot.
      if (error instanceof LinuxError && error.code === 'ENOENT') return;
      throw VmmError.because(`KVM_GET_DIRTY_LOG of slot ${slot.slot}`, error);
    }
    this.#ram.setDirty(slot, log.bits);
  }

  /** log_sync_global (kvm_log_sync_global), with rings. */
  syncAll(slots: readonly KvmSlot[]): void {
    this.reap();
    for (const slot of slots) this.#takeReaped(slot);
  }

  /** What a slot logged until now, before it goes (kvm_set_phys_mem). Throws VmmError. */
  syncLast(slot: KvmSlot): void {
    if (!this.#bitmaps.has(slot.slot)) return;
    if (!this.usesRings) {
      this.sync(slot);
      return;
    }
    this.reap();
    this.#takeReaped(slot);
  }

  #takeReaped(slot: KvmSlot): void {
    const log = this.#bitmaps.get(slot.slot);
    if (log === undefined) return;
    this.#ram.setDirty(slot, log.bits);
    log.bits.fill(0);
  }

  /** kvm_dirty_ring_reap: what vCPUs wrote to since is noted, and the entries are KVM's again. How many. Also when a ring is full. */
  reap(): number {
    let total = 0;
    for (const vcpu of this.#vcpus()) total += this.#reapOne(vcpu);
    if (total > 0) {
      const reset = this.#kvm.vm.resetDirtyRings();
      assert(reset === total, `KVM reset ${reset} entries of dirty rings, ${total} were collected`);
    }
    return total;
  }

  #reapOne(vcpu: KvmVcpu): number {
    const ring = vcpu.dirtyRing;
    if (ring === undefined) return 0;
    let at = this.#fetched.get(vcpu) ?? 0;
    let count = 0;
    while (Atomics.load(ring, at) === KVM_DIRTY_GFN_F_DIRTY) {
      // The address space in the high half: 0 alone has slots.
      this.#mark(ring[at + 1]!, (ring[at + 2]! >>> 0) + ring[at + 3]! * 2 ** 32);
      Atomics.store(ring, at, KVM_DIRTY_GFN_F_RESET);
      at = (at + WORDS) % ring.length;
      count++;
    }
    this.#fetched.set(vcpu, at);
    return count;
  }

  /** kvm_dirty_ring_mark_page: a slot may be gone by now. */
  #mark(slot: number, page: number): void {
    const log = this.#bitmaps.get(slot);
    if (log === undefined || page >= log.pages) return;
    log.bits[page >>> 5]! |= 1 << (page & 31);
  }

  /**
   * log_clear (kvm_log_clear_one_slot): pages [first, first + count) of the slot are to be logged anew. KVM takes whole 64 pages; of what else is in them
   * nothing is cleared. Throws VmmError.
   */
  clear(slot: KvmSlot, first: number, count: number): void {
    const log = this.#bitmaps.get(slot.slot);
    if (!this.#isManual || log === undefined) return;
    const start = first - (first % CLEAR_PAGES);
    const end = Math.min(Math.ceil((first + count) / CLEAR_PAGES) * CLEAR_PAGES, log.pages);
    const bitmap = log.bits.slice(start / 32, Math.ceil((end - start) / CLEAR_PAGES) * 2 + start / 32);
    for (let page = start; page < end; page++) {
      if (page < first || page >= first + count) bitmap[(page - start) >>> 5]! &= ~(1 << (page & 31));
    }
    try {
      this.#kvm.vm.clearDirtyLog({
        slot: slot.slot,
        firstPage: BigInt(start),
        numPages: end - start,
        bitmap,
      });
    } catch (error) {
      if (!(error instanceof LinuxError && error.code === 'ENOENT'))
        throw VmmError.because(`KVM_CLEAR_DIRTY_LOG of slot ${slot.slot}, pages ${start} to ${end}`, error);
    }
    for (let page = first; page < first + count; page++) log.bits[page >>> 5]! &= ~(1 << (page & 31));
  }
}

/** kvm_dirty_ring_init. False: KVM has no rings, and bitmaps take their place. */
function enableRings(kvm: KvmState, entries: number): boolean {
  const most = kvm.vm.checkExtension(KVM_CAP_DIRTY_LOG_RING_ACQ_REL);
  if (most <= 0) return false;
  const bytes = entries * ENTRY_BYTES;
  if (bytes > most)
    throw new VmmError(
      `dirtyRingSize: KVM dirty ring size ${entries} too big (maximum is ${most / ENTRY_BYTES}). Please use a smaller value.`,
    );
  try {
    kvm.vm.enableCap({ cap: KVM_CAP_DIRTY_LOG_RING_ACQ_REL, args: [BigInt(bytes)] });
  } catch (error) {
    throw VmmError.because(
      `dirtyRingSize: got ${entries}: Enabling of KVM dirty ring failed. Suggested minimum value is 1024.`,
      error,
    );
  }
  return true;
}
