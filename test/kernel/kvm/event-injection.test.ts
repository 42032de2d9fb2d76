/** What KVM writes into the VMCB for an event, and what it makes of EXITINTINFO (svm.md 1.1, 1.5; svm.c). Numbers are those of the VMCB. */
import { afterEach, describe, expect, it } from 'vitest';
import { exit, HLT, type Step, VcpuBench } from './vcpu-bench.ts';

const EXITINTINFO = 0x88;
const VALID = 0x8000_0000n;
let bench: VcpuBench;

afterEach(() => bench.close());

const start = (): VcpuBench => {
  bench = new VcpuBench();
  bench.enterLongMode();
  return bench;
};

/** Leaves with INTR in the middle of the delivery of `event` (EXITINTINFO, with its error code in the high half). */
const interruptedBy =
  (event: bigint): Step =>
  (core) => {
    core.set(EXITINTINFO, event);
    return exit(0x60)(core);
  };
/** The delivery is over. */
const delivered: Step = (core) => {
  core.set(EXITINTINFO, 0n);
  return HLT(core);
};
/** EVENTINJ of each entry. */
const injected = (): bigint[] => bench.scripted.eventInjections;

const exceptionOf = (nr: number, error?: number) => ({
  exception: {
    injected: 1,
    nr,
    hasErrorCode: error === undefined ? 0 : 1,
    pending: 0,
    errorCode: error ?? 0,
  },
});

describe('an entry', () => {
  it.each([
    ['#UD', exceptionOf(6), 0x8000_0306n],
    ['#GP with its error code', exceptionOf(13, 0x18), 0x18_8000_0b0dn],
    ['an interrupt', { interrupt: { injected: 1, nr: 0x41, soft: 0, shadow: 0 } }, 0x8000_0041n],
    ['an NMI', { nmi: { injected: 1, pending: 0, masked: 0 } }, 0x8000_0200n],
    [
      'the exception of two',
      { ...exceptionOf(6), interrupt: { injected: 1, nr: 0x41, soft: 0, shadow: 0 } },
      0x8000_0306n,
    ],
  ])('injects %s', (_, events, want) => {
    const { vcpu } = start();
    vcpu.setVcpuEvents({ ...vcpu.getVcpuEvents(), ...events });
    expect(bench.runScript(HLT)).toBe(0);
    expect(injected()).toEqual([want]);
  });

  it('takes the interrupt of user space first, and comes back at once for the NMI', () => {
    const { vcpu } = start();
    vcpu.nmi();
    vcpu.interrupt(0x41);
    expect(bench.runScript(exit(0x60), HLT)).toBe(0);
    expect(injected()).toEqual([0x8000_0041n, 0x8000_0200n]);
    expect(bench.scripted.budgets[0]).toBe(0);
  });
});

describe('a delivery that an exit interrupted is begun again', () => {
  it.each([
    ['an interrupt', VALID | 0x41n, VALID | 0x41n],
    ['an NMI', VALID | 0x202n, VALID | 0x200n],
    ['#PF with its error code', (2n << 32n) | VALID | 0xb0en, (2n << 32n) | VALID | 0xb0en],
    ['#DE', VALID | 0x300n, VALID | 0x300n],
  ])('%s', (_, event, want) => {
    start();
    expect(bench.runScript(interruptedBy(event), delivered)).toBe(0);
    expect(injected()).toEqual([0n, want]);
  });

  it.each([
    ['INT n', VALID | 0x480n],
    ['INT3', VALID | 0x303n],
    ['INTO', VALID | 0x304n],
    ['#VC', VALID | 0xb1dn],
  ])('but not %s, which the guest raises anew', (_, event) => {
    start();
    expect(bench.runScript(interruptedBy(event), delivered)).toBe(0);
    expect(injected()).toEqual([0n, 0n]);
  });

  it('until it is over: nothing is injected twice', () => {
    const { vcpu } = start();
    vcpu.interrupt(0x41);
    expect(bench.runScript(interruptedBy(VALID | 0x41n), delivered)).toBe(0);
    expect(bench.runScript(HLT)).toBe(0);
    expect(injected().map((event) => event & 0xffff_ffffn)).toEqual([VALID | 0x41n, VALID | 0x41n, 0x41n]);
    expect(vcpu.getVcpuEvents().interrupt.injected).toBe(0);
  });
});

describe('two exceptions', () => {
  /** Exit of an RDPMC, for which KVM queues #GP. */
  const generalProtection =
    (during: bigint): Step =>
    (core) => {
      core.set(EXITINTINFO, during);
      return exit(0x6f)(core);
    };

  it.each([
    ['#GP while #NP is delivered is #DF', VALID | 0xb0bn, VALID | 0xb08n],
    ['#GP while #PF is delivered is #DF', VALID | 0xb0en, VALID | 0xb08n],
    ['#GP while #UD is delivered takes its place', VALID | 0x306n, VALID | 0xb0dn],
    ['#GP while an interrupt is delivered goes first', VALID | 0x41n, VALID | 0xb0dn],
  ])('%s', (_, first, want) => {
    start();
    expect(bench.runScript(generalProtection(first), delivered)).toBe(0);
    expect(injected()[1]).toBe(want);
  });

  it('#GP while #DF is delivered is a shutdown', () => {
    start();
    expect(bench.runScript(generalProtection(VALID | 0xb08n))).toBe(0);
    expect(bench.vcpu.kvmRun.exitReason).toBe(8);
  });
});

describe('the interrupt window', () => {
  /** Intercepts of word 3 and INT_CTL as VMRUN finds them. */
  const seen: bigint[][] = [];
  const look =
    (then: Step): Step =>
    (core) => {
      seen.push([core.long(0x0c) & 0x10n, core.long(0x60) & 0x1f_0100n]);
      return then(core);
    };

  it('is a virtual interrupt of the highest priority that is intercepted, and gone after its exit', () => {
    const { vcpu } = start();
    seen.length = 0;
    vcpu.kvmRun.requestInterruptWindow = 1;
    expect(bench.runScript(look(exit(0x78, 0n, 0n, 1)))).toBe(0);
    vcpu.kvmRun.requestInterruptWindow = 0;
    expect(bench.runScript(look(exit(0x64)), look(HLT))).toBe(0);
    expect(seen).toEqual([
      [0x10n, 0xf_0100n],
      [0x10n, 0xf_0100n],
      [0n, 0n],
    ]);
  });
});

describe('NMIs', () => {
  it('are masked from the injection on, and IRET is intercepted until it is reached', () => {
    const { vcpu } = start();
    const iret: bigint[] = [];
    const look =
      (then: Step): Step =>
      (core) => {
        iret.push(core.long(0x0c) & (1n << 20n));
        return then(core);
      };
    vcpu.nmi();
    expect(bench.runScript(look(exit(0x74)), look(HLT))).toBe(0);
    expect(iret).toEqual([1n << 20n, 0n]);
    expect(vcpu.getVcpuEvents().nmi.masked).toBe(1);
    expect(bench.runScript(HLT)).toBe(0);
    expect(vcpu.getVcpuEvents().nmi.masked).toBe(0);
  });
});
