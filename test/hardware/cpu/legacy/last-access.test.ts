/**
 * Instructions outside 64-bit mode whose last access faults: registers, flags and memory are as they were before (APM volume 2, 8.1.2), but for
 * the words below the stack pointer. In compatibility mode pages are missing, in protected mode segments end.
 */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { BEHIND, bytesOf, FaultBench, PAGE_FAULT_EXIT, type Registers } from '../fault-bench.ts';
import { CR0, DATA, EFER, EXITINFO1, GDT, type GuestBench, HANDLERS, RIP, STACK } from '../guest-bench.ts';

const [RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI] = [0, 1, 2, 3, 4, 5, 6, 7] as const;
const HLT = 0x78;
const [STACK_FAULT, GENERAL_PROTECTION] = [0x4c, 0x4d] as const;
const [ES, CS, SS, DS] = [0x00, 0x10, 0x20, 0x30] as const;
const CODE32 = 0x18;
const INSIDE = DATA + 0x100;

let bench: FaultBench;
let guest: GuestBench;
beforeEach(() => {
  bench = new FaultBench();
  guest = bench.guest;
  guest.write(GDT + CODE32, 0x00cf9b000000ffffn);
  guest.segment(CS, CODE32, 0xc9b);
  guest.intercept(123, 0);
});
afterEach(() => bench.close());

const DOWN = 0x402n;
const UP = 0x2n;

describe('in compatibility mode', () => {
  it.each<[name: string, code: string, registers: Registers, cr2: number]>([
    ['push eax', '50', { [RSP]: DATA + 2 }, DATA - 2],
    ['push ax', '66 50', { [RSP]: DATA }, DATA - 2],
    ['push [ebx], the slot', 'ff 33', { [RBX]: INSIDE, [RSP]: DATA }, DATA - 4],
    ['push [ebx], the operand', 'ff 33', { [RBX]: BEHIND - 2 }, BEHIND],
    ['push es', '06', { [RSP]: DATA }, DATA - 4],
    ['pop eax', '58', { [RSP]: BEHIND - 2 }, BEHIND],
    ['pop es', '07', { [RSP]: BEHIND - 2 }, BEHIND],
    ['pop [ebx], the operand', '8f 03', { [RBX]: BEHIND - 2 }, BEHIND],
    ['pop [ebx], the slot', '8f 03', { [RBX]: INSIDE, [RSP]: BEHIND }, BEHIND],
    ['pop [esp], the operand', '8f 04 24', { [RSP]: BEHIND - 4 }, BEHIND],
    ['pusha, the sixth word', '60', { [RSP]: DATA + 20 }, DATA - 4],
    ['pusha, the first', '60', { [RSP]: DATA + 2 }, DATA - 2],
    ['pusha, the last', '60', { [RSP]: DATA + 28 }, DATA - 4],
    ['pushaw, the sixth word', '66 60', { [RSP]: DATA + 10 }, DATA - 2],
    ['popa', '61', { [RSP]: BEHIND - 20 }, BEHIND],
    ['popa, the last word', '61', { [RSP]: BEHIND - 30 }, BEHIND],
    ['popaw', '66 61', { [RSP]: BEHIND - 14 }, BEHIND],
    ['pushf', '9c', { [RSP]: DATA }, DATA - 4],
    ['popf', '9d', { [RSP]: BEHIND - 2 }, BEHIND],
    ['call rel32', 'e8 00 01 00 00', { [RSP]: DATA + 2 }, DATA - 2],
    ['call [ebx], the slot', 'ff 13', { [RBX]: INSIDE, [RSP]: DATA }, DATA - 4],
    ['ret', 'c3', { [RSP]: BEHIND - 2 }, BEHIND],
    ['ret 16', 'c2 10 00', { [RSP]: BEHIND - 2 }, BEHIND],
    ['leave', 'c9', { [RBP]: BEHIND - 2 }, BEHIND],
    ['enter 0, 0', 'c8 00 00 00', { [RSP]: DATA + 2 }, DATA - 2],
    ['enter 0, 3, the old frame', 'c8 00 00 03', { [RBP]: BEHIND + 4 }, BEHIND],
    ['enter 0, 3, the last push', 'c8 00 00 03', { [RSP]: DATA + 12, [RBP]: INSIDE }, DATA - 4],
    ['enter 0, 31, a push', 'c8 00 00 1f', { [RSP]: DATA + 64, [RBP]: INSIDE }, DATA - 4],
    ['enter 32, 0, its end', 'c8 20 00 00', { [RSP]: DATA + 16 }, DATA - 20],
    ['lcall, the second push', '9a 00 00 02 00 18 00', { [RSP]: DATA + 4 }, DATA - 4],
    ['lcall [ebx], the selector', 'ff 1b', { [RBX]: BEHIND - 4 }, BEHIND],
    ['lret, the selector', 'cb', { [RSP]: BEHIND - 4 }, BEHIND],
    ['iret, the flags', 'cf', { [RSP]: BEHIND - 8 }, BEHIND],
    ['int 0x30, the third push', 'cd 30', { [RSP]: DATA + 16 }, DATA - 8],
    ['les eax, [ebx]', 'c4 03', { [RBX]: BEHIND - 4 }, BEHIND],
    ['bound eax, [ebx]', '62 03', { [RBX]: BEHIND - 4 }, BEHIND],
    ['arpl [ebx], cx', '63 0b', { [RBX]: BEHIND - 1, [RCX]: 3 }, BEHIND],
    ['xlatb', 'd7', { [RBX]: BEHIND, [RAX]: 0 }, BEHIND],
    ['mov [ebx], eax', '89 03', { [RBX]: BEHIND - 2 }, BEHIND],
    ['add [ebx], eax', '01 03', { [RBX]: BEHIND - 2 }, BEHIND],
    ['xchg [ebx], eax', '87 03', { [RBX]: DATA - 2 }, DATA - 2],
    ['cmpxchg8b [ebx]', '0f c7 0b', { [RBX]: BEHIND - 4 }, BEHIND],
    ['movups [ebx], xmm1', '0f 11 0b', { [RBX]: BEHIND - 15 }, BEHIND],
    ['fxsave [ebx]', '0f ae 03', { [RBX]: BEHIND - 496 }, BEHIND + 15],
    ['bt [ebx], eax, a page on', '0f a3 03', { [RBX]: DATA, [RAX]: 32768 }, BEHIND],
    ['bts [ebx], eax, below', '0f ab 03', { [RBX]: DATA, [RAX]: -1 }, DATA - 4],
    ['btr [ebx], ax', '66 0f b3 03', { [RBX]: BEHIND - 0x20, [RAX]: 0x100 }, BEHIND],
    ['btc [ebx], eax, the end', '0f bb 03', { [RBX]: BEHIND - 34, [RAX]: 256 }, BEHIND],
    ['movsd, the target', 'a5', { [RSI]: INSIDE, [RDI]: BEHIND - 2 }, BEHIND],
    ['movsd, the source', 'a5', { [RSI]: BEHIND - 2, [RDI]: INSIDE }, BEHIND],
    ['movsd, both', 'a5', { [RSI]: BEHIND + 8, [RDI]: BEHIND }, BEHIND + 8],
    ['stosd', 'ab', { [RDI]: BEHIND - 2 }, BEHIND],
    ['lodsd', 'ad', { [RSI]: BEHIND - 2 }, BEHIND],
    ['scasd', 'af', { [RDI]: BEHIND - 2 }, BEHIND],
    ['cmpsd, the source', 'a7', { [RSI]: BEHIND - 2, [RDI]: INSIDE }, BEHIND],
    ['cmpsd, both', 'a7', { [RSI]: BEHIND + 8, [RDI]: BEHIND }, BEHIND],
    ['insd', '6d', { [RDI]: BEHIND - 2, [RDX]: 0x80 }, BEHIND],
    ['outsd', '6f', { [RSI]: BEHIND - 2, [RDX]: 0x80 }, BEHIND],
  ])('%s changes nothing when it faults', (_name, code, registers, cr2) => {
    guest.gate(0x30, HANDLERS);
    expect(bench.execute(bytesOf(code), registers, UP)).toEqual({
      exit: PAGE_FAULT_EXIT,
      address: BigInt(cr2),
      changed: false,
    });
  });

  it.each<[name: string, code: string, flags: bigint, from: number, left: number, at: number]>([
    ['rep movsd', 'f3 a5', UP, BEHIND - 10, 2, BEHIND - 2],
    ['rep stosw', '66 f3 ab', UP, BEHIND - 3, 3, BEHIND - 1],
    ['rep stosb downwards', 'f3 aa', DOWN, DATA + 2, 1, DATA - 1],
    ['rep insd', 'f3 6d', UP, BEHIND - 10, 2, BEHIND - 2],
  ])('%s keeps what it has done', (_name, code, flags, from, left, at) => {
    const start = { [RCX]: 4, [RSI]: INSIDE, [RDI]: from, [RDX]: 0x80 };
    expect(bench.execute(bytesOf(code), start, flags).exit).toBe(PAGE_FAULT_EXIT);
    expect([guest.core.gpr[RCX], guest.core.gpr[RDI]]).toEqual([BigInt(left), BigInt(at)]);
  });

  it.each([
    ['bt [ebx], eax', '0f a3 03', 0xffff_fff0, (INSIDE + 16) * 8],
    ['bts [ebx], eax', '0f ab 03', 0xffff_fff0, (INSIDE + 16) * 8],
    ['bt [ebx], eax, downwards', '0f a3 03', 0x10, -8 * 0x40],
  ])('%s wraps around at 4 GiB', (_name, code, base, index) => {
    const { exit, address } = bench.execute(bytesOf(code), {
      [RBX]: base,
      [RAX]: BigInt(index) & 0xffff_ffffn,
    });
    expect([exit, address]).toEqual(index > 0 ? [HLT, 0n] : [PAGE_FAULT_EXIT, 0xffff_ffd0n]);
  });
});

describe('in protected mode', () => {
  /** ES and DS end behind INSIDE's first 16 bytes, SS is STACK's page. */
  beforeEach(() => {
    guest.setLong(CR0, 0x11n);
    guest.setLong(EFER, 0x1000n);
    for (const segment of [ES, DS]) guest.segment(segment, 0x10, 0x493, INSIDE + 15);
    guest.segment(SS, 0x10, 0x493, 0xfff, BigInt(STACK - 0x1000));
    guest.interceptException(12);
    guest.interceptException(13);
  });

  it.each<[name: string, code: string, registers: Registers, exit: number]>([
    ['pusha', '60', { [RSP]: 20 }, STACK_FAULT],
    ['popa', '61', { [RSP]: 0xff0 }, STACK_FAULT],
    ['enter 32, 0, its end', 'c8 20 00 00', { [RSP]: 0x20 }, STACK_FAULT],
    ['enter 0, 3, the old frame', 'c8 00 00 03', { [RSP]: 0x800, [RBP]: 0x1002 }, STACK_FAULT],
    ['leave', 'c9', { [RSP]: 0x800, [RBP]: 0xffe }, STACK_FAULT],
    ['ret', 'c3', { [RSP]: 0xffe }, STACK_FAULT],
    ['lret', 'cb', { [RSP]: 0xffc }, STACK_FAULT],
    ['iret', 'cf', { [RSP]: 0xff8 }, STACK_FAULT],
    ['mov eax, [ebp]', '8b 45 00', { [RSP]: 0x800, [RBP]: 0xffd }, STACK_FAULT],
    ['mov [ebx], eax', '89 03', { [RSP]: 0x800, [RBX]: INSIDE + 13 }, GENERAL_PROTECTION],
    ['movups [ebx], xmm1', '0f 11 0b', { [RSP]: 0x800, [RBX]: INSIDE + 1 }, GENERAL_PROTECTION],
    ['bt [ebx], eax', '0f a3 03', { [RSP]: 0x800, [RBX]: INSIDE, [RAX]: 128 }, GENERAL_PROTECTION],
    ['bts [ebx], eax', '0f ab 03', { [RSP]: 0x800, [RBX]: INSIDE, [RAX]: 128 }, GENERAL_PROTECTION],
    ['btc [ebx], ax', '66 0f bb 03', { [RSP]: 0x800, [RBX]: INSIDE, [RAX]: 128 }, GENERAL_PROTECTION],
    ['bt [ebp], eax', '0f a3 45 00', { [RSP]: 0x800, [RBP]: 0xff0, [RAX]: 128 }, STACK_FAULT],
    ['movsd, the target', 'a5', { [RSP]: 0x800, [RSI]: INSIDE, [RDI]: INSIDE + 13 }, GENERAL_PROTECTION],
    ['insd', '6d', { [RSP]: 0x800, [RDI]: INSIDE + 13, [RDX]: 0x80 }, GENERAL_PROTECTION],
    ['insb', '6c', { [RSP]: 0x800, [RDI]: INSIDE + 16, [RDX]: 0x80 }, GENERAL_PROTECTION],
    ['outsd', '6f', { [RSP]: 0x800, [RSI]: INSIDE + 13, [RDX]: 0x80 }, GENERAL_PROTECTION],
    ['outsd ss:', '36 6f', { [RSP]: 0x800, [RSI]: 0xffe, [RDX]: 0x80 }, STACK_FAULT],
  ])('%s changes nothing beyond a segment’s end', (_name, code, registers, exit) => {
    const { changed, ...outcome } = bench.execute(bytesOf(code), registers, UP);
    expect([outcome.exit, changed]).toEqual([exit, false]);
    expect(guest.long(EXITINFO1)).toBe(0n);
  });

  it.each([
    ['bt [ebx], eax', '0f a3 03', INSIDE + 0x1000, -8 * 0x1000],
    ['btr [ebx], eax', '0f b3 03', INSIDE + 12, 31],
  ])('%s is asked for where the bit lies, not where its address is', (_name, code, base, index) => {
    const registers = { [RSP]: 0x800, [RBX]: base, [RAX]: BigInt(index) & 0xffff_ffffn };
    expect(bench.execute(bytesOf(code), registers).exit).toBe(HLT);
  });

  it('INS and OUTS ask for the rights of their segments', () => {
    guest.segment(ES, 0x10, 0x491, -1);
    const where = { [RSP]: 0x800, [RDI]: INSIDE, [RSI]: INSIDE, [RDX]: 0x80 };
    expect(bench.execute([0x6d], where).exit).toBe(GENERAL_PROTECTION);
    guest.segment(DS, 0, 0, 0);
    expect(bench.execute([0x6f], where).exit).toBe(GENERAL_PROTECTION);
    expect(guest.long(RIP)).toBe(0x10000n);
  });

  it('REP INS with a count of 0 asks for nothing', () => {
    guest.segment(ES, 0, 0, 0);
    expect(bench.execute([0xf3, 0x6d], { [RSP]: 0x800, [RCX]: 0 }).exit).toBe(HLT);
  });
});
