/** #AC: what must be aligned to what, and when. The rows are what an EPYC (Milan) does under Linux, which sets CR0.AM. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  CODE,
  CR0,
  DATA,
  EXITINFO1,
  EXITINFO2,
  GuestBench,
  HANDLERS,
  PT,
  RAX,
  RFLAGS,
  RIP,
  RSP,
  RSP0,
  USER_STACK,
} from './guest-bench.ts';

const [RBX, RSI, RDI] = [3, 6, 7] as const;
const [AC, UD, PF, GP] = [0x51, 0x46, 0x4e, 0x4d] as const;
const UD2 = [0x0f, 0x0b] as const;

let bench: GuestBench;
beforeEach(() => {
  bench = new GuestBench();
  bench.becomeUser();
  for (const vector of [6, 13, 14, 17]) bench.interceptException(vector);
  bench.setLong(CR0, 0x80050033n);
  // What MASKMOVDQU stores: all bytes.
  bench.core.xmm.fill(0xff, 16, 32);
  bench.setLong(RFLAGS, 0x40202n);
});
afterEach(() => bench.close());

function run(bytes: readonly number[], address: bigint | number): number {
  for (const register of [RBX, RSI, RDI]) bench.core.gpr[register] = BigInt(address);
  bench.setLong(RAX, 0n);
  return bench.runBytes(...bytes, ...UD2);
}

// bytes that operate on [rbx] or [rsi] and [rdi], the alignment that is enough
const accesses: [string, number[], 1 | 2 | 4 | 8 | 16][] = [
  ['MOV AL', [0x8a, 0x03], 1],
  ['MOV AX', [0x66, 0x8b, 0x03], 2],
  ['MOV EAX', [0x8b, 0x03], 4],
  ['MOV RAX', [0x48, 0x8b, 0x03], 8],
  ['MOV to memory', [0x48, 0x89, 0x03], 8],
  ['ADD to memory', [0x48, 0x01, 0x03], 8],
  ['XCHG', [0x48, 0x87, 0x03], 8],
  ['MOVBE', [0x48, 0x0f, 0x38, 0xf0, 0x03], 8],
  ['BT', [0x0f, 0xa3, 0x03], 4],
  ['LODSQ', [0x48, 0xad], 8],
  ['STOSD', [0xab], 4],
  ['CMPXCHG8B', [0x0f, 0xc7, 0x0b], 8],
  ['LDMXCSR', [0x0f, 0xae, 0x1b], 4],
  ['FNSTCW', [0xd9, 0x3b], 2],
  ['MOVSS', [0xf3, 0x0f, 0x10, 0x03], 4],
  ['MOVQ', [0xf3, 0x0f, 0x7e, 0x03], 8],
  ['MOVLPS', [0x0f, 0x12, 0x03], 8],
  ['MOVUPS', [0x0f, 0x10, 0x03], 16],
  ['MOVUPS to memory', [0x0f, 0x11, 0x03], 16],
  ['LDDQU', [0xf2, 0x0f, 0xf0, 0x03], 16],
  ['MASKMOVDQU', [0x66, 0x0f, 0xf7, 0xc1], 8],
  ['PCMPISTRI', [0x66, 0x0f, 0x3a, 0x63, 0x03, 0], 16],
];
describe.each(accesses)('%s', (_, bytes, alignment) => {
  it.each([1, 2, 4, 8])('at an address that is %i beyond one of 16', (offset) => {
    bench.write(DATA, 0x1f80n);
    for (const at of [1, 2, 4, 8]) bench.write(DATA + 0x100 + at, 0x1f80n);
    expect(run(bytes, DATA + 0x100 + offset)).toBe(offset % alignment === 0 ? UD : AC);
    if (offset % alignment === 0) return;
    expect([bench.long(EXITINFO1), bench.long(RIP)]).toEqual([0n, BigInt(CODE)]);
  });
});

it('MASKMOVDQU stores the bytes whose mask has its top bit, wherever they lie', () => {
  const { core } = bench;
  bench.setLong(RFLAGS, 0x202n);
  for (let n = 0; n < 16; n++) {
    core.xmm[n] = 0xa0 + n;
    core.xmm[16 + n] = n % 3 === 0 ? 0x80 : 0x7f;
  }
  for (const at of [DATA + 0x200, DATA + 0x301, DATA + 0xff9]) {
    const before = [bench.read(at), bench.read(at + 8)];
    expect(run([0x66, 0x0f, 0xf7, 0xc1], at)).toBe(UD);
    const bytes = [bench.read(at), bench.read(at + 8)].flatMap((long) =>
      Array.from({ length: 8 }, (_, n) => Number((long >> BigInt(8 * n)) & 0xffn)),
    );
    const old = before.flatMap((long) =>
      Array.from({ length: 8 }, (_, n) => Number((long >> BigInt(8 * n)) & 0xffn)),
    );
    expect(bytes).toEqual(old.map((byte, n) => (n % 3 === 0 ? 0xa0 + n : byte)));
  }
});

describe('on the stack', () => {
  it.each([
    ['PUSH RAX', [0x50], 4, AC],
    ['PUSH AX', [0x66, 0x50], 1, AC],
    ['PUSH AX', [0x66, 0x50], 4, UD],
    ['POP RAX', [0x58], 4, AC],
    ['RET', [0xc3], 4, AC],
    ['CALL', [0xe8, 0, 0, 0, 0], 4, AC],
    ['PUSHFQ', [0x9c], 4, AC],
    ['POPFQ', [0x9d], 4, AC],
    ['ENTER', [0xc8, 0, 0, 0], 4, AC],
    ['IRETQ', [0x48, 0xcf], 4, AC],
    ['RETFQ', [0x48, 0xcb], 4, AC],
  ])('%s', (_, bytes, offset, exit) => {
    const rsp = BigInt(USER_STACK - 0x100 + offset);
    bench.setLong(RSP, rsp);
    expect(run(bytes, DATA)).toBe(exit);
    if (exit === AC) expect([bench.long(RSP), bench.long(RIP)]).toEqual([rsp, BigInt(CODE)]);
  });
});

describe('the order of faults', () => {
  const load = [0x48, 0x8b, 0x03];
  it('#AC comes before the page fault, #GP for an address that is not canonical before both', () => {
    bench.write(PT + 8 * 0x31, 0n);
    expect(run(load, 0x30fff)).toBe(AC);
    expect(run(load, 0x31001)).toBe(AC);
    expect(run(load, 0x31000)).toBe(PF);
    expect(bench.long(EXITINFO2)).toBe(0x31000n);
    expect(run(load, (1n << 63n) + 1n)).toBe(GP);
  });
  it('an operand that must be aligned in any case is #GP', () => {
    expect(run([0x0f, 0x28, 0x03], DATA + 1)).toBe(GP); // movaps
    expect(run([0x48, 0x0f, 0xc7, 0x0b], DATA + 8)).toBe(GP); // cmpxchg16b
  });
  it.each([
    ['FXSAVE', [0x0f, 0xae, 0x03]],
    ['FXRSTOR', [0x0f, 0xae, 0x0b]],
  ])('%s is #GP at a multiple of 4, #AC elsewhere, and #GP again where nothing is checked', (_, bytes) => {
    bench.setLong(0x548, bench.long(0x548) | (1n << 9n)); // CR4.OSFXSR
    for (const at of [4, 8, 12]) expect(run(bytes, DATA + at)).toBe(GP);
    for (const at of [1, 2, 3, 5, 6, 15]) expect(run(bytes, DATA + at)).toBe(AC);
    expect([bench.long(EXITINFO1), bench.long(RIP)]).toEqual([0n, BigInt(CODE)]);
    bench.setLong(RFLAGS, 0x202n);
    expect(run(bytes, DATA + 1)).toBe(GP);
  });
});

describe('nothing is checked', () => {
  const load = [0x48, 0x8b, 0x03];
  it('without CR0.AM', () => {
    bench.setLong(CR0, 0x80010033n);
    expect(run(load, DATA + 1)).toBe(UD);
  });
  it('without RFLAGS.AC', () => {
    bench.setLong(RFLAGS, 0x202n);
    expect(run(load, DATA + 1)).toBe(UD);
  });
  it('at CPL 0, nor when the processor pushes a frame for it', () => {
    bench.setWord(8, bench.word(8) & ~(1 << 6));
    bench.gate(6, HANDLERS);
    bench.write(PT + 8 * (HANDLERS >> 12), BigInt(HANDLERS) | 3n);
    bench.memory.write(bench.spa(HANDLERS), Uint8Array.of(0x48, 0x8b, 0x03, 0xf4));
    expect(run([0x90], DATA + 1)).toBe(0x78);
    expect([bench.cpl, bench.long(RSP)]).toEqual([0, BigInt(RSP0 - 40)]);
    expect(bench.long(RFLAGS) & 0x40000n).toBe(0x40000n);
  });
});

describe('the check begins with', () => {
  // mov rax, [rbx], twice, so that the page is in the TLB; then rax on the stack into RFLAGS, and once more
  const load = [0x48, 0x8b, 0x03];
  const flags = (ac: 0 | 4) => [0x68, 2, 2, ac, 0, 0x9d];
  it('POPF, although the TLB knows the page', () => {
    bench.setLong(RFLAGS, 0x202n);
    expect(run([...load, ...load, ...flags(4), ...load], DATA + 1)).toBe(AC);
    expect(bench.long(RIP)).toBe(BigInt(CODE + 12));
  });
  it('the second POPF as with the first, and it ends with one', () => {
    bench.setLong(RFLAGS, 0x202n);
    const code = [...flags(4), ...flags(0), ...load, ...load, ...flags(4), ...load];
    expect(run(code, DATA + 1)).toBe(AC);
    expect(bench.long(RIP)).toBe(BigInt(CODE + 24));
  });
  it('VMRUN', () => {
    bench.setLong(RFLAGS, 0x202n);
    expect(run([...load, ...load], DATA + 1)).toBe(UD);
    bench.setLong(RFLAGS, 0x40202n);
    expect(run(load, DATA + 1)).toBe(AC);
  });
});

it('an aligned access does not let one through that is not', () => {
  // mov rax, [rbx]; mov [rbx], rax; and then at rbx + 1
  const code = [0x48, 0x8b, 0x03, 0x48, 0x89, 0x03];
  expect(run([...code, 0x48, 0x8b, 0x43, 1], DATA)).toBe(AC);
  expect(bench.long(RIP)).toBe(BigInt(CODE + 6));
  expect(run([...code, 0x48, 0x89, 0x43, 1], DATA)).toBe(AC);
  expect(bench.long(RIP)).toBe(BigInt(CODE + 6));
});

it('aligned accesses go on as ever, in a loop', () => {
  bench.setLong(RFLAGS, 0x40202n);
  bench.core.gpr[1] = 1000n;
  // l: add [rbx], rcx; loop l
  expect(run([0x48, 0x01, 0x0b, 0xe2, 0xfb], DATA)).toBe(UD);
  expect(bench.read(DATA)).toBe(500500n);
});

it('the handler gets an error code of 0 and the address of the instruction', () => {
  bench.setWord(8, bench.word(8) & ~(1 << 17));
  bench.gate(17, HANDLERS);
  bench.write(PT + 8 * (HANDLERS >> 12), BigInt(HANDLERS) | 3n);
  bench.memory.write(bench.spa(HANDLERS), Uint8Array.of(0xf4));
  expect(run([0x48, 0x8b, 0x03], DATA + 1)).toBe(0x78);
  expect([bench.read(RSP0 - 48), bench.read(RSP0 - 40)]).toEqual([0n, BigInt(CODE)]);
});
