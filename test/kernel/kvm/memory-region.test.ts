/** KVM_SET_USER_MEMORY_REGION and …_REGION2, row by row (reference facts 1.4), and what follows from the rules. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { UserMemoryRegion2 } from '../../../src/kernel/interface.ts';
import { failure } from '../process-fixture.ts';
import { BOTH_KERNELS, DEFAULT, SW_PROTECTED, startVm, type TestVm } from './vm-fixture.ts';

type Request = Partial<UserMemoryRegion2>;
const LOG_DIRTY = 1;
const READONLY = 2;
const GUEST_MEMFD = 4;

it('a slot without memory for its tables is refused: ENOMEM', () => {
  const host = startVm();
  host.vm.attributes.ranges.forEachBoundary = () => {
    throw new RangeError('Array buffer allocation failed');
  };
  expect(failure(() => host.setRegion())).toBe('ENOMEM');
  expect(host.slot()).toBeUndefined();
});

describe.each(BOTH_KERNELS)('a new slot without a file on %s', (kernel) => {
  const rows: [string, Request, string][] = [
    ['as it should be', {}, 'OK'],
    ['3: the last id of user space', { slot: 32763 }, 'OK'],
    ['3: the first id of KVM’s own', { slot: 32764 }, 'EINVAL'],
    ['3: the largest id', { slot: 0xffff }, 'EINVAL'],
    ['4: LOG_DIRTY', { flags: 1 }, 'OK'],
    ['4: READONLY', { flags: 2 }, 'OK'],
    ['4: LOG_DIRTY and READONLY', { flags: 3 }, 'OK'],
    ['4: a flag that nobody knows', { flags: 8 }, 'EINVAL'],
    ['4: the internal flag INVALID', { flags: 1 << 16 }, 'EINVAL'],
    ['4: the internal flag GMEM_ONLY', { flags: 1 << 17 }, 'EINVAL'],
    ['4: the top flag', { flags: 0x8000_0000 }, 'EINVAL'],
    ['5: a size that is not whole pages', { memorySize: 0x1001n }, 'EINVAL'],
    ['5: a guest address inside a page', { guestPhysAddr: 0x20_0800n }, 'EINVAL'],
    ['6: a user address inside a page', { userspaceAddr: 0x7000_0000_0008n }, 'EINVAL'],
    ['6: user address 0', { userspaceAddr: 0n }, 'OK'],
    ['6: the last page of user space', { userspaceAddr: 0x7fff_ffff_e000n, memorySize: 0x1000n }, 'OK'],
    [
      '6: the page that user space lacks',
      { userspaceAddr: 0x7fff_ffff_f000n, memorySize: 0x1000n },
      'EINVAL',
    ],
    ['6: across the end of user space', { userspaceAddr: 0x7fff_ffff_e000n, memorySize: 0x2000n }, 'EINVAL'],
    ['6: a kernel address', { userspaceAddr: 0xffff_8880_0000_0000n }, 'EINVAL'],
    ['6: a tagged address', { userspaceAddr: 0x0100_7000_0000_0000n }, 'EINVAL'],
    ['7: an offset without GUEST_MEMFD is not looked at', { guestMemfdOffset: 0x801n }, 'OK'],
    ['8: address space 2', { slot: 0x2_0000 }, 'EINVAL'],
    ['8: the largest address space', { slot: 0xffff_0000 }, 'EINVAL'],
    [
      '9: the guest address wraps around',
      { guestPhysAddr: 0xffff_ffff_ffff_0000n, memorySize: 0x2_0000n },
      'EINVAL',
    ],
    ['9: the end is 2^64', { guestPhysAddr: 0xffff_ffff_ffff_0000n, memorySize: 0x1_0000n }, 'EINVAL'],
    ['10: 2^31 − 1 pages', { memorySize: 0x7ff_ffff_f000n, userspaceAddr: 0n, guestPhysAddr: 0n }, 'OK'],
    ['10: 2^31 pages', { memorySize: 0x800_0000_0000n, userspaceAddr: 0n, guestPhysAddr: 0n }, 'EINVAL'],
    ['11: size 0 and no such slot', { memorySize: 0n }, 'EINVAL'],
    ['18: a descriptor without GUEST_MEMFD is not looked at', { guestMemfd: 0xffff_ffff }, 'OK'],
    ['22: the last page of 48 bits', { guestPhysAddr: 0xffff_ffff_f000n, memorySize: 0x1000n }, 'OK'],
    ['22: beyond 48 bits', { guestPhysAddr: 0x1_0000_0000_0000n, memorySize: 0x1000n }, 'EINVAL'],
    ['22: across the end of 48 bits', { guestPhysAddr: 0xffff_ffff_f000n, memorySize: 0x2000n }, 'EINVAL'],
  ];
  it.each(rows)('%s', (_, request, want) => {
    const host = startVm({ kernel });
    expect(failure(() => host.setRegion(request))).toBe(want);
    expect(host.vm.slots.all().length).toBe(want === 'OK' ? 1 : 0);
  });

  it('8: a default VM has an address space for SMM, a protected one has not', () => {
    const host = startVm({ kernel, type: DEFAULT });
    expect(failure(() => host.setRegion({ slot: 0x1_0000 }))).toBe('OK');
    expect(host.slot(0, 1)).toMatchObject({ id: 0, asId: 1, npages: 16 });
    expect(host.slot(0, 0)).toBeUndefined();
    expect(failure(() => startVm({ kernel }).setRegion({ slot: 0x1_0000 }))).toBe('EINVAL');
  });
});

describe.each(BOTH_KERNELS)('the first form of the ioctl on %s', (kernel) => {
  it.each([
    [0, 'OK'],
    [1, 'OK'],
    [2, 'OK'],
    [3, 'OK'],
    [4, 'EINVAL'],
    [5, 'EINVAL'],
    [8, 'EINVAL'],
    [0x8000_0000, 'EINVAL'],
  ])('1: flags %i: %s', (flags, want) => {
    const { vm } = startVm({ kernel });
    const region = { slot: 0, guestPhysAddr: 0n, memorySize: 0x1000n, userspaceAddr: 0n };
    expect(failure(() => vm.setUserMemoryRegion({ ...region, flags }))).toBe(want);
  });

  it('deletes a slot that has a file', () => {
    const host = startVm({ kernel });
    host.addFileSlot();
    const request = { slot: 0, flags: 0, guestPhysAddr: 0n, memorySize: 0n, userspaceAddr: 0n };
    host.vm.setUserMemoryRegion(request);
    expect(host.slot()).toBeUndefined();
  });
});

describe.each(BOTH_KERNELS)('a new slot with a file on %s', (kernel) => {
  const rows: [string, Request, string][] = [
    ['as it should be', {}, 'OK'],
    ['4: with LOG_DIRTY', { flags: GUEST_MEMFD | LOG_DIRTY }, 'EINVAL'],
    ['4: with READONLY', { flags: GUEST_MEMFD | READONLY }, 'EINVAL'],
    ['6: user address 0, with nothing mapped', { userspaceAddr: 0n }, 'OK'],
    ['6: a user address that is none', { userspaceAddr: 0xffff_8880_0000_0000n }, 'EINVAL'],
    ['7: an offset inside a page', { guestMemfdOffset: 0x800n }, 'EINVAL'],
    ['7: offset and size wrap around', { guestMemfdOffset: 0xffff_ffff_ffff_0000n }, 'EINVAL'],
    ['18: descriptor −1', { guestMemfd: 0xffff_ffff }, 'EBADF'],
    ['18: a descriptor that is not open', { guestMemfd: 999 }, 'EBADF'],
    [
      '7: offset and size wrap around, before 18',
      { guestMemfdOffset: 0xffff_ffff_ffff_0000n, guestMemfd: 999 },
      'EINVAL',
    ],
    [
      '9: gpa and size wrap around, before 18',
      { guestPhysAddr: 0xffff_ffff_ffff_0000n, guestMemfd: 999 },
      'EINVAL',
    ],
    ['20: an offset with room for the slot', { guestMemfdOffset: 0x1_0000n }, 'OK'],
    ['20: a slot that ends a page beyond the file', { guestMemfdOffset: 0x1_1000n }, 'EINVAL'],
    ['20: the file’s end as offset', { guestMemfdOffset: 0x2_0000n }, 'EINVAL'],
    ['20: the largest aligned positive offset', { guestMemfdOffset: 0x7fff_ffff_ffff_f000n }, 'EINVAL'],
    ['20: a negative offset', { guestMemfdOffset: 0x8000_0000_0000_0000n }, 'EINVAL'],
    ['20: −64 KiB − 4 KiB', { guestMemfdOffset: 0xffff_ffff_fffe_f000n }, 'EINVAL'],
    ['22: beyond 48 bits', { guestPhysAddr: 0x1_0000_0000_0000n }, 'EINVAL'],
  ];
  it.each(rows)('%s', (_, request, want) => {
    const host = startVm({ kernel });
    const guestMemfd = host.createFile(0x2_0000n);
    expect(failure(() => host.setRegion({ flags: 4, guestMemfd, ...request }))).toBe(want);
    expect(host.vm.slots.all().length).toBe(want === 'OK' ? 1 : 0);
  });

  it('19: what is no guest_memfd, or another VM’s: EINVAL', () => {
    const host = startVm({ kernel });
    const other = host.kvm.createVm(SW_PROTECTED);
    const files = [
      host.kvm.fd,
      host.vm.fd,
      host.process.memfdCreate('ram'),
      host.process.open('/ram'),
      other.createGuestMemfd({ size: 0x1_0000n, flags: 0n }),
    ];
    for (const guestMemfd of files)
      expect(failure(() => host.setRegion({ flags: 4, guestMemfd }))).toBe('EINVAL');
    expect(() => host.setRegion({ flags: 4, guestMemfd: files[0]! })).toThrow('is no guest_memfd');
  });

  it('21: file pages that another slot has', () => {
    const host = startVm({ kernel });
    const guestMemfd = host.createFile(0x4_0000n);
    const bind = (slot: number, first: bigint, pages: bigint): string =>
      failure(() =>
        host.setRegion({
          slot,
          flags: 4,
          guestMemfd,
          guestMemfdOffset: first * 4096n,
          memorySize: pages * 4096n,
          guestPhysAddr: BigInt(slot) << 24n,
        }),
      );
    const overlap = kernel === '6.12' ? 'EINVAL' : 'EEXIST';
    expect(bind(0, 16n, 16n)).toBe('OK');
    expect(bind(1, 16n, 16n)).toBe(overlap);
    expect(bind(1, 31n, 1n)).toBe(overlap);
    expect(bind(1, 0n, 17n)).toBe(overlap);
    expect(bind(1, 20n, 2n)).toBe(overlap);
    expect(bind(1, 0n, 64n)).toBe(overlap);
    expect(bind(1, 0n, 16n)).toBe('OK');
    expect(bind(2, 32n, 32n)).toBe('OK');
  });

  it('a slot that was refused behind the binding leaves the file’s pages free', () => {
    const host = startVm({ kernel });
    const guestMemfd = host.createFile();
    const request = { flags: 4, guestMemfd };
    expect(failure(() => host.setRegion({ ...request, guestPhysAddr: 1n << 48n }))).toBe('EINVAL');
    expect(failure(() => host.setRegion(request))).toBe('OK');
  });

  it('a slot that was deleted leaves the file’s pages free, and their content in them', () => {
    const host = startVm({ kernel });
    const { fd } = host.addFileSlot();
    host.setAttributes(0x20_0000n, 0x1_0000n, 8n);
    expect(host.touch(0x20_3000)).toBe(0);
    host.setGuestWord(0x20_3000, 0x5ec4e7);
    host.setRegion({ memorySize: 0n });
    host.setRegion({ slot: 5, flags: 4, guestMemfd: fd });
    expect(host.touch(0x20_3000)).toBe(0);
    expect(host.guestWord(0x20_3000)).toBe(0x5ec4e7);
  });

  it('pages of the slot are those of the file from the offset on', () => {
    const host = startVm({ kernel });
    const guestMemfd = host.createFile(0x4_0000n);
    const half = { flags: 4, guestMemfd, memorySize: 0x2_0000n };
    host.setRegion({ ...half, slot: 0, guestMemfdOffset: 0x2_0000n });
    host.setRegion({ ...half, slot: 1, guestPhysAddr: 0x30_0000n });
    host.setAttributes(0x20_0000n, 0x20_0000n, 8n);
    expect(host.touch(0x20_1000)).toBe(0);
    host.setGuestWord(0x20_1000, 33);
    host.setRegion({ slot: 0, memorySize: 0n });
    host.setRegion({ slot: 1, memorySize: 0n });
    host.setRegion({ ...half, slot: 2, memorySize: 0x4_0000n });
    expect(host.touch(0x22_1000)).toBe(0);
    expect(host.guestWord(0x22_1000)).toBe(33);
  });
});

describe('GUEST_MEMFD in a VM without private memory', () => {
  it.each([
    ['6.12', 'EINVAL'],
    ['7.2', 'OK'],
  ] as const)('4: on %s: %s', (kernel, want) => {
    const host = startVm({ kernel, type: DEFAULT });
    const guestMemfd = host.createFile();
    expect(failure(() => host.setRegion({ flags: 4, guestMemfd }))).toBe(want);
  });
});

describe.each(BOTH_KERNELS)('a slot without a file that exists, on %s', (kernel) => {
  const MOVED = { guestPhysAddr: 0x40_0000n };
  const rows: [string, Request, string][] = [
    ['13: gets a file', { flags: 4, guestMemfd: 999 }, 'EINVAL'],
    ['14: another user address', { userspaceAddr: 0x7000_0030_0000n }, 'EINVAL'],
    ['14: another size', { memorySize: 0x2_0000n }, 'EINVAL'],
    ['14: becomes READONLY', { flags: READONLY }, 'EINVAL'],
    ['14: becomes READONLY as it moves', { ...MOVED, flags: READONLY }, 'EINVAL'],
    ['15: the same again', {}, 'OK'],
    ['15: LOG_DIRTY', { flags: LOG_DIRTY }, 'OK'],
  ];
  it.each(rows)('%s', (_, request, want) => {
    const host = startVm({ kernel, type: DEFAULT });
    host.setRegion();
    expect(failure(() => host.setRegion(request))).toBe(want);
    expect(host.slot()).toMatchObject({
      baseGfn: 0x200,
      npages: 16,
      flags: want === 'OK' ? (request.flags ?? 0) : 0,
    });
  });

  it('14: a read-only slot cannot become writable', () => {
    const host = startVm({ kernel, type: DEFAULT });
    host.setRegion({ flags: READONLY });
    expect(failure(() => host.setRegion())).toBe('EINVAL');
    expect(failure(() => host.setRegion({ flags: READONLY | LOG_DIRTY }))).toBe('OK');
  });

  it('15: LOG_DIRTY comes and goes; when it comes the guest’s right to write goes', () => {
    const host = startVm({ kernel, type: DEFAULT });
    const hva = host.process.memory.mmap({ length: 0x1_0000, protection: 3, flags: 0x22 });
    const slot = { userspaceAddr: BigInt(hva) };
    host.setRegion(slot);
    expect(host.touch(0x20_0000)).toBe(0);
    expect(host.mapped(0x20_0000)).toMatchObject({ writable: true });
    host.setRegion({ ...slot, flags: LOG_DIRTY });
    expect(host.slot()!.flags).toBe(1);
    expect(host.mapped(0x20_0000)?.writable ?? false).toBe(false);
    host.setRegion(slot);
    expect(host.slot()!.flags).toBe(0);
  });

  it('15: moves, together with a change of LOG_DIRTY, and takes its content along', () => {
    const host = startVm({ kernel, type: DEFAULT });
    const hva = host.process.memory.mmap({ length: 0x1_0000, protection: 3, flags: 0x22 });
    const slot = { userspaceAddr: BigInt(hva) };
    host.setRegion(slot);
    expect(host.touch(0x20_1000)).toBe(0);
    host.setGuestWord(0x20_1000, 77);
    host.setRegion({ ...slot, ...MOVED, flags: LOG_DIRTY });
    expect(host.mapped(0x20_1000)).toBeUndefined();
    expect(host.slot()).toMatchObject({ baseGfn: 0x400, flags: 1, invalid: false });
    expect(host.vm.slots.find(0x200 as never)).toBeUndefined();
    expect(host.touch(0x40_1000)).toBe(0);
    expect(host.guestWord(0x40_1000)).toBe(77);
  });

  it('15: may move to where it overlaps itself', () => {
    const host = startVm({ kernel, type: DEFAULT });
    host.setRegion();
    host.setRegion({ guestPhysAddr: 0x20_8000n });
    expect(host.slot()).toMatchObject({ baseGfn: 0x208 });
    expect(host.vm.slots.all().length).toBe(1);
  });

  it('16: must not move onto another one, and stays where it was', () => {
    const host = startVm({ kernel, type: DEFAULT });
    host.setRegion();
    host.setRegion({ slot: 1, guestPhysAddr: 0x40_0000n });
    expect(failure(() => host.setRegion({ guestPhysAddr: 0x40_f000n }))).toBe('EEXIST');
    expect(host.slot()).toMatchObject({ baseGfn: 0x200, invalid: false });
    expect(host.vm.slots.find(0x200 as never)).toBe(host.slot());
  });

  it('22: must not move beyond 48 bits, nor at all where memory is private', () => {
    const host = startVm({ kernel, type: DEFAULT });
    host.setRegion();
    expect(failure(() => host.setRegion({ guestPhysAddr: 1n << 48n }))).toBe('EINVAL');
    const guarded = startVm({ kernel });
    guarded.setRegion();
    expect(failure(() => guarded.setRegion(MOVED))).toBe('EINVAL');
    expect(guarded.slot()).toMatchObject({ baseGfn: 0x200 });
  });

  it('22: a move that fails then has taken the mappings all the same', () => {
    const host = startVm({ kernel, type: DEFAULT });
    const hva = host.process.memory.mmap({ length: 0x1_0000, protection: 3, flags: 0x22 });
    const slot = { userspaceAddr: BigInt(hva) };
    host.setRegion(slot);
    expect(host.touch(0x20_1000)).toBe(0);
    host.setGuestWord(0x20_1000, 77);
    expect(failure(() => host.setRegion({ ...slot, guestPhysAddr: 1n << 48n }))).toBe('EINVAL');
    expect(host.mapped(0x20_1000)).toBeUndefined();
    expect(host.touch(0x20_1000)).toBe(0);
    expect(host.guestWord(0x20_1000)).toBe(77);
  });

  it('11: is deleted by size 0, whatever its address and flags', () => {
    const host = startVm({ kernel, type: DEFAULT });
    host.setRegion({ flags: LOG_DIRTY });
    host.setRegion({ memorySize: 0n, flags: READONLY, guestPhysAddr: 0n, userspaceAddr: 0n });
    expect(host.slot()).toBeUndefined();
    expect(failure(() => host.setRegion({ memorySize: 0n }))).toBe('EINVAL');
  });

  it('16: overlap counts within an address space', () => {
    const host = startVm({ kernel, type: DEFAULT });
    host.setRegion();
    const add = (slot: number, guestPhysAddr: bigint, memorySize = 0x1000n): string =>
      failure(() => host.setRegion({ slot, guestPhysAddr, memorySize }));
    expect(add(1, 0x20_0000n)).toBe('EEXIST');
    expect(add(1, 0x20_f000n)).toBe('EEXIST');
    expect(add(1, 0x1f_f000n, 0x2000n)).toBe('EEXIST');
    expect(add(1, 0x1f_f000n, 0x1_2000n)).toBe('EEXIST');
    expect(add(1, 0x1f_f000n)).toBe('OK');
    expect(add(2, 0x21_0000n)).toBe('OK');
    expect(add(0x1_0001, 0x20_0000n)).toBe('OK');
    expect(add(0x1_0002, 0x20_0000n)).toBe('EEXIST');
  });
});

describe.each(BOTH_KERNELS)('a slot with a file that exists, on %s', (kernel) => {
  const rows: [string, Request, string][] = [
    ['13: the same again', {}, 'EINVAL'],
    ['13: moves', { guestPhysAddr: 0x40_0000n }, 'EINVAL'],
    ['13: another size', { memorySize: 0x1000n }, 'EINVAL'],
    ['14: loses its file', { flags: 0 }, 'EINVAL'],
    ['11: goes, by size 0', { flags: 0, memorySize: 0n }, 'OK'],
    [
      '11: goes, with GUEST_MEMFD and a descriptor that is not open',
      { memorySize: 0n, guestMemfd: 999 },
      'OK',
    ],
  ];
  it.each(rows)('%s', (_, request, want) => {
    const host = startVm({ kernel });
    const { fd } = host.addFileSlot();
    expect(failure(() => host.setRegion({ flags: 4, guestMemfd: fd, ...request }))).toBe(want);
    expect(host.slot() === undefined).toBe(want === 'OK');
  });

  it('is there but INVALID while its mappings go, and a fault on it is tried again', () => {
    const host = startVm({ kernel });
    host.addFileSlot();
    host.setAttributes(0x20_0000n, 0x1_0000n, 8n);
    expect(host.touch(0x20_0000)).toBe(0);
    const seen: unknown[] = [];
    host.trace.listen((event) => {
      if (event.what === 'unmapped') seen.push(host.vm.slots.find(0x200 as never)?.invalid);
    });
    host.setRegion({ memorySize: 0n });
    expect(seen).toEqual([true]);
    expect(host.vm.slots.find(0x200 as never)).toBeUndefined();
  });

  it('attributes outlive it', () => {
    const host = startVm({ kernel });
    host.addFileSlot();
    host.setAttributes(0x20_0000n, 0x1000n, 8n);
    host.setRegion({ memorySize: 0n });
    expect(host.vm.attributes.isPrivate(0x200 as never)).toBe(true);
    expect(host.touch(0x20_0000)).toBe(-14);
    expect(host.vcpu.kvmRun.exitReason).toBe(39);
  });
});

describe('GMEM_ONLY', () => {
  it.each([
    ['7.2', 0, 1n, true],
    ['7.2', 0, 3n, true],
    ['7.2', 0, 0n, false],
    ['7.2', 1, 1n, true],
    ['7.2', 1, 0n, false],
    ['6.12', 1, 0n, false],
  ] as const)('on %s, VM type %i, file flags %i: %s', (kernel, type, fileFlags, want) => {
    const host = startVm({ kernel, type });
    host.addFileSlot({ fileFlags });
    expect(host.slot()!.gmemOnly).toBe(want);
  });
});

describe('many slots', () => {
  it('32764 fit, and one more does not', () => {
    const host = startVm({ type: DEFAULT });
    for (let slot = 0; slot < 32764; slot++)
      host.setRegion({ slot, guestPhysAddr: BigInt((slot * 7919) % 32764) * 0x2000n, memorySize: 0x1000n });
    expect(failure(() => host.setRegion({ slot: 32764, guestPhysAddr: 1n << 40n }))).toBe('EINVAL');
    expect(host.vm.slots.find(0 as never)?.id).toBe(0);
    expect(host.vm.slots.find(1 as never)).toBeUndefined();
    expect(host.vm.slots.find((2 * 7919) as never)?.id).toBe(1);
  });

  it('are found whichever was found before, from their first page to their last', () => {
    const host = startVm();
    host.setRegion();
    host.setRegion({ slot: 1, guestPhysAddr: 0x40_0000n });
    const found = [0x400, 0x200, 0x20f, 0x400, 0x1ff, 0x210, 0x40f, 0x410].map(
      (gfn) => host.vm.slots.find(gfn as never)?.id,
    );
    expect(found).toEqual([1, 0, 0, 1, undefined, undefined, 1, undefined]);
  });

  it('are found as in a list, whatever comes and goes', () => {
    const step = fc.record({ slot: fc.nat(5), gfn: fc.nat(60), pages: fc.nat(12) });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 30 }), (steps) => {
        const host = startVm({ type: DEFAULT, bytes: 1 << 20 });
        const model = new Map<number, { gfn: number; pages: number }>();
        for (const { slot, gfn, pages } of steps) {
          const result = failure(() =>
            host.setRegion({
              slot,
              guestPhysAddr: BigInt(gfn * 4096),
              memorySize: BigInt(pages * 4096),
              userspaceAddr: 0n,
            }),
          );
          expect(result).toBe(modelStep(model, slot, gfn, pages));
        }
        for (let gfn = 0; gfn < 80; gfn++) {
          const want = [...model].find(([, s]) => gfn >= s.gfn && gfn < s.gfn + s.pages)?.[0];
          expect(host.vm.slots.find(gfn as never)?.id).toBe(want);
        }
      }),
      { numRuns: 60 },
    );
  });
});

function modelStep(
  model: Map<number, { gfn: number; pages: number }>,
  slot: number,
  gfn: number,
  pages: number,
): string {
  const old = model.get(slot);
  if (pages === 0) return model.delete(slot) ? 'OK' : 'EINVAL';
  if (old !== undefined && old.pages !== pages) return 'EINVAL';
  for (const [id, other] of model) {
    if (id !== slot && gfn < other.gfn + other.pages && other.gfn < gfn + pages) return 'EEXIST';
  }
  model.set(slot, { gfn, pages });
  return 'OK';
}

describe('the trace', () => {
  it('tells of slots that come, change, move and go', () => {
    const host: TestVm = startVm({ type: DEFAULT });
    const events: string[] = [];
    host.trace.listen((event) => {
      if (event.what.startsWith('slot-'))
        events.push(`${event.what} ${event['slot' as string]} ${event.gfn} ${event.pages}`);
    });
    host.setRegion();
    host.setRegion();
    host.setRegion({ flags: 1 });
    host.setRegion({ flags: 1, guestPhysAddr: 0x40_0000n });
    host.setRegion({ memorySize: 0n });
    expect(events).toEqual([
      'slot-create 0 512 16',
      'slot-flags 0 512 16',
      'slot-move 0 1024 16',
      'slot-delete 0 1024 16',
    ]);
  });
});
