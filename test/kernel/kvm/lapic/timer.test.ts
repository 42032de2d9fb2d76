import { describe, expect, it } from 'vitest';
import { getLapic, setLapic } from '../../../../src/kernel/kvm/lapic/lapic-state.ts';
import { LapicBench } from './lapic-bench.ts';

const TIMER = 0x320;
const INITIAL = 0x380;
const CURRENT = 0x390;
const DIVIDE = 0x3e0;

/** An enabled APIC whose timer has vector 0x50 in the mode. */
const armed = (mode: number, divide = 0xb): LapicBench => {
  const bench = new LapicBench().enable();
  bench.write(DIVIDE, divide);
  bench.write(TIMER, mode | 0x50);
  return bench;
};
/** What the vCPU's run loop does with a timer that has expired. */
const interrupt = (bench: LapicBench): number => {
  if (bench.lapic.timerPending) bench.lapic.injectTimer();
  return bench.lapic.highestRequest();
};

describe('the divider', () => {
  it.each([
    [0x0, 2],
    [0x1, 4],
    [0x2, 8],
    [0x3, 16],
    [0x8, 32],
    [0x9, 64],
    [0xa, 128],
    [0xb, 1],
  ])('0x%x divides by %i', (value, divisor) => {
    const bench = armed(0, value);
    bench.write(INITIAL, 1000);
    bench.pass(100 * divisor);
    expect(bench.read(CURRENT)).toBe(900);
  });

  it('goes on from where the count is when it changes', () => {
    const bench = armed(0);
    bench.write(INITIAL, 1000);
    bench.pass(400);
    bench.write(DIVIDE, 1);
    expect(bench.read(CURRENT)).toBe(600);
    bench.pass(2399);
    expect(interrupt(bench)).toBe(-1);
    bench.pass(1);
    expect(interrupt(bench)).toBe(0x50);
  });
});

describe('a one-shot timer', () => {
  it('that has expired is not begun again by a divider, the same or another', () => {
    for (const divide of [0xb, 0x0]) {
      const bench = armed(0);
      bench.write(INITIAL, 5000);
      bench.pass(5000);
      bench.write(DIVIDE, divide);
      expect(interrupt(bench)).toBe(0x50);
      bench.take();
      bench.pass(1_000_000);
      expect(interrupt(bench)).toBe(-1);
    }
  });

  it('that was delivered is not begun again by the divider that it has', () => {
    const bench = armed(0);
    bench.write(INITIAL, 5000);
    bench.pass(5000);
    expect(interrupt(bench)).toBe(0x50);
    bench.take();
    bench.write(DIVIDE, 0xb);
    bench.pass(1_000_000);
    expect(interrupt(bench)).toBe(-1);
  });

  it('without a count is not begun by a divider', () => {
    const bench = armed(0);
    bench.write(DIVIDE, 0x0);
    bench.pass(1_000_000);
    expect(interrupt(bench)).toBe(-1);
  });

  it('has its whole count left when it begins', () => {
    const bench = armed(0, 0x1);
    bench.write(INITIAL, 1000);
    expect(bench.read(CURRENT)).toBe(1000);
    bench.pass(4);
    expect(bench.read(CURRENT)).toBe(999);
  });

  it('has none left after an INIT', () => {
    const bench = armed(0);
    bench.write(INITIAL, 1_000_000);
    bench.pass(10);
    bench.lapic.reset('init', 'extint');
    expect([bench.read(INITIAL), bench.read(CURRENT)]).toEqual([0, 0]);
  });

  it('without a count has none left', () => {
    expect(armed(0).lapic.timer.currentCount).toBe(0);
  });

  it('interrupts once, when its count has run down', () => {
    const bench = armed(0);
    bench.write(INITIAL, 5000);
    bench.pass(4999);
    expect(interrupt(bench)).toBe(-1);
    bench.pass(1);
    expect(interrupt(bench)).toBe(0x50);
    expect(bench.read(CURRENT)).toBe(0);
    expect(bench.read(INITIAL)).toBe(5000);
    expect(bench.take()).toBe(0x50);
    bench.pass(1_000_000);
    expect(interrupt(bench)).toBe(-1);
  });

  it('stops with a count of 0', () => {
    const bench = armed(0);
    bench.write(INITIAL, 5000);
    bench.write(INITIAL, 0);
    bench.pass(10_000);
    expect(bench.lapic.timer.pending).toBe(false);
  });

  it('that has expired waits while the APIC is disabled in its base', () => {
    const bench = armed(0);
    bench.write(INITIAL, 100);
    bench.pass(100);
    const pending = (base: bigint): boolean => {
      bench.base(base);
      return bench.lapic.timerPending;
    };
    expect([pending(0xfee0_0100n), pending(0xfee0_0900n)]).toEqual([false, true]);
  });

  it('of an APIC that KVM_SET_LAPIC gives software-disabled does not interrupt, though its entry is unmasked', () => {
    const bench = armed(0);
    bench.write(INITIAL, 100);
    const state = getLapic(bench.lapic, bench.controller);
    new DataView(state.buffer, state.byteOffset).setUint32(0xf0, 0xff, true);
    setLapic(bench.lapic, bench.controller, state);
    bench.pass(100);
    expect([bench.lapic.timer.pending, bench.lapic.timerPending]).toEqual([true, false]);
  });

  it('masked, it counts, and what expires is not delivered', () => {
    const bench = armed(0x10000);
    bench.write(INITIAL, 100);
    bench.pass(100);
    expect(bench.lapic.timer.pending).toBe(true);
    expect(bench.lapic.timerPending).toBe(false);
    expect(bench.lapic.deliverLocal(TIMER)).toBe(false);
    expect(bench.lapic.highestRequest()).toBe(-1);
  });

  it('kicks the vCPU when it expires', () => {
    const bench = armed(0);
    bench.write(INITIAL, 100);
    bench.vcpu().kicks = 0;
    bench.pass(100);
    expect(bench.vcpu().kicks).toBe(1);
  });
});

describe('a periodic timer', () => {
  it('without a count is not begun by a divider', () => {
    const bench = armed(0x20000);
    bench.write(DIVIDE, 0x0);
    bench.pass(1_000_000);
    expect(interrupt(bench)).toBe(-1);
  });

  it('that INIT stopped is not begun by a divider', () => {
    const bench = armed(0x20000);
    bench.write(INITIAL, 300_000);
    bench.lapic.reset('init', 'extint');
    bench.enable();
    bench.write(TIMER, 0x20050);
    bench.write(DIVIDE, 0xb);
    bench.pass(1_000_000);
    expect(interrupt(bench)).toBe(-1);
  });

  it('interrupts every period', () => {
    const bench = armed(0x20000);
    bench.write(INITIAL, 300_000);
    let count = 0;
    for (let i = 0; i < 30; i++) {
      bench.pass(100_000);
      if (interrupt(bench) === 0x50) {
        count++;
        bench.take();
        bench.write(0xb0, 0);
      }
    }
    expect(count).toBe(10);
  });

  it('is no faster than 200 µs', () => {
    const bench = armed(0x20000);
    bench.write(INITIAL, 1000);
    bench.pass(199_999);
    expect(bench.lapic.timer.pending).toBe(false);
    bench.pass(1);
    expect(bench.lapic.timer.pending).toBe(true);
  });

  it('goes on with a new divider though an interrupt of it waits', () => {
    const bench = armed(0x20000);
    bench.write(INITIAL, 300_000);
    bench.pass(300_000);
    expect(bench.lapic.timer.pending).toBe(true);
    bench.write(DIVIDE, 0x0);
    expect(interrupt(bench)).toBe(0x50);
    bench.take();
    bench.write(0xb0, 0);
    bench.pass(599_999);
    expect(bench.lapic.timer.pending).toBe(false);
    bench.pass(1);
    expect(bench.lapic.timer.pending).toBe(true);
  });

  it('does not make up for periods that nobody saw', () => {
    const bench = armed(0x20000);
    bench.write(INITIAL, 200_000);
    bench.pass(10_000_000);
    expect(interrupt(bench)).toBe(0x50);
    bench.take();
    bench.write(0xb0, 0);
    bench.pass(1);
    expect(interrupt(bench)).toBe(-1);
  });
});

describe('TSC deadline', () => {
  it('interrupts when the time stamp counter gets there, and reads 0 then', () => {
    const bench = armed(0x40000);
    bench.lapic.tscDeadline = 7000n;
    expect(bench.lapic.tscDeadline).toBe(7000n);
    bench.pass(6999);
    expect(interrupt(bench)).toBe(-1);
    bench.pass(1);
    expect(interrupt(bench)).toBe(0x50);
    expect(bench.lapic.tscDeadline).toBe(0n);
  });

  it('in the past or now is at once, 0 is never', () => {
    for (const deadline of [50n, 100n]) {
      const bench = armed(0x40000);
      bench.pass(100);
      bench.lapic.tscDeadline = deadline;
      expect(interrupt(bench)).toBe(0x50);
    }
    const off = armed(0x40000);
    off.lapic.tscDeadline = 5n;
    off.lapic.tscDeadline = 0n;
    off.pass(10);
    expect(off.lapic.timer.pending).toBe(false);
  });

  it.each([
    [4_503_599_627_370_495n, 4_503_599_627_370_495],
    [4_503_599_627_370_496n, Number.POSITIVE_INFINITY],
    [0xffff_ffff_ffff_ffffn, Number.POSITIVE_INFINITY],
  ])('%i is due at %d: 52 days from now is never', (deadline, due) => {
    const bench = armed(0x40000);
    bench.lapic.tscDeadline = deadline;
    expect(bench.time.nextDue).toBe(due);
  });

  it('is not there without the CPUID bit, nor outside its mode', () => {
    const bench = new LapicBench();
    bench.vcpu().hasTscDeadline = false;
    bench.lapic.setVersion();
    bench.enable();
    bench.write(TIMER, 0x40050);
    expect(bench.read(TIMER)).toBe(0x50);
    bench.lapic.tscDeadline = 5n;
    expect(bench.lapic.tscDeadline).toBe(0n);
  });

  it('reads 0 while the APIC is disabled in its base', () => {
    const bench = armed(0x40000);
    bench.lapic.tscDeadline = 7000n;
    bench.base(0xfee0_0100n);
    expect(bench.lapic.tscDeadline).toBe(0n);
    bench.base(0xfee0_0900n);
    expect(bench.lapic.tscDeadline).toBe(7000n);
  });

  it('leaving or entering the mode disarms the timer', () => {
    const bench = armed(0);
    bench.write(INITIAL, 1000);
    bench.write(TIMER, 0x40050);
    expect(bench.read(INITIAL)).toBe(0);
    bench.write(INITIAL, 500);
    expect(bench.read(INITIAL)).toBe(0);
    bench.lapic.tscDeadline = 900n;
    bench.write(TIMER, 0x50);
    bench.pass(2000);
    expect(bench.lapic.timer.pending).toBe(false);
  });
});
