/** #XM: which floating-point exceptions raise it, what is written then, and what comes before it. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { CODE, CR4, DATA, GuestBench, HANDLERS, PT, RAX, RecordingBus, RIP, RSP } from '../guest-bench.ts';

const XM = 0x53;
const [UD, GP, PF, HLT] = [0x46, 0x4d, 0x4e, 0x78];
const NESTED_FAULT = 0x400;
const RSI = 6;

let bench: GuestBench;
beforeEach(() => {
  bench = new GuestBench();
  for (const vector of [6, 13, 14, 19]) bench.interceptException(vector);
});
afterEach(() => bench.close());

const doubles = () => new Float64Array(bench.core.xmm.slice().buffer);
/** XMM0 and XMM1, two numbers each. */
function setDoubles(...values: number[]): void {
  bench.core.xmm.set(new Uint8Array(Float64Array.of(...values).buffer));
}

const MAX = Number.MAX_VALUE;
const TINY = 2 ** -1022;
const DENORMAL = 2 ** -1074;
const add = [0xf2, 0x0f, 0x58, 0xc1];
const multiply = [0xf2, 0x0f, 0x59, 0xc1];
const divide = [0xf2, 0x0f, 0x5e, 0xc1];
const root = [0xf2, 0x0f, 0x51, 0xc1];
const addPacked = [0x66, 0x0f, 0x58, 0xc1];
const dividePacked = [0x66, 0x0f, 0x5e, 0xc1];
const compare = [0x66, 0x0f, 0x2f, 0xc1];
const compareQuietly = [0x66, 0x0f, 0x2e, 0xc1];
const toInteger = [0xf2, 0x48, 0x0f, 0x2d, 0xc1];
const toSingle = [0xf2, 0x0f, 0x5a, 0xc1];
const roundToInteger = [0x66, 0x0f, 0x3a, 0x0b, 0xc1, 0];
const roundSuppressed = [0x66, 0x0f, 0x3a, 0x0b, 0xc1, 8];
const addMemory = [0xf2, 0x0f, 0x58, 0x06];
const addPackedMemory = [0x66, 0x0f, 0x58, 0x06];

/** Instruction, operands (scalar: in the lower halves), MXCSR before; MXCSR after. */
const RAISING: readonly [string, number[], number, number, number, number][] = [
  ['0 / 0 is invalid', divide, 0, 0, 0x1f00, 0x1f01],
  ['the root of −1 is invalid', root, 7, -1, 0x1f00, 0x1f01],
  ['∞ − ∞ is invalid', add, Infinity, -Infinity, 0x1f00, 0x1f01],
  ['a denormal operand', add, DENORMAL, 1, 0x1e80, 0x1e82],
  ['1 / 0', divide, 1, 0, 0x1d80, 0x1d84],
  ['a denormal divided by 0 is a division by zero alone', divide, DENORMAL, 0, 0x1c80, 0x1c84],
  ['overflow', multiply, MAX, 2, 0x1b80, 0x1b88],
  ['overflow that rounds', multiply, MAX, MAX, 0x1b80, 0x1ba8],
  ['underflow without loss', multiply, TINY, 0.5, 0x1780, 0x1790],
  ['underflow with loss', multiply, 1.25 * TINY, 1 / 3, 0x1780, 0x17b0],
  ["underflow whose loss is the denormal's alone", multiply, TINY, 1 / 3, 0x1780, 0x1790],
  ['underflow without loss, flushed to zero if it were masked', multiply, TINY, 0.5, 0x9780, 0x9790],
  ['precision', divide, 1, 3, 0x0f80, 0x0fa0],
  ['a NaN compared', compare, Number.NaN, 1, 0x1f00, 0x1f01],
  ['an integer too large', toInteger, 5, 2 ** 63, 0x1f00, 0x1f01],
  ['a fraction to an integer', toInteger, 5, 1.5, 0x0f80, 0x0fa0],
  ['a number too large for single precision', toSingle, 5, 2 ** 200, 0x1b80, 0x1b88],
  ['rounding a fraction', roundToInteger, 5, 1.5, 0x0f80, 0x0fa0],
];

/** The same, where nothing is raised. */
const SILENT: readonly [string, number[], number, number, number, number][] = [
  ['0 / 0, masked', divide, 0, 0, 0x1f80, 0x1f81],
  ['all but invalid unmasked, and an exact sum', add, 1, 2, 0x0080, 0x0080],
  ['flags that are set already, their masks clear', add, 1, 2, 0x003f, 0x003f],
  ['a quiet NaN among operands', add, Number.NaN, DENORMAL, 0x0000, 0x0000],
  ['a quiet NaN compared by UCOMISD', compareQuietly, Number.NaN, 1, 0x0000, 0x0000],
  ['a denormal that is taken as zero', add, DENORMAL, 1, 0x0040, 0x0040],
  ['a denormal result without loss, underflow masked', multiply, TINY, 0.5, 0x0800, 0x0800],
  ['the same, flushed to zero', multiply, TINY, 0.5, 0x9f80, 0x9fb0],
  ['rounding a fraction with precision suppressed', roundSuppressed, 5, 1.5, 0x0000, 0x0000],
];

describe('an exception that MXCSR does not mask', () => {
  it.each(RAISING)('%s: #XM, the flag, and no result', (_, code, a, b, before, after) => {
    setDoubles(a, 11, b, 12);
    bench.core.mxcsr = before;
    bench.setLong(RAX, 77n);
    expect(bench.runBytes(...code)).toBe(XM);
    expect(bench.core.mxcsr).toBe(after);
    expect([...doubles().slice(0, 4)]).toEqual([a, 11, b, 12]);
    expect(bench.long(RAX)).toBe(77n);
    expect(bench.long(RIP)).toBe(BigInt(CODE));
  });
  it.each(SILENT)('%s: nothing', (_, code, a, b, before, after) => {
    setDoubles(a, 11, b, 12);
    bench.core.mxcsr = before;
    expect(bench.runBytes(...code)).toBe(HLT);
    expect(bench.core.mxcsr).toBe(after);
  });
  it('is #UD without CR4.OSXMMEXCPT, and the flag is set all the same', () => {
    bench.setLong(CR4, 0x2a0n);
    setDoubles(1, 0, 3, 0);
    bench.core.mxcsr = 0x0f80;
    expect(bench.runBytes(...divide)).toBe(UD);
    expect(bench.core.mxcsr).toBe(0x0fa0);
    expect(doubles()[0]).toBe(1);
  });
  it('is delivered as a fault without error code', () => {
    bench.setWord(8, 0);
    bench.gate(19, HANDLERS);
    bench.memory.write(bench.spa(HANDLERS), Uint8Array.of(0xf4));
    setDoubles(1, 0, 0, 0);
    bench.core.mxcsr = 0;
    expect(bench.runBytes(...divide)).toBe(HLT);
    expect(bench.long(RIP)).toBe(BigInt(HANDLERS));
    expect(bench.read(Number(bench.long(RSP)))).toBe(BigInt(CODE));
  });
});

describe('a packed instruction', () => {
  it('writes nothing when one of its elements raises', () => {
    setDoubles(1, 1, 2, 0);
    bench.core.mxcsr = 0x1d80;
    expect(bench.runBytes(...dividePacked)).toBe(XM);
    expect([...doubles().slice(0, 2)]).toEqual([1, 1]);
  });
  it('computes no element when an operand of another raises: precision is not even flagged', () => {
    setDoubles(1, 0, 3, 0);
    bench.core.mxcsr = 0x0f00;
    expect(bench.runBytes(...dividePacked)).toBe(XM);
    expect(bench.core.mxcsr).toBe(0x0f01);
  });
  it('flags what all elements find when only a result raises', () => {
    setDoubles(1, 1, 3, 0);
    bench.core.mxcsr = 0x0f80;
    expect(bench.runBytes(...dividePacked)).toBe(XM);
    expect(bench.core.mxcsr).toBe(0x0fa4);
  });
});

describe('a memory operand', () => {
  const at = (address: number) => {
    bench.core.gpr[RSI] = BigInt(address);
  };
  beforeEach(() => {
    setDoubles(Number.MAX_VALUE, 1, 2, 3);
    bench.core.mxcsr = 0x0000;
  });

  it.each([
    ['a scalar that is not there', addMemory, 0x4000_0000, PF],
    ['a scalar whose second half is not there', addMemory, 0x100000 - 4, PF],
    ['a vector that is not there', addPackedMemory, 0x4000_0000, PF],
    ['a misaligned vector', addPackedMemory, DATA + 8, GP],
    ['a misaligned vector that is not there', addPackedMemory, 0x4000_0008, GP],
  ])('%s faults before the operation, and no flag is set', (_, code, address, exit) => {
    at(address);
    expect(bench.runBytes(...code)).toBe(exit);
    expect(bench.core.mxcsr).toBe(0);
    expect(doubles()[0]).toBe(Number.MAX_VALUE);
  });
  it('of a scalar may lie anywhere, across pages too', () => {
    at(DATA + 0x1000 - 4);
    const bits = new DataView(new ArrayBuffer(8));
    bits.setFloat64(0, -Number.MAX_VALUE, true);
    bench.memory.write(bench.spa(DATA + 0x1000 - 4), new Uint8Array(bits.buffer, 0, 4));
    bench.memory.write(bench.spa(DATA + 0x1000), new Uint8Array(bits.buffer, 4, 4));
    expect(bench.runBytes(...addMemory)).toBe(HLT);
    expect([...doubles().slice(0, 2)]).toEqual([0, 1]);
  });
  it('raises what a register would', () => {
    at(DATA);
    bench.write(DATA, 0x7ff0_0000_0000_0001n);
    expect(bench.runBytes(...addMemory)).toBe(XM);
    expect(bench.core.mxcsr).toBe(1);
  });
  it('may lie in a device: read once, and the slow path finds it', () => {
    const bus = new RecordingBus();
    bench.write(PT + 0xff * 8, 0xfee0_0003n);
    at(0xff008);
    bus.data.set(0xfee0_0008, 0x3ff0_0000_0000_0001n);
    setDoubles(3, 1, 0, 0);
    bench.core.mxcsr = 0x1f80;
    expect(bench.runBytes(...addMemory)).toBe(NESTED_FAULT);
    expect(bench.core.emulate(bench.vmcb, bus)).toBe('done');
    expect(bus.log).toEqual(['read fee00008 8']);
    expect(bench.core.mxcsr).toBe(0x1fa0);
    expect([...doubles().slice(0, 2)]).toEqual([4, 1]);
    expect(bench.long(RIP)).toBe(BigInt(CODE + 4));
  });
  it('as a vector raises what a register would', () => {
    at(DATA);
    bench.write(DATA, 0n);
    bench.write(DATA + 8, 1n);
    expect(bench.runBytes(...addPackedMemory)).toBe(XM);
    expect(bench.core.mxcsr).toBe(2);
    setDoubles(1, 2, 3, 4);
    expect(bench.runBytes(...addPacked)).toBe(HLT);
    expect([...doubles().slice(0, 2)]).toEqual([4, 6]);
  });
});
