/** The dirty ring (reference facts 1.9): how it is enabled, what a guest that really runs leaves in it, and how it is taken back. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { errnoOf } from '../process-fixture.ts';
import { DirtyBench, LOGGED_GPA, startDirtyBench as start } from './dirty-bench.ts';

const HLT = { result: 0, exit: 5 };
const FULL = { result: 0, exit: 31 };
const RING = 192;
const RING_ACQ_REL = 223;
const RING_WITH_BITMAP = 225;

/** 256 entries, of which 192 can be used. */
const ring = (bytes = 4096n) => ({ caps: [{ cap: RING_ACQ_REL, args: [bytes] }] });

/** User space's side of the ring of a vCPU: reads entries in order and marks them as read. */
class Reader {
  readonly #entries: Int32Array;
  #next = 0;
  constructor(bench: DirtyBench, vcpu = 0) {
    this.#entries = bench.vcpus[vcpu]!.dirtyRing!;
  }
  harvest(): { slot: number; page: number }[] {
    const found: { slot: number; page: number }[] = [];
    for (;;) {
      const at = (this.#next * 4) % this.#entries.length;
      if (this.#entries[at] !== 1) return found;
      expect(this.#entries[at + 3]).toBe(0);
      found.push({ slot: this.#entries[at + 1]!, page: this.#entries[at + 2]! });
      this.#entries[at] = 3;
      this.#next++;
    }
  }
  pages(): number[] {
    return this.harvest().map(({ page }) => page);
  }
}
const writable = (bench: DirtyBench, page: number) =>
  bench.vm.mmu.lookup((LOGGED_GPA / 4096 + page) as never)?.writable;

describe.each(['6.12', '7.2'] as const)('the rules on %s', (kernel) => {
  it('CHECK_EXTENSION gives the largest ring; a bitmap beside it is not x86’s', () => {
    const { vm } = start({ pages: 1, kernel });
    expect([RING, RING_ACQ_REL, RING_WITH_BITMAP].map((cap) => vm.checkExtension(cap))).toEqual([
      0x10_0000, 0x10_0000, 0,
    ]);
  });

  it.each([RING, RING_ACQ_REL])('ENABLE_CAP %i', (cap) => {
    const tried = (...sizes: bigint[]): number[] => {
      const bench = start({ pages: 1, kernel, vcpus: 0 });
      return sizes.map((size) => errnoOf(() => bench.vm.enableCap({ cap, args: [size] })));
    };
    expect(tried(0n, 1n, 2048n, 4095n, 4097n, 12288n)).toEqual([22, 22, 22, 22, 22, 22]);
    expect(tried(0x20_0000n, 0x8000_0000n, 0x18_0000n)).toEqual([7, 7, 22]);
    expect(tried(4096n, 4096n, 8192n)).toEqual([0, 22, 22]);
    expect(tried(0x10_0000n)).toEqual([0]);
    // The kernel takes 32 bits.
    expect(tried(0x1_0000_0000n, 0x1_0000_1000n)).toEqual([22, 0]);
  });

  it('ENABLE_CAP after the first vCPU: EINVAL', () => {
    const { vm, vcpus } = start({ pages: 1, kernel });
    expect(errnoOf(() => vm.enableCap({ cap: RING, args: [4096n] }))).toBe(22);
    expect(vcpus[0]!.dirtyRing).toBeUndefined();
  });

  it('ENABLE_CAP of a bitmap beside the ring: EINVAL, with a ring and without', () => {
    const without = start({ pages: 1, kernel, vcpus: 0 }).vm;
    const beside = start({ pages: 1, kernel, vcpus: 0, ...ring() }).vm;
    expect([without, beside].map((vm) => errnoOf(() => vm.enableCap({ cap: RING_WITH_BITMAP })))).toEqual([
      22, 22,
    ]);
  });

  it('RESET_DIRTY_RINGS without rings: EINVAL; with rings and nothing in them: 0', () => {
    expect(errnoOf(() => start({ pages: 1, kernel }).vm.resetDirtyRings())).toBe(22);
    expect(start({ pages: 1, kernel, ...ring() }).vm.resetDirtyRings()).toBe(0);
  });

  it.each([
    ['a slot that logs', 1],
    ['a slot that is not there', 9],
    ['an address space that is not there', 0x2_0001],
  ])('with rings, GET and CLEAR of %s: ENXIO', (_, slot) => {
    const { vm } = start({ pages: 8, kernel, ...ring() });
    const bitmap = new Int32Array(2);
    expect(errnoOf(() => vm.getDirtyLog({ slot, bitmap }))).toBe(6);
    expect(errnoOf(() => vm.clearDirtyLog({ slot, firstPage: 1n, numPages: 8, bitmap }))).toBe(6);
  });
});

describe('a ring', () => {
  it('is as long as was asked for, one a vCPU, empty', () => {
    const bench = start({ pages: 8, vcpus: 2, ...ring(0x1_0000n) });
    const [first, second] = bench.vcpus.map((vcpu) => vcpu.dirtyRing!);
    expect([first!.byteLength, second!.byteLength]).toEqual([0x1_0000, 0x1_0000]);
    bench.write(1, 1n, { vcpu: 1 });
    expect([first![0], second![0]]).toEqual([0, 1]);
  });

  it('is there until its vCPU is closed', () => {
    const { vcpus } = start({ pages: 1, ...ring() });
    expect(vcpus[0]!.dirtyRing).toBeDefined();
    vcpus[0]!.close();
    expect(vcpus[0]!.dirtyRing).toBeUndefined();
  });

  it('gets an entry for the first write to a page: flags, slot, page', () => {
    const bench = start({ pages: 70, ...ring() });
    for (const page of [69, 3, 3, 40]) expect(bench.write(page)).toEqual(HLT);
    bench.read(5);
    expect([...bench.vcpus[0]!.dirtyRing!.subarray(0, 16)]).toEqual([
      ...[1, 1, 69, 0],
      ...[1, 1, 3, 0],
      ...[1, 1, 40, 0],
      ...[0, 0, 0, 0],
    ]);
  });

  it('names the page again after its entry was reset, and not before', () => {
    const bench = start({ pages: 8, ...ring() });
    const reader = new Reader(bench);
    bench.write(3);
    expect(reader.pages()).toEqual([3]);
    bench.write(3);
    expect(reader.pages()).toEqual([]);
    expect(bench.vm.resetDirtyRings()).toBe(1);
    expect(bench.vcpus[0]!.dirtyRing![0]).toBe(0);
    expect(writable(bench, 3)).toBe(false);
    bench.write(3);
    expect(reader.pages()).toEqual([3]);
  });

  it('is reset in order: an entry that was not harvested holds up those behind it', () => {
    const bench = start({ pages: 8, ...ring() });
    const entries = bench.vcpus[0]!.dirtyRing!;
    for (const page of [1, 2, 3]) bench.write(page);
    entries[4] = 3;
    entries[8] = 3;
    expect(bench.vm.resetDirtyRings()).toBe(0);
    expect([writable(bench, 2), writable(bench, 3)]).toEqual([true, true]);
    entries[0] = 3;
    expect(bench.vm.resetDirtyRings()).toBe(3);
    expect([1, 2, 3].map((page) => writable(bench, page))).toEqual([false, false, false]);
  });

  it('has every page of a reset write-protected again, however far apart they lie', () => {
    const bench = start({ pages: 70, ...ring() });
    const reader = new Reader(bench);
    const pages = [0, 31, 32, 33, 64, 63, 5];
    for (const page of pages) bench.write(page);
    expect(reader.pages()).toEqual(pages);
    expect(bench.vm.resetDirtyRings()).toBe(7);
    expect(pages.map((page) => writable(bench, page))).toEqual(pages.map(() => false));
  });

  it('is reset for all vCPUs by one call', () => {
    const bench = start({ pages: 8, vcpus: 2, ...ring() });
    const readers = [new Reader(bench, 0), new Reader(bench, 1)];
    bench.write(1, 1n, { vcpu: 0 });
    bench.write(2, 1n, { vcpu: 1 });
    // Writable already: the entry is the other vCPU's.
    bench.write(1, 1n, { vcpu: 1 });
    expect(readers.map((reader) => reader.pages())).toEqual([[1], [2]]);
    expect(bench.vm.resetDirtyRings()).toBe(2);
    bench.write(1, 1n, { vcpu: 1 });
    expect(readers.map((reader) => reader.pages())).toEqual([[], [1]]);
  });

  it('at its soft limit of 192 of 256 makes the vCPU leave with 31, until something is reset', () => {
    const bench = start({ pages: 300, vcpus: 2, ...ring() });
    for (let page = 0; page < 191; page++) expect(bench.write(page)).toEqual(HLT);
    expect(bench.write(191, 7n)).toEqual(FULL);
    expect(bench.write(0)).toEqual(FULL);
    const reader = new Reader(bench);
    expect(reader.pages()).toEqual(Array.from({ length: 192 }, (_, page) => page));
    expect(bench.read(0)).toEqual(FULL);
    expect(bench.write(200, 1n, { vcpu: 1 })).toEqual(HLT);
    expect(bench.vm.resetDirtyRings()).toBe(192);
    expect(bench.write(191, 8n)).toEqual(HLT);
    expect(bench.hostRead(191)).toBe(8n);
    expect(reader.pages()).toEqual([191]);
  });

  it('does not end the wait of a vCPU that is halted, but its entry when it wakes', async () => {
    const bench = start({ pages: 300, caps: [{ cap: 121, args: [24n] }, ...ring().caps] });
    const vcpu = bench.vcpus[0]!;
    vcpu.setMpState(0);
    for (let page = 0; page < 191; page++) {
      expect(bench.write(page).result).toBe(1);
      vcpu.setMpState(0);
    }
    expect(bench.write(191)).toEqual(FULL);
    vcpu.setMpState(3);
    expect([vcpu.run(), vcpu.getMpState()]).toEqual([1, 3]);
    const { pending } = vcpu;
    vcpu.nmi();
    await pending;
    expect([vcpu.run(), vcpu.kvmRun.exitReason, vcpu.getMpState()]).toEqual([0, 31, 0]);
  });

  it('is full where one entry alone was reset and the next write fills it again', () => {
    const bench = start({ pages: 300, ...ring() });
    for (let page = 0; page < 192; page++) bench.write(page);
    bench.vcpus[0]!.dirtyRing![0] = 3;
    expect(bench.vm.resetDirtyRings()).toBe(1);
    expect(bench.write(5)).toEqual(HLT);
    expect(bench.write(250)).toEqual(FULL);
  });

  it('has the instruction that filled it still to run, and it runs once', () => {
    const bench = start({ pages: 300, ...ring() });
    for (let page = 0; page < 191; page++) bench.write(page);
    expect(bench.add(191, 5n)).toEqual(FULL);
    new Reader(bench).harvest();
    bench.vm.resetDirtyRings();
    expect([bench.vcpus[0]!.run(), bench.vcpus[0]!.kvmRun.exitReason]).toEqual([0, 5]);
    expect(bench.hostRead(191)).toBe(5n);
  });

  it('gets what KVM stores for an emulated instruction', () => {
    const bench = start({ pages: 8, ...ring() });
    const reader = new Reader(bench);
    expect(bench.copyFromDevice(3)).toEqual(HLT);
    expect(new Set(reader.pages())).toEqual(new Set([3]));
    expect(bench.hostRead(3)).toBe(0x7777_7777_7777_7777n);
  });

  it.each([
    ['a slot that is not there', [1, 9, 3, 0]],
    ['an address space that is not there', [1, 0x7_0001, 3, 0]],
    ['an id that user space has not', [1, 0xffff, 3, 0]],
    ['a page beyond the slot', [1, 1, 8, 0]],
    ['a page with the top bit of 32 set', [1, 1, 0x8000_0000 | 0, 0]],
    ['a page beyond 2^32', [1, 1, 3, 1]],
  ])('that user space scribbled into (%s): the entry counts and protects nothing', (_, entry) => {
    const bench = start({ pages: 8, ...ring() });
    bench.write(3);
    bench.vcpus[0]!.dirtyRing!.set(entry);
    bench.vcpus[0]!.dirtyRing![0] = 3;
    expect(bench.vm.resetDirtyRings()).toBe(1);
    expect(writable(bench, 3)).toBe(true);
  });

  it('whose reader names the page behind a slot takes no write right from the slot that begins there', () => {
    const bench = start({ pages: 8, ...ring() });
    bench.vm.setUserMemoryRegion({
      slot: 2,
      flags: 0,
      guestPhysAddr: bench.gpa(8),
      memorySize: 0x1000n,
      userspaceAddr: BigInt(bench.hva),
    });
    expect(bench.write(8)).toEqual(HLT);
    expect(bench.write(3)).toEqual(HLT);
    bench.vcpus[0]!.dirtyRing!.set([3, 1, 8, 0]);
    expect(bench.vm.resetDirtyRings()).toBe(1);
    expect(writable(bench, 8)).toBe(true);
  });

  it('of which nothing was harvested costs no core its translations', () => {
    const bench = start({ pages: 8, ...ring() });
    bench.write(3);
    const before = bench.vm.mmu.tlbGeneration;
    expect(bench.vm.resetDirtyRings()).toBe(0);
    expect(bench.vm.mmu.tlbGeneration).toBe(before);
  });

  it('of a slot that was deleted meanwhile is reset all the same', () => {
    const bench = start({ pages: 8, ...ring() });
    bench.write(3);
    bench.vm.setUserMemoryRegion({
      slot: 1,
      flags: 0,
      guestPhysAddr: 0n,
      memorySize: 0n,
      userspaceAddr: 0n,
    });
    expect(new Reader(bench).pages()).toEqual([3]);
    expect(bench.vm.resetDirtyRings()).toBe(1);
  });

  it('of a closed vCPU is not looked at any more', () => {
    const bench = start({ pages: 8, vcpus: 2, ...ring() });
    bench.write(3, 1n, { vcpu: 1 });
    new Reader(bench, 1).harvest();
    bench.vcpus[1]!.close();
    expect(bench.vm.resetDirtyRings()).toBe(0);
  });
});

describe('the ring against a set', () => {
  const PAGES = 400;
  const page = fc.oneof(fc.integer({ min: 0, max: PAGES - 1 }), fc.integer({ min: 0, max: 7 }));
  const vcpu = fc.integer({ min: 0, max: 1 });
  const operation = fc.oneof(
    { weight: 12, arbitrary: fc.record({ kind: fc.constant('write' as const), page, vcpu }) },
    { weight: 3, arbitrary: fc.record({ kind: fc.constant('copy' as const), page, vcpu }) },
    { weight: 3, arbitrary: fc.record({ kind: fc.constant('read' as const), page, vcpu }) },
    { weight: 2, arbitrary: fc.record({ kind: fc.constant('host' as const), page, vcpu }) },
    { weight: 2, arbitrary: fc.record({ kind: fc.constant('burst' as const), page, vcpu }) },
    { weight: 2, arbitrary: fc.record({ kind: fc.constant('harvest' as const), page, vcpu }) },
  );

  it('names each page that was written to since its entry was reset, and none else', () => {
    fc.assert(
      fc.property(fc.array(operation, { minLength: 20, maxLength: 80 }), (operations) => {
        const bench = new DirtyBench({ pages: PAGES, vcpus: 2, ...ring() });
        try {
          const readers = [new Reader(bench, 0), new Reader(bench, 1)];
          const dirty = new Set<number>();
          const harvest = (): void => {
            const entries = readers.flatMap((reader) => reader.harvest());
            expect(new Set(entries.map((entry) => entry.slot))).toEqual(
              new Set(entries.length > 0 ? [1] : []),
            );
            expect(new Set(entries.map((entry) => entry.page))).toEqual(dirty);
            expect(bench.vm.resetDirtyRings()).toBe(entries.length);
            dirty.clear();
          };
          let stamp = 1n;
          const write = (at: number, id: number): void => {
            let done = bench.write(at, ++stamp, { vcpu: id });
            dirty.add(at);
            if (done.exit === 31) {
              harvest();
              const again = bench.vcpus[id]!;
              done = { result: again.run(), exit: again.kvmRun.exitReason };
              dirty.add(at);
            }
            expect(done).toEqual(HLT);
            expect(bench.hostRead(at)).toBe(stamp);
          };
          for (const { kind, page: at, vcpu: id } of operations) {
            switch (kind) {
              case 'write':
                write(at, id);
                break;
              case 'burst':
                for (let i = 0; i < 100; i++) write((at + i * 3) % PAGES, id);
                break;
              case 'copy':
                // The store was done before the vCPU had to stop.
                dirty.add(at);
                if (bench.copyFromDevice(at, () => {}, { vcpu: id }).exit === 31) harvest();
                break;
              case 'read':
                if (bench.read(at, { vcpu: id }).exit === 31) harvest();
                break;
              case 'host':
                bench.hostWrite(at, 1);
                break;
              case 'harvest':
                harvest();
                break;
            }
          }
          harvest();
        } finally {
          bench.close();
        }
      }),
      { numRuns: 25 },
    );
  });
});
