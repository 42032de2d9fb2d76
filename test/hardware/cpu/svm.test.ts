/** VMRUN's checks, intercepts and exit information, as the reference's tables have them. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Spa } from '../../../src/base/address.ts';
import {
  assemble,
  Code,
  hlt,
  inString,
  nop,
  onMemory,
  onRegister,
  op,
  out8,
  outString,
  Register,
  set,
  two,
  withNumber,
} from './assembler.ts';
import {
  CODE,
  CR0,
  CR3,
  CR4,
  DATA,
  EFER,
  EVENTINJ,
  EXITCODE,
  EXITINFO1,
  EXITINFO2,
  GuestBench,
  HANDLERS,
  NEXT_RIP,
  RFLAGS,
  RIP,
  RSP,
  STACK,
} from './guest-bench.ts';

let bench: GuestBench;
beforeEach(() => {
  bench = new GuestBench();
});
afterEach(() => bench.close());

describe('VMRUN refuses a VMCB: EXITCODE −1, guest state untouched', () => {
  const rows: [string, (b: GuestBench) => void][] = [
    ['EFER.SVME is 0', (b) => b.setLong(EFER, 0xd01n)],
    ['CR0.NW without CD', (b) => b.setLong(CR0, 0xa0010033n)],
    ['CR0 above 32 bits', (b) => b.setLong(CR0, 0x180010033n)],
    ['CR3 above 48 bits', (b) => b.setLong(CR3, 0x1000000001000n)],
    ['a reserved bit of CR4', (b) => b.setLong(CR4, 0x806a0n)],
    ['CR4 above 32 bits', (b) => b.setLong(CR4, 0x1000006a0n)],
    ['a reserved bit of EFER', (b) => b.setLong(EFER, 0x1d03n)],
    ['EFER above 32 bits', (b) => b.setLong(EFER, 0x100001d01n)],
    ['DR6 above 32 bits', (b) => b.setLong(0x568, 0x1ffff0ff0n)],
    ['DR7 above 32 bits', (b) => b.setLong(0x560, 0x100000400n)],
    ['long mode without CR4.PAE', (b) => b.setLong(CR4, 0x680n)],
    ['long mode without CR0.PE', (b) => b.setLong(CR0, 0x80010032n)],
    ['CS.L and CS.D together', (b) => b.segment(0x10, 8, 0xe9b)],
    ['VMRUN is not intercepted', (b) => b.intercept(128, 0)],
    ['an I/O map that ends beyond physical space', (b) => b.setLong(0x40, 0xfffffffff000n)],
    ['an MSR map that ends beyond physical space', (b) => b.setLong(0x48, 0xfffffffff000n)],
    ['ASID 0', (b) => b.setWord(0x58, 0)],
    ['a reserved TLB_CONTROL', (b) => b.setWord(0x5c, 2)],
    ['an event of reserved type 1', (b) => b.setWord(EVENTINJ, 0x80000100 | 0)],
    ['an event of reserved type 5', (b) => b.setWord(EVENTINJ, 0x80000500 | 0)],
    ['an exception with vector 2', (b) => b.setWord(EVENTINJ, 0x80000302 | 0)],
    ['an exception with vector 32', (b) => b.setWord(EVENTINJ, 0x80000320 | 0)],
    ['an exception that 64-bit mode has not: BR', (b) => b.setWord(EVENTINJ, 0x80000305 | 0)],
    ['an illegal memory type in G_PAT', (b) => b.setLong(0x668, 0x0007040600070402n)],
    ['nCR3 above 48 bits', (b) => b.setWord(0xb4, 0x10000)],
  ];
  it.each(rows)('%s', (_what, spoil) => {
    bench.setLong(EXITINFO1, 5n);
    spoil(bench);
    const event = bench.word(EVENTINJ);
    const save = new Uint8Array(0x300);
    const after = new Uint8Array(0x300);
    bench.memory.read((bench.vmcb + 0x400) as Spa, save);
    expect(bench.core.vmrun(bench.vmcb, 100)).toBe(-1);
    expect(bench.long(EXITCODE)).toBe(0xffffffffffffffffn);
    expect(bench.long(EXITINFO1)).toBe(0n);
    expect(bench.word(EVENTINJ)).toBe(event);
    bench.memory.read((bench.vmcb + 0x400) as Spa, after);
    expect(after).toEqual(save);
  });

  it.each<[string, string, (b: GuestBench) => void]>([
    ['a guest without nested paging', 'a guest without nested paging', (b) => b.setLong(0x90, 0n)],
  ])('%s is not supported: exit 0xf00000ff, named in the trace', (_what, name, spoil) => {
    spoil(bench);
    expect(bench.run([hlt()])).toBe(0xf00000ff | 0);
    expect(bench.long(EXITCODE)).toBe(0xfffffffff00000ffn);
    expect(bench.long(RIP)).toBe(BigInt(CODE));
    expect(bench.refusal()).toBe(`not implemented: ${name}`);
    bench.setLong(0x90, 1n);
    bench.segment(0x10, 8, 0xa9b);
    expect(bench.run([hlt()])).toBe(0x78);
  });

  it('EFER.LMA is recomputed, not checked', () => {
    bench.setLong(EFER, 0x1901n);
    expect(bench.run([hlt()])).toBe(0x78);
    expect(bench.long(EFER)).toBe(0x1d01n);
  });
});

describe('an intercepted instruction exits with RIP on it and NEXT_RIP behind it', () => {
  const rows: [string, number, number, ReturnType<typeof op>, bigint?][] = [
    ['HLT', 120, 0x78, hlt()],
    ['CPUID', 114, 0x72, op(Code.Cpuid)],
    ['VMMCALL', 129, 0x81, op(Code.Vmmcall)],
    ['RDTSC', 110, 0x6e, op(Code.Rdtsc)],
    ['RDTSCP', 135, 0x87, op(Code.Rdtscp)],
    ['RDPMC', 111, 0x6f, op(Code.Rdpmc)],
    ['INVD', 118, 0x76, op(Code.Invd)],
    ['WBINVD', 137, 0x89, op(Code.Wbinvd)],
    ['INVLPG', 121, 0x79, onMemory(Code.Invlpg_m, 'rbx', 0x10), 0x12345010n],
    ['IRET', 116, 0x74, op(Code.Iretq)],
    ['INT n', 117, 0x75, withNumber(Code.Int_imm8, 0x41), 0x41n],
    ['POPF', 113, 0x71, op(Code.Popfq)],
    ['VMLOAD', 130, 0x82, op(Code.Vmloadq)],
    ['VMSAVE', 131, 0x83, op(Code.Vmsaveq)],
    ['STGI', 132, 0x84, op(Code.Stgi)],
    ['CLGI', 133, 0x85, op(Code.Clgi)],
    ['INVLPGA', 122, 0x7a, op(Code.Invlpgaq)],
    ['VMRUN', 128, 0x80, op(Code.Vmrunq)],
    ['MONITOR', 138, 0x8a, op(Code.Monitorq)],
    ['MWAIT', 139, 0x8b, op(Code.Mwait)],
    ['SGDT', 103, 0x67, onMemory(Code.Sgdt_m1664, 'rbx')],
    ['SIDT', 102, 0x66, onMemory(Code.Sidt_m1664, 'rbx')],
    ['LGDT', 107, 0x6b, onMemory(Code.Lgdt_m1664, 'rbx')],
    ['LIDT', 106, 0x6a, onMemory(Code.Lidt_m1664, 'rbx')],
    ['STR', 105, 0x69, onRegister(Code.Str_r64m16, Register.RCX)],
    ['SLDT', 104, 0x68, onRegister(Code.Sldt_r64m16, Register.RCX)],
    ['LTR', 109, 0x6d, onRegister(Code.Ltr_r32m16, Register.ECX)],
    ['LLDT', 108, 0x6c, onRegister(Code.Lldt_r32m16, Register.ECX)],
    ['reads of CR0', 0, 0x00, two(Code.Mov_r64_cr, Register.RCX, Register.CR0), 0x8000000000000001n],
    ['reads of CR3', 3, 0x03, two(Code.Mov_r64_cr, Register.RDI, Register.CR3), 0x8000000000000007n],
    ['writes of CR4', 20, 0x14, two(Code.Mov_cr_r64, Register.CR4, Register.RDX), 0x8000000000000002n],
    ['writes of CR8', 24, 0x18, two(Code.Mov_cr_r64, Register.CR8, Register.R11), 0x800000000000000bn],
    ['CLTS, a write of CR0', 16, 0x10, op(Code.Clts), 0n],
    ['reads of DR7', 39, 0x27, two(Code.Mov_r64_dr, Register.RBX, Register.DR7), 3n],
    ['writes of DR0', 48, 0x30, two(Code.Mov_dr_r64, Register.DR0, Register.RSI), 6n],
  ];
  it.each(rows)('%s (bit %i, code %i)', (_name, bit, code, instruction, info1 = 0n) => {
    bench.core.gpr[3] = 0x12345000n;
    bench.intercept(bit);
    expect(bench.run([instruction, hlt()])).toBe(code);
    expect(bench.long(EXITCODE)).toBe(BigInt(code));
    expect(bench.long(EXITINFO1)).toBe(info1);
    expect(bench.long(RIP)).toBe(BigInt(CODE));
    const length = assemble([instruction], CODE).length;
    expect(bench.long(NEXT_RIP)).toBe(BigInt(CODE + length));
    expect(bench.word(0xd0) & 0xff).toBe(0);
  });

  it('CR0 writes of other bits than TS and MP have an intercept of their own', () => {
    bench.intercept(101);
    const write = two(Code.Mov_cr_r64, Register.CR0, Register.RAX);
    expect(bench.run([set('rax', 0x8001003b), write, hlt()])).toBe(0x78);
    expect(bench.run([set('rax', 0x80050033), write, hlt()])).toBe(0x65);
  });
});

describe('a write trap exits behind the write, with the new value', () => {
  const toCr = (cr: number) => two(Code.Mov_cr_r64, cr, Register.RAX);
  const rows: [string, number, number, bigint, ReturnType<typeof op>, number, bigint][] = [
    ['CR0', 144, 0x90, 0x80010023n, toCr(Register.CR0), CR0, 0x80010033n],
    ['CR0 by CLTS', 144, 0x90, 0n, op(Code.Clts), CR0, 0x80010033n],
    ['CR3', 147, 0x93, 0x1018n, toCr(Register.CR3), CR3, 0x1018n],
    ['CR4', 148, 0x94, 0x6a8n, toCr(Register.CR4), CR4, 0x6a8n],
    ['CR8', 152, 0x98, 5n, toCr(Register.CR8), 0x60, 5n],
    ['EFER', 143, 0x8f, 0x1d00n, op(Code.Wrmsr), EFER, 0x1d00n],
  ];
  it.each(rows)('%s (bit %i, code %i)', (_name, bit, code, value, instruction, field, after) => {
    bench.intercept(bit);
    bench.core.gpr[1] = 0xc0000080n;
    const head = [set('rax', value)];
    expect(bench.run([...head, instruction, hlt()])).toBe(code);
    expect(bench.long(EXITINFO1)).toBe(after);
    expect(bench.long(field)).toBe(after);
    expect(bench.long(RIP)).toBe(BigInt(CODE + assemble([...head, instruction], CODE).length));
    expect(bench.long(NEXT_RIP)).toBe(0n);
    expect(bench.run()).toBe(0x78);
  });

  it('not where the write faults', () => {
    bench.intercept(148);
    bench.interceptException(13);
    expect(bench.run([set('rax', 0x806a0), toCr(Register.CR4)])).toBe(0x4d);
  });
});

describe('checks come before the intercept', () => {
  it('a privileged instruction at CPL 3 is #GP, not its exit', () => {
    bench.becomeUser();
    bench.interceptException(13);
    for (const instruction of [
      hlt(),
      op(Code.Rdmsr),
      op(Code.Wbinvd),
      two(Code.Mov_r64_cr, Register.RAX, Register.CR3),
    ]) {
      expect(bench.run([instruction])).toBe(0x4d);
      expect(bench.long(EXITINFO1)).toBe(0n);
    }
  });
  it('a port without I/O privilege is #GP, one that the TSS allows is the exit', () => {
    bench.becomeUser();
    bench.interceptException(13);
    bench.segment(0x90, 0x28, 0x8b, 0x67 + 0x2001, 0x7000n);
    // The bitmap lies at TSS + 0x68; all ports denied but 0x80.
    bench.memory.write(bench.spa(0x7066), Uint8Array.of(0x68, 0));
    bench.memory.write(bench.spa(0x7068), new Uint8Array(0x60).fill(0xff));
    bench.memory.write(bench.spa(0x7068 + 0x10), Uint8Array.of(0xfe));
    bench.core.gpr[2] = 0x81n;
    expect(bench.run([out8()])).toBe(0x4d);
    bench.core.gpr[2] = 0x80n;
    expect(bench.run([out8()])).toBe(0x7b);
    bench.setLong(RFLAGS, 0x3002n);
    bench.core.gpr[2] = 0x81n;
    expect(bench.run([out8()])).toBe(0x7b);
  });
});

describe('IOIO', () => {
  const rows: [string, ReturnType<typeof op>, number][] = [
    ['in al, dx', two(Code.In_AL_DX, Register.AL, Register.DX), 0x1230211],
    ['in ax, dx', two(Code.In_AX_DX, Register.AX, Register.DX), 0x1230221],
    ['in eax, dx', two(Code.In_EAX_DX, Register.EAX, Register.DX), 0x1230241],
    ['out dx, al', out8(), 0x1230210],
    ['out dx, eax', two(Code.Out_DX_EAX, Register.DX, Register.EAX), 0x1230240],
  ];
  it.each(rows)('%s', (_name, instruction, info) => {
    bench.core.gpr[2] = 0x123n;
    expect(bench.run([instruction])).toBe(0x7b);
    expect(bench.word(EXITINFO1)).toBe(info);
    expect(bench.long(EXITINFO2)).toBe(bench.long(NEXT_RIP));
  });

  it('a port is intercepted if any of its bytes is; past the last port the bits behind count', () => {
    bench.memory.write(bench.iopm as Spa, new Uint8Array(0x3000));
    const out = two(Code.Out_DX_EAX, Register.DX, Register.EAX);
    bench.core.gpr[2] = 0xfffen;
    expect(bench.run([out, hlt()])).toBe(0x78);
    bench.memory.write((bench.iopm + 0x2000) as Spa, Uint8Array.of(2));
    expect(bench.run([out, hlt()])).toBe(0x7b);
    bench.core.gpr[2] = 0xfffdn;
    expect(bench.run([out, hlt()])).toBe(0x78);
  });

  it('an IN that nobody intercepts reads ones', () => {
    bench.intercept(123, 0);
    expect(
      bench.run([
        set('rax', -1n << 32n),
        set('rdx', 0x70),
        two(Code.In_AL_DX, Register.AL, Register.DX),
        hlt(),
      ]),
    ).toBe(0x78);
    expect(bench.long(0x5f8)).toBe(0xffffffff000000ffn);
  });

  it('string forms say so, with segment, REP and address size', () => {
    bench.core.gpr[2] = 0x60n;
    bench.core.gpr[1] = 4n;
    expect(bench.run([outString(8)])).toBe(0x7b);
    // DS is 3 in bits 12:10.
    expect(bench.word(EXITINFO1)).toBe(0x600e1c);
    expect(bench.run([inString(16)])).toBe(0x7b);
    expect(bench.word(EXITINFO1)).toBe(0x600225);
    bench.core.gpr[1] = 0n;
    expect(bench.run([outString(8), hlt()])).toBe(0x78);
  });
});

describe('MSRs', () => {
  const rows: [number, number, number][] = [
    [0x0, 0x0, 0],
    [0x174, 0x5d, 0],
    [0x1fff, 0x7ff, 6],
    [0xc0000080, 0x820, 0],
    [0xc0000102, 0x840, 4],
    [0xc0010130, 0x104c, 0],
  ];
  it.each(rows)('MSR %i has its two bits in byte %i from bit %i on', (msr, byte, bit) => {
    bench.interceptException(13);
    const read = [set('rcx', msr), op(Code.Rdmsr), hlt()];
    const write = [set('rcx', msr), set('rax', 0), set('rdx', 0), op(Code.Wrmsr), hlt()];
    bench.memory.write((bench.msrpm + byte) as Spa, Uint8Array.of(1 << bit));
    expect(bench.run(read)).toBe(0x7c);
    expect(bench.long(EXITINFO1)).toBe(0n);
    expect(bench.run(write)).not.toBe(0x7c);
    bench.memory.write((bench.msrpm + byte) as Spa, Uint8Array.of(2 << bit));
    expect(bench.run(write)).toBe(0x7c);
    expect(bench.long(EXITINFO1)).toBe(1n);
  });
  it('one outside the map is always intercepted, one inside that does not exist is #GP', () => {
    bench.interceptException(13);
    expect(bench.run([set('rcx', 0x40000000), op(Code.Rdmsr)])).toBe(0x7c);
    expect(bench.run([set('rcx', 0x1234), op(Code.Rdmsr)])).toBe(0x4d);
  });
});

describe('EVENTINJ', () => {
  const frame = (offset: number): bigint => bench.read(STACK - 0x30 + offset);
  it('delivers an exception with its error code before the first instruction', () => {
    bench.gate(13, HANDLERS);
    bench.load([hlt()], HANDLERS);
    bench.setLong(EVENTINJ, 0x1234_80000b0dn);
    expect(bench.run([nop()])).toBe(0x78);
    expect(bench.long(RIP)).toBe(BigInt(HANDLERS));
    expect(bench.long(RSP)).toBe(BigInt(STACK - 0x30));
    expect(frame(0)).toBe(0x1234n);
    expect(frame(8)).toBe(BigInt(CODE));
    expect(bench.word(EVENTINJ)).toBe(0xb0d);
  });
  it('delivers an interrupt whatever RFLAGS.IF says, and is not intercepted', () => {
    bench.gate(0x41, HANDLERS);
    bench.load([hlt()], HANDLERS);
    bench.setWord(EVENTINJ, 0x80000041 | 0);
    expect(bench.run([nop()])).toBe(0x78);
    expect(bench.long(RIP)).toBe(BigInt(HANDLERS));
  });
  it('an injected exception is not intercepted', () => {
    bench.interceptException(6);
    bench.gate(6, HANDLERS);
    bench.load([hlt()], HANDLERS);
    bench.setWord(EVENTINJ, 0x80000306 | 0);
    expect(bench.run([nop()])).toBe(0x78);
  });
  it('a software interrupt returns to NEXT_RIP', () => {
    bench.gate(0x80, HANDLERS);
    bench.load([hlt()], HANDLERS);
    bench.setLong(NEXT_RIP, BigInt(CODE + 2));
    bench.setWord(EVENTINJ, 0x80000480 | 0);
    expect(bench.run([nop()])).toBe(0x78);
    expect(frame(8)).toBe(BigInt(CODE + 2));
  });
  it('a nested fault while it is delivered leaves the event in EXITINTINFO', () => {
    bench.gate(14, HANDLERS);
    bench.unmap((STACK - 0x1000) >>> 12);
    bench.setLong(EVENTINJ, 0x6_80000b0en);
    expect(bench.run([nop()])).toBe(0x400);
    expect(bench.word(0x88)).toBe(0x80000b0e | 0);
    expect(bench.word(0x8c)).toBe(6);
    expect(bench.long(RIP)).toBe(BigInt(CODE));
    expect(bench.long(RSP)).toBe(BigInt(STACK));
  });
});

describe('INS and OUTS that nobody intercepts', () => {
  const at = (register: number, value: number) => {
    bench.core.gpr[register] = BigInt(value);
  };
  beforeEach(() => {
    bench.intercept(123, 0);
    at(2, 0x60);
    at(6, DATA);
    at(7, DATA);
  });

  it('read ones, element by element', () => {
    at(1, 3);
    // rep insb; hlt
    bench.memory.write(bench.spa(CODE), Uint8Array.of(0xf3, 0x6c, 0xf4));
    bench.setLong(RIP, BigInt(CODE));
    expect(bench.run()).toBe(0x78);
    expect(bench.read(DATA)).toBe(0xffffffn);
    expect([bench.core.gpr[1], bench.core.gpr[7]]).toEqual([0n, BigInt(DATA + 3)]);
  });

  it('write into nothing, and count', () => {
    at(1, 3);
    expect(bench.run([outString(8), hlt()])).toBe(0x78);
    expect([bench.core.gpr[1], bench.core.gpr[6]]).toEqual([0n, BigInt(DATA + 3)]);
    expect(bench.run([outString(8), hlt()])).toBe(0x78);
    expect(bench.core.gpr[6]).toBe(BigInt(DATA + 3));
  });

  it('fault on their memory', () => {
    bench.interceptException(14);
    at(7, 0x500000);
    expect(bench.run([inString(16)])).toBe(0x4e);
  });
});
