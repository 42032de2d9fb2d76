/** The invalidation counters by their table (reference facts 1.6), against a model, and who invalidates when. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Gfn } from '../../../src/base/address.ts';
import { Invalidation } from '../../../src/kernel/kvm/invalidation.ts';
import { DEFAULT, startVm } from './vm-fixture.ts';

const gfn = (value: number): Gfn => value as Gfn;

describe('an invalidation', () => {
  it('in progress without a range makes every gfn retry', () => {
    const invalidation = new Invalidation();
    invalidation.begin();
    expect(invalidation.retryGfn(0, gfn(7))).toBe(true);
    expect(invalidation.inProgress).toBe(1);
  });

  it('in progress with a range makes its gfns retry, and no others', () => {
    const invalidation = new Invalidation();
    invalidation.begin();
    invalidation.rangeAdd(gfn(10), gfn(20));
    const retries = [9, 10, 19, 20].map((at) => invalidation.retryGfn(0, gfn(at)));
    expect(retries).toEqual([false, true, true, false]);
  });

  it('of two ranges spans what lies between them', () => {
    const invalidation = new Invalidation();
    invalidation.begin();
    invalidation.rangeAdd(gfn(10), gfn(20));
    invalidation.begin();
    invalidation.rangeAdd(gfn(40), gfn(50));
    expect([15, 30, 45, 50].map((at) => invalidation.retryGfn(0, gfn(at)))).toEqual([
      true,
      true,
      true,
      false,
    ]);
    invalidation.end();
    expect(invalidation.inProgress).toBe(1);
    expect(invalidation.retryGfn(1, gfn(15))).toBe(true);
    expect(invalidation.retryGfn(1, gfn(5))).toBe(false);
  });

  it('that ended makes every fault retry that looked before, and none that looks now', () => {
    const invalidation = new Invalidation();
    const before = invalidation.snapshot();
    invalidation.begin();
    invalidation.rangeAdd(gfn(10), gfn(20));
    invalidation.end();
    expect(invalidation.retryGfn(before, gfn(999))).toBe(true);
    expect(invalidation.retryGfnUnsafe(before, gfn(999))).toBe(true);
    expect(invalidation.retryGfn(invalidation.snapshot(), gfn(15))).toBe(false);
  });

  it('begins with an empty range, whatever the last one was', () => {
    const invalidation = new Invalidation();
    invalidation.begin();
    invalidation.rangeAdd(gfn(10), gfn(20));
    invalidation.end();
    invalidation.begin();
    invalidation.rangeAdd(gfn(30), gfn(40));
    const now = invalidation.snapshot();
    expect([15, 25, 35].map((at) => invalidation.retryGfn(now, gfn(at)))).toEqual([false, false, true]);
  });

  it('must be begun before it has a range or an end', () => {
    const invalidation = new Invalidation();
    expect(() => invalidation.end()).toThrow('did not begin');
    expect(() => invalidation.rangeAdd(gfn(1), gfn(2))).toThrow('without an invalidation');
  });

  it('wakes who waits when the last one has ended', async () => {
    const invalidation = new Invalidation();
    await invalidation.idle();
    const order: string[] = [];
    invalidation.begin();
    invalidation.begin();
    const woken = invalidation.idle().then(() => order.push('woken'));
    invalidation.end();
    await Promise.resolve();
    order.push('first ended');
    invalidation.end();
    await woken;
    expect(order).toEqual(['first ended', 'woken']);
  });

  it('answers as its table says, whatever nests in what', () => {
    const range = fc.tuple(fc.nat(30), fc.integer({ min: 1, max: 10 }));
    const step = fc.oneof(range, fc.constant('end' as const));
    fc.assert(
      fc.property(fc.array(step, { maxLength: 30 }), fc.nat(40), (steps, at) => {
        const invalidation = new Invalidation();
        let sequence = 0;
        let open = 0;
        let span: [number, number] | undefined;
        for (const now of steps) {
          if (now === 'end') {
            if (open === 0) continue;
            invalidation.end();
            sequence++;
            open--;
          } else {
            const [start, pages] = now;
            invalidation.begin();
            invalidation.rangeAdd(gfn(start), gfn(start + pages));
            span =
              open === 0 || span === undefined
                ? [start, start + pages]
                : [Math.min(span[0], start), Math.max(span[1], start + pages)];
            open++;
          }
          const inRange = open > 0 && span !== undefined && at >= span[0] && at < span[1];
          expect(invalidation.retryGfn(sequence, gfn(at))).toBe(inRange);
          expect(invalidation.retryGfn(sequence - 1, gfn(at))).toBe(true);
          expect([invalidation.snapshot(), invalidation.inProgress]).toEqual([sequence, open]);
        }
      }),
    );
  });
});

describe('a process that changes its memory', () => {
  const start = () => {
    const host = startVm({ type: DEFAULT });
    const at = host.process.memory.mmap({ length: 0x1_0000, protection: 3, flags: 0x22 });
    host.setRegion({ userspaceAddr: BigInt(at) });
    for (let page = 0; page < 16; page++) expect(host.touch(0x20_0000 + page * 4096)).toBe(0);
    const mapped = () =>
      Array.from({ length: 16 }, (_, page) => page).filter(
        (page) => host.mapped(0x20_0000 + page * 4096) !== undefined,
      );
    return { host, at, mapped, before: host.vm.invalidation.snapshot() };
  };
  const ALL = Array.from({ length: 16 }, (_, page) => page);

  it('takes away what it unmaps, in one invalidation', () => {
    const { host, at, mapped, before } = start();
    host.process.memory.munmap((at + 0x4000) as never, 0x2000);
    expect(mapped()).toEqual(ALL.filter((page) => page !== 4 && page !== 5));
    expect([host.vm.invalidation.snapshot(), host.vm.invalidation.inProgress]).toEqual([before + 1, 0]);
  });

  it('takes away what it says it does not need, and the guest finds zeros', () => {
    const { host, at, mapped } = start();
    host.setGuestWord(0x20_3000, 5);
    host.process.memory.madvise((at + 0x3000) as never, 0x1000, 4);
    expect(mapped()).toEqual(ALL.filter((page) => page !== 3));
    expect(host.touch(0x20_3000)).toBe(0);
    expect(host.guestWord(0x20_3000)).toBe(0);
  });

  it('elsewhere is no invalidation', () => {
    const { host, mapped, before } = start();
    const other = host.process.memory.mmap({ length: 0x4000, protection: 3, flags: 0x22 });
    host.process.memory.write(other, Uint8Array.of(1));
    host.process.memory.munmap(other, 0x4000);
    expect(mapped()).toEqual(ALL);
    expect(host.vm.invalidation.snapshot()).toBe(before);
  });

  it('next to a slot is no invalidation', () => {
    const host = startVm({ type: DEFAULT });
    const at = host.process.memory.mmap({ length: 0x1_2000, protection: 3, flags: 0x22 });
    host.setRegion({ userspaceAddr: BigInt(at + 0x1000) });
    host.process.memory.write(at, new Uint8Array(0x1_2000).fill(1));
    const before = host.vm.invalidation.snapshot();
    host.process.memory.munmap(at, 0x1000);
    host.process.memory.munmap((at + 0x1_1000) as never, 0x1000);
    expect(host.vm.invalidation.snapshot()).toBe(before);
  });

  it('under two slots, one of them SMM’s, is one invalidation', () => {
    const { host, at, mapped, before } = start();
    host.setRegion({ slot: 0x1_0000, userspaceAddr: BigInt(at) });
    host.setRegion({ slot: 1, guestPhysAddr: 0x40_0000n, userspaceAddr: BigInt(at) });
    expect(host.touch(0x40_0000)).toBe(0);
    host.process.memory.munmap(at, 0x1000);
    expect(mapped()).toEqual(ALL.slice(1));
    expect(host.mapped(0x40_0000)).toBeUndefined();
    expect([host.vm.invalidation.snapshot(), host.vm.invalidation.inProgress]).toEqual([before + 1, 0]);
  });

  it('reaches every VM that has the memory', () => {
    const { host, at } = start();
    const second = host.kvm.createVm(DEFAULT);
    second.setUserMemoryRegion({
      slot: 0,
      flags: 0,
      guestPhysAddr: 0n,
      memorySize: 0x1_0000n,
      userspaceAddr: BigInt(at),
    });
    host.process.memory.munmap(at, 0x1000);
    expect(second.invalidation.snapshot()).toBe(1);
    second.close();
    host.process.memory.munmap((at + 0x1000) as never, 0x1000);
    expect(second.invalidation.snapshot()).toBe(1);
  });
});
