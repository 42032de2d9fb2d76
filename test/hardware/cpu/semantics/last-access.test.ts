/**
 * Instructions whose last access faults: registers, flags and memory are as they were before (APM volume 2, 8.1.2: faults are restartable),
 * but for what a repeated string instruction has done by then, and ENTER's words below the stack pointer.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { OnePageMachine, PAGE } from './one-page-machine.ts';

const [RAX, RCX, RBX, RSP, RBP, RSI, RDI] = [0, 1, 3, 4, 5, 6, 7] as const;
const PF = 14;
/** Four bytes of the page, then the missing one; four bytes of the missing one, then the page. */
const END = PAGE + 4092n;
const START = PAGE - 4n;
const INSIDE = PAGE + 0x100n;
const FIRST = PAGE + 4n;

let machine: OnePageMachine;
beforeAll(() => {
  machine = new OnePageMachine();
});
afterAll(() => machine.close());

const bytesOf = (hex: string): number[] => [...Buffer.from(hex.replaceAll(' ', ''), 'hex')];

type Registers = Readonly<Record<number, bigint>>;
const ROWS: readonly [name: string, code: string, registers: Registers][] = [
  ['push rax', '50', { [RSP]: FIRST }],
  ['push imm8', '6a 05', { [RSP]: FIRST }],
  ['push ax', '66 50', { [RSP]: PAGE + 1n }],
  ['push [rbx], the slot', 'ff 33', { [RBX]: INSIDE, [RSP]: FIRST }],
  ['push [rbx], the operand', 'ff 33', { [RBX]: END }],
  ['maskmovdqu, its first half', '66 0f f7 c1', { [RDI]: PAGE - 8n }],
  ['maskmovdqu, its second half', '66 0f f7 c1', { [RDI]: PAGE + 4088n }],
  ['movsxd ax, [rbx], which reads 32 bits', '66 63 03', { [RBX]: END + 2n }],
  ['pushfq', '9c', { [RSP]: FIRST }],
  ['pop rax', '58', { [RSP]: END }],
  ['pop rsp', '5c', { [RSP]: END }],
  ['pop [rbx], the operand', '8f 03', { [RBX]: END }],
  ['pop [rbx], the slot', '8f 03', { [RBX]: INSIDE, [RSP]: END }],
  ['pop [rsp], the operand', '8f 04 24', { [RSP]: PAGE + 4084n }],
  ['leave', 'c9', { [RBP]: END }],
  ['leave, 16 bits', '66 c9', { [RBP]: PAGE + 4095n }],
  ['enter 16, 0', 'c8 10 00 00', { [RSP]: FIRST }],
  ['enter 16, 2, the old frame', 'c8 10 00 02', { [RBP]: FIRST, [RSP]: FIRST }],
  ['call rel32', 'e8 00 01 00 00', { [RSP]: FIRST }],
  ['call rax', 'ff d0', { [RSP]: FIRST }],
  ['call [rbx], the slot', 'ff 13', { [RBX]: INSIDE, [RSP]: FIRST }],
  ['ret', 'c3', { [RSP]: END }],
  ['ret 16', 'c2 10 00', { [RSP]: END }],
  ['mov [rbx], rax', '48 89 03', { [RBX]: END }],
  ['movnti [rbx], rax', '48 0f c3 03', { [RBX]: END }],
  ['movbe [rbx], rax', '48 0f 38 f1 03', { [RBX]: END }],
  ['setz [rbx]', '0f 94 03', { [RBX]: PAGE + 4096n }],
  ['add [rbx], rax', '48 01 03', { [RBX]: END }],
  ['adc [rbx], rax', '48 11 03', { [RBX]: END }],
  ['cmp [rbx], rax', '48 39 03', { [RBX]: END }],
  ['inc [rbx]', '48 ff 03', { [RBX]: END }],
  ['neg [rbx]', '48 f7 1b', { [RBX]: END }],
  ['shl [rbx], 1', '48 d1 23', { [RBX]: END }],
  ['rcl [rbx], cl', '48 d3 13', { [RBX]: END, [RCX]: 3n }],
  ['shld [rbx], rax, cl', '48 0f a5 03', { [RBX]: END, [RCX]: 3n }],
  ['bts [rbx], rax', '48 0f ab 03', { [RBX]: END, [RAX]: 5n }],
  ['mul [rbx]', '48 f7 23', { [RBX]: END }],
  ['div [rbx]', '48 f7 33', { [RBX]: END }],
  ['mulx rcx, rdx, [rbx]', 'c4 e2 eb f6 0b', { [RBX]: END }],
  ['cmovnz rcx, [rbx]', '48 0f 45 0b', { [RBX]: END }],
  ['xchg [rbx], rax', '48 87 03', { [RBX]: END }],
  ['xadd [rbx], rax', '48 0f c1 03', { [RBX]: END }],
  ['lock xadd [rbx], rax', 'f0 48 0f c1 03', { [RBX]: START }],
  ['cmpxchg [rbx], rcx', '48 0f b1 0b', { [RBX]: END }],
  ['cmpxchg8b [rbx]', '0f c7 0b', { [RBX]: END }],
  ['cmpxchg16b [rbx]', '48 0f c7 0b', { [RBX]: PAGE + 4096n }],
  ['movsq, the target', '48 a5', { [RSI]: INSIDE, [RDI]: END }],
  ['movsq, the source', '48 a5', { [RSI]: END, [RDI]: INSIDE }],
  ['stosq', '48 ab', { [RDI]: END }],
  ['lodsq', '48 ad', { [RSI]: END }],
  ['scasq', '48 af', { [RDI]: END }],
  ['cmpsq, the second operand', '48 a7', { [RSI]: INSIDE, [RDI]: END }],
  ['xlatb', 'd7', { [RBX]: PAGE + 4096n, [RAX]: 0n }],
];

it.each(ROWS)('%s changes nothing when its last access faults', (_name, code, registers) => {
  expect(machine.execute(bytesOf(code), registers)).toEqual({ vector: PF, changed: false });
});

it.each([
  ['cmpsb', 'a6', 0x21000n],
  ['cmpsq', '48 a7', 0x21000n],
  ['repe cmpsd', 'f3 a7', 0x21000n],
  ['movsq', '48 a5', 0x21800n],
  ['push [rbx]', 'ff 33', 0x21c00n],
  ['pop [rbx]', '8f 03', 0x1fff8n],
  ['call [rbx]', 'ff 13', 0x21c00n],
])('%s, whose operands both fault, reports the one that AMD touches first', (_name, code, address) => {
  const pop = code === '8f 03';
  const registers = {
    ...{ [RSI]: PAGE + 0x1800n, [RDI]: PAGE + 0x1000n, [RCX]: 3n },
    ...{ [RBX]: PAGE + 0x1c00n, [RSP]: pop ? PAGE - 8n : PAGE },
  };
  expect(machine.execute(bytesOf(code), registers, 0x2n)).toEqual({ vector: PF, changed: false });
  expect(machine.faultAddress).toBe(address);
});

describe('ENTER with a nesting level', () => {
  it.each([
    ['1', 'c8 00 00 01', 12n],
    ['2', 'c8 00 00 02', 20n],
    ['31', 'c8 00 00 1f', 252n],
  ])('%s leaves registers and flags alone when its last push faults', (_level, code, room) => {
    const before = { [RSP]: PAGE + room, [RBP]: PAGE + 0x800n };
    expect(machine.execute(bytesOf(code), before).vector).toBe(PF);
    expect([machine.register(RSP), machine.register(RBP)]).toEqual([PAGE + room, PAGE + 0x800n]);
    expect(machine.execute(bytesOf(code), { ...before, [RSP]: PAGE + room + 4n }).vector).toBe(undefined);
  });
});

describe('a repeated string instruction keeps what it has done', () => {
  it.each([
    ['rep movsq', 'f3 48 a5', 2n, 16n],
    ['rep stosq', 'f3 48 ab', 2n, 0n],
  ])('%s', (_name, code, left, read) => {
    const start = { [RCX]: 4n, [RSI]: INSIDE, [RDI]: PAGE + 4076n, [RAX]: 0n };
    expect(machine.execute(bytesOf(code), start).vector).toBe(PF);
    expect(machine.register(RCX)).toBe(left);
    expect(machine.register(RDI)).toBe(END);
    expect(machine.register(RSI)).toBe(INSIDE + read);
    const source = (INSIDE - PAGE) * 7n;
    const stored = Array.from({ length: 16 }, (_, n) =>
      read === 0n ? 0 : Number(source + BigInt(n * 7)) & 0xff,
    );
    expect(machine.data(4076, 16)).toEqual(stored);
    // What straddles is as it was.
    expect(machine.data(4092, 4)).toEqual([0, 1, 2, 3].map((n) => ((4092 + n) * 7) & 0xff));
  });

  it('downwards too, to the missing page before', () => {
    const start = { [RCX]: 9n, [RDI]: PAGE + 4n, [RAX]: 0x55n };
    expect(machine.execute(bytesOf('f3 aa'), start, 0x400n).vector).toBe(PF);
    expect([machine.register(RCX), machine.register(RDI)]).toEqual([4n, PAGE - 1n]);
    expect(machine.data(0, 5)).toEqual([0x55, 0x55, 0x55, 0x55, 0x55]);
  });

  it('repe cmpsb, up to the element that is missing', () => {
    const start = { [RCX]: 9n, [RSI]: PAGE + 4091n, [RDI]: PAGE + 4091n };
    expect(machine.execute(bytesOf('f3 a6'), start).vector).toBe(PF);
    expect([machine.register(RCX), machine.register(RSI)]).toEqual([4n, PAGE + 4096n]);
  });
});
