import { describe, expect, it } from 'vitest';
import type { InterruptMessage } from '../../../../src/kernel/kvm/lapic/message.ts';
import { messageOfMsi } from '../../../../src/kernel/kvm/lapic/message.ts';
import { LapicBench } from './lapic-bench.ts';

const message = (over: Partial<InterruptMessage>): InterruptMessage => ({
  vector: 0x60,
  delivery: 0,
  logical: false,
  assert: true,
  level: false,
  shorthand: 0,
  destination: 0,
  redirectionHint: false,
  ...over,
});
/** Which of the APICs have the vector now. */
const hit = (bench: LapicBench, vector = 0x60): number[] =>
  bench.requests().flatMap((request, index) => (request === vector ? [index] : []));

describe('physical destinations', () => {
  it.each([
    ['an id', 1, [1], 1],
    ['nobody', 9, [], 0],
    ['everybody', 0xff, [0, 1, 2], 3],
    ['an id above 255', 0x100, [], 0],
  ])('%s', (_name, destination, who, result) => {
    const bench = new LapicBench([0, 1, 2]).enable();
    expect(bench.controller.deliver(message({ destination }))).toBe(result);
    expect(hit(bench)).toEqual(who);
  });

  it('an APIC that is disabled in its base does not hear', () => {
    const bench = new LapicBench([0, 1]).enable();
    bench.base(0xfee00000n, 1);
    expect(bench.controller.deliver(message({ destination: 1 }))).toBe(0);
    expect(bench.controller.deliver(message({ destination: 0xff }))).toBe(1);
  });

  it.each([
    ['its base is disabled', (bench: LapicBench) => bench.base(0xfee00000n, 1), 0],
    ['its id is another', (bench: LapicBench) => bench.write(0x20, 0x0700_0000, bench.lapics[1]), 0],
    ['INIT reset it', (bench: LapicBench) => bench.lapics[1]!.reset('init', 'masked'), 0],
    ['nothing happened', () => {}, 1],
  ] as const)('an APIC that has heard does so again unless %s', (_name, change, want) => {
    const bench = new LapicBench([0, 1]).enable();
    expect(bench.controller.deliver(message({ destination: 1 }))).toBe(1);
    change(bench);
    expect(bench.controller.deliver(message({ destination: 1 }))).toBe(want);
  });

  it.each([
    ['LDR', 0xd0, 0x0400_0000],
    ['DFR', 0xe0, 0x0fff_ffff],
    ['software enable', 0xf0, 0xff],
  ])('a logical destination is another after a change of %s', (_name, register, value) => {
    const bench = new LapicBench([0, 1]).enable();
    bench.write(0xd0, 0x0200_0000, bench.lapics[1]);
    const toIt = message({ logical: true, destination: 2 });
    expect(bench.controller.deliver(toIt)).toBe(1);
    bench.write(register, value, bench.lapics[1]);
    if (register === 0xe0) bench.write(0xd0, 0x1200_0000, bench.lapics[1]);
    expect(bench.controller.deliver(toIt)).toBe(0);
  });

  it('a software-disabled APIC is meant, and drops it', () => {
    const bench = new LapicBench([0, 1]);
    expect(bench.controller.deliver(message({ destination: 1 }))).toBe(0);
  });

  it('an xAPIC of id 300 has the lower 8 bits of it, and all of it as well with 32-bit ids', () => {
    for (const [flags, answers] of [
      [0n, [1, 0]],
      [1n, [1, 1]],
    ] as const) {
      const bench = new LapicBench([0, 300]).enable();
      bench.controller.setX2apicApi(flags);
      const to = (destination: number) => bench.controller.deliver(message({ destination }));
      expect([to(44), to(300)]).toEqual(answers);
    }
  });

  it('with 32-bit ids two xAPICs may have one id: the first hears', () => {
    const bench = new LapicBench([0, 1, 257]).enable();
    bench.controller.setX2apicApi(1n);
    expect(bench.controller.deliver(message({ destination: 1 }))).toBe(1);
    expect(hit(bench)).toEqual([1]);
  });

  it('an xAPIC of id 255 that took another does not hear the old one, also with 32-bit ids', () => {
    const bench = new LapicBench([0, 255]).enable();
    bench.controller.setX2apicApi(1n);
    bench.write(0x20, 0x0700_0000, bench.lapics[1]);
    bench.base(0xfee0_0d00n);
    expect(bench.controller.deliver(message({ destination: 255 }), bench.lapic)).toBe(0);
    expect(bench.controller.deliver(message({ destination: 7 }), bench.lapic)).toBe(1);
  });

  it('two APICs with one id both hear', () => {
    const bench = new LapicBench([0, 1, 2]).enable();
    bench.write(0x20, 0x0100_0000, bench.lapics[2]);
    expect(bench.controller.deliver(message({ destination: 1 }))).toBe(2);
    expect(hit(bench)).toEqual([1, 2]);
  });

  it('with two of one id, an xAPIC is still found by its id above 255', () => {
    const bench = new LapicBench([0, 1, 2, 300]).enable();
    bench.write(0x20, 0x0100_0000, bench.lapics[2]);
    expect(bench.controller.deliver(message({ destination: 300 }))).toBe(1);
    expect(hit(bench)).toEqual([3]);
  });

  it('with two of one id, lowest priority chooses one of them', () => {
    const bench = new LapicBench([0, 1, 2]).enable();
    bench.write(0x20, 0x0100_0000, bench.lapics[2]);
    expect(bench.controller.deliver(message({ destination: 1, delivery: 0x100, vector: 0x61 }))).toBe(1);
    expect(hit(bench, 0x61)).toEqual([2]);
  });

  it('with two of one id, lowest priority is −1 where software has disabled both', () => {
    const bench = new LapicBench([0, 1, 2]);
    bench.write(0x20, 0x0100_0000, bench.lapics[2]);
    expect(bench.controller.deliver(message({ destination: 1, delivery: 0x100 }))).toBe(-1);
  });

  it('with two of one id, an x2APIC is still found by its own', () => {
    const bench = new LapicBench([0, 1, 2]).enable();
    bench.write(0x20, 0, bench.lapics[2]);
    bench.base(0xfee0_0c00n, 1);
    expect(bench.controller.deliver(message({ destination: 1 }))).toBe(1);
    expect(hit(bench)).toEqual([1]);
  });

  it('with two of one id, nobody there is −1', () => {
    const bench = new LapicBench([0, 1, 2]).enable();
    bench.write(0x20, 0x0100_0000, bench.lapics[2]);
    expect(bench.controller.deliver(message({ destination: 7 }))).toBe(-1);
  });
});

describe('a physical broadcast', () => {
  const send = (bench: LapicBench, over: Partial<InterruptMessage>, source?: (typeof bench.lapics)[0]) =>
    bench.controller.deliver(message({ destination: 0xff, ...over }), source);

  it('with lowest priority reaches everybody', () => {
    const bench = new LapicBench([0, 1, 2]).enable();
    expect(send(bench, { delivery: 0x100, vector: 0x61 })).toBe(3);
    expect(hit(bench, 0x61)).toEqual([0, 1, 2]);
  });

  it('of an NMI stays an NMI', () => {
    const bench = new LapicBench([0, 1]).enable();
    send(bench, { delivery: 0x400 });
    expect([bench.vcpu(0).nmis, bench.vcpu(1).nmis, ...bench.requests()]).toEqual([1, 1, -1, -1]);
  });

  // Flag 2 of KVM_CAP_X2APIC_API disables the quirk.
  it.each([
    ['to 255 reaches xAPICs', 'xapic', 0xff, 3],
    ['to an id that nobody has reaches nobody', 'xapic', 9, 0],
    ['to all ones reaches x2APICs', 'x2apic', 0xffff_ffff, 3],
  ] as const)('without the quirk %s', (_name, mode, destination, count) => {
    const bench = new LapicBench([0, 1, 2]);
    if (mode === 'xapic') bench.enable();
    else bench.x2apic();
    bench.controller.setX2apicApi(2n);
    expect(send(bench, { destination })).toBe(count);
  });

  // The first is an x2APIC, the others are xAPICs with logical ids.
  it.each([
    ['a message', 0n, false, [0, 1, 2]],
    ['an IPI of an xAPIC', 0n, true, [1, 2]],
    ['a message without the quirk', 2n, false, [1, 2]],
  ] as const)('to 255 among both modes: %s', (_name, flags, isIpi, who) => {
    const bench = new LapicBench([0, 1, 2]).enable();
    for (const index of [1, 2]) bench.write(0xd0, (1 << index) << 24, bench.lapics[index]);
    bench.base(0xfee0_0d00n);
    bench.controller.setX2apicApi(flags);
    send(bench, {}, isIpi ? bench.lapics[1] : undefined);
    expect(hit(bench)).toEqual(who);
  });
});

describe('logical destinations', () => {
  const flat = (): LapicBench => {
    const bench = new LapicBench([0, 1, 2]).enable();
    for (const [index, lapic] of bench.lapics.entries()) bench.write(0xd0, (1 << index) << 24, lapic);
    return bench;
  };
  const cluster = (): LapicBench => {
    const bench = new LapicBench([0, 1, 2]).enable();
    const ids = [0x11, 0x12, 0x21];
    for (const [index, lapic] of bench.lapics.entries()) {
      bench.write(0xe0, 0x0fff_ffff, lapic);
      bench.write(0xd0, ids[index]! << 24, lapic);
    }
    return bench;
  };

  it.each([
    [0b001, [0]],
    [0b110, [1, 2]],
    [0b1000, []],
    [0xff, [0, 1, 2]],
  ])('flat 0x%x', (destination, who) => {
    const bench = flat();
    bench.controller.deliver(message({ logical: true, destination }));
    expect(hit(bench)).toEqual(who);
  });

  it.each([
    [0x11, [0]],
    [0x13, [0, 1]],
    [0x21, [2]],
    [0x22, []],
    [0x31, []],
    [0xff, [0, 1, 2]],
  ])('cluster 0x%x', (destination, who) => {
    const bench = cluster();
    bench.controller.deliver(message({ logical: true, destination }));
    expect(hit(bench)).toEqual(who);
  });

  it('of x2APIC: a cluster of 16 and a bit in it', () => {
    const bench = new LapicBench([0, 17, 18]).x2apic();
    bench.controller.deliver(message({ logical: true, destination: 0x1_0002 }), bench.lapic);
    expect(hit(bench)).toEqual([1]);
    bench.controller.deliver(message({ logical: true, destination: 0x1_0006, vector: 0x70 }), bench.lapic);
    expect(hit(bench, 0x70)).toEqual([1, 2]);
  });

  it('of x2APIC: the last cluster may have one APIC alone', () => {
    const bench = new LapicBench([0, 256]).x2apic();
    expect(bench.controller.deliver(message({ logical: true, destination: 0x10_0001 }), bench.lapic)).toBe(1);
    expect(hit(bench)).toEqual([1]);
  });

  it('of x2APIC: bits beyond the highest id are not among those of which lowest priority chooses', () => {
    const bench = new LapicBench([0, 256]).x2apic();
    for (const vector of [0x60, 0x61]) {
      const lowest = message({ logical: true, delivery: 0x100, destination: 0x10_0003, vector });
      expect(bench.controller.deliver(lowest, bench.lapic)).toBe(1);
      expect(hit(bench, vector)).toEqual([1]);
    }
  });

  it('an x2APIC among xAPICs is found by its cluster and bit', () => {
    const bench = flat();
    bench.base(0xfee0_0d00n);
    bench.controller.deliver(message({ logical: true, destination: 0b011 }), bench.lapic);
    expect(hit(bench)).toEqual([0, 1]);
  });

  it('mixed modes still find those that match', () => {
    const bench = flat();
    bench.write(0xe0, 0x0fff_ffff, bench.lapics[2]);
    bench.write(0xd0, 0x2100_0000, bench.lapics[2]);
    bench.controller.deliver(message({ logical: true, destination: 0x21 }));
    expect(hit(bench)).toEqual([0, 2]);
  });

  // Without one mode for all each is asked: x2APIC 17 (cluster 1, bit 1), xAPICs 1 and 2, flat, and 0x21 in a cluster.
  it.each([
    [0x2, [1]],
    [0x1_0002, [0, 1]],
    [0x1_0001, []],
    [0x11, []],
    [0x22, [1]],
    [0x21, [3]],
  ])('mixed modes: 0x%x', (destination, who) => {
    const bench = new LapicBench([17, 1, 2, 3]).enable();
    bench.write(0xd0, 0x0200_0000, bench.lapics[1]);
    bench.write(0xd0, 0x0400_0000, bench.lapics[2]);
    bench.write(0xe0, 0x0fff_ffff, bench.lapics[3]);
    bench.write(0xd0, 0x2100_0000, bench.lapics[3]);
    bench.base(0xfee0_0c00n);
    bench.controller.deliver(message({ logical: true, destination }));
    expect(hit(bench)).toEqual(who);
  });

  it('flat: the upper four bits are APICs of their own', () => {
    const bench = flat();
    bench.write(0xd0, 0x1000_0000, bench.lapics[2]);
    expect(bench.controller.deliver(message({ logical: true, destination: 0x10 }))).toBe(1);
    expect(hit(bench)).toEqual([2]);
  });

  it('with lowest priority among mixed modes, 255 is one of those it means', () => {
    const bench = flat();
    bench.base(0xfee0_0d00n);
    const lowest = message({ logical: true, destination: 0xff, delivery: 0x100, vector: 0x61 });
    expect(bench.controller.deliver(lowest, bench.lapics[1])).toBe(1);
    expect(hit(bench, 0x61)).toEqual([1]);
  });

  it('lowest priority chooses one, by its vector', () => {
    const chosen = [0x60, 0x61, 0x62, 0x63].map((vector) => {
      const bench = flat();
      bench.controller.deliver(message({ logical: true, destination: 0b111, delivery: 0x100, vector }));
      return hit(bench, vector);
    });
    expect(chosen).toEqual([[0], [1], [2], [0]]);
  });

  it('lowest priority is lost on a destination bit that nobody has', () => {
    const bench = flat();
    const lost = message({ logical: true, destination: 0b1001, delivery: 0x100, vector: 0x61 });
    expect(bench.controller.deliver(lost)).toBe(0);
  });

  it('an NMI does not reach an APIC that software has disabled, as it does by physical id', () => {
    const bench = flat();
    bench.write(0xf0, 0xff, bench.lapics[1]);
    const nmis = () => [0, 1, 2].map((index) => bench.vcpu(index).nmis);
    bench.controller.deliver(message({ logical: true, destination: 0b111, delivery: 0x400 }));
    expect(nmis()).toEqual([1, 0, 1]);
    bench.controller.deliver(message({ destination: 1, delivery: 0x400 }));
    expect(nmis()).toEqual([1, 1, 1]);
  });

  it('an MSI with a redirection hint chooses one as well', () => {
    const bench = flat();
    const hinted = message({ logical: true, destination: 0b111, redirectionHint: true, vector: 0x62 });
    expect(bench.controller.deliver(hinted)).toBe(1);
    expect(hit(bench, 0x62)).toEqual([2]);
  });
});

describe('IPIs', () => {
  it.each([
    ['self', 0x40000, [1]],
    ['all', 0x80000, [0, 1, 2]],
    ['all others', 0xc0000, [0, 2]],
  ])('with shorthand %s', (_name, shorthand, who) => {
    const bench = new LapicBench([0, 1, 2]).enable();
    bench.write(0x300, shorthand | 0x60, bench.lapics[1]);
    expect(hit(bench)).toEqual(who);
  });

  it('go to ICR2’s destination when the ICR is written', () => {
    const bench = new LapicBench([0, 1, 2]).enable();
    bench.write(0x310, 0x0200_0000);
    bench.write(0x300, 0x1060);
    expect(hit(bench)).toEqual([2]);
    expect(bench.read(0x300)).toBe(0x60);
  });

  it('of x2APIC have a destination of 32 bits, broadcast all ones', () => {
    const bench = new LapicBench([0, 1, 300]).x2apic();
    bench.lapic.writeMsr(0x300, (300n << 32n) | 0x60n);
    expect(hit(bench)).toEqual([2]);
    bench.lapic.writeMsr(0x300, (0xffff_ffffn << 32n) | 0x70n);
    expect(hit(bench, 0x70)).toEqual([0, 1, 2]);
    bench.lapic.writeMsr(0x3f0, 0x80n);
    expect(hit(bench, 0x80)).toEqual([0]);
  });

  it('of x2APIC to 255 reach that id alone', () => {
    const bench = new LapicBench([0, 255]).x2apic();
    bench.lapic.writeMsr(0x300, (255n << 32n) | 0x60n);
    expect(hit(bench)).toEqual([1]);
  });

  it('INIT and SIPI start another processor', () => {
    const bench = new LapicBench([0, 1]);
    bench.write(0x310, 0x0100_0000);
    bench.write(0x300, 0x4500);
    expect(bench.lapics[1]!.initPending).toBe(true);
    bench.write(0x300, 0x4699);
    expect([bench.lapics[1]!.sipiPending, bench.lapics[1]!.sipiVector]).toEqual([true, 0x99]);
  });
});

describe('MSIs', () => {
  it('say vector, mode, destination and trigger in address and data', () => {
    expect(messageOfMsi({ addressLo: 0xfee0_500c, addressHi: 0x1200, data: 0xc161 }, 'xapic')).toEqual({
      vector: 0x61,
      delivery: 0x100,
      logical: true,
      assert: true,
      level: true,
      shorthand: 0,
      destination: 5,
      redirectionHint: true,
    });
    expect(
      messageOfMsi({ addressLo: 0xfee0_5000, addressHi: 0x1200, data: 0x61 }, '32-bit').destination,
    ).toBe(0x1205);
  });

  it('count who took them: some, 0, or −1 for nobody', () => {
    const bench = new LapicBench([0, 1]).enable();
    const send = (destination: number) =>
      bench.controller.signalMsi({
        addressLo: 0xfee0_0000 + destination * 0x1000,
        addressHi: 0,
        data: 0x60,
        flags: 0,
        devid: 0,
      });
    expect(send(1)).toBe(1);
    expect(send(0xff)).toBe(2);
    expect(send(4)).toBe(0);
    for (const index of [0, 1]) bench.base(0xfee00000n, index);
    expect(send(0xff)).toBe(-1);
  });

  it.each([
    ['an unknown flag', { flags: 2 }, 'EINVAL'],
    ['a device id, which counts for nothing', { flags: 1, devid: 7 }, 'OK'],
    ['a high address', { addressHi: 0x55 }, 'OK'],
  ])('%s', (_name, over, want) => {
    const bench = new LapicBench().enable();
    const msi = { addressLo: 0xfee0_0000, addressHi: 0, data: 0x60, flags: 0, devid: 0, ...over };
    expect(outcome(() => bench.controller.signalMsi(msi))).toBe(want);
  });

  it('with 32-bit ids want bits 7:0 of the high address clear', () => {
    const bench = new LapicBench().enable();
    bench.controller.setX2apicApi(1n);
    const msi = { addressLo: 0xfee0_0000, addressHi: 0x55, data: 0x60, flags: 0, devid: 0 };
    expect(outcome(() => bench.controller.signalMsi(msi))).toBe('EINVAL');
  });

  it('to 255 are a broadcast for x2APICs, unless the quirk is off', () => {
    const send = (bench: LapicBench) =>
      bench.controller.signalMsi({ addressLo: 0xfeef_f000, addressHi: 0, data: 0x60, flags: 0, devid: 0 });
    expect(send(new LapicBench([0, 1]).x2apic())).toBe(2);
    const exact = new LapicBench([0, 1]).x2apic();
    exact.controller.setX2apicApi(2n);
    expect(send(exact)).toBe(0);
  });
});

describe('routes', () => {
  const route = (gsi: number, over: object = {}) => ({
    gsi,
    type: 2,
    flags: 0,
    msi: { addressLo: 0xfee0_0000, addressHi: 0, data: 0x8060 },
    ...over,
  });
  it.each([
    ['none', [], 0, 'OK'],
    ['one', [route(4)], 0, 'OK'],
    ['flags', [route(4)], 1, 'EINVAL'],
    ['GSI 4095', [route(4095)], 0, 'OK'],
    ['GSI 4096', [route(4096)], 0, 'EINVAL'],
    ['two of one GSI', [route(4), route(4)], 0, 'EINVAL'],
    ['an irqchip pin, which is user space’s', [route(4, { type: 1 })], 0, 'EINVAL'],
    ['a flag of a route', [route(4, { flags: 2 })], 0, 'EINVAL'],
    ['a device id', [route(4, { flags: 1 })], 0, 'OK'],
    ['4097', Array.from({ length: 4097 }, (_, gsi) => route(gsi)), 0, 'EINVAL'],
  ])('%s', (_name, routes, flags, want) => {
    const bench = new LapicBench();
    expect(outcome(() => bench.controller.setRoutes(routes, flags))).toBe(want);
  });

  it('lead a line to its message; falling, or without a route, −1', () => {
    const bench = new LapicBench().enable();
    bench.controller.setRoutes([route(4)], 0);
    expect(bench.controller.setLine(4, 1)).toBe(1);
    expect(hit(bench)).toEqual([0]);
    expect(bench.controller.setLine(4, 0)).toBe(-1);
    expect(bench.controller.setLine(5, 1)).toBe(-1);
  });

  const eoiOf = (prepare: (bench: LapicBench) => void, pins = 24): number => {
    const bench = new LapicBench([0], pins).enable();
    bench.controller.setRoutes(
      [route(4), route(5, { msi: { addressLo: 0xfee0_0000, addressHi: 0, data: 0x61 } })],
      0,
    );
    prepare(bench);
    bench.take();
    bench.write(0xb0, 0);
    return bench.lapic.pendingIoapicEoi;
  };
  it('of a reserved pin have user space told of the EOI, if level-triggered', () => {
    expect(eoiOf((bench) => bench.controller.setLine(4, 1))).toBe(0x60);
    expect(eoiOf((bench) => bench.controller.setLine(5, 1))).toBe(-1);
    expect(eoiOf((bench) => bench.controller.setLine(4, 1), 4)).toBe(-1);
  });

  it('count for an APIC that got its logical id later', () => {
    const bench = new LapicBench([0], 24).enable();
    const toGroup = { addressLo: 0xfee0_1004, addressHi: 0, data: 0x8060 };
    bench.controller.setRoutes([route(4, { msi: toGroup })], 0);
    bench.write(0xd0, 0x0100_0000);
    bench.lapic.accept({ delivery: 0, vector: 0x60, assert: true, level: true });
    bench.take();
    bench.write(0xb0, 0);
    expect(bench.lapic.pendingIoapicEoi).toBe(0x60);
  });

  it('that went away keep the EOI of what was in flight', () => {
    const gone = (bench: LapicBench): void => {
      bench.controller.setLine(4, 1);
      bench.controller.setRoutes(
        [route(4, { msi: { addressLo: 0xfee0_7000, addressHi: 0, data: 0x8060 } })],
        0,
      );
    };
    expect(eoiOf(gone)).toBe(0x60);
  });

  it('that went away keep the EOI of what is in service', () => {
    const bench = new LapicBench([0], 24).enable();
    bench.controller.setRoutes([route(4)], 0);
    bench.controller.setLine(4, 1);
    expect(bench.take()).toBe(0x60);
    bench.controller.setRoutes(
      [route(4, { msi: { addressLo: 0xfee0_7000, addressHi: 0, data: 0x8060 } })],
      0,
    );
    bench.write(0xb0, 0);
    expect(bench.lapic.pendingIoapicEoi).toBe(0x60);
  });

  it('tell of EOIs although the guest suppresses them, unless user space said that it knows', () => {
    const suppress = (flags: bigint) => (bench: LapicBench) => {
      bench.controller.setX2apicApi(flags);
      bench.lapic.setVersion();
      bench.write(0xf0, 0x11ff);
      bench.controller.setLine(4, 1);
    };
    expect(eoiOf(suppress(0n))).toBe(0x60);
    expect(eoiOf(suppress(4n))).toBe(-1);
    expect(eoiOf(suppress(8n))).toBe(0x60);
    const asked = (bench: LapicBench) => {
      bench.controller.setX2apicApi(4n);
      bench.controller.setLine(4, 1);
    };
    expect(eoiOf(asked)).toBe(0x60);
  });
});

function outcome(act: () => unknown): string {
  try {
    act();
    return 'OK';
  } catch (error) {
    return (error as { code?: string }).code ?? String(error);
  }
}
