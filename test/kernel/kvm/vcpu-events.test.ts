/** KVM_SET_VCPU_EVENTS at the edges of its rules, and what KVM_GET_SREGS shows of an event. */
import { describe, expect, it } from 'vitest';
import { failure } from '../process-fixture.ts';
import { startVm } from './vm-fixture.ts';

const events = (over: { nr?: number; injected?: number; smm?: number; flags?: number }) => {
  const { vcpu } = startVm();
  const now = vcpu.getVcpuEvents();
  return failure(() =>
    vcpu.setVcpuEvents({
      ...now,
      flags: over.flags ?? 0,
      exception: { ...now.exception, injected: over.injected ?? 0, nr: over.nr ?? 0 },
      smi: { ...now.smi, smm: over.smm ?? 0 },
    }),
  );
};

describe('KVM_SET_VCPU_EVENTS', () => {
  it.each([
    ['exception 31', { injected: 1, nr: 31 }, 'OK'],
    ['exception 32', { injected: 1, nr: 32 }, 'EINVAL'],
    ['exception 2, which is the NMI', { injected: 1, nr: 2 }, 'EINVAL'],
    ['exception 32 that is none', { injected: 0, nr: 32 }, 'OK'],
    ['SMM without its flag', { smm: 1 }, 'OK'],
    ['a flag that is none', { flags: 0x40 }, 'EINVAL'],
  ])('%s', (_, over, want) => {
    expect(events(over)).toBe(want);
  });

  it('an interrupt shows in the bitmap of KVM_GET_SREGS, one of an INT instruction does not', () => {
    for (const [soft, want] of [
      [0, 1n << 0x20n],
      [1, 0n],
    ] as const) {
      const { vcpu } = startVm();
      vcpu.setVcpuEvents({
        ...vcpu.getVcpuEvents(),
        flags: 0,
        interrupt: { injected: 1, nr: 0x60, soft, shadow: 0 },
      });
      expect(vcpu.getSregs().interruptBitmap[1]).toBe(want);
    }
  });
});

describe('KVM_GET_VCPU_EVENTS', () => {
  it.each([
    ['INT3', 3, 0],
    ['INTO', 4, 0],
    ['#BR', 5, 1],
  ])('does not show what comes again at RIP: %s', (_, nr, injected) => {
    const { vcpu } = startVm();
    const now = vcpu.getVcpuEvents();
    vcpu.setVcpuEvents({ ...now, exception: { ...now.exception, injected: 1, nr } });
    expect(vcpu.getVcpuEvents().exception).toMatchObject({ nr, injected });
  });

  it('shows an exception that waits as injected too, unless user space knows of payloads', () => {
    const { vcpu } = startVm();
    vcpu.setGuestDebug({ control: 0x4_0001, debugreg: [] });
    expect(vcpu.getVcpuEvents().exception).toMatchObject({ nr: 1, injected: 1, pending: 1 });
  });
});
