import { describe, expect, it } from 'vitest';
import { hva } from '../../../src/base/address.ts';
import { NotImplementedError } from '../../../src/base/errors.ts';
import { OpenFile } from '../../../src/kernel/files.ts';
import type { Process } from '../../../src/kernel/process.ts';
import { failure, startProcess } from '../process-fixture.ts';

// prot: NONE 0, READ 1, WRITE 2; flags: SHARED 1, PRIVATE 2, SHARED_VALIDATE 3, FIXED 0x10, ANONYMOUS 0x20, POPULATE 0x8000
const ANON = 0x22;
const SHARED_ANON = 0x21;
const RW = 3;

interface Files {
  process: Process;
  /** A memfd of 16 KiB. */
  ram: number;
  readOnly: number;
  writeOnly: number;
  /** A file that cannot be mapped. */
  device: number;
}

function setUp(): Files {
  const { process } = startProcess();
  const ram = process.memfdCreate('ram');
  process.ftruncate(ram, 16384n);
  const object = process.files.get(ram).operations;
  const readOnly = process.files.install(new OpenFile(object, { readable: true, writable: false }));
  const writeOnly = process.files.install(new OpenFile(object, { readable: false, writable: true }));
  const device = process.files.install(new OpenFile({ name: 'device' }));
  return { process, ram, readOnly, writeOnly, device };
}

type Row = [string, string, (files: Files) => unknown];

describe('mmap', () => {
  it.each<Row>([
    [
      'anonymous private',
      'OK',
      ({ process: p }) => p.memory.mmap({ length: 1, protection: RW, flags: ANON }),
    ],
    [
      'anonymous shared',
      'OK',
      ({ process: p }) => p.memory.mmap({ length: 1, protection: RW, flags: SHARED_ANON }),
    ],
    ['length 0', 'EINVAL', ({ process: p }) => p.memory.mmap({ length: 0, protection: RW, flags: ANON })],
    [
      'neither shared nor private',
      'EINVAL',
      ({ process: p }) => p.memory.mmap({ length: 1, protection: RW, flags: 0x20 }),
    ],
    [
      'anonymous SHARED_VALIDATE',
      'EINVAL',
      ({ process: p }) => p.memory.mmap({ length: 1, protection: RW, flags: 0x23 }),
    ],
    [
      'length beyond the address space',
      'ENOMEM',
      ({ process: p }) => p.memory.mmap({ length: 0x800000000000, protection: RW, flags: ANON }),
    ],
    [
      'negative length',
      'ENOMEM',
      ({ process: p }) => p.memory.mmap({ length: -4096, protection: RW, flags: ANON }),
    ],
    [
      'a misaligned offset',
      'EINVAL',
      ({ process: p, ram }) => p.memory.mmap({ length: 1, protection: RW, flags: 1, fd: ram, offset: 1n }),
    ],
    [
      'a misaligned offset, before a bad fd',
      'EINVAL',
      ({ process: p }) => p.memory.mmap({ length: 1, protection: RW, flags: 1, fd: 99, offset: 1n }),
    ],
    [
      'a bad fd, before length 0',
      'EBADF',
      ({ process: p }) => p.memory.mmap({ length: 0, protection: RW, flags: 1, fd: 99 }),
    ],
    ['no fd', 'EBADF', ({ process: p }) => p.memory.mmap({ length: 1, protection: RW, flags: 1 })],
    [
      'an offset and length that wrap',
      'EOVERFLOW',
      ({ process: p, ram }) =>
        p.memory.mmap({ length: 8192, protection: RW, flags: 1, fd: ram, offset: 0xfffffffffffff000n }),
    ],
    [
      'a shared file',
      'OK',
      ({ process: p, ram }) => p.memory.mmap({ length: 1, protection: RW, flags: 1, fd: ram }),
    ],
    [
      'a private file',
      'OK',
      ({ process: p, ram }) => p.memory.mmap({ length: 1, protection: RW, flags: 2, fd: ram }),
    ],
    [
      'SHARED_VALIDATE of a file',
      'OK',
      ({ process: p, ram }) => p.memory.mmap({ length: 1, protection: RW, flags: 3, fd: ram }),
    ],
    [
      'SHARED_VALIDATE with MAP_SYNC',
      'EOPNOTSUPP',
      ({ process: p, ram }) => p.memory.mmap({ length: 1, protection: RW, flags: 0x80003, fd: ram }),
    ],
    [
      'a file without type',
      'EINVAL',
      ({ process: p, ram }) => p.memory.mmap({ length: 1, protection: RW, flags: 0, fd: ram }),
    ],
    [
      'shared and writable, of a read-only file',
      'EACCES',
      ({ process: p, readOnly }) => p.memory.mmap({ length: 1, protection: RW, flags: 1, fd: readOnly }),
    ],
    [
      'shared and readable, of a read-only file',
      'OK',
      ({ process: p, readOnly }) => p.memory.mmap({ length: 1, protection: 1, flags: 1, fd: readOnly }),
    ],
    [
      'private and writable, of a read-only file',
      'OK',
      ({ process: p, readOnly }) => p.memory.mmap({ length: 1, protection: RW, flags: 2, fd: readOnly }),
    ],
    [
      'a write-only file',
      'EACCES',
      ({ process: p, writeOnly }) => p.memory.mmap({ length: 1, protection: 2, flags: 1, fd: writeOnly }),
    ],
    [
      'a device',
      'ENODEV',
      ({ process: p, device }) => p.memory.mmap({ length: 1, protection: RW, flags: 1, fd: device }),
    ],
    [
      'a misaligned fixed address',
      'EINVAL',
      ({ process: p }) => p.memory.mmap({ length: 1, protection: RW, flags: 0x32, address: hva(0x100001) }),
    ],
    [
      'a fixed address beyond the end',
      'ENOMEM',
      ({ process: p }) =>
        p.memory.mmap({ length: 4097, protection: RW, flags: 0x32, address: hva(0x7fffffffe000) }),
    ],
    [
      'the last fixed page',
      'OK',
      ({ process: p }) =>
        p.memory.mmap({ length: 4096, protection: RW, flags: 0x32, address: hva(0x7fffffffe000) }),
    ],
    [
      'a fixed address below 64 KiB',
      'EPERM',
      ({ process: p }) => p.memory.mmap({ length: 1, protection: RW, flags: 0x32, address: hva(0xf000) }),
    ],
  ])('of %s gives %s', (_, errno, call) => {
    expect(failure(() => call(setUp()))).toBe(errno);
  });

  it('passes on what the file refuses, and then leaves the old mapping alone', () => {
    const { process } = setUp();
    const refusing = process.files.install(
      new OpenFile({
        name: 'refusing',
        mmap: ({ shared }) => {
          expect(shared).toBe(true);
          return process.files.get(99) as never;
        },
      }),
    );
    const at = process.memory.mmap({ length: 4096, protection: RW, flags: ANON });
    process.memory.write(at, new Uint8Array([5]));
    const over = { length: 4096, protection: RW, flags: 0x11, fd: refusing, address: at };
    expect(failure(() => process.memory.mmap(over))).toBe('EBADF');
    const back = new Uint8Array(1);
    process.memory.read(at, back);
    expect(back[0]).toBe(5);
  });

  it('with MAP_FIXED_NOREPLACE fails with EEXIST over another mapping', () => {
    const { process } = setUp();
    const at = process.memory.mmap({ length: 8192, protection: RW, flags: ANON });
    const request = { length: 8192, protection: RW, flags: 0x100022, address: hva(at + 4096) };
    expect(failure(() => process.memory.mmap(request))).toBe('EEXIST');
    expect(process.memory.mmap({ ...request, address: hva(at + 8192) })).toBe(at + 8192);
  });

  it.each([0x40, 0x100, 0x2000, 0x40000])('with flag 0x%x says that it is not implemented', (flag) => {
    const { process } = setUp();
    expect(() => process.memory.mmap({ length: 1, protection: RW, flags: ANON | flag })).toThrow(
      NotImplementedError,
    );
  });

  it('gives addresses that do not overlap, and large ones at multiples of 2 MiB', () => {
    const { process } = setUp();
    const small = process.memory.mmap({ length: 5000, protection: RW, flags: ANON });
    const next = process.memory.mmap({ length: 4096, protection: RW, flags: ANON });
    expect(next + 4096).toBe(small);
    const large = process.memory.mmap({ length: 0x40000000, protection: RW, flags: ANON });
    expect(large % 0x200000).toBe(0);
    expect(large + 0x40000000).toBeLessThanOrEqual(next);
    process.memory.munmap(small, 8192);
    expect(process.memory.mmap({ length: 8192, protection: RW, flags: ANON })).toBe(small);
  });

  it('of 1 TiB on a host of 16 MiB is fine', () => {
    const { process, memory } = startProcess();
    const free = memory.freeFrames;
    const at = process.memory.mmap({ length: 0x10000000000, protection: RW, flags: ANON });
    const back = new Uint8Array(3);
    for (const offset of [0, 0x8000000000, 0xfffffffffd]) {
      process.memory.read(hva(at + offset), back);
      expect([...back]).toEqual([0, 0, 0]);
    }
    expect(memory.freeFrames).toBe(free);
    process.memory.write(hva(at + 0xffffffffff), new Uint8Array([1]));
    process.memory.write(hva(at), new Uint8Array([2]));
    expect(memory.freeFrames).toBe(free - 2);
    expect(process.memory.residentPages).toBe(2);
    process.memory.munmap(at, 0x10000000000);
    expect(memory.freeFrames).toBe(free);
  });

  it('of more than 65530 pieces gives ENOMEM', () => {
    const { process } = setUp();
    const at = process.memory.mmap({ length: 0x40000000, protection: RW, flags: ANON });
    for (let i = 1; process.memory.mappingCount < 65530; i += 2)
      process.memory.munmap(hva(at + i * 4096), 4096);
    expect(failure(() => process.memory.munmap(hva(at + 0x3ff00000), 4096))).toBe('ENOMEM');
    expect(failure(() => process.memory.munmap(at, 4096))).toBe('OK');
  }, 30_000);

  it('with MAP_POPULATE brings the pages at once', () => {
    const { process, memory } = startProcess();
    process.memory.mmap({ length: 40960, protection: RW, flags: 0x8022 });
    expect(memory.usage().get('process vmm')).toBe(10);
  });
});

describe('munmap', () => {
  it.each<Row>([
    ['a misaligned address', 'EINVAL', ({ process: p }) => p.memory.munmap(hva(0x100001), 4096)],
    ['length 0', 'EINVAL', ({ process: p }) => p.memory.munmap(hva(0x100000), 0)],
    ['a range beyond the end', 'EINVAL', ({ process: p }) => p.memory.munmap(hva(0x7fffffffe000), 8192)],
    ['a negative address', 'EINVAL', ({ process: p }) => p.memory.munmap(hva(-4096), 4096)],
    ['a range where nothing is mapped', 'OK', ({ process: p }) => p.memory.munmap(hva(0x100000), 4096)],
  ])('of %s gives %s', (_, errno, call) => {
    expect(failure(() => call(setUp()))).toBe(errno);
  });

  it('cuts a mapping in two, rounding the length up', () => {
    const { process } = setUp();
    const at = process.memory.mmap({ length: 5 * 4096, protection: RW, flags: ANON });
    for (let i = 0; i < 5; i++) process.memory.write(hva(at + i * 4096), new Uint8Array([i + 1]));
    process.memory.munmap(hva(at + 4096), 4097);
    const back = new Uint8Array(1);
    const outcome = [0, 1, 2, 3, 4].map((i) =>
      failure(() => process.memory.read(hva(at + i * 4096), back)) === 'OK' ? back[0] : 'gone',
    );
    expect(outcome).toEqual([1, 'gone', 'gone', 4, 5]);
  });

  it('keeps a closed file until its last mapping goes', () => {
    let released = 0;
    const { process, ram } = setUp();
    const source = process.files.get(ram).operations;
    const fd = process.files.install(
      new OpenFile({ name: 'held', mmap: () => source.mmap!({ shared: true }), release: () => released++ }),
    );
    const at = process.memory.mmap({ length: 12288, protection: RW, flags: 1, fd });
    process.close(fd);
    process.memory.munmap(hva(at + 4096), 4096);
    process.memory.munmap(at, 4096);
    expect(released).toBe(0);
    process.memory.munmap(hva(at + 8192), 4096);
    expect(released).toBe(1);
  });
});

describe('madvise', () => {
  const mapped = (files: Files, protection: number, flags: number, fd?: number) =>
    files.process.memory.mmap({ length: 16384, protection, flags, ...(fd !== undefined && { fd }) });

  it.each<Row>([
    ['DONTNEED of anonymous memory', 'OK', (f) => f.process.memory.madvise(mapped(f, RW, ANON), 16384, 4)],
    ['DONTNEED of length 0', 'OK', (f) => f.process.memory.madvise(hva(0x100000), 0, 4)],
    [
      'DONTNEED of a length that is 0 only when rounded up',
      'EINVAL',
      (f) => f.process.memory.madvise(mapped(f, RW, ANON), -1, 4),
    ],
    [
      'DONTNEED of a misaligned address',
      'EINVAL',
      (f) => f.process.memory.madvise(hva(mapped(f, RW, ANON) + 1), 1, 4),
    ],
    [
      'DONTNEED of a negative length',
      'EINVAL',
      (f) => f.process.memory.madvise(mapped(f, RW, ANON), -4096, 4),
    ],
    ['DONTNEED where nothing is mapped', 'ENOMEM', (f) => f.process.memory.madvise(hva(0x100000), 4096, 4)],
    [
      'DONTNEED that ends outside',
      'ENOMEM',
      (f) => f.process.memory.madvise(hva(mapped(f, RW, ANON) - 4096), 8192, 4),
    ],
    ['unknown advice', 'EINVAL', (f) => f.process.memory.madvise(mapped(f, RW, ANON), 4096, 99)],
    ['a hint', 'OK', (f) => f.process.memory.madvise(mapped(f, RW, ANON), 4096, 14)],
    ['a hint where nothing is mapped', 'ENOMEM', (f) => f.process.memory.madvise(hva(0x100000), 4096, 16)],
    ['REMOVE of private memory', 'EINVAL', (f) => f.process.memory.madvise(mapped(f, RW, ANON), 4096, 9)],
    ['REMOVE of shared memory', 'OK', (f) => f.process.memory.madvise(mapped(f, RW, SHARED_ANON), 4096, 9)],
    ['REMOVE of a shared file', 'OK', (f) => f.process.memory.madvise(mapped(f, RW, 1, f.ram), 4096, 9)],
    ['REMOVE of a private file', 'EACCES', (f) => f.process.memory.madvise(mapped(f, RW, 2, f.ram), 4096, 9)],
    [
      'REMOVE of a read-only file',
      'EACCES',
      (f) => f.process.memory.madvise(mapped(f, 1, 1, f.readOnly), 4096, 9),
    ],
    [
      'REMOVE through a read-only mapping',
      'OK',
      (f) => f.process.memory.madvise(mapped(f, 1, 1, f.ram), 4096, 9),
    ],
  ])('%s gives %s', (_, errno, call) => {
    expect(failure(() => call(setUp()))).toBe(errno);
  });

  it('FREE says that it is not implemented', () => {
    expect(() => setUp().process.memory.madvise(hva(0x100000), 4096, 8)).toThrow(NotImplementedError);
  });

  it('DONTNEED does what it can although part of the range is not mapped', () => {
    const { process } = setUp();
    const at = process.memory.mmap({ length: 12288, protection: RW, flags: ANON });
    process.memory.write(at, new Uint8Array(12288).fill(1));
    process.memory.munmap(hva(at + 4096), 4096);
    expect(failure(() => process.memory.madvise(at, 12288, 4))).toBe('ENOMEM');
    const back = new Uint8Array(1);
    process.memory.read(hva(at + 8192), back);
    expect(back[0]).toBe(0);
  });

  it('DONTNEED gives zeros in anonymous memory and the file again in a file mapping', () => {
    const { process, ram } = setUp();
    process.pwrite(ram, new Uint8Array(4096).fill(7), 0n);
    const file = process.memory.mmap({ length: 4096, protection: RW, flags: 2, fd: ram });
    const anonymous = process.memory.mmap({ length: 4096, protection: RW, flags: ANON });
    const shared = process.memory.mmap({ length: 4096, protection: RW, flags: SHARED_ANON });
    const back = new Uint8Array(1);
    const outcome = [file, anonymous, shared].map((at) => {
      process.memory.write(at, new Uint8Array([9]));
      process.memory.madvise(at, 4096, 4);
      process.memory.read(at, back);
      return back[0];
    });
    expect(outcome).toEqual([7, 0, 9]);
  });
});
