import { afterEach, describe, expect, it } from 'vitest';
import { supportedCpuid } from '../../../src/kernel/kvm/cpuid.ts';
import { exit, HLT, nestedFault, retire, VcpuBench } from './vcpu-bench.ts';

let bench: VcpuBench;
const start = (...args: ConstructorParameters<typeof VcpuBench>): VcpuBench =>
  (bench = new VcpuBench(...args));
afterEach(() => {
  bench.close();
  expect(bench.memory.leaks()).toEqual([]);
});

const OUT8 = (port: number) => exit(0x7b, BigInt(port * 0x10000 + 0x10), 0n, 1);
const IN = (port: number, size: 1 | 2 | 4) => exit(0x7b, BigInt(port * 0x10000 + (size << 4) + 1), 0n, 1);

describe('KVM_RUN', () => {
  it('would go on at once on a vCPU that nothing holds up, until that is closed', () => {
    const { vcpu } = start();
    expect(vcpu.ready).toBe(true);
    vcpu.close();
    expect(vcpu.ready).toBe(false);
  });

  it('resets exit_reason at its start', () => {
    const { vcpu } = start();
    vcpu.kvmRun.exitReason = 39;
    expect(bench.runScript(HLT)).toBe(0);
    expect(vcpu.kvmRun.exitReason).toBe(5);
  });

  it('gives the VMM’s thread a signal each time slice: −EINTR, exit INTR', () => {
    const { vcpu } = start('7.2', 0, 1000);
    const OUT_AFTER_600 = retire(600, exit(0x7b, 0x3f80010n, 0n, 1));
    expect(bench.runScript(retire(1000, exit(0x60)))).toBe(-4);
    expect(vcpu.kvmRun.exitReason).toBe(10);
    expect(bench.runScript(OUT_AFTER_600)).toBe(0);
    expect(bench.runScript(retire(400, exit(0x60)))).toBe(-4);
    expect(bench.scripted.budgets).toEqual([1000, 1000, 400]);
  });

  it('without a time slice goes on after the host’s own interrupt', () => {
    start();
    expect(bench.runScript(exit(0x60), exit(0x60), HLT)).toBe(0);
  });

  it('refuses a task priority that does not exist', () => {
    const { vcpu } = start();
    vcpu.kvmRun.cr8 = 16n;
    expect(vcpu.run()).toBe(-22);
    for (const cr8 of [15n, 7n]) {
      vcpu.kvmRun.cr8 = cr8;
      expect(bench.runScript(HLT)).toBe(0);
      expect(vcpu.getSregs().cr8).toBe(cr8);
    }
  });

  it.each([
    ['CPL 0', 0],
    ['CPL 3', 3],
  ])('what the core cannot do at %s is an internal error, and no exception of the guest', (_name, cpl) => {
    const { vcpu } = start();
    const sregs = vcpu.getSregs();
    vcpu.setSregs({ ...sregs, ss: { ...sregs.ss, dpl: cpl } });
    expect(bench.runScript(exit(0xf00000ff | 0))).toBe(0);
    expect(vcpu.kvmRun.exitReason).toBe(17);
    expect(vcpu.kvmRun.internalErrorSuberror).toBe(1);
    expect(vcpu.vmcb.word(0xa8)).toBe(0);
  });

  it('says at each exit whether interrupts are on', () => {
    const { vcpu } = start();
    bench.setRegs({ rflags: 0x202n });
    bench.runScript(HLT);
    expect([vcpu.kvmRun.ifFlag, vcpu.kvmRun.readyForInterruptInjection]).toEqual([1, 1]);
    bench.setRegs({ rflags: 2n });
    bench.runScript(HLT);
    expect([vcpu.kvmRun.ifFlag, vcpu.kvmRun.readyForInterruptInjection]).toEqual([0, 0]);
    expect(vcpu.kvmRun.apicBase).toBe(0xfee00900n);
  });

  it('an entry that only has an event delivered takes no time', () => {
    const { vcpu } = start();
    vcpu.events.queueException(6);
    vcpu.nmi();
    expect(bench.runScript(exit(0x60), HLT)).toBe(0);
    expect(bench.scripted.budgets).toEqual([0, 0x7fff_ffff]);
    expect(bench.scripted.eventInjections.map((event) => event & 0x7ffn)).toEqual([0x306n, 0x200n]);
    expect(bench.time.now()).toBe(1);
  });

  it('counts instructions that the core retired and that KVM carried out', () => {
    const { vcpu } = start();
    expect(vcpu.instructions).toBe(0);
    bench.runScript(retire(10, exit(0x72, 0n, 0n, 2)), retire(5, HLT));
    expect(vcpu.instructions).toBe(17);
  });
});

describe('port I/O', () => {
  it('OUT exits with port, size and data; RIP moves on the next run', () => {
    const { vcpu } = start();
    bench.setRegs({ rip: 0x1000n, rax: 0x1234_5678n });
    expect(bench.runScript(OUT8(0x3f8))).toBe(0);
    const { kvmRun } = vcpu;
    expect({
      reason: kvmRun.exitReason,
      direction: kvmRun.ioDirection,
      size: kvmRun.ioSize,
      port: kvmRun.ioPort,
      count: kvmRun.ioCount,
      offset: kvmRun.ioDataOffset,
      value: kvmRun.ioValue(),
    }).toEqual({ reason: 2, direction: 1, size: 1, port: 0x3f8, count: 1, offset: 0x1000, value: 0x78 });
    expect(vcpu.getRegs().rip).toBe(0x1000n);
    kvmRun.setIoValue(0x99);
    bench.runScript(HLT);
    expect(vcpu.getRegs()).toMatchObject({ rip: 0x1002n, rax: 0x1234_5678n });
  });

  it.each([
    [1, 0xaabb_ccdd_eeff_0011n, 0x99, 0xaabb_ccdd_eeff_0099n],
    [2, 0xaabb_ccdd_eeff_0011n, 0x8877, 0xaabb_ccdd_eeff_8877n],
    [4, 0xaabb_ccdd_eeff_0011n, 0xfedc_ba98, 0xfedc_ba98n],
  ] as const)('IN of %i bytes merges as x86 does', (size, before, value, after) => {
    const { vcpu } = start();
    bench.setRegs({ rax: before });
    bench.runScript(IN(0x20, size));
    expect(vcpu.kvmRun.ioDirection).toBe(0);
    vcpu.kvmRun.setIoValue(value);
    bench.runScript(HLT);
    expect(vcpu.getRegs().rax).toBe(after);
  });

  it.each([0x5000n, 0x1_0000_1000n])('a VMM that moves RIP (to %i) while the exit is pending wins', (rip) => {
    const { vcpu } = start();
    bench.setRegs({ rip: 0x1000n, rax: 1n });
    bench.runScript(IN(0x20, 1));
    vcpu.kvmRun.setIoValue(0x77);
    bench.setRegs({ rip });
    bench.runScript(HLT);
    expect(vcpu.getRegs()).toMatchObject({ rip: rip + 1n, rax: 1n });
  });
});

describe('exits that end a run', () => {
  it.each([
    ['OUT to', OUT8(0x7e), 0x1n],
    ['IN from', IN(0x7e, 1), 0x0n],
  ])('%s port 0x7e: RIP at the exit', (_, step, moved) => {
    bench = new VcpuBench();
    const { rip } = bench.vcpu.getRegs();
    expect(bench.runScript(step)).toBe(0);
    expect(bench.vcpu.getRegs().rip - rip).toBe(moved);
  });

  it('HLT: the guest is behind it', () => {
    const { vcpu } = start();
    bench.setRegs({ rip: 0x1000n });
    expect(bench.runScript(HLT)).toBe(0);
    expect(vcpu.kvmRun.exitReason).toBe(5);
    expect(vcpu.getRegs().rip).toBe(0x1001n);
  });

  it('SHUTDOWN: the vCPU has gone through INIT', () => {
    const { vcpu } = start();
    vcpu.setCpuid2(supportedCpuid());
    bench.enterLongMode();
    bench.setRegs({ rip: 0x1234n, rax: 5n, rbx: 6n });
    expect(bench.runScript(exit(0x7f))).toBe(0);
    expect(vcpu.kvmRun.exitReason).toBe(8);
    expect(vcpu.getRegs()).toMatchObject({ rip: 0xfff0n, rax: 0n, rbx: 0n, rdx: 0xa00f11n, rflags: 2n });
    expect(vcpu.getSregs()).toMatchObject({ cr0: 0x10n, cr3: 0n, cr4: 0n, efer: 0n });
    expect(vcpu.getSregs().cs).toMatchObject({ selector: 0xf000, base: 0xffff0000n });
    expect(bench.runScript(HLT)).toBe(0);
  });

  it.each([
    ['7.2', 0xffff_ffff_ffff_ffffn],
    ['6.12', 0xffff_ffffn],
  ] as const)('FAIL_ENTRY when VMRUN refuses the VMCB, %s', (policy, reason) => {
    const { vcpu } = start(policy, 3);
    expect(bench.runScript(exit(-1))).toBe(0);
    expect(vcpu.kvmRun.exitReason).toBe(9);
    expect(vcpu.kvmRun.failEntryReason).toBe(reason);
    expect(vcpu.kvmRun.failEntryCpu).toBe(3);
  });

  it.each([0x7d, 0x40e, -2, 0x70])('an exit that KVM does not expect (%i) is an internal error', (code) => {
    const { vcpu } = start();
    expect(bench.runScript(exit(code))).toBe(0);
    const { kvmRun } = vcpu;
    expect([kvmRun.exitReason, kvmRun.internalErrorSuberror, kvmRun.internalErrorNdata]).toEqual([17, 4, 2]);
    expect(kvmRun.internalErrorData(0)).toBe(BigInt.asUintN(64, BigInt(code)));
  });

  it('MEMORY_FAULT: −EFAULT and a filled exit; the next run tries again', () => {
    const { vcpu } = start();
    bench.addSlot({ flags: 4 });
    bench.private.add(0x105);
    bench.gmem = () => -14;
    expect(bench.runScript(nestedFault(0x105_678, 6))).toBe(-14);
    const { kvmRun } = vcpu;
    expect([
      kvmRun.exitReason,
      kvmRun.memoryFaultFlags,
      kvmRun.memoryFaultGpa,
      kvmRun.memoryFaultSize,
    ]).toEqual([39, 8n, 0x105_000n, 4096n]);
    bench.private.delete(0x105);
    expect(bench.runScript(nestedFault(0x105_678, 6), HLT)).toBe(0);
    expect(bench.mmu.lookup(0x105 as never)).toBeDefined();
  });

  it('MEMORY_FAULT with −EHWPOISON', () => {
    start();
    bench.addSlot({ flags: 4 });
    bench.private.add(0x105);
    bench.gmem = () => -133;
    expect(bench.runScript(nestedFault(0x105_000, 4))).toBe(-133);
    expect(bench.vcpu.kvmRun.exitReason).toBe(39);
  });

  it('a fetch where there is no memory is an emulation failure', () => {
    start();
    expect(bench.runScript(nestedFault(0xffff_fff0, 0x14))).toBe(0);
    const { kvmRun } = bench.vcpu;
    expect([kvmRun.exitReason, kvmRun.internalErrorSuberror, kvmRun.internalErrorNdata]).toEqual([17, 1, 6]);
    expect(kvmRun.internalErrorData(0)).toBe(0n);
    expect(kvmRun.internalErrorData(1)).toBe(0x400n);
    expect(kvmRun.internalErrorData(3)).toBe(0xffff_fff0n);
  });

  it('an event whose delivery lands where there is no memory is an error of its own', () => {
    start();
    bench.scripted.script.push((core) => {
      const code = nestedFault(0x9000, 6)(core);
      core.set(0x88, 0x8000_0b0en);
      return code;
    });
    expect(bench.vcpu.run()).toBe(0);
    const { kvmRun } = bench.vcpu;
    expect([kvmRun.exitReason, kvmRun.internalErrorSuberror, kvmRun.internalErrorNdata]).toEqual([17, 3, 5]);
    expect(kvmRun.internalErrorData(0)).toBe(0x9000n);
    expect(kvmRun.internalErrorData(1)).toBe(0x400n);
  });
});

describe('instructions that KVM carries out', () => {
  const VALID_UD = 0x8000_0306n;
  const VALID_GP = 0x8000_0b0dn;

  it.each([
    ['WBINVD', 0x89],
    ['INVD', 0x76],
    ['PAUSE', 0x77],
    ['MONITOR', 0x8a],
    ['MWAIT', 0x8b],
  ])('%s is skipped', (_name, code) => {
    start();
    bench.setRegs({ rip: 0x1000n });
    bench.runScript(exit(code, 0n, 0n, 3), HLT);
    expect(bench.vcpu.getRegs().rip).toBe(0x1004n);
  });

  it.each([
    ['VMRUN', 0x80],
    ['VMLOAD', 0x82],
    ['VMSAVE', 0x83],
    ['STGI', 0x84],
    ['CLGI', 0x85],
    ['SKINIT', 0x86],
    ['INVLPGA', 0x7a],
    ['RDPRU', 0x8e],
    ['RSM', 0x73],
  ])('%s is undefined in the guest', (_name, code) => {
    start();
    bench.setRegs({ rip: 0x1000n });
    bench.runScript(exit(code, 0n, 0n, 3), HLT);
    expect(bench.scripted.eventInjections[1]).toBe(VALID_UD);
    expect(bench.vcpu.getRegs().rip).toBe(0x1001n);
  });

  it.each([
    ['RDPMC', 0x6f],
    ['XSETBV', 0x8d],
  ])('%s is a general protection fault', (_name, code) => {
    start();
    bench.runScript(exit(code, 0n, 0n, 3), HLT);
    expect(bench.scripted.eventInjections[1]).toBe(VALID_GP);
  });

  it('XSETBV sets XCR0 alone: any other number is a general protection fault', () => {
    start();
    const xsetbv = exit(0x8d, 0n, 0n, 3);
    bench.setRegs({ rip: 0x1000n, rax: 1n, rcx: 0n, rdx: 0n });
    bench.runScript(xsetbv, HLT);
    expect([bench.scripted.eventInjections[1], bench.vcpu.getRegs().rip]).toEqual([0n, 0x1004n]);
    bench.setRegs({ rip: 0x1000n, rax: 1n, rcx: 1n, rdx: 0n });
    bench.runScript(xsetbv, HLT);
    expect([bench.scripted.eventInjections[3], bench.vcpu.getRegs().rip]).toEqual([VALID_GP, 0x1001n]);
  });

  it('CPUID is any program’s where the guest did not ask for faults', () => {
    start();
    bench.enterLongMode();
    const { ss } = bench.vcpu.getSregs();
    bench.setSregs({ ss: { ...ss, selector: 0x13, dpl: 3 } });
    bench.setRegs({ rip: 0x1000n });
    bench.runScript(exit(0x72, 0n, 0n, 2), HLT);
    expect([bench.scripted.eventInjections[1], bench.vcpu.getRegs().rip]).toEqual([0n, 0x1003n]);
  });

  it('an undefined opcode is given back to the guest', () => {
    start();
    bench.scripted.code = [0x0f, 0x0b];
    bench.runScript(exit(0x46), HLT);
    expect(bench.scripted.eventInjections[1]).toBe(VALID_UD);
  });

  it('an event that an exit interrupted is injected again, with its error code', () => {
    start();
    bench.addSlot({ flags: 0 });
    bench.scripted.script.push((core) => {
      const code = nestedFault(0x105_000, 6)(core);
      core.set(0x88, 0x2_8000_0b0en);
      return code;
    });
    bench.runScript(HLT);
    expect(bench.scripted.eventInjections[1]).toBe(0x2_8000_0b0en);
  });

  it.each([
    ['INT n', 0x8000_0480n],
    ['INT3', 0x8000_0303n],
    ['#VC', 0x8000_0b1dn],
  ])('%s that an exit interrupted is executed again instead', (_name, event) => {
    start();
    bench.addSlot({ flags: 0 });
    bench.scripted.script.push((core) => {
      const code = nestedFault(0x105_000, 6)(core);
      core.set(0x88, event);
      return code;
    });
    bench.runScript(HLT);
    expect(bench.scripted.eventInjections[1]).toBe(0n);
  });

  it('a PAUSE takes a good part of the time slice', () => {
    start('7.2', 0, 10_000);
    expect(bench.runScript(exit(0x77, 0n, 0n, 2))).toBe(-4);
  });

  it('MOV to CR8 tells the VMM when the priority sinks', () => {
    const { vcpu } = start();
    bench.setRegs({ rbx: 9n });
    const movCr8 = exit(0x18, 0x8000_0000_0000_0003n, 0n, 4);
    expect(bench.runScript(movCr8, HLT)).toBe(0);
    expect(vcpu.getSregs().cr8).toBe(9n);
    expect(bench.runScript(movCr8, HLT)).toBe(0);
    bench.setRegs({ rbx: 15n });
    expect(bench.runScript(movCr8, HLT)).toBe(0);
    expect(vcpu.getSregs().cr8).toBe(15n);
    bench.setRegs({ rbx: 2n });
    expect(bench.runScript(movCr8)).toBe(0);
    expect([vcpu.kvmRun.exitReason, vcpu.kvmRun.cr8]).toEqual([11, 2n]);
    bench.setRegs({ rbx: 16n });
    bench.runScript(movCr8, HLT);
    expect(bench.scripted.eventInjections.at(-1)).toBe(VALID_GP);
  });
});

describe('TLB flushes', () => {
  it('come before the first entry, and whenever the MMU asks', () => {
    start();
    bench.runScript(exit(0x60), HLT);
    bench.mmu.flushRemoteTlbs();
    bench.runScript(exit(0x60), HLT);
    expect(bench.scripted.tlbControls).toEqual([3, 0, 3, 0]);
  });
});

describe('a vCPU that waits', () => {
  function slow(): () => void {
    const waiting: (() => void)[] = [];
    let there = false;
    bench.gmem = (gfn, into) => {
      if (there) return bench.give(`gmem ${gfn}`, into);
      into.pending = new Promise((resolve) => {
        waiting.push(resolve);
      });
      return 1;
    };
    return () => {
      there = true;
      for (const resolve of waiting) resolve();
    };
  }

  it('returns 1 and says when to come back; then the fault goes on', async () => {
    const { vcpu } = start();
    bench.addSlot({ flags: 4 });
    bench.private.add(0x105);
    const deliver = slow();
    expect(bench.runScript(nestedFault(0x105_000, 4))).toBe(1);
    expect(vcpu.kvmRun.exitReason).toBe(0);
    const { pending } = vcpu;
    expect(vcpu.run()).toBe(1);
    expect(vcpu.ready).toBe(false);
    deliver();
    await Promise.all([pending, vcpu.pending]);
    expect(bench.runScript(HLT)).toBe(0);
    expect(vcpu.pending).toBeUndefined();
    expect(bench.mmu.lookup(0x105 as never)).toBeDefined();
  });

  it('is interrupted by immediate_exit and waits on afterwards', () => {
    const { vcpu } = start();
    bench.addSlot({ flags: 4 });
    bench.private.add(0x105);
    const deliver = slow();
    expect(bench.runScript(nestedFault(0x105_000, 4))).toBe(1);
    vcpu.kvmRun.immediateExit = 1;
    expect(vcpu.run()).toBe(-4);
    vcpu.kvmRun.immediateExit = 0;
    deliver();
    expect(bench.runScript(HLT)).toBe(0);
    expect(bench.mmu.lookup(0x105 as never)).toBeDefined();
  });

  it('faults again from the start when its gfn was invalidated', () => {
    start();
    bench.addSlot({ flags: 4 });
    bench.private.add(0x105);
    const deliver = slow();
    expect(bench.runScript(nestedFault(0x105_000, 4))).toBe(1);
    bench.invalidation.begin(0x105, 0x106);
    bench.private.delete(0x105);
    bench.invalidation.finish();
    deliver();
    expect(bench.runScript(nestedFault(0x105_000, 4), HLT)).toBe(0);
    expect(bench.mmu.lookup(0x105 as never)?.pfn).toBe(bench.frame('hva 1879068672'));
  });

  it('waits for the end of an invalidation, rather than spin', async () => {
    start();
    bench.addSlot({ flags: 0 });
    bench.invalidation.begin(0x105, 0x106);
    expect(bench.runScript(...Array.from({ length: 64 }, () => nestedFault(0x105_000, 4)))).toBe(1);
    let ended = false;
    const waited = bench.vcpu.pending?.then(() => expect(ended).toBe(true));
    await new Promise((resolve) => setImmediate(resolve));
    ended = true;
    bench.invalidation.finish();
    await waited;
    expect(bench.runScript(nestedFault(0x105_000, 4), HLT)).toBe(0);
  });

  it('of a vCPU whose descriptor is closed: −EBADF, and its frames are left alone', () => {
    start();
    bench.vcpu.close();
    expect(bench.vcpu.run()).toBe(-9);
  });
});
