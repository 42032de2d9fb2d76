/** KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG (reference facts 1.9): the rules, and what a guest that really runs leaves in the log. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { DirtyTracking, prepareDirtyBitmap } from '../../../src/kernel/kvm/dirty-log.ts';
import type { Vm } from '../../../src/kernel/kvm/vm.ts';
import { errnoOf } from '../process-fixture.ts';
import { DirtyBench, LOGGED_GPA, startDirtyBench as start } from './dirty-bench.ts';

const HLT = { result: 0, exit: 5 };
const MANUAL = 168;

const manual = (options: bigint) => ({ caps: [{ cap: MANUAL, args: [options] }] });

const mapped = ({ vm }: { vm: Vm }, page: number) => vm.mmu.lookup((LOGGED_GPA / 4096 + page) as never);

describe.each(['6.12', '7.2'] as const)('the rules on %s', (kernel) => {
  it.each([
    ['a slot that logs', 1, 4, 0],
    ['a bitmap that is longer than needed', 1, 9, 0],
    ['a slot of the other address space that does not exist', 0x1_0001, 4, 2],
    ['an address space that does not exist', 0x2_0001, 4, 22],
    ['an id that user space has not', 32764, 4, 22],
    ['the highest id', 0xffff, 4, 22],
    ['an id that is free', 2, 4, 2],
    ['a slot that does not log', 0, 4, 2],
    ['a bitmap that is a word short', 1, 3, 14],
    ['no bitmap', 1, 0, 14],
  ])('GET_DIRTY_LOG of %s', (_, slot, words, errno) => {
    const bench = start({ pages: 100, kernel });
    expect(errnoOf(() => bench.vm.getDirtyLog({ slot, bitmap: new Int32Array(words) }))).toBe(errno);
  });

  it('GET_DIRTY_LOG into a bitmap that is too short says EFAULT, and the log is clean all the same', () => {
    const bench = start({ pages: 100, kernel });
    bench.write(3);
    bench.write(99);
    const short = new Int32Array(1);
    expect(errnoOf(() => bench.vm.getDirtyLog({ slot: 1, bitmap: short }))).toBe(14);
    expect([...short]).toEqual([8]);
    expect(bench.harvest()).toEqual([]);
  });

  // slot, first_page, num_pages, words of the bitmap, errno; the slot has 200 pages
  it.each([
    ['all of it', 1, 0n, 200, 8, 0],
    ['64 pages', 1, 64n, 64, 2, 0],
    ['the last 8', 1, 192n, 8, 2, 0],
    ['no pages', 1, 128n, 0, 0, 0],
    ['first_page 1', 1, 1n, 64, 2, 22],
    ['first_page 32', 1, 32n, 64, 2, 22],
    ['32 pages in the middle', 1, 64n, 32, 2, 22],
    ['a page beyond the end', 1, 192n, 9, 2, 22],
    ['first_page beyond the end', 1, 256n, 0, 0, 22],
    ['a first_page that has more than 53 bits', 1, 0xffff_ffff_ffff_ffc0n, 64, 2, 22],
    ['a bitmap that is too short', 1, 0n, 200, 7, 14],
    ['an address space that does not exist', 0x2_0001, 0n, 200, 8, 22],
    ['an id that user space has not', 32764, 0n, 200, 8, 22],
    ['a slot that is not there', 2, 0n, 200, 8, 2],
    ['a slot that is not there, first_page 1', 2, 1n, 200, 8, 22],
    ['a slot that does not log', 0, 0n, 16, 2, 2],
    ['a slot that does not log, a range beyond its end', 0, 64n, 640, 20, 2],
  ])('CLEAR_DIRTY_LOG of %s', (_, slot, firstPage, numPages, words, errno) => {
    const bench = start({ pages: 200, kernel });
    const bitmap = new Int32Array(words);
    expect(errnoOf(() => bench.vm.clearDirtyLog({ slot, firstPage, numPages, bitmap }))).toBe(errno);
  });

  it.each([
    ['nothing', 0n, 0],
    ['manual protect', 1n, 0],
    ['manual protect, initially all set', 3n, 0],
    ['initially all set alone', 2n, 22],
    ['an unknown bit', 5n, 22],
    ['a bit of the high word', 0x1_0000_0001n, 22],
  ])('ENABLE_CAP 168 with %s', (_, options, errno) => {
    const bench = start({ pages: 1, kernel });
    expect(errnoOf(() => bench.vm.enableCap({ cap: MANUAL, args: [options] }))).toBe(errno);
    expect(errnoOf(() => bench.vm.enableCap({ cap: MANUAL, flags: 1, args: [0n] }))).toBe(22);
  });

  it('CHECK_EXTENSION 168 answers with both options', () => {
    expect(start({ pages: 1, kernel }).vm.checkExtension(168)).toBe(3);
  });
});

describe('a slot that logs', () => {
  it('reports pages that the guest wrote to since the last harvest, once each', () => {
    const bench = start({ pages: 70 });
    expect(bench.harvest()).toEqual([]);
    for (const page of [0, 1, 31, 32, 64, 69, 1]) expect(bench.write(page)).toEqual(HLT);
    expect(bench.harvest()).toEqual([0, 1, 31, 32, 64, 69]);
    expect(bench.harvest()).toEqual([]);
    expect(bench.write(32, 7n)).toEqual(HLT);
    expect(bench.harvest()).toEqual([32]);
    expect(bench.hostRead(32)).toBe(7n);
  });

  it('does not report what the guest only read, nor what the process itself wrote', () => {
    const bench = start({ pages: 8 });
    bench.read(2);
    bench.hostWrite(3, 9);
    bench.read(3);
    bench.vcpus[0]!.preFaultMemory({ gpa: bench.gpa(4), size: 0x4000n, flags: 0n });
    expect(bench.harvest()).toEqual([]);
    expect(mapped(bench, 2)).toMatchObject({ writable: false });
    expect(mapped(bench, 4)).toMatchObject({ writable: false });
  });

  it('reports a write to a page that was read before, and both pages of one that crosses', () => {
    const bench = start({ pages: 8 });
    bench.read(2);
    bench.add(2);
    bench.write(5, 0x1122_3344_5566_7788n, { offset: 4092 });
    expect(bench.harvest()).toEqual([2, 5, 6]);
    expect(bench.hostRead(5, 4092)).toBe(0x1122_3344_5566_7788n);
  });

  it('keeps a writable page writable when it is mapped in advance', () => {
    const bench = start({ pages: 8 });
    bench.write(2);
    bench.vcpus[0]!.preFaultMemory({ gpa: bench.gpa(2), size: 0x1000n, flags: 0n });
    expect(mapped(bench, 2)).toMatchObject({ writable: true });
    expect(bench.harvest()).toEqual([2]);
  });

  it('reports what KVM stores for an emulated instruction', () => {
    const bench = start({ pages: 8 });
    expect(bench.copyFromDevice(3)).toEqual(HLT);
    expect(bench.harvest()).toEqual([3]);
    expect(bench.hostRead(3)).toBe(0x7777_7777_7777_7777n);
  });

  it('reports an emulated store that comes after a harvest in the middle of its instruction', () => {
    const bench = start({ pages: 8 });
    bench.write(3);
    let between: number[] = [];
    bench.copyFromDevice(3, () => {
      between = bench.harvest();
    });
    expect([between, bench.harvest()]).toEqual([[3], [3]]);
  });

  it('of another vCPU’s writes forgets none: each core sees that its right is gone', () => {
    const bench = start({ pages: 8, vcpus: 2 });
    bench.write(3, 1n, { vcpu: 0 });
    bench.write(3, 2n, { vcpu: 1 });
    expect(bench.harvest()).toEqual([3]);
    bench.write(3, 3n, { vcpu: 1 });
    expect(bench.harvest()).toEqual([3]);
    bench.write(3, 4n, { vcpu: 0 });
    expect(bench.harvest()).toEqual([3]);
  });

  it('that is read-only is never dirty: a store goes to the VMM', () => {
    const bench = start({ pages: 8, flags: 3 });
    expect(bench.write(3)).toEqual({ result: 0, exit: 6 });
    expect(bench.harvest()).toEqual([]);
  });

  it('has each harvest end the right to write, even where the process has dropped the page meanwhile', () => {
    const bench = start({ pages: 8 });
    bench.write(3, 5n);
    bench.drop(3);
    expect(bench.harvest()).toEqual([3]);
    bench.read(3);
    expect(bench.hostRead(3)).toBe(0n);
    bench.write(3, 6n);
    expect(bench.harvest()).toEqual([3]);
  });
});

describe('LOG_DIRTY of a slot that is there', () => {
  it('begins with nothing dirty, and sees the next write to a page that was written to before', () => {
    const bench = start({ pages: 8, flags: 0 });
    bench.write(3);
    expect(errnoOf(() => bench.harvest())).toBe(2);
    bench.setFlags(1);
    expect(bench.harvest()).toEqual([]);
    expect(mapped(bench, 3)).toMatchObject({ writable: false });
    bench.write(3);
    expect(bench.harvest()).toEqual([3]);
  });

  it('ends with the log gone; on again it is empty', () => {
    const bench = start({ pages: 8 });
    bench.write(3);
    bench.setFlags(0);
    expect(errnoOf(() => bench.harvest())).toBe(2);
    bench.write(4);
    bench.setFlags(1);
    expect(bench.harvest()).toEqual([]);
    bench.write(4);
    expect(bench.harvest()).toEqual([4]);
  });

  it('keeps the log when it is set again, and when the slot moves', () => {
    const bench = start({ pages: 8 });
    bench.write(3);
    bench.setFlags(1);
    bench.setFlags(1, 0x80_0000);
    expect(bench.harvest()).toEqual([3]);
  });

  it('turns large mappings into small ones, each with its first write seen', () => {
    const bench = start({ pages: 1024, flags: 0 });
    const { mmu } = bench.vm;
    const block = bench.kernel.memory.allocate(9, bench.kernel.memory.owner('test'));
    mmu.topUp();
    mmu.map(0x200 as never, block as never, 2, { writable: true });
    expect(mmu.stats.mapped2M).toBe(1);
    bench.setFlags(1);
    expect(mmu.stats.mapped2M).toBe(0);
    bench.write(0x105);
    expect(mapped(bench, 0x105)).toMatchObject({ level: 1 });
    expect(bench.harvest()).toEqual([0x105]);
    bench.kernel.memory.free(block as never, 9);
  });
});

describe('with manual protection', () => {
  it('GET only copies; CLEAR cleans what is set in its bitmap, and only that', () => {
    const bench = start({ pages: 200, ...manual(1n) });
    for (const page of [0, 5, 64, 70, 199]) bench.write(page);
    expect(bench.harvest()).toEqual([0, 5, 64, 70, 199]);
    expect(bench.harvest()).toEqual([0, 5, 64, 70, 199]);
    bench.clear([64], 64, 64);
    expect(bench.harvest()).toEqual([0, 5, 70, 199]);
    expect([mapped(bench, 64), mapped(bench, 70)]).toMatchObject([{ writable: false }, { writable: true }]);
    bench.clear([0, 5, 199, 7]);
    expect(bench.harvest()).toEqual([70]);
    expect(mapped(bench, 199)).toMatchObject({ writable: false });
    bench.write(199);
    expect(bench.harvest()).toEqual([70, 199]);
  });

  it('bits of CLEAR beyond the slot’s end mean nothing', () => {
    const bench = start({ pages: 70, ...manual(1n) });
    bench.write(69);
    const bitmap = new Int32Array(4).fill(-1);
    bench.vm.clearDirtyLog({ slot: 1, firstPage: 0n, numPages: 70, bitmap });
    expect(bench.harvest()).toEqual([]);
  });

  it('CLEAR works without manual protection as well', () => {
    const bench = start({ pages: 70 });
    bench.write(1);
    bench.write(2);
    bench.clear([1]);
    expect(bench.harvest()).toEqual([2]);
  });

  it('initially all set: every page of a new log is dirty until it is cleared, none beyond the end', () => {
    const bench = start({ pages: 70, ...manual(3n) });
    const all = Array.from({ length: 70 }, (_, page) => page);
    expect(bench.harvest()).toEqual(all);
    bench.clear([3, 69]);
    expect(bench.harvest()).toEqual(all.filter((page) => page !== 3 && page !== 69));
    bench.write(69);
    expect(bench.harvest()).toEqual(all.filter((page) => page !== 3));
  });

  it('initially all set: what is writable stays so until it is cleared for the first time', () => {
    const bench = start({ pages: 70, flags: 0, ...manual(3n) });
    bench.write(3);
    bench.setFlags(1);
    expect(mapped(bench, 3)).toMatchObject({ writable: true });
    bench.clear([3]);
    expect(mapped(bench, 3)).toMatchObject({ writable: false });
    expect(bench.harvest()).not.toContain(3);
    bench.write(3);
    expect(bench.harvest()).toContain(3);
  });

  it('initially all set: when logging ends, mappings go all the same, so that larger ones can come', () => {
    const bench = start({ pages: 8, ...manual(3n) });
    bench.write(3);
    expect(mapped(bench, 3)).toBeDefined();
    bench.setFlags(0);
    expect(mapped(bench, 3)).toBeUndefined();
  });

  it('initially all set: a large mapping becomes small where it is cleared', () => {
    const bench = start({ pages: 1024, flags: 0, ...manual(3n) });
    const { mmu } = bench.vm;
    const block = bench.kernel.memory.allocate(9, bench.kernel.memory.owner('test'));
    mmu.topUp();
    mmu.map(0x200 as never, block as never, 2, { writable: true });
    bench.setFlags(1);
    expect(mmu.stats.mapped2M).toBe(1);
    bench.clear([0x105]);
    expect(mmu.stats.mapped2M).toBe(0);
    bench.write(0x105);
    bench.clear([0x106]);
    expect(bench.harvest()).toContain(0x105);
    expect(bench.harvest()).not.toContain(0x106);
    bench.kernel.memory.free(block as never, 9);
  });
});

describe('the bitmap of a slot', () => {
  it('that there is no memory for: ENOMEM', () => {
    const slot = { npages: 2 ** 50, flags: 1 };
    expect(errnoOf(() => prepareDirtyBitmap(new DirtyTracking(), slot, undefined))).toBe(12);
  });

  it('takes no memory where writes go to rings', () => {
    const tracking = new DirtyTracking();
    tracking.enableRings(4096n, 0);
    expect(prepareDirtyBitmap(tracking, { npages: 2 ** 50, flags: 1 }, undefined)).toBeUndefined();
  });
});

describe('the log against a set', () => {
  const PAGES = 130;
  const page = fc.integer({ min: 0, max: PAGES - 1 });
  const vcpu = fc.integer({ min: 0, max: 1 });
  const operation = fc.oneof(
    fc.record({ kind: fc.constant('write' as const), page, vcpu }),
    fc.record({ kind: fc.constant('add' as const), page, vcpu }),
    fc.record({ kind: fc.constant('read' as const), page, vcpu }),
    fc.record({ kind: fc.constant('copy' as const), page, vcpu }),
    fc.record({ kind: fc.constant('host' as const), page, vcpu }),
    fc.record({ kind: fc.constant('prefault' as const), page, vcpu }),
    fc.record({ kind: fc.constant('drop' as const), page, vcpu }),
    fc.record({ kind: fc.constant('get' as const), page, vcpu }),
    fc.record({ kind: fc.constant('clear' as const), page, vcpu }),
    fc.record({ kind: fc.constant('again' as const), page, vcpu }),
  );

  it.each([
    ['GET that cleans', undefined],
    ['manual protection', 1n],
    ['manual protection, initially all set', 3n],
  ])('%s', (_, options) => {
    fc.assert(
      fc.property(fc.array(operation, { minLength: 20, maxLength: 120 }), (operations) => {
        const caps = options === undefined ? [] : [{ cap: MANUAL, args: [options] }];
        const bench = new DirtyBench({ pages: PAGES, vcpus: 2, caps });
        try {
          const all = Array.from({ length: PAGES }, (_value, index) => index);
          let dirty = new Set<number>(options === 3n ? all : []);
          const memory = new Map<number, bigint>();
          let stamp = 1n;
          for (const { kind, page: at, vcpu: id } of operations) {
            const on = { vcpu: id };
            switch (kind) {
              case 'write':
                expect(bench.write(at, ++stamp, on)).toEqual(HLT);
                memory.set(at, stamp);
                dirty.add(at);
                break;
              case 'add':
                expect(bench.add(at, 1n, on)).toEqual(HLT);
                memory.set(at, (memory.get(at) ?? 0n) + 1n);
                dirty.add(at);
                break;
              case 'copy':
                expect(bench.copyFromDevice(at, () => {}, on)).toEqual(HLT);
                memory.set(at, 0x7777_7777_7777_7777n);
                dirty.add(at);
                break;
              case 'read':
                expect(bench.read(at, on)).toEqual(HLT);
                expect(bench.vcpus[id]!.getRegs().rax).toBe(memory.get(at) ?? 0n);
                break;
              case 'host':
                bench.hostWrite(at, Number(++stamp & 0xffn));
                break;
              case 'prefault':
                bench.vcpus[id]!.preFaultMemory({ gpa: bench.gpa(at), size: 0x1000n, flags: 0n });
                break;
              case 'drop':
                bench.drop(at);
                memory.delete(at);
                break;
              case 'get':
                expect(bench.harvest()).toEqual([...dirty].sort((a, b) => a - b));
                if (options === undefined) dirty.clear();
                break;
              case 'clear': {
                const from = at - (at % 64);
                const some = all.filter((each) => each >= from && each % 3 !== at % 3);
                bench.clear(some, from);
                for (const each of some) dirty.delete(each);
                break;
              }
              case 'again':
                bench.setFlags(0);
                bench.setFlags(1);
                dirty = new Set(options === 3n ? all : []);
                break;
            }
          }
          expect(bench.harvest()).toEqual([...dirty].sort((a, b) => a - b));
          for (const [at, value] of memory) expect(bench.hostRead(at)).toBe(value);
        } finally {
          bench.close();
        }
      }),
      { numRuns: 30 },
    );
  });
});
