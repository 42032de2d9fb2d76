/** Emulated instructions: their accesses to addresses without a nested mapping go to a bus, by the core's own semantics. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  addTo,
  Code,
  call,
  hlt,
  iced,
  load,
  onMemory,
  type op,
  push,
  set,
  store,
  storeByte,
} from './assembler.ts';
import {
  CODE,
  DATA,
  EXITINFO1,
  EXITINFO2,
  GuestBench,
  PT,
  RAX,
  RecordingBus,
  RIP,
  RSP,
} from './guest-bench.ts';

let bench: GuestBench;
let bus: RecordingBus;
/** A gpa outside RAM, mapped at linear 0xff000. */
const DEVICE = 0xfee00000;
const LINEAR = 0xff000n;
beforeEach(() => {
  bench = new GuestBench();
  bus = new RecordingBus();
  bench.write(PT + 0xff * 8, BigInt(DEVICE) | 3n);
});
afterEach(() => bench.close());

/** Runs `program` up to its nested fault, then emulates that instruction. */
function emulate(program: ReturnType<typeof op>[]): string {
  expect(bench.run(program)).toBe(0x400);
  return bench.core.emulate(bench.vmcb, bus);
}
const rip = (): number => Number(bench.long(RIP)) - CODE;
const SET = 10;

describe('a load', () => {
  it('without data is abandoned without effect, and done when they are there', () => {
    expect(emulate([set('rbx', LINEAR), load('rcx', 'rbx', 8), hlt()])).toBe('pending');
    expect(rip()).toBe(SET);
    expect(bench.core.emulate(bench.vmcb, bus)).toBe('pending');
    bus.data.set(DEVICE + 8, 0x1122334455667788n);
    expect(bench.core.emulate(bench.vmcb, bus)).toBe('done');
    expect(bench.core.gpr[1]).toBe(0x1122334455667788n);
    expect(rip()).toBe(SET + 4);
    expect(bus.log).toEqual(Array(3).fill('read fee00008 8'));
    expect(bench.run()).toBe(0x78);
  });
  it('into RAX goes to the VMCB', () => {
    bus.data.set(DEVICE, 5n);
    expect(emulate([set('rbx', LINEAR), load('rax', 'rbx'), hlt()])).toBe('done');
    expect(bench.long(RAX)).toBe(5n);
  });
});

describe('a store', () => {
  it('goes to the bus once', () => {
    expect(emulate([set('rbx', LINEAR), set('rax', 0xa1b2c3d4n), store('rbx', 'rax', 0x10), hlt()])).toBe(
      'done',
    );
    expect(bus.log).toEqual(['write fee00010 d4c3b2a100000000']);
    expect(bench.run()).toBe(0x78);
  });
  it('of one byte has one byte', () => {
    expect(emulate([set('rbx', LINEAR), storeByte('rbx', 0x5a), hlt()])).toBe('done');
    expect(bus.log).toEqual(['write fee00000 5a']);
  });
  it('that crosses from memory goes to both', () => {
    const program = [set('rbx', LINEAR - 4n), set('rax', 0x1111111122222222n), store('rbx', 'rax'), hlt()];
    expect(emulate(program)).toBe('done');
    expect(bus.log).toEqual(['write fee00000 11111111']);
    expect(bench.read(0xfeff8)).toBe(0x2222222200000000n);
  });
});

it('a read-modify-write reads, then writes', () => {
  bus.data.set(DEVICE, 40n);
  expect(emulate([set('rbx', LINEAR), set('rax', 2), addTo('rbx', 'rax'), hlt()])).toBe('done');
  expect(bus.log).toEqual(['read fee00000 8', 'write fee00000 2a00000000000000']);
});

it('a push to a device moves RSP when it is done', () => {
  expect(emulate([set('rsp', LINEAR + 0x100n), set('rax', 7), push('rax'), hlt()])).toBe('done');
  expect(bus.log).toEqual(['write fee000f8 0700000000000000']);
  expect(bench.long(RSP)).toBe(LINEAR + 0xf8n);
});

it('a call with its stack on a device jumps', () => {
  const program = [set('rsp', LINEAR + 0x100n), set('rax', CODE + 0x800), call('rax'), hlt()];
  expect(emulate(program)).toBe('done');
  expect(rip()).toBe(0x800);
});

it('a load through memory that is there does not ask the bus for it', () => {
  // push [rbx]: reads the device, writes RAM.
  bus.data.set(DEVICE, 0x99n);
  expect(emulate([set('rbx', LINEAR), onMemory(Code.Push_rm64, 'rbx'), hlt()])).toBe('done');
  expect(bench.read(Number(bench.long(RSP)))).toBe(0x99n);
  expect(bus.log).toEqual(['read fee00000 8']);
});

describe('a repeated string instruction', () => {
  const { Instruction, RepPrefixKind } = iced;
  it('to a device is done one element at a time, with RIP on it until the last', () => {
    for (let i = 0; i < 3; i++) bench.write(DATA + 8 * i, BigInt(i + 1));
    const program = [
      set('rsi', DATA),
      set('rdi', LINEAR),
      set('rcx', 3),
      Instruction.createMovsq(64, 0, RepPrefixKind.Repe),
      hlt(),
    ];
    expect(emulate(program)).toBe('done');
    let steps = 1;
    while (bench.run() === 0x400) {
      expect(bench.core.emulate(bench.vmcb, bus)).toBe('done');
      steps++;
    }
    expect(bus.log).toEqual([
      'write fee00000 0100000000000000',
      'write fee00008 0200000000000000',
      'write fee00010 0300000000000000',
    ]);
    expect(steps).toBe(3);
    expect(bench.core.gpr[1]).toBe(0n);
    expect(bench.core.gpr[7]).toBe(LINEAR + 24n);
  });
  it('from a device waits for each element', () => {
    const program = [
      set('rsi', LINEAR),
      set('rdi', DATA),
      set('rcx', 2),
      Instruction.createMovsq(64, 0, RepPrefixKind.Repe),
      hlt(),
    ];
    expect(emulate(program)).toBe('pending');
    expect(bench.core.gpr[1]).toBe(2n);
    bus.data.set(DEVICE, 0xaan);
    expect(bench.core.emulate(bench.vmcb, bus)).toBe('done');
    expect(bench.core.gpr[1]).toBe(1n);
    expect(bench.core.emulate(bench.vmcb, bus)).toBe('pending');
    bus.data.set(DEVICE + 8, 0xbbn);
    expect(bench.core.emulate(bench.vmcb, bus)).toBe('done');
    expect([bench.read(DATA), bench.read(DATA + 8)]).toEqual([0xaan, 0xbbn]);
    expect(bench.run()).toBe(0x78);
  });
});

describe('what is no data access', () => {
  it('an intercepted instruction is an exit', () => {
    bench.load([hlt()]);
    bench.setLong(RIP, BigInt(CODE));
    expect(bench.core.emulate(bench.vmcb, bus)).toBe('exit');
    expect(bench.word(0x70)).toBe(0x78);
  });
  it('a page fault is delivered to the guest', () => {
    bench.gate(14, CODE + 0x800);
    bench.load([load('rax', 'rbx')]);
    bench.core.gpr[3] = 0x400000n;
    bench.setLong(RIP, BigInt(CODE));
    expect(bench.core.emulate(bench.vmcb, bus)).toBe('done');
    expect(rip()).toBe(0x800);
  });
  it('code without a nested mapping is an exit', () => {
    bench.setLong(RIP, LINEAR);
    expect(bench.core.emulate(bench.vmcb, bus)).toBe('exit');
    expect(bench.long(EXITINFO1)).toBe(0x1_0000_0014n);
    expect(bench.long(EXITINFO2)).toBe(BigInt(DEVICE));
    expect(bus.log).toEqual([]);
  });
  it('page tables on a device are an exit', () => {
    bench.write(0x3000 + 8, BigInt(DEVICE) | 3n);
    bench.load([load('rax', 'rbx')]);
    bench.core.gpr[3] = 0x200000n;
    bench.setLong(RIP, BigInt(CODE));
    expect(bench.core.emulate(bench.vmcb, bus)).toBe('exit');
    expect(bench.long(EXITINFO1)).toBe(0x2_0000_0004n);
  });
});

it('MASKMOVDQU reads a device once and writes it once, in two halves', () => {
  bus.data.set(DEVICE, 0x1111_1111_1111_1111n);
  bus.data.set(DEVICE + 8, 0x2222_2222_2222_2222n);
  bench.core.xmm.fill(0xab, 0, 16);
  bench.core.xmm.fill(0x80, 16, 20);
  bench.core.gpr[7] = LINEAR;
  expect(bench.runBytes(0x66, 0x0f, 0xf7, 0xc1)).toBe(0x400);
  expect(bench.core.emulate(bench.vmcb, bus)).toBe('done');
  expect(bus.log).toEqual([
    'read fee00000 8',
    'read fee00008 8',
    'write fee00000 abababab11111111',
    'write fee00008 2222222222222222',
  ]);
});
