/**
 * Events that user space puts into a guest, and user space as the guest's debugger (Documentation/virt/kvm/api.rst 4.16, 4.30, 4.87 and 5): a guest of a few
 * instructions with an IDT whose handlers report by OUT.
 */
import type { Regs } from '../../../src/kernel/interface.ts';
import { GuestProgram } from './guest-program.ts';
import { Guest } from './spec-run.ts';
import type { Spec, Subject } from './spec-subject.ts';

const CODE = 0x8000;
const HANDLER = 0x9000;
const GDT = 0xb000;
const IDT = 0xc000;
const STACK = 0xe000;
const IF = 0x202n;
const NO_REGISTERS = new Array<bigint>(8).fill(0n);

/** 64-bit interrupt gates for all vectors, to a handler that reports by OUT and returns. */
function withHandlers(subject: Subject, program: GuestProgram, registers: Partial<Regs> = {}): Guest {
  const guest = new Guest(subject, program, { rsp: BigInt(STACK), rdx: 0x80n, ...registers });
  guest.write(HANDLER, new GuestProgram().out().iret().assemble(HANDLER));
  guest.write(
    GDT,
    new Uint8Array(BigUint64Array.of(0n, 0x00af_9b00_0000_ffffn, 0x00cf_9300_0000_ffffn).buffer),
  );
  const gate = BigInt(HANDLER) | (8n << 16n) | (0x8e00n << 32n);
  guest.write(IDT, new Uint8Array(new BigUint64Array(512).map((_, i) => (i % 2 === 0 ? gate : 0n)).buffer));
  const { vcpu } = guest;
  vcpu.setSregs({
    ...vcpu.getSregs(),
    gdt: { base: BigInt(GDT), limit: 0x17 },
    idt: { base: BigInt(IDT), limit: 0xfff },
  });
  return guest;
}

const program = (): GuestProgram => new GuestProgram();
const where = (guest: Guest): bigint => guest.vcpu.getRegs().rip;
/** In the handler, at its OUT or behind it: KVM's emulator moves RIP before the exit, SVM's fast path after it. */
const inHandler = (guest: Guest): boolean => where(guest) >> 12n === 9n;
/** ready_for_interrupt_injection and if_flag */
const readiness = ({ vcpu: { kvmRun } }: Guest): number[] => [
  kvmRun.readyForInterruptInjection,
  kvmRun.ifFlag,
];
const debugExit = ({ vcpu: { kvmRun } }: Guest): unknown => ({
  exception: kvmRun.debugException,
  pc: kvmRun.debugPc,
  dr6: kvmRun.debugDr6,
});

export const eventsSpec: Spec = {
  title: 'events and debugging',
  rows: [
    {
      title: 'KVM_INTERRUPT runs the handler, which returns to where the guest was',
      act(subject) {
        const guest = withHandlers(subject, program().hlt(), { rflags: IF });
        guest.vcpu.interrupt(0x40);
        const first = [guest.run(), inHandler(guest), guest.vcpu.getRegs().rsp];
        return [...first, guest.read(STACK - 40), guest.run(), where(guest)];
      },
      want: [2, true, BigInt(STACK - 40), 0x8000n, 5, 0x8001n],
    },
    {
      title: 'KVM_INTERRUPT does not ask for IF: that is user space’s business',
      act(subject) {
        const guest = withHandlers(subject, program().hlt(), { rflags: 2n });
        guest.vcpu.interrupt(0x40);
        return [guest.run(), guest.run()];
      },
      want: [2, 5],
    },
    {
      title: 'an exit says whether IF is on and an interrupt could go in',
      act(subject) {
        const guest = withHandlers(subject, program().out().sti().nop().out().hlt());
        const first = [guest.run(), ...readiness(guest)];
        return [...first, guest.run(), ...readiness(guest)];
      },
      want: [2, 0, 0, 2, 1, 1],
    },
    {
      title: 'the window for an interrupt opens behind the shadow of STI',
      needs: 'interrupt windows',
      act(subject) {
        const guest = withHandlers(subject, program().out().sti().nop().nop().hlt());
        guest.vcpu.kvmRun.requestInterruptWindow = 1;
        const first = guest.run();
        return [first, guest.run(), where(guest), ...readiness(guest)];
      },
      want: [2, 7, 0x8003n, 1, 1],
    },
    {
      title: 'the window is open at once where IF is on',
      needs: 'interrupt windows',
      act(subject) {
        const guest = withHandlers(subject, program().nop().hlt(), { rflags: IF });
        guest.vcpu.kvmRun.requestInterruptWindow = 1;
        const first = [guest.run(), where(guest)];
        guest.vcpu.kvmRun.requestInterruptWindow = 0;
        return [...first, guest.run(), where(guest)];
      },
      want: [7, 0x8000n, 5, 0x8002n],
    },
    {
      title: 'while an interrupt waits there is no window; it opens when the handler has returned',
      needs: 'interrupt windows',
      act(subject) {
        const guest = withHandlers(subject, program().nop().hlt(), { rflags: IF });
        guest.vcpu.interrupt(0x40);
        guest.vcpu.kvmRun.requestInterruptWindow = 1;
        const first = [guest.run(), inHandler(guest), ...readiness(guest)];
        return [...first, guest.run(), where(guest)];
      },
      want: [2, true, 0, 0, 7, 0x8000n],
    },
    {
      title: 'an NMI runs its handler, and is masked until IRET',
      act(subject) {
        const guest = withHandlers(subject, program().hlt());
        guest.vcpu.nmi();
        const first = [guest.run(), inHandler(guest), guest.vcpu.getVcpuEvents().nmi];
        return [...first, guest.run(), guest.vcpu.getVcpuEvents().nmi];
      },
      want: [2, true, { injected: 0, pending: 0, masked: 1 }, 5, { injected: 0, pending: 0, masked: 0 }],
    },
    {
      title: 'an NMI that comes in the handler of another waits for its IRET',
      act(subject) {
        const guest = withHandlers(subject, program().hlt());
        guest.vcpu.nmi();
        const first = [guest.run(), guest.vcpu.getRegs().rsp];
        guest.vcpu.nmi();
        const second = [guest.run(), guest.vcpu.getRegs().rsp];
        return [...first, ...second, guest.run(), where(guest)];
      },
      want: [2, BigInt(STACK - 40), 2, BigInt(STACK - 40), 5, 0x8001n],
    },
    {
      title: 'an injected exception has its error code on the stack',
      act(subject) {
        const guest = withHandlers(subject, program().hlt());
        const { vcpu } = guest;
        const exception = { injected: 1, nr: 13, hasErrorCode: 1, pending: 0, errorCode: 0x18 };
        vcpu.setVcpuEvents({ ...vcpu.getVcpuEvents(), exception });
        return [guest.run(), inHandler(guest), guest.read(STACK - 48), guest.read(STACK - 40)];
      },
      want: [2, true, 0x18n, 0x8000n],
    },
    {
      title: 'a triple fault that user space asks for is a shutdown',
      act(subject) {
        subject.vm.enableCap({ cap: 218, args: [1n] });
        const guest = new Guest(subject, program().hlt());
        guest.vcpu.setVcpuEvents({ ...guest.vcpu.getVcpuEvents(), flags: 0x20, tripleFaultPending: 1 });
        return [guest.run(), where(guest), guest.run()];
      },
      want: [8, 0x8000n, 5],
    },
    {
      title: 'a single step ends behind each instruction',
      act(subject) {
        const guest = new Guest(subject, program().nop().nop().hlt());
        guest.vcpu.setGuestDebug({ control: 3, debugreg: NO_REGISTERS });
        const steps = [guest.run(), debugExit(guest), guest.run(), debugExit(guest)];
        return [...steps, guest.vcpu.getRegs().rflags];
      },
      want: [
        4,
        { exception: 1, pc: 0x8001n, dr6: 0xffff4ff0n },
        4,
        { exception: 1, pc: 0x8002n, dr6: 0xffff4ff0n },
        2n,
      ],
    },
    {
      title: 'a step over OUT ends when user space has taken the value',
      act(subject) {
        const guest = new Guest(subject, program().out().hlt());
        guest.vcpu.setGuestDebug({ control: 3, debugreg: NO_REGISTERS });
        return [guest.run(), guest.run(), debugExit(guest)];
      },
      want: [2, 4, { exception: 1, pc: 0x8001n, dr6: 0xffff4ff0n }],
    },
    {
      title: 'when nobody steps any more the guest runs on',
      act(subject) {
        const guest = new Guest(subject, program().nop().nop().hlt());
        guest.vcpu.setGuestDebug({ control: 3, debugreg: NO_REGISTERS });
        const first = guest.run();
        guest.vcpu.setGuestDebug({ control: 0, debugreg: NO_REGISTERS });
        return [first, guest.run(), where(guest)];
      },
      want: [4, 5, 0x8003n],
    },
    {
      title: 'INT3 goes to the debugger, at the instruction',
      act(subject) {
        const guest = new Guest(subject, program().int3().hlt());
        guest.vcpu.setGuestDebug({ control: 0x1_0001, debugreg: NO_REGISTERS });
        const { kvmRun } = guest.vcpu;
        return [guest.run(), kvmRun.debugException, kvmRun.debugPc, where(guest)];
      },
      want: [4, 3, 0x8000n, 0x8000n],
    },
    {
      title: 'a breakpoint that the debugger hands on is the guest’s own INT3',
      act(subject) {
        const guest = withHandlers(subject, program().int3().hlt());
        guest.vcpu.setGuestDebug({ control: 0x1_0001, debugreg: NO_REGISTERS });
        const first = guest.run();
        guest.vcpu.setGuestDebug({ control: 0x8_0001, debugreg: NO_REGISTERS });
        return [first, guest.run(), guest.read(STACK - 40), guest.run(), where(guest)];
      },
      want: [4, 2, 0x8001n, 5, 0x8002n],
    },
    {
      title: 'a breakpoint of the debugger’s registers stops before the instruction',
      act(subject) {
        const guest = new Guest(subject, program().nop().nop().hlt());
        const debugreg = [BigInt(CODE + 1), 0n, 0n, 0n, 0n, 0n, 0n, 0x401n];
        guest.vcpu.setGuestDebug({ control: 0x2_0001, debugreg });
        return [guest.run(), debugExit(guest), guest.vcpu.getDebugRegs().dr7];
      },
      want: [4, { exception: 1, pc: 0x8001n, dr6: 0xffff0ff1n }, 0x400n],
    },
    {
      title: 'a watchpoint stops behind the store',
      act(subject) {
        const registers = { rdi: 0xa000n, rax: 7n };
        const guest = new Guest(subject, program().store('rdi', 'rax').hlt(), registers);
        const debugreg = [0xa000n, 0n, 0n, 0n, 0n, 0n, 0n, 0x9_0401n];
        guest.vcpu.setGuestDebug({ control: 0x2_0001, debugreg });
        return [guest.run(), debugExit(guest), guest.read(0xa000)];
      },
      want: [4, { exception: 1, pc: 0x8003n, dr6: 0xffff0ff1n }, 7n],
    },
    {
      title: 'an interrupt stays out while the debugger says so',
      act(subject) {
        const guest = withHandlers(subject, program().nop().hlt());
        guest.vcpu.nmi();
        guest.vcpu.setGuestDebug({ control: 0x10_0001, debugreg: NO_REGISTERS });
        const first = [guest.run(), where(guest)];
        guest.vcpu.setGuestDebug({ control: 0, debugreg: NO_REGISTERS });
        return [...first, guest.run(), inHandler(guest)];
      },
      want: [5, 0x8002n, 2, true],
    },
    {
      title: 'RDMSR of what KVM does not know goes to user space that asked for it',
      act(subject) {
        subject.vm.enableCap({ cap: 188, args: [2n] });
        const guest = new Guest(subject, program().rdmsr().hlt(), { rcx: 0x1234_5678n });
        const { kvmRun } = guest.vcpu;
        const first = [guest.run(), kvmRun.msrReason, kvmRun.msrIndex, kvmRun.msrData];
        kvmRun.msrData = 0x1111_2222_3333_4444n;
        const end = guest.run();
        const { rax, rdx, rip } = guest.vcpu.getRegs();
        return [...first, end, rax, rdx, rip];
      },
      want: [29, 2, 0x1234_5678, 0n, 5, 0x3333_4444n, 0x1111_2222n, 0x8003n],
    },
    {
      title: 'an error in its answer is #GP',
      act(subject) {
        subject.vm.enableCap({ cap: 188, args: [2n] });
        const guest = withHandlers(subject, program().rdmsr().hlt(), { rcx: 0x1234_5678n });
        const first = guest.run();
        guest.vcpu.kvmRun.msrError = 1;
        return [first, guest.run(), inHandler(guest), guest.read(STACK - 48), guest.read(STACK - 40)];
      },
      want: [29, 2, true, 0n, 0x8000n],
    },
    {
      title: 'WRMSR of a value that is refused goes there for its own reason',
      act(subject) {
        subject.vm.enableCap({ cap: 188, args: [1n] });
        const registers = { rcx: 0xc000_0080n, rax: 0n, rdx: 0x4000_0000n };
        const guest = new Guest(subject, program().wrmsr().hlt(), registers);
        const { kvmRun } = guest.vcpu;
        return [guest.run(), kvmRun.msrReason, kvmRun.msrIndex, kvmRun.msrData, guest.run()];
      },
      want: [30, 1, 0xc000_0080, 0x4000_0000_0000_0000n, 5],
    },
    {
      title: 'a filter holds for MSRs that the guest reads without an exit, too',
      act(subject) {
        subject.vm.enableCap({ cap: 188, args: [4n] });
        const guest = new Guest(subject, program().rdmsr().wrmsr().hlt(), { rcx: 0xc000_0102n });
        const ranges = [{ flags: 2, base: 0xc000_0100, nmsrs: 8, bitmap: new Uint8Array(8) }];
        subject.vm.setMsrFilter({ flags: 0, ranges });
        const { kvmRun } = guest.vcpu;
        return [guest.run(), kvmRun.msrReason, kvmRun.msrIndex, guest.run()];
      },
      want: [30, 4, 0xc000_0102, 5],
    },
    {
      title: 'KVM_TRANSLATE walks the guest’s page tables',
      act(subject) {
        const guest = new Guest(subject, program().hlt());
        return [0x8123n, 0x20_0456n, 0x40_0000n].map((address) => guest.vcpu.translate(address));
      },
      want: [
        { physicalAddress: 0x8123n, valid: 1, writeable: 1, usermode: 0 },
        { physicalAddress: 0x20_0456n, valid: 1, writeable: 1, usermode: 0 },
        { physicalAddress: 0xffff_ffff_ffff_ffffn, valid: 0, writeable: 1, usermode: 0 },
      ],
    },
  ],
};
