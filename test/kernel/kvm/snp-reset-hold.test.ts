/** APs of an SNP guest with local APICs in the kernel: reset hold, INIT and SIPI (Linux sev_vcpu_deliver_sipi_vector), VMSAs of the guest's own. */
import { describe, expect, it } from 'vitest';
import { GhcbBench } from './ghcb-bench.ts';
import { GHCB } from './snp-bench.ts';

const RUN_PENDING = 1;
const SHUTDOWN = 8;
const [RUNNABLE, UNINITIALIZED, HALTED, AP_RESET_HOLD] = [0, 1, 3, 4 + 5];

/** A guest with an AP (id 1) that was started once. */
function bench() {
  const it = new GhcbBench({ others: [1], prepare: ({ vm }) => vm.enableCap({ cap: 121, args: [24n] }) });
  const ap = it.snp.vm.openVcpus()[1]!;
  const core = (it.cores[1] ??= it.cores[0]!);
  const run = (msr: bigint): number => {
    core.script.splice(0);
    core.script.push(it.vmgexit(msr), it.goOn);
    return ap.run();
  };
  /** INIT and SIPI, as another vCPU's local APIC sends them. */
  const start = (): void => {
    const { lapic } = ap.apic!;
    lapic.initPending = true;
    lapic.sipiPending = true;
  };
  return { it, ap, core, run, start };
}

describe('an AP in reset hold', () => {
  for (const by of ['msr', 'event'] as const)
    it(`by the ${by}: waits in the kernel, and INIT with SIPI has it go on with an answer that is not 0`, () => {
      const { it: guest, ap, core, run, start } = bench();
      expect(ap.getMpState()).toBe(UNINITIALIZED);
      start();
      core.script.push(guest.vmgexit(BigInt(GHCB) | 0x12n), guest.goOn);
      expect(ap.run()).toBe(-11);
      expect(ap.run()).toBe(0);
      expect(ap.kvmRun.exitReason).toBe(SHUTDOWN);
      if (by === 'event') guest.put({ code: 0x8000_0004n, info1: 0n, info2: 0n });
      expect(run(by === 'event' ? BigInt(GHCB) : 0x006n)).toBe(RUN_PENDING);
      expect(ap.getMpState()).toBe(AP_RESET_HOLD);
      start();
      expect(ap.getMpState()).toBe(RUNNABLE);
      expect(ap.run()).toBe(0);
      if (by === 'event') expect(guest.answer).toEqual([0n, 1n]);
      else expect(guest.msr).toBe(0x1007n);
    });
});

describe('the first SIPI', () => {
  it('is no answer to a reset hold: it starts the vCPU as the VMM made it', () => {
    const { it: guest, ap, run, start } = bench();
    ap.setMpState(RUNNABLE);
    expect(run(0x006n)).toBe(RUN_PENDING);
    start();
    expect(ap.run()).toBe(0);
    expect(guest.msr).toBe(0x007n);
  });
});

describe('a VMSA of the guest’s own', () => {
  it.each([
    ['where no memory is', 0x4000_1000n],
    ['in memory without a guest_memfd', 0x8000_1000n],
  ])('%s leaves its vCPU halted, and KVM_RUN answers EINVAL when it is made to run', (_, vmsa) => {
    const { it: guest, ap, core } = bench();
    const { snp } = guest;
    snp.vm.setUserMemoryRegion2({
      slot: 1,
      flags: 0,
      guestPhysAddr: 0x8000_0000n,
      memorySize: 0x4000n,
      userspaceAddr: BigInt(snp.hva),
      guestMemfd: 0,
      guestMemfdOffset: 0n,
    });
    guest.register();
    guest.request({ code: 0x8000_0013n, info1: (1n << 32n) | 1n, info2: vmsa, rax: 1n });
    expect(guest.answer).toEqual([0n, 0n]);
    core.script.splice(0);
    ap.setMpState(RUNNABLE);
    expect(ap.run()).toBe(RUN_PENDING);
    expect(ap.getMpState()).toBe(HALTED);
    ap.setMpState(RUNNABLE);
    expect(ap.run()).toBe(-22);
  });
});

describe('INIT of an SNP guest’s vCPU', () => {
  it('leaves the GHCB MSR and the VMSA as they were', () => {
    const { it: guest, ap, core, run, start } = bench();
    start();
    core.script.push(guest.vmgexit(0x080n), guest.goOn);
    expect(ap.run()).toBe(-11);
    expect(ap.run()).toBe(0);
    const vmsa = core.long(0x108);
    run(0x006n);
    start();
    ap.run();
    expect(core.long(0x108)).toBe(vmsa);
  });
});
