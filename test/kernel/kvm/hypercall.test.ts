import { afterEach, describe, expect, it } from 'vitest';
import type { Regs } from '../../../src/kernel/interface.ts';
import { exit, HLT, VcpuBench } from './vcpu-bench.ts';

let bench: VcpuBench;
afterEach(() => bench.close());
const VMMCALL = exit(0x81, 0n, 0n, 3);
const UD = exit(0x46);

function start(policy: '7.2' | '6.12' = '7.2', enabled = true): VcpuBench {
  bench = new VcpuBench(policy);
  bench.enterLongMode();
  if (enabled) bench.capabilities.hypercallExits = 1 << 12;
  return bench;
}
const call = (regs: Partial<Regs>): void =>
  bench.setRegs({ rip: 0x1000n, rax: 12n, rbx: 0x20_0000n, rcx: 16n, rdx: 0x10n, ...regs });

/** What a refused guest finds in RAX. */
const refused = (errno: bigint): bigint => BigInt.asUintN(64, -errno);

describe('a MAP_GPA_RANGE hypercall', () => {
  it('exits with its arguments; the answer goes to RAX on the next run', () => {
    const { vcpu } = start();
    call({});
    expect(bench.runScript(VMMCALL)).toBe(0);
    const { kvmRun } = vcpu;
    expect({
      reason: kvmRun.exitReason,
      nr: kvmRun.hypercallNr,
      args: [0, 1, 2].map((i) => kvmRun.hypercallArg(i)),
      ret: kvmRun.hypercallRet,
      flags: kvmRun.hypercallFlags,
    }).toEqual({ reason: 3, nr: 12n, args: [0x20_0000n, 16n, 0x10n], ret: 0n, flags: 1n });
    expect(vcpu.getRegs().rip).toBe(0x1000n);
    kvmRun.hypercallRet = 0xffff_ffff_ffff_fff5n;
    expect(bench.runScript(HLT)).toBe(0);
    expect(vcpu.getRegs()).toMatchObject({ rip: 0x1004n, rax: 0xffff_ffff_ffff_fff5n });
  });

  it.each([
    ['7.2', 0n],
    ['6.12', 77n],
  ] as const)('ret is %s’s business before the VMM answers: %i', (policy, ret) => {
    start(policy);
    bench.vcpu.kvmRun.hypercallRet = 77n;
    call({});
    bench.runScript(VMMCALL);
    expect(bench.vcpu.kvmRun.hypercallRet).toBe(ret);
  });

  it.each([
    ['gpa not page aligned', { rbx: 0x20_0800n }, 22n],
    ['no pages', { rcx: 0n }, 22n],
    ['gpa + size wraps', { rbx: 0xffff_ffff_ffff_f000n, rcx: 2n }, 22n],
    ['gpa + size is 2^64', { rbx: 0xffff_ffff_ffff_f000n, rcx: 1n }, 22n],
    ['2^52 pages', { rbx: 0n, rcx: 1n << 52n }, 22n],
    ['more pages than 64 bits hold', { rbx: 0x1000n, rcx: 0xffff_ffff_ffff_ffffn }, 22n],
    ['another number', { rax: 5n }, 1000n],
    ['number 12 in the low half only', { rax: 0x1_0000_000cn }, 1000n],
  ] as const)('%s is refused', (_title, regs, errno) => {
    const { vcpu } = start();
    call(regs);
    expect(bench.runScript(VMMCALL, HLT)).toBe(0);
    expect(vcpu.kvmRun.exitReason).toBe(5);
    expect(vcpu.getRegs()).toMatchObject({ rip: 0x1004n, rax: refused(errno) });
  });

  it('is unknown as long as the VM did not ask for it', () => {
    const { vcpu } = start('7.2', false);
    call({});
    bench.runScript(VMMCALL, HLT);
    expect(vcpu.getRegs().rax).toBe(refused(1000n));
  });

  it('is not permitted to user mode', () => {
    const { vcpu } = start();
    const { ss } = vcpu.getSregs();
    bench.setSregs({ ss: { ...ss, dpl: 3 } });
    call({});
    bench.runScript(VMMCALL, HLT);
    expect(vcpu.getRegs().rax).toBe(refused(1n));
  });

  it('outside long mode has 32-bit arguments and answers', () => {
    const { vcpu } = start();
    const sregs = vcpu.getSregs();
    bench.setSregs({ cs: { ...sregs.cs, l: 0, db: 1 } });
    call({ rax: 0xdead_0000_0000_000cn, rbx: 0xdead_0000_0020_0000n, rcx: 0x1_0000_0010n });
    expect(bench.runScript(VMMCALL)).toBe(0);
    expect(vcpu.kvmRun.hypercallFlags).toBe(0n);
    expect([0, 1].map((i) => vcpu.kvmRun.hypercallArg(i))).toEqual([0x20_0000n, 16n]);
    vcpu.kvmRun.hypercallRet = 0xffff_ffff_ffff_ffean;
    bench.runScript(HLT);
    expect(vcpu.getRegs().rax).toBe(0xffff_ffean);
  });

  it('by VMCALL, which is undefined on this chip, is a hypercall as well', () => {
    const { vcpu } = start();
    call({});
    bench.scripted.code = [0x0f, 0x01, 0xc1, 0x90];
    expect(bench.runScript(UD)).toBe(0);
    expect(vcpu.kvmRun.exitReason).toBe(3);
    bench.runScript(HLT);
    expect(vcpu.getRegs()).toMatchObject({ rip: 0x1004n, rax: 0n });
  });

  it.each([
    ['other bytes', [0x0f, 0x01, 0xc2]],
    ['bytes that end in the middle', [0x0f, 0x01]],
  ])('%s stay undefined', (_title, code) => {
    start();
    call({});
    bench.scripted.code = code;
    expect(bench.runScript(UD, HLT)).toBe(0);
    expect(bench.scripted.eventInjections[1]).toBe(0x8000_0306n);
  });
});
