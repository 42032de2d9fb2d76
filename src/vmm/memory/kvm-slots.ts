/**
 * Keeps KVM's memory slots in step with an address space (QEMU accel/kvm/kvm-all.c: kvm_region_add, kvm_region_del,
 * kvm_region_commit, kvm_set_phys_mem, kvm_set_user_memory_region, kvm_log_start). What goes and what comes is collected while
 * the topology changes; at its commit first all that goes is unregistered, then all that comes is registered. So a range that
 * shrinks is never registered over itself.
 *
 * A slot with a guest_memfd is registered through version 2 with no flag but GUEST_MEMFD, and the whole of it is made private
 * at once, again when only its neighbourhood changed. A slot that cannot be registered or made private is fatal in QEMU; here
 * the others are still registered, and the first error is thrown.
 *
 * A slot's flags are those of its region when it is registered: an alias that is read-only does not make its slot READONLY,
 * and behind such an alias, where the flat view stays the same, nor does its RAM that becomes ROM later (as in QEMU).
 *
 * The dirty log is harvested by `kvm-dirty-log.ts`, where the machine has one.
 *
 * Leaves out: splitting of slots that are too large, the SMM address space.
 */
import { KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY } from '../../abi/kvm.ts';
import { isPageAligned, PAGE_SIZE, pageAlignDown, pageAlignUp } from '../../base/address.ts';
import type { UserMemoryRegion } from '../../kernel/interface.ts';
import { assert, hex, nameOfResult, VmmError } from '../error.ts';
import type { KvmState } from '../kvm-state.ts';
import type { MemoryRegionSection } from './flat-view.ts';
import type { KvmDirtyLog } from './kvm-dirty-log.ts';
import { MEMORY_LISTENER_PRIORITY_ACCEL, type MemoryListener } from './memory-listener.ts';
import {
  type MemoryRegion,
  memoryRegionHasGuestMemfd,
  memoryRegionIsRam,
  memoryRegionIsRomd,
  ramPointer,
} from './memory-region.ts';

/** One registered slot (KVMSlot). */
export interface KvmSlot {
  readonly slot: number;
  readonly start: number;
  readonly size: number;
  readonly flags: number;
  readonly region: MemoryRegion;
  /** Of its first byte. */
  readonly offsetInRegion: number;
}

/** kvm_mem_flags: LOG_DIRTY, READONLY and GUEST_MEMFD as the region is now. */
export function slotFlags(region: MemoryRegion): number {
  return (
    (region.dirtyLogMask !== 0 ? KVM_MEM_LOG_DIRTY_PAGES : 0) |
    (region.readOnly || memoryRegionIsRomd(region) ? KVM_MEM_READONLY : 0) |
    (memoryRegionHasGuestMemfd(region) ? KVM_MEM_GUEST_MEMFD : 0)
  );
}

export class KvmSlots implements MemoryListener {
  readonly priority = MEMORY_LISTENER_PRIORITY_ACCEL;
  readonly #kvm: KvmState;
  readonly #slots: KvmSlot[] = [];
  #going: MemoryRegionSection[] = [];
  #coming: MemoryRegionSection[] = [];

  readonly #dirtyLog: KvmDirtyLog | undefined;

  /** Rings are reaped for all slots at once, bitmaps are harvested and cleared slot by slot. */
  readonly logSync: MemoryListener['logSync'];
  readonly logSyncGlobal: MemoryListener['logSyncGlobal'];
  readonly logClear: MemoryListener['logClear'];

  /** kvm_memory_listener_register */
  constructor(kvm: KvmState, dirtyLog?: KvmDirtyLog) {
    this.#kvm = kvm;
    this.#dirtyLog = dirtyLog;
    if (dirtyLog?.usesRings === true) {
      this.logSyncGlobal = () => dirtyLog.syncAll(this.#slots);
    } else if (dirtyLog !== undefined) {
      this.logSync = (section) => {
        const slot = this.#slotOf(section);
        if (slot !== undefined) dirtyLog.sync(slot);
      };
      this.logClear = (section) => this.#clearLog(dirtyLog, section);
    }
  }

  get slots(): readonly KvmSlot[] {
    return this.#slots;
  }

  regionAdd(section: MemoryRegionSection): void {
    this.#coming.push(section);
  }

  regionDel(section: MemoryRegionSection): void {
    this.#going.push(section);
  }

  logStart(section: MemoryRegionSection): void {
    this.#updateFlags(section);
  }

  logStop(section: MemoryRegionSection): void {
    this.#updateFlags(section);
  }

  /** Every slot that the range meets. */
  #clearLog(dirtyLog: KvmDirtyLog, section: MemoryRegionSection): void {
    const end = section.start + section.size;
    for (const slot of this.#slots) {
      const from = Math.max(section.start, slot.start);
      const to = Math.min(end, slot.start + slot.size);
      if (from < to) dirtyLog.clear(slot, (from - slot.start) / PAGE_SIZE, (to - from) / PAGE_SIZE);
    }
  }

  /** Throws VmmError; the slot that it is about does not stay. */
  commit(): void {
    const [going, coming] = [this.#going, this.#coming];
    this.#going = [];
    this.#coming = [];
    let failure: unknown;
    const attempt = (act: () => void): void => {
      try {
        act();
      } catch (error) {
        failure ??= error;
      }
    };
    for (const section of going) attempt(() => this.#unregister(section));
    for (const section of coming) attempt(() => this.#register(section));
    if (failure !== undefined) throw failure;
  }

  #unregister(section: MemoryRegionSection): void {
    const slot = this.#slotOf(section);
    if (slot !== undefined) this.#delete(slot);
  }

  #register(section: MemoryRegionSection): void {
    const { region } = section;
    if (!memoryRegionIsRam(region) && !memoryRegionIsRomd(region)) return;
    const pages = wholePages(section);
    if (pages === undefined) return;
    const slot = { slot: this.#freeSlot(region), flags: slotFlags(region), region, ...pages };
    this.#set(slot, slot.size);
    this.#slots.push(slot);
    this.#dirtyLog?.slotChanged(slot, true);
    if ((slot.flags & KVM_MEM_GUEST_MEMFD) === 0) return;
    const result = this.#kvm.setMemoryAttributesPrivate(slot.start, slot.size);
    if (result < 0) {
      this.#delete(slot);
      throw new VmmError(
        `${region.name}: failed to set memory attribute private for ${hex(slot.start)}+${hex(slot.size)}: ${nameOfResult(result)}`,
        -result,
      );
    }
  }

  /** kvm_slot_update_flags */
  #updateFlags(section: MemoryRegionSection): void {
    const slot = this.#slotOf(section);
    if (slot === undefined) return;
    const changed = { ...slot, flags: slotFlags(section.region) };
    this.#set(changed, changed.size);
    this.#slots[this.#slots.indexOf(slot)] = changed;
    this.#dirtyLog?.slotChanged(changed, true);
  }

  #delete(slot: KvmSlot): void {
    this.#dirtyLog?.syncLast(slot);
    this.#set({ ...slot, flags: 0 }, 0);
    this.#slots.splice(this.#slots.indexOf(slot), 1);
    this.#dirtyLog?.slotChanged(slot, false);
  }

  /** kvm_lookup_matching_slot */
  #slotOf(section: MemoryRegionSection): KvmSlot | undefined {
    const pages = wholePages(section);
    return this.#slots.find(({ start, size }) => start === pages?.start && size === pages.size);
  }

  #set(slot: KvmSlot, memorySize: number): void {
    const { region, offsetInRegion, flags } = slot;
    const request: UserMemoryRegion = {
      slot: slot.slot,
      flags,
      guestPhysAddr: BigInt(slot.start),
      memorySize: BigInt(memorySize),
      userspaceAddr: memorySize === 0 ? 0n : BigInt(ramPointer(region, offsetInRegion)),
    };
    try {
      if (this.#kvm.userMemory2) {
        const gmem = (flags & KVM_MEM_GUEST_MEMFD) !== 0;
        this.#kvm.vm.setUserMemoryRegion2({
          ...request,
          guestMemfd: gmem ? region.ramBlock!.guestMemfd : 0,
          guestMemfdOffset: gmem ? BigInt(offsetInRegion) : 0n,
        });
      } else {
        this.#kvm.vm.setUserMemoryRegion(request);
      }
    } catch (error) {
      const doing = memorySize === 0 ? 'unregistering' : 'registering';
      throw VmmError.because(
        `${region.name}: error ${doing} slot ${slot.slot} at ${hex(slot.start)}+${hex(slot.size)} flags ${hex(flags)}`,
        error,
      );
    }
  }

  #freeSlot(region: MemoryRegion): number {
    assert(isPageAligned(region.ramBlock!.host ?? 1), `RAM of ${region.name} starts a host page`);
    for (let id = 0; id < this.#kvm.slots; id++) {
      if (!this.#slots.some(({ slot }) => slot === id)) return id;
    }
    throw new VmmError(`no free slot available for ${region.name}: KVM has ${this.#kvm.slots}`);
  }
}

/** kvm_align_section: a slot has whole pages, and what sticks out at either end stays without. */
function wholePages(
  section: MemoryRegionSection,
): Pick<KvmSlot, 'start' | 'size' | 'offsetInRegion'> | undefined {
  const start = pageAlignUp(section.start);
  const size = pageAlignDown(section.start + section.size) - start;
  if (size <= 0) return undefined;
  return { start, size, offsetInRegion: section.offsetInRegion + start - section.start };
}
