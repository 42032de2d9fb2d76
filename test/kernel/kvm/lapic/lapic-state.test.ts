import { describe, expect, it } from 'vitest';
import { getLapic, setLapic } from '../../../../src/kernel/kvm/lapic/lapic-state.ts';
import { LapicBench } from './lapic-bench.ts';

const word = (state: Uint8Array, offset: number): number =>
  new DataView(state.buffer, state.byteOffset).getUint32(offset, true);
const setWord = (state: Uint8Array, offset: number, value: number): void =>
  new DataView(state.buffer, state.byteOffset).setUint32(offset, value, true);
const get = (bench: LapicBench): Uint8Array => getLapic(bench.lapic, bench.controller);
const set = (bench: LapicBench, state: Uint8Array): void => setLapic(bench.lapic, bench.controller, state);

describe('KVM_GET_LAPIC and KVM_SET_LAPIC', () => {
  it('give 1024 bytes of registers at their offsets', () => {
    const state = get(new LapicBench([3]).enable());
    expect(state.length).toBe(1024);
    expect([0x20, 0x30, 0xe0, 0xf0].map((offset) => word(state, offset))).toEqual([
      0x0300_0000, 0x0105_0014, 0xffff_ffff, 0x1ff,
    ]);
  });

  it('carry requests, services and priorities over to another vCPU', () => {
    const from = new LapicBench().enable();
    for (const vector of [0x31, 0x52]) from.lapic.accept({ delivery: 0, vector, assert: true, level: false });
    from.take();
    const to = new LapicBench();
    set(to, get(from));
    expect(to.read(0xa0)).toBe(0x50);
    expect(to.take()).toBe(-1);
    to.write(0xb0, 0);
    expect(to.take()).toBe(0x31);
  });

  it('give a timer in TSC-deadline mode no count, also after a new divider', () => {
    const bench = new LapicBench().enable();
    bench.write(0x3e0, 0xb);
    bench.write(0x320, 0x50);
    bench.write(0x380, 1_000_001);
    bench.write(0x320, 0x40050);
    const state = get(bench);
    setWord(state, 0x380, 1000);
    set(bench, state);
    bench.write(0x3e0, 0);
    expect([bench.read(0x390), bench.time.nextDue]).toEqual([0, Number.POSITIVE_INFINITY]);
  });

  it('let a timer go on where it was', () => {
    const from = new LapicBench().enable();
    from.write(0x3e0, 0xb);
    from.write(0x320, 0x50);
    from.write(0x380, 10_000);
    from.pass(4000);
    const state = get(from);
    expect(word(state, 0x390)).toBe(6000);
    const to = new LapicBench();
    set(to, state);
    to.pass(5999);
    expect(to.lapic.timer.pending).toBe(false);
    to.pass(1);
    expect(to.lapic.timer.pending).toBe(true);
  });

  it('let a timer that has more left than it began with begin anew', () => {
    const from = new LapicBench().enable();
    from.write(0x3e0, 0xb);
    from.write(0x320, 0x50);
    from.write(0x380, 10_000);
    const state = get(from);
    setWord(state, 0x390, 12_000);
    const to = new LapicBench();
    set(to, state);
    expect(to.read(0x390)).toBe(10_000);
    to.pass(1);
    expect(to.read(0x390)).toBe(9999);
  });

  it('let a timer that has just begun have all of its time', () => {
    const from = new LapicBench().enable();
    from.write(0x3e0, 0xb);
    from.write(0x320, 0x50);
    from.write(0x380, 10_000);
    const state = get(from);
    expect(word(state, 0x390)).toBe(10_000);
    const to = new LapicBench();
    set(to, state);
    expect(word(get(to), 0x390)).toBe(10_000);
    set(to, get(to));
    to.pass(9999);
    expect(to.lapic.timer.pending).toBe(false);
    to.pass(1);
    expect(to.lapic.timer.pending).toBe(true);
  });

  it.each([
    ['a periodic timer', 0x20050, 300_000],
    ['a one-shot timer', 0x50, 0],
  ])('let %s that has nothing left expire %#', (_name, lvt, after) => {
    const from = new LapicBench().enable();
    from.write(0x3e0, 0xb);
    from.write(0x320, lvt);
    from.write(0x380, 300_000);
    const state = get(from);
    setWord(state, 0x390, 0);
    const to = new LapicBench();
    set(to, state);
    expect(to.time.nextDue).toBe(after);
  });

  it('show an x2APIC’s id in bits 31:24, and take any', () => {
    const bench = new LapicBench([5]).x2apic();
    const state = get(bench);
    expect(word(state, 0x20)).toBe(0x0500_0000);
    setWord(state, 0x20, 0x0900_0000);
    setWord(state, 0xd0, 7);
    set(bench, state);
    expect([bench.lapic.readMsr(0x20), bench.lapic.readMsr(0xd0)]).toEqual([5n, 0x20n]);
  });

  it('with 32-bit ids show the id as it is, and refuse another', () => {
    const bench = new LapicBench([5]).x2apic();
    bench.controller.setX2apicApi(1n);
    const state = get(bench);
    expect(word(state, 0x20)).toBe(5);
    setWord(state, 0x20, 6);
    expect(() => set(bench, state)).toThrow('EINVAL');
    setWord(state, 0x20, 5);
    set(bench, state);
  });

  it('split the 64 bits of an x2APIC’s ICR', () => {
    const bench = new LapicBench([5]).x2apic();
    bench.lapic.writeMsr(0x300, 0x1234_5678_0000_0044n);
    const state = get(bench);
    expect([word(state, 0x300), word(state, 0x310)]).toEqual([0x44, 0x1234_5678]);
  });

  it('keep the version that the vCPU has', () => {
    const bench = new LapicBench();
    const state = get(bench);
    setWord(state, 0x30, 0x12345678);
    set(bench, state);
    expect(bench.read(0x30)).toBe(0x0105_0014);
  });
});
