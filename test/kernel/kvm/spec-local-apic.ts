/**
 * The local APIC in the kernel with IOAPIC and PIC in user space: KVM_CAP_SPLIT_IRQCHIP and what hangs on it (reference svm.md 7.4 and 8;
 * Linux arch/x86/kvm/lapic.c, irq.c, x86.c). The vCPUs' CPUID is what the kernel supports.
 */
import type { GsiRoute, KvmVcpu, MsiMessage } from '../../../src/kernel/interface.ts';
import type { Row, Spec, Subject } from './spec-subject.ts';

const SPLIT = 121;
const X2APIC_API = 129;

const split = ({ vm }: Subject, pins = 24n): void => vm.enableCap({ cap: SPLIT, args: [pins] });

/** vCPUs 0 to `ids` − 1, or those of `ids`, of a VM with a split irqchip. */
function vcpus(subject: Subject, ids: number | readonly number[] = 1): KvmVcpu[] {
  split(subject);
  return (typeof ids === 'number' ? Array.from({ length: ids }, (_, id) => id) : ids).map((id) => {
    const vcpu = subject.vm.createVcpu(id);
    subject.atEnd(() => vcpu.close());
    vcpu.setCpuid2(subject.kvm.getSupportedCpuid());
    return vcpu;
  });
}
function one(subject: Subject): KvmVcpu {
  return vcpus(subject)[0]!;
}
const word = (state: Uint8Array, offset: number): number =>
  new DataView(state.buffer, state.byteOffset).getUint32(offset, true);
const withWord = (state: Uint8Array, offset: number, value: number): Uint8Array => {
  new DataView(state.buffer, state.byteOffset).setUint32(offset, value, true);
  return state;
};
const setBase = (vcpu: KvmVcpu, apicBase: bigint): void => vcpu.setSregs({ ...vcpu.getSregs(), apicBase });
const msi = (over: Partial<MsiMessage>): MsiMessage => ({
  ...{ addressLo: 0xfee0_0000, addressHi: 0, data: 0x51, flags: 0, devid: 0 },
  ...over,
});
const route = (gsi: number, over: Partial<GsiRoute> = {}): GsiRoute => ({
  ...{ gsi, type: 2, flags: 0, msi: { addressLo: 0xfee0_0000, addressHi: 0, data: 0x8061 } },
  ...over,
});
/** Software-enables the APIC, which is what takes fixed messages. */
function enable(vcpu: KvmVcpu): KvmVcpu {
  vcpu.setLapic(withWord(vcpu.getLapic(), 0xf0, 0x1ff));
  return vcpu;
}
/** The first IRR word with the bit of vector 0x51. */
const irr = (vcpu: KvmVcpu): number => word(vcpu.getLapic(), 0x220);

const capability = (title: string, act: Row['act'], want: unknown): Row => ({ title, act, want });
const reset = (register: string, offset: number, id: number, want: number): Row => ({
  title: `${register} of vCPU ${id} after its creation`,
  act: (subject) => word(vcpus(subject, id + 1)[id]!.getLapic(), offset),
  want,
});
const base = (title: string, values: readonly bigint[], want: unknown): Row => ({
  title: `apic_base ${title}`,
  act(subject) {
    const vcpu = one(subject);
    for (const value of values) setBase(vcpu, value);
    return `0x${vcpu.getSregs().apicBase.toString(16)}`;
  },
  want,
});
const mpState = (state: number, want: unknown): Row => ({
  title: `mp_state ${state} with a local APIC`,
  act(subject) {
    const vcpu = one(subject);
    vcpu.setMpState(state);
    return vcpu.getMpState();
  },
  want,
});
const mpStateWithout = (state: number, want: unknown): Row => ({
  title: `mp_state ${state} without a local APIC`,
  act(subject) {
    const vcpu = subject.vm.createVcpu(0);
    subject.atEnd(() => vcpu.close());
    vcpu.setMpState(state);
    return vcpu.getMpState();
  },
  want,
});
const routing = (title: string, routes: readonly GsiRoute[], flags: number, want: unknown): Row => ({
  title: `routing: ${title}`,
  act(subject) {
    split(subject);
    subject.vm.setGsiRouting({ routes, flags });
  },
  want,
});

export const localApicSpec: Spec = {
  title: 'local APIC',
  rows: [
    capability('KVM_CAP_SPLIT_IRQCHIP', ({ vm }) => vm.checkExtension(SPLIT), 1),
    capability('split irqchip with 4096 routes', (subject) => split(subject, 4096n), 'OK'),
    capability('split irqchip with 4097 routes', (subject) => split(subject, 4097n), 'EINVAL'),
    capability(
      'split irqchip with flags',
      ({ vm }) => vm.enableCap({ cap: SPLIT, flags: 1, args: [24n] }),
      'EINVAL',
    ),
    capability(
      'split irqchip twice',
      (subject) => {
        split(subject);
        split(subject);
      },
      'EEXIST',
    ),
    capability(
      'split irqchip twice, with too many routes',
      (subject) => {
        split(subject);
        split(subject, 4097n);
      },
      'EINVAL',
    ),
    capability(
      'split irqchip with a vCPU',
      (subject) => {
        const vcpu = subject.vm.createVcpu(0);
        subject.atEnd(() => vcpu.close());
        split(subject);
      },
      'EEXIST',
    ),
    capability('x2APIC API 3', ({ vm }) => vm.enableCap({ cap: X2APIC_API, args: [3n] }), 'OK'),
    capability('x2APIC API 0x10', ({ vm }) => vm.enableCap({ cap: X2APIC_API, args: [0x10n] }), 'EINVAL'),
    capability(
      'boot CPU 1 starts, 0 waits',
      (subject) => {
        subject.vm.setBootCpuId(1);
        return vcpus(subject, 2).map((vcpu) => [vcpu.getMpState(), vcpu.getSregs().apicBase]);
      },
      [
        [1, 0xfee0_0800n],
        [0, 0xfee0_0900n],
      ],
    ),
    capability(
      'the boot CPU once there are vCPUs',
      (subject) => {
        one(subject);
        subject.vm.setBootCpuId(0);
      },
      'EBUSY',
    ),

    reset('id', 0x20, 1, 0x0100_0000),
    reset('version', 0x30, 0, 0x0105_0014),
    reset('DFR', 0xe0, 0, 0xffff_ffff),
    reset('spurious vector', 0xf0, 0, 0xff),
    reset('timer entry', 0x320, 0, 0x10000),
    reset('LINT0', 0x350, 0, 0x700),
    reset('LINT0', 0x350, 1, 0x10000),
    reset('LINT1', 0x360, 0, 0x10000),
    reset('divider', 0x3e0, 0, 0),
    {
      title: 'the image is 1024 bytes, and goes back as it came',
      act(subject) {
        const vcpu = enable(one(subject));
        const state = withWord(withWord(vcpu.getLapic(), 0x80, 0x20), 0x340, 0x10444);
        vcpu.setLapic(state);
        const after = vcpu.getLapic();
        return [after.length, word(after, 0x80), word(after, 0xa0), word(after, 0x340)];
      },
      want: [1024, 0x20, 0x20, 0x10444],
    },
    {
      title: 'the task priority is CR8',
      act(subject) {
        const vcpu = one(subject);
        vcpu.setLapic(withWord(vcpu.getLapic(), 0x80, 0x7f));
        return vcpu.getSregs().cr8;
      },
      want: 7n,
    },
    {
      title: 'CR8 is the task priority',
      act(subject) {
        const vcpu = one(subject);
        vcpu.setSregs({ ...vcpu.getSregs(), cr8: 9n });
        return word(vcpu.getLapic(), 0x80);
      },
      want: 0x90,
    },
    {
      title: 'KVM_GET_LAPIC without a local APIC',
      act(subject) {
        const vcpu = subject.vm.createVcpu(0);
        subject.atEnd(() => vcpu.close());
        vcpu.getLapic();
      },
      want: 'EINVAL',
    },

    base('to x2APIC', [0xfee0_0d00n], '0xfee00d00'),
    base('to x2APIC and back', [0xfee0_0d00n, 0xfee0_0900n], '0xfee00900'),
    base('disabled', [0xfee0_0100n], '0xfee00100'),
    base('x2APIC from disabled', [0xfee0_0100n, 0xfee0_0d00n], '0xfee00d00'),
    base('x2APIC without the enable bit', [0xfee0_0500n], 'EINVAL'),
    base('with bit 0', [0xfee0_0901n], 'EINVAL'),
    base('with bit 9', [0xfee0_0b00n], 'EINVAL'),
    base('at another page', [0xfed0_0900n], '0xfed00900'),
    base('above all physical addresses', [0x10_0000_fee0_0900n], 'EINVAL'),
    {
      title: 'an x2APIC shows its id above, and its logical id',
      act(subject) {
        const vcpu = vcpus(subject, 3)[2]!;
        setBase(vcpu, 0xfee0_0c00n);
        const state = vcpu.getLapic();
        return [word(state, 0x20), word(state, 0xd0)];
      },
      want: [0x0200_0000, 4],
    },
    {
      title: 'an x2APIC with 32-bit ids shows its id as it is',
      act(subject) {
        subject.vm.enableCap({ cap: X2APIC_API, args: [1n] });
        const vcpu = vcpus(subject, 3)[2]!;
        setBase(vcpu, 0xfee0_0c00n);
        return word(vcpu.getLapic(), 0x20);
      },
      want: 2,
    },
    {
      title: 'an x2APIC with 32-bit ids and another id',
      act(subject) {
        subject.vm.enableCap({ cap: X2APIC_API, args: [1n] });
        const vcpu = one(subject);
        setBase(vcpu, 0xfee0_0d00n);
        vcpu.setLapic(withWord(vcpu.getLapic(), 0x20, 7));
      },
      want: 'EINVAL',
    },

    mpState(0, 0),
    mpState(1, 1),
    mpState(2, 2),
    mpState(3, 3),
    mpState(4, 0),
    mpState(5, 'EINVAL'),
    mpState(8, 'EINVAL'),
    mpState(9, 9),
    mpState(10, 'EINVAL'),
    mpStateWithout(0, 0),
    mpStateWithout(1, 'EINVAL'),
    mpStateWithout(2, 'EINVAL'),
    mpStateWithout(3, 'EINVAL'),
    mpStateWithout(4, 'EINVAL'),
    mpStateWithout(9, 'EINVAL'),
    {
      title: 'INIT and SIPI by messages',
      act(subject) {
        const [bsp, ap] = vcpus(subject, 2);
        enable(bsp!);
        const states = [ap!.getMpState()];
        subject.vm.signalMsi(msi({ addressLo: 0xfee0_1000, data: 0x500 }));
        states.push(ap!.getMpState());
        subject.vm.signalMsi(msi({ addressLo: 0xfee0_1000, data: 0x600 | 0x9a }));
        states.push(ap!.getMpState());
        const { cs, cr0 } = ap!.getSregs();
        return [...states, cs.selector, Number(cs.base), Number(cr0), Number(ap!.getRegs().rip)];
      },
      want: [1, 2, 0, 0x9a00, 0x9a000, 0x6000_0010, 0],
    },

    {
      title: 'the newest vCPU hears nothing before the map of APICs is made anew',
      act(subject) {
        const [bsp] = vcpus(subject, 2);
        const toIt = msi({ addressLo: 0xfee0_1000, data: 0x500 });
        const before = subject.vm.signalMsi(toIt);
        enable(bsp!);
        return [before, subject.vm.signalMsi(toIt)];
      },
      want: [0, 1],
    },
    {
      title: 'a latched INIT and the SIPI vector by KVM_SET_VCPU_EVENTS',
      act(subject) {
        const [, ap] = vcpus(subject, 2);
        const events = ap!.getVcpuEvents();
        ap!.setVcpuEvents({
          ...events,
          flags: 10,
          sipiVector: 0x9a,
          smi: { ...events.smi, latchedInit: 1 },
        });
        const { latchedInit } = ap!.getVcpuEvents().smi;
        const states = [latchedInit, ap!.getMpState(), ap!.getVcpuEvents().smi.latchedInit];
        ap!.setMpState(4);
        return [...states, ap!.getMpState(), ap!.getSregs().cs.selector];
      },
      want: [1, 2, 0, 0, 0x9a00],
    },
    {
      title: 'events with an SMI for a vCPU that has received INIT',
      act(subject) {
        const vcpu = one(subject);
        vcpu.setMpState(2);
        const events = vcpu.getVcpuEvents();
        vcpu.setVcpuEvents({ ...events, flags: 8, smi: { ...events.smi, pending: 1 } });
      },
      want: 'EINVAL',
    },
    {
      title: 'KVM_SIGNAL_MSI without an irqchip',
      act: ({ vm }) => vm.signalMsi(msi({})),
      want: 'EINVAL',
    },
    {
      title: 'KVM_INTERRUPT of a vector that does not exist',
      act: (subject) => one(subject).interrupt(256),
      want: 'EINVAL',
    },
    {
      title: 'KVM_INTERRUPT while another waits',
      act(subject) {
        const vcpu = one(subject);
        vcpu.interrupt(0x30);
        vcpu.interrupt(0x31);
      },
      want: 'EEXIST',
    },
    {
      title: 'a message to an APIC that is software-disabled',
      act(subject) {
        one(subject);
        return subject.vm.signalMsi(msi({}));
      },
      want: 0,
    },
    {
      title: 'a message to one APIC',
      act(subject) {
        const [first, second] = vcpus(subject, 2).map(enable);
        const taken = subject.vm.signalMsi(msi({ addressLo: 0xfee0_1000 }));
        return [taken, irr(first!), irr(second!)];
      },
      want: [1, 0, 1 << 17],
    },
    {
      title: 'a message to all APICs',
      act(subject) {
        const all = vcpus(subject, 3).map(enable);
        const taken = subject.vm.signalMsi(msi({ addressLo: 0xfeef_f000 }));
        return [taken, ...all.map(irr)];
      },
      want: [3, 1 << 17, 1 << 17, 1 << 17],
    },
    {
      title: 'a message to an id that nobody has',
      act(subject) {
        vcpus(subject, 2).forEach(enable);
        return subject.vm.signalMsi(msi({ addressLo: 0xfee0_9000 }));
      },
      want: 0,
    },
    {
      title: 'a message with an unknown flag',
      act(subject) {
        enable(one(subject));
        return subject.vm.signalMsi(msi({ flags: 2 }));
      },
      want: 'EINVAL',
    },
    {
      title: 'a message with 32-bit ids goes to an id above 255, by its high address',
      act(subject) {
        subject.vm.enableCap({ cap: X2APIC_API, args: [3n] });
        const [low, high] = vcpus(subject, [0x2c, 0x12c]);
        for (const vcpu of [low!, high!]) {
          setBase(vcpu, vcpu.getSregs().apicBase | 0xc00n);
          enable(vcpu);
        }
        const to = (addressHi: number): number =>
          subject.vm.signalMsi(msi({ addressLo: 0xfee2_c000, addressHi }));
        const taken = [to(0x100), irr(low!), irr(high!), to(0), irr(low!)];
        return [...taken, to(0x200)];
      },
      want: [1, 0, 1 << 17, 1, 1 << 17, 0],
    },
    {
      title: 'a message with 32-bit ids and one of bits 7:0 of its high address',
      act(subject) {
        subject.vm.enableCap({ cap: X2APIC_API, args: [1n] });
        enable(one(subject));
        return subject.vm.signalMsi(msi({ addressHi: 0x101 }));
      },
      want: 'EINVAL',
    },
    {
      title: 'a message by lowest priority to two of three',
      act(subject) {
        const all = vcpus(subject, 3);
        all.forEach((vcpu, index) => {
          enable(vcpu);
          vcpu.setLapic(withWord(vcpu.getLapic(), 0xd0, (1 << index) << 24));
        });
        const taken = subject.vm.signalMsi(msi({ addressLo: 0xfee0_6004, data: 0x151 }));
        return [taken, ...all.map(irr)];
      },
      want: [1, 0, 0, 1 << 17],
    },

    {
      title: 'KVM_IRQ_LINE without an irqchip',
      act: ({ vm }) => vm.irqLine({ irq: 4, level: 1 }),
      want: 'ENXIO',
    },
    {
      title: 'a line without a route',
      act(subject) {
        split(subject);
        return subject.vm.irqLine({ irq: 4, level: 1 });
      },
      want: -1,
    },
    {
      title: 'a line leads to its route’s message, and falling to nothing',
      act(subject) {
        const vcpu = enable(one(subject));
        subject.vm.setGsiRouting({ routes: [route(4)], flags: 0 });
        const up = subject.vm.irqLine({ irq: 4, level: 1 });
        const down = subject.vm.irqLine({ irq: 4, level: 0 });
        return [up, down, word(vcpu.getLapic(), 0x230), word(vcpu.getLapic(), 0x1b0)];
      },
      want: [1, -1, 2, 2],
    },
    {
      title: 'routing without an irqchip',
      act: ({ vm }) => vm.setGsiRouting({ routes: [], flags: 0 }),
      want: 'EINVAL',
    },
    routing('none', [], 0, 'OK'),
    routing('flags', [route(4)], 1, 'EINVAL'),
    routing('GSI 4095', [route(4095)], 0, 'OK'),
    routing('GSI 4096', [route(4096)], 0, 'EINVAL'),
    routing('two of one GSI', [route(4), route(4)], 0, 'EINVAL'),
    routing('a pin of an irqchip', [route(4, { type: 1 })], 0, 'EINVAL'),
    routing(
      'bits 7:0 of a high address, without 32-bit ids',
      [route(4, { msi: { addressLo: 0xfee0_0000, addressHi: 0x55, data: 0x61 } })],
      0,
      'OK',
    ),
    routing('an unknown type', [route(4, { type: 77 })], 0, 'EINVAL'),
    routing('a flag of a route', [route(4, { flags: 2 })], 0, 'EINVAL'),
  ],
};
