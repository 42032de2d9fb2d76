import { afterEach, describe, expect, it } from 'vitest';
import { VcpuBench } from './vcpu-bench.ts';

let bench: VcpuBench;
afterEach(() => bench.close());

describe('KVM_SET_TSC_KHZ on a processor of 1 GHz that does not scale', () => {
  it.each([
    [999_749, 'EINVAL', 1_000_000],
    [999_750, 'OK', 999_750],
    [1_000_250, 'OK', 1_000_250],
    [1_000_251, 'faster than the host', 1_000_000],
  ])('%i kHz: %s, and the guest has %i', (khz, want, after) => {
    bench = new VcpuBench();
    const set = () => bench.vcpu.setTscKhz(khz);
    if (want === 'OK') set();
    else expect(set).toThrow(want);
    expect(bench.vcpu.getTscKhz()).toBe(after);
  });
});
