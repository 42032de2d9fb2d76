/** Page walks: guest and nested tables against a model, nested faults, accessed and dirty bits, what the TLB may keep. */
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { Code, hlt, load, nop, Register, set, store, two } from './assembler.ts';
import {
  CODE,
  CR0,
  CR2,
  CR4,
  DATA,
  EFER,
  EXITINFO1,
  EXITINFO2,
  GuestBench,
  PD,
  PDPT,
  PML4,
  PT,
  RAX,
  RFLAGS,
  RIP,
} from './guest-bench.ts';

let bench: GuestBench;
beforeEach(() => {
  bench = new GuestBench();
});
afterEach(() => bench.close());

const P = 1n;
const W = 2n;
const U = 4n;
const A = 0x20n;
const D = 0x40n;
const NX = 1n << 63n;
const RESERVED = 1n << 48n;
/** The linear page of the tests, and the entries on its way. */
const LINEAR = 0x40_0020_3000n;
const TABLES = { pdpt: 0x40000, pd: 0x41000, pt: 0x42000 };
const TARGET = 0x43000;

interface Levels {
  readonly pml4: bigint;
  readonly pdpt: bigint;
  readonly pd: bigint;
  readonly pt: bigint;
}
function mapLinear({ pml4, pdpt, pd, pt }: Levels): void {
  bench.write(PML4, 0x2000n | 7n);
  bench.write(PML4 + 0, BigInt(PDPT) | 7n);
  bench.write(PDPT + 256 * 8, BigInt(TABLES.pd) | pdpt);
  bench.write(TABLES.pd + 1 * 8, BigInt(TABLES.pt) | pd);
  bench.write(TABLES.pt + 3 * 8, BigInt(TARGET) | pt);
  bench.write(PML4, BigInt(PDPT) | pml4);
}

describe('the guest page walk', () => {
  const bits = fc.record({
    present: fc.boolean(),
    w: fc.boolean(),
    u: fc.boolean(),
    nx: fc.boolean(),
    reserved: fc.boolean(),
  });
  type Bits = { present: boolean; w: boolean; u: boolean; nx: boolean; reserved: boolean };
  const usual = fc.oneof(
    {
      weight: 4,
      arbitrary: fc.record({
        present: fc.constant(true),
        w: fc.boolean(),
        u: fc.boolean(),
        nx: fc.constant(false),
        reserved: fc.constant(false),
      }),
    },
    { weight: 1, arbitrary: bits },
  );
  const entry = (b: Bits): bigint =>
    (b.present ? P : 0n) | (b.w ? W : 0n) | (b.u ? U : 0n) | (b.nx ? NX : 0n) | (b.reserved ? RESERVED : 0n);

  interface Mode {
    access: 'read' | 'write' | 'fetch';
    user: boolean;
    wp: boolean;
    smep: boolean;
    smap: boolean;
    ac: boolean;
    nxe: boolean;
  }
  /** The page-fault error code, or undefined where the access is allowed (APM volume 2, 5.6 and 8.4.2). */
  function model(levels: Bits[], mode: Mode): number | undefined {
    const base =
      (mode.access === 'write' ? 2 : 0) |
      (mode.user ? 4 : 0) |
      (mode.access === 'fetch' && (mode.nxe || mode.smep) ? 16 : 0);
    for (const level of levels) {
      if (!level.present) return base;
      if (level.reserved || (level.nx && !mode.nxe)) return base | 9;
    }
    const w = levels.every((level) => level.w);
    const u = levels.every((level) => level.u);
    const nx = levels.some((level) => level.nx);
    let allowed = true;
    if (mode.access === 'fetch' && nx) allowed = false;
    if (mode.user && (!u || (mode.access === 'write' && !w))) allowed = false;
    if (!mode.user) {
      if (mode.access === 'write' && !w && mode.wp) allowed = false;
      if (u && mode.access === 'fetch' && mode.smep) allowed = false;
      if (u && mode.access !== 'fetch' && mode.smap && !mode.ac) allowed = false;
    }
    return allowed ? undefined : base | 1;
  }

  it('allows and refuses as the model says, with the same error code', () => {
    bench.interceptException(14);
    const mode = fc.record({
      access: fc.constantFrom('read' as const, 'write' as const, 'fetch' as const),
      user: fc.boolean(),
      wp: fc.boolean(),
      smep: fc.boolean(),
      smap: fc.boolean(),
      ac: fc.boolean(),
      nxe: fc.boolean(),
    });
    fc.assert(
      fc.property(usual, usual, usual, mode, (pdpt, pd, pt, m) => {
        // The code and the stack are the kernel's or the user's as the mode wants; PML4 is shared with them.
        const code = m.user ? 7n : 3n;
        for (let page = 0; page < 256; page++) bench.write(PT + page * 8, BigInt(page * 4096) | code);
        if (m.user) bench.becomeUser();
        else {
          bench.segment(0x10, 0x08, 0xa9b);
          bench.segment(0x20, 0x10, 0xc93);
          bench.memory.write((bench.vmcb + 0x4cb) as never, Uint8Array.of(0));
        }
        mapLinear({ pml4: 7n, pdpt: entry(pdpt), pd: entry(pd), pt: entry(pt) });
        bench.setLong(CR0, m.wp ? 0x80010033n : 0x80000033n);
        bench.setLong(CR4, 0x6a0n | (m.smep ? 1n << 20n : 0n) | (m.smap ? 1n << 21n : 0n));
        bench.setLong(EFER, m.nxe ? 0x1d01n : 0x1501n);
        bench.setLong(RFLAGS, m.ac ? 0x43002n : 0x3002n);
        bench.flush();
        bench.write(TARGET + 0x10, 0x90f4n);
        bench.core.gpr[3] = LINEAR + 0x10n;
        const wanted = model([pdpt, pd, pt], m);
        bench.intercept(123);
        bench.core.gpr[2] = 0x80n;
        const end = two(Code.Out_DX_AL, Register.DX, Register.AL);
        let got: number;
        if (m.access === 'fetch') {
          bench.memory.write(bench.spa(TARGET + 0x10), Uint8Array.of(0xee));
          bench.setLong(RIP, LINEAR + 0x10n);
          got = bench.run();
        } else got = bench.run([m.access === 'read' ? load('rax', 'rbx') : store('rbx', 'rax'), end]);
        if (wanted === undefined) {
          expect(got).toBe(0x7b);
        } else {
          expect(got).toBe(0x4e);
          expect(bench.long(EXITINFO1)).toBe(BigInt(wanted));
          expect(bench.long(EXITINFO2)).toBe(LINEAR + 0x10n);
        }
      }),
      { numRuns: 300 },
    );
  });

  it('sets accessed bits on the way, the dirty bit at a write alone', () => {
    mapLinear({ pml4: 7n, pdpt: 7n, pd: 7n, pt: 7n });
    bench.core.gpr[3] = LINEAR;
    bench.run([load('rax', 'rbx'), hlt()]);
    expect(bench.read(PML4) & (A | D)).toBe(A);
    expect(bench.read(PDPT + 256 * 8) & (A | D)).toBe(A);
    expect(bench.read(TABLES.pd + 8) & (A | D)).toBe(A);
    expect(bench.read(TABLES.pt + 24) & (A | D)).toBe(A);
    bench.run([store('rbx', 'rax'), hlt()]);
    expect(bench.read(TABLES.pt + 24) & (A | D)).toBe(A | D);
    expect(bench.read(TABLES.pd + 8) & D).toBe(0n);
  });

  it('a refused access sets neither', () => {
    mapLinear({ pml4: 7n, pdpt: 7n, pd: 7n, pt: 1n });
    bench.interceptException(14);
    bench.core.gpr[3] = LINEAR;
    expect(bench.run([store('rbx', 'rax'), hlt()])).toBe(0x4e);
    expect(bench.read(TABLES.pt + 24) & (A | D)).toBe(0n);
  });

  it('maps 2 MiB and 1 GiB pages', () => {
    bench.write(DATA + 0x123 * 8, 0xabcdn);
    bench.write(PD + 5 * 8, 0x87n);
    bench.write(PDPT + 7 * 8, 0x87n);
    for (const base of [5 * 0x20_0000, 7 * 0x4000_0000]) {
      expect(bench.run([set('rbx', base + DATA + 0x123 * 8), load('rax', 'rbx'), hlt()])).toBe(0x78);
      expect(bench.long(RAX)).toBe(0xabcdn);
    }
  });

  it('reserved bits of large pages fault', () => {
    bench.interceptException(14);
    bench.write(PD + 5 * 8, 0x2087n);
    expect(bench.run([set('rbx', 5 * 0x20_0000), load('rax', 'rbx'), hlt()])).toBe(0x4e);
    expect(bench.long(EXITINFO1)).toBe(9n);
    bench.write(PML4 + 8, BigInt(PDPT) | 0x87n);
    expect(bench.run([set('rbx', 0x80_0000_0000n), load('rax', 'rbx'), hlt()])).toBe(0x4e);
    expect(bench.long(EXITINFO1)).toBe(9n);
  });

  it('an access that crosses into a page that is not there faults there, and nothing is written', () => {
    bench.interceptException(14);
    bench.write(PT + 0x31 * 8, 0n);
    bench.write(DATA + 0xff8, 0x5555n);
    expect(bench.run([set('rbx', DATA + 0xffc), set('rax', -1n), store('rbx', 'rax'), hlt()])).toBe(0x4e);
    expect(bench.long(EXITINFO1)).toBe(2n);
    expect(bench.long(EXITINFO2)).toBe(BigInt(DATA + 0x1000));
    expect(bench.read(DATA + 0xff8)).toBe(0x5555n);
  });

  it('an intercepted page fault does not touch CR2, a delivered one does', () => {
    bench.setLong(CR2, 0x77n);
    bench.interceptException(14);
    bench.write(PT + 0x31 * 8, 0n);
    const program = [set('rbx', DATA + 0x1008), load('rax', 'rbx'), hlt()];
    expect(bench.run(program)).toBe(0x4e);
    expect(bench.long(CR2)).toBe(0x77n);
    bench.setWord(8, 0);
    bench.gate(14, CODE + 0x800);
    bench.load([hlt()], CODE + 0x800);
    expect(bench.run(program)).toBe(0x78);
    expect(bench.long(CR2)).toBe(BigInt(DATA + 0x1008));
  });

  it('instruction bytes come along with an intercepted data fault', () => {
    bench.interceptException(14);
    bench.write(PT + 0x31 * 8, 0n);
    bench.core.gpr[3] = BigInt(DATA + 0x1000);
    bench.run([load('rax', 'rbx'), hlt()]);
    const bytes = new Uint8Array(16);
    bench.memory.read((bench.vmcb + 0xd0) as never, bytes);
    expect([...bytes.subarray(0, 5)]).toEqual([15, 0x48, 0x8b, 0x43, 0x00]);
  });
});

describe('the nested page walk', () => {
  const gfn = DATA >>> 12;
  const read = [set('rbx', DATA + 0x18), load('rax', 'rbx'), hlt()];
  const write = [set('rbx', DATA + 0x18), store('rbx', 'rax'), hlt()];
  const FINAL = 1n << 32n;
  const PAGE = 1n << 33n;

  const rows: [string, bigint, typeof read, bigint | undefined][] = [
    ['not present, read', 0n, read, 0x4n],
    ['not present, write', 0n, write, 0x6n],
    ['read-only, read', 5n, read, undefined],
    ['read-only, write', 5n, write, 0x7n],
    ['supervisor page, read', 3n, read, 0x5n],
    ['reserved bit, read', 7n | RESERVED, read, 0xdn],
    ['reserved bit, write', 7n | RESERVED, write, 0xfn],
    ['no-execute, data', 7n | NX, read, undefined],
  ];
  it.each(rows)('%s', (_name, bits, program, info) => {
    bench.remap(gfn, bits);
    expect(bench.run(program)).toBe(info === undefined ? 0x78 : 0x400);
    if (info === undefined) return;
    expect(bench.long(EXITINFO1)).toBe(info | FINAL);
    expect(bench.long(EXITINFO2)).toBe(BigInt(DATA + 0x18));
    expect(bench.long(0xc8)).toBe(0n);
    expect(bench.word(0xd0) & 0xff).toBe(15);
  });

  it('a fetch from a page without rights says so, without instruction bytes', () => {
    bench.load([hlt()], DATA);
    bench.remap(gfn, 7n | NX);
    bench.setLong(RIP, BigInt(DATA));
    expect(bench.run()).toBe(0x400);
    expect(bench.long(EXITINFO1)).toBe(0x15n | FINAL);
    expect(bench.word(0xd0) & 0xff).toBe(0);
    bench.unmap(gfn);
    expect(bench.run()).toBe(0x400);
    expect(bench.long(EXITINFO1)).toBe(0x14n | FINAL);
  });

  it('a page-table page that is not there is named by the byte address of the entry', () => {
    const tables: [number, number][] = [
      [PML4, 0],
      [PDPT, 0],
      [PD, 0],
      [PT, 0x10 * 8],
    ];
    for (const [table, offset] of tables) {
      bench.unmap(table >>> 12);
      expect(bench.run(read)).toBe(0x400);
      expect(bench.long(EXITINFO1)).toBe(0x4n | PAGE);
      expect(bench.long(EXITINFO2)).toBe(BigInt(table + offset));
      bench.remap(table >>> 12, 7n);
    }
  });

  it('accessed bits are writes: a read-only page-table page faults until they are set', () => {
    bench.run([nop(), hlt()]);
    bench.remap(PT >>> 12, 5n);
    expect(bench.run(read)).toBe(0x400);
    expect(bench.long(EXITINFO1)).toBe(0x7n | PAGE);
    expect(bench.long(EXITINFO2)).toBe(BigInt(PT + 0x30 * 8));
    bench.write(PT + 0x30 * 8, BigInt(DATA) | 0x23n);
    bench.flush();
    expect(bench.run(read)).toBe(0x78);
  });

  it('sets nested accessed bits at a read, the dirty bit at a write; guest tables that get bits are dirty', () => {
    bench.run(read);
    const leaf = bench.nestedLeaf(gfn);
    expect(bench.memory.load64(leaf) & 0x60n).toBe(0x20n);
    expect(bench.memory.load64(bench.nestedLeaf(PT >>> 12)) & 0x60n).toBe(0x60n);
    bench.run(write);
    expect(bench.memory.load64(leaf) & 0x60n).toBe(0x60n);
  });

  it('a gpa beyond 48 bits cannot be in a guest entry: #PF with RSV, not a nested fault', () => {
    bench.interceptException(14);
    bench.write(PT + 0x30 * 8, (1n << 50n) | 3n);
    expect(bench.run(read)).toBe(0x4e);
    expect(bench.long(EXITINFO1)).toBe(9n);
  });

  it('a gpa that nothing maps faults with its whole address', () => {
    bench.write(PT + 0x30 * 8, 0x7fff_dead_b003n);
    expect(bench.run(read)).toBe(0x400);
    expect(bench.long(EXITINFO1)).toBe(0x4n | FINAL);
    expect(bench.long(EXITINFO2)).toBe(0x7fff_dead_b018n);
  });

  it('maps by large nested pages, and marks them', () => {
    const block = bench.memory.allocate(9, bench.memory.owner('large'));
    const directory = Number((bench.memory.load64((bench.nestedRoot * 4096) as never) >> 12n) & 0xfffffn);
    const second = Number((bench.memory.load64((directory * 4096) as never) >> 12n) & 0xfffffn);
    bench.memory.store64((second * 4096 + 3 * 8) as never, BigInt(block * 4096) | 0x87n);
    bench.memory.store64((block * 4096 + 0x45678) as never, 0x1357n);
    bench.write(PD + 3 * 8, 0x600087n);
    expect(bench.run([set('rbx', 3 * 0x20_0000 + 0x45678), load('rax', 'rbx'), hlt()])).toBe(0x78);
    expect(bench.long(RAX)).toBe(0x1357n);
    expect(bench.memory.load64((second * 4096 + 3 * 8) as never) & 0x60n).toBe(0x20n);
  });
});
