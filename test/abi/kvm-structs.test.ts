import { describe, expect, it } from 'vitest';
import * as module from '../../src/abi/kvm-structs.ts';

const structs = new Map(Object.entries(module));

/** Sizes and offsets as the reference has them (facts.md 1.1, svm.md 8.2). */
const TABLE: [string, number, Record<string, number>][] = [
  [
    'kvm_userspace_memory_region',
    32,
    { slot: 0, flags: 4, guest_phys_addr: 8, memory_size: 0x10, userspace_addr: 0x18 },
  ],
  [
    'kvm_userspace_memory_region2',
    160,
    {
      slot: 0,
      flags: 4,
      guest_phys_addr: 8,
      memory_size: 0x10,
      userspace_addr: 0x18,
      guest_memfd_offset: 0x20,
      guest_memfd: 0x28,
      pad1: 0x2c,
      pad2: 0x30,
    },
  ],
  ['kvm_create_guest_memfd', 64, { size: 0, flags: 8, reserved: 0x10 }],
  ['kvm_memory_attributes', 32, { address: 0, size: 8, attributes: 0x10, flags: 0x18 }],
  ['kvm_pre_fault_memory', 64, { gpa: 0, size: 8, flags: 0x10, padding: 0x18 }],
  ['kvm_enable_cap', 104, { cap: 0, flags: 4, args: 8, pad: 40 }],
  ['kvm_dirty_log', 16, { slot: 0, padding1: 4, dirty_bitmap: 8 }],
  ['kvm_clear_dirty_log', 24, { slot: 0, num_pages: 4, first_page: 8, dirty_bitmap: 16 }],
  ['kvm_enc_region', 16, { addr: 0, size: 8 }],
  ['kvm_dirty_gfn', 16, { flags: 0, slot: 4, offset: 8 }],
  [
    'kvm_regs',
    144,
    {
      rax: 0x00,
      rbx: 0x08,
      rcx: 0x10,
      rdx: 0x18,
      rsi: 0x20,
      rdi: 0x28,
      rsp: 0x30,
      rbp: 0x38,
      r8: 0x40,
      r9: 0x48,
      r10: 0x50,
      r11: 0x58,
      r12: 0x60,
      r13: 0x68,
      r14: 0x70,
      r15: 0x78,
      rip: 0x80,
      rflags: 0x88,
    },
  ],
  [
    'kvm_segment',
    24,
    {
      base: 0,
      limit: 8,
      selector: 0xc,
      type: 0xe,
      present: 0xf,
      dpl: 0x10,
      db: 0x11,
      s: 0x12,
      l: 0x13,
      g: 0x14,
      avl: 0x15,
      unusable: 0x16,
      padding: 0x17,
    },
  ],
  ['kvm_dtable', 16, { base: 0, limit: 8, padding: 10 }],
  [
    'kvm_sregs',
    312,
    {
      cs: 0x00,
      ds: 0x18,
      es: 0x30,
      fs: 0x48,
      gs: 0x60,
      ss: 0x78,
      tr: 0x90,
      ldt: 0xa8,
      gdt: 0xc0,
      idt: 0xd0,
      cr0: 0xe0,
      cr2: 0xe8,
      cr3: 0xf0,
      cr4: 0xf8,
      cr8: 0x100,
      efer: 0x108,
      apic_base: 0x110,
      interrupt_bitmap: 0x118,
    },
  ],
  ['kvm_signal_mask', 4, { len: 0 }],
  ['kvm_sregs2', 320, { apic_base: 0x110, flags: 0x118, pdptrs: 0x120 }],
  [
    'kvm_fpu',
    416,
    {
      fpr: 0,
      fcw: 0x80,
      fsw: 0x82,
      ftwx: 0x84,
      last_opcode: 0x86,
      last_ip: 0x88,
      last_dp: 0x90,
      xmm: 0x98,
      mxcsr: 0x198,
    },
  ],
  ['kvm_debugregs', 128, { db: 0, dr6: 0x20, dr7: 0x28, flags: 0x30, reserved: 0x38 }],
  ['kvm_xsave', 4096, { region: 0 }],
  ['kvm_xcr', 16, { xcr: 0, reserved: 4, value: 8 }],
  ['kvm_xcrs', 392, { nr_xcrs: 0, flags: 4, xcrs: 8, padding: 0x108 }],
  [
    'kvm_translation',
    24,
    { linear_address: 0, physical_address: 8, valid: 0x10, writeable: 0x11, usermode: 0x12 },
  ],
  ['kvm_interrupt', 4, { irq: 0 }],
  ['kvm_guest_debug', 72, { control: 0, debugreg: 8 }],
  ['kvm_msr_filter_range', 24, { flags: 0, nmsrs: 4, base: 8, bitmap: 0x10 }],
  ['kvm_msr_filter', 392, { flags: 0, ranges: 8 }],
  ['kvm_msr_list', 4, { nmsrs: 0 }],
  ['kvm_mp_state', 4, { mp_state: 0 }],
  [
    'kvm_vcpu_events',
    64,
    {
      exception: 0,
      interrupt: 8,
      nmi: 0xc,
      sipi_vector: 0x10,
      flags: 0x14,
      smi: 0x18,
      triple_fault: 0x1c,
      exception_has_payload: 0x37,
      exception_payload: 0x38,
    },
  ],
  ['kvm_msrs', 8, { nmsrs: 0 }],
  ['kvm_msr_entry', 16, { index: 0, reserved: 4, data: 8 }],
  ['kvm_cpuid2', 8, { nent: 0 }],
  [
    'kvm_cpuid_entry2',
    40,
    { function: 0, index: 4, flags: 8, eax: 0xc, ebx: 0x10, ecx: 0x14, edx: 0x18, padding: 0x1c },
  ],
  ['kvm_create_device', 12, { type: 0, fd: 4, flags: 8 }],
  ['kvm_device_attr', 24, { flags: 0, group: 4, attr: 8, addr: 0x10 }],
  ['kvm_msi', 32, { address_lo: 0, address_hi: 4, data: 8, flags: 0xc, devid: 0x10 }],
  ['kvm_irq_routing', 8, { nr: 0, flags: 4 }],
  [
    'kvm_irq_routing_entry',
    48,
    { gsi: 0, type: 4, flags: 8, address_lo: 0x10, address_hi: 0x14, data: 0x18, devid: 0x1c },
  ],
  ['kvm_irq_level', 8, { source: 0, level: 4 }],
];

describe('KVM structures', () => {
  it.each(TABLE)('%s has %i bytes and its members where the reference has them', (name, size, offsets) => {
    const layout = structs.get(name)!;
    expect(layout.size).toBe(size);
    expect(layout.offsets).toMatchObject(offsets);
  });

  it('are all in the table', () => {
    expect(TABLE.map(([name]) => name).sort()).toEqual([...structs.keys()].sort());
  });
});
