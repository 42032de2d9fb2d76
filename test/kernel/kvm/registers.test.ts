import { afterEach, describe, expect, it } from 'vitest';
import type { Segment, Sregs } from '../../../src/kernel/interface.ts';
import { supportedCpuid } from '../../../src/kernel/kvm/cpuid.ts';
import { HLT, VcpuBench } from './vcpu-bench.ts';

let bench: VcpuBench;
afterEach(() => bench.close());

const NAMES = [
  'rax',
  'rbx',
  'rcx',
  'rdx',
  'rsi',
  'rdi',
  'rsp',
  'rbp',
  'r8',
  'r9',
  'r10',
  'r11',
  'r12',
  'r13',
  'r14',
  'r15',
] as const;
const segment = (fields: Partial<Segment>): Segment => ({
  base: 0n,
  limit: 0xffff,
  selector: 0,
  type: 3,
  present: 1,
  dpl: 0,
  db: 0,
  s: 1,
  l: 0,
  g: 0,
  avl: 0,
  unusable: 0,
  ...fields,
});

describe('a new vCPU', () => {
  it.each([
    [0, 0xfee00900n],
    [1, 0xfee00800n],
  ])('vCPU %i has the reset state', (id, apicBase) => {
    bench = new VcpuBench('7.2', id);
    const zero = Object.fromEntries(NAMES.map((name) => [name, 0n]));
    expect(bench.vcpu.getRegs()).toEqual({ ...zero, rdx: 0x600n, rip: 0xfff0n, rflags: 2n });
    const data = segment({});
    expect(bench.vcpu.getSregs()).toEqual({
      cs: segment({ selector: 0xf000, base: 0xffff0000n, type: 10 }),
      ds: data,
      es: data,
      fs: data,
      gs: data,
      ss: segment({ type: 2 }),
      tr: segment({ type: 3, s: 0 }),
      ldt: segment({ type: 2, s: 0 }),
      gdt: { base: 0n, limit: 0xffff },
      idt: { base: 0n, limit: 0xffff },
      cr0: 0x60000010n,
      cr2: 0n,
      cr3: 0n,
      cr4: 0n,
      cr8: 0n,
      efer: 0n,
      apicBase,
      interruptBitmap: [0n, 0n, 0n, 0n],
    });
  });

  it('has a VMCB that VMRUN accepts', () => {
    bench = new VcpuBench();
    const { vmcb } = bench.vcpu;
    expect(vmcb.long(0x4d0)).toBe(0x1000n);
    expect(vmcb.word(0x58)).toBe(1);
    expect(vmcb.word(0x10) & 1).toBe(1);
    expect(vmcb.long(0x90)).toBe(1n);
    expect(vmcb.long(0xb0)).toBe(BigInt(bench.mmu.root));
    expect(vmcb.long(0x668)).toBe(0x0007040600070406n);
    expect(vmcb.long(0x560)).toBe(0x400n);
    expect(vmcb.long(0x568)).toBe(0xffff0ff0n);
  });

  it('intercepts every port, and every MSR but those that are the guest’s own', () => {
    bench = new VcpuBench();
    const { memory, vcpu } = bench;
    const ports = new Uint8Array(0x2001);
    memory.read(Number(vcpu.vmcb.long(0x40)) as never, ports);
    expect(ports.every((byte) => byte === 0xff)).toBe(true);
    const map = new Uint8Array(0x2000);
    memory.read(Number(vcpu.vmcb.long(0x48)) as never, map);
    const open: number[] = [];
    map.forEach((byte, i) => {
      for (let bit = 0; bit < 8; bit++) if ((byte & (1 << bit)) === 0) open.push(i * 8 + bit);
    });
    const bits = (msr: number) => {
      const third = 0x8000 + (msr - 0xc001_0000) * 2;
      const first = msr < 0x2000 ? msr * 2 : msr < 0xc001_0000 ? 0x4000 + (msr - 0xc000_0000) * 2 : third;
      return [first, first + 1];
    };
    const expected = [
      0x174, 0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, 0xc0000100, 0xc0000101, 0xc0000102, 0xc0010130,
    ].flatMap(bits);
    const readOfTsc = 0x20;
    expect(open).toEqual([readOfTsc, ...expected]);
  });
});

describe('KVM_SET_REGS', () => {
  it('what is set is read back, before the first run and after it', () => {
    bench = new VcpuBench();
    const regs = {
      ...Object.fromEntries(NAMES.map((name, i) => [name, 0x1111_2222_3333_4400n + BigInt(i)])),
      rip: 0xffff_ffff_8000_0000n,
      rflags: 0x246n,
    } as ReturnType<typeof bench.vcpu.getRegs>;
    bench.vcpu.setRegs(regs);
    expect(bench.vcpu.getRegs()).toEqual(regs);
    bench.runScript(HLT);
    expect(bench.vcpu.getRegs()).toEqual({ ...regs, rip: regs.rip + 1n });
    expect(bench.scripted.gpr[7]).toBe(regs.rdi);
  });

  it('keeps the bit of RFLAGS that is always set', () => {
    bench = new VcpuBench();
    bench.setRegs({ rflags: 0n });
    expect(bench.vcpu.getRegs().rflags).toBe(2n);
  });
});

describe('KVM_SET_SREGS', () => {
  const LONG: Partial<Sregs> = { cr0: 0x80000011n, cr4: 0x20n, efer: 0x500n, cr3: 0x5000n };

  it('takes 64-bit mode and gives it back', () => {
    bench = new VcpuBench();
    bench.setSregs({
      ...LONG,
      cs: segment({ selector: 8, type: 11, l: 1, limit: 0xffffffff, g: 1 }),
      ss: segment({ selector: 0x18, dpl: 3, limit: 0xffffffff, g: 1, db: 1 }),
      gdt: { base: 0x9000n, limit: 0x37 },
      cr2: 0xdead000n,
      cr8: 5n,
    });
    expect(bench.vcpu.getSregs()).toMatchObject({
      ...LONG,
      cs: { selector: 8, type: 11, l: 1, limit: 0xffffffff, g: 1 },
      ss: { dpl: 3, db: 1 },
      gdt: { base: 0x9000n, limit: 0x37 },
      cr2: 0xdead000n,
      cr8: 5n,
    });
    expect(bench.vcpu.vmcb.cpl).toBe(3);
    bench.runScript(HLT);
    expect(bench.vcpu.getSregs().cr8).toBe(5n);
  });

  it('g follows the limit, an unusable segment is not present, and TR is busy', () => {
    bench = new VcpuBench();
    bench.setSregs({
      ds: segment({ limit: 0xfffff, g: 1 }),
      fs: segment({ unusable: 1 }),
      gs: segment({ present: 0 }),
      tr: segment({ type: 9, s: 0 }),
    });
    expect(bench.vcpu.getSregs()).toMatchObject({
      ds: { g: 0 },
      fs: { present: 0, unusable: 1 },
      gs: { present: 0, unusable: 1 },
      tr: { type: 11 },
    });
  });

  it('queues the interrupt of the bitmap', () => {
    bench = new VcpuBench();
    bench.setSregs({ interruptBitmap: [0n, 1n << 3n, 0n, 0n] });
    expect(bench.vcpu.getSregs().interruptBitmap).toEqual([0n, 8n, 0n, 0n]);
    bench.runScript(HLT);
    expect(bench.scripted.eventInjections).toEqual([0x8000_0043n]);
  });

  it.each<[string, Partial<Sregs>]>([
    ['long mode without PAE', { ...LONG, cr4: 0n }],
    ['LME and paging without LMA', { ...LONG, efer: 0x100n }],
    ['cr3 beyond the physical width', { ...LONG, cr3: 1n << 36n }],
    ['LMA without paging', { efer: 0x400n }],
    ['cs.l without long mode', { cs: segment({ l: 1 }) }],
    ['cr0 above 32 bits', { cr0: 1n << 32n }],
    ['NW without CD', { cr0: 0x20000000n }],
    ['PG without PE', { cr0: 0x80000000n }],
    ['a reserved bit of cr4', { cr4: 1n << 40n }],
    ['a reserved bit of EFER', { efer: 1n << 30n }],
    ['a reserved bit of apic_base', { apicBase: 0xfee00900n | 1n }],
    ['x2APIC without the feature', { apicBase: 0xfee00d00n }],
  ])('%s: EINVAL, and nothing changed', (_title, sregs) => {
    bench = new VcpuBench();
    const before = bench.vcpu.getSregs();
    expect(() => bench.setSregs({ ...sregs, cr2: 0x123n })).toThrow(expect.objectContaining({ errno: 22 }));
    expect(bench.vcpu.getSregs()).toEqual(before);
  });

  it('after KVM_SET_CPUID2 knows what the guest’s processor has', () => {
    bench = new VcpuBench();
    bench.vcpu.setCpuid2(supportedCpuid().filter((entry) => entry.function !== 0x80000001));
    expect(() => bench.setSregs({ efer: 0x800n })).toThrow(expect.objectContaining({ errno: 22 }));
    expect(() => bench.setSregs({ cr4: 1n << 12n })).toThrow(expect.objectContaining({ errno: 22 }));
    bench.vcpu.setCpuid2(supportedCpuid());
    bench.setSregs({ efer: 0x800n });
    bench.setSregs({ ...LONG, cr3: 1n << 40n });
    expect(bench.vcpu.getSregs().cr3).toBe(1n << 40n);
  });
});

it.each([
  ['as after reset', () => {}, 0n],
  ['with a bit in an x87 register', () => bench.scripted.x87.set([1], 32), 1n],
  ['with a bit in XMM0', () => bench.scripted.xmm.set([1], 5), 2n],
  ['with another MXCSR', () => void (bench.scripted.mxcsr = 0x1f00), 2n],
])('KVM_GET_XSAVE says which parts are not as after reset: %s', (_, change, want) => {
  bench = new VcpuBench();
  bench.runScript(HLT);
  change();
  const image = bench.vcpu.getXsave();
  expect(new DataView(image.buffer, image.byteOffset).getBigUint64(512, true)).toBe(want);
});

it('the C-bit of leaf 0x8000001F is no address bit of a plain VM', () => {
  bench = new VcpuBench();
  const leaf = (number: number, eax: number, ebx: number) =>
    ({ function: number, index: 0, flags: 0, eax, ebx, ecx: 0, edx: 0 }) as const;
  const LONG_MODE = { ...leaf(0x8000_0001, 0, 0), edx: 1 << 29 };
  bench.vcpu.setCpuid2([leaf(0x8000_0008, 0x3030, 0), leaf(0x8000_001f, 2, 51), LONG_MODE]);
  bench.enterLongMode();
  expect(() => bench.setSregs({ cr3: 1n << 51n })).toThrow('EINVAL');
  bench.setSregs({ cr3: 1n << 47n });
});
