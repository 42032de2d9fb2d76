/** What the TLB may keep, and what drops it. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { Code, hlt, load, onMemory, op, Register, set, store, storeByte, two } from './assembler.ts';
import { CODE, CR4, DATA, EXITINFO1, GuestBench, PD, PT, RIP } from './guest-bench.ts';

let bench: GuestBench;
beforeEach(() => {
  bench = new GuestBench();
});
afterEach(() => bench.close());

describe('the TLB', () => {
  /** Maps DATA's linear page to another frame of the guest, behind the TLB's back. */
  const retarget = [set('rsi', PT + 0x30 * 8), set('rax', 0x32003), store('rsi', 'rax')];
  const touch = [set('rbx', DATA), load('rcx', 'rbx')];
  const look = [load('rcx', 'rbx'), hlt()];
  beforeEach(() => {
    bench.write(DATA, 0x1111n);
    bench.write(0x32000, 0x2222n);
  });

  it('keeps a translation until something flushes it', () => {
    bench.run([...touch, ...retarget, ...look]);
    expect(bench.core.gpr[1]).toBe(0x1111n);
  });
  const flushes: [string, ReturnType<typeof op>[]][] = [
    ['INVLPG', [onMemory(Code.Invlpg_m, 'rbx')]],
    [
      'MOV CR3',
      [two(Code.Mov_r64_cr, Register.RDI, Register.CR3), two(Code.Mov_cr_r64, Register.CR3, Register.RDI)],
    ],
    ['a change of CR4.PGE', [set('rdi', 0x620), two(Code.Mov_cr_r64, Register.CR4, Register.RDI)]],
    ['a change of CR0.WP', [set('rdi', 0x80000033), two(Code.Mov_cr_r64, Register.CR0, Register.RDI)]],
  ];
  it.each(flushes)('%s drops it', (_name, instructions) => {
    bench.run([...touch, ...retarget, ...instructions, ...look]);
    expect(bench.core.gpr[1]).toBe(0x2222n);
  });
  it('MOV CR3 keeps global pages, INVLPG does not', () => {
    bench.write(PT + 0x30 * 8, BigInt(DATA) | 0x103n);
    bench.run([...touch, ...retarget, ...flushes[1]![1], ...look]);
    expect(bench.core.gpr[1]).toBe(0x1111n);
    bench.write(PT + 0x30 * 8, BigInt(DATA) | 0x103n);
    bench.flush();
    bench.run([...touch, ...retarget, ...flushes[0]![1], ...look]);
    expect(bench.core.gpr[1]).toBe(0x2222n);
  });
  it('INVLPG inside a large page drops all of it', () => {
    bench.write(PD + 5 * 8, 0x87n);
    const there = 5 * 0x20_0000;
    bench.run([
      set('rbx', there + DATA),
      load('rcx', 'rbx'),
      set('rsi', PD + 5 * 8),
      set('rax', 0),
      store('rsi', 'rax'),
      set('rdi', there),
      onMemory(Code.Invlpg_m, 'rdi'),
      hlt(),
    ]);
    bench.interceptException(14);
    bench.setLong(RIP, bench.long(0xc8));
    bench.load([load('rcx', 'rbx'), hlt()], CODE + 0x400);
    bench.setLong(RIP, BigInt(CODE + 0x400));
    expect(bench.run()).toBe(0x4e);
  });
  it('a nested entry taken away hits until the host flushes', () => {
    bench.run([...touch, hlt()]);
    bench.memory.store64(bench.nestedLeaf(DATA >>> 12), 0n);
    expect(bench.run([...look])).toBe(0x78);
    for (const control of [1, 3, 7]) {
      bench.remap(DATA >>> 12, 7n);
      bench.run([...touch, hlt()]);
      bench.memory.store64(bench.nestedLeaf(DATA >>> 12), 0n);
      bench.setWord(0x5c, control);
      expect(bench.run([...look])).toBe(0x400);
    }
  });
  it('another ASID and another nested root start empty', () => {
    bench.run([...touch, hlt()]);
    bench.memory.store64(bench.nestedLeaf(DATA >>> 12), 0n);
    bench.setWord(0x58, 2);
    expect(bench.run([...look])).toBe(0x400);
  });
  it('a nested entry that comes needs no flush, nor one that becomes writable', () => {
    bench.remap(DATA >>> 12, 5n);
    expect(bench.run([...touch, storeByte('rbx', 1), hlt()])).toBe(0x400);
    bench.map(DATA >>> 12, bench.frameOf(DATA >>> 12), 7n);
    expect(bench.run()).toBe(0x78);
    bench.unmap(0x33);
    expect(bench.run([set('rbx', 0x33000), storeByte('rbx', 1), hlt()])).toBe(0x400);
    bench.map(0x33, bench.frameOf(0x33), 7n);
    expect(bench.run()).toBe(0x78);
  });
  it('a page that was read is checked again at the first write', () => {
    bench.interceptException(14);
    bench.write(PT + 0x30 * 8, BigInt(DATA) | 1n);
    expect(bench.run([...touch, storeByte('rbx', 1), hlt()])).toBe(0x4e);
    expect(bench.long(EXITINFO1)).toBe(3n);
  });
  it('a user does not hit what the kernel may touch', () => {
    bench.becomeUser();
    bench.write(PT + 0x30 * 8, BigInt(DATA) | 3n);
    bench.write(PT + 0x31 * 8, BigInt(DATA + 0x1000) | 7n);
    bench.interceptException(14);
    // A kernel run first, which fills the supervisor's set.
    bench.segment(0x10, 0x08, 0xa9b);
    bench.memory.write((bench.vmcb + 0x4cb) as never, Uint8Array.of(0));
    expect(bench.run([...touch, hlt()])).toBe(0x78);
    bench.segment(0x10, 0x23, 0xafb);
    bench.memory.write((bench.vmcb + 0x4cb) as never, Uint8Array.of(3));
    expect(bench.run([...look])).toBe(0x4e);
    expect(bench.long(EXITINFO1)).toBe(5n);
  });
  it('with SMAP, AC decides at each access to a user page', () => {
    bench.setLong(CR4, 0x2006a0n);
    bench.write(PT + 0x30 * 8, BigInt(DATA) | 7n);
    bench.interceptException(14);
    bench.core.gpr[3] = BigInt(DATA);
    const program = [op(Code.Stac), load('rcx', 'rbx'), op(Code.Clac), load('rax', 'rbx'), hlt()];
    expect(bench.run(program)).toBe(0x4e);
    expect(bench.core.gpr[1]).toBe(0x1111n);
    expect(bench.long(EXITINFO1)).toBe(1n);
  });
  it('holds translations of many pages and forgets all at a flush', () => {
    const pages = Array.from({ length: 0x60 }, (_, i) => 0x40 + i);
    for (const page of pages) bench.write(page * 4096, BigInt(page));
    const program = pages.flatMap((page) => [
      set('rbx', page * 4096),
      load('rcx', 'rbx'),
      storeByte('rbx', 7),
    ]);
    expect(bench.run([...program, hlt()])).toBe(0x78);
    for (const page of pages) bench.memory.store64(bench.nestedLeaf(page), 0n);
    bench.flush();
    for (const page of pages) {
      expect(bench.run([set('rbx', page * 4096), load('rcx', 'rbx'), hlt()])).toBe(0x400);
    }
  });
});
