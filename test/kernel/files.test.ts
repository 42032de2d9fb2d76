import { describe, expect, it } from 'vitest';
import { FileTable, OpenFile } from '../../src/kernel/files.ts';
import { Tmpfs } from '../../src/kernel/tmpfs.ts';
import { failure, pattern, startProcess } from './process-fixture.ts';

const bytes = (length: number): Uint8Array => new Uint8Array(length);

describe('file descriptors', () => {
  it('are the lowest free ones from 3 on', () => {
    const { process } = startProcess();
    expect([process.memfdCreate('a'), process.memfdCreate('b'), process.memfdCreate('c')]).toEqual([3, 4, 5]);
    process.close(4);
    process.close(3);
    expect(process.memfdCreate('d')).toBe(3);
    expect(process.dup(5)).toBe(4);
    expect(process.files.open()).toEqual([3, 4, 5]);
  });

  it('are all closed at exit, though one file’s end closes another', () => {
    const { process, memory } = startProcess();
    const at = process.memory.mmap({ length: 0x1000, protection: 3, flags: 1, fd: process.memfdCreate('a') });
    process.ftruncate(3, 0x1000n);
    process.memory.write(at, Uint8Array.of(1));
    process.memory.munmap(at, 0x1000);
    process.memfdCreate('b');
    const stop = memory.trace.listen(({ what }) => {
      if (what === 'free' && process.files.open().includes(4)) process.close(4);
    });
    process.files.closeAll();
    stop();
    expect(process.files.open()).toEqual([]);
  });

  it('run out with EMFILE, and nothing is left of the file that got none', () => {
    const { process } = startProcess({ fileLimit: 5 });
    process.memfdCreate('a');
    process.open('/x');
    expect(failure(() => process.memfdCreate('b'))).toBe('EMFILE');
    expect(failure(() => process.open('/y'))).toBe('EMFILE');
    expect(failure(() => process.dup(3))).toBe('EMFILE');
    process.close(3);
    expect(failure(() => process.open('/y', { readOnly: true }))).toBe('ENOENT');
    expect(process.memfdCreate('b')).toBe(3);
  });

  it.each([-1, 0, 3, 4, 1.5, 1000000])('number %d that is not open gives EBADF everywhere', (fd) => {
    const { process } = startProcess();
    expect(failure(() => process.close(fd))).toBe('EBADF');
    expect(failure(() => process.dup(fd))).toBe('EBADF');
    expect(failure(() => process.ftruncate(fd, 0n))).toBe('EBADF');
    expect(failure(() => process.fstat(fd))).toBe('EBADF');
    expect(failure(() => process.pread(fd, bytes(1), 0n))).toBe('EBADF');
    expect(failure(() => process.pwrite(fd, bytes(1), 0n))).toBe('EBADF');
    expect(failure(() => process.fallocate(fd, 0, 0n, 1n))).toBe('EBADF');
  });

  it('release a file with its last holder, once', () => {
    let released = 0;
    const table = new FileTable();
    const file = new OpenFile({ name: 'test', release: () => released++ });
    const fd = table.install(file);
    const other = table.dup(fd);
    file.hold();
    table.close(fd);
    table.close(other);
    expect(released).toBe(0);
    file.drop();
    expect(released).toBe(1);
  });
});

describe('a file without operations (such as /dev/kvm)', () => {
  it.each<[string, string, (file: OpenFile) => unknown]>([
    ['read', 'EINVAL', (file) => file.read(bytes(1))],
    ['write', 'EINVAL', (file) => file.write(bytes(1))],
    ['pread', 'ESPIPE', (file) => file.pread(bytes(1), 0n)],
    ['pwrite', 'ESPIPE', (file) => file.pwrite(bytes(1), 0n)],
    ['ftruncate', 'EINVAL', (file) => file.truncate(4096n)],
    ['fallocate', 'ENODEV', (file) => file.fallocate(0, 0n, 4096n)],
  ])('fails %s with %s', (_, errno, call) => {
    expect(failure(() => call(new OpenFile({ name: 'test' })))).toBe(errno);
  });

  it('has size 0 and block size 4096', () => {
    expect(new OpenFile({ name: 'test' }).stat()).toEqual({ size: 0n, blockSize: 4096 });
  });
});

describe('a shared memory object', () => {
  it('starts empty and is as long as ftruncate says', () => {
    const { process } = startProcess();
    const fd = process.memfdCreate('ram');
    expect(process.fstat(fd)).toMatchObject({ size: 0n, blockSize: 4096 });
    process.ftruncate(fd, 0x10000000000n);
    expect(process.fstat(fd).size).toBe(0x10000000000n);
    expect(process.pread(fd, bytes(10), 0xfffffffffan)).toBe(6);
    expect(process.pread(fd, bytes(10), 0xfffffffffffn)).toBe(0);
    expect(process.pread(fd, bytes(10), 0xffffffff00n)).toBe(10);
  });

  it('keeps what is written, across pages, and reads zeros in holes', () => {
    const { process, memory } = startProcess();
    const fd = process.memfdCreate('ram');
    const data = pattern(10000, 1);
    expect(process.pwrite(fd, data, 8190n)).toBe(10000);
    expect(process.fstat(fd)).toEqual({ size: 18190n, blockSize: 4096, pages: 4 });
    const back = bytes(20000);
    expect(process.pread(fd, back, 0n)).toBe(18190);
    expect(back.subarray(0, 8190)).toEqual(bytes(8190));
    expect(back.subarray(8190, 18190)).toEqual(data);
    expect(memory.usage().get('shmem')).toBe(4);
  });

  it('reads and writes at the position of the open file', () => {
    const { process } = startProcess();
    const file = process.files.get(process.open('/f'));
    expect(file.write(new Uint8Array([1, 2, 3]))).toBe(3);
    expect(file.write(new Uint8Array([4]))).toBe(1);
    const other = process.files.get(process.open('/f'));
    const back = bytes(3);
    expect(other.read(back)).toBe(3);
    expect([...back]).toEqual([1, 2, 3]);
    expect(other.read(back)).toBe(1);
    expect(back[0]).toBe(4);
    expect(other.read(back)).toBe(0);
  });

  it('loses what truncation cuts, to the byte', () => {
    const { process, memory } = startProcess();
    const fd = process.memfdCreate('ram');
    process.pwrite(fd, bytes(12288).fill(7), 0n);
    process.ftruncate(fd, 4100n);
    process.ftruncate(fd, 12288n);
    const back = bytes(12288);
    process.pread(fd, back, 0n);
    expect(back.indexOf(0)).toBe(4100);
    expect(back.lastIndexOf(7)).toBe(4099);
    expect(memory.usage().get('shmem')).toBe(2);
  });

  it.each<[string, number, bigint, bigint, string]>([
    ['negative offset', 3, -4096n, 4096n, 'EINVAL'],
    ['length 0', 0, 0n, 0n, 'EINVAL'],
    ['negative length', 0, 0n, -1n, 'EINVAL'],
    ['a punch that does not keep the size', 2, 0n, 4096n, 'EOPNOTSUPP'],
    ['an unknown mode', 0x200, 0n, 4096n, 'EOPNOTSUPP'],
    ['zeroing', 0x10, 0n, 4096n, 'EOPNOTSUPP'],
    ['collapsing', 8, 0n, 4096n, 'EOPNOTSUPP'],
    ['two modes at once', 0x1b, 0n, 4096n, 'EOPNOTSUPP'],
    ['an end beyond the largest file', 0, 0x7fffffffffffe000n, 0x1000n, 'EFBIG'],
    ['an end beyond 2^63', 0, 0x7ffffffffffff000n, 0x2000n, 'EFBIG'],
  ])('refuses fallocate with %s', (_, mode, offset, length, errno) => {
    const { process } = startProcess();
    const fd = process.memfdCreate('ram');
    expect(failure(() => process.fallocate(fd, mode, offset, length))).toBe(errno);
    expect(process.fstat(fd)).toMatchObject({ size: 0n, pages: 0 });
  });

  it('allocates pages, growing the file unless told to keep its size', () => {
    const { process } = startProcess();
    const fd = process.memfdCreate('ram');
    process.fallocate(fd, 0, 4000n, 200n);
    expect(process.fstat(fd)).toMatchObject({ size: 4200n, pages: 2 });
    process.fallocate(fd, 1, 0n, 16384n);
    expect(process.fstat(fd)).toMatchObject({ size: 4200n, pages: 4 });
  });

  it('has holes punched: whole pages go, parts are zeroed', () => {
    const { process } = startProcess();
    const fd = process.memfdCreate('ram');
    process.pwrite(fd, bytes(20480).fill(9), 0n);
    process.fallocate(fd, 3, 4095n, 8194n);
    expect(process.fstat(fd)).toMatchObject({ size: 20480n, pages: 3 });
    const back = bytes(20480);
    process.pread(fd, back, 0n);
    expect(back.indexOf(0)).toBe(4095);
    expect(back.indexOf(9, 4095)).toBe(12289);
    process.fallocate(fd, 3, 100n, 50n);
    process.pread(fd, back, 0n);
    expect([back[99], back[100], back[149], back[150]]).toEqual([9, 0, 0, 9]);
    expect(process.fstat(fd)).toMatchObject({ pages: 3 });
  });

  it('may be punched where no file reaches', () => {
    const { process } = startProcess();
    const fd = process.memfdCreate('ram');
    process.pwrite(fd, bytes(8192).fill(9), 0n);
    process.fallocate(fd, 3, 0x7ffffffffffff000n, 0xffen);
    process.fallocate(fd, 3, 4096n, 0x7fffffffffff0000n);
    expect(process.fstat(fd)).toMatchObject({ size: 8192n, pages: 1 });
  });

  it('tells its operations of a range beyond every file, misaligned as it is', () => {
    const calls: number[][] = [];
    const file = new OpenFile({ name: 'test', fallocate: (...call) => calls.push(call) });
    file.fallocate(3, 0x7fffffffffff0001n, 4096n);
    expect(calls[0]![1]).toBeGreaterThan(2 ** 52);
    expect(calls[0]![1]! % 4096).toBe(1);
    expect(calls[0]![2]).toBe(4096);
  });

  it('fails with ENOMEM when the host is full, and keeps what it had', () => {
    const { process, memory } = startProcess({ bytes: 0x100000 });
    const fd = process.memfdCreate('ram');
    process.pwrite(fd, pattern(8192, 3), 0n);
    const free = memory.freeFrames;
    expect(failure(() => process.fallocate(fd, 0, 0n, 0x10000000000n))).toBe('ENOMEM');
    expect(failure(() => process.fallocate(fd, 0, 0n, BigInt(free + 3) * 4096n))).toBe('ENOMEM');
    expect(memory.freeFrames).toBe(free);
    expect(process.pwrite(fd, bytes(0x200000), 8192n)).toBe(free * 4096);
    expect(failure(() => process.pwrite(fd, bytes(1), 0x200000n))).toBe('ENOMEM');
    const back = bytes(8192);
    process.pread(fd, back, 0n);
    expect(back).toEqual(pattern(8192, 3));
    process.ftruncate(fd, 0n);
    expect(memory.leaks()).toEqual([]);
  });

  it.each<[string, string, (process: ReturnType<typeof startProcess>['process'], fd: number) => unknown]>([
    ['pread at a negative offset', 'EINVAL', (p, fd) => p.pread(fd, bytes(1), -1n)],
    ['pread on a bad fd at a negative offset', 'EINVAL', (p) => p.pread(99, bytes(1), -1n)],
    ['pread past 2^63', 'EINVAL', (p, fd) => p.pread(fd, bytes(1), 0x7fffffffffffffffn)],
    ['pread far beyond the end', 'OK', (p, fd) => p.pread(fd, bytes(1), 0x7ffffffffffff000n)],
    ['pwrite at a negative offset', 'EINVAL', (p, fd) => p.pwrite(fd, bytes(1), -1n)],
    ['pwrite beyond the largest file', 'EFBIG', (p, fd) => p.pwrite(fd, bytes(1), 0x7ffffffffffff000n)],
    ['ftruncate to a negative size', 'EINVAL', (p, fd) => p.ftruncate(fd, -1n)],
    ['ftruncate of a bad fd to a negative size', 'EINVAL', (p) => p.ftruncate(99, -1n)],
    ['ftruncate beyond the largest file', 'EFBIG', (p, fd) => p.ftruncate(fd, 0x7fffffffffffffffn)],
    ['memfd_create with 249 bytes of name', 'OK', (p) => p.memfdCreate('x'.repeat(249))],
    ['memfd_create with 250 bytes of name', 'EINVAL', (p) => p.memfdCreate('x'.repeat(250))],
  ])('%s gives %s', (_, errno, call) => {
    const { process } = startProcess();
    const fd = process.memfdCreate('ram');
    expect(failure(() => call(process, fd))).toBe(errno);
  });
});

describe('a file of tmpfs', () => {
  it('is found again by its path, in other processes too, after it was closed', () => {
    const first = startProcess();
    const tmpfs = new Tmpfs(first.memory);
    const a = startProcess({ memory: first.memory, tmpfs }).process;
    const b = startProcess({ memory: first.memory, tmpfs }).process;
    const fd = a.open('/dev/shm/ram');
    a.pwrite(fd, pattern(5000, 2), 0n);
    a.close(fd);
    const again = b.open('/dev/shm/ram', { readOnly: true });
    const back = bytes(5000);
    expect(b.pread(again, back, 0n)).toBe(5000);
    expect(back).toEqual(pattern(5000, 2));
    b.unlink('/dev/shm/ram');
    expect(first.memory.usage().get('shmem')).toBe(2);
    b.close(again);
    expect(first.memory.usage().get('shmem')).toBeUndefined();
    expect(failure(() => b.open('/dev/shm/ram', { readOnly: true }))).toBe('ENOENT');
    tmpfs.unmount();
  });

  it('that is open read-only cannot be changed', () => {
    const { process } = startProcess();
    process.pwrite(process.open('/f'), bytes(4096).fill(1), 0n);
    const fd = process.open('/f', { readOnly: true });
    expect(failure(() => process.pwrite(fd, bytes(1), 0n))).toBe('EBADF');
    expect(failure(() => process.ftruncate(fd, 0n))).toBe('EINVAL');
    expect(failure(() => process.fallocate(fd, 3, 0n, 4096n))).toBe('EBADF');
    expect(process.pread(fd, bytes(1), 0n)).toBe(1);
  });

  it.each(['/missing', ''])('does not exist at %j', (path) => {
    const { process } = startProcess();
    expect(failure(() => process.open(path, { readOnly: true }))).toBe('ENOENT');
  });
});
