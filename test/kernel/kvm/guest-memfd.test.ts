/** KVM_CREATE_GUEST_MEMFD and what its files do: mmap, fallocate, folios, poison (reference facts 1.3). */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { failure } from '../process-fixture.ts';
import { BOTH_KERNELS, DEFAULT, startVm, type TestVm } from './vm-fixture.ts';

const KEEP_SIZE = 1;
const PUNCH_HOLE = 2;
const PUNCH = KEEP_SIZE | PUNCH_HOLE;
const GPA = 0x20_0000;

/** All pages of a 64 KiB slot are private. */
function startPrivate(): TestVm {
  const host = startVm();
  host.setAttributes(0x20_0000n, 0x1_0000n, 8n);
  return host;
}

describe.each(BOTH_KERNELS)('KVM_CREATE_GUEST_MEMFD on %s', (kernel) => {
  const rows: [string, bigint, bigint, string][] = [
    ['one page', 0x1000n, 0n, 'OK'],
    ['a flag that nobody knows', 0x1000n, 4n, 'EINVAL'],
    ['the top flag', 0x1000n, 1n << 63n, 'EINVAL'],
    ['size 0', 0n, 0n, 'EINVAL'],
    ['a negative size', 0xffff_ffff_ffff_f000n, 0n, 'EINVAL'],
    ['the least negative size', 0x8000_0000_0000_0000n, 0n, 'EINVAL'],
    ['a size that is not whole pages', 0x1001n, 0n, 'EINVAL'],
    ['one byte', 1n, 0n, 'EINVAL'],
    ['the largest size', 0x7fff_ffff_ffff_f000n, 0n, 'OK'],
  ];
  it.each(rows)('%s', (_, size, flags, want) => {
    const host = startVm({ kernel });
    expect(failure(() => host.createFile(size, flags))).toBe(want);
  });

  it.each([
    [0, 1n, 'OK'],
    [0, 2n, 'OK'],
    [0, 3n, 'OK'],
    [1, 1n, 'OK'],
    [1, 2n, 'EINVAL'],
    [1, 3n, 'EINVAL'],
  ] as const)('VM type %i, flags %i', (type, flags, want) => {
    const host = startVm({ kernel, type });
    expect(failure(() => host.createFile(0x1000n, flags))).toBe(kernel === '6.12' ? 'EINVAL' : want);
  });

  it('also makes files in a default VM, where 6.12 lets no slot bind them', () => {
    expect(failure(() => startVm({ kernel, type: DEFAULT }).createFile())).toBe('OK');
  });

  it('checks size before it looks for a descriptor', () => {
    const host = startVm({ kernel, fileLimit: 5 });
    expect(failure(() => host.createFile(0n))).toBe('EINVAL');
    expect(failure(() => host.createFile(0x1000n))).toBe('EMFILE');
    host.kvm.close();
    expect(failure(() => host.createFile(0x1000n))).toBe('OK');
  });
});

describe('a guest_memfd', () => {
  it('has its size, blocks of a page, and a name', () => {
    const host = startVm();
    for (const size of [0x1000n, 0x3000n, 1n << 40n, 0x7fff_ffff_ffff_f000n])
      expect(host.process.fstat(host.createFile(size))).toMatchObject({ size, blockSize: 4096 });
    expect(host.process.files.get(host.createFile()).operations.name).toBe('[kvm-gmem]');
  });

  it('cannot be read, written, or truncated', () => {
    const { process, ...host } = startVm();
    const fd = host.vm.createGuestMemfd({ size: 0x1000n, flags: 0n });
    const open = process.files.get(fd);
    const bytes = new Uint8Array(16);
    expect([
      failure(() => open.read(bytes)),
      failure(() => open.write(bytes)),
      failure(() => process.pread(fd, bytes, 0n)),
      failure(() => process.pwrite(fd, bytes, 0n)),
      failure(() => process.ftruncate(fd, 0n)),
      failure(() => process.ftruncate(fd, 0x1000n)),
    ]).toEqual(['EINVAL', 'EINVAL', 'ESPIPE', 'ESPIPE', 'EINVAL', 'EINVAL']);
  });

  it('two files are two files', () => {
    const host = startVm();
    const [one, two] = [host.createFile(), host.createFile()];
    host.process.fallocate(one, KEEP_SIZE, 0n, 0x1000n);
    expect([host.file(one).frames.all, host.file(two).frames.all]).toEqual([1, 0]);
  });

  it('of a VM on a 16 MiB host may have 1 TiB, in a slot of 1 TiB, until frames run out', () => {
    const host = startVm();
    const size = 1n << 40n;
    const before = host.memory.freeFrames;
    const { fd, file } = host.addFileSlot({ gpa: 0x1_0000_0000n, size });
    expect(host.memory.freeFrames).toBe(before);
    host.setAttributes(0x1_0000_0000n, size, 8n);
    expect(host.touch(0x1_0000_0000)).toBe(0);
    expect(host.touch(0x100_0000_0000)).toBe(0);
    host.setGuestWord(0x100_0000_0000, 0x1234);
    expect(failure(() => host.process.fallocate(fd, KEEP_SIZE, 0n, size))).toBe('ENOMEM');
    expect(host.memory.freeFrames).toBe(0);
    const filled = file.frames.all;
    expect(filled).toBeGreaterThan(3900);
    expect(host.touch(0x80_0000_0000)).toBe(-12);
    expect(failure(() => host.process.fallocate(fd, KEEP_SIZE, 1n << 39n, 0x1000n))).toBe('ENOMEM');
    expect(file.frames.all).toBe(filled);
    host.process.fallocate(fd, PUNCH, 0n, 1n << 30n);
    expect(host.touch(0x80_0000_0000)).toBe(0);
    expect(host.guestWord(0x100_0000_0000)).toBe(0x1234);
  });

  it('closed while a slot has it: nothing is mapped any more, private faults exit, frames are free', () => {
    const host = startPrivate();
    const { fd } = host.addFileSlot();
    host.process.fallocate(fd, KEEP_SIZE, 0n, 0x1_0000n);
    expect(host.touch(GPA)).toBe(0);
    const before = host.vm.invalidation.snapshot();
    host.process.close(fd);
    expect(host.vm.invalidation.snapshot()).toBe(before + 1);
    expect(host.mapped(GPA)).toBeUndefined();
    expect(host.fileFrames).toBe(0);
    expect(host.touch(GPA)).toBe(-14);
    const { exitReason, memoryFaultFlags, memoryFaultGpa, memoryFaultSize } = host.vcpu.kvmRun;
    expect([exitReason, memoryFaultFlags, memoryFaultGpa, memoryFaultSize]).toEqual([
      39,
      8n,
      0x20_0000n,
      4096n,
    ]);
    expect(host.slot()).toBeDefined();
    host.setRegion({ memorySize: 0n });
    expect(host.slot()).toBeUndefined();
  });

  it('attributes and content do not touch each other', () => {
    const host = startPrivate();
    const { fd, file } = host.addFileSlot();
    expect(host.touch(GPA)).toBe(0);
    host.setGuestWord(GPA, 42);
    host.setAttributes(0x20_0000n, 0x1000n, 0n);
    expect(file.frames.all).toBe(1);
    host.setAttributes(0x20_0000n, 0x1000n, 8n);
    expect(host.touch(GPA)).toBe(0);
    expect(host.guestWord(GPA)).toBe(42);
    host.process.fallocate(fd, PUNCH, 0n, 0x1000n);
    expect(host.vm.attributes.isPrivate(0x200 as never)).toBe(true);
  });
});

describe('fallocate', () => {
  const rows: [string, number, bigint, bigint, string, number][] = [
    ['allocates pages', 1, 0x1000n, 0x2000n, 'OK', 2],
    ['allocates the whole file', 1, 0n, 0x1_0000n, 'OK', 16],
    ['without KEEP_SIZE', 0, 0n, 0x1000n, 'EOPNOTSUPP', 0],
    ['PUNCH_HOLE without KEEP_SIZE', 2, 0n, 0x1000n, 'EOPNOTSUPP', 0],
    ['COLLAPSE_RANGE', 8, 0n, 0x1000n, 'EOPNOTSUPP', 0],
    ['ZERO_RANGE', 0x11, 0n, 0x1000n, 'EOPNOTSUPP', 0],
    ['UNSHARE_RANGE', 0x41, 0n, 0x1000n, 'EOPNOTSUPP', 0],
    ['a mode that nobody knows', 0x8001, 0n, 0x1000n, 'EOPNOTSUPP', 0],
    ['an offset inside a page', 1, 0x800n, 0x1000n, 'EINVAL', 0],
    ['a length that is not whole pages', 1, 0n, 0x1001n, 'EINVAL', 0],
    ['length 0', 1, 0n, 0n, 'EINVAL', 0],
    ['a negative length', 1, 0n, -0x1000n, 'EINVAL', 0],
    ['a negative offset', 1, -0x1000n, 0x1000n, 'EINVAL', 0],
    ['allocation from the file’s end on', 1, 0x1_0000n, 0x1000n, 'EINVAL', 0],
    ['allocation across the file’s end, which allocates nothing', 1, 0xf000n, 0x2000n, 'EINVAL', 0],
    ['punch from the file’s end on', 3, 0x1_0000n, 0x1000n, 'OK', 0],
    ['punch across the file’s end', 3, 0xf000n, 0x10_0000n, 'OK', 0],
    ['punch with an offset inside a page', 3, 1n, 0x1000n, 'EINVAL', 0],
    ['punch with a length that is not whole pages', 3, 0n, 0xfffn, 'EINVAL', 0],
    ['punch of length 0', 3, 0n, 0n, 'EINVAL', 0],
    ['order: mode before alignment', 0, 1n, 1n, 'EOPNOTSUPP', 0],
    ['order: length before mode', 0, 0n, 0n, 'EINVAL', 0],
    ['order: alignment before the file’s end', 1, 0x1_0001n, 0x1000n, 'EINVAL', 0],
  ];
  it.each(rows)('%s', (_, mode, offset, length, want, frames) => {
    const host = startVm();
    const fd = host.createFile();
    expect(failure(() => host.process.fallocate(fd, mode, offset, length))).toBe(want);
    expect(host.file(fd).frames.all).toBe(frames);
  });

  it('leaves pages alone that exist', () => {
    const host = startPrivate();
    const { fd } = host.addFileSlot();
    expect(host.touch(GPA + 0x1000)).toBe(0);
    host.setGuestWord(GPA + 0x1000, 99);
    const frame = host.mapped(GPA + 0x1000)!.pfn;
    host.process.fallocate(fd, KEEP_SIZE, 0n, 0x1_0000n);
    expect(host.mapped(GPA + 0x1000)).toMatchObject({ pfn: frame });
    expect(host.guestWord(GPA + 0x1000)).toBe(99);
    expect(host.fileFrames).toBe(16);
  });

  it('that runs out of memory keeps what it did', () => {
    const host = startVm({ bytes: 2 * 1024 * 1024 });
    const fd = host.createFile(0x40_0000n);
    const free = host.memory.freeFrames;
    expect(failure(() => host.process.fallocate(fd, KEEP_SIZE, 0n, 0x40_0000n))).toBe('ENOMEM');
    expect(host.file(fd).frames.all).toBe(free);
  });

  it('punches: the guest finds zeros, neighbours stay, frames are free', () => {
    const host = startPrivate();
    const { fd } = host.addFileSlot();
    for (let page = 0; page < 16; page++) {
      expect(host.touch(GPA + page * 4096)).toBe(0);
      host.setGuestWord(GPA + page * 4096, page + 1);
    }
    const before = host.vm.invalidation.snapshot();
    host.process.fallocate(fd, PUNCH, 0x4000n, 0x3000n);
    expect(host.vm.invalidation.snapshot()).toBe(before + 1);
    expect(host.fileFrames).toBe(13);
    const mapped = Array.from({ length: 16 }, (_, page) => host.mapped(GPA + page * 4096) !== undefined);
    expect(mapped).toEqual(mapped.map((_, page) => page < 4 || page > 6));
    const words = mapped.map((_, page) => {
      expect(host.touch(GPA + page * 4096)).toBe(0);
      return host.guestWord(GPA + page * 4096);
    });
    expect(words).toEqual([1, 2, 3, 4, 0, 0, 0, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
  });

  it('punches a page that two slots of a VM would show at two places, in one invalidation', () => {
    const host = startVm({ type: 0 });
    const fd = host.createFile(0x2_0000n, 1n);
    const half = { flags: 4, guestMemfd: fd };
    host.setRegion({ ...half, slot: 0 });
    host.setRegion({ ...half, slot: 1, guestPhysAddr: 0x40_0000n, guestMemfdOffset: 0x1_0000n });
    expect([host.touch(0x20_f000), host.touch(0x40_0000), host.touch(0x40_1000)]).toEqual([0, 0, 0]);
    const before = host.vm.invalidation.snapshot();
    host.process.fallocate(fd, PUNCH, 0xf000n, 0x2000n);
    expect(host.vm.invalidation.snapshot()).toBe(before + 1);
    expect([host.mapped(0x20_f000), host.mapped(0x40_0000)]).toEqual([undefined, undefined]);
    expect(host.mapped(0x40_1000)).toBeDefined();
  });

  it('of pages that no slot shows is no invalidation', () => {
    const host = startPrivate();
    const fd = host.createFile(0x4_0000n);
    host.setRegion({ flags: 4, guestMemfd: fd });
    const before = host.vm.invalidation.snapshot();
    host.process.fallocate(fd, PUNCH, 0x1_0000n, 0x1_0000n);
    expect(host.vm.invalidation.snapshot()).toBe(before);
  });

  it('leaves what a list of pages would hold', () => {
    const step = fc.record({
      punch: fc.boolean(),
      first: fc.nat(40),
      pages: fc.integer({ min: 1, max: 40 }),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 20 }), fc.boolean(), (steps, gmemHuge) => {
        const host = startVm({ gmemHuge, bytes: 1 << 21 });
        const fd = host.createFile(40n * 4096n);
        const model = new Set<number>();
        for (const { punch, first, pages } of steps) {
          const end = first + pages;
          const result = failure(() =>
            host.process.fallocate(fd, punch ? 3 : 1, BigInt(first * 4096), BigInt(pages * 4096)),
          );
          expect(result).toBe(!punch && end > 40 ? 'EINVAL' : 'OK');
          for (let page = first; page < end && result === 'OK'; page++) {
            if (punch) model.delete(page);
            else model.add(page);
          }
          expect(host.fileFrames).toBe(model.size);
        }
      }),
      { numRuns: 50 },
    );
  });
});

describe('mmap', () => {
  const MAP_SHARED = 1;
  const MAP_PRIVATE = 2;
  it.each([
    ['without the MMAP flag, shared', 0n, MAP_SHARED, 'ENODEV'],
    ['without the MMAP flag, private', 0n, MAP_PRIVATE, 'ENODEV'],
    ['with it, private', 1n, MAP_PRIVATE, 'EINVAL'],
    ['with it, shared', 1n, MAP_SHARED, 'OK'],
    ['with INIT_SHARED alone', 2n, MAP_SHARED, 'ENODEV'],
    ['with both, shared', 3n, MAP_SHARED, 'OK'],
  ])('%s: %s', (_, fileFlags, flags, want) => {
    const host = startVm({ type: DEFAULT });
    const fd = host.createFile(0x2000n, fileFlags);
    expect(failure(() => host.process.memory.mmap({ length: 0x2000, protection: 3, flags, fd }))).toBe(want);
  });

  const mapped = (fileFlags: bigint, options: { length?: number; type?: number } = {}) => {
    const host = startVm({ type: options.type ?? DEFAULT });
    const { fd, file } = host.addFileSlot({ fileFlags });
    const at = host.process.memory.mmap({ length: options.length ?? 0x1_0000, protection: 3, flags: 1, fd });
    const load = (offset: number): number | string => {
      const word = new Uint8Array(1);
      const result = failure(() => host.process.memory.read((at + offset) as never, word));
      return result === 'OK' ? word[0]! : result;
    };
    const store = (offset: number, value: number): string =>
      failure(() => host.process.memory.write((at + offset) as never, Uint8Array.of(value)));
    return { host, fd, file, at, load, store };
  };

  it('without INIT_SHARED every touch is SIGBUS, also on a page that exists', () => {
    for (const type of [0, 1]) {
      const { host, fd, load, store } = mapped(1n, { type });
      expect([load(0), store(0, 1)]).toEqual(['EFAULT/SIGBUS', 'EFAULT/SIGBUS']);
      host.process.fallocate(fd, KEEP_SIZE, 0n, 0x1000n);
      expect(load(0)).toBe('EFAULT/SIGBUS');
    }
  });

  it('with INIT_SHARED host and guest see the same page', () => {
    const { host, file, load, store } = mapped(3n);
    expect(load(0x3000)).toBe(0);
    expect(store(0x3000, 0xaa)).toBe('OK');
    expect(host.touch(GPA + 0x3000)).toBe(0);
    expect(host.guestWord(GPA + 0x3000)).toBe(0xaa);
    host.setGuestWord(GPA + 0x3000, 0xff);
    expect(load(0x3000)).toBe(0xff);
    expect(file.frames.all).toBe(1);
    expect(host.memory.usage().get('process vmm')).toBeUndefined();
  });

  it('MADV_COLLAPSE is EINVAL', () => {
    const { host, at } = mapped(3n);
    expect(failure(() => host.process.memory.madvise(at, 0x1000, 25))).toBe('EINVAL');
  });

  it('beyond the file is SIGBUS', () => {
    const { load, store } = mapped(3n, { length: 0x1_2000 });
    expect([load(0xffff), load(0x1_0000), store(0x1_1000, 1)]).toEqual([0, 'EFAULT/SIGBUS', 'EFAULT/SIGBUS']);
  });

  it('a punched page is zero again, for host and guest', () => {
    const { host, fd, load, store } = mapped(3n);
    for (const offset of [0, 0x1000]) expect(store(offset, 0xaa)).toBe('OK');
    expect(host.touch(GPA)).toBe(0);
    host.process.fallocate(fd, PUNCH, 0n, 0x1000n);
    expect(host.mapped(GPA)).toBeUndefined();
    expect(host.fileFrames).toBe(1);
    expect([load(0), load(0x1000)]).toEqual([0, 0xaa]);
    expect(store(0, 0xbb)).toBe('OK');
    expect(host.touch(GPA)).toBe(0);
    expect(host.guestWord(GPA)).toBe(0xbb);
  });

  it('a poisoned page is SIGBUS, also where it was mapped before', () => {
    const { file, load, store } = mapped(3n);
    expect(store(0x2000, 1)).toBe('OK');
    file.failPage(2);
    expect([load(0x2000), load(0x3000)]).toEqual(['EFAULT/SIGBUS', 0]);
  });

  it('a page that comes from elsewhere keeps its reader waiting', async () => {
    const { host, file, at } = mapped(3n);
    let deliver = (_: Uint8Array): void => {};
    file.fillWith(() => new Promise((resolve) => (deliver = resolve)));
    expect(host.process.memory.faultIn(at, { write: false })).toBe(1);
    const { pending } = host.process.memory;
    expect(pending).toBeInstanceOf(Promise);
    deliver(new Uint8Array(4096).fill(7));
    await pending;
    expect(host.process.memory.faultIn(at, { write: false })).toBe(0);
    expect(host.memory.load32((host.process.memory.page.pfn * 4096) as never)).toBe(0x0707_0707);
  });
});

describe('a memory failure', () => {
  /** A fault on a page that the file has, and that is mapped no more. */
  const faultAgain = (host: TestVm, gpa: number): number => {
    for (const attribute of [0n, 8n]) host.setAttributes(BigInt(gpa), 0x1000n, attribute);
    return host.touch(gpa);
  };

  it('in a page: the guest is left with −EHWPOISON and exit 39, until the page is punched', () => {
    const host = startPrivate();
    const { fd, file } = host.addFileSlot();
    expect(host.touch(GPA + 0x5000)).toBe(0);
    const before = host.vm.invalidation.snapshot();
    file.failPage(5);
    expect(host.vm.invalidation.snapshot()).toBe(before + 1);
    expect(host.mapped(GPA + 0x5000)).toBeUndefined();
    expect(file.frames.all).toBe(1);
    expect(host.touch(GPA + 0x5000)).toBe(-133);
    const { exitReason, memoryFaultFlags, memoryFaultGpa } = host.vcpu.kvmRun;
    expect([exitReason, memoryFaultFlags, memoryFaultGpa]).toEqual([39, 8n, 0x20_5000n]);
    expect(host.touch(GPA + 0x6000)).toBe(0);
    host.process.fallocate(fd, PUNCH, 0x5000n, 0x1000n);
    expect(host.touch(GPA + 0x5000)).toBe(0);
    expect(host.guestWord(GPA + 0x5000)).toBe(0);
    expect(faultAgain(host, GPA + 0x5000)).toBe(0);
  });

  it('outlives a punch of the pages before it', () => {
    const host = startPrivate();
    const { fd, file } = host.addFileSlot();
    expect(host.touch(GPA + 0x5000)).toBe(0);
    file.failPage(5);
    host.process.fallocate(fd, PUNCH, 0n, 0x5000n);
    expect(host.touch(GPA + 0x5000)).toBe(-133);
  });

  it('where no page is changes nothing', () => {
    const host = startPrivate();
    const { file } = host.addFileSlot();
    file.failPage(5);
    expect(host.touch(GPA + 0x5000)).toBe(0);
    expect(faultAgain(host, GPA + 0x5000)).toBe(0);
  });
});

describe('folios of 2 MiB', () => {
  const MiB = 0x10_0000;
  const start = () => {
    const host = startVm({ gmemHuge: true });
    host.setAttributes(0x20_0000n, 0x80_0000n, 8n);
    return { host, ...host.addFileSlot({ size: 0x50_0000n }) };
  };

  it('come where 2 MiB of the file are empty, single pages at its end', () => {
    const { host, file } = start();
    expect(host.touch(GPA + 5 * 4096)).toBe(0);
    expect(file.frames).toEqual({ all: 512, huge: 512 });
    expect(host.mapped(GPA + 2 * MiB - 4096)).toMatchObject({ level: 2 });
    expect(host.touch(GPA + 4 * MiB)).toBe(0);
    expect(file.frames).toEqual({ all: 513, huge: 512 });
    expect(host.mapped(GPA + 4 * MiB)).toMatchObject({ level: 1 });
  });

  it('do not come without the option', () => {
    const host = startPrivate();
    const { file } = host.addFileSlot({ size: 0x40_0000n });
    expect(host.touch(GPA)).toBe(0);
    expect(file.frames).toEqual({ all: 1, huge: 0 });
  });

  it('punched in part, fall into pages: content stays, the rest is zero', () => {
    const { host, fd, file } = start();
    expect(host.touch(GPA)).toBe(0);
    host.setGuestWord(GPA, 11);
    host.setGuestWord(GPA + 0x1000, 22);
    host.setGuestWord(GPA + 0x2000, 33);
    host.process.fallocate(fd, PUNCH, 0x1000n, 0x1000n);
    expect(file.frames).toEqual({ all: 511, huge: 0 });
    expect(host.fileFrames).toBe(511);
    expect(host.mapped(GPA)).toBeUndefined();
    const words = [0, 0x1000, 0x2000].map((offset) => {
      expect(host.touch(GPA + offset)).toBe(0);
      return host.guestWord(GPA + offset);
    });
    expect(words).toEqual([11, 0, 33]);
    expect(host.mapped(GPA)).toMatchObject({ level: 1 });
    expect(file.frames).toEqual({ all: 512, huge: 0 });
  });

  it('punched from the middle on, keep their first half', () => {
    const { host, fd, file } = start();
    expect(host.touch(GPA)).toBe(0);
    host.setGuestWord(GPA, 11);
    host.process.fallocate(fd, PUNCH, 0x10_0000n, 0x30_0000n);
    expect([file.frames, host.fileFrames]).toEqual([{ all: 256, huge: 0 }, 256]);
    expect([host.touch(GPA), host.guestWord(GPA)]).toEqual([0, 11]);
  });

  it('punched whole, go whole, and come again', () => {
    const { host, fd, file } = start();
    host.process.fallocate(fd, KEEP_SIZE, 0n, 0x50_0000n);
    expect(file.frames).toEqual({ all: 1280, huge: 1024 });
    host.process.fallocate(fd, PUNCH, 0n, 0x20_0000n);
    expect(file.frames).toEqual({ all: 768, huge: 512 });
    host.process.fallocate(fd, PUNCH, 0x10_0000n, 0x20_0000n);
    expect(file.frames).toEqual({ all: 512, huge: 0 });
    host.process.fallocate(fd, KEEP_SIZE, 0n, 0x20_0000n);
    expect(file.frames).toEqual({ all: 1024, huge: 512 });
  });

  it('punched whole, are freed in one piece; in part, the punched pages alone', () => {
    const { host, fd } = start();
    const freed: number[] = [];
    const invalidate = host.vm.gmemInvalidate;
    host.vm.gmemInvalidate = (frame, order) => {
      freed.push(order);
      return invalidate.call(host.vm, frame, order);
    };
    host.process.fallocate(fd, KEEP_SIZE, 0n, 0x40_0000n);
    host.process.fallocate(fd, PUNCH, 0n, 0x20_0000n);
    expect(freed.splice(0)).toEqual([9]);
    host.process.fallocate(fd, PUNCH, 0x20_0000n, 0x2000n);
    expect(freed).toEqual([0, 0]);
  });

  it('give way to single pages when the host has no whole block left', () => {
    const { host, fd, file } = start();
    expect(host.vcpu.id).toBe(0);
    const big = host.createFile(1n << 30n);
    expect(failure(() => host.process.fallocate(big, KEEP_SIZE, 0n, 1n << 30n))).toBe('ENOMEM');
    host.process.fallocate(big, PUNCH, 0x1000n, 0x8000n);
    expect(host.touch(GPA)).toBe(0);
    expect(file.frames).toEqual({ all: 1, huge: 0 });
    expect(failure(() => host.process.fallocate(fd, KEEP_SIZE, 0n, 0x20_0000n))).toBe('ENOMEM');
  });
});

it('with INIT_SHARED the host touches the page of a folio that it means', () => {
  const host = startVm({ gmemHuge: true, type: DEFAULT });
  const { fd, file } = host.addFileSlot({ fileFlags: 3n, size: 0x20_0000n });
  const at = host.process.memory.mmap({ length: 0x20_0000, protection: 3, flags: 1, fd });
  expect(host.touch(GPA + 0x5000)).toBe(0);
  expect(file.frames).toEqual({ all: 512, huge: 512 });
  const word = new Uint8Array(1);
  for (const offset of [0x5000, 0]) {
    host.setGuestWord(GPA + offset, 0x77);
    host.process.memory.read((at + offset) as never, word);
    expect(word[0]).toBe(0x77);
  }
});

describe('the trace', () => {
  it('tells of files that come, are punched and go, and why gfns are taken away', () => {
    const host = startPrivate();
    const events: string[] = [];
    host.trace.listen((event) => {
      if (/^(gmem|inval)/.test(event.what)) events.push([event.what, event.why, event.pages].join(' '));
    });
    const { fd } = host.addFileSlot();
    host.process.fallocate(fd, KEEP_SIZE, 0n, 0x3000n);
    host.process.fallocate(fd, PUNCH, 0x1000n, 0x4000n);
    host.process.fallocate(fd, PUNCH, 0x1000n, 0x4000n);
    host.process.close(fd);
    expect(events).toEqual([
      'gmem-create  16',
      'invalidate punch hole 4',
      'gmem-free punch hole 2',
      'invalidate punch hole 4',
      'invalidate guest_memfd closed 16',
      'gmem-free guest_memfd closed 1',
      'gmem-close  16',
    ]);
  });
});
