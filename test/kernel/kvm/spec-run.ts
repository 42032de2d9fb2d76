/**
 * KVM_RUN's exits, with guests of a few instructions in 64-bit mode at CPL 0 (reference facts 1.2; Documentation/virt/kvm/api.rst 5). Slot 0
 * is 64 pages of RAM at gpa 0 with page tables that map the first 4 MiB one to one; the code lies at 0x8000.
 */
import type { Hva } from '../../../src/base/address.ts';
import type { KvmVcpu, Regs, Segment } from '../../../src/kernel/interface.ts';
import { GuestProgram } from './guest-program.ts';
import type { Spec, Subject } from './spec-subject.ts';

const CODE = 0x8000;
/** Mapped by the guest's page tables; no slot lies there. */
const HOLE = 0x20_0000;
const EINTR = -4;
/** Interruptions after which a guest that should have left is given up: 10 ms or some thousand instructions each. */
const PATIENCE = 300;

/** A vCPU that runs a program, and what came of its last exit. */
export class Guest {
  readonly vcpu: KvmVcpu;
  readonly ram: Hva;
  readonly #subject: Subject;

  constructor(subject: Subject, program: GuestProgram, registers: Partial<Regs> = {}) {
    this.#subject = subject;
    this.ram = subject.memory(64) as Hva;
    subject.set({ slot: 0, guestPhysAddr: 0n, memorySize: 0x40000n, userspaceAddr: BigInt(this.ram) });
    const tables = new BigUint64Array(0x3000 / 8);
    tables[0] = 0x2003n;
    tables[0x1000 / 8] = 0x3003n;
    tables[0x2000 / 8] = 0x83n;
    tables[0x2008 / 8] = 0x20_0083n;
    this.write(0x1000, new Uint8Array(tables.buffer));
    this.write(CODE, program.assemble(CODE));

    this.vcpu = subject.vm.createVcpu(0);
    subject.atEnd(() => this.vcpu.close());
    const flat = { base: 0n, limit: 0xffff_ffff, present: 1, dpl: 0, s: 1, g: 1, avl: 0, unusable: 0 };
    const code: Segment = { ...flat, selector: 8, type: 11, db: 0, l: 1 };
    const data: Segment = { ...flat, selector: 0x10, type: 3, db: 1, l: 0 };
    this.vcpu.setCpuid2(subject.kvm.getSupportedCpuid());
    this.vcpu.setSregs({
      ...this.vcpu.getSregs(),
      ...{ cs: code, ds: data, es: data, ss: data },
      ...{ gdt: { base: 0n, limit: 0 }, idt: { base: 0n, limit: 0 } },
      ...{ cr0: 0x8005_0033n, cr3: 0x1000n, cr4: 0x620n, efer: 0xd00n },
    });
    this.vcpu.setRegs({ ...this.vcpu.getRegs(), rip: BigInt(CODE), rflags: 2n, ...registers });
  }

  write(gpa: number, bytes: Uint8Array): void {
    this.#subject.process.memory.write((this.ram + gpa) as Hva, bytes);
  }

  read(gpa: number): bigint {
    const bytes = new Uint8Array(8);
    this.#subject.process.memory.read((this.ram + gpa) as Hva, bytes);
    return new DataView(bytes.buffer).getBigUint64(0, true);
  }

  /** KVM_RUN until the guest leaves by itself. Returns the exit reason, or what KVM_RUN returned. */
  run(): number | string {
    for (let tries = 0; tries < PATIENCE; tries++) {
      const result = this.vcpu.run();
      if (result === 0) return this.vcpu.kvmRun.exitReason;
      if (result !== EINTR) return `KVM_RUN ${result}`;
    }
    return 'never left';
  }

  get io() {
    const { ioDirection, ioSize, ioPort, ioCount } = this.vcpu.kvmRun;
    return { direction: ioDirection, size: ioSize, port: ioPort, count: ioCount };
  }

  get mmio() {
    const { mmioPhysAddr, mmioLen, mmioIsWrite, mmioData } = this.vcpu.kvmRun;
    return { gpa: mmioPhysAddr, bytes: mmioLen, isWrite: mmioIsWrite, data: [...mmioData] };
  }
}

const program = (): GuestProgram => new GuestProgram();
/** One page at gpa 0x200000. */
const slotAtHole = { slot: 5, guestPhysAddr: BigInt(HOLE), memorySize: 0x1000n };

export const runSpec: Spec = {
  title: 'exits of KVM_RUN',
  rows: [
    {
      title: 'OUT says where and what, and the next run goes on behind it',
      act(subject) {
        const guest = new Guest(subject, program().out().hlt(), { rax: 0x1234_5678n, rdx: 0x3f8n });
        const first = [guest.run(), guest.io, guest.vcpu.kvmRun.ioValue()];
        return [...first, guest.run()];
      },
      want: [2, { direction: 1, size: 1, port: 0x3f8, count: 1 }, 0x78, 5],
    },
    {
      title: 'OUT to port 0x7e finds RIP behind it at the exit',
      act(subject) {
        const guest = new Guest(subject, program().out().hlt(), { rdx: 0x7en });
        return [guest.run(), guest.vcpu.getRegs().rip, guest.run(), guest.vcpu.getRegs().rip];
      },
      want: [2, 0x8001n, 5, 0x8002n],
    },
    {
      title: 'IN takes its value from the page of data',
      act(subject) {
        const guest = new Guest(subject, program().in().hlt(), { rax: 0xaabb_ccddn, rdx: 0x60n });
        const first = [guest.run(), guest.io];
        guest.vcpu.kvmRun.setIoValue(0x5a);
        return [...first, guest.run(), guest.vcpu.getRegs().rax];
      },
      want: [2, { direction: 0, size: 1, port: 0x60, count: 1 }, 5, 0xaabb_cc5an],
    },
    {
      title: 'OUTS with REP asks for an element at a time',
      act(subject) {
        const guest = new Guest(subject, program().outString().hlt(), { rsi: 0xa000n, rcx: 2n, rdx: 0x80n });
        guest.write(0xa000, Uint8Array.of(0x11, 0x22));
        const first = [guest.run(), guest.io, guest.vcpu.kvmRun.ioValue()];
        return [...first, guest.run(), guest.vcpu.kvmRun.ioValue(), guest.run(), guest.vcpu.getRegs().rcx];
      },
      want: [2, { direction: 1, size: 1, port: 0x80, count: 1 }, 0x11, 2, 0x22, 5, 0n],
    },
    {
      title: 'INS with REP asks for all elements at once',
      act(subject) {
        const guest = new Guest(subject, program().inString().hlt(), { rdi: 0xa000n, rcx: 3n, rdx: 0x80n });
        const first = [guest.run(), guest.io];
        for (const [i, value] of [0x1111, 0x2222, 0x3333].entries()) guest.vcpu.kvmRun.setIoValue(value, i);
        return [...first, guest.run(), guest.read(0xa000), guest.vcpu.getRegs().rdi];
      },
      want: [2, { direction: 0, size: 2, port: 0x80, count: 3 }, 5, 0x3333_2222_1111n, 0xa006n],
    },
    {
      title: 'INS with REP asks for no more elements than bytes are left in the page',
      act(subject) {
        const guest = new Guest(subject, program().inString().hlt(), { rdi: 0xaffen, rcx: 5n, rdx: 0x80n });
        const counts: unknown[] = [];
        for (let left = 5; left > 0 && guest.run() === 2; left -= guest.io.count) {
          counts.push(guest.io.count);
          for (let i = 0; i < guest.io.count; i++) guest.vcpu.kvmRun.setIoValue(10 * left + i, i);
        }
        return [...counts, guest.run(), guest.read(0xaff8), guest.read(0xb000)];
      },
      want: [2, 3, 5, 50n << 48n, 0x0020_001f_001e_0033n],
    },
    {
      title: 'INS with REP asks for 1024 bytes at most',
      act(subject) {
        const guest = new Guest(subject, program().inString().hlt(), { rdi: 0xa000n, rcx: 600n, rdx: 0x80n });
        const first = [guest.run(), guest.io.count];
        return [...first, guest.run(), guest.io.count, guest.run()];
      },
      want: [2, 512, 2, 88, 5],
    },
    {
      title: 'HLT leaves with RIP behind it',
      act(subject) {
        const guest = new Guest(subject, program().hlt());
        return [guest.run(), guest.vcpu.getRegs().rip];
      },
      want: [5, 0x8001n],
    },
    {
      title: 'a store where no slot lies is MMIO',
      act(subject) {
        const registers = { rdi: BigInt(HOLE + 8), rax: 0x8877_6655_4433_2211n };
        const guest = new Guest(subject, program().store('rdi', 'rax').hlt(), registers);
        return [guest.run(), guest.mmio, guest.run()];
      },
      want: [
        6,
        { gpa: 0x20_0008n, bytes: 8, isWrite: 1, data: [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88] },
        5,
      ],
    },
    {
      title: 'a load where no slot lies gets what the VMM puts there',
      act(subject) {
        const guest = new Guest(subject, program().load('rax', 'rsi').hlt(), { rsi: BigInt(HOLE) });
        const reason = guest.run();
        const { gpa, bytes, isWrite } = guest.mmio;
        guest.vcpu.kvmRun.mmioData.set([1, 2, 3, 4, 5, 6, 7, 8]);
        return [reason, gpa, bytes, isWrite, guest.run(), guest.vcpu.getRegs().rax];
      },
      want: [6, 0x20_0000n, 8, 0, 5, 0x0807_0605_0403_0201n],
    },
    {
      title: 'what the guest stores is in the process’s memory',
      act(subject) {
        const registers = { rdi: 0xa000n, rax: 0x1234_5678_9abc_def0n };
        const guest = new Guest(subject, program().store('rdi', 'rax').hlt(), registers);
        return [guest.run(), guest.read(0xa000)];
      },
      want: [5, 0x1234_5678_9abc_def0n],
    },
    {
      title: 'a slot that is READONLY is read, and a store to it is MMIO and changes nothing',
      act(subject) {
        const registers = { rsi: BigInt(HOLE), rdi: BigInt(HOLE), rbx: 7n };
        const code = program().load('rax', 'rsi').store('rdi', 'rbx').hlt();
        const guest = new Guest(subject, code, registers);
        const page = subject.memory(1) as Hva;
        subject.process.memory.write(page, Uint8Array.of(0x42));
        subject.set({ ...slotAtHole, flags: 2, userspaceAddr: BigInt(page) });
        const first = [guest.run(), guest.mmio.gpa, guest.mmio.isWrite, guest.vcpu.getRegs().rax];
        const after = guest.run();
        const byte = new Uint8Array(1);
        subject.process.memory.read(page, byte);
        return [...first, after, byte[0]];
      },
      want: [6, 0x20_0000n, 1, 0x42n, 5, 0x42],
    },
    {
      title: 'a slot that is deleted between two runs is MMIO from then on',
      act(subject) {
        const registers = { rsi: BigInt(HOLE), rdx: 1n };
        const guest = new Guest(
          subject,
          program().load('rax', 'rsi').out().load('rbx', 'rsi').hlt(),
          registers,
        );
        subject.set({ ...slotAtHole, userspaceAddr: BigInt(subject.memory(1)) });
        const first = guest.run();
        subject.set({ ...slotAtHole, memorySize: 0n });
        return [first, guest.run(), guest.mmio.isWrite];
      },
      want: [2, 6, 0],
    },
    {
      title: 'memory that is mapped anew behind a slot is seen by the guest',
      act(subject) {
        const registers = { rsi: BigInt(HOLE), rdx: 1n };
        const guest = new Guest(
          subject,
          program().load('rax', 'rsi').out().load('rbx', 'rsi').hlt(),
          registers,
        );
        const page = subject.memory(1) as Hva;
        subject.process.memory.write(page, Uint8Array.of(1));
        subject.set({ ...slotAtHole, userspaceAddr: BigInt(page) });
        guest.run();
        subject.process.memory.mmap({ length: 0x1000, protection: 3, flags: 0x32, address: page });
        subject.process.memory.write(page, Uint8Array.of(2));
        guest.run();
        return [guest.vcpu.getRegs().rax & 0xffn, guest.vcpu.getRegs().rbx];
      },
      want: [1n, 2n],
    },
    {
      title: 'a guest_memfd with MMAP and INIT_SHARED is guest memory and the process’s at once',
      act(subject) {
        const registers = { rsi: BigInt(HOLE), rdi: BigInt(HOLE + 8), rbx: 9n };
        const code = program().load('rax', 'rsi').store('rdi', 'rbx').hlt();
        const guest = new Guest(subject, code, registers);
        const fd = subject.gmem({ size: 0x1000n, flags: 3n });
        const page = subject.process.memory.mmap({ length: 0x1000, protection: 3, flags: 1, fd });
        subject.process.memory.write(page, Uint8Array.of(6));
        subject.set({ ...slotAtHole, flags: 4, guestMemfd: fd, userspaceAddr: BigInt(page) });
        const end = guest.run();
        const bytes = new Uint8Array(16);
        subject.process.memory.read(page, bytes);
        return [end, guest.vcpu.getRegs().rax, bytes[8]];
      },
      want: [5, 6n, 9],
    },
    {
      title: 'a hole punched there reads 0 in the guest',
      act(subject) {
        const registers = { rsi: BigInt(HOLE), rdx: 1n };
        const guest = new Guest(
          subject,
          program().load('rax', 'rsi').out().load('rbx', 'rsi').hlt(),
          registers,
        );
        const fd = subject.gmem({ size: 0x1000n, flags: 3n });
        const page = subject.process.memory.mmap({ length: 0x1000, protection: 3, flags: 1, fd });
        subject.process.memory.write(page, Uint8Array.of(6));
        subject.set({ ...slotAtHole, flags: 4, guestMemfd: fd, userspaceAddr: BigInt(page) });
        guest.run();
        subject.process.fallocate(fd, 3, 0n, 0x1000n);
        guest.run();
        return [guest.vcpu.getRegs().rax, guest.vcpu.getRegs().rbx];
      },
      want: [6n, 0n],
    },
    {
      title: 'a guest_memfd without MMAP leaves shared pages to the host address',
      act(subject) {
        const guest = new Guest(subject, program().load('rax', 'rsi').hlt(), { rsi: BigInt(HOLE) });
        const page = subject.memory(1) as Hva;
        subject.process.memory.write(page, Uint8Array.of(0x33));
        const fd = subject.gmem({ size: 0x1000n });
        subject.set({ ...slotAtHole, flags: 4, guestMemfd: fd, userspaceAddr: BigInt(page) });
        return [guest.run(), guest.vcpu.getRegs().rax];
      },
      want: [5, 0x33n],
    },
    {
      title: 'an exception that no gate can take is a shutdown',
      act: (subject) => new Guest(subject, program().ud2()).run(),
      want: 8,
    },
    {
      title: 'immediate_exit is EINTR before the first instruction, and leaves the exit reason as it is',
      act(subject) {
        const guest = new Guest(subject, program().hlt());
        guest.vcpu.kvmRun.exitReason = 77;
        guest.vcpu.kvmRun.immediateExit = 1;
        const stopped = [guest.vcpu.run(), guest.vcpu.kvmRun.exitReason, guest.vcpu.getRegs().rip];
        guest.vcpu.kvmRun.immediateExit = 0;
        return [...stopped, guest.run()];
      },
      want: [EINTR, 77, 0x8000n, 5],
    },
    {
      title: 'immediate_exit completes IN, and leaves its exit reason',
      act(subject) {
        const guest = new Guest(subject, program().in().hlt(), { rax: 0xff00n, rdx: 0x60n });
        guest.run();
        guest.vcpu.kvmRun.setIoValue(0x42);
        guest.vcpu.kvmRun.immediateExit = 1;
        const result = guest.vcpu.run();
        const { rip, rax } = guest.vcpu.getRegs();
        const { exitReason } = guest.vcpu.kvmRun;
        guest.vcpu.kvmRun.immediateExit = 0;
        return [result, exitReason, rip, rax, guest.run(), guest.vcpu.getRegs().rax];
      },
      want: [EINTR, 2, 0x8001n, 0xff42n, 5, 0xff42n],
    },
    {
      title: 'an address that the process has not mapped is EFAULT, without the last exit’s reason',
      act(subject) {
        const guest = new Guest(subject, program().load('rax', 'rsi').hlt(), { rsi: BigInt(HOLE) });
        const page = subject.memory(1);
        subject.set({ ...slotAtHole, userspaceAddr: BigInt(page) });
        subject.process.memory.munmap(page as Hva, 0x1000);
        guest.vcpu.kvmRun.exitReason = 39;
        return [guest.run(), guest.vcpu.kvmRun.exitReason];
      },
      want: ['KVM_RUN -14', 0],
    },
    {
      title: 'a CR8 of more than four bits is EINVAL: the exit reason stays, CR8 is what it was',
      act(subject) {
        const { vcpu } = new Guest(subject, program().hlt());
        vcpu.kvmRun.exitReason = 77;
        vcpu.kvmRun.cr8Number = 16;
        return [vcpu.run(), vcpu.kvmRun.exitReason, vcpu.kvmRun.cr8Number, vcpu.run()];
      },
      want: [-22, 77, 0, 0],
    },
    {
      title: 'a guest that never leaves is interrupted, again and again',
      act(subject) {
        const guest = new Guest(subject, program().forever());
        return [guest.vcpu.run(), guest.vcpu.run(), guest.vcpu.getRegs().rip];
      },
      want: [EINTR, EINTR, 0x8000n],
    },
    {
      title: 'a private access to a slot without a guest_memfd is a memory fault',
      needs: 'private memory',
      act(subject) {
        const protectedVm = subject.withType(1);
        const guest = new Guest(protectedVm, program().load('rax', 'rsi').hlt(), { rsi: 0xb000n });
        protectedVm.vm.setMemoryAttributes({ address: 0xb000n, size: 0x1000n, attributes: 8n, flags: 0n });
        const { kvmRun } = guest.vcpu;
        return [
          guest.run(),
          kvmRun.exitReason,
          kvmRun.memoryFaultFlags,
          kvmRun.memoryFaultGpa,
          kvmRun.memoryFaultSize,
        ];
      },
      want: ['KVM_RUN -14', 39, 8n, 0xb000n, 0x1000n],
    },
  ],
};
