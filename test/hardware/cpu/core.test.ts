/** A core runs guests: from the first VMRUN to the exits that a small program meets. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Pfn, Spa } from '../../../src/base/address.ts';
import { Core } from '../../../src/hardware/cpu/core.ts';
import { HostMemory } from '../../../src/hardware/memory/host-memory.ts';
import { assemble, Code, call, hlt, jump, load, nop, op, out8, set, store } from './assembler.ts';
import {
  CODE,
  DATA,
  EXITCODE,
  EXITINFO1,
  EXITINFO2,
  GuestBench,
  NEXT_RIP,
  RAX,
  RFLAGS,
  RIP,
} from './guest-bench.ts';

let bench: GuestBench;
beforeEach(() => {
  bench = new GuestBench();
});
afterEach(() => bench.close());

describe('a guest in long mode', () => {
  it('leaves by a port: out 0xf4, al', () => {
    const program = [set('rax', 0x2a), set('rdx', 0xf4), out8()];
    expect(bench.run(program)).toBe(0x7b);
    expect(bench.long(EXITCODE)).toBe(0x7bn);
    // Port 0xf4, 64-bit addresses, 8 bits wide, out.
    expect(bench.long(EXITINFO1)).toBe(0xf40210n);
    const end = CODE + assemble(program, CODE).length;
    expect(bench.long(RIP)).toBe(BigInt(end - 1));
    expect(bench.long(NEXT_RIP)).toBe(BigInt(end));
    expect(bench.long(EXITINFO2)).toBe(BigInt(end));
    expect(bench.long(RAX)).toBe(0x2an);
    expect(bench.core.gpr[2]).toBe(0xf4n);
  });

  it('goes on where the host lets it, with the registers it had', () => {
    bench.run([set('rdx', 0x3f8), set('rax', 1), out8(), set('rbx', 7), hlt()]);
    expect(bench.skip()).toBe(0x78);
    expect(bench.core.gpr[3]).toBe(7n);
    expect(bench.core.gpr[2]).toBe(0x3f8n);
  });

  it('takes RAX from the VMCB, not from the core', () => {
    bench.setLong(RAX, 0x1234567890n);
    bench.core.gpr[0] = 99n;
    bench.run([set('rbx', DATA), store('rbx', 'rax'), hlt()]);
    expect(bench.read(DATA)).toBe(0x1234567890n);
  });

  it('is interrupted by the host when its budget is used up, and goes on', () => {
    const loop = [nop(), jump('rbx')];
    bench.core.gpr[3] = BigInt(CODE);
    expect(bench.run(loop, 1000)).toBe(0x60);
    expect(bench.core.retired).toBeGreaterThanOrEqual(1000);
    expect(bench.core.retired).toBeLessThan(1010);
    expect(bench.long(EXITINFO1)).toBe(0n);
    const before = bench.core.retired;
    expect(bench.run(undefined, 500)).toBe(0x60);
    expect(bench.core.retired - before).toBeGreaterThanOrEqual(500);
  });

  it('keeps RFLAGS through exit and entry, whatever they are', () => {
    for (const flags of [
      0x2n,
      0x8d5n | 2n,
      0x1n | 2n,
      0x4n | 2n,
      0x10n | 2n,
      0x40n | 2n,
      0x80n | 2n,
      0x800n | 2n,
      0x203202n,
    ]) {
      bench.setLong(RFLAGS, flags);
      expect(bench.run([hlt()])).toBe(0x78);
      expect(bench.long(RFLAGS)).toBe(flags);
    }
  });

  it('sees code that it changes at once', () => {
    // Overwrites the HLT behind the store with OUT DX, AL.
    const head = [set('rbx', 0), set('rax', 0xee90), set('rdx', 0x80)];
    const write = store('rbx', 'rax');
    const at = CODE + assemble([...head, write], CODE).length;
    head[0] = set('rbx', at);
    expect(bench.run([...head, write, hlt(), hlt()])).toBe(0x7b);
    expect(bench.word(EXITINFO1) >>> 16).toBe(0x80);
  });

  it('sees code that the host changes between two runs', () => {
    expect(bench.run([hlt()])).toBe(0x78);
    expect(bench.run([op(Code.Vmmcall)])).toBe(0x81);
  });

  it('runs an instruction that lies on two pages', () => {
    const program = [set('rax', 0x1122334455667788n), hlt()];
    const at = CODE + 0x1000 - 5;
    bench.load(program, at);
    bench.setLong(RIP, BigInt(at));
    expect(bench.run()).toBe(0x78);
    expect(bench.long(RAX)).toBe(0x1122334455667788n);
  });

  it('reads and writes across pages that are not neighbours in host memory', () => {
    bench.write(DATA + 0xff8, 0x1111111111111111n);
    bench.write(DATA + 0x1000, 0x2222222222222222n);
    const program = [
      set('rbx', DATA + 0xffd),
      load('rax', 'rbx'),
      set('rcx', 0x99aabbccddeeff00n),
      store('rbx', 'rcx'),
      hlt(),
    ];
    expect(bench.run(program)).toBe(0x78);
    expect(bench.long(RAX)).toBe(0x2222222222111111n);
    expect(bench.read(DATA + 0xff8)).toBe(0xeeff001111111111n);
    expect(bench.read(DATA + 0x1000)).toBe(0x22222299aabbccddn);
  });

  it('has its code bytes read by the host', () => {
    const program = [op(Code.Vmcall), nop()];
    bench.run([hlt()]);
    bench.load(program);
    const bytes = new Uint8Array(3);
    expect(bench.core.fetchBytes(bench.vmcb, bytes)).toBe(3);
    expect([...bytes]).toEqual([0x0f, 0x01, 0xc1]);
  });

  it('gives fewer code bytes where the next page is not there', () => {
    bench.write(0x4000 + 0x11 * 8, 0n);
    bench.setLong(RIP, BigInt(CODE + 0xffe));
    expect(bench.core.fetchBytes(bench.vmcb, new Uint8Array(15))).toBe(2);
  });

  it('names an instruction that the core does not have in the trace, and raises #UD', () => {
    bench.interceptException(6);
    expect(bench.run([op(Code.Getsecd)])).toBe(0x46);
    expect(bench.events).toContainEqual(
      expect.objectContaining({ kind: 'core', what: 'undefined', why: 'Getsec' }),
    );
  });

  it('an undefined instruction of the processor is #UD, VMCALL among them', () => {
    bench.interceptException(6);
    for (const code of [Code.Ud2, Code.Vmcall]) {
      expect(bench.run([op(code)])).toBe(0x46);
      expect(bench.long(RIP)).toBe(BigInt(CODE));
      expect(bench.long(EXITINFO1)).toBe(0n);
      expect(bench.long(NEXT_RIP)).toBe(0n);
    }
  });
});

describe('two cores on one host memory', () => {
  it('a store of one changes code that the other has decoded', () => {
    const other = new Core({ id: 1, memory: bench.memory, trace: bench.trace });
    const vmcb = (bench.frame() * 4096) as Spa;
    const copy = new Uint8Array(4096);
    bench.load([hlt()], CODE + 0x1000);
    bench.load([set('rbx', CODE + 0x1000), set('rax', 0xd9010f), store('rbx', 'rax'), hlt()]);
    bench.setLong(RIP, BigInt(CODE + 0x1000));
    bench.memory.read(bench.vmcb, copy);
    bench.memory.write(vmcb, copy);
    // This core may write to the page before the other one decodes it.
    expect(bench.run([set('rbx', CODE + 0x1800), store('rbx', 'rax'), hlt()])).toBe(0x78);
    expect(other.vmrun(vmcb, 1000)).toBe(0x78);
    bench.load([set('rbx', CODE + 0x1000), set('rax', 0xd9010f), store('rbx', 'rax'), hlt()]);
    bench.setLong(RIP, BigInt(CODE));
    expect(bench.run()).toBe(0x78);
    bench.memory.store64((vmcb + RIP) as Spa, BigInt(CODE + 0x1000));
    expect(other.vmrun(vmcb, 1000)).toBe(0x81);
    other.close();
  });
});

describe('the interrupt shadow', () => {
  it('holds for the instruction behind STI and is over after it', () => {
    bench.run([op(Code.Sti), hlt(), hlt()]);
    expect(bench.word(0x68)).toBe(3);
    bench.run([op(Code.Sti), nop(), hlt()]);
    expect(bench.word(0x68)).toBe(2);
  });
  it('that the host sets survives an entry that leaves at once', () => {
    bench.setWord(0x68, 1);
    bench.run([hlt()]);
    expect(bench.word(0x68)).toBe(1);
  });
});

it('host memory of a core is given back', () => {
  const core = new Core({
    id: 2,
    memory: bench.memory,
    trace: bench.trace,
    owner: bench.memory.owner('third'),
  });
  // State 8, the first records 16, two page maps of 4.
  expect(bench.memory.usage().get('third')).toBe(32);
  core.close();
  expect(bench.memory.usage().get('third')).toBeUndefined();
});

describe('data beside code', () => {
  it('stores in numbers to a page with code become fast, and code stored there is still seen', () => {
    const at = CODE + 0x1000;
    // The page is code first; then 400 stores to it; then one that makes the HLT there a VMMCALL.
    bench.load([op(Code.Retnq)], at);
    const stores = Array.from({ length: 400 }, () => store('rbx', 'rax', 0x800));
    bench.run([set('rbx', at), call('rbx'), ...stores, hlt()]);
    expect(bench.memory.frameFlags[bench.frameOf(at >>> 12)]).toBe(0);
    expect(bench.run([set('rbx', at), call('rbx'), hlt()])).toBe(0x78);
    expect(bench.memory.frameFlags[bench.frameOf(at >>> 12)]).toBe(1);
    const change = [set('rbx', at), set('rax', 0xd9010f), store('rbx', 'rax'), call('rbx'), hlt()];
    expect(bench.run(change)).toBe(0x81);
  });
});

it('PAUSE is an exit where the host wants it', () => {
  expect(bench.run([op(Code.Pause), hlt()])).toBe(0x78);
  bench.intercept(119);
  expect(bench.run([op(Code.Pause), hlt()])).toBe(0x77);
  expect(bench.long(NEXT_RIP)).toBe(BigInt(CODE + 2));
});

it('intercepts that the core would miss are refused by name', () => {
  bench.intercept(112);
  expect(bench.run([hlt()])).toBe(0xf00000ff | 0);
  expect(bench.refusal()).toBe('not implemented: the PUSHF intercept');
});

it('host memory above 2 GiB is as good as any', () => {
  bench.close();
  const memory = HostMemory.create({ bytes: 3 * 2 ** 30, trace: bench.trace });
  const below = memory.owner('below');
  let above = 0;
  for (let order = 18; order >= 0; order--) {
    for (let frame = 0; frame >= 0; ) {
      frame = memory.allocate(order, below);
      above = Math.max(above, frame);
    }
  }
  memory.free(0x80000 as Pfn, 18);
  expect(above).toBe(0x80000);
  bench = new GuestBench(memory);
  expect(bench.vmcb).toBeGreaterThan(2 ** 31);
  bench.gate(6, CODE + 0x1000);
  bench.load([set('rax', 5), hlt()], CODE + 0x1000);
  const program = [
    set('rbx', DATA + 0xffd),
    set('rax', 7),
    store('rbx', 'rax'),
    load('rcx', 'rbx'),
    op(Code.Ud2),
  ];
  expect(bench.run(program)).toBe(0x78);
  expect(bench.core.gpr[1]).toBe(7n);
  expect(bench.run([set('rbx', DATA), store('rbx', 'rax'), op(Code.Getsecd)])).toBe(0x78);
  expect(bench.read(DATA)).toBe(5n);
});
