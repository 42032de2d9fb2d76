/** The ioctl fuzzer's calls on vCPUs. */
import { expect } from 'vitest';
import type { CpuidEntry, KvmVcpu, MsrEntry, Segment } from '../../../src/kernel/interface.ts';
import { boot, runVcpu } from './fuzz-run.ts';
import type { Action, FuzzSubject } from './fuzz-subject.ts';
import { MSRS } from './fuzz-values.ts';

export function vcpuCalls(subject: FuzzSubject): Action[] {
  const v = subject.values;
  const c = <T>(
    weight: number,
    name: string,
    make: () => T,
    act: (vcpu: KvmVcpu, argument: T) => unknown,
  ): Action => [weight, subject.vcpuCall(name, make, act)];
  const none = (): undefined => undefined;
  return [
    [90, subject.withVcpu((vcpu, machine) => runVcpu(subject, vcpu, machine))],
    [12, subject.withVcpu((vcpu) => boot(subject, vcpu))],
    c(2, 'getRegs', none, (vcpu) => vcpu.getRegs()),
    [4, subject.withVcpu((vcpu) => setRegs(subject, vcpu))],
    c(2, 'getSregs', none, (vcpu) => vcpu.getSregs()),
    [4, subject.withVcpu((vcpu) => setSregs(subject, vcpu))],
    c(1, 'getCpuid2', none, (vcpu) => vcpu.getCpuid2()),
    c(
      2,
      'setCpuid2',
      () => cpuid(subject),
      (vcpu, entries) => vcpu.setCpuid2(entries),
    ),
    c(
      4,
      'interrupt',
      () => v.rough(v.mostly(v.below(256), v.u32())),
      (vcpu, vector) => vcpu.interrupt(vector),
    ),
    c(2, 'nmi', none, (vcpu) => vcpu.nmi()),
    c(1, 'getVcpuEvents', none, (vcpu) => vcpu.getVcpuEvents()),
    c(
      4,
      'setVcpuEvents',
      () => ({
        exception: {
          injected: v.bit(),
          nr: v.mostly(v.below(32), v.u8()),
          hasErrorCode: v.bit(),
          pending: v.bit(),
          errorCode: v.rough(v.u32()),
        },
        interrupt: { injected: v.bit(), nr: v.u8(), soft: v.bit(), shadow: v.below(4) },
        nmi: { injected: v.bit(), pending: v.rough(v.u8()), masked: v.bit() },
        sipiVector: v.u32(),
        flags: v.mostly(v.below(64), v.u32()),
        smi: {
          smm: v.oneIn(9) ? v.u8() : 0,
          pending: v.oneIn(9) ? v.u8() : 0,
          smmInsideNmi: v.bit(),
          latchedInit: v.bit(),
        },
        tripleFaultPending: v.bit(),
        exceptionHasPayload: v.bit(),
        exceptionPayload: v.u64(),
      }),
      (vcpu, events) => vcpu.setVcpuEvents(events),
    ),
    c(1, 'getDebugRegs', none, (vcpu) => vcpu.getDebugRegs()),
    c(
      2,
      'setDebugRegs',
      () => ({
        db: v.some(4, () => v.u64()),
        dr6: v.rough(v.u64()),
        dr7: v.u64(),
        flags: v.oneIn(9) ? v.u64() : 0n,
      }),
      (vcpu, registers) => vcpu.setDebugRegs(registers),
    ),
    c(
      3,
      'setGuestDebug',
      () => ({
        control: v.mostly(v.pick([0, 1, 3, 0x10001, 0x20001, 0x40001]), v.rough(v.u32())),
        debugreg: v.some(8, () => v.u64()),
      }),
      (vcpu, request) => vcpu.setGuestDebug(request),
    ),
    c(1, 'getFpu', none, (vcpu) => vcpu.getFpu()),
    c(
      1,
      'setFpu',
      () => ({
        fpr: v.some(8, () => v.bytes(16)),
        fcw: v.rough(v.u16()),
        fsw: v.u16(),
        ftwx: v.u8(),
        lastOpcode: v.u16(),
        lastIp: v.u64(),
        lastDp: v.u64(),
        xmm: v.some(16, () => v.bytes(16)),
        mxcsr: v.u32(),
      }),
      (vcpu, fpu) => vcpu.setFpu(fpu),
    ),
    c(1, 'getXsave', none, (vcpu) => vcpu.getXsave()),
    c(1, 'getXsave2', none, (vcpu) => vcpu.getXsave2()),
    c(
      2,
      'setXsave',
      () => xsave(subject),
      (vcpu, image) => vcpu.setXsave(image),
    ),
    c(1, 'getXcrs', none, (vcpu) => vcpu.getXcrs()),
    c(
      1,
      'setXcrs',
      () => ({
        flags: v.oneIn(9) ? v.u32() : 0,
        xcrs: v.some(v.oneIn(9) ? 18 : 2, () => ({
          xcr: v.rough(v.mostly(0, v.u32())),
          value: v.mostly(v.pick([1n, 3n]), v.u64()),
        })),
      }),
      (vcpu, xcrs) => vcpu.setXcrs(xcrs),
    ),
    c(
      2,
      'getMsrs',
      () => v.some(5, () => v.rough(v.pick([...MSRS, v.u32()]))),
      (vcpu, indices) => vcpu.getMsrs(indices),
    ),
    c(
      4,
      'setMsrs',
      (): MsrEntry[] =>
        v.some(4, () => ({ index: v.rough(v.pick([...MSRS, v.u32()])), data: v.rough(v.u64()) })),
      (vcpu, entries) => vcpu.setMsrs(entries),
    ),
    c(
      2,
      'translate',
      () => v.rough(v.u64()),
      (vcpu, address) => vcpu.translate(address),
    ),
    c(1, 'getTscKhz', none, (vcpu) => vcpu.getTscKhz()),
    c(
      1,
      'setTscKhz',
      () => v.roughArgument(v.u32()),
      (vcpu, khz) => vcpu.setTscKhz(khz),
    ),
    c(
      4,
      'preFaultMemory',
      () => ({
        gpa: v.rough(subject.gpa()),
        size: v.rough(v.mostly(v.pages(16), v.u64())),
        flags: v.rough(v.oneIn(9) ? v.u64() : 0n),
      }),
      (vcpu, range) => vcpu.preFaultMemory(range),
    ),
    c(1, 'getLapic', none, (vcpu) => vcpu.getLapic()),
    c(
      2,
      'setLapic',
      () => v.bytes(v.mostly(1024, v.below(2000))),
      (vcpu, state) => vcpu.setLapic(state),
    ),
    c(1, 'getMpState', none, (vcpu) => vcpu.getMpState()),
    c(
      2,
      'setMpState',
      () => v.rough(v.mostly(v.pick([0, 0, 1, 2, 3, 4]), v.u32())),
      (vcpu, state) => vcpu.setMpState(state),
    ),
    c(1, 'ready', none, (vcpu) => vcpu.ready),
    c(1, 'instructions', none, (vcpu) => expect(vcpu.instructions).toBeGreaterThanOrEqual(0)),
    c(1, 'vcpu.close', none, (vcpu) => v.oneIn(6) && vcpu.close()),
  ];
}

function setRegs(subject: FuzzSubject, vcpu: KvmVcpu): void {
  subject.log.call(`vcpu ${vcpu.id} setRegs`, '', () => {
    const regs = { ...vcpu.getRegs() };
    const v = subject.values;
    for (const name of Object.keys(regs) as (keyof typeof regs)[])
      if (v.oneIn(3)) regs[name] = v.rough(v.bit() === 1 ? v.pages(64) : v.u64());
    vcpu.setRegs(regs);
  });
}

function segment(subject: FuzzSubject, segment: Segment): Segment {
  const v = subject.values;
  if (v.oneIn(2)) return segment;
  const bits = {
    present: v.bit(),
    db: v.bit(),
    s: v.bit(),
    l: v.bit(),
    g: v.bit(),
    avl: v.bit(),
    unusable: v.bit(),
  };
  return {
    ...segment,
    base: v.rough(v.u64()),
    limit: v.rough(v.u32()),
    selector: v.rough(v.u16()),
    type: v.below(16),
    dpl: v.below(4),
    ...bits,
  };
}

function setSregs(subject: FuzzSubject, vcpu: KvmVcpu): void {
  const v = subject.values;
  subject.log.call(`vcpu ${vcpu.id} setSregs`, '', () => {
    const sregs = { ...vcpu.getSregs() };
    for (const name of ['cs', 'ds', 'es', 'fs', 'gs', 'ss', 'tr', 'ldt'] as const)
      if (v.oneIn(6)) sregs[name] = segment(subject, sregs[name]);
    for (const name of ['gdt', 'idt'] as const)
      if (v.oneIn(6)) sregs[name] = { base: v.u64(), limit: v.u16() };
    for (const name of ['cr0', 'cr2', 'cr3', 'cr4', 'cr8', 'efer', 'apicBase'] as const) {
      if (v.oneIn(8)) sregs[name] = v.bit() === 1 ? sregs[name] ^ (1n << BigInt(v.below(64))) : v.u64();
    }
    if (v.oneIn(8)) sregs.interruptBitmap = [0n, v.u64(), 0n, v.u64()];
    vcpu.setSregs(sregs);
  });
}

function cpuid(subject: FuzzSubject): CpuidEntry[] {
  const v = subject.values;
  const supported = v.oneIn(3) ? [] : (subject.kvms[0]?.getSupportedCpuid() ?? []);
  const odd = v.some(v.oneIn(20) ? 300 : 2, () => ({
    function: v.pick([0, 1, 7, 0xd, 0x8000_0000, 0x8000_0008, v.u32()]),
    index: v.below(3),
    flags: v.below(8),
    eax: v.rough(v.u32()),
    ebx: v.u32(),
    ecx: v.u32(),
    edx: v.u32(),
  }));
  return [...supported, ...odd];
}

function xsave(subject: FuzzSubject): Uint8Array {
  const v = subject.values;
  const image = v.bytes(v.mostly(4096, v.below(5000)));
  if (image.length >= 576 && !v.oneIn(4)) {
    image.fill(0, 512, 576);
    image[512] = v.below(4);
    image.fill(0, 26, 28);
  }
  return image;
}
