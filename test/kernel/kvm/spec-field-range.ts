/** Values that no field of an ioctl's structure can hold: neither kernel ever sees them; both back ends name the field, what it got and what it wants. */
import type { KvmVcpu, KvmVm } from '../../../src/kernel/interface.ts';
import type { Row, Spec, Subject } from './spec-subject.ts';

const MOST = { u8: '255', u16: '65535', u32: '4294967295', u64: '18446744073709551615' } as const;
type Field = 'u8' | 'u16' | 'u32' | 'u64' | 'int' | 'long';

const NUMBERS: readonly [unknown, string][] = [
  [Number.NaN, 'NaN'],
  [0.5, '0.5'],
  [Number.POSITIVE_INFINITY, 'Infinity'],
];
const NO_NUMBERS: readonly [unknown, string][] = [
  ['1', 'got the string 1, want a number'],
  [1n, 'got the bigint 1, want a number'],
  [undefined, 'got undefined, want a number'],
];
const NO_BIGINTS: readonly [unknown, string][] = [
  [4096, 'got the number 4096, want a bigint'],
  [undefined, 'got undefined, want a bigint'],
];

/** What is put into a field of a type, and the answer behind its name. */
function refused(type: Field): readonly [unknown, string][] {
  const range = (value: string, least: string, most: string): string =>
    `got ${value}, want an integer from ${least} to ${most}`;
  switch (type) {
    case 'long':
      return [
        ...NO_NUMBERS,
        ...NUMBERS.map(([value, word]): [unknown, string] => [value, `got ${word}, want an integer`]),
        [2 ** 53, 'got 9007199254740992, want an integer of at most 53 bits'],
        [1e300, 'got 1e+300, want an integer of at most 53 bits'],
      ];
    case 'int': {
      const words = (value: string): string => range(value, '-2147483648', '2147483647');
      const out: [unknown, string][] = [
        [2 ** 31, words('2147483648')],
        [-(2 ** 31) - 1, words('-2147483649')],
      ];
      return [
        ...NO_NUMBERS,
        ...NUMBERS.map(([value, word]): [unknown, string] => [value, words(word)]),
        ...out,
      ];
    }
    case 'u64':
      return [
        ...NO_BIGINTS,
        [-1n, range('-1', '0', MOST.u64)],
        [1n << 64n, range('18446744073709551616', '0', MOST.u64)],
      ];
    default: {
      const words = (value: string): string => range(value, '0', MOST[type]);
      const above = String(Number(MOST[type]) + 1);
      const out: [unknown, string][] = [
        [-1, words('-1')],
        [Number(above), words(above)],
      ];
      return [
        ...NO_NUMBERS,
        ...NUMBERS.map(([value, word]): [unknown, string] => [value, words(word)]),
        ...out,
      ];
    }
  }
}

function messageOf(act: () => unknown): string {
  try {
    act();
    return 'taken';
  } catch (error) {
    if (error instanceof RangeError || error instanceof TypeError) return error.message;
    return String(error);
  }
}

/** A row for a field: `ask` puts the value there. */
const row = (field: string, type: Field, ask: (subject: Subject) => (value: never) => unknown): Row => ({
  title: `${field} takes what a ${type} holds`,
  act(subject) {
    const call = ask(subject);
    return refused(type).map(([value]) => messageOf(() => call(value as never)));
  },
  want: refused(type).map(([, words]) => `${field}: ${words}`),
});

function newVcpu(subject: Subject): KvmVcpu {
  const vcpu = subject.vm.createVcpu(0);
  subject.atEnd(() => vcpu.close());
  return vcpu;
}
const ofVcpu = (field: string, type: Field, ask: (vcpu: KvmVcpu, value: never) => unknown): Row =>
  row(field, type, (subject) => {
    const vcpu = newVcpu(subject);
    return (value) => ask(vcpu, value);
  });
const ofVm = (field: string, type: Field, ask: (vm: KvmVm, value: never) => unknown): Row =>
  row(
    field,
    type,
    ({ vm }) =>
      (value) =>
        ask(vm, value),
  );

const region = {
  slot: 1,
  flags: 0,
  guestPhysAddr: 0n,
  memorySize: 0x1000n,
  userspaceAddr: 0x10_0000n,
  guestMemfdOffset: 0n,
  guestMemfd: 0,
};
const msi = { addressLo: 0xfee0_0000, addressHi: 0, data: 0x40, flags: 0, devid: 0 };
const route = { gsi: 0, type: 2, flags: 0, msi: { addressLo: 0xfee0_0000, addressHi: 0, data: 0x40 } };
const range = { flags: 1, base: 0, nmsrs: 8, bitmap: Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0) };
const leaf = { function: 0, index: 0, flags: 0, eax: 0, ebx: 0, ecx: 0, edx: 0 };
const bitmap = new Int32Array(2);

export const fieldRangeSpec: Spec = {
  title: 'values that no field holds',
  rows: [
    row(
      'KVM_CHECK_EXTENSION.cap',
      'long',
      ({ kvm }) =>
        (value) =>
          kvm.checkExtension(value),
    ),
    ofVm('KVM_CHECK_EXTENSION.cap', 'long', (vm, value) => vm.checkExtension(value)),
    row(
      'KVM_CREATE_VM.type',
      'long',
      ({ kvm }) =>
        (value) =>
          kvm.createVm(value),
    ),
    row(
      'kvm_msr_entry.index',
      'u32',
      ({ kvm }) =>
        (value) =>
          kvm.getMsrs([value]),
    ),
    ofVm('KVM_CREATE_VCPU.id', 'long', (vm, value) => vm.createVcpu(value)),
    ofVm('KVM_SET_BOOT_CPU_ID.id', 'long', (vm, value) => vm.setBootCpuId(value)),
    ofVm('kvm_enable_cap.cap', 'u32', (vm, cap) => vm.enableCap({ cap })),
    {
      title: 'kvm_enable_cap.flags takes what a u32 holds',
      act: ({ vm }) =>
        [-1, 2 ** 32, Number.NaN].map((flags) => messageOf(() => vm.enableCap({ cap: 168, flags }))),
      want: ['-1', '4294967296', 'NaN'].map(
        (value) => `kvm_enable_cap.flags: got ${value}, want an integer from 0 to 4294967295`,
      ),
    },
    ofVm('kvm_enable_cap.args[1]', 'u64', (vm, value) => vm.enableCap({ cap: 168, args: [0n, value] })),
    ofVm('kvm_userspace_memory_region.flags', 'u32', (vm, flags) =>
      vm.setUserMemoryRegion({ ...region, flags }),
    ),
    ofVm('kvm_userspace_memory_region2.flags', 'u32', (vm, flags) =>
      vm.setUserMemoryRegion2({ ...region, flags }),
    ),
    ofVm('kvm_userspace_memory_region2.guest_memfd', 'u32', (vm, guestMemfd) =>
      vm.setUserMemoryRegion2({ ...region, guestMemfd }),
    ),
    ofVm('kvm_dirty_log.slot', 'u32', (vm, slot) => vm.getDirtyLog({ slot, bitmap })),
    ofVm('kvm_clear_dirty_log.num_pages', 'u32', (vm, numPages) =>
      vm.clearDirtyLog({ slot: 0, bitmap, firstPage: 0n, numPages }),
    ),
    ofVm('kvm_irq_level.irq', 'u32', (vm, irq) => vm.irqLine({ irq, level: 0 })),
    ofVm('kvm_irq_level.level', 'u32', (vm, level) => vm.irqLine({ irq: 0, level })),
    ...(
      [
        ['addressLo', 'address_lo'],
        ['addressHi', 'address_hi'],
        ['data', 'data'],
        ['flags', 'flags'],
        ['devid', 'devid'],
      ] as const
    ).map(([name, member]) =>
      ofVm(`kvm_msi.${member}`, 'u32', (vm, value) => vm.signalMsi({ ...msi, [name]: value })),
    ),
    ofVm('kvm_irq_routing.flags', 'u32', (vm, flags) => vm.setGsiRouting({ routes: [], flags })),
    ...(['gsi', 'type', 'flags'] as const).map((name) =>
      ofVm(`kvm_irq_routing_entry.${name}`, 'u32', (vm, value) =>
        vm.setGsiRouting({ routes: [{ ...route, [name]: value }], flags: 0 }),
      ),
    ),
    ofVm('kvm_irq_routing_entry.address_lo', 'u32', (vm, addressLo) =>
      vm.setGsiRouting({ routes: [{ ...route, msi: { ...route.msi, addressLo } }], flags: 0 }),
    ),
    ofVm('kvm_msr_filter.flags', 'u32', (vm, flags) => vm.setMsrFilter({ flags, ranges: [] })),
    ...(['flags', 'base', 'nmsrs'] as const).map((name) =>
      ofVm(`kvm_msr_filter.ranges[1].${name}`, 'u32', (vm, value) =>
        vm.setMsrFilter({ flags: 0, ranges: [range, { ...range, [name]: value }] }),
      ),
    ),
    {
      title: 'kvm_msr_filter.ranges takes 16',
      act: ({ vm }) => messageOf(() => vm.setMsrFilter({ flags: 0, ranges: Array(17).fill(range) })),
      want: 'kvm_msr_filter.ranges: got 17 elements, want at most 16',
    },
    ...(['rax', 'r15', 'rip', 'rflags'] as const).map((name) =>
      ofVcpu(`kvm_regs.${name}`, 'u64', (vcpu, value) => vcpu.setRegs({ ...vcpu.getRegs(), [name]: value })),
    ),
    ...(['cr0', 'cr8', 'efer'] as const).map((name) =>
      ofVcpu(`kvm_sregs.${name}`, 'u64', (vcpu, value) =>
        vcpu.setSregs({ ...vcpu.getSregs(), [name]: value }),
      ),
    ),
    ofVcpu('kvm_sregs.apic_base', 'u64', (vcpu, apicBase) => vcpu.setSregs({ ...vcpu.getSregs(), apicBase })),
    ofVcpu('kvm_sregs.interrupt_bitmap[3]', 'u64', (vcpu, value) =>
      vcpu.setSregs({ ...vcpu.getSregs(), interruptBitmap: [0n, 0n, 0n, value] }),
    ),
    ...(
      [
        ['base', 'u64'],
        ['limit', 'u32'],
        ['selector', 'u16'],
        ['type', 'u8'],
        ['unusable', 'u8'],
      ] as const
    ).map(([name, type]) =>
      ofVcpu(`kvm_sregs.ss.${name}`, type, (vcpu, value) => {
        const sregs = vcpu.getSregs();
        vcpu.setSregs({ ...sregs, ss: { ...sregs.ss, [name]: value } });
      }),
    ),
    ofVcpu('kvm_sregs.idt.limit', 'u16', (vcpu, limit) => {
      const sregs = vcpu.getSregs();
      vcpu.setSregs({ ...sregs, idt: { ...sregs.idt, limit } });
    }),
    ...(['function', 'index', 'flags', 'eax', 'edx'] as const).map((name) =>
      ofVcpu(`kvm_cpuid_entry2.${name}`, 'u32', (vcpu, value) =>
        vcpu.setCpuid2([leaf, { ...leaf, function: 1, [name]: value }]),
      ),
    ),
    ofVcpu('kvm_msr_entry.index', 'u32', (vcpu, index) => vcpu.getMsrs([0x10, index])),
    ofVcpu('kvm_msr_entry.index', 'u32', (vcpu, index) => vcpu.setMsrs([{ index, data: 0n }])),
    ofVcpu('kvm_msr_entry.data', 'u64', (vcpu, data) => vcpu.setMsrs([{ index: 0x10, data }])),
    ofVcpu('kvm_interrupt.irq', 'u32', (vcpu, vector) => vcpu.interrupt(vector)),
    ofVcpu('kvm_mp_state.mp_state', 'u32', (vcpu, state) => vcpu.setMpState(state)),
    ofVcpu('kvm_translation.linear_address', 'u64', (vcpu, address) => vcpu.translate(address)),
    ofVcpu('KVM_SET_TSC_KHZ.khz', 'long', (vcpu, khz) => vcpu.setTscKhz(khz)),
    ofVcpu('kvm_vcpu_events.flags', 'u32', (vcpu, flags) =>
      vcpu.setVcpuEvents({ ...vcpu.getVcpuEvents(), flags }),
    ),
    ofVcpu('kvm_vcpu_events.exception.error_code', 'u32', (vcpu, errorCode) => {
      const events = vcpu.getVcpuEvents();
      vcpu.setVcpuEvents({ ...events, exception: { ...events.exception, errorCode } });
    }),
    ofVcpu('kvm_vcpu_events.nmi.masked', 'u8', (vcpu, masked) => {
      const events = vcpu.getVcpuEvents();
      vcpu.setVcpuEvents({ ...events, nmi: { ...events.nmi, masked } });
    }),
    ofVcpu('kvm_vcpu_events.smi.latched_init', 'u8', (vcpu, latchedInit) => {
      const events = vcpu.getVcpuEvents();
      vcpu.setVcpuEvents({ ...events, smi: { ...events.smi, latchedInit } });
    }),
    ofVcpu('kvm_vcpu_events.triple_fault.pending', 'u8', (vcpu, tripleFaultPending) =>
      vcpu.setVcpuEvents({ ...vcpu.getVcpuEvents(), tripleFaultPending }),
    ),
    ofVcpu('kvm_vcpu_events.exception_payload', 'u64', (vcpu, exceptionPayload) =>
      vcpu.setVcpuEvents({ ...vcpu.getVcpuEvents(), exceptionPayload }),
    ),
    ofVcpu('kvm_debugregs.dr6', 'u64', (vcpu, dr6) => vcpu.setDebugRegs({ ...vcpu.getDebugRegs(), dr6 })),
    ofVcpu('kvm_debugregs.db[1]', 'u64', (vcpu, value) =>
      vcpu.setDebugRegs({ ...vcpu.getDebugRegs(), db: [0n, value] }),
    ),
    ofVcpu('kvm_guest_debug.control', 'u32', (vcpu, control) =>
      vcpu.setGuestDebug({ control, debugreg: [] }),
    ),
    ofVcpu('kvm_guest_debug.debugreg[7]', 'u64', (vcpu, value) =>
      vcpu.setGuestDebug({ control: 0, debugreg: [0n, 0n, 0n, 0n, 0n, 0n, 0n, value] }),
    ),
    ofVcpu('kvm_fpu.fcw', 'u16', (vcpu, fcw) => vcpu.setFpu({ ...vcpu.getFpu(), fcw })),
    ofVcpu('kvm_fpu.last_dp', 'u64', (vcpu, lastDp) => vcpu.setFpu({ ...vcpu.getFpu(), lastDp })),
    {
      title: 'kvm_fpu.xmm takes 16 of 16 bytes',
      act(subject) {
        const vcpu = newVcpu(subject);
        const fpu = vcpu.getFpu();
        const of = (xmm: readonly unknown[]): string =>
          messageOf(() => vcpu.setFpu({ ...fpu, xmm: xmm as Uint8Array[] }));
        return [of([new Uint8Array(17)]), of(Array(17).fill(new Uint8Array(16))), of([7])];
      },
      want: [
        'kvm_fpu.xmm[0]: got 17 bytes, want at most 16',
        'kvm_fpu.xmm: got 17 elements, want at most 16',
        'kvm_fpu.xmm[0]: got the number 7, want a Uint8Array',
      ],
    },
    ofVcpu('kvm_xcrs.flags', 'u32', (vcpu, flags) => vcpu.setXcrs({ flags, xcrs: [] })),
    ofVcpu('kvm_xcrs.xcrs[0].xcr', 'u32', (vcpu, xcr) =>
      vcpu.setXcrs({ flags: 0, xcrs: [{ xcr, value: 1n }] }),
    ),
    ofVcpu('kvm_xcrs.xcrs[0].value', 'u64', (vcpu, value) =>
      vcpu.setXcrs({ flags: 0, xcrs: [{ xcr: 0, value }] }),
    ),
    {
      title: 'lists, bitmaps and areas that are not there, or too short, have a name',
      act(subject) {
        const { vm } = subject;
        const vcpu = newVcpu(subject);
        const of = (ask: (value: never) => unknown, value?: unknown): string =>
          messageOf(() => ask(value as never));
        return [
          of((entries) => vcpu.setMsrs(entries)),
          of((indices) => vcpu.getMsrs(indices)),
          of((xcrs) => vcpu.setXcrs({ flags: 0, xcrs })),
          of((image) => vcpu.setXsave(image)),
          of((image) => vcpu.setXsave(image), new Uint8Array(3)),
          of((state) => vcpu.setLapic(state), new Uint8Array(3)),
          of((sregs) => vcpu.setSregs(sregs)),
          of((fpu) => vcpu.setFpu(fpu)),
          of((message) => vm.signalMsi(message)),
          of((routes) => vm.setGsiRouting({ flags: 0, routes })),
          of((ranges) => vm.setMsrFilter({ flags: 0, ranges })),
          of((bitmap) => vm.setMsrFilter({ flags: 0, ranges: [range, { ...range, bitmap }] })),
          of((bitmap) => vm.getDirtyLog({ slot: 0, bitmap })),
          of((bitmap) => vm.getDirtyLog({ slot: 0, bitmap }), new Uint8Array(8)),
          of((bitmap) => vm.clearDirtyLog({ slot: 0, firstPage: 0n, numPages: 64, bitmap })),
        ];
      },
      want: [
        'kvm_msrs.entries: got undefined, want an array',
        'kvm_msrs.entries: got undefined, want an array',
        'kvm_xcrs.xcrs: got undefined, want an array',
        'kvm_xsave.region: got undefined, want a Uint8Array',
        'kvm_xsave.region: got 3 bytes, want at least 4096',
        'kvm_lapic_state.regs: got 3 bytes, want at least 1024',
        'kvm_sregs: got undefined, want a structure',
        'kvm_fpu: got undefined, want a structure',
        'kvm_msi: got undefined, want a structure',
        'kvm_irq_routing.entries: got undefined, want an array',
        'kvm_msr_filter.ranges: got undefined, want an array',
        'kvm_msr_filter.ranges[1].bitmap: got undefined, want a Uint8Array',
        'kvm_dirty_log.dirty_bitmap: got undefined, want an Int32Array',
        'kvm_dirty_log.dirty_bitmap: got the object Uint8Array, want an Int32Array',
        'kvm_clear_dirty_log.dirty_bitmap: got undefined, want an Int32Array',
      ],
    },
  ],
};
