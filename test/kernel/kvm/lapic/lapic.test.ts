import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { apicBaseIsValid } from '../../../../src/kernel/kvm/lapic/apic-base.ts';
import { LapicBench } from './lapic-bench.ts';

describe('a local APIC after reset', () => {
  it.each([
    [0x20, 0x0300_0000],
    [0x30, 0x0105_0014],
    [0x80, 0],
    [0xa0, 0],
    [0xd0, 0],
    [0xe0, 0xffff_ffff],
    [0xf0, 0xff],
    [0x280, 0],
    [0x300, 0],
    [0x310, 0],
    [0x320, 0x10000],
    [0x330, 0x10000],
    [0x340, 0x10000],
    [0x350, 0x10000],
    [0x360, 0x10000],
    [0x370, 0x10000],
    [0x380, 0],
    [0x390, 0],
    [0x3e0, 0],
    [0x90, 0],
  ])('register 0x%x reads 0x%x', (offset, value) => {
    expect(new LapicBench([3]).read(offset)).toBe(value);
  });

  it.each([
    ['x2APIC', 0x400n, 0x1_0002],
    ['xAPIC', 0n, 0],
  ])('by INIT has the logical id that %s mode gives it', (_mode, bit, ldr) => {
    const bench = new LapicBench([17]).enable();
    bench.write(0xd0, 0x0400_0000);
    bench.base(0xfee0_0800n | bit);
    bench.lapic.reset('init', 'masked');
    expect(bench.lapic.register(0xd0)).toBe(ldr);
  });

  it('has LINT0 as external interrupt on the boot processor', () => {
    expect(new LapicBench([0]).read(0x350)).toBe(0x700);
  });

  it('says nothing of directed EOI to a guest whose CPUID has no x2APIC', () => {
    const bench = new LapicBench();
    bench.vcpu().hasX2apic = false;
    bench.lapic.setVersion();
    expect(bench.read(0x30)).toBe(0x50014);
    bench.write(0xf0, 0x11ff);
    expect(bench.read(0xf0)).toBe(0x1ff);
  });
});

describe('the xAPIC page', () => {
  it.each([
    ['id', 0x20, 0xffff_ffff, 0xff00_0000],
    ['version', 0x30, 0xffff_ffff, 0x0105_0014],
    ['TPR', 0x80, 0xffff_ffff, 0xff],
    ['LDR', 0xd0, 0xffff_ffff, 0xff00_0000],
    ['DFR', 0xe0, 0, 0x0fff_ffff],
    ['spurious vector', 0xf0, 0xffff_ffff, 0x13ff],
    ['ESR', 0x280, 0xffff_ffff, 0],
    ['ICR2', 0x310, 0xffff_ffff, 0xff00_0000],
    ['timer entry', 0x320, 0xffff_ffff, 0x710ff],
    ['thermal entry', 0x330, 0xffff_ffff, 0x117ff],
    ['performance entry', 0x340, 0xffff_ffff, 0x117ff],
    ['LINT0', 0x350, 0xffff_ffff, 0x1f7ff],
    ['LINT1', 0x360, 0xffff_ffff, 0x1f7ff],
    ['error entry', 0x370, 0xffff_ffff, 0x110ff],
    ['divider', 0x3e0, 0xffff_ffff, 0xb],
    ['CMCI entry, which is absent', 0x2f0, 0, 0xeeee_eeee],
    ['EOI, which cannot be read', 0xb0, 0, 0xeeee_eeee],
    ['a hole', 0x40, 1, 0xeeee_eeee],
    ['self IPI, which only x2APIC has', 0x3f0, 0x40, 0xeeee_eeee],
  ])('%s keeps the bits that exist', (_name, offset, written, read) => {
    const bench = new LapicBench().enable();
    bench.write(offset, written);
    expect(bench.read(offset)).toBe(read);
  });

  it('masks every LVT entry while the APIC is software-disabled', () => {
    const bench = new LapicBench();
    bench.write(0x320, 0x40);
    expect(bench.read(0x320)).toBe(0x10040);
    bench.enable();
    bench.write(0x320, 0x40);
    expect(bench.read(0x320)).toBe(0x40);
    bench.write(0xf0, 0xff);
    expect(bench.read(0x320)).toBe(0x10040);
  });

  it('reads 1 and 2 bytes within a register, and leaves alone what crosses it', () => {
    const bench = new LapicBench();
    const part = (offset: number, bytes: number): number[] => {
      const into = new Uint8Array(bytes).fill(0xee);
      bench.lapic.readPage(offset, into);
      return [...into];
    };
    expect(part(0x32, 1)).toEqual([0x05]);
    expect(part(0x32, 2)).toEqual([0x05, 0x01]);
    expect(part(0x33, 2)).toEqual([0xee, 0xee]);
    expect(part(0x30, 8)).toEqual(new Array(8).fill(0xee));
    expect(part(0x34, 1)).toEqual([0xee]);
  });

  it('reads the arbitration priority as 0, whatever a state brought', () => {
    const bench = new LapicBench().enable();
    bench.lapic.setRegister(0x90, 0x55);
    expect(bench.read(0x90)).toBe(0);
  });

  it('has no register for a self IPI', () => {
    const bench = new LapicBench().enable();
    bench.write(0x3f0, 0x60);
    expect(bench.lapic.highestRequest()).toBe(-1);
  });

  it('drops stores that are not 4 aligned bytes', () => {
    const bench = new LapicBench();
    bench.lapic.writePage(0x80, new Uint8Array([1]));
    bench.lapic.writePage(0x84, new Uint8Array([1, 0, 0, 0]));
    bench.lapic.writePage(0x80, new Uint8Array(8).fill(1));
    expect(bench.read(0x80)).toBe(0);
  });
});

describe('x2APIC MSRs', () => {
  it.each([
    ['version', 0x30, 0x0105_0014n],
    ['id', 0x20, 0x23n],
    ['LDR from the id', 0xd0, 0x2_0008n],
    ['EOI', 0xb0, undefined],
    ['DFR', 0xe0, undefined],
    ['ICR2', 0x310, undefined],
    ['arbitration', 0x90, undefined],
    ['self IPI', 0x3f0, undefined],
    ['CMCI', 0x2f0, undefined],
  ])('%s reads as it does there', (_name, offset, value) => {
    expect(new LapicBench([0x23]).x2apic().lapic.readMsr(offset)).toBe(value);
  });

  it.each([
    ['id', 0x20, 0n, false],
    ['LDR', 0xd0, 0n, false],
    ['DFR', 0xe0, 0n, false],
    ['ICR2', 0x310, 0n, false],
    ['version', 0x30, 0n, false],
    ['TPR', 0x80, 0x20n, true],
    ['TPR with all of 32 bits', 0x80, 0xffff_ffffn, true],
    ['TPR with bits above 31', 0x80, 0x1_0000_0000n, false],
    ['EOI', 0xb0, 0n, true],
    ['EOI with another value, which KVM takes', 0xb0, 1n, true],
    ['ESR with 0', 0x280, 0n, true],
    ['ESR with 1', 0x280, 1n, false],
    ['self IPI', 0x3f0, 0x40n, true],
    ['self IPI with bits above the vector', 0x3f0, 0x140n, false],
    ['ICR with bit 13', 0x300, 0x2000n, false],
    ['ICR with bit 16', 0x300, 0x10000n, false],
    ['ICR with bit 20', 0x300, 0x100000n, false],
    ['ICR with bit 31', 0x300, 0x8000_0000n, false],
    ['ICR with the busy bit', 0x300, 0x1000n, true],
  ])('%s takes or refuses a value', (_name, offset, value, taken) => {
    expect(new LapicBench([0x23]).x2apic().lapic.writeMsr(offset, value)).toBe(taken);
  });

  it('exist in x2APIC mode alone', () => {
    const { lapic } = new LapicBench().enable();
    expect(lapic.readMsr(0x30)).toBeUndefined();
    expect(lapic.writeMsr(0x80, 0n)).toBe(false);
  });

  it('keep the ICR as 64 bits without the busy bit', () => {
    const { lapic } = new LapicBench([1]).x2apic();
    lapic.writeMsr(0x300, 0x7_0000_1044n);
    expect(lapic.readMsr(0x300)).toBe(0x7_0000_0044n);
  });
});

describe('IA32_APIC_BASE', () => {
  const GUEST = { physicalBits: 48, hasX2apic: true, by: 'guest' } as const;
  it.each([
    ['the same value, whatever it is', 0xfee00aff, 0xfee00aff, true],
    ['disabled from xAPIC', 0xfee00900, 0xfee00100, true],
    ['xAPIC from disabled', 0xfee00100, 0xfee00900, true],
    ['x2APIC from xAPIC', 0xfee00900, 0xfee00d00, true],
    ['x2APIC from disabled', 0xfee00100, 0xfee00d00, false],
    ['xAPIC from x2APIC', 0xfee00d00, 0xfee00900, false],
    ['disabled from x2APIC', 0xfee00d00, 0xfee00100, true],
    ['x2APIC without the enable bit', 0xfee00900, 0xfee00500, false],
    ['another page', 0xfee00900, 0xfee01900, true],
    ['bit 0', 0xfee00900, 0xfee00901, false],
    ['bit 9', 0xfee00900, 0xfee00b00, false],
    ['an address above MAXPHYADDR', 0xfee00900, 0x1_0000_fee0_0900, false],
  ])('a guest and %s', (_name, old, value, valid) => {
    expect(apicBaseIsValid(BigInt(old), BigInt(value), GUEST)).toBe(valid);
  });

  it('user space changes the mode as it likes', () => {
    const host = { ...GUEST, by: 'host' } as const;
    expect(apicBaseIsValid(0xfee00d00n, 0xfee00900n, host)).toBe(true);
    expect(apicBaseIsValid(0xfee00100n, 0xfee00d00n, host)).toBe(true);
    expect(apicBaseIsValid(0xfee00900n, 0xfee00500n, host)).toBe(false);
  });

  it('has no x2APIC mode without the CPUID bit', () => {
    expect(apicBaseIsValid(0xfee00900n, 0xfee00d00n, { ...GUEST, hasX2apic: false })).toBe(false);
  });

  it('gives the id of reset back when the APIC is enabled', () => {
    const bench = new LapicBench([5]);
    bench.write(0x20, 0x7700_0000);
    bench.base(0xfee00000n);
    bench.base(0xfee00800n);
    expect(bench.read(0x20)).toBe(0x0500_0000);
  });
});

describe('priorities', () => {
  const fixed = (vector: number) => ({ delivery: 0, vector, assert: true, level: false });

  it('the highest class goes first, and holds back what is not above it', () => {
    const bench = new LapicBench().enable();
    for (const vector of [0x31, 0x45, 0x4f]) bench.lapic.accept(fixed(vector));
    expect(bench.take()).toBe(0x4f);
    expect(bench.read(0xa0)).toBe(0x40);
    expect(bench.take()).toBe(-1);
    bench.write(0xb0, 0);
    expect(bench.take()).toBe(0x45);
    bench.write(0xb0, 0);
    expect(bench.take()).toBe(0x31);
    bench.write(0xb0, 0);
    expect(bench.read(0xa0)).toBe(0);
  });

  it('the task priority holds back its class and what is below', () => {
    const bench = new LapicBench().enable();
    bench.lapic.accept(fixed(0x4f));
    bench.write(0x80, 0x40);
    expect(bench.lapic.pendingVector()).toBe(-1);
    expect(bench.lapic.cr8).toBe(4);
    bench.write(0x80, 0x3f);
    expect(bench.read(0xa0)).toBe(0x3f);
    expect(bench.lapic.pendingVector()).toBe(0x4f);
  });

  it('of the task’s and the service’s class, if they are one, the task’s subclass counts', () => {
    const bench = new LapicBench().enable();
    bench.lapic.accept(fixed(0x62));
    bench.take();
    bench.write(0x80, 0x65);
    expect(bench.read(0xa0)).toBe(0x65);
  });

  it('an EOI of nothing wakes nobody', () => {
    const bench = new LapicBench().enable();
    const { kicks } = bench.vcpu();
    bench.write(0xb0, 0);
    expect(bench.vcpu().kicks).toBe(kicks);
  });

  it('vectors below 16 never get through', () => {
    const bench = new LapicBench().enable();
    bench.lapic.accept(fixed(0x0f));
    expect(bench.lapic.pendingVector()).toBe(-1);
  });

  it('an EOI without an interrupt in service changes nothing', () => {
    const bench = new LapicBench().enable();
    bench.lapic.accept(fixed(0x55));
    bench.write(0xb0, 0);
    expect(bench.take()).toBe(0x55);
  });

  it('are those of a simple model, whatever comes in which order', () => {
    const step = fc.oneof(
      fc.record({ kind: fc.constant('request' as const), value: fc.integer({ min: 16, max: 255 }) }),
      fc.record({ kind: fc.constant('tpr' as const), value: fc.integer({ min: 0, max: 255 }) }),
      fc.record({ kind: fc.constant('take' as const), value: fc.constant(0) }),
      fc.record({ kind: fc.constant('eoi' as const), value: fc.constant(0) }),
    );
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        const bench = new LapicBench().enable();
        const requests = new Set<number>();
        const service = new Set<number>();
        let tpr = 0;
        const top = (set: Set<number>) => Math.max(-1, ...set);
        for (const { kind, value } of steps) {
          if (kind === 'request') {
            bench.lapic.accept(fixed(value));
            requests.add(value);
          } else if (kind === 'tpr') {
            bench.write(0x80, value);
            tpr = value;
          } else if (kind === 'take') {
            const best = top(requests);
            const floor = Math.max(tpr >> 4, service.size === 0 ? 0 : top(service) >> 4);
            const want = best >> 4 > floor ? best : -1;
            expect(bench.take()).toBe(want);
            if (want >= 0) {
              requests.delete(want);
              service.add(want);
            }
          } else {
            bench.write(0xb0, 0);
            service.delete(top(service));
          }
        }
        expect(bench.lapic.highestRequest()).toBe(top(requests));
      }),
    );
  });
});

describe('acceptance', () => {
  const message = (delivery: number, over: object = {}) => ({
    delivery,
    vector: 0x40,
    assert: true,
    level: false,
    ...over,
  });

  it('a level message sets the TMR bit, an edge clears it, a de-assert is dropped', () => {
    const bench = new LapicBench().enable();
    expect(bench.lapic.accept(message(0, { level: true }))).toBe(true);
    expect(bench.read(0x180 + 0x20)).toBe(1);
    expect(bench.lapic.accept(message(0))).toBe(true);
    expect(bench.read(0x180 + 0x20)).toBe(0);
    expect(bench.lapic.accept(message(0, { level: true, assert: false }))).toBe(false);
  });

  it('a software-disabled APIC drops fixed messages and takes NMI, INIT and SIPI', () => {
    const bench = new LapicBench();
    expect(bench.lapic.accept(message(0))).toBe(false);
    expect(bench.lapic.accept(message(0x100))).toBe(false);
    expect(bench.lapic.accept(message(0x400))).toBe(true);
    expect(bench.vcpu().nmis).toBe(1);
    expect(bench.lapic.accept(message(0x500))).toBe(true);
    expect(bench.lapic.accept(message(0x600, { vector: 9 }))).toBe(true);
    expect([bench.lapic.initPending, bench.lapic.sipiPending, bench.lapic.sipiVector]).toEqual([
      true,
      true,
      9,
    ]);
  });

  it('an INIT forgets a SIPI before it; a level INIT that de-asserts is dropped', () => {
    const { lapic } = new LapicBench();
    lapic.accept(message(0x600));
    lapic.accept(message(0x500));
    expect([lapic.initPending, lapic.sipiPending]).toEqual([true, false]);
    const other = new LapicBench().lapic;
    expect(other.accept(message(0x500, { level: true, assert: false }))).toBe(false);
    expect(other.initPending).toBe(false);
  });

  it('a hardware-disabled APIC drops fixed messages too, though software had enabled it', () => {
    const bench = new LapicBench().enable();
    bench.lapic.accept(message(0));
    bench.vcpu().apicBase &= ~0x800n;
    expect(bench.lapic.softwareEnabled).toBe(true);
    expect(bench.lapic.accept(message(0))).toBe(false);
    expect(bench.lapic.pendingVector()).toBe(-1);
  });

  it('a hardware-disabled APIC lets external interrupts through and has no local ones', () => {
    const bench = new LapicBench().enable();
    bench.write(0x350, 0x1_0700);
    bench.write(0x360, 0x400);
    expect(bench.lapic.acceptsExternal).toBe(false);
    bench.vcpu().apicBase &= ~0x800n;
    expect(bench.lapic.acceptsExternal).toBe(true);
    expect(bench.lapic.deliverLocal(0x360)).toBe(false);
    expect(bench.vcpu().nmis).toBe(0);
  });

  it.each([
    ['an edge, whatever it asserts', { level: false, assert: false }],
    ['a level that asserts', { level: true, assert: true }],
  ])('an INIT is taken as %s', (_, over) => {
    const { lapic } = new LapicBench();
    expect(lapic.accept(message(0x500, over))).toBe(true);
    expect(lapic.initPending).toBe(true);
  });

  it('SMI and external interrupts do not come this way', () => {
    const bench = new LapicBench().enable();
    expect(bench.lapic.accept(message(0x200))).toBe(false);
    expect(bench.lapic.accept(message(0x700))).toBe(false);
    expect(bench.vcpu().kicks).toBe(0);
  });
});
