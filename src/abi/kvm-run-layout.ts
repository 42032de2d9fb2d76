/**
 * The layout of `struct kvm_run` (linux/kvm.h; reference svm.md 8.3), which a vCPU and its VMM share; `kvm-run.ts` reads and writes it.
 * Left out: exits of other architectures.
 */
import { kvm_regs, kvm_sregs, kvm_vcpu_events } from './kvm-structs.ts';
import { array, bytes, struct, u8, u16, u32, u64, union } from './layout.ts';

/** The exit union, by exit. */
const exits = union('exit', {
  /** UNKNOWN */
  hw: struct('hw', { hardware_exit_reason: u64 }),
  /** FAIL_ENTRY */
  fail_entry: struct('fail_entry', { hardware_entry_failure_reason: u64, cpu: u32 }),
  ex: struct('ex', { exception: u32, error_code: u32 }),
  io: struct('io', { direction: u8, size: u8, port: u16, count: u32, data_offset: u64 }),
  debug: struct('debug', { exception: u32, pad: u32, pc: u64, dr6: u64, dr7: u64 }),
  mmio: struct('mmio', { phys_addr: u64, data: bytes(8), len: u32, is_write: u8 }),
  hypercall: struct('hypercall', { nr: u64, args: array(u64, 6), ret: u64, flags: u64 }),
  tpr_access: struct('tpr_access', { rip: u64, is_write: u32, pad: u32 }),
  /** INTERNAL_ERROR */
  internal: struct('internal', { suberror: u32, ndata: u32, data: array(u64, 16) }),
  emulation_failure: struct('emulation_failure', {
    suberror: u32,
    ndata: u32,
    flags: u64,
    insn_size: u8,
    insn_bytes: bytes(15),
  }),
  system_event: struct('system_event', { type: u32, ndata: u32, data: array(u64, 16) }),
  /** X86_RDMSR, X86_WRMSR */
  msr: struct('msr', { error: u8, pad: bytes(7), reason: u32, index: u32, data: u64 }),
  notify: struct('notify', { flags: u32 }),
  memory_fault: struct('memory_fault', { flags: u64, gpa: u64, size: u64 }),
  snp_req_certs: struct('snp_req_certs', { gpa: u64, npages: u64, ret: u64 }),
  padding: bytes(256),
});

const kvm_sync_regs = struct('kvm_sync_regs', {
  regs: kvm_regs,
  sregs: kvm_sregs,
  events: kvm_vcpu_events,
});

/** The whole structure, 2352 bytes. */
export const kvm_run = struct('kvm_run', {
  request_interrupt_window: u8,
  immediate_exit: u8,
  padding1: bytes(6),
  exit_reason: u32,
  ready_for_interrupt_injection: u8,
  if_flag: u8,
  flags: u16,
  cr8: u64,
  apic_base: u64,
  exit: exits,
  kvm_valid_regs: u64,
  kvm_dirty_regs: u64,
  s: union('s', { regs: kvm_sync_regs, padding: bytes(2048) }),
});

/** Members of the exit union, for whoever checks offsets. */
export const kvm_run_exits = exits.members;
