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
import { checkEntries } from '../abi/layout.ts';
import { membersOf } from '../abi/member-names.ts';
import type {
  CpuidEntry,
  GsiRoute,
  MsiMessage,
  Sregs,
  UserMemoryRegion,
  UserMemoryRegion2,
} from '../kernel/interface.ts';

/** A request's bytes. Errors: what `Layout.check` refuses; in contrast to `encode`, no member may be left out. */
export function encodeRequest<Value>(
  layout: { check(value: Value): void; encode(value: Value): Uint8Array },
  value: Value,
): Uint8Array {
  layout.check(value);
  return layout.encode(value);
}

export const encodeRegion = ({
  slot,
  flags,
  guestPhysAddr,
  memorySize,
  userspaceAddr,
}: UserMemoryRegion): Uint8Array =>
  encodeRequest(
    kvm_userspace_memory_region,
    membersOf({ slot, flags, guestPhysAddr, memorySize, userspaceAddr }),
  );

export const encodeRegion2 = (region: UserMemoryRegion2): Uint8Array =>
  encodeRequest(kvm_userspace_memory_region2, { ...membersOf(region), pad1: 0, pad2: [] });

export const encodeMsi = (message: MsiMessage): Uint8Array => encodeRequest(kvm_msi, membersOf(message));

/** `struct kvm_irq_routing` with its entries. */
export function encodeGsiRouting(routes: readonly GsiRoute[], flags: number): Uint8Array {
  checkEntries(routes, 'kvm_irq_routing.entries');
  const { size } = kvm_irq_routing_entry;
  const bytes = new Uint8Array(kvm_irq_routing.size + routes.length * size);
  bytes.set(encodeRequest(kvm_irq_routing, { nr: routes.length, flags }));
  for (const [index, { gsi, type, flags, msi }] of routes.entries()) {
    const entry = { ...membersOf(msi), gsi, type, flags, devid: 0 };
    bytes.set(encodeRequest(kvm_irq_routing_entry, entry), kvm_irq_routing.size + index * size);
  }
  return bytes;
}

export function encodeSregs(sregs: Sregs): Uint8Array {
  return encodeRequest(kvm_sregs, membersOf(sregs));
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
    bytes.set(encodeRequest(kvm_cpuid_entry2, entry), kvm_cpuid2.size + index * kvm_cpuid_entry2.size);
  });
  return bytes;
}

export function decodeCpuid(bytes: Uint8Array): CpuidEntry[] {
  const { nent } = kvm_cpuid2.decode(bytes);
  return Array.from({ length: nent }, (_, index) =>
    kvm_cpuid_entry2.decode(bytes.subarray(kvm_cpuid2.size + index * kvm_cpuid_entry2.size)),
  );
}
