import { afterEach, describe, expect, it } from 'vitest';
import { Machine } from './machine.ts';

let machine: Machine;
afterEach(() => machine.close());

interface Entry {
  leaf: number;
  subleaf?: number;
  xcr0?: number;
  xss?: number;
  registers?: readonly [eax: number, ebx: number, ecx: number, edx: number];
  reserved?: number;
}
type Registers = readonly [number, number, number, number];

function tableOf(entries: readonly Entry[], count = entries.length, size = 4096): Uint8Array {
  const page = new Uint8Array(size);
  const view = new DataView(page.buffer);
  view.setUint32(0, count, true);
  entries.forEach((entry, i) => {
    const at = 16 + i * 48;
    view.setUint32(at, entry.leaf, true);
    view.setUint32(at + 4, entry.subleaf ?? 0, true);
    view.setUint32(at + 8, entry.xcr0 ?? 0, true);
    view.setUint32(at + 16, entry.xss ?? 0, true);
    (entry.registers ?? [0, 0, 0, 0]).forEach((value, n) => {
      view.setUint32(at + 24 + n * 4, value, true);
    });
    view.setUint32(at + 40, entry.reserved ?? 0, true);
  });
  return page;
}

const registersOf = (table: Uint8Array, i: number): Registers => {
  const view = new DataView(table.buffer, table.byteOffset);
  return [0, 1, 2, 3].map((n) => view.getUint32(16 + i * 48 + 24 + n * 4, true)) as unknown as Registers;
};

/** Has firmware look at entries of a CPUID page: its status, and the entry as the host finds it after a failure. */
function check(entries: readonly Entry[], generation: 'milan' | 'genoa' | 'turin' = 'genoa') {
  machine = new Machine({ generation }).init();
  const context = machine.startGuest();
  const page = machine.preGuestPage(0x3000, tableOf(entries));
  const status = machine.launchUpdate(context, page, 6);
  return { status, page, state: machine.stateOf(page), registers: registersOf(machine.read(page, 4096), 0) };
}

describe('CPUID pages', () => {
  it.each([
    // leaf, subleaf, registers; undefined: fine, else as they should have been (Genoa)
    [0, 0, [0x10, 1, 2, 3], undefined],
    [0, 0, [0x11, 1, 2, 3], [0x10, 1, 2, 3]],
    [0, 256, [0x00a10f11, 0x800, 0, 0], [0, 0, 0, 0]],
    [0xffff, 0, [1, 0, 0, 0], [0, 0, 0, 0]],
    [0x10000, 0, [1, 2, 3, 4], undefined],
    [0x8000ffff, 0, [0, 0, 0, 1], [0, 0, 0, 0]],
    [0x80010000, 0, [1, 2, 3, 4], undefined],
    [1, 0, [0x00a10f11, 0x800, 0, 0], undefined],
    [1, 0, [0x00a10f10, 0x800, 0, 0], undefined],
    [1, 0, [0x00800f12, 0x800, 0, 0], undefined],
    [1, 0, [0x00a10f12, 0x800, 0, 0], [0x00a10f11, 0x800, 0, 0]],
    [1, 0, [0x00b00f21, 0x800, 0, 0], [0x00a10f11, 0x800, 0, 0]],
    [1, 0, [0x00a00f11, 0xff010801, 0, 0], [0x00a00f11, 0xff010800, 0, 0]],
    [1, 0, [0, 0, 0, 0], [0, 0x800, 0, 0]],
    [1, 0, [0, 0x800, 0xfefa320b, 0], undefined],
    [1, 0, [0, 0x800, 0x01000000, 0], [0, 0x800, 0, 0]],
    [1, 0, [0, 0x800, 0, 0xffffffff], [0, 0x800, 0, 0x178bfbff]],
    [6, 0, [4, 0, 1, 0], undefined],
    [6, 0, [5, 1, 3, 1], [4, 0, 1, 0]],
    [7, 0, [1, 0xf1bf97a9, 0x00415fde, 0x10000010], undefined],
    [7, 0, [2, 0xffffffff, 0xffffffff, 0xffffffff], [1, 0xf1bf97a9, 0x00415fde, 0x10000010]],
    [7, 1, [0x20, 0, 0, 0], undefined],
    [7, 2, [1, 0, 0, 0], [0, 0, 0, 0]],
    [0xb, 0, [0x1f, 0xffff, 0xffff, 5], undefined],
    [0xb, 0, [0x20, 0, 0, 0], [0, 0, 0, 0]],
    [0xd, 2, [0x100, 0x240, 0, 0], undefined],
    [0xd, 2, [0, 0, 0, 0], [0x100, 0x240, 0, 0]],
    [0xd, 9, [8, 0x980, 0, 0], undefined],
    [0x80000000, 0, [0x80000028, 0, 0, 0], undefined],
    [0x80000000, 0, [0x80000029, 0, 0, 0], [0x80000028, 0, 0, 0]],
    [0x80000001, 0, [0x00a10f11, 0x40000000, 0x75c237ff, 0x2fd3fbff], undefined],
    [0x80000001, 0, [0x00a10f11, 1, 0xffffffff, 0xffffffff], [0x00a10f11, 0, 0x75c237ff, 0x2fd3fbff]],
    [0x80000008, 0, [0x00ff3934, 0x79bef35f, 0xf0ff, 0x10007], undefined],
    [0x80000008, 0, [0x003a35, 0, 0, 0x20008], [0x3934, 0, 0, 0x10007]],
    [0x80000008, 0, [0x003034, 0, 0, 0], undefined],
    [0x8000001f, 0, [0x1a, 0x00004073, 0xffffffff, 0xffffffff], undefined],
    [0x8000001f, 0, [0xffffffff, 0x00005072, 0, 0], [0x030fffff, 0x00004073, 0, 0]],
    [0x80000021, 0, [0x18062fcf, 0xfff, 0, 0], undefined],
    [0x80000022, 0, [7, 0xf8000106, 1, 0], undefined],
    [0x80000022, 0, [0xf, 0x117, 1, 1], [7, 0x106, 1, 0]],
    [0x40000000, 0, [1, 2, 3, 4], undefined],
    [0x40000000, 9, [1, 2, 3, 4], undefined],
    [0x12, 0, [1, 2, 3, 4], [0, 0, 0, 0]],
    [0x80001000, 0, [0, 0, 0, 1], [0, 0, 0, 0]],
    [0x10000, 0, [1, 0, 0, 0], undefined],
  ] as [number, number, Registers, Registers | undefined][])(
    'with leaf %#x.%d as %j',
    (leaf, subleaf, registers, corrected) => {
      const result = check([{ leaf, subleaf, registers }]);
      if (corrected === undefined) {
        expect(result.status).toBe(0);
        expect(result.state).toBe('guest-valid');
        expect(registersOf(machine.readAs(1, result.page, 4096), 0)).toEqual(registers);
      } else {
        expect(result.status).toBe(0x16);
        expect(result.state).toBe('pre-guest');
        expect(result.registers).toEqual(corrected);
      }
    },
  );

  it.each([
    // XCR0, XSS, size of the standard form, of the compacted form
    [0x3, 0, 0x240, 0x240],
    [0x7, 0, 0x340, 0x340],
    [0x207, 0, 0x988, 0x348],
    [0x2e7, 0, 0x988, 0x988],
    [0x7, 0x1800, 0x340, 0x368],
  ])('with XCR0 %#x and XSS %#x have XSAVE areas of that size', (xcr0, xss, standard, compacted) => {
    const leaf = 0xd;
    const registers: Registers = [3, standard, 0x988, 0];
    expect(check([{ leaf, xcr0, registers }]).status).toBe(0);
    machine.close();
    expect(check([{ leaf, xcr0, registers: [3, standard + 8, 0x988, 0] }]).registers[1]).toBe(standard);
    machine.close();
    const sub1: Registers = [0xf, compacted, 0x1800, 0];
    expect(check([{ leaf, subleaf: 1, xcr0, xss, registers: sub1 }]).status).toBe(0);
  });

  it.each([
    ['milan', [1, 0xf1bf97a9, 0x00415fce, 0], 0x16],
    ['milan', [0, 0x219c97a9, 0x0040069c, 0x10000010], 0],
    ['genoa', [1, 0xf1bf97a9, 0x00415fce, 0], 0],
    ['turin', [1, 0xf1bf97a9, 0x18415fce, 0], 0],
    ['genoa', [1, 0xf1bf97a9, 0x18415fce, 0], 0x16],
  ] as const)('of %s with leaf 7 as %j', (generation, registers, status) => {
    expect(check([{ leaf: 7, registers }], generation).status).toBe(status);
  });

  it.each([
    ['milan', 5, [0, 0, 0, 0], 0],
    ['milan', 5, [0x40, 0x340, 0, 0], 0x16],
    ['genoa', 5, [0x40, 0x340, 0, 0], 0],
    ['genoa', 6, [0x200, 0x380, 0, 0], 0],
    ['genoa', 7, [0x400, 0x580, 0, 0], 0],
  ] as const)('of %s with the XSAVE area %d as %o', (generation, subleaf, registers, status) => {
    expect(check([{ leaf: 0xd, subleaf, registers }], generation).status).toBe(status);
  });

  it('have at most 64 entries, and zero in what is reserved', () => {
    const refused = (page: Uint8Array): number => {
      machine = new Machine().init();
      const status = machine.launchUpdate(machine.startGuest(), machine.preGuestPage(0x3000, page), 6);
      machine.close();
      return status;
    };
    const leaves: Entry[] = Array.from({ length: 64 }, () => ({ leaf: 0x40000000 }));
    expect(refused(tableOf(leaves))).toBe(0);
    expect(refused(tableOf(leaves, 65))).toBe(0x16);
    for (const at of [4, 15]) {
      const page = tableOf([]);
      page[at] = 1;
      expect(refused(page)).toBe(0x16);
    }
    expect(refused(tableOf([{ leaf: 0, reserved: 1 }]))).toBe(0x16);
    expect(refused(tableOf([{ leaf: 0x40000000, reserved: 1 }]))).toBe(0);
    machine = new Machine();
  });

  it('that were corrected are accepted then, and measured as if they had been right at once', () => {
    const { page, status } = check([{ leaf: 1, registers: [0x00b00f21, 0, 0xffffffff, 0xffffffff] }]);
    expect(status).toBe(0x16);
    const corrected = machine.read(page, 4096);
    expect(machine.reclaim(page)).toBe(0);
    machine.close();
    machine = new Machine({ generation: 'genoa' }).init();
    const context = machine.startGuest();
    expect(machine.launchUpdate(context, machine.preGuestPage(0x3000, corrected), 6)).toBe(0);
  });
});

describe('CPUID_REQ', () => {
  const ask = (request: Uint8Array) => {
    machine = new Machine({ generation: 'genoa' }).init();
    const { payload } = machine.runGuest().ask(1, request);
    const view = new DataView(payload.buffer, payload.byteOffset);
    return { status: view.getUint32(0, true), count: view.getUint32(4, true), payload };
  };

  it('answers with the entries as they should be', () => {
    const entries: Entry[] = [
      { leaf: 0, registers: [0x20, 1, 2, 3] },
      { leaf: 0x40000000, registers: [9, 9, 9, 9] },
    ];
    const { status, count, payload } = ask(tableOf(entries, 2, 16 + 96));
    expect([status, count, payload.length]).toEqual([0x16, 1, 112]);
    expect(registersOf(payload, 0)).toEqual([0x10, 1, 2, 3]);
    expect(registersOf(payload, 1)).toEqual([9, 9, 9, 9]);
  });

  it('takes 64 entries', () => {
    const entries: Entry[] = Array.from({ length: 64 }, () => ({ leaf: 0, registers: [0x10, 1, 2, 3] }));
    expect(ask(tableOf(entries, 64, 16 + 64 * 48))).toMatchObject({ status: 0, count: 64 });
  });

  it('says that all is well', () => {
    expect(ask(tableOf([{ leaf: 0, registers: [0x10, 1, 2, 3] }], 1, 64))).toMatchObject({
      status: 0,
      count: 1,
    });
  });

  it.each([
    ['more than 64 entries', tableOf([], 65, 3984)],
    ['more entries than there is payload', tableOf([], 2, 64)],
    ['a reserved byte', tableOf([], 0, 16).fill(1, 15)],
    ['a reserved word', tableOf([], 0, 16).fill(1, 4, 5)],
  ])('refuses %s', (_what, request) => {
    expect(ask(request)).toMatchObject({ status: 0x16, count: 0 });
  });
});
