/** PVALIDATE, RMPADJUST and RMPQUERY as tables: every result and fault, and which of two comes first (reference svm.md, section 6). Numbers are written out. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Pfn, Spa } from '../../../src/base/address.ts';
import { Code, hlt, load, op, set } from './assembler.ts';
import { CODE, DATA, EXITINFO1, EXITINFO2, HANDLERS, PT, RIP, STACK } from './guest-bench.ts';
import { SHARED } from './snp-bench.ts';
import { LARGE, type Size, SnpLargeBench } from './snp-large-bench.ts';

const HLT = 0x78;
const NPF = 0x400;
/** EXITINFO1: P and U, and those with RMP; the access was to the final address, encrypted; the sizes differ. */
const RMP = 0x8000_0005n;
const FINAL = 1n << 32n;
const ENC = 1n << 34n;
const SIZEM = 1n << 35n;
const GP = 13;
const PF = 14;
const UD = 6;
const VC = 29;
/** Nothing is mapped here. */
const NOWHERE = 0x60_0000;

let bench: SnpLargeBench;
beforeEach(() => {
  bench = new SnpLargeBench();
  for (const vector of [UD, GP, PF, VC]) {
    bench.gate(vector, HANDLERS + vector * 64);
    bench.load([hlt()], HANDLERS + vector * 64);
  }
});
afterEach(() => bench.close());

/** How the instruction ended: EAX, an exception with its error code, or a nested fault with EXITINFO1. */
type Outcome = number | readonly [vector: number, error: bigint | undefined] | bigint;

function outcome(code: number): Outcome {
  if (code === NPF) return bench.long(EXITINFO1);
  expect(code).toBe(HLT);
  const rip = Number(bench.vmsaLong(0x178)) - 1;
  const vector = [UD, GP, PF, VC].find((each) => rip === HANDLERS + each * 64);
  if (vector === undefined) return Number(bench.vmsaLong(0x1f8));
  // With an error code the frame is 48 bytes.
  return [vector, vector === UD ? undefined : bench.readPrivate(STACK - 48)];
}

const program = (
  code: Parameters<typeof op>[0],
  address: number | bigint,
  size: number,
  attributes: number,
) => [set('rax', address), set('rcx', size), set('rdx', attributes), op(code), hlt()];
/** Executes it on the launched guest. `spoil` comes after the launch. */
function execute(
  code: Parameters<typeof op>[0],
  address: number | bigint,
  size: number,
  attributes: number,
  spoil: () => void = () => undefined,
): Outcome {
  bench.load(program(code, address, size, attributes));
  bench.launch();
  spoil();
  return outcome(bench.run());
}
const INSTRUCTIONS = [
  ['PVALIDATE', Code.Pvalidateq, 0],
  ['RMPADJUST', Code.Rmpadjust, 0x0101],
  ['RMPQUERY', Code.Rmpquery, 1],
] as const;
const unmap = (): void => {
  bench.write(PT + (DATA >>> 12) * 8, 0n);
};
const noLongerMapped = (): void => bench.map(DATA >>> 12, 0, 0n);

for (const [name, code, attributes] of INSTRUCTIONS)
  describe(`${name}, whatever it is asked`, () => {
    const run = (address: number | bigint, size = 0, spoil?: () => void): Outcome =>
      execute(code, address, size, attributes, spoil);

    it('is fine with a page of the guest', () => {
      expect(run(DATA)).toBe(0);
    });

    it('is #UD for a guest that is not SNP-active, before #GP(0) for its level', () => {
      for (let gfn = 0; gfn < 256; gfn++) bench.write(PT + gfn * 8, BigInt(gfn * 4096) | 7n);
      bench.load(program(code, DATA, 0, attributes));
      bench.setLong(RIP, BigInt(CODE));
      bench.becomeUser();
      expect(bench.run()).toBe(HLT);
      expect(bench.long(RIP)).toBe(BigInt(HANDLERS + UD * 64));
    });

    it('is #GP(0) at CPL 3', () => {
      for (let gfn = 0; gfn < 256; gfn++) bench.write(PT + gfn * 8, bench.read(PT + gfn * 8) | 4n);
      bench.load(program(code, DATA, 2, attributes));
      const user = { cs: 0x10, ss: 0x20 };
      bench.segment(user.cs, 0x23, 0xafb);
      bench.segment(user.ss, 0x1b, 0xcf3);
      bench.memory.write((bench.vmcb + 0x4cb) as Spa, Uint8Array.of(3));
      bench.launch();
      expect(bench.run()).toBe(HLT);
      expect(Number(bench.vmsaLong(0x178))).toBe(HANDLERS + GP * 64 + 1);
      // Nothing was answered: the HLT behind it would be #GP(0) as well.
      expect(bench.vmsaLong(0x1f8)).toBe(BigInt(DATA));
    });

    it.each([
      ['the last byte of a page', NOWHERE + 0xfff],
      ['the first byte behind a page', NOWHERE + 1],
    ])('answers 1 for %s, before anything is looked up', (_what, address) => {
      expect(run(address)).toBe(1);
    });

    it('is #GP(0) at an address that is not canonical', () => {
      expect(run(1n << 47n)).toEqual([GP, 0n]);
    });

    it('is #PF where the guest’s tables have nothing, before the RMP is asked', () => {
      unmap();
      expect(run(DATA, 0, () => bench.change({ asid: 6 }))).toEqual([PF, 0n]);
      expect(bench.vmsaLong(0x240)).toBe(BigInt(DATA));
    });

    it('is #PF with the reserved bit for a leaf without the C-bit, before the nested tables and the RMP are asked', () => {
      bench.write(PT + (DATA >>> 12) * 8, BigInt(DATA) | 3n);
      expect(
        run(DATA, 0, () => {
          noLongerMapped();
          bench.change({ asid: 6 });
        }),
      ).toEqual([PF, 9n]);
      bench.close();
      bench = new SnpLargeBench();
      bench.gate(PF, HANDLERS + PF * 64);
      bench.load([hlt()], HANDLERS + PF * 64);
      expect(run(SHARED)).toEqual([PF, 9n]);
    });

    it('is a nested fault without the RMP’s bit where the nested tables have nothing', () => {
      expect(run(DATA, 0, noLongerMapped)).toBe(4n | FINAL | ENC);
      expect(bench.long(EXITINFO2)).toBe(BigInt(DATA));
    });

    it.each([
      ['the hypervisor’s', { assigned: false, gpa: 0, asid: 0, validated: false }],
      ['firmware’s', { asid: 0, immutable: true, gpa: 0, validated: false }],
      ['another guest’s', { asid: 6 }],
      ['at another address of the guest', { gpa: DATA + 4096 }],
      ['at an address 4 GiB above', { gpa: DATA + 2 ** 32 }],
      ['immutable', { immutable: true }],
      ['another guest’s and not validated', { asid: 6, validated: false }],
    ])('is a nested fault for a page that is %s', (_what, over) => {
      expect(run(DATA, 0, () => bench.change(over))).toBe(RMP | FINAL | ENC);
      expect(bench.long(EXITINFO2)).toBe(BigInt(DATA));
    });
  });

for (const [name, code, attributes] of INSTRUCTIONS.slice(0, 2))
  describe(`${name}, which is told a size`, () => {
    const run = (address: number | bigint, size: number, spoil?: () => void): Outcome =>
      execute(code, address, size, attributes, spoil);

    // FAIL_INPUT, before anything is looked up.
    it.each([
      ['size 2', NOWHERE, 2],
      ['size 0x80000000', NOWHERE, 0x8000_0000],
      ['4 KiB at the last byte of a page', NOWHERE + 0xfff, 0],
      ['4 KiB at the first byte behind a page', NOWHERE + 1, 0],
      ['2 MiB at 4 KiB', NOWHERE + 0x1000, 1],
      ['2 MiB at 1 MiB', NOWHERE + 0x10_0000, 1],
      ['a size beside an address that is not canonical', 1n << 47n, 2],
    ])('answers 1 for %s', (_what, address, size) => {
      expect(run(address, size)).toBe(1);
    });

    // Guest tables, nested tables, RMP; what 4 KiB and 2 MiB come to.
    it.each<[Size, Size, Size, Outcome, Outcome]>([
      ['large', 'large', 'large', RMP | FINAL | ENC | SIZEM, 0],
      ['large', 'large', 'small', RMP | FINAL | ENC | SIZEM, 6],
      ['large', 'small', 'large', RMP | FINAL | ENC | SIZEM, 6],
      ['large', 'small', 'small', 0, 6],
      ['small', 'large', 'large', RMP | FINAL | ENC | SIZEM, 6],
      ['small', 'large', 'small', RMP | FINAL | ENC | SIZEM, 6],
      ['small', 'small', 'large', RMP | FINAL | ENC | SIZEM, 6],
      ['small', 'small', 'small', 0, 6],
    ])('with guest %s, nested %s and RMP %s pages', (guest, nested, table, of4K, of2M) => {
      for (const [size, want] of [
        [0, of4K],
        [1, of2M],
      ] as const) {
        bench.mapRegion(guest, nested, table);
        expect(run(LARGE, size), `size ${size}`).toBe(want);
        bench.close();
        bench = new SnpLargeBench();
      }
    });

    it('says whose the page is before it says that the sizes differ', () => {
      bench.mapRegion('large', 'large', 'small');
      expect(run(LARGE, 1, () => bench.setRegion('small', { asid: 6 }))).toBe(RMP | FINAL | ENC);
    });
  });

describe('PVALIDATE', () => {
  const CF = 1n;
  const ARITHMETIC = 0x8d5n;
  const flags = (): bigint => bench.vmsaLong(0x170) & ARITHMETIC;
  const pvalidate = (size: number, validated: number, spoil?: () => void, address = DATA): Outcome =>
    execute(Code.Pvalidateq, address, size, validated, spoil);

  // Validated before, EDX; Validated after, CF.
  it.each([
    [false, 0, false, CF],
    [false, 1, true, 0n],
    [true, 0, false, 0n],
    [true, 1, true, CF],
    [false, 2, false, CF],
    [false, 3, true, 0n],
  ])(
    'of a page whose bit is %s with EDX %d: EAX is 0, the bit becomes %s, CF says whether it was so',
    (was, edx, is, cf) => {
      expect(pvalidate(0, edx, () => bench.change({ validated: was }))).toBe(0);
      expect(bench.rmp.entry(bench.frameOf(DATA >>> 12)).validated).toBe(is);
      expect(flags()).toBe(cf);
    },
  );

  it.each([
    ['1', 0, DATA + 8],
    ['6', 1, 0],
  ])('with result %s has all arithmetic flags clear', (code, size, address) => {
    expect(pvalidate(size, 1, undefined, address)).toBe(Number(code));
    expect(flags()).toBe(0n);
  });

  it.each([
    ['4 KiB', 0, DATA, 1],
    ['2 MiB', 1, LARGE, 512],
  ])('tells the trace of %s', (_, size, address, pages) => {
    if (size === 1) bench.mapRegion('large', 'large', 'large');
    expect(pvalidate(size, 0, undefined, address)).toBe(0);
    const told = bench.events.filter(({ what }) => what === 'rescind validation');
    expect(told).toMatchObject([{ kind: 'page', who: 'core', gfn: address / 4096, pages }]);
  });

  it('lets the guest at every page of a validated 2 MiB page', () => {
    bench.mapRegion('large', 'large', 'large');
    bench.load([set('rdi', LARGE + 0x5000), load('rbx', 'rdi'), hlt()]);
    bench.launch();
    expect(bench.run()).toBe(HLT);
  });

  it('flips the one bit of a 2 MiB page', () => {
    bench.mapRegion('large', 'large', 'large');
    expect(pvalidate(1, 0, undefined, LARGE)).toBe(0);
    for (const i of [0, 1, 511]) expect(bench.rmp.state((bench.region + i) as Pfn)).toBe('guest-invalid');
  });

  it('says that the sizes differ before it says that nothing changed', () => {
    bench.mapRegion('large', 'large', 'small');
    expect(pvalidate(1, 1, undefined, LARGE)).toBe(6);
    expect(flags()).toBe(0n);
  });

  it('is #GP(0) at another VMPL than 0, whatever it is asked', () => {
    for (const vmpl of [1, 3]) {
      expect(pvalidate(2, 1, () => bench.atVmpl(vmpl))).toEqual([GP, 0n]);
      bench.close();
      bench = new SnpLargeBench();
      bench.gate(GP, HANDLERS + GP * 64);
      bench.load([hlt()], HANDLERS + GP * 64);
    }
  });

  it('that takes the bit away is felt at the next access', () => {
    bench.load([
      set('rdi', DATA),
      load('rbx', 'rdi'),
      ...program(Code.Pvalidateq, DATA, 0, 0).slice(0, -1),
      load('rbx', 'rdi'),
      hlt(),
    ]);
    bench.launch();
    expect(outcome(bench.run())).toEqual([VC, 0x404n]);
    expect(bench.vmsaLong(0x240)).toBe(BigInt(DATA));
  });
});

describe('RMPADJUST', () => {
  const adjust = (
    attributes: number,
    spoil?: () => void,
    address: number | bigint = DATA,
    size = 0,
  ): Outcome => execute(Code.Rmpadjust, address, size, attributes, spoil);

  // The VMPL of the guest, RDX; EAX, and the masks of VMPL3 to 0 afterwards. Every VMPL begins with everything, and VMPL1 with 0x0f.
  it.each([
    [0, 0x0001, 0, 0x1f1f001f],
    [0, 0x1f03, 0, 0x1f1f0f1f],
    [0, 0x0102, 0, 0x1f010f1f],
    [0, 0x0100, 2, 0x1f1f0f1f],
    [0, 0x0104, 1, 0x1f1f0f1f],
    [0, 0x01ff, 1, 0x1f1f0f1f],
    [0, 0x2001, 2, 0x1f1f0f1f],
    [0, 0x20101, 1, 0x1f1f0f1f],
    [0, 0x8000_0101 | 0, 1, 0x1f1f0f1f],
    [1, 0x0f02, 0, 0x1f0f0f1f],
    [1, 0x1002, 2, 0x1f1f0f1f],
    [1, 0x0101, 2, 0x1f1f0f1f],
    [1, 0x0100, 2, 0x1f1f0f1f],
    [2, 0x1003, 0, 0x101f0f1f],
    [2, 0x0102, 2, 0x1f1f0f1f],
    [3, 0x0103, 2, 0x1f1f0f1f],
    [3, 0x0104, 1, 0x1f1f0f1f],
  ])('by VMPL%d of %#x answers %d', (vmpl, attributes, code, masks) => {
    const spoil = (): void => {
      bench.atVmpl(vmpl);
      bench.change({ permissions: 0x1f1f0f1f });
    };
    expect(adjust(attributes, spoil)).toBe(code);
    expect(bench.permissions).toBe(masks);
  });

  // Zero is told by ZF, which is clear for every failure.
  it.each([
    [0x0101, 0, 0x40n],
    [0x0100, 2, 0n],
    [0x0104, 1, 0n],
  ])('of %#x answers %d, and the flags follow it', (attributes, code, flags) => {
    expect(adjust(attributes)).toBe(code);
    expect(bench.vmsaLong(0x170) & 0x8d5n).toBe(flags);
  });

  it.each([
    ['a reserved bit before the level', 0x2_0100, DATA, 0, 1],
    ['the size before the level', 0x0100, DATA, 2, 1],
    ['the address before the level', 0x0100, DATA + 8, 0, 1],
    ['the level before the address’s form', 0x0100, 1n << 47n, 0, 2],
    ['the level before the guest’s tables', 0x0100, NOWHERE, 0, 2],
  ])('looks at %s', (_what, attributes, address, size, code) => {
    expect(adjust(attributes, undefined, address, size)).toBe(code);
  });

  it('is #VC 0x404 for a page that is not validated, before the masks are compared', () => {
    expect(adjust(0x2001, () => bench.change({ validated: false }))).toEqual([VC, 0x404n]);
    expect(bench.vmsaLong(0x240)).toBe(BigInt(DATA));
  });

  // Of one page that is not validated: the nested fault of 4 KiB in a 2 MiB entry comes before #VC, the answer that 2 MiB do not fit comes after.
  it.each<[Size, number, Outcome]>([
    ['large', 0, RMP | FINAL | ENC | SIZEM],
    ['small', 1, [VC, 0x404n]],
    ['small', 0, [VC, 0x404n]],
    ['large', 1, [VC, 0x404n]],
  ])(
    'of a page that is not validated, with %s RMP entries, asked for size %d, is %s',
    (table, size, want) => {
      bench.mapRegion('large', table, table);
      const spoil = (): void => bench.setRegion(table, { validated: false });
      expect(adjust(0x0101, spoil, LARGE, size)).toEqual(want);
    },
  );

  it('says that 2 MiB do not fit before it compares the masks', () => {
    bench.mapRegion('large', 'small', 'small');
    expect(adjust(0x2001, undefined, LARGE, 1)).toBe(6);
  });

  // The VMPL of the guest, the mark before, RDX; the mark after.
  it.each([
    [0, false, 0x1_0001, true],
    [0, true, 0x0_0001, false],
    [0, true, 0x1_0001, true],
    [1, false, 0x1_0002, false],
    [1, true, 0x0_0002, true],
  ])('by VMPL%d of a page with VMSA %s, RDX %#x: it is %s', (vmpl, was, attributes, is) => {
    const spoil = (): void => {
      bench.atVmpl(vmpl);
      bench.change({ vmsa: was, permissions: 0x1f1f1f1f });
    };
    expect(adjust(attributes, spoil)).toBe(0);
    expect(bench.rmp.entry(bench.frameOf(DATA >>> 12)).vmsa).toBe(is);
  });

  it('of 2 MiB changes the masks of the one entry', () => {
    bench.mapRegion('large', 'large', 'large');
    expect(adjust(0x0703, undefined, LARGE, 1)).toBe(0);
    expect(bench.rmp.entry((bench.region + 511) as Pfn).permissions).toBe(0x0700001f);
  });
});

describe('RMPQUERY', () => {
  it.each([
    ['milan', [UD, undefined]],
    ['genoa', 0],
    ['turin', 0],
  ] as const)('of a %s, by its CPUID 0x8000001F EAX bit 6, gives %j', (chip, expected) => {
    bench.close();
    bench = new SnpLargeBench(chip);
    bench.gate(UD, HANDLERS + UD * 64);
    bench.load([hlt()], HANDLERS + UD * 64);
    expect(execute(Code.Rmpquery, DATA, 0, 1)).toEqual(expected);
  });

  it('is #UD on a Milan at CPL 3 as well, before #GP(0) for its level', () => {
    bench.close();
    bench = new SnpLargeBench('milan');
    bench.gate(UD, HANDLERS + UD * 64);
    bench.load([hlt()], HANDLERS + UD * 64);
    for (let gfn = 0; gfn < 256; gfn++) bench.write(PT + gfn * 8, bench.read(PT + gfn * 8) | 4n);
    bench.load(program(Code.Rmpquery, DATA, 0, 1));
    bench.segment(0x10, 0x23, 0xafb);
    bench.segment(0x20, 0x1b, 0xcf3);
    bench.memory.write((bench.vmcb + 0x4cb) as Spa, Uint8Array.of(3));
    bench.launch();
    bench.run();
    expect(Number(bench.vmsaLong(0x178))).toBe(HANDLERS + UD * 64 + 1);
  });

  /** EAX, RCX, RDX. */
  const query = (target: number, spoil?: () => void, address: number | bigint = DATA, size = 0) => [
    execute(Code.Rmpquery, address, size, target, spoil),
    bench.vmsaLong(0x308),
    bench.vmsaLong(0x310),
  ];

  it.each([
    [0, 0, 0, 0x1f00n],
    [0, 1, 0, 0x0701n],
    [0, 2, 0, 0x0302n],
    [0, 3, 0, 0x0103n],
    [1, 1, 0, 0x0701n],
    [3, 3, 0, 0x0103n],
    [1, 0, 2, 0n],
    [3, 2, 2, 2n],
    [0, 4, 1, 4n],
    [0, 0xff, 1, 0xffn],
  ])('by VMPL%d about VMPL%d answers %d with the mask', (vmpl, target, code, rdx) => {
    const spoil = (): void => {
      bench.atVmpl(vmpl);
      bench.change({ permissions: 0x0103071f });
    };
    expect(query(target, spoil)).toEqual([code, 0n, rdx]);
  });

  it('tells of a VMSA, and of 2 MiB', () => {
    bench.mapRegion('large', 'large', 'large');
    const spoil = (): void => bench.setRegion('large', { vmsa: true, permissions: 0x0000071f });
    expect(query(1, spoil, LARGE)).toEqual([0, 1n, 0x1_0701n]);
  });

  it('takes no size: RCX is a result alone, and stays what it was where there is none', () => {
    expect(query(1, undefined, DATA, 7)).toEqual([0, 0n, 1n]);
    bench.close();
    bench = new SnpLargeBench();
    expect(query(4, undefined, DATA, 7)).toEqual([1, 7n, 4n]);
    bench.close();
    bench = new SnpLargeBench();
    bench.gate(PF, HANDLERS + PF * 64);
    bench.load([hlt()], HANDLERS + PF * 64);
    expect(query(1, undefined, NOWHERE, 7)).toEqual([[PF, 0n], 7n, 1n]);
  });

  it('is #VC 0x404 for a page that is not validated', () => {
    expect(query(1, () => bench.change({ validated: false }))[0]).toEqual([VC, 0x404n]);
  });
});
