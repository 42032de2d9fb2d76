/** The shapes of `kernel/interface.ts` as the structures of KVM's ioctls (abi/kvm-structs.ts), and back. No behaviour. */
import {
  kvm_cpuid_entry2,
  kvm_cpuid2,
  kvm_irq_routing,
  kvm_irq_routing_entry,
  kvm_msi,
  kvm_sregs,
  kvm_userspace_memory_region,
  kvm_userspace_memory_region2,
} from '../abi/kvm-structs.ts';
import type {
  CpuidEntry,
  GsiRoute,
  MsiMessage,
  Sregs,
  UserMemoryRegion,
  UserMemoryRegion2,
} from '../kernel/interface.ts';

const regionOf = (region: UserMemoryRegion) => ({
  slot: region.slot,
  flags: region.flags >>> 0,
  guest_phys_addr: region.guestPhysAddr,
  memory_size: region.memorySize,
  userspace_addr: region.userspaceAddr,
});

export const encodeRegion = (region: UserMemoryRegion): Uint8Array =>
  kvm_userspace_memory_region.encode(regionOf(region));

export const encodeRegion2 = (region: UserMemoryRegion2): Uint8Array =>
  kvm_userspace_memory_region2.encode({
    ...regionOf(region),
    guest_memfd_offset: region.guestMemfdOffset,
    guest_memfd: region.guestMemfd >>> 0,
  });

export const encodeMsi = ({ addressLo, addressHi, data, flags, devid }: MsiMessage): Uint8Array =>
  kvm_msi.encode({
    address_lo: addressLo >>> 0,
    address_hi: addressHi >>> 0,
    data: data >>> 0,
    flags,
    devid,
  });

/** `struct kvm_irq_routing` with its entries. */
export function encodeGsiRouting(routes: readonly GsiRoute[], flags: number): Uint8Array {
  const { size } = kvm_irq_routing_entry;
  const bytes = new Uint8Array(kvm_irq_routing.size + routes.length * size);
  bytes.set(kvm_irq_routing.encode({ nr: routes.length, flags }));
  for (const [index, { gsi, type, flags, msi }] of routes.entries()) {
    const entry = kvm_irq_routing_entry.encode({
      ...{ gsi, type, flags },
      ...{ address_lo: msi.addressLo >>> 0, address_hi: msi.addressHi >>> 0, data: msi.data >>> 0 },
    });
    bytes.set(entry, kvm_irq_routing.size + index * size);
  }
  return bytes;
}

export function encodeSregs(sregs: Sregs): Uint8Array {
  const { apicBase, interruptBitmap, ...same } = sregs;
  return kvm_sregs.encode({ ...same, apic_base: apicBase, interrupt_bitmap: interruptBitmap });
}

export function decodeSregs(bytes: Uint8Array): Sregs {
  const { apic_base, interrupt_bitmap, ...same } = kvm_sregs.decode(bytes);
  return { ...same, apicBase: apic_base, interruptBitmap: interrupt_bitmap };
}

/** `struct kvm_cpuid2` with room for `room` entries. */
export function encodeCpuid(entries: readonly CpuidEntry[], room = entries.length): Uint8Array {
  const bytes = new Uint8Array(kvm_cpuid2.size + room * kvm_cpuid_entry2.size);
  bytes.set(kvm_cpuid2.encode({ nent: room }));
  entries.forEach((entry, index) => {
    bytes.set(kvm_cpuid_entry2.encode(entry), kvm_cpuid2.size + index * kvm_cpuid_entry2.size);
  });
  return bytes;
}

export function decodeCpuid(bytes: Uint8Array): CpuidEntry[] {
  const { nent } = kvm_cpuid2.decode(bytes);
  return Array.from({ length: nent }, (_, index) => {
    const { padding, ...entry } = kvm_cpuid_entry2.decode(
      bytes.subarray(kvm_cpuid2.size + index * kvm_cpuid_entry2.size),
    );
    return entry;
  });
}
