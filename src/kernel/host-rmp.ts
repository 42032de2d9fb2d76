/**
 * The host kernel's hand on the RMP (Linux arch/x86/virt/svm/sev.c: rmp_make_private, rmp_make_shared, psmash, snp_lookup_rmpentry): pages that become a guest's or
 * firmware's, and come back. Levels are KVM's: 1 is 4 KiB, 2 is 2 MiB.
 */
import { type Gpa, type Pfn, spaOf } from '../base/address.ts';
import { ERRNO } from '../base/errors.ts';
import type { HostMemory } from '../hardware/memory/host-memory.ts';
import { RMP_RESULT } from '../hardware/memory/rmp.ts';

const LEVEL_4K = 1;
const LEVEL_2M = 2;

/** Gives the page to the guest of `asid` at `gpa`. `immutable`: for firmware, which makes it mutable (LAUNCH_UPDATE). 0 or −EFAULT. */
export function makePrivate(
  memory: HostMemory,
  frame: Pfn,
  page: { gpa: Gpa; level: number; asid: number; state: 'guest' | 'pre-guest' },
): number {
  const result = memory.rmp!.rmpupdate(spaOf(frame), {
    assigned: true,
    large: page.level === LEVEL_2M,
    immutable: page.state === 'pre-guest',
    gpa: page.gpa,
    asid: page.asid,
  });
  return result === RMP_RESULT.SUCCESS ? 0 : -ERRNO.EFAULT;
}

/** Gives the page to firmware. 0 or −EFAULT. */
export function makeFirmware(memory: HostMemory, frame: Pfn): number {
  const result = memory.rmp!.rmpupdate(spaOf(frame), {
    assigned: true,
    large: false,
    immutable: true,
    gpa: 0,
    asid: 0,
  });
  return result === RMP_RESULT.SUCCESS ? 0 : -ERRNO.EFAULT;
}

/** Takes the page back. 0 or −EFAULT. */
export function makeShared(memory: HostMemory, frame: Pfn, level: number): number {
  const result = memory.rmp!.rmpupdate(spaOf(frame), {
    assigned: false,
    large: level === LEVEL_2M,
    immutable: false,
    gpa: 0,
    asid: 0,
  });
  return result === RMP_RESULT.SUCCESS ? 0 : -ERRNO.EFAULT;
}

/** Cuts the 2 MiB page around `frame` into small ones. 0 or −EFAULT. */
export function smash(memory: HostMemory, frame: Pfn): number {
  const first = (frame - (frame % 512)) as Pfn;
  return memory.rmp!.psmash(spaOf(first)) === RMP_RESULT.SUCCESS ? 0 : -ERRNO.EFAULT;
}

/** Whether the page is assigned, and its level in the RMP. */
export function lookup(memory: HostMemory, frame: Pfn): { assigned: boolean; level: number } {
  const rmp = memory.rmp!;
  return { assigned: rmp.assigned(frame), level: rmp.isLarge(frame) ? LEVEL_2M : LEVEL_4K };
}
