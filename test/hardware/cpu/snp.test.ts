/** SNP guests on a core with nothing around it: the C-bit, the RMP's checks, VMSA, #VC and VMGEXIT, PVALIDATE and its relatives. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Pfn, Spa } from '../../../src/base/address.ts';
import {
  Code,
  hlt,
  load,
  move,
  nop,
  onMemory,
  onRegister,
  op,
  Register,
  set,
  store,
  two,
} from './assembler.ts';
import { CODE, DATA, EXITCODE, EXITINFO1, EXITINFO2, HANDLERS, PT, RAX, RIP, STACK } from './guest-bench.ts';
import { ASID, OTHER_KEY, SHARED, SnpBench } from './snp-bench.ts';

const SECRET = 0x5ec4e7_00c0ffeen;
const C_BIT = 1n << 51n;
/** P, U and bit 31 of a violation; bits 32 (final) and 34 (encrypted) above. */
const RMP = 0x8000_0005n;
const FINAL = 1n << 32n;
const ENC = 1n << 34n;

let bench: SnpBench;
beforeEach(() => {
  bench = new SnpBench();
});
afterEach(() => bench.close());

const start = (...program: Parameters<SnpBench['load']>[0]): number => {
  bench.load(program);
  bench.launch();
  return bench.run();
};
const vmgexit = () => op(Code.Vmgexit);

describe('an SNP guest', () => {
  it('runs under its own key, with its registers in the VMSA, and shows the host ciphertext alone', () => {
    expect(start(set('rbx', SECRET), set('rdi', DATA), store('rdi', 'rbx'), hlt())).toBe(0x78);
    expect(bench.readPrivate(DATA)).toBe(SECRET);
    expect(bench.read(DATA)).not.toBe(SECRET);
    expect(bench.vmsaLong(0x318)).toBe(SECRET);
    expect(bench.memory.load64((bench.vmsa + 0x318) as Spa)).not.toBe(SECRET);
    expect([...bench.core.gpr]).toEqual(new Array(16).fill(0n));
    expect(bench.long(RIP)).toBe(0n);
    expect(bench.long(RAX)).toBe(0n);
  });

  it('goes on with all registers after an automatic exit, behind the HLT', () => {
    start(set('rbx', 7n), set('rax', 1n), hlt(), set('rdi', DATA), store('rdi', 'rbx'), hlt());
    expect(bench.vmsaLong(0x1f8)).toBe(1n);
    expect(bench.run()).toBe(0x78);
    expect(bench.readPrivate(DATA)).toBe(7n);
  });

  it('has its x87 and SSE registers in the VMSA too, and the host finds them initial', () => {
    bench.load([set('rdi', DATA), onMemory(Code.Fxsave_m512byte, 'rdi'), hlt()]);
    bench.launch();
    // TOP is 6: register 6 holds 1.5 and is valid, 7 holds 0, the others are empty.
    const fields: readonly (readonly [number, bigint])[] = [
      [0x400, 0x5555n],
      [0x408, 0x3000_4fff_0000_1f80n],
      [0x410, 0x0033_002b_0123_027fn],
      [0x418, 0x4444n],
      [0x420, 0xc000_0000_0000_0000n],
      [0x428, 0n],
      [0x430, 0x1234_5678_9abc_def0n],
      [0x460, 0x5678_0000_3fffn],
      [0x468, 0x8765_0000_0000_0000n],
      [0x560, SECRET],
    ];
    for (const [offset, value] of fields) bench.setVmsaLong(offset, value);
    expect(bench.run()).toBe(0x78);
    const saved = (at: number, bits = 64): bigint =>
      BigInt.asUintN(bits, bench.readPrivate(DATA + (at & ~7)) >> BigInt((at & 7) * 8));
    expect([saved(0, 16), saved(2, 16), saved(4, 8)]).toEqual([0x027fn, 0x3000n, 0xc0n]);
    expect([saved(32), saved(40, 16), saved(48), saved(56, 16)]).toEqual([
      (1n << 63n) | (1n << 62n),
      0x3fffn,
      0n,
      0n,
    ]);
    expect([saved(64), saved(72, 16), saved(152, 16)]).toEqual([0x1234_5678_9abc_def0n, 0x5678n, 0x8765n]);
    expect(saved(160 + 16 * 15)).toBe(SECRET);
    for (const [offset, value] of fields) expect([offset, bench.vmsaLong(offset)]).toEqual([offset, value]);
    const image = new Uint8Array(160);
    bench.core.readX87(image);
    expect([...image.subarray(0, 6), ...image.subarray(32, 160)]).toEqual([
      0x7f,
      3,
      0,
      0,
      0,
      0,
      ...new Array(128).fill(0),
    ]);
    expect([...bench.core.xmm].every((byte) => byte === 0)).toBe(true);
    expect(bench.core.mxcsr).toBe(0x1f80);
  });

  it('shares by a page without the C-bit what the host reads and writes', () => {
    bench.write(SHARED, 42n);
    start(set('rdi', SHARED), load('rbx', 'rdi'), store('rdi', 'rbx', 8), hlt());
    expect(bench.read(SHARED + 8)).toBe(42n);
  });

  it('reads ciphertext where it maps a private page without the C-bit, and no fault', () => {
    bench.write(DATA, SECRET);
    bench.write(PT + 0x41 * 8, BigInt(DATA) | 3n);
    start(set('rdi', 0x41000), load('rbx', 'rdi'), set('rdi', SHARED), store('rdi', 'rbx'), hlt());
    const seen = bench.read(SHARED);
    expect(seen).not.toBe(SECRET);
    expect(seen).toBe(bench.read(DATA));
    expect(bench.readPrivate(DATA)).toBe(SECRET);
  });

  it('tells SEV_STATUS whatever the host intercepts', () => {
    bench.memory.write(Number(bench.long(0x48)) as Spa, new Uint8Array(0x2000).fill(0xff));
    start(set('rcx', 0xc0010131), op(Code.Rdmsr), hlt());
    expect(bench.vmsaLong(0x1f8)).toBe(7n);
  });

  // CPUID 0x8000001F EAX bit 9. What RDTSCP gave, what the VMSA has after a write of 0x77, what the host has.
  it.each([
    ['genoa', 0x55n, 0x77n, 0x99n],
    ['turin', 0x55n, 0x77n, 0x99n],
    ['milan', 0x99n, 0x55n, 0x77n],
  ] as const)('has TSC_AUX in its VMSA or the host’s, as the chip is: %s', (chip, first, inVmsa, left) => {
    bench.close();
    bench = new SnpBench(chip);
    const write = [set('rcx', 0xc000_0103n), set('rax', 0x77n), set('rdx', 0n), op(Code.Wrmsr)];
    const rdpid = onRegister(Code.Rdpid_r64, Register.RDI);
    bench.load([op(Code.Rdtscp), move('rbx', 'rcx'), ...write, rdpid, hlt()]);
    bench.launch();
    bench.setVmsaLong(0x2e8, 0x55n << 32n);
    bench.core.tscAux = 0x99n;
    expect(bench.run()).toBe(0x78);
    expect([bench.vmsaLong(0x318), bench.vmsaLong(0x338)]).toEqual([first, 0x77n]);
    expect(bench.vmsaLong(0x2e8)).toBe(inVmsa << 32n);
    expect(bench.core.tscAux).toBe(left);
  });

  it.each([
    ['without a key for its ASID', () => bench.memory.encryption.bind(ASID, 0)],
    ['with SEV-ES but not SEV', () => bench.setLong(0x90, 5n)],
    ['with a VMSA in a page that is not the guest’s', () => bench.setLong(0x108, BigInt(bench.vmcb))],
    ['with a VMSA in a page that is not marked as one', () => bench.setLong(0x108, BigInt(bench.spa(DATA)))],
    ['with a VMSA behind the end of memory', () => bench.setLong(0x108, 1n << 40n)],
    ['with a feature that the core has not', () => bench.setVmsaLong(0x3b0, 3n)],
    ['of another ASID than the VMSA’s', () => bench.setWord(0x58, ASID + 1)],
  ])('is refused %s', (_, spoil) => {
    bench.load([hlt()]);
    bench.launch();
    spoil();
    expect(bench.run()).toBe(-1);
    expect(bench.long(EXITINFO1)).toBe(0n);
  });
});

describe('the RMP', () => {
  const readData = () => start(set('rdi', DATA), load('rbx', 'rdi'), hlt());
  const spoilAfterLaunch = (spoil: () => void, ...program: Parameters<SnpBench['load']>[0]): number => {
    bench.load(program);
    bench.launch();
    spoil();
    return bench.run();
  };
  const frame = () => bench.frameOf(DATA >>> 12);
  const change = (over: object) => () =>
    bench.rmp.setEntry(frame(), { ...bench.rmp.entry(frame()), ...over });

  it('lets a guest at its own validated page', () => {
    expect(readData()).toBe(0x78);
  });

  it.each<[string, object, bigint]>([
    ['is the hypervisor’s', { assigned: false, gpa: 0, asid: 0, validated: false }, RMP | FINAL | ENC],
    ['is another guest’s', { asid: 6 }, RMP | FINAL | ENC],
    ['belongs at another guest physical address', { gpa: DATA + 4096 }, RMP | FINAL | ENC],
    ['is immutable', { immutable: true }, RMP | FINAL | ENC],
    ['forbids VMPL0 to read', { permissions: 0x1e }, RMP | FINAL | ENC | (1n << 36n)],
    ['forbids VMPL0 everything', { permissions: 0 }, RMP | FINAL | ENC | (1n << 36n)],
    [
      'is not validated either, but another guest’s: ownership comes first',
      { asid: 6, validated: false },
      RMP | FINAL | ENC,
    ],
  ])('stops a read of a page that %s', (_, over, info) => {
    expect(spoilAfterLaunch(change(over), set('rdi', DATA), load('rbx', 'rdi'), hlt())).toBe(0x400);
    expect(bench.long(EXITINFO1)).toBe(info);
    expect(bench.long(EXITINFO2)).toBe(BigInt(DATA));
  });

  it.each([
    ['may only read', 0x1d],
    ['may write and not read, which is nothing', 0x1e],
  ])('stops a write where VMPL0 %s', (_, permissions) => {
    const program = [set('rdi', DATA), store('rdi', 'rdi'), hlt()];
    expect(spoilAfterLaunch(change({ permissions }), ...program)).toBe(0x400);
    expect(bench.long(EXITINFO1)).toBe(RMP | 2n | FINAL | ENC | (1n << 36n));
  });

  it('stops a fetch where VMPL0 may not execute', () => {
    bench.load([hlt()]);
    bench.launch();
    const code = bench.frameOf(CODE >>> 12);
    bench.rmp.setEntry(code, { ...bench.rmp.entry(code), permissions: 0x17 });
    expect(bench.run()).toBe(0x400);
    expect(bench.long(EXITINFO1)).toBe(RMP | 0x10n | FINAL | ENC | (1n << 36n));
  });

  it('stops a walk whose page table is another guest’s', () => {
    bench.load([hlt()]);
    bench.launch();
    const table = bench.frameOf(PT >>> 12);
    bench.rmp.setEntry(table, { ...bench.rmp.entry(table), asid: 6 });
    expect(bench.run()).toBe(0x400);
    expect(bench.long(EXITINFO1)).toBe(RMP | (1n << 33n) | ENC);
  });

  it('stops a shared write to a private page, and no shared read', () => {
    bench.write(PT + 0x41 * 8, BigInt(DATA) | 3n);
    const program = [set('rdi', 0x41000), load('rbx', 'rdi'), store('rdi', 'rbx'), hlt()];
    expect(start(...program)).toBe(0x400);
    expect(bench.long(EXITINFO1)).toBe(RMP | 2n | FINAL);
  });

  it('raises #VC 0x404 with the address in CR2 for a page that is not validated', () => {
    bench.gate(29, HANDLERS);
    bench.load([hlt()], HANDLERS);
    expect(
      spoilAfterLaunch(change({ validated: false }), set('rdi', DATA + 8), load('rbx', 'rdi'), hlt()),
    ).toBe(0x78);
    expect(bench.vmsaLong(0x178)).toBe(BigInt(HANDLERS + 1));
    expect(bench.vmsaLong(0x240)).toBe(BigInt(DATA + 8));
    expect(bench.readPrivate(STACK - 48)).toBe(0x404n);
  });

  it('stops a nested mapping that puts another page of the guest at an address', () => {
    const program = [set('rdi', DATA), load('rbx', 'rdi'), hlt()];
    const swap = () => bench.map(DATA >>> 12, bench.frameOf((DATA >>> 12) + 1), 7n);
    expect(spoilAfterLaunch(swap, ...program)).toBe(0x400);
    expect(bench.long(EXITINFO1)).toBe(RMP | FINAL | ENC);
  });

  it('takes effect at once on a core that has the page in its TLB', () => {
    bench.load([set('rdi', DATA), load('rbx', 'rdi'), hlt(), load('rbx', 'rdi'), hlt()]);
    bench.launch();
    expect(bench.run()).toBe(0x78);
    bench.rmp.rmpupdate((frame() * 4096) as Spa, {
      assigned: false,
      large: false,
      immutable: false,
      gpa: 0,
      asid: 0,
    });
    expect(bench.run()).toBe(0x400);
  });

  it('keeps a plain guest of the same machine from writing to assigned pages, not from reading ciphertext', () => {
    bench.write(DATA, SECRET);
    bench.load([set('rdi', DATA), load('rbx', 'rdi'), store('rdi', 'rbx'), hlt()]);
    const page = frame();
    bench.own(page, DATA, { validated: true });
    for (let gfn = 0; gfn < 256; gfn++) bench.write(PT + gfn * 8, BigInt(gfn * 4096) | 3n);
    bench.setLong(RIP, BigInt(CODE));
    expect(bench.run()).toBe(0x400);
    expect(bench.long(EXITINFO1)).toBe(RMP | 2n | FINAL);
    expect(bench.core.gpr[3]).toBe(bench.read(DATA));
    expect(bench.core.gpr[3]).not.toBe(SECRET);
  });
});

describe('#VC', () => {
  it.each<[string, ReturnType<typeof op>[], bigint]>([
    ['CPUID', [op(Code.Cpuid)], 0x72n],
    ['RDMSR', [set('rcx', 0x10), op(Code.Rdmsr)], 0x7cn],
    ['WBINVD', [op(Code.Wbinvd)], 0x89n],
    ['RDTSC', [op(Code.Rdtsc)], 0x6en],
    ['VMMCALL', [op(Code.Vmmcall)], 0x81n],
    ['OUT', [set('rdx', 0x3f8), two(Code.Out_DX_AL, Register.DX, Register.AL)], 0x7bn],
  ])('%s comes to the guest with its exit code, RIP at the instruction', (_, program, error) => {
    for (const bit of [114, 137, 110]) bench.intercept(bit);
    bench.memory.write(Number(bench.long(0x48)) as Spa, new Uint8Array(0x2000).fill(0xff));
    bench.gate(29, HANDLERS);
    bench.load([hlt()], HANDLERS);
    expect(start(nop(), ...program, hlt())).toBe(0x78);
    expect(bench.readPrivate(STACK - 48)).toBe(error);
    const rip = Number(bench.readPrivate(STACK - 40));
    expect(rip).toBe(CODE + 1 + (program.length - 1) * 10);
    expect(bench.long(EXITCODE)).toBe(0x78n);
  });

  it('a nested fault on a reserved bit, KVM’s mark of MMIO, comes as #VC 0x400', () => {
    bench.gate(29, HANDLERS);
    bench.load([hlt()], HANDLERS);
    bench.map(0x41, 0, 7n | (1n << 51n));
    expect(start(set('rdi', 0x41000), load('rbx', 'rdi'), hlt())).toBe(0x78);
    expect(bench.readPrivate(STACK - 48)).toBe(0x400n);
  });

  it('VMGEXIT leaves for the host with the GHCB’s address, and comes back behind it', () => {
    const program = [set('rcx', 0xc0010130), set('rax', 0x40012), set('rdx', 3), op(Code.Wrmsr), vmgexit()];
    start(...program, op(Code.Rdmsr), hlt());
    expect(bench.long(EXITCODE)).toBe(0x403n);
    expect(bench.long(0xa0)).toBe(0x3_0004_0012n);
    bench.setLong(0xa0, 0x1_0000_0013n);
    expect(bench.run()).toBe(0x78);
    expect(bench.vmsaLong(0x1f8)).toBe(0x13n);
    expect(bench.vmsaLong(0x310)).toBe(1n);
  });
});

describe('PVALIDATE', () => {
  const frame = () => bench.frameOf(DATA >>> 12);
  const pvalidate = (size: number, validate: number, address: number | bigint = DATA) => [
    set('rax', address),
    set('rcx', size),
    set('rdx', validate),
    op(Code.Pvalidateq),
    hlt(),
  ];
  const invalid = (): void => bench.rmp.setEntry(frame(), { ...bench.rmp.entry(frame()), validated: false });
  const carry = (): bigint => bench.vmsaLong(0x170) & 1n;

  it('validates a page of the guest, and says by CF when it was so before', () => {
    bench.load([...pvalidate(0, 1), ...pvalidate(0, 1), ...pvalidate(0, 0)]);
    bench.launch();
    invalid();
    expect(bench.run()).toBe(0x78);
    expect([bench.vmsaLong(0x1f8), carry(), bench.rmp.state(frame())]).toEqual([0n, 0n, 'guest-valid']);
    expect(bench.run()).toBe(0x78);
    expect([bench.vmsaLong(0x1f8), carry(), bench.rmp.state(frame())]).toEqual([0n, 1n, 'guest-valid']);
    expect(bench.run()).toBe(0x78);
    expect([bench.vmsaLong(0x1f8), carry(), bench.rmp.state(frame())]).toEqual([0n, 0n, 'guest-invalid']);
  });

  it.each([
    ['size 2', 2, DATA, 1n],
    ['an address that is not page aligned', 0, DATA + 8, 1n],
    ['2 MiB at an address that is not 2 MiB aligned', 1, DATA, 1n],
    ['2 MiB where pages are of 4 KiB', 1, 0, 6n],
  ])('of %s fails in EAX and changes nothing', (_, size, address, code) => {
    expect(start(...pvalidate(size, 0, address))).toBe(0x78);
    expect(bench.vmsaLong(0x1f8)).toBe(code);
    expect(bench.rmp.state(bench.frameOf(address >>> 12))).toBe('guest-valid');
  });

  it('of a page that is not the guest’s is a nested fault', () => {
    bench.load(pvalidate(0, 1));
    bench.launch();
    bench.rmp.setEntry(frame(), { ...bench.rmp.entry(frame()), asid: 6 });
    expect(bench.run()).toBe(0x400);
    expect(bench.long(EXITINFO1)).toBe(RMP | FINAL | ENC);
  });

  it('of a page mapped without the C-bit is #PF with the reserved bit', () => {
    bench.gate(14, HANDLERS);
    bench.load([hlt()], HANDLERS);
    expect(start(...pvalidate(0, 1, SHARED))).toBe(0x78);
    expect(bench.readPrivate(STACK - 48)).toBe(9n);
    expect(bench.vmsaLong(0x240)).toBe(BigInt(SHARED));
  });

  it('is #UD for a guest that is not SNP-active', () => {
    bench.gate(6, HANDLERS);
    bench.load([hlt()], HANDLERS);
    for (let gfn = 0; gfn < 256; gfn++) bench.write(PT + gfn * 8, BigInt(gfn * 4096) | 3n);
    bench.load(pvalidate(0, 1));
    bench.setLong(RIP, BigInt(CODE));
    expect(bench.run()).toBe(0x78);
    expect(bench.long(RIP)).toBe(BigInt(HANDLERS));
  });
});

describe('RMPADJUST', () => {
  const adjust = (attributes: number, address = DATA, size = 0) => [
    set('rax', address),
    set('rcx', size),
    set('rdx', attributes),
    op(Code.Rmpadjust),
    hlt(),
  ];
  const frame = () => bench.frameOf(DATA >>> 12) as Pfn;

  it.each<[string, number, bigint]>([
    ['VMPL1 to read and write', 0x0301, 0n],
    ['VMPL3 to do everything', 0x1f03, 0n],
    ['its own level', 0x0100, 2n],
    ['VMPL4, which there is not', 0x0104, 1n],
    ['anything with a reserved bit', 0x20001, 1n],
    ['rights that VMPL0 does not have itself', 0x2001, 2n],
  ])('lets VMPL0 allow %s, or says why not', (_, attributes, code) => {
    expect(start(...adjust(attributes))).toBe(0x78);
    expect(bench.vmsaLong(0x1f8)).toBe(code);
    const mask = (bench.rmp.entry(frame()).permissions >>> (8 * (attributes & 3))) & 0xff;
    if (code === 0n) expect(mask).toBe((attributes >>> 8) & 0xff);
    else expect(bench.rmp.entry(frame()).permissions).toBe(0x1f);
  });

  it('makes a page a VMSA and takes that back', () => {
    start(...adjust(0x10001), ...adjust(1));
    expect(bench.rmp.entry(frame()).vmsa).toBe(true);
    bench.run();
    expect(bench.rmp.entry(frame()).vmsa).toBe(false);
  });

  it('restricts a lower level at its next access', () => {
    bench.load([set('rdi', DATA), load('rbx', 'rdi'), hlt()]);
    bench.launch();
    bench.memory.encryption.writeUnder(bench.key, (bench.vmsa + 0xca) as Spa, Uint8Array.of(2));
    for (let gfn = 0; gfn < 256; gfn++) {
      const page = bench.frameOf(gfn);
      if (bench.rmp.assigned(page))
        bench.rmp.setEntry(page, { ...bench.rmp.entry(page), permissions: 0x1f001f | 0 });
    }
    bench.rmp.setPermissions(frame(), 2, 2, undefined);
    expect(bench.run()).toBe(0x400);
    expect(bench.long(EXITINFO1)).toBe(RMP | FINAL | ENC | (1n << 36n));
  });

  it('of a page that is not validated is #VC 0x404', () => {
    bench.gate(29, HANDLERS);
    bench.load([hlt()], HANDLERS);
    bench.load(adjust(0x0301));
    bench.launch();
    bench.rmp.setEntry(frame(), { ...bench.rmp.entry(frame()), validated: false });
    expect(bench.run()).toBe(0x78);
    expect(bench.readPrivate(STACK - 48)).toBe(0x404n);
    expect(bench.vmsaLong(0x240)).toBe(BigInt(DATA));
  });

  it('is asked by RMPQUERY', () => {
    start(...adjust(0x0502).slice(0, -1), set('rax', DATA), set('rdx', 2), op(Code.Rmpquery), hlt());
    expect(bench.vmsaLong(0x310)).toBe(0x0502n);
    expect(bench.vmsaLong(0x308)).toBe(0n);
    expect(bench.vmsaLong(0x1f8)).toBe(0n);
  });
});

describe('a plain SEV guest', () => {
  it('keeps its registers in the VMCB and its memory under its key, and another key sees something else', () => {
    bench.load([set('rdi', DATA), set('rbx', SECRET), store('rdi', 'rbx'), hlt()]);
    for (let gfn = 0; gfn < 256; gfn++) bench.memory.encryption.adopt(bench.frameOf(gfn), bench.key);
    bench.rmp.reset();
    bench.setWord(0x58, ASID);
    bench.setLong(0x90, 3n);
    bench.setLong(RIP, BigInt(CODE));
    expect(bench.run()).toBe(0x78);
    expect(bench.core.gpr[3]).toBe(SECRET);
    expect(bench.readPrivate(DATA)).toBe(SECRET);
    expect(bench.read(DATA)).not.toBe(SECRET);
    const other = bench.memory.encryption.addKey(OTHER_KEY);
    const seen = new Uint8Array(8);
    bench.memory.encryption.readUnder(other, bench.spa(DATA), seen);
    expect(new DataView(seen.buffer).getBigUint64(0, true)).not.toBe(SECRET);
  });

  it('is no SNP guest on a machine with an RMP: its private pages are nobody’s there', () => {
    bench.load([set('rdi', DATA), set('rbx', SECRET), store('rdi', 'rbx'), hlt()]);
    for (let gfn = 0; gfn < 256; gfn++) bench.memory.encryption.adopt(bench.frameOf(gfn), bench.key);
    bench.setWord(0x58, ASID);
    bench.setLong(0x90, 3n);
    bench.setLong(RIP, BigInt(CODE));
    expect(bench.run()).toBe(0x78);
    expect(bench.readPrivate(DATA)).toBe(SECRET);
  });

  it('ignores the C-bit of a page without a key no more than AMD does: without it, memory is shared', () => {
    bench.write(PT + (DATA >>> 12) * 8, BigInt(DATA) | 3n);
    bench.load([set('rdi', DATA), set('rbx', SECRET), store('rdi', 'rbx'), hlt()]);
    for (let gfn = 0; gfn < 256; gfn++)
      if (gfn !== DATA >>> 12) bench.memory.encryption.adopt(bench.frameOf(gfn), bench.key);
    bench.rmp.reset();
    bench.setWord(0x58, ASID);
    bench.setLong(0x90, 3n);
    bench.setLong(RIP, BigInt(CODE));
    expect(bench.run()).toBe(0x78);
    expect(bench.read(DATA)).toBe(SECRET);
    expect(C_BIT).toBe(0x8000000000000n);
  });
});
