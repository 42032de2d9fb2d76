/**
 * Keeps KVM's memory slots in step with the system address space (QEMU accel/kvm/kvm-all.c: kvm_region_add,
 * kvm_set_phys_mem, kvm_set_user_memory_region). A slot with a guest_memfd is registered through version 2 with no flag but
 * GUEST_MEMFD, and the whole of it is made private at once. A slot that cannot be registered or made private is fatal.
 *
 * Leaves out: dirty logging, splitting of slots that are too large, the SMM address space.
 */
import { KVM_MEM_GUEST_MEMFD, KVM_MEM_READONLY } from '../../abi/kvm.ts';
import { isPageAligned, pageAlignDown, pageAlignUp } from '../../base/address.ts';
import type { UserMemoryRegion } from '../../kernel/interface.ts';
import { assert, hex, nameOfResult, VmmError } from '../error.ts';
import type { KvmState } from '../kvm-state.ts';
import type { MemoryListener, MemoryRegionSection } from './flat-view.ts';
import { type MemoryRegion, memoryRegionHasGuestMemfd, ramPointer } from './memory-region.ts';

/** One registered slot (KVMSlot). */
export interface KvmSlot {
  readonly slot: number;
  readonly start: number;
  readonly size: number;
  readonly flags: number;
  readonly region: MemoryRegion;
}

/** kvm_mem_flags */
export function slotFlags(region: MemoryRegion): number {
  return (
    (region.kind === 'rom' ? KVM_MEM_READONLY : 0) |
    (memoryRegionHasGuestMemfd(region) ? KVM_MEM_GUEST_MEMFD : 0)
  );
}

export class KvmSlots implements MemoryListener {
  readonly #kvm: KvmState;
  readonly #slots: KvmSlot[] = [];

  constructor(kvm: KvmState) {
    this.#kvm = kvm;
  }

  get slots(): readonly KvmSlot[] {
    return this.#slots;
  }

  /** Throws VmmError; the slot does not stay. */
  regionAdd(section: MemoryRegionSection): void {
    if (section.region.kind === 'io') return;
    // A slot has whole pages: what sticks out at either end stays without.
    const start = pageAlignUp(section.start);
    const size = pageAlignDown(section.start + section.size) - start;
    if (size <= 0) return;
    const offset = section.offsetInRegion + start - section.start;
    const slot: KvmSlot = {
      slot: this.#freeSlot(section.region),
      start,
      size,
      flags: slotFlags(section.region),
      region: section.region,
    };
    this.#set(slot, {
      slot: slot.slot,
      flags: slot.flags,
      guestPhysAddr: BigInt(start),
      memorySize: BigInt(size),
      userspaceAddr: BigInt(ramPointer(section.region, offset)),
      offset,
    });
    this.#slots.push(slot);
    if ((slot.flags & KVM_MEM_GUEST_MEMFD) === 0) return;
    const result = this.#kvm.setMemoryAttributesPrivate(start, size);
    if (result < 0) {
      this.#delete(slot);
      throw new VmmError(
        `${section.region.name}: failed to set memory attribute private for ${hex(start)}+${hex(size)}: ${nameOfResult(result)}`,
        -result,
      );
    }
  }

  regionDel(section: MemoryRegionSection): void {
    const slot = this.#slots.find(({ region }) => region === section.region);
    if (slot !== undefined) this.#delete(slot);
  }

  #delete(slot: KvmSlot): void {
    this.#set(slot, {
      slot: slot.slot,
      flags: 0,
      guestPhysAddr: BigInt(slot.start),
      memorySize: 0n,
      userspaceAddr: 0n,
      offset: 0,
    });
    this.#slots.splice(this.#slots.indexOf(slot), 1);
  }

  #set(slot: KvmSlot, request: UserMemoryRegion & { offset: number }): void {
    const { offset, ...region } = request;
    try {
      if (this.#kvm.userMemory2) {
        const gmem = (region.flags & KVM_MEM_GUEST_MEMFD) !== 0;
        this.#kvm.vm.setUserMemoryRegion2({
          ...region,
          guestMemfd: gmem ? slot.region.ramBlock!.guestMemfd : 0,
          guestMemfdOffset: gmem ? BigInt(offset) : 0n,
        });
      } else {
        this.#kvm.vm.setUserMemoryRegion(region);
      }
    } catch (error) {
      const doing = region.memorySize === 0n ? 'unregistering' : 'registering';
      throw VmmError.because(
        `${slot.region.name}: error ${doing} slot ${slot.slot} at ${hex(slot.start)}+${hex(slot.size)} flags ${hex(slot.flags)}`,
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
