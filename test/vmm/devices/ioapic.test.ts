import { describe, expect, it } from 'vitest';
import type { GsiRoute } from '../../../src/kernel/interface.ts';
import { Ioapic } from '../../../src/vmm/devices/ioapic.ts';

/** An IOAPIC, and what it tells the kernel. */
class Bench {
  readonly lines: string[] = [];
  routes: readonly GsiRoute[] = [];
  readonly ioapic = new Ioapic({
    irqLine: ({ irq, level }) => this.lines.push(`${irq} ${level === 1 ? 'up' : 'down'}`),
    setGsiRouting: ({ routes }) => {
      this.routes = [...routes];
    },
  });

  read(register: number): number {
    this.ioapic.write(0, register, 4);
    return this.ioapic.read(0x10);
  }
  write(register: number, value: number): this {
    this.ioapic.write(0, register, 4);
    this.ioapic.write(0x10, value, 4);
    return this;
  }
  /** What the kernel was told since the last time. */
  told(): string[] {
    return this.lines.splice(0);
  }
}

describe('the IOAPIC’s registers', () => {
  it.each([
    ['id', 0, 0xffff_ffff, 0x0f00_0000],
    ['version', 1, 0xffff_ffff, 0x0017_0020],
    ['an entry, low', 0x10, 0xffff_ffff, 0x0001_afff],
    ['an entry, high', 0x11, 0x1234_5678, 0x1234_5678],
    ['the last entry', 0x3e, 0x0001_0055, 0x0001_0055],
    ['the last entry, high', 0x3f, 0x1234_5678, 0x1234_5678],
    ['behind the last', 0x40, 0xffff_ffff, 0],
    ['before the first', 0x0f, 0xffff_ffff, 0],
  ])('%s', (_name, register, written, read) => {
    expect(new Bench().write(register, written).read(register)).toBe(read);
  });

  it('entries are masked at first', () => {
    const bench = new Bench();
    expect([bench.read(0x10), bench.read(0x3e)]).toEqual([0x10000, 0x10000]);
  });

  it('the window takes 4 bytes alone', () => {
    const bench = new Bench();
    bench.ioapic.write(0, 0x10, 1);
    bench.ioapic.write(0x10, 0x55, 1);
    expect(bench.read(0x10)).toBe(0x10000);
  });
});

it('the arbitration register says the id', () => {
  expect(new Bench().write(0, 0x0500_0000).read(2)).toBe(0x0500_0000);
});

it('a register that there is not changes no route', () => {
  const bench = new Bench();
  const before = JSON.stringify(bench.routes);
  for (const register of [3, 0x0e, 0x0f, 0x40, 0x41, 0xff]) bench.write(register, 0x31);
  expect(JSON.stringify(bench.routes)).toBe(before);
});

it('nothing is read but select and window', () => {
  const bench = new Bench().write(0x10, 0x31);
  bench.ioapic.write(0, 0x10, 4);
  expect([0, 4, 0x10, 0x20, 0x40].map((offset) => bench.ioapic.read(offset))).toEqual([0x10, 0, 0x31, 0, 0]);
});

describe('routes', () => {
  it('there are 24 from the start', () => {
    expect(new Bench().routes.map(({ gsi, type }) => [gsi, type])).toEqual(
      Array.from({ length: 24 }, (_, gsi) => [gsi, 2]),
    );
  });

  it('say what an entry says, once it is not masked', () => {
    const bench = new Bench();
    bench.write(0x19, 0x0500_0000);
    expect(bench.routes[4]!.msi).toEqual({ addressLo: 0, addressHi: 0, data: 0 });
    bench.write(0x18, 0x8931);
    expect(bench.routes[4]!.msi).toEqual({ addressLo: 0xfee0_5004, addressHi: 0, data: 0x8131 });
    bench.write(0x18, 0x1_0077);
    expect(bench.routes[4]!.msi.data).toBe(0x8131);
  });
});

describe('an edge-triggered pin', () => {
  it('sends a rising edge; a masked one forgets it', () => {
    const bench = new Bench();
    bench.ioapic.setLine(4, 1);
    bench.ioapic.setLine(4, 0);
    bench.write(0x18, 0x31);
    expect(bench.told()).toEqual([]);
    bench.ioapic.setLine(4, 1);
    expect(bench.told()).toEqual(['4 up', '4 down']);
    bench.ioapic.setLine(4, 0);
    expect(bench.told()).toEqual([]);
  });

  it('there are none from 24 on', () => {
    const bench = new Bench();
    for (const register of [0x10, 0x12, 0x14, 0x20, 0x3e]) bench.write(register, 0x31);
    for (const line of [24, 32, 33, 40]) bench.ioapic.setLine(line, 1);
    expect(bench.told()).toEqual([]);
    bench.ioapic.setLine(23, 1);
    expect(bench.told()).toEqual(['23 up', '23 down']);
  });

  it('2 is ISA’s interrupt 0', () => {
    const bench = new Bench().write(0x14, 0x31);
    bench.ioapic.setLine(0, 1);
    expect(bench.told()).toEqual(['2 up', '2 down']);
  });
});

describe('a level-triggered pin', () => {
  const level = (): Bench => new Bench().write(0x18, 0x8031);

  it('interrupts once until its EOI, and again if it still asserts', () => {
    const bench = level();
    bench.ioapic.setLine(4, 1);
    expect(bench.told()).toEqual(['4 up']);
    expect(bench.read(0x18)).toBe(0xc031);
    bench.ioapic.setLine(4, 1);
    expect(bench.told()).toEqual([]);
    bench.ioapic.endOfInterrupt(0x31);
    expect(bench.told()).toEqual(['4 up']);
    bench.ioapic.setLine(4, 0);
    bench.ioapic.endOfInterrupt(0x31);
    expect(bench.told()).toEqual([]);
    expect(bench.read(0x18)).toBe(0x8031);
  });

  it('does not hear of another vector’s EOI', () => {
    const bench = level();
    bench.ioapic.setLine(4, 1);
    bench.told();
    bench.ioapic.endOfInterrupt(0x32);
    expect(bench.told()).toEqual([]);
    expect(bench.read(0x18)).toBe(0xc031);
  });

  it('that is masked waits, and interrupts when it is no longer', () => {
    const bench = new Bench().write(0x18, 0x1_8031);
    bench.ioapic.setLine(4, 1);
    expect(bench.told()).toEqual([]);
    bench.write(0x18, 0x8031);
    expect(bench.told()).toEqual(['4 up']);
  });

  it('ends by the EOI register too', () => {
    const bench = level();
    bench.ioapic.setLine(4, 1);
    bench.told();
    bench.ioapic.write(0x40, 0x31, 4);
    expect(bench.told()).toEqual(['4 up']);
  });

  it('made edge-triggered forgets that it is being handled', () => {
    const bench = level();
    bench.ioapic.setLine(4, 1);
    bench.ioapic.setLine(4, 0);
    bench.write(0x18, 0x31);
    expect(bench.read(0x18)).toBe(0x31);
  });
});
