import { afterEach, describe, expect, it } from 'vitest';
import type { BackingPage } from '../../../src/kernel/kvm/mmu/guest-memory.ts';
import { FaultBench, type PolicyName, type SlotSetup } from './fault-bench.ts';

const READ = 0;
const WRITE = 2;
const RETRY = 1;
const EMULATE = 2;
const FIXED = 3;
const SPURIOUS = 4;
const PENDING = 5;
const EFAULT = -14;

let bench: FaultBench;
afterEach(() => bench?.close());

function start(policy: PolicyName, setup: { slot?: SlotSetup | undefined; private?: number[] }): FaultBench {
  bench = new FaultBench(policy);
  if (setup.slot !== undefined) bench.addSlot(setup.slot);
  for (const gfn of setup.private ?? []) bench.private.add(gfn);
  return bench;
}

/** What the memory-fault exit says. */
const exit = () => ({
  reason: bench.run.exitReason,
  flags: bench.run.memoryFaultFlags,
  gpa: bench.run.memoryFaultGpa,
  size: bench.run.memoryFaultSize,
});

/** A private gmem slot (flags 4) with gfns 0x100 to 0x10f. */
const GMEM: SlotSetup = { flags: 4 };

interface Row {
  title: string;
  slot?: SlotSetup;
  /** The attribute of gfn 0x105. */
  attribute: 'private' | 'shared';
  access: 'private' | 'shared';
  error?: number;
  result: Record<PolicyName, number>;
  prepare?: (bench: FaultBench) => void;
}
const everywhere = (result: number): Record<PolicyName, number> => ({
  '7.2': result,
  '6.12': result,
  'private-fault': result,
});

const ROWS: Row[] = [
  {
    title: '1: a private access to a shared gfn exits',
    slot: GMEM,
    attribute: 'shared',
    access: 'private',
    result: everywhere(EFAULT),
  },
  {
    title: '1: a shared access to a private gfn exits',
    slot: GMEM,
    attribute: 'private',
    access: 'shared',
    result: everywhere(EFAULT),
  },
  {
    title: '1 and 2: a mismatch without a slot exits',
    attribute: 'private',
    access: 'shared',
    result: everywhere(EFAULT),
  },
  {
    title: '1 before 3: a mismatch in a slot that is being deleted exits, in the early form it retries',
    slot: { ...GMEM, invalid: true },
    attribute: 'private',
    access: 'shared',
    result: { '7.2': EFAULT, '6.12': EFAULT, 'private-fault': RETRY },
  },
  {
    title: '2: a private access without a slot exits',
    attribute: 'private',
    access: 'private',
    result: everywhere(EFAULT),
  },
  {
    title: '2: a shared access without a slot is MMIO',
    attribute: 'shared',
    access: 'shared',
    result: everywhere(EMULATE),
  },
  {
    title: '3: a slot that is being deleted retries',
    slot: { ...GMEM, invalid: true },
    attribute: 'private',
    access: 'private',
    result: everywhere(RETRY),
  },
  {
    title:
      '5 before 6: an invalidation in progress retries before the slot is asked for a file; the early form looks at the file first',
    slot: { flags: 0 },
    attribute: 'private',
    access: 'private',
    prepare: (vm) => vm.invalidation.begin(0x105, 0x106),
    result: { '7.2': RETRY, '6.12': RETRY, 'private-fault': EFAULT },
  },
  {
    title: '6: a private access in a slot without a guest_memfd exits',
    slot: { flags: 0 },
    attribute: 'private',
    access: 'private',
    result: everywhere(EFAULT),
  },
  {
    title: '7: get_pfn says EFAULT (file closed)',
    slot: GMEM,
    attribute: 'private',
    access: 'private',
    prepare: (vm) => {
      vm.gmem = () => -14;
    },
    result: everywhere(-14),
  },
  {
    title: '7: get_pfn says EHWPOISON',
    slot: GMEM,
    attribute: 'private',
    access: 'private',
    prepare: (vm) => {
      vm.gmem = () => -133;
    },
    result: everywhere(-133),
  },
  {
    title: '7: get_pfn says ENOMEM',
    slot: GMEM,
    attribute: 'private',
    access: 'private',
    prepare: (vm) => {
      vm.gmem = () => -12;
    },
    result: everywhere(-12),
  },
  {
    title: '8 and 11: a private page is mapped',
    slot: GMEM,
    attribute: 'private',
    access: 'private',
    result: everywhere(FIXED),
  },
  {
    title: '8 and 11: a shared page of the same slot is mapped',
    slot: GMEM,
    attribute: 'shared',
    access: 'shared',
    result: everywhere(FIXED),
  },
  {
    title: '10: an invalidation that comes while get_pfn runs retries',
    slot: GMEM,
    attribute: 'private',
    access: 'private',
    prepare: (vm) => {
      vm.gmem = (gfn, into) => {
        vm.invalidation.begin(0x105, 0x106);
        return vm.give(`gmem ${gfn}`, into);
      };
    },
    result: everywhere(RETRY),
  },
  {
    title: '10: an invalidation that began and ended while get_pfn ran retries',
    slot: GMEM,
    attribute: 'private',
    access: 'private',
    prepare: (vm) => {
      vm.gmem = (gfn, into) => {
        vm.invalidation.begin(0x800, 0x900);
        vm.invalidation.finish();
        return vm.give(`gmem ${gfn}`, into);
      };
    },
    result: everywhere(RETRY),
  },
  {
    title: '10: an invalidation in progress elsewhere does not disturb',
    slot: GMEM,
    attribute: 'private',
    access: 'private',
    prepare: (vm) => vm.invalidation.begin(0x106, 0x200),
    result: everywhere(FIXED),
  },
  {
    title: '10: a slot that goes while get_pfn runs retries',
    slot: GMEM,
    attribute: 'private',
    access: 'private',
    prepare: (vm) => {
      vm.gmem = (gfn, into) => {
        vm.mmu.zapSlot(vm.slotList[0]!);
        return vm.give(`gmem ${gfn}`, into);
      };
    },
    result: everywhere(RETRY),
  },
];

describe.each(['7.2', '6.12', 'private-fault'] as const)('the private fault table, %s', (policy) => {
  it.each(ROWS.map((row) => [row.title, row] as const))('%s', (_title, row) => {
    start(policy, { slot: row.slot, private: row.attribute === 'private' ? [0x105] : [] });
    row.prepare?.(bench);
    bench.run.exitReason = 0;

    const result = bench.take(0x105_123, row.error ?? READ, row.access);

    expect(result).toBe(row.result[policy]);
    if (result < 0)
      expect(exit()).toEqual({
        reason: 39,
        flags: row.access === 'private' ? 8n : 0n,
        gpa: 0x105_000n,
        size: 4096n,
      });
    else expect(bench.run.exitReason).toBe(0);
    expect(bench.mmu.lookup(0x105 as never) !== undefined).toBe(result === FIXED);
  });
});

describe('a fault on shared memory', () => {
  it('is mapped from the slot’s host address, page by page', () => {
    start('7.2', { slot: { flags: 0, baseGfn: 0x100, userspaceAddr: 0x5000_0000 } });
    expect(bench.take(0x10a_ff8, WRITE, 'shared')).toBe(FIXED);
    expect(bench.calls).toEqual(['write 1342218240']);
    expect(bench.mmu.lookup(0x10a as never)).toEqual({
      pfn: bench.frame('hva 1342218240'),
      level: 1,
      writable: true,
    });
  });

  it('writes to a read-only slot are MMIO, and no page is looked for', () => {
    start('7.2', { slot: { flags: 2 } });
    expect(bench.take(0x105_000, WRITE, 'shared')).toBe(EMULATE);
    expect(bench.calls).toEqual([]);
  });

  it('reads of a read-only slot map a page that cannot be written', () => {
    start('7.2', { slot: { flags: 2 } });
    expect(bench.take(0x105_000, READ, 'shared')).toBe(FIXED);
    expect(bench.mmu.lookup(0x105 as never)).toMatchObject({ writable: false });
  });

  it('a page that came read-only is asked for again when it is written', () => {
    start('7.2', { slot: { flags: 0 } });
    bench.shared = (hva, access, into) => {
      bench.give(`hva ${hva} ${access}`, into);
      into.writable = access === 'write';
      return 0;
    };
    expect(bench.take(0x105_000, READ, 'shared')).toBe(FIXED);
    const flushes = bench.mmu.tlbGeneration;
    expect(bench.take(0x105_000, WRITE, 'shared')).toBe(FIXED);
    expect(bench.mmu.lookup(0x105 as never)).toMatchObject({ writable: true });
    expect(bench.mmu.tlbGeneration).toBe(flushes + 1);
    expect(bench.take(0x105_000, WRITE, 'shared')).toBe(SPURIOUS);
  });

  it('a host address without a mapping is EFAULT without an exit, whatever the error was', () => {
    start('7.2', { slot: { flags: 0 } });
    bench.shared = () => -12;
    expect(bench.take(0x105_000, READ, 'shared')).toBe(EFAULT);
    expect(bench.run.exitReason).toBe(0);
  });

  it('a poisoned page is a SIGBUS for the VMM', () => {
    start('7.2', { slot: { flags: 0 } });
    bench.shared = () => -133;
    expect(() => bench.take(0x105_000, READ, 'shared')).toThrow(
      expect.objectContaining({ signal: 'SIGBUS', errno: 133 }),
    );
  });

  it('is served by the file where the slot has nothing but its file', () => {
    start('7.2', { slot: { flags: 4, gmemOnly: true } });
    expect(bench.take(0x105_000, WRITE, 'shared')).toBe(FIXED);
    expect(bench.calls).toEqual(['gmem 261']);
  });
});

describe('the order in which a fault asks', () => {
  it('takes its snapshot before it reads the attribute', () => {
    start('7.2', { slot: GMEM });
    const order: string[] = [];
    const { snapshot } = bench.invalidation;
    bench.invalidation.snapshot = () => {
      order.push('snapshot');
      return snapshot.call(bench.invalidation);
    };
    bench.attributes.isPrivate = () => {
      order.push('attribute');
      return true;
    };
    expect(bench.take(0x105_000, READ, 'private')).toBe(FIXED);
    expect(order).toEqual(['snapshot', 'attribute']);
  });

  it('fails with ENOMEM, and without an exit, when there is no memory for page tables', () => {
    start('7.2', { slot: GMEM, private: [0x105] });
    while (bench.memory.allocate(0, bench.owner) >= 0);
    bench.run.exitReason = 0;
    expect(bench.take(0x105_000, READ, 'private')).toBe(-12);
    expect(bench.run.exitReason).toBe(0);
  });
});

describe('a fault whose backing delivers later', () => {
  /** A backing that delivers when told to. */
  function slowBacking(): { deliver: () => void } {
    let delivered = false;
    let settle = (): void => {};
    const backing = (name: string, into: BackingPage): number => {
      if (delivered) return bench.give(name, into);
      into.pending = new Promise((resolve) => {
        settle = resolve;
      });
      return 1;
    };
    bench.gmem = (gfn, into) => backing(`gmem ${gfn}`, into);
    return {
      deliver: () => {
        delivered = true;
        settle();
      },
    };
  }

  it('is mapped once the page is there', async () => {
    start('7.2', { slot: GMEM, private: [0x105] });
    const backing = slowBacking();
    const handler = bench.handler();
    const fault = bench.fault(0x105_000, READ, 'private');
    expect(handler.handle(fault, bench.run)).toBe(PENDING);
    expect(handler.resume(fault, bench.run)).toBe(PENDING);
    const { pending } = fault;
    backing.deliver();
    await pending;
    expect(handler.resume(fault, bench.run)).toBe(FIXED);
    expect(bench.mmu.lookup(0x105 as never)?.pfn).toBe(bench.frame('gmem 261'));
  });

  it('does not keep other faults from being resolved', () => {
    start('7.2', { slot: GMEM, private: [0x105] });
    slowBacking();
    const handler = bench.handler();
    expect(handler.handle(bench.fault(0x105_000, READ, 'private'), bench.run)).toBe(PENDING);
    expect(handler.handle(bench.fault(0x106_000, READ, 'shared'), bench.run)).toBe(FIXED);
  });

  it('goes on with ENOMEM when others took the page tables that were put by', async () => {
    start('7.2', { slot: GMEM, private: [0x105] });
    const backing = slowBacking();
    const handler = bench.handler();
    const fault = bench.fault(0x105_000, READ, 'private');
    expect(handler.handle(fault, bench.run)).toBe(PENDING);
    expect(handler.handle(bench.fault(0x106_000, READ, 'shared'), bench.run)).toBe(FIXED);
    bench.frame('gmem 261');
    const hog: number[] = [];
    for (let at = bench.memory.allocate(0, bench.owner); at >= 0; at = bench.memory.allocate(0, bench.owner))
      hog.push(at);
    backing.deliver();
    expect(handler.resume(fault, bench.run)).toBe(-12);
    for (const frame of hog) bench.memory.free(frame as never, 0);
    expect(handler.resume(fault, bench.run)).toBe(FIXED);
  });

  it('retries when its gfn became shared meanwhile', () => {
    start('7.2', { slot: GMEM, private: [0x105] });
    const backing = slowBacking();
    const handler = bench.handler();
    const fault = bench.fault(0x105_000, READ, 'private');
    expect(handler.handle(fault, bench.run)).toBe(PENDING);
    bench.invalidation.begin(0x105, 0x106);
    bench.private.delete(0x105);
    bench.invalidation.finish();
    backing.deliver();
    expect(handler.resume(fault, bench.run)).toBe(RETRY);
    expect(bench.mmu.lookup(0x105 as never)).toBeUndefined();
  });

  it('without the check under the lock, the private page stays mapped where the guest now has shared memory', () => {
    start('7.2', { slot: GMEM, private: [0x105] });
    const backing = slowBacking();
    const withoutCheck = bench.handler({
      snapshot: () => bench.invalidation.snapshot(),
      retryGfn: () => false,
      retryGfnUnsafe: () => false,
    });
    const fault = bench.fault(0x105_000, READ, 'private');
    expect(withoutCheck.handle(fault, bench.run)).toBe(PENDING);
    bench.invalidation.begin(0x105, 0x106);
    bench.mmu.zapRange(0x105 as never, 0x106 as never);
    bench.private.delete(0x105);
    bench.invalidation.finish();
    backing.deliver();
    expect(withoutCheck.resume(fault, bench.run)).toBe(FIXED);
    expect(bench.attributes.isPrivate(0x105 as never)).toBe(false);
    expect(bench.mmu.lookup(0x105 as never)?.pfn).toBe(bench.frame('gmem 261'));
  });

  it('retries when its slot was deleted meanwhile, and asks the old one nothing', () => {
    start('7.2', { slot: GMEM, private: [0x105] });
    slowBacking();
    const handler = bench.handler();
    const fault = bench.fault(0x105_000, READ, 'private');
    expect(handler.handle(fault, bench.run)).toBe(PENDING);
    bench.mmu.zapSlot(bench.slotList.pop()!);
    bench.calls.length = 0;
    expect(handler.resume(fault, bench.run)).toBe(RETRY);
    expect(bench.calls).toEqual([]);
  });
});

describe('the trace of a fault', () => {
  it.each([
    ['a read of private memory', READ, 'private', 'fixed', 'read', true],
    ['a write of private memory', WRITE, 'private', 'fixed', 'write', true],
    ['a fetch', 0x10, 'private', 'fixed', 'fetch', true],
    ['one that exits', READ, 'shared', 'errno 14', 'read', false],
  ] as const)(
    'says what it came to and why, and which frame: %s',
    (_, error, visibility, what, why, hasFrame) => {
      start('7.2', { slot: GMEM, private: [0x105] });
      const events: object[] = [];
      bench.trace.listen((event) => {
        if (event.kind === 'fault') events.push({ ...event });
      });
      bench.take(0x105_000, error, visibility);
      const frame = hasFrame ? { pfn: bench.frame('gmem 261') } : {};
      const want = { kind: 'fault', who: 'kernel', what, why, gfn: 0x105, private: visibility === 'private' };
      expect(events).toEqual([expect.objectContaining({ ...want, ...frame })]);
      expect('pfn' in events[0]!).toBe(hasFrame);
    },
  );
});
