/**
 * KVM_SET_USER_MEMORY_REGION and …_REGION2 on a VM of type DEFAULT, in the order of the checks (reference facts 1.4). The largest slot
 * that may be, 2^31 − 1 pages, is left out: the real kernel fills tables for it for a minute.
 */
import type { UserMemoryRegion2 } from '../../../src/kernel/interface.ts';
import type { Row, Spec, Subject } from './spec-subject.ts';

/** A row of one call on a VM without slots. */
const fresh = (title: string, region: Partial<UserMemoryRegion2>, want: string): Row => ({
  title,
  act: (subject) => subject.set(region),
  want,
});

/** A row of one call on a VM with slot 1: 16 pages at gpa 0x10000. */
const modify = (title: string, region: Partial<UserMemoryRegion2>, want: string): Row => ({
  title,
  act(subject) {
    subject.set();
    subject.set(region);
  },
  want,
});

/** A row of one call that has a guest_memfd of 16 pages. */
const bind = (
  title: string,
  region: (subject: Subject, fd: number) => Partial<UserMemoryRegion2>,
  want: string,
): Row => ({
  title,
  act(subject) {
    const fd = subject.gmem();
    subject.set({ flags: 4, guestMemfd: fd, ...region(subject, fd) });
  },
  want,
});

const first = (flags: number, want: string): Row => ({
  title: `the first ioctl with flags ${flags}`,
  act: ({ vm }) =>
    vm.setUserMemoryRegion({
      ...{ slot: 1, flags, guestPhysAddr: 0x10000n, memorySize: 0x10000n, userspaceAddr: 0x10_0000n },
    }),
  want,
});

export const memoryRegionSpec: Spec = {
  title: 'memory regions',
  rows: [
    first(0, 'OK'),
    first(3, 'OK'),
    first(4, 'EINVAL'),
    first(8, 'EINVAL'),
    fresh('slot 32763 is the last', { slot: 32763 }, 'OK'),
    fresh('slot 32764', { slot: 32764 }, 'EINVAL'),
    fresh('flags LOG_DIRTY_PAGES', { flags: 1 }, 'OK'),
    fresh('flags READONLY', { flags: 2 }, 'OK'),
    fresh('an unknown flag', { flags: 8 }, 'EINVAL'),
    bind('GUEST_MEMFD with LOG_DIRTY_PAGES', () => ({ flags: 5 }), 'EINVAL'),
    bind('GUEST_MEMFD with READONLY', () => ({ flags: 6 }), 'EINVAL'),
    fresh('a size of one page and a half', { memorySize: 0x1800n }, 'EINVAL'),
    fresh('a gpa within a page', { guestPhysAddr: 0x10800n }, 'EINVAL'),
    fresh('a host address within a page', { userspaceAddr: 0x10_0800n }, 'EINVAL'),
    fresh('host address 0', { userspaceAddr: 0n }, 'OK'),
    fresh('the kernel’s half of host addresses', { userspaceAddr: 0x8000_0000_0000_0000n }, 'EINVAL'),
    fresh('host addresses that end above 2^63', { userspaceAddr: 0x7fff_ffff_ffff_f000n }, 'EINVAL'),
    bind('an offset within a page of the guest_memfd', () => ({ guestMemfdOffset: 0x800n }), 'EINVAL'),
    bind(
      'an offset that wraps with the size',
      () => ({ guestMemfdOffset: 0xffff_ffff_ffff_f000n }),
      'EINVAL',
    ),
    fresh('address space 1', { slot: 0x1_0001 }, 'OK'),
    fresh('address space 2', { slot: 0x2_0001 }, 'EINVAL'),
    fresh('a gpa that wraps with the size', { guestPhysAddr: 0xffff_ffff_ffff_f000n }, 'EINVAL'),
    fresh('2^31 pages', { memorySize: 0x800_0000_0000n, userspaceAddr: 0n }, 'EINVAL'),
    fresh('deleting an absent slot', { memorySize: 0n }, 'EINVAL'),
    modify('deleting a slot', { memorySize: 0n }, 'OK'),
    {
      title: 'deleting a slot twice',
      act(subject) {
        subject.set();
        subject.set({ memorySize: 0n });
        subject.set({ memorySize: 0n });
      },
      want: 'EINVAL',
    },
    modify('the same again', {}, 'OK'),
    modify('another host address', { userspaceAddr: 0x20_0000n }, 'EINVAL'),
    modify('another size', { memorySize: 0x8000n }, 'EINVAL'),
    modify('turned READONLY', { flags: 2 }, 'EINVAL'),
    modify('turned GUEST_MEMFD', { flags: 4 }, 'EINVAL'),
    modify('LOG_DIRTY_PAGES switched on', { flags: 1 }, 'OK'),
    modify('moved', { guestPhysAddr: 0x40000n }, 'OK'),
    modify('moved over its own place', { guestPhysAddr: 0x11000n }, 'OK'),
    modify('a second slot over its last page', { slot: 2, guestPhysAddr: 0x1f000n }, 'EEXIST'),
    modify('a second slot right behind it', { slot: 2, guestPhysAddr: 0x20000n }, 'OK'),
    modify('a second slot over it in the other address space', { slot: 0x1_0002 }, 'OK'),
    {
      title: 'moved over another slot',
      act(subject) {
        subject.set();
        subject.set({ slot: 2, guestPhysAddr: 0x40000n });
        subject.set({ slot: 2, guestPhysAddr: 0x1f000n });
      },
      want: 'EEXIST',
    },
    bind('bound to a guest_memfd', () => ({}), 'OK'),
    bind('bound to a descriptor that is not open', () => ({ guestMemfd: 0x7fff_ff00 }), 'EBADF'),
    bind('bound to a memfd', ({ process }) => ({ guestMemfd: process.memfdCreate('plain') }), 'EINVAL'),
    bind(
      'bound to another VM’s file',
      (subject) => ({ guestMemfd: subject.gmem({}, subject.newVm(0)) }),
      'EINVAL',
    ),
    bind('bound beyond the end of the file', () => ({ guestMemfdOffset: 0x1000n }), 'EINVAL'),
    {
      title: 'pages of a file bound twice',
      act(subject) {
        const fd = subject.gmem();
        subject.set({ flags: 4, guestMemfd: fd });
        subject.set({ slot: 2, flags: 4, guestMemfd: fd, guestPhysAddr: 0x40000n });
      },
      want: 'EEXIST',
    },
    {
      title: 'a slot with a guest_memfd given again as it is',
      act(subject) {
        const fd = subject.gmem();
        subject.set({ flags: 4, guestMemfd: fd });
        subject.set({ flags: 4, guestMemfd: fd });
      },
      want: 'EINVAL',
    },
    {
      title: 'a slot with a guest_memfd deleted with its flag and no file',
      act(subject) {
        subject.set({ flags: 4, guestMemfd: subject.gmem() });
        subject.set({ flags: 4, guestMemfd: 0x7fff_ff00, memorySize: 0n });
      },
      want: 'OK',
    },
    {
      title: 'pages of a file bound again after their slot was deleted',
      act(subject) {
        const fd = subject.gmem();
        subject.set({ flags: 4, guestMemfd: fd });
        subject.set({ memorySize: 0n });
        subject.set({ slot: 2, flags: 4, guestMemfd: fd });
      },
      want: 'OK',
    },
    fresh('beyond the physical addresses', { guestPhysAddr: 0x10_0000_0000_0000n }, 'EINVAL'),
  ],
};
