/** KVM_CREATE_GUEST_MEMFD and what its file can do, on a VM of type DEFAULT (reference facts 1.3). */
import type { Hva } from '../../../src/base/address.ts';
import type { Row, Spec, Subject } from './spec-subject.ts';

const create = (title: string, request: { size?: bigint; flags?: bigint }, want: string): Row => ({
  title,
  act: (subject) => void subject.gmem(request),
  want,
});

/** mode, offset, length */
const allocate = (
  title: string,
  mode: number,
  offset: bigint,
  length: bigint,
  want: string,
  flags = 0n,
): Row => ({
  title,
  act: (subject) => subject.process.fallocate(subject.gmem({ flags }), mode, offset, length),
  want,
});

const SHARED = 1;
const PRIVATE = 2;
/** MMAP | INIT_SHARED */
const MAPPABLE = 3n;

function map(subject: Subject, flags: bigint, sharing = SHARED, pages = 16): Hva {
  const fd = subject.gmem({ flags });
  return subject.process.memory.mmap({ length: pages * 0x1000, protection: 3, flags: sharing, fd });
}

function readByte(subject: Subject, address: number): number {
  const byte = new Uint8Array(1);
  subject.process.memory.read(address as Hva, byte);
  return byte[0]!;
}

export const guestMemfdSpec: Spec = {
  title: 'guest_memfd',
  rows: [
    create('without flags', {}, 'OK'),
    create('flag MMAP', { flags: 1n }, 'OK'),
    create('flag INIT_SHARED', { flags: 2n }, 'OK'),
    create('both flags', { flags: 3n }, 'OK'),
    create('an unknown flag', { flags: 1n << 63n }, 'EINVAL'),
    create('size 0', { size: 0n }, 'EINVAL'),
    create('a negative size', { size: 1n << 63n }, 'EINVAL'),
    create('a size within a page', { size: 0x1800n }, 'EINVAL'),
    {
      title: 'INIT_SHARED on a VM with private memory',
      needs: 'private memory',
      act: (subject) => void subject.gmem({ flags: 2n }, subject.newVm(1)),
      want: 'EINVAL',
    },
    {
      title: 'MMAP on a VM with private memory',
      needs: 'private memory',
      act: (subject) => void subject.gmem({ flags: 1n }, subject.newVm(1)),
      want: 'OK',
    },
    {
      title: 'its size is what was asked for, in blocks of a page',
      act(subject) {
        const { size, blockSize } = subject.process.fstat(subject.gmem({ size: 0x5000n }));
        return { size, blockSize };
      },
      want: { size: 0x5000n, blockSize: 4096 },
    },
    {
      title: 'its size stays',
      act: (subject) => subject.process.ftruncate(subject.gmem(), 0x20000n),
      want: 'EINVAL',
    },
    {
      title: 'read',
      act: (subject) => subject.process.pread(subject.gmem(), new Uint8Array(8), 0n),
      want: 'ESPIPE',
    },
    {
      title: 'written',
      act: (subject) => subject.process.pwrite(subject.gmem(), new Uint8Array(8), 0n),
      want: 'ESPIPE',
    },
    { title: 'mapped without MMAP', act: (subject) => void map(subject, 0n), want: 'ENODEV' },
    {
      title: 'mapped as private copy',
      act: (subject) => void map(subject, MAPPABLE, PRIVATE),
      want: 'EINVAL',
    },
    { title: 'mapped shared', act: (subject) => void map(subject, MAPPABLE), want: 'OK' },
    {
      title: 'a page of a mapping without INIT_SHARED',
      act: (subject) => readByte(subject, map(subject, 1n)),
      want: 'EFAULT/SIGBUS',
    },
    {
      title: 'a new page reads 0',
      act: (subject) => readByte(subject, map(subject, MAPPABLE) + 0x3000),
      want: 0,
    },
    {
      title: 'a page beyond its end',
      act: (subject) => readByte(subject, map(subject, MAPPABLE, SHARED, 17) + 0x10000),
      want: 'EFAULT/SIGBUS',
    },
    allocate('fallocate without KEEP_SIZE', 0, 0n, 0x1000n, 'EOPNOTSUPP'),
    allocate('fallocate with ZERO_RANGE', 0x11, 0n, 0x1000n, 'EOPNOTSUPP'),
    allocate('fallocate of whole pages', 1, 0x1000n, 0x2000n, 'OK'),
    allocate('fallocate from within a page', 1, 0x800n, 0x1000n, 'EINVAL'),
    allocate('fallocate up to within a page', 1, 0n, 0x800n, 'EINVAL'),
    allocate('fallocate of nothing', 1, 0n, 0n, 'EINVAL'),
    allocate('fallocate beyond the end', 1, 0xf000n, 0x2000n, 'EINVAL'),
    allocate('a hole beyond the end', 3, 0xf000n, 0x2000n, 'OK'),
    allocate('a hole from within a page', 3, 0x800n, 0x1000n, 'EINVAL'),
    {
      title: 'what was in a hole reads 0, its neighbour stays',
      act(subject) {
        const fd = subject.gmem({ flags: MAPPABLE });
        const at = subject.process.memory.mmap({ length: 0x10000, protection: 3, flags: SHARED, fd });
        subject.process.memory.write((at + 0xfff) as Hva, Uint8Array.of(7, 9));
        subject.process.fallocate(fd, 3, 0n, 0x1000n);
        return [readByte(subject, at + 0xfff), readByte(subject, at + 0x1000)];
      },
      want: [0, 9],
    },
  ],
};
