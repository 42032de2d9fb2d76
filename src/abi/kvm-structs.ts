/**
 * Structures that KVM's ioctls take on x86-64 (linux/kvm.h, asm/kvm.h; 7.2). Member names are C's. `struct kvm_run` is in
 * `kvm-run.ts`. Left out: what no code here passes yet (irqchip, clocks).
 */
import { array, bytes, pad, s32, struct, u8, u16, u32, u64, union } from './layout.ts';

/** KVM_SET_USER_MEMORY_REGION */
export const kvm_userspace_memory_region = struct('kvm_userspace_memory_region', {
  slot: u32,
  flags: u32,
  guest_phys_addr: u64,
  memory_size: u64,
  userspace_addr: u64,
});

/** KVM_SET_USER_MEMORY_REGION2 */
export const kvm_userspace_memory_region2 = struct('kvm_userspace_memory_region2', {
  slot: u32,
  flags: u32,
  guest_phys_addr: u64,
  memory_size: u64,
  userspace_addr: u64,
  guest_memfd_offset: u64,
  guest_memfd: u32,
  pad1: u32,
  pad2: array(u64, 14),
});

/** KVM_CREATE_GUEST_MEMFD */
export const kvm_create_guest_memfd = struct('kvm_create_guest_memfd', {
  size: u64,
  flags: u64,
  reserved: array(u64, 6),
});

/** KVM_SET_MEMORY_ATTRIBUTES */
export const kvm_memory_attributes = struct('kvm_memory_attributes', {
  address: u64,
  size: u64,
  attributes: u64,
  flags: u64,
});

/** KVM_PRE_FAULT_MEMORY; written back */
export const kvm_pre_fault_memory = struct('kvm_pre_fault_memory', {
  gpa: u64,
  size: u64,
  flags: u64,
  padding: array(u64, 5),
});

/** KVM_ENABLE_CAP */
export const kvm_enable_cap = struct('kvm_enable_cap', {
  cap: u32,
  flags: u32,
  args: array(u64, 4),
  pad: bytes(64),
});

/** KVM_GET_DIRTY_LOG; `dirty_bitmap` is a user pointer. */
export const kvm_dirty_log = struct('kvm_dirty_log', {
  slot: u32,
  padding1: u32,
  dirty_bitmap: u64,
});

/** KVM_CLEAR_DIRTY_LOG */
export const kvm_clear_dirty_log = struct('kvm_clear_dirty_log', {
  slot: u32,
  num_pages: u32,
  first_page: u64,
  dirty_bitmap: u64,
});

/** KVM_MEMORY_ENCRYPT_REG_REGION and UNREG_REGION */
export const kvm_enc_region = struct('kvm_enc_region', { addr: u64, size: u64 });

/** An entry of the dirty ring. */
export const kvm_dirty_gfn = struct('kvm_dirty_gfn', { flags: u32, slot: u32, offset: u64 });

/** KVM_GET_REGS, KVM_SET_REGS */
export const kvm_regs = struct('kvm_regs', {
  rax: u64,
  rbx: u64,
  rcx: u64,
  rdx: u64,
  rsi: u64,
  rdi: u64,
  rsp: u64,
  rbp: u64,
  r8: u64,
  r9: u64,
  r10: u64,
  r11: u64,
  r12: u64,
  r13: u64,
  r14: u64,
  r15: u64,
  rip: u64,
  rflags: u64,
});

export const kvm_segment = struct('kvm_segment', {
  base: u64,
  limit: u32,
  selector: u16,
  type: u8,
  present: u8,
  dpl: u8,
  db: u8,
  s: u8,
  l: u8,
  g: u8,
  avl: u8,
  unusable: u8,
  padding: pad(1),
});

export const kvm_dtable = struct('kvm_dtable', { base: u64, limit: u16, padding: pad(6) });

const segments = {
  cs: kvm_segment,
  ds: kvm_segment,
  es: kvm_segment,
  fs: kvm_segment,
  gs: kvm_segment,
  ss: kvm_segment,
  tr: kvm_segment,
  ldt: kvm_segment,
  gdt: kvm_dtable,
  idt: kvm_dtable,
  cr0: u64,
  cr2: u64,
  cr3: u64,
  cr4: u64,
  cr8: u64,
  efer: u64,
  apic_base: u64,
} as const;

/** KVM_GET_SREGS, KVM_SET_SREGS */
export const kvm_sregs = struct('kvm_sregs', { ...segments, interrupt_bitmap: array(u64, 4) });

/** KVM_GET_SREGS2, KVM_SET_SREGS2 */
export const kvm_sregs2 = struct('kvm_sregs2', { ...segments, flags: u64, pdptrs: array(u64, 4) });

/** Header of KVM_SET_SIGNAL_MASK; the kernel's sigset, `len` bytes, follows. */
export const kvm_signal_mask = struct('kvm_signal_mask', { len: u32 });

/** KVM_GET_FPU, KVM_SET_FPU */
export const kvm_fpu = struct('kvm_fpu', {
  fpr: array(bytes(16), 8),
  fcw: u16,
  fsw: u16,
  ftwx: u8,
  pad1: pad(1),
  last_opcode: u16,
  last_ip: u64,
  last_dp: u64,
  xmm: array(bytes(16), 16),
  mxcsr: u32,
  pad2: pad(4),
});

/** KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS */
export const kvm_debugregs = struct('kvm_debugregs', {
  db: array(u64, 4),
  dr6: u64,
  dr7: u64,
  flags: u64,
  reserved: pad(72),
});

/** KVM_GET_XSAVE, KVM_SET_XSAVE; GET_XSAVE2 may give more than this. */
export const kvm_xsave = struct('kvm_xsave', { region: bytes(4096) });

/** KVM_GET_XCRS, KVM_SET_XCRS */
export const kvm_xcr = struct('kvm_xcr', { xcr: u32, reserved: pad(4), value: u64 });
export const kvm_xcrs = struct('kvm_xcrs', {
  nr_xcrs: u32,
  flags: u32,
  xcrs: array(kvm_xcr, 16),
  padding: pad(128),
});

/** KVM_TRANSLATE; written back */
export const kvm_translation = struct('kvm_translation', {
  linear_address: u64,
  physical_address: u64,
  valid: u8,
  writeable: u8,
  usermode: u8,
  pad: pad(5),
});

/** KVM_INTERRUPT */
export const kvm_interrupt = struct('kvm_interrupt', { irq: u32 });

/** KVM_SET_GUEST_DEBUG */
export const kvm_guest_debug = struct('kvm_guest_debug', {
  control: u32,
  pad: pad(4),
  debugreg: array(u64, 8),
});

/** KVM_X86_SET_MSR_FILTER; `bitmap` is a user pointer. */
export const kvm_msr_filter_range = struct('kvm_msr_filter_range', {
  flags: u32,
  nmsrs: u32,
  base: u32,
  bitmap: u64,
});
export const kvm_msr_filter = struct('kvm_msr_filter', {
  flags: u32,
  ranges: array(kvm_msr_filter_range, 16),
});

/** Header of KVM_GET_MSR_INDEX_LIST and …_FEATURE_INDEX_LIST; `nmsrs` numbers follow. */
export const kvm_msr_list = struct('kvm_msr_list', { nmsrs: u32 });

/** KVM_GET_MP_STATE, KVM_SET_MP_STATE */
export const kvm_mp_state = struct('kvm_mp_state', { mp_state: u32 });

/** KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS */
export const kvm_vcpu_events = struct('kvm_vcpu_events', {
  exception: struct('exception', { injected: u8, nr: u8, has_error_code: u8, pending: u8, error_code: u32 }),
  interrupt: struct('interrupt', { injected: u8, nr: u8, soft: u8, shadow: u8 }),
  nmi: struct('nmi', { injected: u8, pending: u8, masked: u8, pad: pad(1) }),
  sipi_vector: u32,
  flags: u32,
  smi: struct('smi', { smm: u8, pending: u8, smm_inside_nmi: u8, latched_init: u8 }),
  triple_fault: struct('triple_fault', { pending: u8 }),
  reserved: pad(26),
  exception_has_payload: u8,
  exception_payload: u64,
});

/** Header of KVM_GET_MSRS, KVM_SET_MSRS; `kvm_msr_entry[nmsrs]` follow. */
export const kvm_msrs = struct('kvm_msrs', { nmsrs: u32, pad: u32 });
export const kvm_msr_entry = struct('kvm_msr_entry', { index: u32, reserved: pad(4), data: u64 });

/** Header of KVM_SET_CPUID2, KVM_GET_CPUID2, KVM_GET_SUPPORTED_CPUID; `kvm_cpuid_entry2[nent]` follow. */
export const kvm_cpuid2 = struct('kvm_cpuid2', { nent: u32, padding: u32 });
export const kvm_cpuid_entry2 = struct('kvm_cpuid_entry2', {
  function: u32,
  index: u32,
  flags: u32,
  eax: u32,
  ebx: u32,
  ecx: u32,
  edx: u32,
  padding: pad(12),
});

/** KVM_CREATE_DEVICE; `fd` is written back. */
export const kvm_create_device = struct('kvm_create_device', { type: u32, fd: u32, flags: u32 });
/** KVM_SET_DEVICE_ATTR, GET and HAS */
export const kvm_device_attr = struct('kvm_device_attr', { flags: u32, group: u32, attr: u64, addr: u64 });
/** KVM_IRQ_LINE; KVM_IRQ_LINE_STATUS writes the status where `irq` was. */
export const kvm_irq_level = struct('kvm_irq_level', {
  source: union('source', { irq: u32, status: s32 }),
  level: u32,
});

/** KVM_SIGNAL_MSI */
export const kvm_msi = struct('kvm_msi', {
  address_lo: u32,
  address_hi: u32,
  data: u32,
  flags: u32,
  devid: u32,
  padding: pad(12),
});

/** KVM_SET_GSI_ROUTING: its head, and an entry with an MSI. */
export const kvm_irq_routing = struct('kvm_irq_routing', { nr: u32, flags: u32 });
export const kvm_irq_routing_entry = struct('kvm_irq_routing_entry', {
  gsi: u32,
  type: u32,
  flags: u32,
  padding1: pad(4),
  address_lo: u32,
  address_hi: u32,
  data: u32,
  devid: u32,
  padding2: pad(16),
});
