/** Debug registers and steps as KVM carries them out for a guest and for user space that debugs it (svm.c: db_interception, dr_interception; x86.c: kvm_set_dr). */
import { afterEach, describe, expect, it } from 'vitest';
import { exit, HLT, VcpuBench } from './vcpu-bench.ts';

let bench: VcpuBench;
afterEach(() => bench.close());

const start = (): VcpuBench => {
  bench = new VcpuBench();
  bench.enterLongMode();
  return bench;
};
const CPUID = exit(0x72, 0n, 0n, 2);
const TF = 0x102n;
const DB = 0x8000_0301n;
const GP = 0x8000_0b0dn;
/** The debugger has the processor's debug registers (USE_HW_BP), so the guest's accesses exit. */
const withBreakpoints = { control: 0x2_0001, debugreg: [] };

describe('accesses to debug registers while user space debugs', () => {
  /** MOV between a debug register and RBX: exit codes 0x20 to 0x27 read, 0x30 to 0x37 write. */
  const access = (code: number) => exit(code, 0x8000_0000_0000_0003n, 0n, 3);

  it.each([
    ['DR0', 0x20, 0x1111n],
    ['DR3', 0x23, 0x4444n],
    ['DR4, which is DR6', 0x24, 0xffff_0ff1n],
    ['DR5, which is DR7', 0x25, 0x401n],
    ['DR6', 0x26, 0xffff_0ff1n],
    ['DR7', 0x27, 0x401n],
  ])('read the guest’s own: %s', (_, code, want) => {
    const { vcpu } = start();
    const db = [0x1111n, 0x2222n, 0x3333n, 0x4444n];
    vcpu.setDebugRegs({ db, dr6: 0xffff_0ff1n, dr7: 0x401n, flags: 0n });
    vcpu.setGuestDebug(withBreakpoints);
    expect(bench.runScript(access(code), HLT)).toBe(0);
    expect(vcpu.getRegs().rbx).toBe(want);
  });

  const RESET = { db: [0n, 0n, 0n, 0n], dr6: 0xffff_0ff0n, dr7: 0x400n, flags: 0n };
  it.each([
    ['DR0, all 64 bits', 0x30, 1n << 40n, { db: [1n << 40n, 0n, 0n, 0n] }],
    ['DR3', 0x33, 7n, { db: [0n, 0n, 0n, 7n] }],
    ['DR4, which is DR6', 0x34, 1n, { dr6: 0xffff_0ff1n }],
    ['DR5, which is DR7', 0x35, 1n, { dr7: 0x401n }],
    ['DR6, of which some bits are fixed', 0x36, 0xffff_ffffn, { dr6: 0xffff_efffn }],
    ['DR7, of which some bits are fixed', 0x37, 0xffff_ffffn, { dr7: 0xffff_2fffn }],
  ])('write the guest’s own: %s', (_, code, value, want) => {
    const { vcpu } = start();
    vcpu.setGuestDebug(withBreakpoints);
    bench.setRegs({ rbx: value });
    const { rip } = vcpu.getRegs();
    expect(bench.runScript(access(code), HLT)).toBe(0);
    expect(vcpu.getDebugRegs()).toEqual({ ...RESET, ...want });
    expect(vcpu.getRegs().rip).toBe(rip + 4n);
  });

  it.each([
    ['DR6', 0x36],
    ['DR7', 0x37],
  ])('#GP for a bit above 31 of %s', (_, code) => {
    const { vcpu } = start();
    vcpu.setGuestDebug(withBreakpoints);
    bench.setRegs({ rbx: 1n << 32n });
    expect(bench.runScript(access(code), HLT)).toBe(0);
    expect(bench.scripted.eventInjections).toEqual([0n, GP]);
    expect(vcpu.getDebugRegs()).toEqual(RESET);
  });
});

describe('an instruction that KVM carries out', () => {
  it('is a step to a guest that traps itself: #DB with BS in DR6', () => {
    const { vcpu } = start();
    bench.setRegs({ rflags: TF });
    expect(bench.runScript(CPUID, HLT)).toBe(0);
    expect(bench.scripted.eventInjections).toEqual([0n, DB]);
    expect(vcpu.getDebugRegs().dr6).toBe(0xffff_4ff0n);
  });

  it.each([
    ['in 64-bit mode RIP, whatever the base of CS', 0xffff_ffff_8000_0000n, 1, 0xffff_ffff_8000_0002n],
    ['else CS base and RIP, in 32 bits', 0xffff_fff0n, 0, 0x2_fff2n],
  ])('is a step to the debugger, which learns where: %s', (_, rip, l, want) => {
    const { vcpu } = start();
    const { cs } = vcpu.getSregs();
    bench.setSregs({ cs: { ...cs, base: 0x3_0000n, l, db: 1 - l } });
    bench.setRegs({ rip });
    vcpu.setGuestDebug({ control: 3, debugreg: [] });
    expect(bench.runScript(CPUID)).toBe(0);
    const { exitReason, debugException, debugPc, debugDr6 } = vcpu.kvmRun;
    expect([exitReason, debugException, debugPc, debugDr6]).toEqual([4, 1, want, 0xffff_4ff0n]);
  });

  it('CS.L outside long mode says nothing: the base of CS counts', () => {
    bench = new VcpuBench();
    const { cs } = bench.vcpu.getSregs();
    bench.setSregs({ cs: { ...cs, base: 0x3_0000n } });
    bench.setRegs({ rip: 0x10n });
    bench.vcpu.setGuestDebug({ control: 3, debugreg: [] });
    const loadedWithL = (core: typeof bench.scripted): number => {
      core.set(0x410, core.long(0x410) | (0x200n << 16n));
      return CPUID(core);
    };
    expect(bench.runScript(loadedWithL)).toBe(0);
    expect(bench.vcpu.kvmRun.debugPc).toBe(0x3_0012n);
  });
});

describe('#DB', () => {
  it('that exits while nobody steps is the guest’s own', () => {
    const { vcpu } = start();
    const stepped = exit(0x41);
    const script = (core: Parameters<typeof stepped>[0]): number => {
      core.set(0x568, 0xffff_4ff1n);
      return stepped(core);
    };
    expect(bench.runScript(script, HLT)).toBe(0);
    expect(bench.scripted.eventInjections).toEqual([0n, DB]);
    expect(vcpu.getDebugRegs().dr6).toBe(0xffff_4ff1n);
  });

  it('that the debugger injects leaves DR6 as it is', () => {
    const { vcpu } = start();
    vcpu.setDebugRegs({ db: [], dr6: 0xffff_0ff1n, dr7: 0x400n, flags: 0n });
    vcpu.setGuestDebug({ control: 0x4_0001, debugreg: [] });
    expect(bench.runScript(HLT)).toBe(0);
    expect(bench.scripted.eventInjections).toEqual([DB]);
    expect(vcpu.getDebugRegs().dr6).toBe(0xffff_0ff1n);
  });
});

describe('the debug registers', () => {
  const state = () => [
    bench.scripted.debugAddresses[0],
    bench.scripted.long(0x560),
    bench.scripted.long(0x568),
  ];

  it('of a guest without a debugger are those that it wrote itself', () => {
    const { vcpu } = start();
    const write = (core: typeof bench.scripted): number => {
      core.debugAddresses[0] = 0x1111n;
      core.set(0x560, 0x455n);
      core.set(0x568, 0xffff_4ff0n);
      return HLT(core);
    };
    expect(bench.runScript(write)).toBe(0);
    const db = [0x1111n, 0n, 0n, 0n];
    expect(vcpu.getDebugRegs()).toEqual({ db, dr6: 0xffff_4ff0n, dr7: 0x455n, flags: 0n });
  });

  it('are the guest’s also under a debugger that sets no breakpoints there, but for DR6, until it goes', () => {
    const { vcpu } = start();
    vcpu.setDebugRegs({ db: [0x1111n, 0n, 0n, 0n], dr6: 0xffff_0ff1n, dr7: 0x401n, flags: 0n });
    vcpu.setGuestDebug({ control: 1, debugreg: [0x9999n, 0n, 0n, 0n, 0n, 0n, 0n, 0x455n] });
    expect(bench.runScript(HLT)).toBe(0);
    expect(state()).toEqual([0x1111n, 0x401n, 0xffff_0ff0n]);
    vcpu.setGuestDebug({ control: 0, debugreg: [] });
    expect(bench.runScript(HLT)).toBe(0);
    expect(state()).toEqual([0x1111n, 0x401n, 0xffff_0ff1n]);
  });
});

describe('TF at an entry', () => {
  const entry = (): bigint => {
    expect(bench.runScript(HLT)).toBe(0);
    return bench.scripted.long(0x570) & 0x100n;
  };

  it('is not set by a control without ENABLE', () => {
    const { vcpu } = start();
    vcpu.setGuestDebug({ control: 2, debugreg: [] });
    expect(entry()).toBe(0n);
  });

  it('goes with the debugger who stepped', () => {
    const { vcpu } = start();
    vcpu.setGuestDebug({ control: 3, debugreg: [] });
    vcpu.setGuestDebug({ control: 0, debugreg: [] });
    expect(entry()).toBe(0n);
  });

  it('is the debugger’s only where it stepped from', () => {
    const { vcpu } = start();
    vcpu.setGuestDebug({ control: 3, debugreg: [] });
    bench.setRegs({ rip: 0x5000n, rflags: 2n });
    expect(entry()).toBe(0n);
  });

  it('of the guest’s own is read back as user space set it', () => {
    const { vcpu } = start();
    bench.setRegs({ rflags: 0x102n });
    expect(vcpu.getRegs().rflags).toBe(0x102n);
    expect(entry()).toBe(0x100n);
  });
});
