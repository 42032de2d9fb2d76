/** kvm_read_guest and kvm_write_guest: the kernel's own accesses to a guest's shared memory, through the VMM's mapping. False: the bytes are not all there. */
import { type Gfn, type Gpa, gfnOf, type Hva, offsetBy, PAGE_SIZE } from '../../base/address.ts';
import { LinuxError } from '../../base/errors.ts';
import type { ProcessMemory } from '../interface.ts';
import { type FaultSlot, hvaOfGfn } from './mmu/guest-memory.ts';

interface Guest {
  readonly process: { readonly memory: ProcessMemory };
  readonly slots: { find(gfn: Gfn): FaultSlot | undefined };
}

/** Where the VMM has the byte at `gpa`; undefined: nowhere. */
export function hvaOf(guest: Guest, gpa: Gpa): Hva | undefined {
  const gfn = gfnOf(gpa);
  const slot = guest.slots.find(gfn);
  return slot === undefined ? undefined : offsetBy(hvaOfGfn(slot, gfn), gpa % PAGE_SIZE);
}

export function readGuest(guest: Guest, gpa: Gpa, into: Uint8Array): boolean {
  return eachPage(guest, gpa, into, (address, part) => guest.process.memory.read(address, part));
}

export function writeGuest(guest: Guest, gpa: Gpa, from: Uint8Array): boolean {
  return eachPage(guest, gpa, from, (address, part) => guest.process.memory.write(address, part));
}

function eachPage(
  guest: Guest,
  gpa: number,
  bytes: Uint8Array,
  access: (address: Hva, part: Uint8Array) => void,
): boolean {
  for (let done = 0; done < bytes.length; ) {
    const at = (gpa + done) as Gpa;
    const count = Math.min(PAGE_SIZE - (at % PAGE_SIZE), bytes.length - done);
    const address = hvaOf(guest, at);
    if (address === undefined) return false;
    try {
      access(address, bytes.subarray(done, done + count));
    } catch (error) {
      if (error instanceof LinuxError) return false;
      throw error;
    }
    done += count;
  }
  return true;
}
