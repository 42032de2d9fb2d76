import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { ErrnoName } from '../../../src/base/errors.ts';
import { AssertionError, VmmError } from '../../../src/vmm/error.ts';
import { createGuestMemfd, KvmState } from '../../../src/vmm/kvm-state.ts';
import { DiscardRequirements } from '../../../src/vmm/memory/discard-requirements.ts';
import { memoryRegionHasGuestMemfd, ramRegion, romRegion } from '../../../src/vmm/memory/memory-region.ts';
import type { RamBlock } from '../../../src/vmm/memory/ram-block.ts';
import {
  RAM_GUEST_MEMFD,
  RAM_MIGRATABLE,
  RAM_NAMED_FILE,
  RAM_NORESERVE,
  RAM_PMEM,
  RAM_PREALLOC,
  RAM_PRIVATE,
  RAM_PROTECTED,
  RAM_READONLY,
  RAM_READONLY_FD,
  RAM_RESIZEABLE,
  RAM_SHARED,
  RAM_UF_WRITEPROTECT,
  RAM_UF_ZEROPAGE,
} from '../../../src/vmm/memory/ram-flags.ts';
import { RamList } from '../../../src/vmm/memory/ram-list.ts';
import { RecordingProcess } from '../recording-process.ts';

const GUEST_MEMFD = 0x1000;
const region = { name: 'pc.ram' };

function setUp(options: { kvm?: 'none' } = {}) {
  const process = new RecordingProcess();
  const kvm = options.kvm === 'none' ? undefined : KvmState.open(process, 1);
  const discards = new DiscardRequirements();
  const list = new RamList({ process, kvm, discards });
  process.calls.length = 0;
  const left = () => process.leaks().filter((leak) => leak !== 'VM' && leak !== 'KVM');
  return { process, kvm, discards, list, left };
}

function thrownBy(action: () => unknown): Error {
  try {
    action();
  } catch (error) {
    return error as Error;
  }
  throw new Error('nothing was thrown');
}

describe('RAM flags have the bits that QEMU gives them', () => {
  it.each([
    ['RAM_PREALLOC', RAM_PREALLOC, 0x1],
    ['RAM_SHARED', RAM_SHARED, 0x2],
    ['RAM_RESIZEABLE', RAM_RESIZEABLE, 0x4],
    ['RAM_UF_ZEROPAGE', RAM_UF_ZEROPAGE, 0x8],
    ['RAM_MIGRATABLE', RAM_MIGRATABLE, 0x10],
    ['RAM_PMEM', RAM_PMEM, 0x20],
    ['RAM_UF_WRITEPROTECT', RAM_UF_WRITEPROTECT, 0x40],
    ['RAM_NORESERVE', RAM_NORESERVE, 0x80],
    ['RAM_PROTECTED', RAM_PROTECTED, 0x100],
    ['RAM_NAMED_FILE', RAM_NAMED_FILE, 0x200],
    ['RAM_READONLY', RAM_READONLY, 0x400],
    ['RAM_READONLY_FD', RAM_READONLY_FD, 0x800],
    ['RAM_GUEST_MEMFD', RAM_GUEST_MEMFD, 0x1000],
    ['RAM_PRIVATE', RAM_PRIVATE, 0x2000],
  ])('%s', (_, flag, value) => {
    expect(flag).toBe(value);
  });
});

describe('each allocation accepts its own flags and asserts on the rest', () => {
  const accepted = {
    alloc: 0x2 | 0x80 | 0x1000,
    allocInternal: 0x1 | 0x2 | 0x4 | 0x80 | 0x1000,
    allocFromFd: 0x2 | 0x20 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800 | 0x1000,
  };
  const rows = (['alloc', 'allocInternal', 'allocFromFd'] as const).flatMap((path) =>
    Array.from({ length: 14 }, (_, bit) => [path, bit, (accepted[path] & (1 << bit)) !== 0] as const),
  );
  it.each(rows)('%s with bit %i: accepted is %s', (path, bit, isAccepted) => {
    const { list, process } = setUp();
    const flag = 1 << bit;
    const allocate = (): RamBlock => {
      if (path === 'alloc') return list.alloc({ region, size: 0x1000, flags: flag });
      if (path === 'allocFromFd')
        return list.allocFromFd({ region, size: 0x1000, flags: flag, fd: process.memfdCreate('x') });
      const host =
        flag === 1 ? { host: process.memory.mmap({ length: 0x1000, protection: 3, flags: 0x22 }) } : {};
      return list.allocInternal({ region, size: 0x1000, maxSize: 0x1000, flags: flag, ...host });
    };
    if (isAccepted) expect(allocate().flags).toBe(flag);
    else expect(allocate).toThrow(AssertionError);
  });

  it('host memory without RAM_PREALLOC, and RAM_PREALLOC without host memory, are the caller’s bug', () => {
    const { list, process } = setUp();
    const host = process.memory.mmap({ length: 0x1000, protection: 3, flags: 0x22 });
    const request = { region, size: 0x1000, maxSize: 0x1000 };
    expect(() => list.allocInternal({ ...request, flags: 0, host })).toThrow(AssertionError);
    expect(() => list.allocInternal({ ...request, flags: 1 })).toThrow(AssertionError);
  });

  it('a maximum below the size is the caller’s bug', () => {
    const { list } = setUp();
    expect(() => list.allocInternal({ region, size: 0x2000, maxSize: 0x1000, flags: 4 })).toThrow(
      AssertionError,
    );
  });
});

describe('a block that is added', () => {
  it('has the fields that the seed names: fd and guest_memfd −1 when absent', () => {
    const { list } = setUp();
    const block = list.alloc({ region, size: 0x1001, flags: 0 });
    expect(block).toMatchObject({
      offset: 0,
      usedLength: 0x2000,
      maxLength: 0x2000,
      flags: 0,
      idstr: 'pc.ram',
      fd: -1,
      fdOffset: 0n,
      guestMemfd: -1,
      attributes: undefined,
      pageSize: 4096,
    });
    expect(list.version).toBe(1);
  });

  it('maps anonymous memory private, shared or without reserve as its flags say', () => {
    const { list, process } = setUp();
    list.alloc({ region, size: 0x1000, flags: 0 });
    list.alloc({ region, size: 0x1000, flags: 0x2 });
    list.alloc({ region, size: 0x1000, flags: 0x80 });
    expect(process.of('mmap')).toEqual([
      'mmap(0x1000, 0x3, 0x22)',
      'mmap(0x1000, 0x3, 0x21)',
      'mmap(0x1000, 0x3, 0x4022)',
    ]);
  });

  it('reserves max_length when it can be resized', () => {
    const { list, process } = setUp();
    const block = list.allocResizeable({ region, size: 0x1000, maxSize: 0x8000 });
    expect([block.usedLength, block.maxLength]).toEqual([0x1000, 0x8000]);
    expect(process.of('mmap')).toEqual(['mmap(0x8000, 0x3, 0x22)']);
    expect(() => list.resize(block, 0x2000)).toThrow('resizing RAM block pc.ram');
  });

  it('gets a guest_memfd of max_length with flags 0 when RAM_GUEST_MEMFD is set, and a coordinated discard requirement', () => {
    const { list, process, discards } = setUp();
    const block = list.allocInternal({ region, size: 0x1000, maxSize: 0x8000, flags: GUEST_MEMFD | 4 });
    expect(process.of('createGuestMemfd')).toEqual(['createGuestMemfd(0x8000, 0x0)']);
    expect(process.files.get(block.guestMemfd)?.kind).toBe('guest_memfd');
    expect(block.attributes?.size).toBe(0x8000);
    expect([discards.coordinatedRequired, discards.required]).toEqual([1, 0]);
  });

  it('answers memory_region_has_guest_memfd by its descriptor', () => {
    const { list } = setUp();
    const ram = (name: string, ramFlags: number) =>
      ramRegion(name, 0x1000, (owner) => list.alloc({ region: owner, size: 0x1000, flags: ramFlags }));
    expect(memoryRegionHasGuestMemfd(ram('private', GUEST_MEMFD))).toBe(true);
    expect(memoryRegionHasGuestMemfd(ram('plain', 0))).toBe(false);
    expect(memoryRegionHasGuestMemfd(romRegion(list, 'rom', 0x1000))).toBe(false);
  });

  it('keeps the list from the largest max_length to the smallest, equal ones in order of arrival', () => {
    const { list } = setUp();
    for (const [name, pages] of [
      ['a', 2],
      ['b', 8],
      ['c', 1],
      ['d', 2],
      ['e', 4],
    ] as const) {
      list.alloc({ region: { name }, size: pages * 0x1000, flags: 0 });
    }
    expect(list.blocks.map(({ idstr }) => idstr)).toEqual(['b', 'e', 'a', 'd', 'c']);
    expect(list.version).toBe(5);
  });
});

describe('ram_addr offsets', () => {
  const pages = (list: RamList, name: string, count: number) =>
    list.alloc({ region: { name }, size: count * 0x1000, flags: 0 });

  it('start a word of the dirty bitmap: multiples of 64 pages', () => {
    const { list } = setUp();
    expect(
      [pages(list, 'a', 1), pages(list, 'b', 65), pages(list, 'c', 1)].map(({ offset }) => offset),
    ).toEqual([0x0, 0x40000, 0xc0000]);
  });

  it('fill the smallest gap that fits, not the first', () => {
    const { list } = setUp();
    const [a, b, c, d, e] = [4, 1, 2, 1, 1].map((count, index) => pages(list, `${index}`, count * 64));
    expect([a, b, c, d, e].map((block) => block?.offset)).toEqual([
      0, 0x100000, 0x140000, 0x1c0000, 0x200000,
    ]);
    const after = pages(list, 'last', 64);
    list.free(b!);
    list.free(d!);
    list.free(c!);
    // Free now: [0x100000, 0x200000), and all beyond 0x280000.
    expect(pages(list, 'fits', 64).offset).toBe(0x100000);
    list.free(after);
    expect(pages(list, 'exact', 3 * 64).offset).toBe(0x140000);
  });

  it('fill the first of two gaps of one size', () => {
    const { list } = setUp();
    const blocks = Array.from({ length: 5 }, (_, index) => pages(list, `${index}`, 64));
    list.free(blocks[1]!);
    list.free(blocks[3]!);
    expect(pages(list, 'new', 64).offset).toBe(0x40000);
  });

  it('end where numbers are exact: beyond them there is no gap', () => {
    const { list } = setUp();
    pages(list, 'a', 1);
    expect(() => list.alloc({ region, size: 2 ** 53 - 0x1000, flags: 0 })).toThrow(
      'Failed to find gap of requested size: 0x1ffffffffff000',
    );
  });

  it('never overlap, and never take a gap when a smaller one fits (property)', () => {
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.integer({ min: 1, max: 300 }), fc.boolean()), { maxLength: 30 }),
        (steps) => {
          const { list } = setUp();
          for (const [index, [count, free]] of steps.entries()) {
            if (free && list.blocks.length > 1) {
              const victim = list.blocks[count % list.blocks.length]!;
              list.free(victim);
              continue;
            }
            const gaps = gapsOf(list.blocks);
            const block = pages(list, `${index}`, count);
            if (gaps === undefined) {
              expect(block.offset).toBe(0);
              continue;
            }
            const fitting = gaps.filter(({ length }) => length >= count * 0x1000);
            expect(block.offset).toBe(
              fitting.reduce((best, gap) => (gap.length < best.length ? gap : best)).start,
            );
          }
          const sorted = [...list.blocks].sort((x, y) => x.offset - y.offset);
          for (let i = 1; i < sorted.length; i++) {
            expect(sorted[i]!.offset).toBeGreaterThanOrEqual(
              sorted[i - 1]!.offset + sorted[i - 1]!.maxLength,
            );
          }
        },
      ),
    );
  });

  /** Room behind each block, as a plain walk over the sorted list sees it; below the first block there is none to have. */
  function gapsOf(blocks: readonly RamBlock[]): { start: number; length: number }[] | undefined {
    if (blocks.length === 0) return undefined;
    const sorted = [...blocks].sort((x, y) => x.offset - y.offset);
    return sorted.map((block, index) => {
      const start = Math.ceil((block.offset + block.maxLength) / 0x40000) * 0x40000;
      const next = sorted[index + 1]?.offset ?? Number.MAX_SAFE_INTEGER;
      return { start, length: next - start };
    });
  }
});

describe('support of guest_memfd needs all three capabilities', () => {
  it.each([
    ['GUEST_MEMFD', 234, 0],
    ['USER_MEMORY2', 231, 0],
    ['the PRIVATE attribute', 233, 0],
    ['the PRIVATE attribute among others', 233, 7],
  ])('without %s: "KVM does not support guest_memfd"', (_, capability, answer) => {
    const process = new RecordingProcess();
    process.capabilities[capability] = answer;
    const kvm = KvmState.open(process, 1);
    expect(kvm.guestMemfdSupported).toBe(false);
    expect(() => createGuestMemfd(kvm, 0x1000, 0n)).toThrow('KVM does not support guest_memfd');
    expect(process.of('createGuestMemfd')).toEqual([]);
  });

  it('without KVM at all the stub answers −ENOSYS and sets no error', () => {
    expect(createGuestMemfd(undefined, 0x1000, 0n)).toBe(-38);
  });

  it('what the kernel refuses is named with its errno', () => {
    const process = new RecordingProcess();
    const kvm = KvmState.open(process, 1);
    process.fail('createGuestMemfd', 'EMFILE');
    const error = thrownBy(() => createGuestMemfd(kvm, 0x1000, 0n));
    expect(error).toBeInstanceOf(VmmError);
    expect(error).toMatchObject({
      errno: 24,
      message: expect.stringContaining('Error creating KVM guest_memfd: EMFILE'),
    });
  });
});

describe('whatever step of adding a block fails, nothing is left behind and the list is not locked', () => {
  type Fault = (world: ReturnType<typeof setUp>) => void;
  const refuse =
    (call: string, code: ErrnoName): Fault =>
    ({ process }) =>
      process.fail(call, code);
  const blockDiscards: Fault = ({ discards }) => discards.disable('take');
  const noSupport: Fault = ({ kvm }) => Object.assign(kvm as object, { guestMemfdSupported: false });

  const steps: [string, 'anonymous' | 'fd', Fault, string][] = [
    [
      'anonymous memory',
      'anonymous',
      refuse('mmap', 'ENOMEM'),
      "cannot set up guest memory 'pc.ram': ENOMEM",
    ],
    [
      'discards are disabled (QEMU 10.2 leaves the list locked)',
      'anonymous',
      blockDiscards,
      'discard currently blocked',
    ],
    ['no support', 'anonymous', noSupport, 'KVM does not support guest_memfd'],
    [
      'guest_memfd (QEMU 10.2 keeps the discard requirement)',
      'anonymous',
      refuse('createGuestMemfd', 'ENOMEM'),
      'Error creating KVM guest_memfd: ENOMEM',
    ],
    ['the size of the file', 'fd', refuse('fstat', 'EIO'), "can't stat backing store: EIO"],
    ['growing the file', 'fd', refuse('ftruncate', 'ENOSPC'), "can't grow backing store: ENOSPC"],
    ['mapping the file', 'fd', refuse('mmap', 'ENODEV'), 'unable to map backing store for guest RAM: ENODEV'],
    ['discards are disabled, with a file', 'fd', blockDiscards, 'discard currently blocked'],
    [
      'guest_memfd, with a file (the seed leaks the mapping)',
      'fd',
      refuse('createGuestMemfd', 'EMFILE'),
      'Error creating KVM guest_memfd: EMFILE',
    ],
  ];
  it.each(steps)('%s (%s)', (_, backing, inject, message) => {
    const world = setUp();
    const { list, process, discards, left } = world;
    const first = list.alloc({ region: { name: 'first' }, size: 0x1000, flags: 0 });
    const fd = backing === 'fd' ? process.memfdCreate('x') : -1;
    const before = left();
    const version = list.version;
    inject(world);
    const allocate = () =>
      backing === 'fd'
        ? list.allocFromFd({ region, size: 0x2000, flags: GUEST_MEMFD, fd })
        : list.alloc({ region, size: 0x2000, flags: GUEST_MEMFD });
    const error = thrownBy(allocate);
    expect(error).toBeInstanceOf(VmmError);
    expect(error.message).toContain(message);
    expect(left()).toEqual(before);
    expect(discards.coordinatedRequired).toBe(0);
    expect(list.locked).toBe(false);
    expect(list.version).toBe(version);
    expect(list.blocks).toEqual([first]);

    if (discards.disabled > 0) discards.disable('release');
    Object.assign(world.kvm as object, { guestMemfdSupported: true });
    expect(allocate().guestMemfd).toBeGreaterThan(0);
  });

  it('KVM is missing: an error, not an assertion (QEMU 10.2 leaves the list locked)', () => {
    const { list, discards, left } = setUp({ kvm: 'none' });
    expect(() => list.alloc({ region, size: 0x1000, flags: GUEST_MEMFD })).toThrow(
      'cannot set up private guest memory for pc.ram: KVM required',
    );
    expect([left(), list.locked, discards.coordinatedRequired]).toEqual([[], false, 0]);
  });

  it('a block whose pages are too many to count: an error, and nothing is left', () => {
    const { list, discards, left } = setUp();
    expect(() => list.alloc({ region, size: 2 ** 50, flags: GUEST_MEMFD })).toThrow(
      'Failed to create ram block attributes for 0x4000000000000 bytes',
    );
    expect([left(), list.locked, discards.coordinatedRequired]).toEqual([[], false, 0]);
  });

  it('memory that the caller supplied is not touched', () => {
    const { list, process, left } = setUp();
    const host = process.memory.mmap({ length: 0x1000, protection: 3, flags: 0x22 });
    const before = left();
    process.fail('createGuestMemfd', 'ENOMEM');
    const flagsOfBlock = 1 | GUEST_MEMFD;
    expect(() =>
      list.allocInternal({ region, size: 0x1000, maxSize: 0x1000, flags: flagsOfBlock, host }),
    ).toThrow('ENOMEM');
    expect(left()).toEqual(before);
  });

  it('less memory than a page of its file is refused before the file is looked at', () => {
    const { list, process } = setUp();
    const fd = process.memfdCreate('huge');
    process.calls.length = 0;
    expect(() => list.allocFromFd({ region, size: 0x1ff000, flags: 0, fd, pageSize: 0x200000 })).toThrow(
      'pc.ram: memory size 0x1ff000 must be equal to or larger than page size 0x200000',
    );
    expect(process.calls).toEqual([]);
  });

  it('a file that is too small is refused before it is mapped', () => {
    const { list, process } = setUp();
    const fd = process.memfdCreate('x');
    process.ftruncate(fd, 0x1000n);
    expect(() => list.allocFromFd({ region, size: 0x2000, flags: 0, fd })).toThrow(
      "backing store size 0x1000 does not match 'size' option 0x2000",
    );
    expect(process.of('mmap')).toEqual([]);
  });
});

describe('reclaiming a block', () => {
  it.each([
    ['anonymous', ['munmap(0x2000)', 'close(guest_memfd)']],
    ['fd', ['munmap(0x2000)', 'close(memfd)', 'close(guest_memfd)']],
    ['prealloc', ['close(guest_memfd)']],
  ] as const)('%s: host memory first, the guest_memfd last', (backing, expected) => {
    const { list, process, discards } = setUp();
    const request = { region, size: 0x2000, maxSize: 0x2000 };
    const block =
      backing === 'anonymous'
        ? list.alloc({ ...request, flags: GUEST_MEMFD })
        : backing === 'fd'
          ? list.allocFromFd({ ...request, flags: GUEST_MEMFD, fd: process.memfdCreate('x') })
          : list.allocInternal({
              ...request,
              flags: GUEST_MEMFD | 1,
              host: process.memory.mmap({ length: 0x2000, protection: 3, flags: 0x22 }),
            });
    process.calls.length = 0;
    list.free(block);
    expect(process.calls).toEqual(expected);
    expect(discards.coordinatedRequired).toBe(0);
    expect(list.blocks).toEqual([]);
    expect(list.version).toBe(2);
  });

  it('a block that is not in the list is the caller’s bug', () => {
    const { list } = setUp();
    const block = list.alloc({ region, size: 0x1000, flags: 0 });
    list.free(block);
    expect(() => list.free(block)).toThrow(AssertionError);
  });
});
