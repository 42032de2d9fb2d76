/** VMCB clean bits: what the host changed with its bit cleared is seen at the next VMRUN. What happens with the bit set is not said here: hardware may do either. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Spa } from '../../../src/base/address.ts';
import { Code, hlt, load, op, out8, Register, set, two } from './assembler.ts';
import {
  CODE,
  CR2,
  CR3,
  CR4,
  DATA,
  EVENTINJ,
  GuestBench,
  HANDLERS,
  IDT,
  PML4,
  RAX,
  RFLAGS,
  RIP,
  RSP,
  STACK,
} from './guest-bench.ts';

const CLEAN = 0xc0;
const ALL = 0x1fff;

let bench: GuestBench;
beforeEach(() => {
  bench = new GuestBench();
  expect(bench.run([hlt()])).toBe(0x78);
  bench.setWord(CLEAN, ALL);
});
afterEach(() => bench.close());

/** The host clears one bit, as whoever changes a field of its group must. */
const clear = (bit: number): void => bench.setWord(CLEAN, bench.word(CLEAN) & ~(1 << bit));

describe('fields without a clean bit are read at each VMRUN', () => {
  it('RIP, RSP, RAX, RFLAGS', () => {
    bench.load([two(Code.Mov_r64_rm64, Register.RBX, Register.RSP), op(Code.Pushfq), hlt()], CODE + 0x100);
    bench.setLong(RIP, BigInt(CODE + 0x100));
    bench.setLong(RSP, BigInt(STACK - 64));
    bench.setLong(RAX, 0x1122334455667788n);
    bench.setLong(RFLAGS, 0x8d7n);
    expect(bench.run()).toBe(0x78);
    expect(bench.core.gpr[3]).toBe(BigInt(STACK - 64));
    expect(bench.long(RAX)).toBe(0x1122334455667788n);
    expect(bench.read(STACK - 72)).toBe(0x8d7n);
    expect(bench.long(RFLAGS)).toBe(0x8d7n);
  });

  it('EVENTINJ, legal or not', () => {
    bench.gate(0x30, HANDLERS);
    bench.load([hlt()], HANDLERS);
    bench.setWord(EVENTINJ, 0x80000030 | 0);
    expect(bench.run([out8()])).toBe(0x78);
    expect(bench.long(RIP)).toBe(BigInt(HANDLERS));
    bench.setWord(EVENTINJ, 0x80000100 | 0);
    expect(bench.run()).toBe(-1);
  });

  it('TLB_CONTROL, legal or not', () => {
    const program = [set('rbx', DATA), load('rax', 'rbx'), hlt()];
    expect(bench.run(program)).toBe(0x78);
    bench.map(DATA >>> 12, bench.frame(), 0n);
    bench.setWord(0x5c, 3);
    expect(bench.run(program)).toBe(0x400);
    bench.setWord(0x5c, 2);
    expect(bench.run(program)).toBe(-1);
  });

  it('the interrupt shadow', () => {
    bench.setWord(0x68, 1);
    expect(bench.run([hlt()])).toBe(0x78);
    expect(bench.word(0x68) & 1).toBe(1);
    bench.setWord(0x68, 0);
    expect(bench.run([hlt()])).toBe(0x78);
    expect(bench.word(0x68) & 1).toBe(0);
  });

  it('CR2, which KVM never says to be clean', () => {
    clear(9);
    bench.setLong(CR2, 0x123456789000n);
    expect(bench.run([two(Code.Mov_r64_cr, Register.RAX, Register.CR2), hlt()])).toBe(0x78);
    expect(bench.long(RAX)).toBe(0x123456789000n);
  });
});

describe('a field whose clean bit is cleared is loaded anew', () => {
  const moved = [set('rbx', DATA), load('rax', 'rbx'), hlt()];
  const reading = (from: number) => [two(Code.Mov_r64_dr, Register.RAX, from), hlt()];

  it('bit 0: intercepts', () => {
    clear(0);
    bench.intercept(114);
    expect(bench.run([op(Code.Cpuid)])).toBe(0x72);
  });

  it('bit 0: the TSC offset', () => {
    bench.intercept(110, 0);
    clear(0);
    bench.setLong(0x50, 1n << 40n);
    expect(bench.run([op(Code.Rdtsc), hlt()])).toBe(0x78);
    expect(bench.core.gpr[2]).toBe(0x100n);
  });

  it('bit 1: the permission maps', () => {
    const open = bench.memory.allocate(2, bench.memory.owner('test')) * 4096;
    clear(1);
    bench.setLong(0x40, BigInt(open));
    expect(bench.run([set('rdx', 0x80), out8(), hlt()])).toBe(0x78);
  });

  it('bit 2: the ASID, whose 0 is refused', () => {
    clear(2);
    bench.setWord(0x58, 0);
    expect(bench.run([hlt()])).toBe(-1);
  });

  it('bit 4: the root of the nested tables', () => {
    clear(4);
    bench.setLong(0xb0, BigInt(bench.frame() * 4096));
    expect(bench.run([hlt()])).toBe(0x400);
  });

  it('bit 4: G_PAT, an illegal type of which is refused', () => {
    clear(4);
    bench.setLong(0x668, 2n);
    expect(bench.run([hlt()])).toBe(-1);
  });

  it('bit 5: CR3', () => {
    bench.write(DATA, 0x5555n);
    expect(bench.run(moved)).toBe(0x78);
    // A second tree that has DATA's page elsewhere.
    const [pml4, pdpt, pd, pt] = [0x80000, 0x81000, 0x82000, 0x83000];
    bench.write(pml4, pdpt | 7);
    bench.write(pdpt, pd | 7);
    bench.write(pd, pt | 7);
    for (let page = 0; page < 256; page++) bench.write(pt + page * 8, (page * 4096) | 3);
    bench.write(pt + (DATA >>> 12) * 8, (DATA + 0x1000) | 3);
    bench.write(DATA + 0x1000, 0x6666n);
    clear(5);
    bench.setLong(CR3, BigInt(pml4));
    expect(bench.run(moved)).toBe(0x78);
    expect(bench.long(RAX)).toBe(0x6666n);
    clear(5);
    bench.setLong(CR3, BigInt(PML4));
    expect(bench.run(moved)).toBe(0x78);
    expect(bench.long(RAX)).toBe(0x5555n);
  });

  it('bit 5: CR4, whose reserved bits are refused', () => {
    clear(5);
    bench.setLong(CR4, 0x806a0n);
    expect(bench.run([hlt()])).toBe(-1);
  });

  it('bit 6: DR6 and DR7', () => {
    clear(6);
    bench.setLong(0x568, 0xffff4ff0n);
    expect(bench.run(reading(Register.DR6))).toBe(0x78);
    expect(bench.long(RAX)).toBe(0xffff4ff0n);
  });

  it('bit 7: IDTR', () => {
    clear(7);
    bench.segment(0x80, 0, 0, 0xfff, BigInt(IDT + 0x400));
    for (let vector = 0; vector < 32; vector++) bench.write(IDT + 0x400 + vector * 16, 0n);
    bench.intercept(127);
    expect(bench.run([op(Code.Ud2)])).toBe(0x7f);
  });

  it('bit 8: CS and CPL', () => {
    clear(8);
    bench.becomeUser();
    bench.setWord(0x5c, 3);
    bench.interceptException(13);
    expect(bench.run([hlt()])).toBe(0x4d);
  });
});

it('a VMCB that was refused is checked again, whatever its clean bits say', () => {
  bench.setWord(CLEAN, 0);
  bench.setLong(CR4, 0x806a0n);
  expect(bench.run([hlt()])).toBe(-1);
  bench.setWord(CLEAN, ALL);
  expect(bench.run([hlt()])).toBe(-1);
});

it('another VMCB is loaded whatever its clean bits say', () => {
  const other = (bench.frame() * 4096) as Spa;
  bench.memory.copy(other, bench.vmcb, 4096);
  bench.memory.store64((other + 0x568) as Spa, 0xffff4ff0n);
  bench.memory.store32((other + CLEAN) as Spa, ALL);
  bench.load([two(Code.Mov_r64_dr, Register.RAX, Register.DR6), hlt()]);
  expect(bench.core.vmrun(other, 100)).toBe(0x78);
  expect(bench.memory.load64((other + RAX) as Spa)).toBe(0xffff4ff0n);
});
