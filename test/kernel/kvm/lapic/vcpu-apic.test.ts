import { afterEach, describe, expect, it } from 'vitest';
import type { Gpa } from '../../../../src/base/address.ts';
import { exit, HLT, retire, type Step, VcpuBench } from '../vcpu-bench.ts';

let bench: VcpuBench;
afterEach(() => {
  bench.close();
  expect(bench.memory.leaks()).toEqual([]);
});

/** A vCPU with a local APIC in the kernel, whose guest has interrupts on. */
const start = (id = 0): VcpuBench => {
  bench = new VcpuBench('7.2', id, 0, 'split');
  bench.vcpu.setCpuid2([
    { function: 1, index: 0, flags: 0, eax: 0xa00f11, ebx: 0, ecx: (1 << 21) | (1 << 24), edx: 1 << 9 },
    { function: 0x8000_0008, index: 0, flags: 0, eax: 0x3030, ebx: 0, ecx: 0, edx: 0 },
  ]);
  bench.interrupts!.mapChanged();
  bench.setRegs({ rip: 0x1000n, rflags: 0x202n });
  return bench;
};
/** The guest stores to the APIC's page: a nested fault, and what the emulator does. */
const store =
  (offset: number, value: number): Step =>
  (core) => {
    core.emulation = (_core, bus) => {
      const bytes = new Uint8Array(4);
      new DataView(bytes.buffer).setUint32(0, value >>> 0, true);
      bus.write((0xfee0_0000 + offset) as Gpa, bytes);
      return 'done';
    };
    return exit(0x400, 0x1_0000_0006n, BigInt(0xfee0_0000 + offset))(core);
  };
const load =
  (offset: number, into: Uint8Array): Step =>
  (core) => {
    core.emulation = (_core, bus) => (bus.read((0xfee0_0000 + offset) as Gpa, into) ? 'done' : 'pending');
    return exit(0x400, 0x1_0000_0004n, BigInt(0xfee0_0000 + offset))(core);
  };
const WRMSR = exit(0x7c, 1n, 0n, 2);
const RDMSR = exit(0x7c, 0n, 0n, 2);
const msi = (data: number, destination = 0) =>
  bench.interrupts!.signalMsi({
    ...{ addressLo: 0xfee0_0000 + destination * 0x1000, addressHi: 0, data, flags: 0, devid: 0 },
  });
const RESUME = exit(0x60);
const OUT = exit(0x7b, 0x80_0010n, 0n, 2);

describe('the xAPIC page', () => {
  it('is the kernel’s own: no exit to user space', () => {
    start();
    const id = new Uint8Array(4);
    expect(bench.runScript(store(0xf0, 0x1ff), load(0x30, id), OUT)).toBe(0);
    expect(bench.vcpu.kvmRun.exitReason).toBe(2);
    expect([...id]).toEqual([0x14, 0, 5, 1]);
    expect(bench.vcpu.apic!.lapic.softwareEnabled).toBe(true);
  });

  it('reads as ones and takes no stores in x2APIC mode', () => {
    start();
    bench.setSregs({ apicBase: 0xfee0_0d00n });
    const bytes = new Uint8Array(4);
    bench.runScript(store(0x80, 0x50), load(0x80, bytes), OUT);
    expect([...bytes]).toEqual([0xff, 0xff, 0xff, 0xff]);
    expect(bench.vcpu.getSregs().cr8).toBe(0n);
  });

  it('reads as ones and takes no stores while the APIC is disabled', () => {
    start();
    bench.setSregs({ apicBase: 0xfee0_0100n });
    const bytes = new Uint8Array(4);
    bench.runScript(store(0x80, 0x50), load(0x80, bytes), OUT);
    expect([...bytes]).toEqual([0xff, 0xff, 0xff, 0xff]);
    bench.setSregs({ apicBase: 0xfee0_0900n });
    expect(bench.vcpu.getSregs().cr8).toBe(0n);
  });

  it('begins where its base says', () => {
    start();
    expect(bench.runScript(load(-4, new Uint8Array(4)))).toBe(0);
    expect([bench.vcpu.kvmRun.exitReason, bench.vcpu.kvmRun.mmioPhysAddr]).toEqual([6, 0xfedf_fffcn]);
  });

  it('is one page', () => {
    start();
    const bytes = new Uint8Array(4);
    expect(bench.runScript(load(0xffc, bytes), load(0x1000, bytes))).toBe(0);
    expect([bench.vcpu.kvmRun.exitReason, bench.vcpu.kvmRun.mmioPhysAddr]).toEqual([6, 0xfee0_1000n]);
  });

  it('is user space’s without a local APIC in the kernel', () => {
    bench = new VcpuBench();
    bench.setRegs({ rip: 0x1000n });
    expect(bench.runScript(store(0xf0, 0x1ff))).toBe(0);
    expect([bench.vcpu.kvmRun.exitReason, bench.vcpu.kvmRun.mmioPhysAddr]).toEqual([6, 0xfee0_00f0n]);
  });
});

describe('MSRs', () => {
  it('of x2APIC are there in that mode, and #GP in the other', () => {
    start();
    bench.setRegs({ rcx: 0x803n });
    bench.runScript(RDMSR, OUT);
    expect(bench.scripted.eventInjections.at(-1)).toBe(0x8000_0b0dn);
    bench.setSregs({ apicBase: 0xfee0_0d00n });
    bench.setRegs({ rcx: 0x803n });
    bench.runScript(RDMSR, OUT);
    expect(bench.vcpu.getRegs().rax).toBe(0x0105_0014n);
  });

  it.each([
    [0x7ff, 2],
    [0x800, 1],
    [0x8ff, 1],
    [0x900, 2],
  ])(
    '0x%x: user space hears of a refused read with reason %i, 1 for those that are the APIC’s',
    (msr, reason) => {
      start();
      bench.capabilities.userSpaceMsr = 3;
      bench.setRegs({ rcx: BigInt(msr) });
      expect(bench.runScript(RDMSR)).toBe(0);
      expect([bench.vcpu.kvmRun.exitReason, bench.vcpu.kvmRun.msrReason]).toEqual([29, reason]);
    },
  );

  it('the base register, written as it is, puts no new vCPU into the map of destinations', () => {
    bench = new VcpuBench('7.2', 0, 0, 'split');
    const base = (data: bigint) => bench.vcpu.setMsrs([{ index: 0x1b, data }]);
    const nmi = () => msi(0x400);
    expect([base(0xfee0_0900n), nmi()]).toEqual([1, 0]);
    expect([base(0xfee0_1900n), nmi()]).toEqual([1, 1]);
  });

  it('the base register takes what the rules allow, else #GP', () => {
    start();
    bench.setRegs({ rcx: 0x1bn, rax: 0xfee0_0d00n, rdx: 0n });
    bench.runScript(WRMSR, OUT);
    expect(bench.vcpu.getSregs().apicBase).toBe(0xfee0_0d00n);
    bench.setRegs({ rcx: 0x1bn, rax: 0xfee0_0900n, rdx: 0n });
    bench.runScript(WRMSR, OUT);
    expect(bench.vcpu.getSregs().apicBase).toBe(0xfee0_0d00n);
    expect(bench.vcpu.kvmRun.apicBase).toBe(0xfee0_0d00n);
  });
});

describe('interrupts', () => {
  it('go in by EVENTINJ, and are in service then', () => {
    start();
    bench.runScript(store(0xf0, 0x1ff), OUT);
    expect(msi(0x51)).toBe(1);
    bench.runScript(OUT);
    expect(bench.scripted.eventInjections.at(-1)).toBe(0x8000_0051n);
    expect(bench.vcpu.apic!.lapic.register(0xa0)).toBe(0x50);
  });

  it('wait for an interrupt window while the guest has them off', () => {
    start();
    bench.runScript(store(0xf0, 0x1ff), OUT);
    bench.setRegs({ rflags: 2n });
    msi(0x51);
    bench.runScript((core) => {
      expect(core.word(0x60) & 0x100).toBe(0x100);
      expect(core.word(0x0c) & 0x10).toBe(0x10);
      core.set(0x570, 0x202n);
      return exit(0x64)(core);
    }, OUT);
    expect(bench.scripted.eventInjections.slice(-2)).toEqual([0n, 0x8000_0051n]);
  });

  it('wait for an NMI that goes in, and follow it at once', () => {
    start();
    bench.runScript(store(0xf0, 0x1ff), OUT);
    msi(0x51);
    bench.vcpu.nmi();
    bench.runScript(exit(0x60), OUT);
    expect(bench.scripted.eventInjections.slice(-2)).toEqual([0x8000_0200n, 0x8000_0051n]);
    expect(bench.scripted.budgets.at(-2)).toBe(0);
  });

  it('of user space’s PIC come first, while LINT0 lets them', () => {
    start();
    bench.runScript(store(0xf0, 0x1ff), OUT);
    msi(0x51);
    bench.vcpu.interrupt(0x20);
    expect(() => bench.vcpu.interrupt(0x21)).toThrow('EEXIST');
    bench.runScript(OUT);
    expect(bench.scripted.eventInjections.at(-1)).toBe(0x8000_0020n);
  });

  it('of user space’s PIC wait, and are not wanted, while LINT0 is masked', () => {
    start();
    bench.runScript(store(0xf0, 0x1ff), store(0x350, 0x1_0700), OUT);
    expect(bench.vcpu.kvmRun.bytes[0x0c]).toBe(0);
    bench.vcpu.interrupt(0x20);
    bench.runScript(OUT);
    expect(bench.scripted.eventInjections.at(-1)).toBe(0n);
  });

  it('of user space’s PIC wake a vCPU that halted', () => {
    start();
    expect(bench.runScript(store(0xf0, 0x1ff), HLT)).toBe(1);
    bench.vcpu.interrupt(0x20);
    expect(bench.vcpu.ready).toBe(true);
    bench.runScript(OUT);
    expect(bench.scripted.eventInjections.at(-1)).toBe(0x8000_0020n);
  });

  it('of INIT leave the boot processor running', () => {
    start();
    bench.runScript(store(0xf0, 0x1ff), OUT);
    msi(0x4500);
    expect(bench.runScript(OUT)).toBe(0);
    expect(bench.vcpu.getRegs().rip).toBe(0xfff0n);
  });

  it('of user space’s PIC are wanted while none waits', () => {
    start();
    bench.runScript(store(0xf0, 0x1ff), OUT);
    const { kvmRun } = bench.vcpu;
    expect(kvmRun.bytes[0x0c]).toBe(1);
    bench.vcpu.interrupt(0x20);
    kvmRun.bytes[0x01] = 1;
    expect(bench.vcpu.run()).toBe(-4);
    expect(kvmRun.bytes[0x0c]).toBe(0);
    kvmRun.bytes[0x01] = 0;
    bench.runScript(OUT);
  });

  it('whose EOI a route wants exit with IOAPIC_EOI and the vector', () => {
    start();
    const level = { addressLo: 0xfee0_0000, addressHi: 0, data: 0x8061 };
    bench.interrupts!.setRoutes([{ gsi: 5, type: 2, flags: 0, msi: level }], 0);
    bench.runScript(store(0xf0, 0x1ff), OUT);
    expect(bench.interrupts!.setLine(5, 1)).toBe(1);
    expect(bench.runScript(OUT)).toBe(0);
    expect(bench.runScript(store(0xb0, 0))).toBe(0);
    expect([bench.vcpu.kvmRun.exitReason, bench.vcpu.kvmRun.bytes[0x20]]).toEqual([26, 0x61]);
    bench.runScript(OUT);
  });

  it('MOV CR8 is the APIC’s task priority', () => {
    start();
    bench.setRegs({ rax: 7n });
    expect(bench.runScript(exit(0x18, 0x8000_0000_0000_0000n, 0n, 4), OUT)).toBe(0);
    expect(bench.vcpu.apic!.lapic.register(0x80)).toBe(0x70);
    expect(bench.vcpu.getSregs().cr8).toBe(7n);
  });

  it.each([
    ['RAX', 0, 0x5f8],
    ['RSP', 4, 0x5d8],
  ])('MOV CR8 from %s takes what the guest has there now', (_name, number, field) => {
    start();
    const move = exit(0x18, 0x8000_0000_0000_0000n | BigInt(number), 0n, 4);
    const change: Step = (core) => {
      core.set(field, 6n);
      return move(core);
    };
    expect(bench.runScript(change, OUT)).toBe(0);
    expect(bench.vcpu.getSregs().cr8).toBe(6n);
  });
});

describe('HLT', () => {
  it('blocks in the kernel until an interrupt comes', async () => {
    start();
    expect(bench.runScript(store(0xf0, 0x1ff), HLT)).toBe(1);
    expect([bench.vcpu.ready, bench.vcpu.getMpState()]).toEqual([false, 3]);
    const { pending } = bench.vcpu;
    msi(0x51);
    await pending;
    expect(bench.vcpu.ready).toBe(true);
    bench.runScript(OUT);
    expect(bench.scripted.eventInjections.at(-1)).toBe(0x8000_0051n);
    expect([bench.vcpu.getMpState(), bench.vcpu.getRegs().rip]).toEqual([0, 0x1001n]);
  });

  it('is passed where an interrupt is there already', () => {
    start();
    bench.runScript(store(0xf0, 0x1ff), OUT);
    bench.setRegs({ rflags: 2n });
    msi(0x51);
    bench.runScript(
      (core) => {
        core.set(0x570, 0x202n);
        return HLT(core);
      },
      exit(0x64),
      OUT,
    );
    expect(bench.scripted.eventInjections.at(-1)).toBe(0x8000_0051n);
  });

  it('with interrupts off is left by an NMI alone', () => {
    start();
    bench.runScript(store(0xf0, 0x1ff), OUT);
    bench.setRegs({ rflags: 2n });
    expect(bench.runScript(HLT)).toBe(1);
    msi(0x51);
    expect(bench.vcpu.ready).toBe(false);
    expect(bench.vcpu.run()).toBe(1);
    bench.vcpu.nmi();
    bench.runScript(OUT);
    expect(bench.scripted.eventInjections.at(-1)! & 0x8000_07ffn).toBe(0x8000_0200n);
  });
});

describe('a vCPU that halted', () => {
  const halt = (): VcpuBench => {
    start();
    bench.runScript(store(0xf0, 0x1ff), OUT);
    bench.setRegs({ rflags: 2n });
    expect(bench.runScript(HLT)).toBe(1);
    return bench;
  };

  it('goes on for an exception of user space', () => {
    const { vcpu } = halt();
    vcpu.setGuestDebug({ control: 0x4_0001, debugreg: [] });
    expect(vcpu.ready).toBe(true);
    bench.runScript(OUT);
    expect(bench.scripted.eventInjections.at(-1)).toBe(0x8000_0301n);
  });

  it('waits on where user space says that an NMI was on its way in', () => {
    const { vcpu } = halt();
    vcpu.setVcpuEvents({ ...vcpu.getVcpuEvents(), flags: 0, nmi: { injected: 1, pending: 0, masked: 0 } });
    expect([vcpu.ready, vcpu.run(), vcpu.getMpState()]).toEqual([false, 1, 3]);
  });

  it('waits on while the NMI that waits is masked, and while it is in a shadow', () => {
    start();
    const { vcpu } = bench;
    bench.runScript(store(0xf0, 0x1ff), OUT);
    vcpu.nmi();
    bench.runScript(OUT);
    vcpu.nmi();
    expect(bench.runScript(HLT)).toBe(1);
    expect(vcpu.ready).toBe(false);
    const { interrupt, nmi, ...events } = vcpu.getVcpuEvents();
    expect(nmi).toEqual({ injected: 0, pending: 1, masked: 1 });
    const unmask = (shadow: number) =>
      vcpu.setVcpuEvents({
        ...events,
        flags: 4,
        interrupt: { ...interrupt, shadow },
        nmi: { ...nmi, masked: 0 },
      });
    unmask(1);
    expect(vcpu.ready).toBe(false);
    unmask(0);
    expect(vcpu.ready).toBe(true);
    bench.runScript(OUT);
    expect(bench.scripted.eventInjections.at(-1)).toBe(0x8000_0200n);
  });

  it('goes on behind HLT for an NMI that comes then, though it is masked and not injected; at the next HLT it waits', () => {
    start();
    const { vcpu } = bench;
    bench.runScript(store(0xf0, 0x1ff), OUT);
    vcpu.nmi();
    bench.runScript(OUT);
    expect(bench.runScript(HLT)).toBe(1);
    expect(vcpu.getMpState()).toBe(3);
    const injected = (): number =>
      bench.scripted.eventInjections.filter((event) => (event & 0x8000_0000n) !== 0n).length;
    const before = injected();
    vcpu.nmi();
    expect(vcpu.ready).toBe(true);
    bench.runScript(OUT);
    expect([injected() - before, vcpu.getMpState()]).toEqual([0, 0]);
    expect(vcpu.getVcpuEvents().nmi).toEqual({ injected: 0, pending: 1, masked: 1 });
    expect(bench.runScript(HLT)).toBe(1);
    expect([vcpu.ready, vcpu.getMpState()]).toEqual([false, 3]);
  });

  it('goes on for an NMI and for a triple fault that user space puts into its events', () => {
    const { vcpu } = halt();
    const events = vcpu.getVcpuEvents();
    vcpu.setVcpuEvents({ ...events, flags: 0, nmi: { injected: 0, pending: 1, masked: 1 } });
    expect(vcpu.ready).toBe(false);
    vcpu.setVcpuEvents({ ...events, flags: 1, nmi: { injected: 0, pending: 0, masked: 1 } });
    expect(vcpu.ready).toBe(false);
    vcpu.setVcpuEvents({ ...events, flags: 1, nmi: { injected: 0, pending: 1, masked: 1 } });
    expect(vcpu.ready).toBe(true);
    bench.runScript(OUT);
    expect(bench.runScript(HLT)).toBe(1);
    expect(vcpu.ready).toBe(false);
    bench.capabilities.enable(218, 1n);
    vcpu.setVcpuEvents({ ...vcpu.getVcpuEvents(), flags: 32, tripleFaultPending: 1 });
    expect(vcpu.ready).toBe(true);
    expect([vcpu.run(), vcpu.kvmRun.exitReason]).toEqual([0, 8]);
  });

  it('that goes on lets time stand still until it runs: nobody waits for the timer then', () => {
    start();
    const arm = [store(0xf0, 0x1ff), store(0x3e0, 0xb), store(0x320, 0x55), store(0x380, 5000)];
    bench.runScript(...arm, OUT);
    for (let runs = 0; runs < 3; runs++) bench.runScript(OUT);
    expect(bench.runScript(HLT)).toBe(1);
    bench.vcpu.nmi();
    bench.runScript(OUT);
    const before = bench.time.now();
    for (let looks = 0; looks < 4; looks++) for (const look of bench.soon.splice(0)) look();
    expect(bench.time.now()).toBe(before);
  });

  it('waits on when its timer fires and interrupts are off', () => {
    start();
    const arm = [store(0xf0, 0x1ff), store(0x3e0, 0xb), store(0x320, 0x55), store(0x380, 5000)];
    bench.runScript(...arm, OUT);
    bench.setRegs({ rflags: 2n });
    expect(bench.runScript(retire(6000, HLT))).toBe(1);
    expect([bench.vcpu.run(), bench.vcpu.getMpState()]).toEqual([1, 3]);
    bench.vcpu.nmi();
    bench.runScript(OUT);
  });
});

describe('KVM_SET_SREGS of a halted vCPU', () => {
  const AT_RESET = { selector: 0xf000, base: 0xffff_0000n };
  it.each([
    ['the boot processor at reset', 0, 0xfff0n, AT_RESET, 0x10n, 0],
    ['another processor', 1, 0xfff0n, AT_RESET, 0x10n, 3],
    ['another RIP', 0, 0xfff1n, AT_RESET, 0x10n, 3],
    ['another selector', 0, 0xfff0n, { ...AT_RESET, selector: 0 }, 0x10n, 3],
    ['another base', 0, 0xfff0n, { ...AT_RESET, base: 0xf_0000n }, 0x10n, 3],
    ['protected mode', 0, 0xfff0n, AT_RESET, 0x11n, 3],
  ])('%s (vCPU %i)', (_name, id, rip, cs, cr0, state) => {
    start(id);
    bench.setRegs({ rip });
    bench.vcpu.setMpState(3);
    bench.setSregs({ cs: { ...bench.vcpu.getSregs().cs, ...cs }, cr0 });
    expect(bench.vcpu.getMpState()).toBe(state);
  });
});

describe('the timer', () => {
  it('that is due now has a halted vCPU ready', () => {
    start();
    bench.runScript(store(0xf0, 0x1ff), store(0x3e0, 0xb), store(0x320, 0x55), store(0x380, 5000), HLT);
    const left = bench.time.nextDue - bench.time.now();
    bench.time.leave(left - 1);
    expect(bench.vcpu.ready).toBe(false);
    bench.time.leave(1);
    expect(bench.vcpu.ready).toBe(true);
  });

  it('ends the guest’s run when it is due', () => {
    start();
    const arm = [store(0xf0, 0x1ff), store(0x3e0, 0xb), store(0x320, 0x55), store(0x380, 5000)];
    bench.runScript(...arm, retire(1000, RESUME), retire(4000, RESUME), OUT);
    expect(bench.scripted.budgets.slice(-3)).toEqual([5000, 4000, 0x7fff_ffff]);
    expect(bench.scripted.eventInjections.at(-1)).toBe(0x8000_0055n);
  });
});

describe('a processor that is not the boot processor', () => {
  it('waits for INIT and SIPI, and starts in real mode where SIPI says', async () => {
    start(1);
    const { vcpu } = bench;
    expect([vcpu.getMpState(), vcpu.getSregs().apicBase]).toEqual([1, 0xfee0_0800n]);
    expect(vcpu.run()).toBe(1);
    const { pending } = vcpu;
    msi(0x500, 1);
    await pending;
    expect(vcpu.run()).toBe(-11);
    expect(vcpu.getMpState()).toBe(2);
    expect(vcpu.run()).toBe(1);
    msi(0x600 | 0x9a, 1);
    bench.runScript(OUT);
    const { cs, cr0 } = vcpu.getSregs();
    expect([cs.selector, cs.base, vcpu.getRegs().rip, cr0]).toEqual([0x9a00, 0x9a000n, 0n, 0x60000010n]);
    expect(vcpu.getMpState()).toBe(0);
  });

  it('takes no SIPI without INIT', () => {
    start(1);
    msi(0x600 | 0x9a, 1);
    expect(bench.vcpu.run()).toBe(-11);
    expect(bench.vcpu.getMpState()).toBe(1);
  });

  it('with immediate_exit leaves with −EINTR', () => {
    start(1);
    bench.vcpu.kvmRun.immediateExit = 1;
    expect(bench.vcpu.run()).toBe(-4);
  });
});

describe('KVM_SET_MP_STATE', () => {
  it.each([
    [0, 'OK', 0],
    [1, 'OK', 1],
    [2, 'OK', 2],
    [3, 'OK', 3],
    [9, 'OK', 9],
    [5, 'EINVAL', 0],
    [10, 'EINVAL', 0],
  ])('%i with a local APIC in the kernel', (state, want, after) => {
    start();
    expect(set(state)).toBe(want);
    expect(bench.vcpu.getMpState()).toBe(after);
  });

  it('SIPI_RECEIVED starts at the vector of the last SIPI', () => {
    start();
    expect(set(4)).toBe('OK');
    expect(bench.vcpu.getMpState()).toBe(0);
    expect(bench.vcpu.getSregs().cs.base).toBe(0n);
  });

  it.each([
    [0, 'OK'],
    [1, 'EINVAL'],
    [2, 'EINVAL'],
    [3, 'EINVAL'],
    [4, 'EINVAL'],
    [9, 'EINVAL'],
    [77, 'EINVAL'],
  ])('%i without one', (state, want) => {
    bench = new VcpuBench();
    expect(set(state)).toBe(want);
  });

  const set = (state: number): string => {
    try {
      bench.vcpu.setMpState(state);
      return 'OK';
    } catch (error) {
      return (error as { code: string }).code;
    }
  };
});

describe('without a local APIC in the kernel', () => {
  it('KVM_GET_LAPIC and KVM_SET_LAPIC are EINVAL', () => {
    bench = new VcpuBench();
    expect(() => bench.vcpu.getLapic()).toThrow('EINVAL');
    expect(() => bench.vcpu.setLapic(new Uint8Array(1024))).toThrow('EINVAL');
  });
});
