import { describe, expect, it } from 'vitest';
import { hva, pfn, type Spa, spaOf } from '../../../src/base/address.ts';
import { OpenFile } from '../../../src/kernel/files.ts';
import { FileMappings, type PageSource } from '../../../src/kernel/mm/page-source.ts';
import { READ_ACCESS, WRITE_ACCESS } from '../../../src/kernel/mm/page-table.ts';
import type { Process } from '../../../src/kernel/process.ts';
import { failure, pattern, startProcess } from '../process-fixture.ts';

const ANON = 0x22;
const SHARED_ANON = 0x21;
const RW = 3;
const one = (value: number): Uint8Array => new Uint8Array([value]);

function byteAt(process: Process, at: number): number {
  const back = new Uint8Array(1);
  process.memory.read(hva(at), back);
  return back[0]!;
}

/** Records what the notifiers hear, as offsets in pages from `base`. */
function listen(process: Process, base: number): string[] {
  const heard: string[] = [];
  const page = (at: number): number => (at - base) / 4096;
  process.memory.notifiers.register({
    begin: (start, end) => heard.push(`begin ${page(start)}-${page(end)}`),
    end: (start, end) => heard.push(`end ${page(start)}-${page(end)}`),
  });
  return heard;
}

describe('loads and stores of a process', () => {
  it('keep bytes across pages', () => {
    const { process } = startProcess();
    const at = process.memory.mmap({ length: 65536, protection: RW, flags: ANON });
    const data = pattern(20000, 5);
    process.memory.write(hva(at + 4000), data);
    const back = new Uint8Array(20000);
    process.memory.read(hva(at + 4000), back);
    expect(back).toEqual(data);
    expect(byteAt(process, at + 3999)).toBe(0);
    expect(process.memory.residentPages).toBe(6);
  });

  it.each<[string, number, 'read' | 'write', string]>([
    ['inside', 0, 'read', 'OK'],
    ['at the last byte', 8191, 'write', 'OK'],
    ['after the end', 8192, 'read', 'EFAULT/SIGSEGV'],
    ['before the start', -1, 'write', 'EFAULT/SIGSEGV'],
  ])('%s of a mapping (offset %d, %s) give %s', (_, offset, what, errno) => {
    const { process } = startProcess();
    const at = process.memory.mmap({ length: 8192, protection: RW, flags: ANON });
    expect(failure(() => process.memory[what](hva(at + offset), one(1)))).toBe(errno);
  });

  it('that fail say where and how much', () => {
    const { process } = startProcess();
    expect(() => process.memory.read(hva(0x1000), new Uint8Array(3))).toThrow(
      'EFAULT: read of 3 bytes at 0x1000: not mapped, or not permitted',
    );
    expect(() => process.memory.write(hva(0x2008), new Uint8Array(9))).toThrow(
      'EFAULT: write of 9 bytes at 0x2008: not mapped, or not permitted',
    );
  });

  it.each([0, -4096, 0x7fffffffffff, 2 ** 52])('at address %d, where nothing can be, give SIGSEGV', (at) => {
    const { process } = startProcess();
    expect(failure(() => process.memory.read(hva(at), one(0)))).toBe('EFAULT/SIGSEGV');
    expect(failure(() => process.memory.write(hva(at), one(0)))).toBe('EFAULT/SIGSEGV');
    expect(failure(() => process.memory.copyFromUser(hva(at), one(0)))).toBe('EFAULT');
    expect(failure(() => process.memory.copyToUser(hva(at), one(0)))).toBe('EFAULT');
    expect(process.memory.faultIn(hva(at), READ_ACCESS)).toBe(-14);
  });

  it.each<[number, string, string, number, number]>([
    [0, 'EFAULT/SIGSEGV', 'EFAULT/SIGSEGV', -14, -14],
    [1, 'OK', 'EFAULT/SIGSEGV', 0, -14],
    [2, 'OK', 'OK', 0, 0],
    [3, 'OK', 'OK', 0, 0],
    [4, 'OK', 'EFAULT/SIGSEGV', 0, -14],
  ])(
    'with protection %d: load %s, store %s; for KVM: %d, %d',
    (protection, load, store, kvmLoad, kvmStore) => {
      for (const flags of [ANON, SHARED_ANON]) {
        const { process } = startProcess();
        const at = process.memory.mmap({ length: 4096, protection, flags });
        expect(failure(() => process.memory.read(at, one(0)))).toBe(load);
        expect(failure(() => process.memory.write(at, one(1)))).toBe(store);
        expect(process.memory.faultIn(at, READ_ACCESS)).toBe(kvmLoad);
        expect(process.memory.faultIn(at, WRITE_ACCESS)).toBe(kvmStore);
      }
    },
  );

  it('beyond the end of a file give SIGBUS, and EFAULT for the kernel and KVM', () => {
    const { process } = startProcess();
    const fd = process.memfdCreate('ram');
    process.ftruncate(fd, 4097n);
    for (const flags of [1, 2]) {
      const at = process.memory.mmap({ length: 16384, protection: RW, flags, fd });
      process.memory.write(hva(at + 8191), one(1));
      expect(failure(() => process.memory.read(hva(at + 8192), one(0)))).toBe('EFAULT/SIGBUS');
      expect(failure(() => process.memory.write(hva(at + 8192), one(0)))).toBe('EFAULT/SIGBUS');
      expect(failure(() => process.memory.copyFromUser(hva(at + 8192), one(0)))).toBe('EFAULT');
      expect(process.memory.faultIn(hva(at + 8192), READ_ACCESS)).toBe(-14);
    }
  });

  it('write what lies before the failing page', () => {
    const { process } = startProcess();
    const at = process.memory.mmap({ length: 4096, protection: RW, flags: ANON });
    expect(failure(() => process.memory.write(hva(at + 4090), new Uint8Array(10).fill(3)))).toBe(
      'EFAULT/SIGSEGV',
    );
    expect(byteAt(process, at + 4095)).toBe(3);
  });

  it('fail with ENOMEM when the host is full, with nothing broken', () => {
    const { process, memory } = startProcess({ bytes: 0x100000 });
    const at = process.memory.mmap({ length: 0x10000000000, protection: RW, flags: ANON });
    process.memory.write(at, one(1));
    const fd = process.memfdCreate('ram');
    process.pwrite(fd, one(6), 0n);
    const file = process.memory.mmap({ length: 4096, protection: RW, flags: 2, fd });
    expect(failure(() => process.memory.write(at, new Uint8Array(0x200000).fill(2)))).toBe('ENOMEM');
    expect(memory.freeFrames).toBe(0);
    expect(byteAt(process, file)).toBe(6);
    expect(failure(() => process.memory.write(file, one(7)))).toBe('ENOMEM');
    expect(byteAt(process, file)).toBe(6);
    expect(process.memory.faultIn(hva(at + 0x8000000000), WRITE_ACCESS)).toBe(-12);
    process.memory.madvise(at, 4096, 4);
    process.memory.write(file, one(7));
    expect([byteAt(process, file), byteAt(process, at)]).toEqual([7, 0]);
  });
});

describe('mappings of one object', () => {
  it('see each other when shared, in other processes too', () => {
    const { process, memory } = startProcess();
    const other = startProcess({ memory, name: 'other' }).process;
    const fd = process.memfdCreate('ram');
    process.ftruncate(fd, 65536n);
    const theirs = other.files.install(process.files.get(fd));
    const a = process.memory.mmap({ length: 65536, protection: RW, flags: 1, fd });
    const b = other.memory.mmap({ length: 4096, protection: 1, flags: 1, fd: theirs, offset: 8192n });
    process.memory.write(hva(a + 8195), one(42));
    expect(byteAt(other, b + 3)).toBe(42);
    const back = one(0);
    other.pread(theirs, back, 8195n);
    expect(back[0]).toBe(42);
    process.pwrite(fd, one(43), 8195n);
    expect(byteAt(process, a + 8195)).toBe(43);
    expect(memory.usage().get('shmem')).toBe(1);
  });

  it('keep their own copy of what they wrote when private', () => {
    const { process, memory } = startProcess();
    const fd = process.memfdCreate('ram');
    process.pwrite(fd, pattern(8192, 1), 0n);
    const at = process.memory.mmap({ length: 8192, protection: RW, flags: 2, fd });
    expect(byteAt(process, at)).toBe(1);
    process.memory.write(hva(at + 1), one(99));
    process.pwrite(fd, new Uint8Array([50, 51, 52]), 0n);
    const back = new Uint8Array(3);
    process.memory.read(at, back);
    expect([...back]).toEqual([1, 99, 63]);
    process.pwrite(fd, one(77), 4096n);
    expect(byteAt(process, at + 4096)).toBe(77);
    expect(memory.usage().get('process vmm')).toBe(1);
  });
});

describe('faultIn, which KVM calls', () => {
  it('gives the frame that the process uses, writable where the mapping is', () => {
    const { process, memory } = startProcess();
    const at = process.memory.mmap({ length: 8192, protection: RW, flags: ANON });
    process.memory.write(hva(at + 4096), one(5));
    expect(process.memory.faultIn(hva(at + 4100), READ_ACCESS)).toBe(0);
    const { page } = process.memory;
    expect(page).toMatchObject({ writable: true, order: 0 });
    expect(memory.load32(spaOf(page.pfn))).toBe(5);
    memory.store32((spaOf(page.pfn) + 8) as Spa, 6);
    expect(byteAt(process, at + 4104)).toBe(6);
    const before = page.pfn;
    expect(process.memory.faultIn(hva(at + 4096), WRITE_ACCESS)).toBe(0);
    expect(process.memory.page.pfn).toBe(before);
  });

  it('gives a frame for memory that nobody touched, never the zero frame', () => {
    const { process } = startProcess();
    const at = process.memory.mmap({ length: 4096, protection: RW, flags: ANON });
    expect(process.memory.faultIn(at, READ_ACCESS)).toBe(0);
    expect(process.memory.page.pfn).toBeGreaterThan(0);
    expect(process.memory.page.writable).toBe(true);
    process.memory.write(at, one(1));
    expect(byteAt(process, at)).toBe(1);
  });

  it('maps a private file read-only until it is written, and then tells the notifiers that the page changes', () => {
    const { process, memory } = startProcess();
    const fd = process.memfdCreate('ram');
    process.pwrite(fd, one(8), 0n);
    const at = process.memory.mmap({ length: 4096, protection: RW, flags: 2, fd });
    const heard = listen(process, at);
    expect(process.memory.faultIn(at, READ_ACCESS)).toBe(0);
    const cached = process.memory.page.pfn;
    expect(process.memory.page.writable).toBe(false);
    expect(process.memory.faultIn(at, WRITE_ACCESS)).toBe(0);
    expect(process.memory.page.writable).toBe(true);
    expect(process.memory.page.pfn).not.toBe(cached);
    expect(memory.load32(spaOf(process.memory.page.pfn))).toBe(8);
    expect(heard).toEqual(['begin 0-1', 'end 0-1']);
  });

  it('waits for a page that comes later', async () => {
    const { process, memory } = startProcess();
    const frame = memory.allocate(0, memory.owner('late')) as number;
    memory.store32(spaOf(pfn(frame)), 0x1234);
    let arrive = (): void => undefined;
    let there = false;
    const pending = new Promise<void>((resolve) => {
      arrive = resolve;
    });
    const source: PageSource = {
      mappings: new FileMappings(),
      fault: () => (there ? frame : -4),
      get pending() {
        return there ? undefined : pending;
      },
    };
    const fd = process.files.install(
      new OpenFile({ name: 'late', mmap: () => source, release: () => memory.free(pfn(frame), 0) }),
    );
    const at = process.memory.mmap({ length: 4096, protection: RW, flags: 1, fd });
    expect(process.memory.faultIn(at, READ_ACCESS)).toBe(1);
    expect(failure(() => process.memory.read(at, one(0)))).toBe('EAGAIN');
    expect(failure(() => process.memory.copyToUser(at, one(0)))).toBe('EAGAIN');
    const waiting = process.memory.pending;
    expect(waiting).toBe(pending);
    there = true;
    arrive();
    await waiting;
    expect(process.memory.faultIn(at, READ_ACCESS)).toBe(0);
    expect(process.memory.page.pfn).toBe(frame);
    expect(byteAt(process, at)).toBe(0x34);
  });

  it.each([
    [-1, -14, 'EFAULT/SIGBUS'],
    [-2, -12, 'ENOMEM'],
    [-3, -133, 'EFAULT/SIGBUS'],
  ])("turns the source's answer %d into %d, and %s for the process", (code, errno, signal) => {
    const { process } = startProcess();
    const source: PageSource = { mappings: new FileMappings(), fault: () => code };
    const fd = process.files.install(new OpenFile({ name: 'bad', mmap: () => source }));
    const at = process.memory.mmap({ length: 4096, protection: RW, flags: 1, fd });
    expect(process.memory.faultIn(at, WRITE_ACCESS)).toBe(errno);
    expect(failure(() => process.memory.write(at, one(0)))).toBe(signal);
  });
});

describe('notifiers', () => {
  const file = (process: Process) => {
    const fd = process.memfdCreate('ram');
    process.pwrite(fd, new Uint8Array(8 * 4096).fill(1), 0n);
    return fd;
  };
  it.each<[string, (process: Process, at: number, fd: number) => void, string[]]>([
    ['munmap', (p, at) => p.memory.munmap(hva(at + 4096), 8192), ['begin 1-3', 'end 1-3']],
    [
      'munmap beyond the mapping',
      (p, at) => p.memory.munmap(hva(at - 4096), 0x100000),
      ['begin 0-8', 'end 0-8'],
    ],
    ['madvise DONTNEED', (p, at) => p.memory.madvise(hva(at + 8192), 4096, 4), ['begin 2-3', 'end 2-3']],
    ['madvise REMOVE', (p, at) => p.memory.madvise(hva(at + 8192), 4096, 9), ['begin 2-3', 'end 2-3']],
    [
      'mmap over it',
      (p, at) => p.memory.mmap({ length: 4096, protection: RW, flags: 0x32, address: hva(at + 4096) }),
      ['begin 1-2', 'end 1-2'],
    ],
    ['ftruncate of the file', (p, _, fd) => p.ftruncate(fd, 20000n), ['begin 5-8', 'end 5-8']],
    ['a punch of the file', (p, _, fd) => p.fallocate(fd, 3, 4096n, 4096n), ['begin 1-2', 'end 1-2']],
    ['a hint', (p, at) => p.memory.madvise(hva(at), 4096, 14), []],
    ['growing the file', (p, _, fd) => p.ftruncate(fd, 0x100000n), []],
    ['writing the file', (p, _, fd) => p.pwrite(fd, one(1), 0n), []],
    ['exit', (p) => p.memory.exit(), ['begin 0-8', 'end 0-8']],
  ])('hear of %s', (_, act, expected) => {
    const { process } = startProcess();
    const fd = file(process);
    const at = process.memory.mmap({ length: 8 * 4096, protection: RW, flags: 1, fd });
    const heard = listen(process, at);
    act(process, at, fd);
    expect(heard).toEqual(expected);
  });

  it('hear of a punch at every place where the page is mapped, cut or moved', () => {
    const { process } = startProcess();
    const fd = file(process);
    const at = hva(0x10000000);
    const map = (page: number, pages: number, from: number) =>
      process.memory.mmap({
        length: pages * 4096,
        protection: RW,
        flags: 0x11,
        fd,
        offset: BigInt(from * 4096),
        address: hva(at + page * 4096),
      });
    map(0, 8, 0);
    map(20, 4, 2);
    process.memory.munmap(hva(at + 3 * 4096), 4096);
    const heard = listen(process, at);
    process.fallocate(fd, 3, 2n * 4096n, 3n * 4096n);
    expect(heard.slice(0, 3).every((line) => line.startsWith('begin'))).toBe(true);
    expect(new Set(heard)).toEqual(
      new Set(['begin 2-3', 'begin 4-5', 'begin 20-23', 'end 2-3', 'end 4-5', 'end 20-23']),
    );
    expect(byteAt(process, at + 2 * 4096)).toBe(0);
    expect(byteAt(process, at + 5 * 4096)).toBe(1);
  });

  it('hear of the end only when the frame is gone', () => {
    const { process, memory } = startProcess();
    const at = process.memory.mmap({ length: 4096, protection: RW, flags: ANON });
    process.memory.faultIn(at, WRITE_ACCESS);
    const { pfn: frame } = process.memory.page;
    const owners: (string | undefined)[] = [];
    const look = () => owners.push(memory.ownerOf(frame)?.name);
    process.memory.notifiers.register({ begin: look, end: look });
    process.memory.madvise(at, 4096, 4);
    expect(owners).toEqual(['process vmm', undefined]);
  });

  it('hear nothing any more after they left', () => {
    const { process } = startProcess();
    const at = process.memory.mmap({ length: 4096, protection: RW, flags: ANON });
    const heard: number[] = [];
    const notifier = { begin: (s: number) => heard.push(s), end: (s: number) => heard.push(s) };
    process.memory.notifiers.register(notifier);
    process.memory.notifiers.unregister(notifier);
    process.memory.munmap(at, 4096);
    expect(heard).toEqual([]);
  });

  it('keep the copies that a process wrote when the file is punched, and drop them when it is cut', () => {
    const { process } = startProcess();
    const fd = file(process);
    const at = process.memory.mmap({ length: 8 * 4096, protection: RW, flags: 2, fd });
    process.memory.write(hva(at + 4096), one(9));
    process.fallocate(fd, 3, 0n, 8n * 4096n);
    expect([byteAt(process, at), byteAt(process, at + 4096)]).toEqual([0, 9]);
    process.ftruncate(fd, 4096n);
    expect(failure(() => byteAt(process, at + 4096))).toBe('EFAULT/SIGBUS');
  });
});

describe('a copy straight into host memory', () => {
  it('takes the bytes of pages whose frames are not neighbours, from within a page on', () => {
    const { process, memory } = startProcess();
    const at = process.memory.mmap({ length: 0x3000, protection: RW, flags: ANON });
    // The last page has the first frame.
    for (const page of [2, 1, 0]) process.memory.write(hva(at + page * 4096), one(1));
    const data = pattern(8192, 7);
    process.memory.write(hva(at + 100), data);
    const to = spaOf(memory.allocate(0, memory.owner('test')) as never);
    expect(process.memory.copyPresentTo(hva(at + 300), to, 4096)).toBe(0);
    const copied = new Uint8Array(4096);
    memory.read(to, copied);
    expect(copied).toEqual(data.slice(200, 4296));
    memory.free(pfn(to / 4096), 0);
  });

  it('brings no page: of a file’s that nobody touched it is −EFAULT, until they are faulted in', () => {
    const { process, memory } = startProcess();
    const fd = process.memfdCreate('x');
    process.ftruncate(fd, 0x2000n);
    const at = process.memory.mmap({ length: 0x2000, protection: RW, flags: 1, fd });
    const to = spaOf(memory.allocate(0, memory.owner('test')) as never);
    expect(process.memory.copyPresentTo(hva(at), to, 4096)).toBe(-14);
    expect(process.memory.faultInToRead(hva(at + 0x800), 4096)).toBe(0);
    expect(process.memory.copyPresentTo(hva(at + 0x800), to, 4096)).toBe(0);
    expect(process.memory.faultInToRead(hva(at + 0x1800), 4096)).toBe(-14);
    memory.free(pfn(to / 4096), 0);
  });
});

describe('a page that a listener takes away as soon as it hears of it', () => {
  it.each(['write', 'read', 'copyToUser', 'copyFromUser'] as const)(
    'does not keep %s from its end',
    (call) => {
      const { process, memory } = startProcess();
      const fd = process.memfdCreate('x');
      process.ftruncate(fd, 0x10000n);
      const at = process.memory.mmap({ length: 0x10000, protection: RW, flags: 1, fd });
      let heard = 0;
      const stop = memory.trace.listen(({ what }) => {
        if (what !== 'allocate') return;
        heard++;
        process.fallocate(fd, 3, 0n, 0x10000n);
      });
      process.memory[call](hva(at + 4090), new Uint8Array(10));
      stop();
      expect(heard).toBeGreaterThan(0);
      expect(byteAt(process, at + 4090)).toBe(0);
    },
  );
});
