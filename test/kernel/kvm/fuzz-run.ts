/** KVM_RUN as the ioctl fuzzer calls it, what user space scribbles before, and the state in which a guest gets somewhere. */
import type { KvmVcpu } from '../../../src/kernel/interface.ts';
import type { FuzzSubject, Machine } from './fuzz-subject.ts';

/** KVM_RUN's errnos: EINTR, EIO, ENXIO, EBADF, EAGAIN, ENOMEM, EFAULT, EINVAL, EHWPOISON. */
const RUN_RESULTS = new Set([0, 1, -4, -5, -6, -9, -11, -12, -14, -22, -133]);
const EXIT_REASONS = new Set([0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 17, 24, 26, 29, 30, 31, 32, 39, 40, 43]);

export function runVcpu(subject: FuzzSubject, vcpu: KvmVcpu, machine: Machine): void {
  const v = subject.values;
  scribble(subject, vcpu);
  for (let turn = v.below(4); turn >= 0; turn--) {
    const note = subject.log.note(`vcpu ${vcpu.id} run`, `machine ${subject.machines.indexOf(machine)}`);
    subject.log.counts.runs++;
    subject.log.explained(() => {
      const result = vcpu.run();
      const reason = vcpu.kvmRun.exitReason;
      note.outcome = `= ${result}, exit ${reason}`;
      const key = result === 0 || result === -14 ? `${result} exit ${reason}` : `${result}`;
      subject.log.counts.exits.set(key, (subject.log.counts.exits.get(key) ?? 0) + 1);
      if (!RUN_RESULTS.has(result)) throw new Error(`KVM_RUN returned ${result}`);
      if (result === 0 && !EXIT_REASONS.has(reason)) throw new Error(`exit reason ${reason}`);
      if (result === 1 && vcpu.pending === undefined) throw new Error('RUN_PENDING without a promise');
    });
  }
}

/** User space writes what it shares with the vCPU: fields that count, any bytes, the dirty ring. */
function scribble(subject: FuzzSubject, vcpu: KvmVcpu): void {
  const v = subject.values;
  if (vcpu.kvmRun.bytes.length === 0) return;
  if (v.oneIn(3)) {
    vcpu.kvmRun.immediateExit = v.oneIn(6) ? 1 : 0;
    vcpu.kvmRun.requestInterruptWindow = v.oneIn(6) ? 1 : 0;
  }
  if (v.oneIn(6))
    for (let i = v.below(24); i > 0; i--) vcpu.kvmRun.bytes[v.below(v.bit() === 1 ? 0x120 : 0x3000)] = v.u8();
  const ring = vcpu.dirtyRing;
  if (ring !== undefined && ring.length > 0 && v.oneIn(4)) {
    for (let entry = 0; entry < 64 && v.bit() === 1; entry++)
      ring[entry * 4] = v.pick([2, 2, 2, 3, 1, 0, v.u32() | 0]);
    if (v.oneIn(8)) ring[v.below(ring.length)] = v.u32() | 0;
  }
}

/** A state in which guest code runs: real mode, protected mode, or long mode with the page tables at CR3. */
export function boot(subject: FuzzSubject, vcpu: KvmVcpu): void {
  const v = subject.values;
  subject.log.call(`vcpu ${vcpu.id} boot`, '', () => {
    if (vcpu.getCpuid2().length === 0) vcpu.setCpuid2(subject.kvms[0]?.getSupportedCpuid() ?? []);
    const sregs = vcpu.getSregs();
    const long = v.mostly(1, 0);
    const flat = { base: 0n, limit: 0xffffffff, present: 1, dpl: 0, s: 1, g: 1, avl: 0, unusable: 0 };
    const data = { ...flat, selector: 16, type: 3, db: 1, l: 0 };
    const protectedMode = {
      cs: { ...flat, selector: 8, type: 11, db: 1 - long, l: long },
      ds: data,
      es: data,
      ss: data,
      cr0: long === 1 ? 0x80010033n : 0x11n,
      cr3: v.mostly(0n, v.pages(16)),
      cr4: 0x620n,
      efer: long === 1 ? 0xd00n : 0n,
    };
    const cs = { ...sregs.cs, base: 0n, selector: 0 };
    vcpu.setSregs(v.oneIn(6) ? { ...sregs, cs } : { ...sregs, ...protectedMode });
    const addresses = { rdi: v.pages(64), rsi: v.pages(64), rsp: 0x8000n };
    const rflags = 2n | BigInt(v.bit() << 9);
    vcpu.setRegs({
      ...vcpu.getRegs(),
      ...addresses,
      rip: v.mostly(0x2000n + v.pages(37), v.u64()),
      rflags,
    });
  });
}
