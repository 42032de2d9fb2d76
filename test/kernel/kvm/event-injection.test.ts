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

  // RF: the handler returns to the instruction, which must not trap on its breakpoint again.
  it.each([
    ['#DB', 1, 0n],
    ['INT3', 3, 0n],
    ['INTO', 4, 0n],
    ['#UD', 6, 0x1_0000n],
    ['#DF', 8, 0n],
    ['#GP', 13, 0x1_0000n],
    ['#MC', 18, 0n],
  ])('pushes RF for faults alone: %s', (_, nr, want) => {
    const { vcpu } = start();
    bench.capabilities.exceptionPayload = true;
    bench.scripted.code = [nr === 3 ? 0xcc : 0xce];
    const exception = { injected: 0, nr, hasErrorCode: 0, pending: 1, errorCode: 0 };
    vcpu.setVcpuEvents({ ...vcpu.getVcpuEvents(), exception });
    expect(bench.runScript(HLT)).toBe(0);
    expect(injected()[0]! & 0xffn).toBe(BigInt(nr));
    expect(bench.scripted.long(0x570) & 0x1_0000n).toBe(want);
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
    ['INT n', VALID | 0x480n, [0xcd, 0x80]],
    ['INT3', VALID | 0x303n, [0xcc]],
    ['INTO', VALID | 0x304n, [0xce]],
    ['#VC', VALID | 0xb1dn, [0x0f, 0xa2]],
  ])('but not %s, which the guest raises anew', (_, event, code) => {
    start();
    bench.scripted.code = code;
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

describe('a software event that user space asks for', () => {
  const INT3 = exceptionOf(3);
  const INTO = exceptionOf(4);
  const INT_80 = { interrupt: { injected: 1, nr: 0x80, soft: 1, shadow: 0 } };

  it.each([
    ['INT3', INT3, [0xcc], 0x8000_0303n, 0x1001n],
    ['INTO', INTO, [0xce, 0x90], 0x8000_0304n, 0x1001n],
    ['INT 0x80', INT_80, [0xcd, 0x80], 0x8000_0480n, 0x1002n],
  ])(
    '%s returns behind its instruction, also when its delivery was interrupted',
    (_, events, code, want, next) => {
      const { vcpu } = start();
      bench.setRegs({ rip: 0x1000n });
      bench.scripted.code = code;
      vcpu.setVcpuEvents({ ...vcpu.getVcpuEvents(), ...events });
      const nextRips: bigint[] = [];
      const look =
        (then: Step): Step =>
        (core) => {
          nextRips.push(core.long(0xc8));
          return then(core);
        };
      expect(bench.runScript(look(interruptedBy(want)), look(delivered))).toBe(0);
      expect(injected()).toEqual([want, want]);
      expect(nextRips).toEqual([next, next]);
    },
  );

  it.each([
    ['INT3 where INTO is', INT3, [0xce]],
    ['INT3 where nothing can be read', INT3, []],
    ['INTO where INT3 is', INTO, [0xcc]],
    ['INT 0x80 where INT3 is', INT_80, [0xcc, 0x80]],
    ['INT 0x80 whose number cannot be read', INT_80, [0xcd]],
  ])('does not go in: %s', (_, events, code) => {
    const { vcpu } = start();
    bench.scripted.code = code;
    vcpu.setVcpuEvents({ ...vcpu.getVcpuEvents(), ...events });
    expect(bench.runScript(HLT)).toBe(0);
    expect(injected()).toEqual([0n]);
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

describe('an exit says that user space may inject an interrupt', () => {
  const ready = (then: Step): number => {
    const { vcpu } = start();
    bench.setRegs({ rflags: 0x202n });
    expect(bench.runScript(then)).toBe(0);
    return vcpu.kvmRun.readyForInterruptInjection;
  };
  /** An OUT, at which `field` of the VMCB is `value`. */
  const out =
    (field: number, value: bigint): Step =>
    (core) => {
      core.set(field, value);
      return exit(0x7b, 0x80_0010n, 0n, 2)(core);
    };
  it.each([
    ['and so it is', 0x68, 0n, 1],
    ['but not in a shadow', 0x68, 1n, 0],
    ['but not while an exception’s delivery is to begin again', EXITINTINFO, VALID | 0x306n, 0],
    ['but not while an NMI’s delivery is to begin again', EXITINTINFO, VALID | 0x202n, 0],
    ['but not while an interrupt’s delivery is to begin again', EXITINTINFO, VALID | 0x41n, 0],
  ] as const)('%s', (_, field, value, want) => {
    expect(ready(out(field, value))).toBe(want);
  });

  it('but not while an exception waits', () => {
    const { vcpu } = start();
    bench.setRegs({ rflags: 0x202n });
    vcpu.setGuestDebug({ control: 0x4_0001, debugreg: [] });
    vcpu.kvmRun.immediateExit = 1;
    expect(vcpu.run()).toBe(-4);
    expect(vcpu.kvmRun.readyForInterruptInjection).toBe(0);
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

it('no interrupt window opens while an interrupt goes in', () => {
  const { vcpu } = start();
  bench.setRegs({ rflags: 0x202n });
  vcpu.interrupt(0x41);
  vcpu.kvmRun.requestInterruptWindow = 1;
  let control = -1n;
  const look: Step = (core) => {
    control = core.long(0x60);
    return HLT(core);
  };
  expect(bench.runScript(look)).toBe(0);
  expect([injected(), control & 0x100n]).toEqual([[0x8000_0041n], 0n]);
});

describe('NMIs', () => {
  it('are two at most that wait, and one while one is on its way', () => {
    const { vcpu } = start();
    const waiting = (injected: 0 | 1): number => {
      const nmi = { injected, pending: 0, masked: 0 };
      vcpu.setVcpuEvents({ ...vcpu.getVcpuEvents(), nmi });
      for (let i = 0; i < 3; i++) vcpu.nmi();
      return vcpu.getVcpuEvents().nmi.pending;
    };
    expect([waiting(0), waiting(1)]).toEqual([2, 1]);
  });

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

  describe('that have to wait', () => {
    const RFLAGS = 0x570;
    const INT_STATE = 0x68;
    const STEPPED = 0x1_0102n;
    const PLAIN = 2n;
    /** RFLAGS at each entry. */
    const flags: bigint[] = [];
    const look =
      (then: Step): Step =>
      (core) => {
        flags.push(core.long(RFLAGS));
        return then(core);
      };
    /** The shadow ends, and what `then` says. */
    const outOfShadow =
      (then: Step): Step =>
      (core) => {
        core.set(INT_STATE, 0n);
        return then(core);
      };
    /** A guest in the shadow of STI with an NMI waiting. */
    const inShadow = (): VcpuBench => {
      start();
      flags.length = 0;
      const { vcpu } = bench;
      const interrupt = { injected: 0, nr: 0, soft: 0, shadow: 1 };
      const nmi = { injected: 0, pending: 1, masked: 0 };
      vcpu.setVcpuEvents({ ...vcpu.getVcpuEvents(), interrupt, nmi });
      return bench;
    };
    const NMI = 0x8000_0200n;
    const DEBUG_EXCEPTION = exit(0x41);

    it('for a shadow go in behind the next instruction, which the guest steps over', () => {
      inShadow();
      expect(bench.runScript(look(outOfShadow(DEBUG_EXCEPTION)), look(HLT))).toBe(0);
      expect([flags, injected()]).toEqual([
        [STEPPED, PLAIN],
        [0n, NMI],
      ]);
    });

    it('do not put that step onto the stack of an exception that comes between', () => {
      inShadow();
      const { scripted } = bench;
      const script = [exit(0x6f), exit(0x60), outOfShadow(DEBUG_EXCEPTION), HLT];
      expect(bench.runScript(...script.map(look))).toBe(0);
      expect(injected().map((event) => (event >= VALID ? event : 0n))).toEqual([0n, 0x8000_0b0dn, 0n, NMI]);
      expect(flags).toEqual([STEPPED, PLAIN, STEPPED, PLAIN]);
      expect(scripted.budgets[1]).toBe(0);
    });

    it('are no step of the guest’s own where KVM carries the instruction out', () => {
      inShadow();
      expect(bench.runScript(exit(0x72, 0n, 0n, 2), DEBUG_EXCEPTION, HLT)).toBe(0);
      expect(injected()).toEqual([0n, 0n, NMI]);
    });

    it('leave a step of the guest’s own where KVM carries the instruction out', () => {
      inShadow();
      bench.setRegs({ rflags: 0x102n });
      expect(bench.runScript(exit(0x72, 0n, 0n, 2), outOfShadow(HLT))).toBe(0);
      expect(injected().map((event) => event & 0xffff_ffffn)).toEqual([0n, 0x8000_0301n]);
    });

    it('leave RFLAGS to user space as the guest has them', () => {
      inShadow();
      expect(bench.runScript(look(exit(0x7b, 0x80_0010n, 0n, 2)))).toBe(0);
      expect([flags, bench.vcpu.getRegs().rflags]).toEqual([[STEPPED], PLAIN]);
    });

    it('for a handler wait for its IRET, and the guest steps over that', () => {
      const { vcpu } = start();
      flags.length = 0;
      vcpu.nmi();
      expect(bench.runScript(HLT)).toBe(0);
      vcpu.nmi();
      expect(bench.runScript(look(exit(0x74)), look(HLT))).toBe(0);
      expect(flags).toEqual([PLAIN, STEPPED]);
    });

    it('leave the debugger’s step on when theirs ends', () => {
      inShadow();
      const { vcpu } = bench;
      expect(bench.runScript(look(exit(0x7b, 0x80_0010n, 0n, 2)))).toBe(0);
      vcpu.setGuestDebug({ control: 3, debugreg: [] });
      vcpu.kvmRun.immediateExit = 1;
      vcpu.run();
      vcpu.kvmRun.immediateExit = 0;
      expect(bench.runScript(look(outOfShadow(DEBUG_EXCEPTION)))).toBe(0);
      expect(vcpu.kvmRun.exitReason).toBe(4);
      expect(bench.scripted.long(RFLAGS) & 0x100n).toBe(0x100n);
    });
  });

  it('that user space lets in at an IRET leave the guest running when no other waits', () => {
    const { vcpu } = start();
    vcpu.nmi();
    expect(bench.runScript(exit(0x74), HLT)).toBe(0);
    const nmi = { injected: 0, pending: 1, masked: 0 };
    vcpu.setVcpuEvents({ ...vcpu.getVcpuEvents(), nmi });
    expect(bench.runScript(HLT)).toBe(0);
    expect([injected().at(-1), bench.scripted.budgets.at(-1)]).toEqual([0x8000_0200n, 0x7fff_ffff]);
  });
});
