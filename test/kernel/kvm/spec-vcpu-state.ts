/**
 * The ioctls that get and set a vCPU's state (Documentation/virt/kvm/api.rst 4; arch/x86/kvm/x86.c): what they refuse and with what, what a new vCPU has,
 * and that what was set comes back.
 */
import type { CpuidEntry, KvmVcpu, VcpuEvents } from '../../../src/kernel/interface.ts';
import { GuestProgram } from './guest-program.ts';
import { Guest } from './spec-run.ts';
import type { Row, Spec, Subject } from './spec-subject.ts';

function newVcpu(subject: Subject, setUp = true): KvmVcpu {
  const vcpu = subject.vm.createVcpu(0);
  subject.atEnd(() => vcpu.close());
  if (setUp) vcpu.setCpuid2(subject.kvm.getSupportedCpuid());
  return vcpu;
}

/** A vCPU's events, changed by `change`, set and read again. */
function setEvents(subject: Subject, change: (events: VcpuEvents) => void): VcpuEvents {
  const vcpu = newVcpu(subject);
  const events = vcpu.getVcpuEvents();
  change(events);
  vcpu.setVcpuEvents(events);
  return vcpu.getVcpuEvents();
}

const refuses = (title: string, want: string, act: (vcpu: KvmVcpu, subject: Subject) => unknown): Row => ({
  title,
  act: (subject) => act(newVcpu(subject), subject),
  want,
});

/** CPUID entries that say nothing. */
const leaves = (count: number): CpuidEntry[] =>
  Array.from({ length: count }, (_, i) => {
    const registers = { eax: 0, ebx: 0, ecx: 0, edx: 0 };
    return { function: 0x100 + i, index: 0, flags: 0, ...registers };
  });

/** A vCPU whose guest ran, with the CPUID that the kernel supports. */
function haltedGuest(subject: Subject): KvmVcpu {
  const guest = new Guest(subject, new GuestProgram().hlt());
  guest.run();
  return guest.vcpu;
}

const NONE = { injected: 0, nr: 0, hasErrorCode: 0, pending: 0, errorCode: 0 };

export const vcpuStateSpec: Spec = {
  title: 'state of a vCPU',
  rows: [
    // KVM_SET_CPUID2
    refuses('KVM_SET_CPUID2 of 256 entries', 'OK', (vcpu) => vcpu.setCpuid2(leaves(256))),
    refuses('KVM_SET_CPUID2 of 257 entries', 'E2BIG', (vcpu) => vcpu.setCpuid2(leaves(257))),
    refuses('KVM_SET_CPUID2 with 47 bits of linear addresses', 'EINVAL', (vcpu) =>
      vcpu.setCpuid2([{ ...leaves(1)[0]!, function: 0x8000_0008, eax: 0x2f30 }]),
    ),
    {
      title: 'KVM_GET_CPUID2 shows OSXSAVE as CR4 has it, and APIC as its base has it',
      act(subject) {
        const vcpu = newVcpu(subject);
        const shown = () => {
          const { ecx, edx } = vcpu.getCpuid2().find((entry) => entry.function === 1)!;
          return [(ecx >>> 27) & 1, (edx >>> 9) & 1];
        };
        const first = shown();
        vcpu.setSregs({ ...vcpu.getSregs(), cr4: 1n << 18n, apicBase: 0xfee0_0100n });
        return [first, shown()];
      },
      want: [
        [0, 1],
        [1, 0],
      ],
    },
    {
      title: 'KVM_GET_CPUID2 shows an APIC that user space left out',
      act(subject) {
        const vcpu = newVcpu(subject, false);
        vcpu.setCpuid2([{ ...leaves(1)[0]!, function: 1 }]);
        return (vcpu.getCpuid2()[0]!.edx >>> 9) & 1;
      },
      want: 1,
    },
    {
      title: 'KVM_SET_CPUID2 with what KVM_GET_CPUID2 gives once the vCPU has run, whatever its OSXSAVE',
      act(subject) {
        const vcpu = haltedGuest(subject);
        const entries = vcpu.getCpuid2();
        vcpu.setCpuid2(entries);
        vcpu.setCpuid2(
          entries.map((entry) =>
            entry.function === 1 ? { ...entry, ecx: (entry.ecx ^ (1 << 27)) >>> 0 } : entry,
          ),
        );
      },
      want: 'OK',
    },
    {
      title: 'KVM_SET_CPUID2 with other entries once the vCPU has run',
      act(subject) {
        const vcpu = haltedGuest(subject);
        vcpu.setCpuid2(vcpu.getCpuid2().slice(1));
      },
      want: 'EINVAL',
    },
    {
      title: 'KVM_SET_CPUID2 of 257 entries once the vCPU has run',
      act: (subject) => haltedGuest(subject).setCpuid2(leaves(257)),
      want: 'E2BIG',
    },
    // KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS
    {
      title: 'a new vCPU has no events; NMI_PENDING, SHADOW and SMM count',
      act: (subject) => newVcpu(subject).getVcpuEvents(),
      want: {
        exception: NONE,
        interrupt: { injected: 0, nr: 0, soft: 0, shadow: 0 },
        nmi: { injected: 0, pending: 0, masked: 0 },
        sipiVector: 0,
        flags: 13,
        smi: { smm: 0, pending: 0, smmInsideNmi: 0, latchedInit: 0 },
        tripleFaultPending: 0,
        exceptionHasPayload: 0,
        exceptionPayload: 0n,
      },
    },
    {
      title: 'events with flag 0x40',
      act: (subject) => {
        setEvents(subject, (events) => {
          events.flags = 0x40;
        });
      },
      want: 'EINVAL',
    },
    {
      title: 'events with PAYLOAD without its capability',
      act: (subject) => {
        setEvents(subject, (events) => {
          events.flags = 0x10;
        });
      },
      want: 'EINVAL',
    },
    {
      title: 'events with TRIPLE_FAULT without its capability',
      act: (subject) => {
        setEvents(subject, (events) => {
          events.flags = 0x20;
        });
      },
      want: 'EINVAL',
    },
    ...[2, 32, 255].map(
      (nr): Row => ({
        title: `events with exception ${nr} injected`,
        act: (subject) => {
          setEvents(subject, (events) => {
            events.exception = { ...NONE, injected: 1, nr };
          });
        },
        want: 'EINVAL',
      }),
    ),
    {
      title: 'exception 32 that is neither injected nor pending is taken',
      act: (subject) =>
        setEvents(subject, (events) => {
          events.exception = { ...NONE, nr: 32 };
        }).exception,
      want: { ...NONE, nr: 32 },
    },
    {
      title: 'an injected exception with its error code comes back',
      act: (subject) =>
        setEvents(subject, (events) => {
          events.exception = { injected: 1, nr: 13, hasErrorCode: 1, pending: 0, errorCode: 0x18 };
        }).exception,
      want: { injected: 1, nr: 13, hasErrorCode: 1, pending: 0, errorCode: 0x18 },
    },
    {
      title: 'without PAYLOAD a pending exception is none',
      act: (subject) =>
        setEvents(subject, (events) => {
          events.exception = { ...NONE, pending: 1, nr: 13 };
        }).exception,
      want: { ...NONE, nr: 13 },
    },
    {
      title: 'an injected breakpoint is not told: it is at RIP',
      act: (subject) =>
        setEvents(subject, (events) => {
          events.exception = { ...NONE, injected: 1, nr: 3 };
        }).exception,
      want: { ...NONE, nr: 3 },
    },
    {
      title: 'with KVM_CAP_EXCEPTION_PAYLOAD pending and payload count, and injected gives way',
      act(subject) {
        subject.vm.enableCap({ cap: 164, args: [1n] });
        const { exception, exceptionHasPayload, exceptionPayload, flags } = setEvents(subject, (events) => {
          events.exception = { injected: 1, nr: 14, hasErrorCode: 1, pending: 1, errorCode: 2 };
          events.exceptionHasPayload = 1;
          events.exceptionPayload = 0x1234n;
        });
        return { exception, exceptionHasPayload, exceptionPayload, flags };
      },
      want: {
        exception: { injected: 0, nr: 14, hasErrorCode: 1, pending: 1, errorCode: 2 },
        exceptionHasPayload: 1,
        exceptionPayload: 0x1234n,
        flags: 0x1d,
      },
    },
    {
      title: 'an injected interrupt comes back, in KVM_GET_SREGS too',
      act(subject) {
        const vcpu = newVcpu(subject);
        vcpu.setVcpuEvents({
          ...vcpu.getVcpuEvents(),
          interrupt: { injected: 1, nr: 0x41, soft: 0, shadow: 0 },
        });
        return [vcpu.getVcpuEvents().interrupt, vcpu.getSregs().interruptBitmap];
      },
      want: [{ injected: 1, nr: 0x41, soft: 0, shadow: 0 }, [0n, 2n, 0n, 0n]],
    },
    {
      title: 'a software interrupt is not told',
      act: (subject) =>
        setEvents(subject, (events) => {
          events.interrupt = { injected: 1, nr: 0x80, soft: 1, shadow: 0 };
        }).interrupt,
      want: { injected: 0, nr: 0x80, soft: 0, shadow: 0 },
    },
    {
      title: 'a shadow is told as both kinds',
      act: (subject) =>
        setEvents(subject, (events) => {
          events.interrupt.shadow = 1;
        }).interrupt.shadow,
      want: 3,
    },
    {
      title: 'without SHADOW the shadow stays',
      act: (subject) =>
        setEvents(subject, (events) => {
          events.interrupt.shadow = 1;
          events.flags = 9;
        }).interrupt.shadow,
      want: 0,
    },
    {
      title: 'of five NMIs two wait',
      act: (subject) =>
        setEvents(subject, (events) => {
          events.nmi.pending = 5;
        }).nmi,
      want: { injected: 0, pending: 2, masked: 0 },
    },
    {
      title: 'of five NMIs one waits while another is handled',
      act: (subject) =>
        setEvents(subject, (events) => {
          events.nmi = { injected: 0, pending: 5, masked: 1 };
        }).nmi,
      want: { injected: 0, pending: 1, masked: 1 },
    },
    {
      title: 'without NMI_PENDING those that wait stay',
      act: (subject) =>
        setEvents(subject, (events) => {
          events.nmi.pending = 1;
          events.flags = 12;
        }).nmi.pending,
      want: 0,
    },
    {
      title: 'with KVM_CAP_X86_TRIPLE_FAULT_EVENT a triple fault comes back',
      act(subject) {
        subject.vm.enableCap({ cap: 218, args: [1n] });
        const { tripleFaultPending, flags } = setEvents(subject, (events) => {
          events.tripleFaultPending = 1;
        });
        return [tripleFaultPending, flags];
      },
      want: [1, 0x2d],
    },
    {
      title: 'KVM_NMI three times: two wait',
      act(subject) {
        const vcpu = newVcpu(subject);
        for (let i = 0; i < 3; i++) vcpu.nmi();
        return vcpu.getVcpuEvents().nmi.pending;
      },
      want: 2,
    },
    // KVM_INTERRUPT
    refuses('KVM_INTERRUPT 256', 'EINVAL', (vcpu) => vcpu.interrupt(256)),
    {
      title: 'KVM_INTERRUPT 255 waits; a second one takes its place',
      act(subject) {
        const vcpu = newVcpu(subject);
        vcpu.interrupt(255);
        const first = vcpu.getVcpuEvents().interrupt;
        vcpu.interrupt(32);
        return [first, vcpu.getVcpuEvents().interrupt.nr];
      },
      want: [{ injected: 1, nr: 255, soft: 0, shadow: 0 }, 32],
    },
    {
      title: 'KVM_SET_SREGS takes the lowest interrupt of its bitmap',
      act(subject) {
        const vcpu = newVcpu(subject);
        vcpu.setSregs({ ...vcpu.getSregs(), interruptBitmap: [0n, 0xc0n, 0n, 1n] });
        return vcpu.getSregs().interruptBitmap;
      },
      want: [0n, 0x40n, 0n, 0n],
    },
    // KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS
    {
      title: 'debug registers of a new vCPU',
      act: (subject) => newVcpu(subject).getDebugRegs(),
      want: { db: [0n, 0n, 0n, 0n], dr6: 0xffff0ff0n, dr7: 0x400n, flags: 0n },
    },
    {
      title: 'debug registers come back',
      act(subject) {
        const vcpu = newVcpu(subject);
        vcpu.setDebugRegs({ db: [1n, 2n, 3n, 1n << 63n], dr6: 0xffff4ff0n, dr7: 0x455n, flags: 0n });
        return vcpu.getDebugRegs();
      },
      want: { db: [1n, 2n, 3n, 1n << 63n], dr6: 0xffff4ff0n, dr7: 0x455n, flags: 0n },
    },
    refuses('KVM_SET_DEBUGREGS with flags 1', 'EINVAL', (vcpu) =>
      vcpu.setDebugRegs({ ...vcpu.getDebugRegs(), flags: 1n }),
    ),
    refuses('KVM_SET_DEBUGREGS with bit 32 of DR6', 'EINVAL', (vcpu) =>
      vcpu.setDebugRegs({ ...vcpu.getDebugRegs(), dr6: 1n << 32n }),
    ),
    refuses('KVM_SET_DEBUGREGS with bit 32 of DR7', 'EINVAL', (vcpu) =>
      vcpu.setDebugRegs({ ...vcpu.getDebugRegs(), dr7: 1n << 32n }),
    ),
    // KVM_GET_FPU, KVM_SET_FPU, KVM_GET_XSAVE, KVM_SET_XSAVE
    {
      title: 'FPU of a new vCPU; MXCSR is not told',
      act(subject) {
        const { fpr, xmm, ...rest } = newVcpu(subject).getFpu();
        const zero = [...fpr, ...xmm].every((register) => register.every((byte) => byte === 0));
        return { ...rest, zero, fpr: fpr.length, xmm: xmm.length };
      },
      want: {
        ...{ fcw: 0x37f, fsw: 0, ftwx: 0, lastOpcode: 0, lastIp: 0n, lastDp: 0n, mxcsr: 0 },
        ...{ zero: true, fpr: 8, xmm: 16 },
      },
    },
    {
      title: 'XMM registers, FCW and tags come back; MXCSR is not set',
      act(subject) {
        const vcpu = newVcpu(subject);
        const fpu = vcpu.getFpu();
        const xmm = fpu.xmm.map((_, i) => new Uint8Array(16).fill(i + 1));
        vcpu.setFpu({ ...fpu, xmm, fcw: 0x27f, ftwx: 0x81, mxcsr: 0x1f00 });
        const now = vcpu.getFpu();
        const image = new DataView(vcpu.getXsave().slice().buffer);
        return [now.xmm.map((register) => register[15]), now.fcw, now.ftwx, image.getUint32(24, true)];
      },
      want: [Array.from({ length: 16 }, (_, i) => i + 1), 0x27f, 0x81, 0x1f80],
    },
    {
      title: 'an XSAVE image comes back',
      act(subject) {
        const vcpu = newVcpu(subject);
        const image = vcpu.getXsave().slice();
        const view = new DataView(image.buffer);
        view.setUint32(24, 0x1f00, true);
        view.setBigUint64(160, 0x1122_3344_5566_7788n, true);
        view.setBigUint64(512, 2n, true);
        vcpu.setXsave(image);
        const now = new DataView(vcpu.getXsave().slice().buffer);
        return [now.getUint32(24, true), now.getBigUint64(160, true), vcpu.getFpu().xmm[0]![0]];
      },
      want: [0x1f00, 0x1122_3344_5566_7788n, 0x88],
    },
    {
      title: 'what XSTATE_BV does not name is initialised',
      act(subject) {
        const vcpu = newVcpu(subject);
        const fpu = vcpu.getFpu();
        vcpu.setFpu({ ...fpu, fcw: 0x27f });
        const image = vcpu.getXsave().slice();
        new DataView(image.buffer).setBigUint64(512, 2n, true);
        vcpu.setXsave(image);
        return new DataView(vcpu.getXsave().slice().buffer).getUint16(0, true);
      },
      want: 0x37f,
    },
    ...(
      [
        ['a feature that does not exist', 512, 1n << 62n],
        ['the compacted form', 520, 1n << 63n],
        ['a reserved byte of the header', 528, 1n],
      ] as const
    ).map(([what, offset, value]) =>
      refuses(`KVM_SET_XSAVE with ${what}`, 'EINVAL', (vcpu) => {
        const image = vcpu.getXsave().slice();
        new DataView(image.buffer).setBigUint64(offset, value, true);
        vcpu.setXsave(image);
      }),
    ),
    refuses('KVM_SET_XSAVE with a reserved bit of MXCSR', 'EINVAL', (vcpu) => {
      const image = vcpu.getXsave().slice();
      const view = new DataView(image.buffer);
      view.setUint32(24, 0x8000_1f80, true);
      view.setBigUint64(512, 2n, true);
      vcpu.setXsave(image);
    }),
    // KVM_GET_XCRS, KVM_SET_XCRS
    {
      title: 'XCR0 of a new vCPU is 1, and takes SSE as well',
      act(subject) {
        const vcpu = newVcpu(subject);
        const first = vcpu.getXcrs();
        vcpu.setXcrs({ flags: 0, xcrs: [{ xcr: 0, value: 3n }] });
        return [first, vcpu.getXcrs()];
      },
      want: [
        { flags: 0, xcrs: [{ xcr: 0, value: 1n }] },
        { flags: 0, xcrs: [{ xcr: 0, value: 3n }] },
      ],
    },
    refuses('KVM_SET_XCRS without x87', 'EINVAL', (vcpu) =>
      vcpu.setXcrs({ flags: 0, xcrs: [{ xcr: 0, value: 2n }] }),
    ),
    refuses('KVM_SET_XCRS with a feature that does not exist', 'EINVAL', (vcpu) =>
      vcpu.setXcrs({ flags: 0, xcrs: [{ xcr: 0, value: (1n << 62n) | 3n }] }),
    ),
    refuses('KVM_SET_XCRS with flags', 'EINVAL', (vcpu) =>
      vcpu.setXcrs({ flags: 1, xcrs: [{ xcr: 0, value: 1n }] }),
    ),
    refuses('KVM_SET_XCRS of 17 registers', 'EINVAL', (vcpu) =>
      vcpu.setXcrs({ flags: 0, xcrs: Array.from({ length: 17 }, () => ({ xcr: 0, value: 1n })) }),
    ),
    refuses('KVM_SET_XCRS of 16 registers', 'OK', (vcpu) =>
      vcpu.setXcrs({ flags: 0, xcrs: Array.from({ length: 16 }, () => ({ xcr: 0, value: 1n })) }),
    ),
    {
      title: 'KVM_SET_XCRS of another register than XCR0 changes nothing',
      act(subject) {
        const vcpu = newVcpu(subject);
        vcpu.setXcrs({ flags: 0, xcrs: [{ xcr: 1, value: 7n }] });
        return vcpu.getXcrs().xcrs;
      },
      want: [{ xcr: 0, value: 1n }],
    },
    // KVM_GET_MSRS, KVM_SET_MSRS
    {
      title: 'the list of MSRs has those of system calls, and each of them can be read',
      act(subject) {
        const list = subject.kvm.getMsrIndexList();
        const vcpu = newVcpu(subject);
        const wanted = [0x174, 0x175, 0x176, 0xc000_0081, 0xc000_0082, 0xc000_0102, 0x10, 0x277];
        return [wanted.every((msr) => list.includes(msr)), vcpu.getMsrs(wanted).length];
      },
      want: [true, 8],
    },
    {
      title: 'KVM_GET_MSRS stops at the first MSR that does not exist',
      act: (subject) =>
        newVcpu(subject)
          .getMsrs([0x277, 0xc000_0080, 0x1234_5678, 0x277])
          .map(({ index }) => index),
      want: [0x277, 0xc000_0080],
    },
    {
      title: 'MSRs of a new vCPU: PAT, EFER, SYSENTER_CS',
      act: (subject) =>
        newVcpu(subject)
          .getMsrs([0x277, 0xc000_0080, 0x174])
          .map(({ data }) => data),
      want: [0x0007_0406_0007_0406n, 0n, 0n],
    },
    {
      title: 'KVM_SET_MSRS stops at a value that is refused',
      act(subject) {
        const vcpu = newVcpu(subject);
        const count = vcpu.setMsrs([
          { index: 0xc000_0081, data: 0x23_0010_0000_0000n },
          { index: 0xc000_0080, data: 1n << 62n },
          { index: 0xc000_0082, data: 0x1000n },
        ]);
        return [count, vcpu.getMsrs([0xc000_0081, 0xc000_0082]).map(({ data }) => data)];
      },
      want: [1, [0x23_0010_0000_0000n, 0n]],
    },
    {
      title: 'LSTAR takes no address that is not canonical',
      act: (subject) => newVcpu(subject).setMsrs([{ index: 0xc000_0082, data: 1n << 62n }]),
      want: 0,
    },
    {
      title: 'FS, GS and KERNEL_GS base come back, FS and GS in KVM_GET_SREGS too',
      act(subject) {
        const vcpu = newVcpu(subject);
        vcpu.setMsrs([
          { index: 0xc000_0100, data: 0x1000n },
          { index: 0xc000_0101, data: 0xffff_8000_0000_2000n },
          { index: 0xc000_0102, data: 0x3000n },
        ]);
        const { fs, gs } = vcpu.getSregs();
        return [fs.base, gs.base, vcpu.getMsrs([0xc000_0102])[0]!.data];
      },
      want: [0x1000n, 0xffff_8000_0000_2000n, 0x3000n],
    },
    refuses('KVM_GET_MSRS of 256', 'E2BIG', (vcpu) => vcpu.getMsrs(new Array<number>(256).fill(0x277))),
    {
      title: 'KVM_GET_MSRS of 255',
      act: (subject) => newVcpu(subject).getMsrs(new Array<number>(255).fill(0x277)).length,
      want: 255,
    },
    refuses('KVM_SET_MSRS of 256', 'E2BIG', (vcpu) =>
      vcpu.setMsrs(Array.from({ length: 256 }, () => ({ index: 0x277, data: 0n }))),
    ),
    // KVM_X86_SET_MSR_FILTER, KVM_CAP_X86_USER_SPACE_MSR
    refuses('MSR filter with flag 2', 'EINVAL', (_, { vm }) => vm.setMsrFilter({ flags: 2, ranges: [] })),
    refuses('MSR filter that denies all and has no range', 'EINVAL', (_, { vm }) =>
      vm.setMsrFilter({ flags: 1, ranges: [] }),
    ),
    refuses('MSR filter that allows all and has no range', 'OK', (_, { vm }) =>
      vm.setMsrFilter({ flags: 0, ranges: [] }),
    ),
    refuses('MSR filter whose range has no flags', 'EINVAL', (_, { vm }) =>
      vm.setMsrFilter({ flags: 0, ranges: [{ flags: 0, base: 0, nmsrs: 1, bitmap: new Uint8Array(8) }] }),
    ),
    refuses('MSR filter whose range has flag 4', 'EINVAL', (_, { vm }) =>
      vm.setMsrFilter({ flags: 0, ranges: [{ flags: 4, base: 0, nmsrs: 1, bitmap: new Uint8Array(8) }] }),
    ),
    refuses('MSR filter with a bitmap of 0x601 bytes', 'EINVAL', (_, { vm }) =>
      vm.setMsrFilter({
        flags: 0,
        ranges: [{ flags: 1, base: 0, nmsrs: 0x3001, bitmap: new Uint8Array(0x608) }],
      }),
    ),
    refuses('MSR filter with a bitmap of 0x600 bytes', 'OK', (_, { vm }) =>
      vm.setMsrFilter({
        flags: 1,
        ranges: [{ flags: 1, base: 0, nmsrs: 0x3000, bitmap: new Uint8Array(0x600) }],
      }),
    ),
    refuses('KVM_CAP_X86_USER_SPACE_MSR with reason 8', 'EINVAL', (_, { vm }) =>
      vm.enableCap({ cap: 188, args: [8n] }),
    ),
    {
      title: 'a filter does not bind user space',
      act(subject) {
        const vcpu = newVcpu(subject);
        const bitmap = new Uint8Array(8);
        subject.vm.setMsrFilter({ flags: 1, ranges: [{ flags: 3, base: 0xc000_0080, nmsrs: 8, bitmap }] });
        return [vcpu.setMsrs([{ index: 0xc000_0081, data: 5n }]), vcpu.getMsrs([0xc000_0081])[0]!.data];
      },
      want: [1, 5n],
    },
    // KVM_SET_GUEST_DEBUG, KVM_TRANSLATE, KVM_GET_TSC_KHZ
    {
      title: 'an injected breakpoint waits; another is EBUSY',
      act(subject) {
        const vcpu = newVcpu(subject);
        const debugreg = new Array<bigint>(8).fill(0n);
        vcpu.setGuestDebug({ control: 0x8_0001, debugreg });
        vcpu.setGuestDebug({ control: 0x8_0001, debugreg });
      },
      want: 'EBUSY',
    },
    {
      title: 'the debugger’s TF is not shown in KVM_GET_REGS',
      act(subject) {
        const vcpu = newVcpu(subject);
        vcpu.setGuestDebug({ control: 3, debugreg: new Array<bigint>(8).fill(0n) });
        return vcpu.getRegs().rflags;
      },
      want: 2n,
    },
    {
      title: 'the debugger’s breakpoints are not shown in KVM_GET_DEBUGREGS',
      act(subject) {
        const vcpu = newVcpu(subject);
        vcpu.setGuestDebug({ control: 0x2_0001, debugreg: [0x8000n, 0n, 0n, 0n, 0n, 0n, 0n, 0x402n] });
        return vcpu.getDebugRegs();
      },
      want: { db: [0n, 0n, 0n, 0n], dr6: 0xffff0ff0n, dr7: 0x400n, flags: 0n },
    },
    {
      title: 'without paging an address is its own translation',
      act: (subject) => newVcpu(subject).translate(0x12345n),
      want: { physicalAddress: 0x12345n, valid: 1, writeable: 1, usermode: 0 },
    },
    {
      title: 'KVM_SET_TSC_KHZ 0 is the host’s frequency',
      act(subject) {
        const vcpu = newVcpu(subject);
        const khz = vcpu.getTscKhz();
        vcpu.setTscKhz(0);
        return [khz > 0, vcpu.getTscKhz() === khz];
      },
      want: [true, true],
    },
  ],
};
