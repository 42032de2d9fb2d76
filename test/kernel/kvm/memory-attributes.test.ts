/** KVM_SET_MEMORY_ATTRIBUTES: its checks, what it means, and the ranges behind it (reference facts 1.5). */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Gfn } from '../../../src/base/address.ts';
import { PrivateRanges } from '../../../src/kernel/kvm/private-ranges.ts';
import { failure } from '../process-fixture.ts';
import { BOTH_KERNELS, DEFAULT, startVm, type TestVm } from './vm-fixture.ts';

const isPrivate = (host: TestVm, gfn: number): boolean => host.vm.attributes.isPrivate(gfn as Gfn);

describe.each(BOTH_KERNELS)('KVM_SET_MEMORY_ATTRIBUTES on %s', (kernel) => {
  const GOOD = { address: 0x1000n, size: 0x1000n, attributes: 8n, flags: 0n };
  it.each([
    ['a page becomes private', {}, 'OK'],
    ['without any slot', { address: 1n << 40n }, 'OK'],
    ['a page becomes shared', { attributes: 0n }, 'OK'],
    ['flags', { flags: 1n }, 'EINVAL'],
    ['the top flag', { flags: 1n << 63n }, 'EINVAL'],
    ['READ, WRITE or EXECUTE', { attributes: 1n }, 'EINVAL'],
    ['PRIVATE and another', { attributes: 12n }, 'EINVAL'],
    ['the top attribute', { attributes: 1n << 63n }, 'EINVAL'],
    ['size 0', { size: 0n }, 'EINVAL'],
    ['the end wraps around', { address: 0xffff_ffff_ffff_f000n, size: 0x2000n }, 'EINVAL'],
    ['the end is 2^64', { address: 0xffff_ffff_ffff_f000n, size: 0x1000n }, 'EINVAL'],
    ['the last page but one of 2^64', { address: 0xffff_ffff_ffff_e000n, size: 0x1000n }, 'OK'],
    ['all but the last page of 2^64', { address: 0n, size: 0xffff_ffff_ffff_f000n }, 'OK'],
    ['an address inside a page', { address: 0x1800n }, 'EINVAL'],
    ['a size that is not whole pages', { size: 0x1800n }, 'EINVAL'],
  ])('%s', (_, request, want) => {
    const { vm } = startVm({ kernel });
    expect(failure(() => vm.setMemoryAttributes({ ...GOOD, ...request }))).toBe(want);
    expect(vm.attributes.ranges.boundaryCount > 0).toBe(want === 'OK' && !('attributes' in request));
  });

  it.each([
    [8n, 'EINVAL'],
    [0n, 'OK'],
  ])('a default VM knows no attribute: %i: %s', (attributes, want) => {
    const { vm } = startVm({ kernel, type: DEFAULT });
    expect(failure(() => vm.setMemoryAttributes({ ...GOOD, attributes }))).toBe(want);
  });
});

describe('memory attributes', () => {
  it('are shared at first, and set exactly', () => {
    const host = startVm();
    expect(isPrivate(host, 0x200)).toBe(false);
    host.setAttributes(0x20_0000n, 0x4000n, 8n);
    host.setAttributes(0x20_1000n, 0x1000n, 0n);
    const seen = [0x1ff, 0x200, 0x201, 0x202, 0x203, 0x204].map((gfn) => isPrivate(host, gfn));
    expect(seen).toEqual([false, true, false, true, true, false]);
  });

  it('that are as asked already: nothing is invalidated', () => {
    const host = startVm();
    host.setAttributes(0x20_0000n, 0x4000n, 8n);
    const before = host.vm.invalidation.snapshot();
    host.setAttributes(0x20_1000n, 0x2000n, 8n);
    host.setAttributes(0x40_0000n, 0x2000n, 0n);
    expect(host.vm.invalidation.snapshot()).toBe(before);
    host.setAttributes(0x20_3000n, 0x2000n, 8n);
    expect(host.vm.invalidation.snapshot()).toBe(before + 1);
    expect(host.vm.invalidation.inProgress).toBe(0);
  });

  it('that change take mappings away in their range alone, in slots with and without a file', () => {
    const host = startVm();
    const hva = host.process.memory.mmap({ length: 0x4000, protection: 3, flags: 0x22 });
    host.addFileSlot({ slot: 0 });
    host.setAttributes(0x20_0000n, 0x2000n, 8n);
    host.setRegion({ slot: 1, guestPhysAddr: 0x40_0000n, memorySize: 0x4000n, userspaceAddr: BigInt(hva) });
    const pages = [0x20_0000, 0x20_1000, 0x40_0000, 0x40_1000];
    for (const gpa of pages) expect(host.touch(gpa)).toBe(0);
    host.setAttributes(0x20_1000n, 0x1000n, 0n);
    host.setAttributes(0x40_1000n, 0x1000n, 8n);
    const mapped = pages.map((gpa) => host.mapped(gpa) !== undefined);
    expect(mapped).toEqual([true, false, true, false]);
  });

  it('tell the trace which gfns changed, and why', () => {
    const host = startVm();
    const events: string[] = [];
    host.trace.listen((event) => {
      if (event.kind === 'page' && event.gfn !== undefined)
        events.push([event.what, event.why, event.gfn, event.pages].join(' '));
    });
    host.setAttributes(0x20_0000n, 0x2000n, 8n);
    host.setAttributes(0x20_0000n, 0x1000n, 0n);
    host.setAttributes(0x20_0000n, 0x1000n, 0n);
    expect(events).toEqual([
      'private KVM_SET_MEMORY_ATTRIBUTES 512 2',
      'shared KVM_SET_MEMORY_ATTRIBUTES 512 1',
    ]);
  });

  it('without room for another range: ENOMEM, and nothing changes', () => {
    const host = startVm();
    const { vm } = host;
    vm.attributes.ranges.reserve = () => {
      throw new RangeError('Array buffer allocation failed');
    };
    const before = vm.invalidation.snapshot();
    expect(failure(() => host.setAttributes(0x20_0000n, 0x1000n, 8n))).toBe('ENOMEM');
    expect([isPrivate(host, 0x200), vm.invalidation.snapshot()]).toEqual([false, before]);
  });

  it('of a terabyte, in a slot of a terabyte, change as one range', () => {
    const host = startVm();
    const size = 1n << 40n;
    host.addFileSlot({ gpa: 1n << 40n, size });
    for (let round = 0; round < 10; round++) host.setAttributes(1n << 40n, size, round % 2 === 0 ? 8n : 0n);
    expect(host.vm.attributes.ranges.boundaryCount).toBe(0);
  });

  it('of every other page of a gigabyte are kept', () => {
    const host = startVm();
    for (let gfn = 0; gfn < 2 ** 18; gfn += 64) host.setAttributes(BigInt(gfn) * 4096n, 0x1000n, 8n);
    expect(host.vm.attributes.ranges.countIn(0 as Gfn, (2 ** 18) as Gfn)).toBe(4096);
    host.setAttributes(0n, 1n << 30n, 0n);
    expect(host.vm.attributes.ranges.boundaryCount).toBe(0);
  });
});

describe('private ranges', () => {
  it('answer as a list of gfns would', () => {
    const GFNS = 48;
    const step = fc.record({
      start: fc.nat(GFNS - 1),
      pages: fc.integer({ min: 1, max: GFNS }),
      isPrivate: fc.boolean(),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        const ranges = new PrivateRanges();
        const model = new Array<boolean>(2 * GFNS).fill(false);
        for (const { start, pages, isPrivate } of steps) {
          ranges.set(start as Gfn, (start + pages) as Gfn, isPrivate);
          model.fill(isPrivate, start, start + pages);
          expect(model.map((_, gfn) => ranges.isPrivate(gfn as Gfn))).toEqual(model);
        }
        const changes = model.flatMap((now, gfn) => (now === (model[gfn - 1] ?? false) ? [] : [gfn]));
        expect(ranges.boundaryCount).toBe(changes.length);
        for (let start = 0; start < model.length; start += 5) {
          for (let end = start + 1; end <= model.length; end += 3) {
            const part = model.slice(start, end);
            const [from, to] = [start as Gfn, end as Gfn];
            expect(ranges.countIn(from, to)).toBe(part.filter(Boolean).length);
            expect(ranges.isUniform(from, to, true)).toBe(part.every(Boolean));
            expect(ranges.isUniform(from, to, false)).toBe(!part.some(Boolean));
            const inside: number[] = [];
            ranges.forEachBoundary(from, to, (boundary) => inside.push(boundary));
            expect(inside).toEqual(changes.filter((gfn) => gfn > start && gfn < end));
          }
        }
      }),
      { numRuns: 60 },
    );
  });
});
