/** Real mode, protected mode and compatibility mode, and the ways between them. Code is what GNU as made of the comments. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  CODE,
  CR0,
  CR2,
  CR3,
  CR4,
  EFER,
  EXITINFO1,
  GDT,
  GuestBench,
  IDT,
  PT,
  RAX,
  RFLAGS,
  RIP,
  RSP,
  STACK,
  TSS,
} from '../guest-bench.ts';

const [RCX, RDX, RBX, RBP, RSI, RDI] = [1, 2, 3, 5, 6, 7] as const;
const HLT = 0x78;
const [ES, CS, SS, DS] = [0x00, 0x10, 0x20, 0x30] as const;
const CODE32 = 0x18;

let bench: GuestBench;
beforeEach(() => {
  bench = new GuestBench();
});
afterEach(() => bench.close());

function put(at: number, bytes: readonly number[]): void {
  for (const [n, byte] of bytes.entries()) bench.memory.write(bench.spa(at + n), Uint8Array.of(byte));
}
const bytesAt = (at: number, count: number): number[] =>
  Array.from({ length: count }, (_, n) => {
    const byte = new Uint8Array(1);
    bench.memory.read(bench.spa(at + n), byte);
    return byte[0]!;
  });
const word = (at: number): number => Buffer.from(bytesAt(at, 4)).readUInt32LE();
const selector = (segment: number): number => bench.word(0x400 + segment) & 0xffff;

/** CS 1000:0000, the other segments at 0, the vector table at 0. */
function realMode(): void {
  bench.setLong(CR0, 0x10n);
  bench.setLong(CR4, 0n);
  bench.setLong(EFER, 0x1000n);
  bench.segment(CS, 0x1000, 0x9b, 0xffff, 0x10000n);
  for (const segment of [ES, SS, DS]) bench.segment(segment, 0, 0x93, 0xffff);
  bench.segment(0x80, 0, 0, 0x3ff, 0n);
}

/** 32-bit code at CPL 0 or 3 without paging; 0x40 and 0x48 are the code and data of CPL 3. */
function protectedMode(cpl: 0 | 3): void {
  realMode();
  bench.setLong(CR0, 0x11n);
  bench.write(GDT + CODE32, 0x00cf9a000000ffffn);
  bench.write(GDT + 0x40, 0x00cffa000000ffffn);
  bench.write(GDT + 0x48, 0x00cff2000000ffffn);
  bench.segment(0x60, 0, 0, 0x4f, BigInt(GDT));
  bench.segment(CS, cpl === 0 ? CODE32 : 0x43, cpl === 0 ? 0xc9b : 0xcfb, -1);
  for (const segment of [ES, SS, DS])
    bench.segment(segment, cpl === 0 ? 0x10 : 0x4b, cpl === 0 ? 0xc93 : 0xcf3, -1);
  bench.memory.write((bench.vmcb + 0x4cb) as never, Uint8Array.of(cpl));
  bench.segment(0x80, 0, 0, 0x7ff, BigInt(IDT));
  // A 32-bit TSS: ESP0 and SS0.
  bench.segment(0x90, 0x28, 0x8b, 0x67, BigInt(TSS));
  put(TSS + 4, [0x00, 0xb0, 0, 0, 0x10, 0]);
  bench.setLong(RSP, BigInt(STACK));
}

/** Runs from `rip` of CS on; the code lies at CODE. */
function run(bytes: readonly number[], rip = CODE): number {
  put(CODE, bytes);
  bench.setLong(RIP, BigInt(rip));
  return bench.run();
}

/** A 32-bit gate of the IDT. */
const gate = (vector: number, handler: number, dpl: number, type = 0xe): void =>
  bench.write(
    IDT + 8 * vector,
    BigInt(handler & 0xffff) |
      (BigInt(CODE32) << 16n) |
      (BigInt(0x8000 | (dpl << 13) | (type << 8)) << 32n) |
      (BigInt(handler >>> 16) << 48n),
  );

it.each([
  ['real mode', () => realMode(), 0],
  ['protected mode', () => protectedMode(0), CODE],
  ['compatibility mode', () => bench.segment(CS, CODE32, 0xc9b), CODE],
])('%s refuses an instruction of more than 15 bytes with #GP(0)', (_, enter, rip) => {
  enter();
  for (const vector of [6, 13]) bench.interceptException(vector);
  const prefixes = new Array<number>(14).fill(0x66);
  expect(run([...prefixes, 0x66, 0x90], rip)).toBe(0x4d);
  expect(bench.long(EXITINFO1)).toBe(0n);
  expect(run([...prefixes, 0x0f, 0x0b], rip)).toBe(0x4d);
  expect(run([...prefixes.slice(1), 0x0f, 0x0b], rip)).toBe(0x46);
});

describe('real mode', () => {
  beforeEach(realMode);

  it('refuses 16 bytes whose length hangs on two of their prefixes', () => {
    for (const vector of [6, 13]) bench.interceptException(vector);
    const imul = [
      0x66, 0x67, 0x65, 0x67, 0x3e, 0xf3, 0x69, 0x9f, 0x15, 0x6c, 0xd2, 0x0e, 0x2e, 0x12, 0x8c, 0x4d,
    ];
    expect(run(imul, 0)).toBe(0x4d);
  });

  it('goes through protected mode to 64-bit mode', () => {
    bench.write(GDT + CODE32, 0x00cf9a000000ffffn);
    const code = [
      ...[0x2e, 0x66, 0x0f, 0x01, 0x16, 0x19, 0x00], // lgdtl %cs:gdtr
      ...[0x0f, 0x20, 0xc0, 0x66, 0x83, 0xc8, 0x01, 0x0f, 0x22, 0xc0], // cr0 |= PE
      ...[0x66, 0xea, 0x1f, 0x00, 0x01, 0x00, 0x18, 0x00], // ljmpl $0x18, $prot
      ...[0x37, 0x00, 0x00, 0x50, 0x00, 0x00], // gdtr
      ...[0x66, 0xb8, 0x10, 0x00, 0x8e, 0xd8, 0x8e, 0xd0], // ds = ss = 0x10
      ...[0xbc, 0x00, 0x90, 0x00, 0x00], // movl $0x9000, %esp
      ...[0x68, 0x78, 0x56, 0x34, 0x12, 0x5b], // pushl $0x12345678; popl %ebx
      ...[0x0f, 0x20, 0xe0, 0x83, 0xc8, 0x20, 0x0f, 0x22, 0xe0], // cr4 |= PAE
      ...[0xb8, 0x00, 0x10, 0x00, 0x00, 0x0f, 0x22, 0xd8], // cr3 = 0x1000
      ...[0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, 0x0d, 0x00, 0x01, 0x00, 0x00, 0x0f, 0x30], // EFER |= LME
      ...[0x0f, 0x20, 0xc0, 0x0d, 0x00, 0x00, 0x00, 0x80, 0x0f, 0x22, 0xc0], // cr0 |= PG
      ...[0xea, 0x63, 0x00, 0x01, 0x00, 0x08, 0x00], // ljmpl $8, $long64
      ...[0x48, 0xb8, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11], // movabs
      0xf4,
    ];
    expect(run(code, 0)).toBe(HLT);
    expect(bench.long(RAX)).toBe(0x1122334455667788n);
    expect(bench.long(EFER)).toBe(0x1500n);
    expect(bench.long(CR0)).toBe(0x80000011n);
    expect(bench.long(CR3)).toBe(0x1000n);
    expect(bench.core.gpr[RBX]).toBe(0x12345678n);
    expect(bench.word(0x400 + CS) >>> 16).toBe(0xa9b);
    expect(bench.long(RIP)).toBe(0x1006dn);
  });

  it('steps a repeated string instruction by the element, and keeps what is above CX', () => {
    bench.interceptException(1);
    bench.setLong(RFLAGS, 0x102n);
    bench.core.gpr[RCX] = 0x1122_3344_5566_0003n;
    const seen: [bigint, bigint][] = [];
    put(CODE, [0xf3, 0xaa, 0xf4]); // rep stosb; hlt
    bench.setLong(RIP, 0n);
    while (bench.run() === 0x41) seen.push([bench.long(RIP), bench.core.gpr[RCX]!]);
    expect(seen).toEqual([
      [0n, 0x1122_3344_5566_0002n],
      [0n, 0x1122_3344_5566_0001n],
      [2n, 0x1122_3344_5566_0000n],
    ]);
  });

  it('decodes anew what changed when it keeps as many instructions as it can', () => {
    bench.memory.write(bench.spa(CODE), new Uint8Array(4096).fill(0x90));
    bench.setLong(RIP, 0n);
    bench.run(undefined, 4096);
    expect(bench.long(RIP)).toBe(4096n);
    put(CODE, [0x40, 0xf4]); // incw %ax; hlt
    bench.setLong(RIP, 0n);
    bench.setLong(RAX, 6n);
    expect(bench.run()).toBe(HLT);
    expect(bench.long(RAX)).toBe(7n);
  });

  it('delivers INT through the vector table, and IRET comes back', () => {
    bench.write(4 * 0x40, 0x1000_0100n); // 1000:0100
    put(CODE + 0x100, [0x40, 0xcf]); // incw %ax; iretw
    bench.setLong(RFLAGS, 0x202n);
    // movw $0x4321, %ax; int $0x40; movw %ax, %cx; hlt
    expect(run([0xb8, 0x21, 0x43, 0xcd, 0x40, 0x89, 0xc1, 0xf4], 0)).toBe(HLT);
    expect(bench.core.gpr[RCX]! & 0xffffn).toBe(0x4322n);
    expect(bench.long(RSP)).toBe(BigInt(STACK));
    expect(bytesAt(STACK - 6, 6)).toEqual([0x05, 0x00, 0x00, 0x10, 0x02, 0x02]);
    expect(bench.long(RFLAGS)).toBe(0x202n);
  });

  it('has 16-bit strings, loops, calls, the stack and addresses that wrap', () => {
    put(0x8100, [1, 2, 3, 4]);
    bench.segment(DS, 0x800, 0x93, 0xffff, 0x8000n);
    bench.segment(ES, 0x800, 0x93, 0xffff, 0x8000n);
    const code = [
      ...[0xbe, 0x00, 0x01, 0xbf, 0x00, 0x02, 0xb9, 0x04, 0x00, 0xfc, 0xf3, 0xa4], // rep movsb
      ...[0xb9, 0x03, 0x00, 0x31, 0xd2, 0x83, 0xc2, 0x05, 0xe2, 0xfb], // 1: addw $5, %dx; loop 1b
      ...[0xe8, 0x01, 0x00, 0xf4], // call 2f; hlt
      ...[0x26, 0xa0, 0x00, 0x02, 0x60, 0x61], // 2: movb %es:0x200, %al; pusha; popa
      ...[0xbb, 0x00, 0x80, 0x8d, 0xaf, 0x01, 0x80, 0xc3], // leaw 0x8001(%bx), %bp; ret
    ];
    for (const register of [RCX, RDX, RBX, RBP, RSI, RDI]) bench.core.gpr[register] = 0xaaaa_bbbb_0000_0000n;
    expect(run(code, 0)).toBe(HLT);
    expect(bytesAt(0x8200, 4)).toEqual([1, 2, 3, 4]);
    const upper = 0xaaaa_bbbb_0000_0000n;
    expect(bench.core.gpr[RSI]).toBe(upper | 0x104n);
    expect(bench.core.gpr[RDI]).toBe(upper | 0x204n);
    expect(bench.core.gpr[RCX]).toBe(upper);
    expect(bench.core.gpr[RDX]).toBe(upper | 15n);
    expect(bench.core.gpr[RBP]).toBe(upper | 1n);
    expect(bench.long(RAX) & 0xffn).toBe(1n);
    expect(bench.long(RSP)).toBe(BigInt(STACK));
  });

  it('raises #GP for an operand beyond 64 KiB, #SS on the stack, and keeps the destination', () => {
    bench.interceptException(13);
    bench.interceptException(12);
    bench.setLong(RAX, 0x77n);
    expect(run([0xbb, 0xff, 0xff, 0x8b, 0x07], 0)).toBe(0x4d); // movw $0xffff, %bx; movw (%bx), %ax
    expect(bench.long(RAX)).toBe(0x77n);
    expect(bench.long(RIP)).toBe(3n);
    bench.setLong(RSP, 1n);
    expect(run([0x50], 0)).toBe(0x4c); // pushw %ax
    expect(bench.long(RSP)).toBe(1n);
  });

  it('keeps a limit that protected mode made (unreal mode)', () => {
    bench.segment(DS, 0, 0x93, 0xffffffff);
    put(0x30000, [0x5a]);
    // movw $0, %ax; movw %ax, %ds; movb 0x30000, %cl (addr32); hlt
    expect(run([0xb8, 0, 0, 0x8e, 0xd8, 0x67, 0x8a, 0x0d, 0, 0, 3, 0, 0xf4], 0)).toBe(HLT);
    expect(bench.core.gpr[RCX]! & 0xffn).toBe(0x5an);
  });

  it.each([
    ['LLDT', [0x0f, 0x00, 0xd0]],
    ['STR', [0x0f, 0x00, 0xc8]],
    ['LAR', [0x0f, 0x02, 0xc0]],
    ['VERR', [0x0f, 0x00, 0xe0]],
    ['ARPL', [0x63, 0xc0]],
  ])('has no %s', (_, code) => {
    bench.interceptException(6);
    expect(run(code, 0)).toBe(0x46);
    expect(bench.long(RIP)).toBe(0n);
  });

  it('runs code that it has just changed, and code that crosses a page', () => {
    // movw $2, %cx; 1: incw %ax (then incw %dx); movb $0x42, %cs:1b; loop 1b; hlt
    const code = [0xb9, 2, 0, 0x40, 0x2e, 0xc6, 0x06, 0x03, 0x00, 0x42, 0xe2, 0xf7, 0xf4];
    bench.core.gpr[RDX] = 0n;
    bench.setLong(RAX, 0n);
    expect(run(code, 0)).toBe(HLT);
    expect([bench.long(RAX), bench.core.gpr[RDX]]).toEqual([1n, 1n]);
    put(CODE + 0xffe, [0xb8, 0x34, 0x12, 0xf4]); // movw $0x1234, %ax, over the page's end
    expect(run([], 0xffe)).toBe(HLT);
    expect(bench.long(RAX)).toBe(0x1234n);
    put(CODE + 0x1000, [0x56]);
    expect(run([], 0xffe)).toBe(HLT);
    expect(bench.long(RAX)).toBe(0x5634n);
  });
  it('has OUTS with 16-bit addresses in a segment', () => {
    bench.segment(DS, 0x3000, 0x93, 0xffff, 0x30000n);
    bench.core.gpr[RSI] = 0xaaaa_0010n;
    bench.core.gpr[RCX] = 0xbbbb_0003n;
    bench.core.gpr[RDX] = 0x3f8n;
    bench.memory.write(bench.iopm as never, new Uint8Array(0x3000));
    // rep outsb; movw $2, %cx; insw; hlt
    bench.segment(ES, 0x3000, 0x93, 0xffff, 0x30000n);
    bench.core.gpr[RDI] = 0x20n;
    expect(run([0xf3, 0x6e, 0x6d, 0xf4], 0)).toBe(HLT);
    expect(bench.core.gpr[RSI]).toBe(0xaaaa_0013n);
    expect(bench.core.gpr[RCX]).toBe(0xbbbb_0000n);
    expect(bytesAt(0x30020, 3)).toEqual([0xff, 0xff, 0]);
    bench.memory.write(bench.iopm as never, new Uint8Array(0x3000).fill(0xff));
    bench.core.gpr[RCX] = 1n;
    expect(run([0xf3, 0x26, 0x6e], 0)).toBe(0x7b); // rep outsb %es
    expect(bench.long(EXITINFO1)).toBe(0x03f8_009cn);
  });
  it('gives the bytes of an intercepted instruction and the next RIP as offset in CS', () => {
    expect(run([0xe4, 0x60], 0)).toBe(0x7b); // inb $0x60
    expect(bench.long(EXITINFO1) >> 16n).toBe(0x60n);
    expect(bench.long(0x80)).toBe(2n);
  });
});

describe('protected mode', () => {
  it('enters ring 0 through a gate with the stack of the TSS, and IRETD goes back', () => {
    protectedMode(3);
    gate(0x40, CODE + 0x100, 3);
    // Handler: movl %esp, %ecx; iretl. movl $0x11, %eax; int $0x40; movl %esp, %edx; int3 (intercepted)
    put(CODE + 0x100, [0x89, 0xe1, 0xcf]);
    bench.interceptException(3);
    expect(run([0xb8, 0x11, 0, 0, 0, 0xcd, 0x40, 0x89, 0xe2, 0xcc])).toBe(0x43);
    expect(bench.core.gpr[RCX]).toBe(0xafecn);
    expect(bench.core.gpr[RDX]).toBe(BigInt(STACK));
    expect(word(0xafec)).toBe(CODE + 7);
    expect(word(0xaff0)).toBe(0x43);
    expect(word(0xaff8)).toBe(STACK);
    expect(word(0xaffc)).toBe(0x4b);
    expect(bench.cpl).toBe(3);
  });
  it('raises #GP for INT through a gate that CPL may not use, with the vector as error code', () => {
    protectedMode(3);
    gate(0x40, CODE + 0x100, 0);
    bench.interceptException(13);
    expect(run([0xcd, 0x40])).toBe(0x4d);
    expect(bench.long(EXITINFO1)).toBe(0x202n);
  });
  it('checks limits and rights of data segments', () => {
    protectedMode(0);
    bench.interceptException(13);
    bench.segment(DS, 0x10, 0x493, 0xfff, 0x30000n);
    expect(run([0xa1, 0xfd, 0x0f, 0, 0])).toBe(0x4d); // movl 0xffd, %eax
    expect(run([0xa1, 0xfc, 0x0f, 0, 0, 0xf4])).toBe(HLT);
    bench.segment(DS, 0x10, 0x491, 0xfff, 0x30000n);
    expect(run([0xa3, 0x00, 0x00, 0, 0])).toBe(0x4d); // movl %eax, 0 into a read-only segment
    bench.segment(DS, 0, 0, 0, 0n);
    expect(run([0xa1, 0x00, 0x00, 0, 0])).toBe(0x4d);
  });
  it('has a stack that grows down from its limit', () => {
    protectedMode(0);
    bench.interceptException(12);
    bench.segment(SS, 0x10, 0xc97, 0x8fff);
    bench.setLong(RSP, 0x9004n);
    expect(run([0x50, 0xf4])).toBe(HLT);
    expect(run([0x50, 0xf4])).toBe(0x4c);
    expect(bench.long(RSP)).toBe(0x9000n);
  });
  it('calls a ring-0 gate with parameters, and RET releases them on both stacks', () => {
    protectedMode(3);
    // 32-bit call gate at 0x30, DPL 3, two parameters.
    bench.write(GDT + 0x30, (0x0000_ec02n << 32n) | BigInt(((CODE + 0x100) & 0xffff) | (CODE32 << 16)));
    bench.write(GDT + 0x30, bench.read(GDT + 0x30) | (BigInt((CODE + 0x100) >>> 16) << 48n));
    put(CODE + 0x100, [0x89, 0xe1, 0xca, 0x08, 0x00]); // movl %esp, %ecx; lret $8
    bench.interceptException(3);
    const code = [0x6a, 0x11, 0x6a, 0x22, 0x9a, 0, 0, 0, 0, 0x33, 0x00, 0x89, 0xe2, 0xcc];
    expect(run(code)).toBe(0x43);
    expect(bench.core.gpr[RCX]).toBe(0xafe8n);
    const frame = [0, 4, 8, 12, 16, 20].map((at) => word(0xafe8 + at));
    expect(frame).toEqual([CODE + 11, 0x43, 0x22, 0x11, STACK - 8, 0x4b]);
    expect(bench.core.gpr[RDX]).toBe(BigInt(STACK));
    expect(bench.cpl).toBe(3);
  });
  it('leaves a task switch to the host', () => {
    protectedMode(0);
    bench.intercept(125);
    bench.write(GDT + 0x30, (0x8900n << 32n) | 0x67n);
    expect(run([0xea, 0, 0, 0, 0, 0x30, 0])).toBe(0x7d); // ljmp $0x30, $0
    expect(bench.long(EXITINFO1)).toBe(0x30n);
    expect(bench.long(0x80)).toBe(0x40n << 32n);
  });
  it('has BOUND and INTO', () => {
    protectedMode(0);
    bench.interceptException(5);
    bench.interceptException(4);
    put(0x30000, [0xfe, 0xff, 0xff, 0xff, 5, 0, 0, 0]);
    const bound = [0x62, 0x05, 0, 0, 3, 0, 0xf4]; // bound %eax, 0x30000
    for (const [index, code] of [
      [5n, HLT],
      [6n, 0x45],
      [0xfffffffen, HLT],
      [0xfffffffdn, 0x45],
    ] as const) {
      bench.setLong(RAX, index);
      expect(run(bound)).toBe(code);
    }
    bench.setLong(RFLAGS, 2n);
    expect(run([0xce, 0xf4])).toBe(HLT);
    bench.setLong(RFLAGS, 0x802n);
    expect(run([0xce, 0xf4])).toBe(0x44);
  });
});

describe('compatibility mode', () => {
  const enter = [
    ...[0xff, 0x2c, 0x25, 0x00, 0x00, 0x03, 0x00], // ljmpl *0x30000
  ];
  beforeEach(() => {
    bench.write(GDT + CODE32, 0x00cf9a000000ffffn);
    bench.write(0x30000, BigInt(CODE + 0x100) | (BigInt(CODE32) << 32n));
    bench.segment(DS, 0x10, 0xc93, -1);
  });
  it('runs 32-bit code between two far jumps', () => {
    bench.setLong(RAX, 0xffff_ffff_ffff_fff0n);
    // addl $0x20, %eax; incl %eax; ljmp $8, $CODE+0x200. There: hlt.
    const code32 = [0x83, 0xc0, 0x20, 0x40, 0xea, 0x00, 0x02, 0x01, 0x00, 0x08, 0x00];
    put(CODE + 0x100, code32);
    put(CODE + 0x200, [0xf4]);
    expect(run(enter)).toBe(HLT);
    expect(bench.long(RAX)).toBe(0x11n);
    expect(bench.long(RIP)).toBe(BigInt(CODE + 0x200));
  });
  it('takes exceptions through the 64-bit IDT and IRETQ comes back to 32-bit code', () => {
    bench.gate(6, CODE + 0x300);
    // Handler: addq $2, (%rsp); iretq. At CODE + 0x100: ud2; movl $7, %ecx; hlt
    put(CODE + 0x300, [0x48, 0x83, 0x04, 0x24, 0x02, 0x48, 0xcf]);
    put(CODE + 0x100, [0x0f, 0x0b, 0xb9, 7, 0, 0, 0, 0xf4]);
    expect(run(enter)).toBe(HLT);
    expect(bench.core.gpr[RCX]).toBe(7n);
    expect(selector(CS)).toBe(CODE32);
    expect(bench.long(RSP)).toBe(BigInt(STACK));
  });
  it('is entered by SYSRET of 32 bits and left by SYSCALL through CSTAR', () => {
    for (let page = 0; page < 256; page++) bench.write(PT + page * 8, BigInt(page * 4096) | 7n);
    bench.setLong(0x600, (0x40n << 48n) | (8n << 32n)); // STAR
    bench.setLong(0x610, BigInt(CODE + 0x200)); // CSTAR
    put(CODE + 0x100, [0x8c, 0xcb, 0x0f, 0x05]); // movl %cs, %ebx; syscall
    put(CODE + 0x200, [0xf4]);
    bench.core.gpr[RCX] = BigInt(CODE + 0x100) | (1n << 40n);
    bench.core.gpr[11] = 0x202n;
    expect(run([0x0f, 0x07])).toBe(HLT);
    expect(bench.core.gpr[RBX]).toBe(0x43n);
    expect(bench.core.gpr[RCX]).toBe(BigInt(CODE + 0x104));
    expect(bench.core.gpr[11]).toBe(0x202n);
    expect([bench.cpl, selector(CS), selector(SS)]).toEqual([0, 8, 0x10]);
  });
  it('pages as long mode does', () => {
    bench.interceptException(14);
    put(CODE + 0x100, [0xa1, 0, 0, 0, 0x40]); // movl 0x40000000, %eax
    expect(run(enter)).toBe(0x4e);
    expect(bench.long(0x80)).toBe(0x40000000n);
    expect(bench.long(CR2)).toBe(0n);
  });
});
