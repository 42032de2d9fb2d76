/**
 * System instructions and deliveries whose last access faults: the processor's state is as it was before (APM volume 2, 8.1.2), and so is
 * memory, but for the words below the stack pointer.
 */
import { afterEach, beforeEach, expect, it } from 'vitest';
import type { Spa } from '../../../../src/base/address.ts';
import { CODE, CR2, DATA, GuestBench, HANDLERS, PT, RFLAGS, RIP, RSP, STACK } from '../guest-bench.ts';

const [RCX, RDX, RBX, RSI, RDI] = [1, 2, 3, 6, 7] as const;
const PF = 0x4e;
/** DATA's page lies between two that are missing. */
const BEHIND = DATA + 0x1000;

let bench: GuestBench;
beforeEach(() => {
  bench = new GuestBench();
  bench.interceptException(14);
  bench.write(PT + (DATA / 4096 - 1) * 8, 0);
  bench.write(PT + (BEHIND / 4096) * 8, 0);
  for (let at = 0; at < 4096; at += 8) bench.write(DATA + at, 0x0123456789abcdefn ^ BigInt(at));
});
afterEach(() => bench.close());

function bytesOf(at: number, length: number): string {
  const into = new Uint8Array(length);
  bench.memory.read(at as Spa, into);
  return Buffer.from(into).toString('hex');
}

/** Segments, control registers, RFLAGS, RIP and RSP of the save area without CR2; general registers; a page from `from` on. */
const state = (from: number) => ({
  save: bytesOf(bench.vmcb + 0x400, 0x1e0),
  gpr: [...bench.core.gpr.subarray(1, 4), ...bench.core.gpr.subarray(5)].map(String),
  rsp: bench.long(RSP),
  vectors: Buffer.from(bench.core.xmm).toString('hex'),
  page: bytesOf(bench.spa(DATA) + from, 4096 - from),
});

interface Row {
  readonly name: string;
  readonly code: readonly number[];
  readonly rsp?: number;
  readonly rbx?: number;
  readonly words?: readonly (readonly [at: number, value: bigint | number])[];
}

const ROWS: readonly Row[] = [
  {
    name: 'IRETQ, SS missing',
    code: [0x48, 0xcf],
    rsp: BEHIND - 32,
    words: [
      [BEHIND - 32, HANDLERS],
      [BEHIND - 24, 8],
      [BEHIND - 16, 0x2],
      [BEHIND - 8, STACK],
    ],
  },
  { name: 'RETFQ, CS missing', code: [0x48, 0xcb], rsp: BEHIND - 8, words: [[BEHIND - 8, HANDLERS]] },
  {
    name: 'RETFQ imm16, CS missing',
    code: [0x48, 0xca, 8, 0],
    rsp: BEHIND - 8,
    words: [[BEHIND - 8, HANDLERS]],
  },
  {
    name: 'CALLF m16:32, the second push',
    code: [0xff, 0x1b],
    rsp: DATA + 4,
    rbx: DATA + 0x100,
    words: [[DATA + 0x100, BigInt(HANDLERS) | (8n << 32n)]],
  },
  { name: 'CALLF m16:32, the selector', code: [0xff, 0x1b], rbx: BEHIND - 4 },
  { name: 'JMPF m16:32, the selector', code: [0xff, 0x2b], rbx: BEHIND - 4 },
  { name: 'INT 0x30, the third push', code: [0xcd, 0x30], rsp: DATA + 16 },
  { name: 'INT3, the third push', code: [0xcc], rsp: DATA + 16 },
  { name: 'UD2, the last push', code: [0x0f, 0x0b], rsp: DATA + 32 },
  { name: 'POPFQ', code: [0x9d], rsp: BEHIND - 4 },
  { name: 'POP FS', code: [0x0f, 0xa1], rsp: BEHIND - 4 },
  { name: 'PUSH FS', code: [0x0f, 0xa0], rsp: DATA + 4 },
  { name: 'LSS', code: [0x0f, 0xb2, 0x03], rbx: BEHIND - 4 },
  { name: 'SGDT', code: [0x0f, 0x01, 0x03], rbx: BEHIND - 4 },
  { name: 'SIDT', code: [0x0f, 0x01, 0x0b], rbx: BEHIND - 9 },
  { name: 'LGDT', code: [0x0f, 0x01, 0x13], rbx: BEHIND - 4 },
  { name: 'LIDT', code: [0x0f, 0x01, 0x1b], rbx: BEHIND - 9 },
  { name: 'MOV [rbx], FS', code: [0x8c, 0x23], rbx: BEHIND - 1 },
  { name: 'STMXCSR', code: [0x0f, 0xae, 0x1b], rbx: BEHIND - 3 },
  { name: 'LDMXCSR', code: [0x0f, 0xae, 0x13], rbx: BEHIND - 3 },
  { name: 'FNSTCW', code: [0xd9, 0x3b], rbx: BEHIND - 1 },
];

it.each(ROWS)(
  '$name: nothing has changed when it faults',
  ({ code, rsp = STACK, rbx = DATA, words = [] }) => {
    for (const vector of [3, 6, 0x30]) bench.gate(vector, HANDLERS);
    for (const [at, value] of words) bench.write(at, value);
    bench.setLong(0x548, bench.long(0x548) | 0x200n);
    bench.setLong(RSP, BigInt(rsp));
    bench.setLong(RFLAGS, 0x8d7n);
    bench.core.gpr[RBX] = BigInt(rbx);
    bench.setLong(RIP, BigInt(CODE));
    const pushes = rsp > DATA && rsp < DATA + 0x800 ? rsp - DATA : 0;
    const before = state(pushes);
    expect(bench.runBytes(...code)).toBe(PF);
    const fault = bench.long(0x80);
    expect([BigInt(BEHIND), BigInt(DATA - 8), BigInt(DATA - 4)]).toContain(fault);
    expect(state(pushes)).toEqual(before);
  },
);

it.each([
  ['REP INSD', 0x6d, RDI],
  ['REP OUTSD', 0x6f, RSI],
])('%s keeps what it has done', (_name, code, pointer) => {
  bench.intercept(123, 0);
  bench.setLong(RFLAGS, 0x2n);
  bench.core.gpr[RCX] = 4n;
  bench.core.gpr[RDX] = 0x80n;
  bench.core.gpr[pointer] = BigInt(BEHIND - 10);
  expect(bench.runBytes(0xf3, code)).toBe(PF);
  expect(bench.core.gpr[RCX]).toBe(2n);
  expect(bench.core.gpr[pointer]).toBe(BigInt(BEHIND - 2));
  expect(bench.long(RIP)).toBe(BigInt(CODE));
  expect(bench.long(CR2)).toBe(0n);
});
