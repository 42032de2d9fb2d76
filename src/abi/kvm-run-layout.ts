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
  /** IOAPIC_EOI */
  eoi: struct('eoi', { vector: u8 }),
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

const AT = kvm_run.offsets;
const EXIT = AT.exit;
const IO = kvm_run_exits.io.offsets;
const MMIO = kvm_run_exits.mmio.offsets;
const HYPERCALL = kvm_run_exits.hypercall.offsets;
const FAULT = kvm_run_exits.memory_fault.offsets;
const INTERNAL = kvm_run_exits.internal.offsets;
const FAIL = kvm_run_exits.fail_entry.offsets;
const MSR = kvm_run_exits.msr.offsets;
const DEBUG = kvm_run_exits.debug.offsets;

/** Where `KvmRun` finds bytes, 16-bit halves and 32-bit words; a u64's high word is the next one. */
export const RUN_BYTE = {
  requestInterruptWindow: AT.request_interrupt_window,
  immediateExit: AT.immediate_exit,
  readyForInterruptInjection: AT.ready_for_interrupt_injection,
  ifFlag: AT.if_flag,
  ioDirection: EXIT + IO.direction,
  ioSize: EXIT + IO.size,
  mmioData: EXIT + MMIO.data,
  mmioIsWrite: EXIT + MMIO.is_write,
  msrError: EXIT + MSR.error,
  eoiVector: EXIT + kvm_run_exits.eoi.offsets.vector,
} as const;

export const RUN_HALF = { flags: AT.flags / 2, ioPort: (EXIT + IO.port) / 2 } as const;

export const RUN_WORD = {
  exitReason: AT.exit_reason / 4,
  cr8: AT.cr8 / 4,
  apicBase: AT.apic_base / 4,
  exit: EXIT / 4,
  ioCount: (EXIT + IO.count) / 4,
  ioDataOffset: (EXIT + IO.data_offset) / 4,
  mmioPhysAddr: (EXIT + MMIO.phys_addr) / 4,
  mmioLen: (EXIT + MMIO.len) / 4,
  hypercallNr: (EXIT + HYPERCALL.nr) / 4,
  hypercallArgs: (EXIT + HYPERCALL.args) / 4,
  hypercallRet: (EXIT + HYPERCALL.ret) / 4,
  hypercallFlags: (EXIT + HYPERCALL.flags) / 4,
  faultFlags: (EXIT + FAULT.flags) / 4,
  faultGpa: (EXIT + FAULT.gpa) / 4,
  faultSize: (EXIT + FAULT.size) / 4,
  suberror: (EXIT + INTERNAL.suberror) / 4,
  ndata: (EXIT + INTERNAL.ndata) / 4,
  data: (EXIT + INTERNAL.data) / 4,
  debugException: (EXIT + DEBUG.exception) / 4,
  debugPc: (EXIT + DEBUG.pc) / 4,
  debugDr6: (EXIT + DEBUG.dr6) / 4,
  debugDr7: (EXIT + DEBUG.dr7) / 4,
  failReason: (EXIT + FAIL.hardware_entry_failure_reason) / 4,
  failCpu: (EXIT + FAIL.cpu) / 4,
  msrReason: (EXIT + MSR.reason) / 4,
  msrIndex: (EXIT + MSR.index) / 4,
  msrData: (EXIT + MSR.data) / 4,
  validRegs: AT.kvm_valid_regs / 4,
  dirtyRegs: AT.kvm_dirty_regs / 4,
} as const;
