import { describe, expect, it } from 'vitest';
import { HostTime, HostTimer } from '../../../src/kernel/kvm/host-time.ts';

/** A host whose "soon" the test says. */
function host() {
  const soon: (() => void)[] = [];
  const time = new HostTime((check) => void soon.push(check));
  const fired: string[] = [];
  const timer = (name: string): HostTimer => new HostTimer(() => void fired.push(`${name} at ${time.now()}`));
  return {
    time,
    soon,
    fired,
    timer,
    later() {
      for (const check of soon.splice(0)) check();
    },
  };
}

describe('the host’s time', () => {
  it('passes a nanosecond an instruction, also while a core runs', () => {
    const { time } = host();
    const core = { retired: 700 };
    time.leave(10);
    time.enter(core, 700);
    core.retired = 705;
    expect(time.now()).toBe(15);
    time.leave(6);
    expect(time.now()).toBe(16);
  });

  it('fires timers in the order of their time', () => {
    const { time, timer, fired } = host();
    time.start(timer('b'), 20);
    time.start(timer('a'), 10);
    const off = timer('off');
    time.start(off, 15);
    expect(time.nextDue).toBe(10);
    expect([time.cancel(off), time.cancel(off)]).toEqual([true, false]);
    time.leave(9);
    time.expire();
    expect(fired).toEqual([]);
    time.leave(20);
    time.expire();
    expect(fired).toEqual(['a at 29', 'b at 29']);
    expect(time.nextDue).toBe(Number.POSITIVE_INFINITY);
  });

  it('fires timers of one time in the order in which they were armed', () => {
    const { time, timer, fired } = host();
    for (const name of ['a', 'b', 'c']) time.start(timer(name), 10);
    time.leave(10);
    time.expire();
    expect(fired).toEqual(['a at 10', 'b at 10', 'c at 10']);
  });

  it('skips to the next timer when all who could run are blocked', () => {
    const { time, timer, fired, later } = host();
    time.start(timer('a'), 1000);
    time.block();
    later();
    expect(fired).toEqual([]);
    later();
    expect(fired).toEqual(['a at 1000']);
  });

  it('does not skip while somebody runs', () => {
    const { time, timer, fired, later } = host();
    time.block();
    time.start(timer('a'), 1000);
    later();
    time.enter({ retired: 0 }, 0);
    time.leave(1);
    later();
    expect(fired).toEqual([]);
    later();
    later();
    expect(fired).toEqual(['a at 1000']);
  });

  it('does not skip for a vCPU that is gone', () => {
    const { time, timer, fired, later } = host();
    time.start(timer('a'), 1000);
    time.block();
    later();
    time.unblock();
    later();
    expect(fired).toEqual([]);
    expect(time.now()).toBe(0);
  });

  it('does not skip once nobody is blocked, and stops looking', () => {
    const { time, timer, soon, later } = host();
    time.start(timer('a'), 1000);
    time.block();
    later();
    time.unblock();
    for (let i = 0; i < 4; i++) later();
    expect([time.now(), soon.length]).toEqual([0, 0]);
  });

  it('does not skip to a timer that was cancelled, and looks no more', () => {
    const { time, timer, soon, later } = host();
    const cancelled = timer('a');
    time.start(cancelled, 1000);
    time.block();
    later();
    time.cancel(cancelled);
    later();
    expect([time.now(), soon.length]).toEqual([0, 0]);
  });

  it('is not looked at without a timer, and once at a time however many block', () => {
    const { time, timer, soon } = host();
    time.block();
    expect(soon.length).toBe(0);
    time.start(timer('a'), 1000);
    time.block();
    time.block();
    expect(soon.length).toBe(1);
  });
});
