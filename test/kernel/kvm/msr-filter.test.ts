/** The rules of KVM_X86_SET_MSR_FILTER and what a filter allows. */
import { describe, expect, it } from 'vitest';
import { MsrPermissions, msrAllowed } from '../../../src/kernel/kvm/msr-filter.ts';
import { failure } from '../process-fixture.ts';
import { exit, HLT, VcpuBench } from './vcpu-bench.ts';

/** Reads and writes of `nmsrs` MSRs from 0x100 on, of which those whose bit is set are allowed. */
const range = (over: object = {}) => ({
  flags: 3,
  base: 0x100,
  nmsrs: 10,
  bitmap: Uint8Array.of(0b101, 0b11),
  ...over,
});

describe('a filter', () => {
  it.each([
    ['of nothing', { flags: 0, ranges: [] }, 'OK'],
    ['with an unknown flag', { flags: 2, ranges: [range()] }, 'EINVAL'],
    ['of 16 ranges', { flags: 0, ranges: Array.from({ length: 16 }, () => range()) }, 'OK'],
    ['that denies by default, without a range', { flags: 1, ranges: [] }, 'EINVAL'],
    ['that denies by default, with an empty range', { flags: 1, ranges: [range({ nmsrs: 0 })] }, 'EINVAL'],
    ['whose range has no flags', { flags: 0, ranges: [range({ flags: 0 })] }, 'EINVAL'],
    ['whose range has an unknown flag', { flags: 0, ranges: [range({ flags: 4 })] }, 'EINVAL'],
    ['whose bitmap ends in the last byte', { flags: 0, ranges: [range({ nmsrs: 16 })] }, 'OK'],
    ['whose bitmap ends before its range', { flags: 0, ranges: [range({ nmsrs: 17 })] }, 'EFAULT'],
  ])('%s', (_, filter, want) => {
    expect(failure(() => new MsrPermissions(filter))).toBe(want);
  });

  it('asks its bits within the range, and the default on either side', () => {
    for (const [flags, outside] of [
      [0, true],
      [1, false],
    ] as const) {
      const filter = new MsrPermissions({ flags, ranges: [range()] });
      expect(
        [0xff, 0x100, 0x101, 0x102, 0x108, 0x109, 0x10a].map((msr) => filter.allows(msr, 'read')),
      ).toEqual([outside, true, false, true, true, true, outside]);
    }
  });

  it('is not asked about accesses of the other kind, nor about x2APIC registers, 0x800 to 0x8ff', () => {
    const filter = new MsrPermissions({ flags: 1, ranges: [range({ flags: 1 })] });
    expect([filter.allows(0x100, 'read'), filter.allows(0x100, 'write')]).toEqual([true, false]);
    expect([0x7ff, 0x800, 0x8ff, 0x900].map((msr) => msrAllowed(filter, msr, 'write'))).toEqual([
      false,
      true,
      true,
      false,
    ]);
  });
});

it.each([
  ['reads', 1, 0n, 0x8000_0b0dn],
  ['reads, and the guest writes', 1, 1n, 0n],
  ['writes', 2, 1n, 0x8000_0b0dn],
  ['writes, and the guest reads', 2, 0n, 0n],
])('an MSR whose %s are denied is #GP to them alone', (_, flags, write, want) => {
  const bench = new VcpuBench();
  bench.msrFilter = new MsrPermissions({
    flags: 0,
    ranges: [{ flags, base: 0x277, nmsrs: 1, bitmap: Uint8Array.of(0) }],
  });
  bench.setRegs({ rcx: 0x277n, rax: 0n, rdx: 0n });
  bench.runScript(exit(0x7c, write, 0n, 2), HLT);
  expect(bench.scripted.eventInjections).toEqual([0n, want]);
  bench.close();
});
