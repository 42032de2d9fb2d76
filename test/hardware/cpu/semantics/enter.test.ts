/** ENTER by nesting level and operand size (APM volume 3, ENTER). The page's byte at offset n is 7n at first. */
import { afterAll, beforeAll, expect, it } from 'vitest';
import { OnePageMachine, PAGE } from './one-page-machine.ts';

const [RSP, RBP] = [4, 5] as const;
const TOP = PAGE + 0x800n;
const OLD_FRAME = PAGE + 0xc00n;
const pattern = (offset: number, bytes: number) =>
  Array.from({ length: bytes }, (_, n) => ((offset + n) * 7) & 0xff);

let machine: OnePageMachine;
beforeAll(() => {
  machine = new OnePageMachine();
});
afterAll(() => machine.close());

it.each([
  [64, 0, 0, 0x20800 - 8 - 16, 0x207f8],
  [64, 1, 0, 0x20800 - 16 - 16, 0x207f8],
  [64, 2, 1, 0x20800 - 24 - 16, 0x207f8],
  [64, 31, 30, 0x20800 - 256 - 16, 0x207f8],
  [64, 32, 0, 0x20800 - 8 - 16, 0x207f8],
  [64, 0xe2, 1, 0x20800 - 24 - 16, 0x207f8],
  // Only BP is written.
  [16, 0, 0, 0x20800 - 2 - 16, 0x207fe],
  [16, 1, 0, 0x20800 - 4 - 16, 0x207fe],
  [16, 2, 1, 0x20800 - 6 - 16, 0x207fe],
  [16, 31, 30, 0x20800 - 64 - 16, 0x207fe],
])('ENTER 16 with %d bits and level %d copies %d frame pointers', (bits, level, copies, rsp, rbp) => {
  const code = [...(bits === 16 ? [0x66] : []), 0xc8, 16, 0, level];
  expect(machine.execute(code, { [RSP]: TOP, [RBP]: OLD_FRAME }).vector).toBe(undefined);
  expect(machine.register(RSP)).toBe(BigInt(rsp));
  expect(machine.register(RBP)).toBe(BigInt(rbp));
  const bytes = bits / 8;
  const saved = [0x00, 0x0c, 0x02, 0, 0, 0, 0, 0].slice(0, bytes);
  expect(machine.data(0x800 - bytes, bytes)).toEqual(saved);
  for (let k = 1; k <= copies; k++)
    expect(machine.data(0x800 - bytes * (k + 1), bytes)).toEqual(pattern(0xc00 - bytes * k, bytes));
  const own = [rbp & 0xff, 0x07, 0x02, 0, 0, 0, 0, 0].slice(0, bytes);
  const below = 0x800 - bytes * (copies + 2);
  const isNested = (level & 31) > 0;
  expect(machine.data(below, bytes)).toEqual(isNested ? own : pattern(below, bytes));
});

it.each([
  // [size, room for locals, where it faults]: ENTER ends with the check of a store at the new stack pointer, which stores nothing.
  [64, 0x7f8, undefined],
  [64, 0x7f9, 0x1ffffn],
  [64, 0x900, 0x1fef8n],
  [16, 0x7fe, undefined],
  [16, 0x7ff, 0x1ffffn],
  [16, 0x810, 0x1ffeen],
])('ENTER of %d bits with %d bytes of locals faults at %s', (bits, locals, address) => {
  const code = [...(bits === 16 ? [0x66] : []), 0xc8, locals & 0xff, locals >> 8, 0];
  const { vector } = machine.execute(code, { [RSP]: TOP, [RBP]: OLD_FRAME });
  expect(vector).toBe(address === undefined ? undefined : 14);
  if (address === undefined) {
    expect(machine.data(0, 8)).toEqual(pattern(0, 8));
    return;
  }
  expect(machine.faultAddress).toBe(address);
  expect([machine.register(RSP), machine.register(RBP)]).toEqual([TOP, OLD_FRAME]);
});
