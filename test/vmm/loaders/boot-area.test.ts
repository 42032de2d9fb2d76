import { describe, expect, it } from 'vitest';
import { bootAreaBase, buildBootArea, entryRegs, entrySregs } from '../../../src/vmm/loaders/boot-area.ts';
import { ScriptedVcpu } from '../recording-process.ts';

const segment = (address: number, length: number, memoryBytes = length) => ({
  bytes: new Uint8Array(length).fill(address >>> 12),
  address,
  memoryBytes,
});

function build(
  options: { memory?: number; segments?: ReturnType<typeof segment>[]; largestPage?: '1G' | '2M' } = {},
) {
  const area = buildBootArea({
    memory: options.memory ?? 0x4000000,
    image: { segments: options.segments ?? [segment(0x400000, 0x1234, 0x5000)], entry: 0x400010 },
    stub: Uint8Array.of(0xeb, 0xfe),
    largestPage: options.largestPage ?? '1G',
  });
  const view = new DataView(area.bytes.buffer);
  return {
    ...area,
    u64: (at: number) => Number(view.getBigUint64(at, true)),
    u32: (at: number) => view.getUint32(at, true),
  };
}

/** Where `address` lies according to the tables, or undefined; walks as the processor does. */
function walk(area: ReturnType<typeof build>, address: number): number | undefined {
  let table = area.base + 0x3000;
  for (const shift of [39, 30, 21]) {
    const index = Math.floor(address / 2 ** shift) % 512;
    const entry = area.u64(table - area.base + 8 * index);
    if ((entry & 1) === 0) return undefined;
    expect(entry & 0x23).toBe(0x23);
    if ((entry & 0x80) !== 0) return Math.floor(entry / 2 ** shift) * 2 ** shift + (address % 2 ** shift);
    table = Math.floor(entry / 4096) * 4096;
  }
  return undefined;
}

describe('the boot area', () => {
  it.each([
    [0x4000000, 0x4000000],
    [0x1000, 0x200000],
    [0x4001000, 0x4200000],
    [0x10000000000, 0x10000000000],
  ])('of 0x%x bytes of RAM starts at 0x%x, outside of it', (memory, base) => {
    expect(bootAreaBase(memory)).toBe(base);
  });

  it('tells the stub entry, stack and what to copy where', () => {
    const area = build({
      segments: [segment(0x400000, 0x1234, 0x5000), segment(0x600000, 0x1000), segment(0x700000, 0, 0x9000)],
    });
    expect([area.u64(0), area.u64(8), area.u32(0x10), area.u32(0x14)]).toEqual([0x400010, 0x3fffff8, 0, 3]);
    const records = [0, 1, 2].map((index) =>
      [0, 8, 16, 24].map((field) => area.u64(0x20 + 0x20 * index + field)),
    );
    expect(records.map((record) => record.slice(1))).toEqual([
      [0x400000, 0x1234, 0xdcc],
      [0x600000, 0x1000, 0],
      [0x700000, 0, 0],
    ]);
    const source = records[0]![0]! - area.base;
    expect([...area.bytes.subarray(source + 0x1233, source + 0x1235)]).toEqual([0x400 & 0xff, 0]);
    expect(records[1]![0]).toBe(records[0]![0]! + 0x2000);
  });

  it('clears no more than the segment has', () => {
    const area = build({ segments: [segment(0x400000, 0x10, 0x18)] });
    expect(area.u64(0x38)).toBe(8);
  });

  it.each([
    ['64 MiB', 0x4000000, '1G' as const],
    ['64 MiB, no pages of 1 GiB', 0x4000000, '2M' as const],
    ['6 GiB', 6 * 2 ** 30, '1G' as const],
    ['6 GiB, no pages of 1 GiB', 6 * 2 ** 30, '2M' as const],
    ['1 TiB: more than one PDPT', 2 ** 40, '1G' as const],
  ])('maps RAM of %s, itself and all below 4 GiB one to one', (_, memory, largestPage) => {
    const area = build({ memory, largestPage });
    const end = area.base + area.bytes.length;
    for (const address of [0, 0xfff, 0x200123, memory - 1, area.base, end - 1, 0xd0000008, 0xffffffff]) {
      expect(walk(area, address)).toBe(address);
    }
    expect(walk(area, 2 ** 46)).toBeUndefined();
  });

  it('refuses a stub or an image that does not fit', () => {
    const image = { segments: [segment(0, 1)], entry: 0 };
    const options = { memory: 0x100000, image, largestPage: '1G' as const };
    expect(() => buildBootArea({ ...options, stub: new Uint8Array(0x1001) })).toThrow(
      'boot stub: got 4097 bytes',
    );
    expect(() => buildBootArea({ ...options, stub: new Uint8Array(0) })).toThrow('boot stub: got 0 bytes');
    expect(() =>
      build({ segments: Array.from({ length: 128 }, (_, index) => segment(index * 0x1000, 1)) }),
    ).toThrow('image: got 128 segments, want at most 127');
  });
});

describe('the state at the entry', () => {
  it('is 64-bit mode at CPL 0, interrupts off, no IDT, SSE on', () => {
    const sregs = entrySregs(0x4000000, new ScriptedVcpu(0, () => ({})).getSregs());
    expect(sregs).toMatchObject({
      cr0: 0x80010033n,
      cr3: 0x4003000n,
      cr4: 0x620n,
      efer: 0xd01n,
      gdt: { base: 0x4002000n, limit: 0x17 },
      idt: { base: 0n, limit: 0 },
      cs: { selector: 8, type: 11, dpl: 0, l: 1, db: 0, present: 1, s: 1 },
      ss: { selector: 16, type: 3, dpl: 0, present: 1, s: 1 },
      tr: { type: 11, present: 1, s: 0 },
      apicBase: 0xfee00900n,
    });
  });

  it('has the vCPU’s index in RDI and nothing else but RIP and RFLAGS', () => {
    const { rdi, rip, rflags, ...others } = entryRegs(0x4000000, 3);
    expect([rdi, rip, rflags]).toEqual([3n, 0x4001000n, 2n]);
    expect(new Set(Object.values(others))).toEqual(new Set([0n]));
  });

  it('has a GDT whose entries are what the selectors say', () => {
    const view = new DataView(build().bytes.buffer);
    const entries = [0x2000, 0x2008, 0x2010].map((at) => view.getBigUint64(at, true));
    expect(entries).toEqual([0n, 0x00af9b000000ffffn, 0x00cf93000000ffffn]);
  });
});
