/** Page state changes by list (reference facts 5.4): rules of the header and of entries, merging, progress, resumption. Entries: cur_page 11:0, gfn 51:12, operation 55:52, 2 MiB 56. */
import { describe, expect, it } from 'vitest';
import { BUFFER, GhcbBench } from './ghcb-bench.ts';
import { GHCB } from './snp-bench.ts';

const HLT = 5;
const HYPERCALL = 3;
const PRIVATE = 1n;
const SHARED = 2n;
const INVALID_HEADER = 0x1_0000_0001n;
const INVALID_ENTRY = 0x1_0000_0002n;
const GENERIC = 0x100_0000_0000n;

const entry = (gfn: number, operation: bigint, { current = 0n, large = 0n } = {}): bigint =>
  current | (BigInt(gfn) << 12n) | (operation << 52n) | (large << 56n);
const large = (gfn: number, operation: bigint, current = 0n): bigint =>
  entry(gfn, operation, { large: 1n, current });

class Psc {
  readonly bench: GhcbBench;
  readonly at: number;

  constructor(bench = new GhcbBench().register(), at = BUFFER) {
    this.bench = bench;
    this.at = at;
  }

  put(entries: readonly bigint[], current = 0, end = entries.length - 1): this {
    const bytes = new Uint8Array(8 + 8 * entries.length);
    const view = new DataView(bytes.buffer);
    view.setUint16(0, current, true);
    view.setUint16(2, end, true);
    for (const [i, value] of entries.entries()) view.setBigUint64(8 + 8 * i, value, true);
    this.bench.write(this.at, bytes);
    return this;
  }

  ask(): number {
    return this.bench.request({ code: 0x8000_0010n, info1: 0n, info2: 0n, scratch: BigInt(this.at) });
  }

  /** Runs to the answer; user space answers `ret` to each range. What it was asked: gpa, pages, attributes. */
  ranges(ret: (index: number) => bigint = () => 0n): [bigint, bigint, bigint][] {
    const asked: [bigint, bigint, bigint][] = [];
    const { vcpu } = this.bench.snp;
    for (this.ask(); this.bench.exitReason === HYPERCALL; vcpu.run()) {
      const { kvmRun } = vcpu;
      expect([kvmRun.hypercallNr, kvmRun.hypercallRet]).toEqual([12n, 0n]);
      asked.push([kvmRun.hypercallArg(0), kvmRun.hypercallArg(1), kvmRun.hypercallArg(2)]);
      kvmRun.hypercallRet = ret(asked.length - 1);
    }
    expect(this.bench.exitReason).toBe(HLT);
    expect(this.bench.answer[0]).toBe(0n);
    return asked;
  }

  get info2(): bigint {
    return this.bench.answer[1];
  }
  get current(): number {
    return Number(this.bench.snp.long(this.at) & 0xffffn);
  }
  /** Asks for one page; user space answers `ret`. What KVM_RUN says to that. */
  askAndAnswer(ret: bigint): number {
    this.put([entry(0x80, PRIVATE)]).ask();
    this.bench.snp.vcpu.kvmRun.hypercallRet = ret;
    return this.bench.snp.vcpu.run();
  }
  /** cur_page of entries. */
  progress(count: number): number[] {
    return Array.from({ length: count }, (_, i) => Number(this.bench.snp.long(this.at + 8 + 8 * i) & 0xfffn));
  }
}

describe('a list of page state changes', () => {
  const ROWS: readonly {
    readonly name: string;
    readonly entries: readonly bigint[];
    readonly current?: number;
    readonly end?: number;
    readonly asked: readonly (readonly [bigint, bigint, bigint])[];
    readonly info2: bigint;
    readonly after: number;
    readonly progress?: readonly number[];
  }[] = [
    {
      name: 'one page private',
      entries: [entry(0x80, PRIVATE)],
      asked: [[0x80000n, 1n, 0x10n]],
      info2: 0n,
      after: 1,
      progress: [1],
    },
    {
      name: 'one page shared',
      entries: [entry(0x80, SHARED)],
      asked: [[0x80000n, 1n, 0n]],
      info2: 0n,
      after: 1,
      progress: [1],
    },
    {
      name: '2 MiB',
      entries: [large(0x200, PRIVATE)],
      asked: [[0x200000n, 512n, 0x11n]],
      info2: 0n,
      after: 1,
      progress: [512],
    },
    {
      name: 'neighbours in one range',
      entries: [entry(0x80, PRIVATE), entry(0x81, PRIVATE), entry(0x82, PRIVATE)],
      asked: [[0x80000n, 3n, 0x10n]],
      info2: 0n,
      after: 3,
      progress: [1, 1, 1],
    },
    {
      name: 'no neighbours, by gfn',
      entries: [entry(0x80, PRIVATE), entry(0x82, PRIVATE)],
      asked: [
        [0x80000n, 1n, 0x10n],
        [0x82000n, 1n, 0x10n],
      ],
      info2: 0n,
      after: 2,
    },
    {
      name: 'no neighbours: downwards',
      entries: [entry(0x81, PRIVATE), entry(0x80, PRIVATE)],
      asked: [
        [0x81000n, 1n, 0x10n],
        [0x80000n, 1n, 0x10n],
      ],
      info2: 0n,
      after: 2,
    },
    {
      name: 'no neighbours, by operation',
      entries: [entry(0x80, PRIVATE), entry(0x81, SHARED)],
      asked: [
        [0x80000n, 1n, 0x10n],
        [0x81000n, 1n, 0n],
      ],
      info2: 0n,
      after: 2,
    },
    {
      name: 'no neighbours, by size',
      entries: [large(0x200, SHARED), entry(0x400, SHARED)],
      asked: [
        [0x200000n, 512n, 1n],
        [0x400000n, 1n, 0n],
      ],
      info2: 0n,
      after: 2,
    },
    {
      name: 'neighbours of 2 MiB',
      entries: [large(0x200, SHARED), large(0x400, SHARED)],
      asked: [[0x200000n, 1024n, 1n]],
      info2: 0n,
      after: 2,
      progress: [512, 512],
    },
    {
      name: 'a list begun elsewhere',
      entries: [entry(0x80, PRIVATE), entry(0x90, PRIVATE)],
      current: 1,
      asked: [[0x90000n, 1n, 0x10n]],
      info2: 0n,
      after: 2,
      progress: [0, 1],
    },
    {
      name: 'entries that are done',
      entries: [entry(0x80, PRIVATE, { current: 1n }), large(0x200, PRIVATE, 512n), entry(0x90, PRIVATE)],
      asked: [[0x90000n, 1n, 0x10n]],
      info2: 0n,
      after: 3,
    },
    {
      name: 'a neighbour that is done already: not again, and those behind it by themselves',
      entries: [entry(0x80, PRIVATE), entry(0x81, PRIVATE, { current: 1n }), entry(0x82, PRIVATE)],
      asked: [
        [0x80000n, 1n, 0x10n],
        [0x82000n, 1n, 0x10n],
      ],
      info2: 0n,
      after: 3,
      progress: [1, 1, 1],
    },
    {
      name: 'a neighbour of 2 MiB of which 100 pages are done: its rest by itself',
      entries: [large(0x200, PRIVATE), large(0x400, PRIVATE, 100n)],
      asked: [
        [0x200000n, 512n, 0x11n],
        [0x464000n, 412n, 0x11n],
      ],
      info2: 0n,
      after: 2,
      progress: [512, 512],
    },
    {
      name: '2 MiB of which 100 pages are done: the rest, page by page and by itself',
      entries: [large(0x200, PRIVATE, 100n), large(0x400, PRIVATE)],
      asked: [
        [0x264000n, 412n, 0x11n],
        [0x400000n, 512n, 0x11n],
      ],
      info2: 0n,
      after: 2,
      progress: [512, 512],
    },
    {
      name: 'an empty list: current behind the end',
      entries: [entry(0x80, PRIVATE)],
      current: 1,
      asked: [],
      info2: 0n,
      after: 1,
      progress: [0],
    },
    {
      name: 'an end of 253',
      entries: [entry(0x80, PRIVATE)],
      end: 253,
      asked: [],
      info2: INVALID_HEADER,
      after: 0,
    },
    {
      name: 'an end of 65535',
      entries: [entry(0x80, PRIVATE)],
      end: 0xffff,
      asked: [],
      info2: INVALID_HEADER,
      after: 0,
    },
    {
      name: 'progress beyond a page',
      entries: [entry(0x80, PRIVATE, { current: 2n })],
      asked: [],
      info2: INVALID_ENTRY,
      after: 0,
    },
    {
      name: 'progress beyond 2 MiB',
      entries: [large(0x200, PRIVATE, 513n)],
      asked: [],
      info2: INVALID_ENTRY,
      after: 0,
    },
    {
      name: '2 MiB not aligned',
      entries: [large(0x201, PRIVATE)],
      asked: [],
      info2: INVALID_ENTRY,
      after: 0,
    },
    {
      name: 'a bad entry after a good one',
      entries: [entry(0x80, PRIVATE), large(0x201, PRIVATE)],
      asked: [[0x80000n, 1n, 0x10n]],
      info2: INVALID_ENTRY,
      after: 1,
      progress: [1, 0],
    },
    {
      name: 'hints to smash and unsmash',
      entries: [large(0x200, 3n), entry(0x80, 4n)],
      asked: [],
      info2: 0n,
      after: 2,
      progress: [512, 1],
    },
    {
      name: 'operations that nobody has',
      entries: [entry(0x80, 0n), entry(0x81, 15n)],
      asked: [],
      info2: 0n,
      after: 2,
      progress: [1, 1],
    },
  ];
  for (const { name, entries, current, end, asked, info2, after, progress } of ROWS) {
    it(name, () => {
      const psc = new Psc().put(entries, current, end);
      expect(psc.ranges()).toEqual(asked);
      expect([psc.info2, psc.current]).toEqual([info2, after]);
      if (progress !== undefined) expect(psc.progress(progress.length)).toEqual(progress);
    });
  }

  it('has 253 entries at most, in the whole of the shared buffer', () => {
    const entries = Array.from({ length: 253 }, (_, i) => entry(2 * i, SHARED));
    const psc = new Psc().put(entries);
    expect(psc.ranges()).toHaveLength(253);
    expect([psc.info2, psc.current]).toEqual([0n, 253]);
  });

  it('that would reach out of the shared buffer has a bad header', () => {
    const psc = new Psc(undefined, GHCB + 0xfd8).put([entry(0x80, PRIVATE), entry(0x90, PRIVATE)]);
    expect(psc.ranges()).toHaveLength(2);
    psc.put([entry(0x80, PRIVATE), entry(0x90, PRIVATE)], 0, 2);
    expect(psc.ranges()).toEqual([]);
    expect(psc.info2).toBe(INVALID_HEADER);
  });

  it('that user space fails to convert stops there: generic error, and the guest may go on behind it', () => {
    const entries = [entry(0x80, PRIVATE), entry(0x90, PRIVATE), entry(0xa0, PRIVATE)];
    const psc = new Psc().put(entries);
    expect(psc.ranges((index) => (index === 1 ? 22n : 0n))).toHaveLength(2);
    expect([psc.info2, psc.current]).toEqual([GENERIC, 1]);
    expect(psc.progress(3)).toEqual([1, 0, 0]);
    expect(psc.ranges()).toEqual([
      [0x90000n, 1n, 0x10n],
      [0xa0000n, 1n, 0x10n],
    ]);
    expect([psc.info2, psc.current]).toEqual([0n, 3]);
  });

  it('is a generic error where user space takes no hypercalls', () => {
    const psc = new Psc().put([entry(0x80, PRIVATE)]);
    psc.bench.snp.vm.enableCap({ cap: 201, args: [0n] });
    expect(psc.ranges()).toEqual([]);
    expect(psc.info2).toBe(GENERIC);
  });

  it('that the guest changes while user space works is read anew, and never trusted', () => {
    const psc = new Psc().put([entry(0x80, PRIVATE), entry(0x90, PRIVATE)]);
    psc.ask();
    psc.put([large(0x201, PRIVATE), large(0x203, PRIVATE)], 77, 0xffff);
    psc.bench.snp.vcpu.run();
    expect([psc.bench.exitReason, psc.info2]).toEqual([HLT, INVALID_HEADER]);
    psc.put([entry(0x80, PRIVATE), entry(0x81, PRIVATE)]);
    psc.ask();
    // What was in flight is noted as done by the sizes that stand there now.
    psc.put([large(0x200, PRIVATE), entry(0x90, PRIVATE)], 0, 1);
    psc.bench.snp.vcpu.run();
    expect(psc.progress(2)).toEqual([512, 1]);
    expect([psc.bench.exitReason, psc.info2]).toEqual([HLT, 0n]);
  });
});

describe('hypercall.ret of a page state change', () => {
  // 0, EINVAL, EAGAIN are answers on 7.2; on 6.12 anything is. What KVM_RUN says, and whether the guest hears of an error.
  const RETS: readonly (readonly [bigint, number, number])[] = [
    [22n, 0, 0],
    [11n, 0, 0],
    [1n, 0, -22],
    [0xffff_ffff_ffff_ffean, 0, -22],
    [0xffff_ffff_ffff_fff5n, 0, -22],
    [0x1_0000_0016n, 0, -22],
  ];
  for (const [ret, old, late] of RETS)
    for (const [kernel, result] of [
      ['6.12', old],
      ['7.2', late],
    ] as const) {
      it(`0x${ret.toString(16)} by list on ${kernel}`, () => {
        const psc = new Psc(new GhcbBench({ kernel }).register());
        expect(psc.askAndAnswer(ret)).toBe(result);
        expect(psc.info2).toBe(result === 0 ? GENERIC : 0n);
        expect([psc.current, psc.progress(1)]).toEqual([0, [0]]);
      });

      it(`0x${ret.toString(16)} by MSR on ${kernel}`, () => {
        const bench = new GhcbBench({ kernel });
        const request = (1n << 52n) | 0x8_0014n;
        bench.ask(request);
        bench.snp.vcpu.kvmRun.hypercallRet = ret;
        expect(bench.snp.vcpu.run()).toBe(result);
        expect(bench.snp.vcpu.vmcb.long(0xa0)).toBe(result === 0 ? 0x8000_0000_0000_0015n : request);
      });
    }
});
