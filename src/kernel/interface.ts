/**
 * What a VMM sees of a Linux kernel, ours or the real one: types alone, so that the same VMM drives both.
 *
 * ioctls are methods. A field of type u64 is a `bigint` (it may hold values that the kernel must refuse), smaller ones are
 * numbers. A call that fails throws a `LinuxError`; `KvmVcpu.run` alone returns instead, because it is on the hot path.
 */
import type { KvmRun } from '../abi/kvm-run.ts';
import type { Hva } from '../base/address.ts';

/** A process on the host: its files and its address space. The VMM is one. */
export interface Process {
  readonly memory: ProcessMemory;
  /** `open("/dev/kvm")`. */
  openKvm(): Kvm;
  /** `memfd_create`: a shared memory object of size 0. Returns its file descriptor. */
  memfdCreate(name: string): number;
  /** `open(path, O_RDWR | O_CREAT)` on the host's tmpfs (`readOnly`: O_RDONLY, ENOENT when absent). */
  open(path: string, options?: { readOnly?: boolean }): number;
  ftruncate(fd: number, size: bigint): void;
  fstat(fd: number): { size: bigint; blockSize: number };
  pread(fd: number, into: Uint8Array, offset: bigint): number;
  pwrite(fd: number, from: Uint8Array, offset: bigint): number;
  fallocate(fd: number, mode: number, offset: bigint, length: bigint): void;
  close(fd: number): void;
}

export const PROT_NONE = 0;
export const PROT_READ = 1;
export const PROT_WRITE = 2;
export const MAP_SHARED = 1;
export const MAP_PRIVATE = 2;
export const MAP_FIXED = 0x10;
export const MAP_ANONYMOUS = 0x20;
export const MAP_NORESERVE = 0x4000;
export const MADV_DONTNEED = 4;
export const MADV_REMOVE = 9;
export const FALLOC_FL_KEEP_SIZE = 1;
export const FALLOC_FL_PUNCH_HOLE = 2;

/** A process's address space (mm). Lazily backed: a page comes when it is first touched. */
export interface ProcessMemory {
  /** Returns the mapping's address. `address` counts with MAP_FIXED only. */
  mmap(request: {
    length: number;
    protection: number;
    flags: number;
    fd?: number;
    offset?: bigint;
    address?: Hva;
  }): Hva;
  munmap(address: Hva, length: number): void;
  madvise(address: Hva, length: number, advice: number): void;
  /** The process's own loads. Throws LinuxError with `signal` SIGSEGV or SIGBUS where the process would get one. */
  read(address: Hva, into: Uint8Array): void;
  /** The process's own stores, likewise. */
  write(address: Hva, from: Uint8Array): void;
}

/** /dev/kvm */
export interface Kvm {
  getApiVersion(): number;
  /** 0: not there. */
  checkExtension(capability: number): number;
  getVcpuMmapSize(): number;
  getSupportedCpuid(): CpuidEntry[];
  createVm(type: number): KvmVm;
  close(): void;
}

export interface UserMemoryRegion {
  slot: number;
  flags: number;
  guestPhysAddr: bigint;
  memorySize: bigint;
  userspaceAddr: bigint;
}

export interface UserMemoryRegion2 extends UserMemoryRegion {
  guestMemfdOffset: bigint;
  guestMemfd: number;
}

/** `slot`: the address space in the high half. */
export interface DirtyLogRequest {
  slot: number;
  /** A bit a page, 32 pages a word, the low bit for the lowest page; whole 64 pages. */
  bitmap: Int32Array;
}

export interface ClearDirtyLogRequest extends DirtyLogRequest {
  /** The page of the slot that the first bit stands for. */
  firstPage: bigint;
  numPages: number;
}

export interface KvmVm {
  checkExtension(capability: number): number;
  enableCap(request: { cap: number; flags?: number; args?: readonly bigint[] }): void;
  setUserMemoryRegion(region: UserMemoryRegion): void;
  setUserMemoryRegion2(region: UserMemoryRegion2): void;
  /** Returns the new file's descriptor in the calling process. */
  createGuestMemfd(request: { size: bigint; flags: bigint }): number;
  setMemoryAttributes(request: { address: bigint; size: bigint; attributes: bigint; flags: bigint }): void;
  createVcpu(id: number): KvmVcpu;
  /** KVM_GET_DIRTY_LOG */
  getDirtyLog(request: DirtyLogRequest): void;
  /** KVM_CLEAR_DIRTY_LOG */
  clearDirtyLog(request: ClearDirtyLogRequest): void;
  /** KVM_RESET_DIRTY_RINGS: how many entries were taken back. */
  resetDirtyRings(): number;
  /** Closes the VM's descriptor; the VM lives on while vCPUs or guest_memfd files hold it. */
  close(): void;
}

/** `KvmVcpu.run` returns this when the vCPU waits for something; `pending` says when to call again. */
export const RUN_PENDING = 1;

export interface KvmVcpu {
  readonly id: number;
  /** The mmap of the vCPU: `struct kvm_run` and the PIO data page. */
  readonly kvmRun: KvmRun;
  /**
   * KVM_RUN. 0: `kvmRun.exitReason` says why the guest was left. Negative: −errno (with MEMORY_FAULT: −EFAULT or −EHWPOISON
   * and a valid `kvmRun`). `RUN_PENDING`: the vCPU waits, call again when `pending` is settled. Allocates nothing.
   */
  run(): number;
  /** The dirty ring, where the VM has them: 4 words an entry, as struct kvm_dirty_gfn (flags, slot, offset low and high). */
  readonly dirtyRing: Int32Array | undefined;
  /** Set after `run` returned RUN_PENDING. Never rejects. */
  readonly pending: Promise<void> | undefined;
  /** Instructions that the vCPU retired so far, for who can tell (the real kernel cannot: NaN). A rep string counts one. */
  readonly instructions: number;
  getRegs(): Regs;
  setRegs(regs: Regs): void;
  getSregs(): Sregs;
  setSregs(sregs: Sregs): void;
  getCpuid2(): CpuidEntry[];
  setCpuid2(entries: readonly CpuidEntry[]): void;
  /** KVM_PRE_FAULT_MEMORY. Returns what is left of the range, which is less as soon as a page was mapped. */
  preFaultMemory(range: PreFaultRange & { flags: bigint }): PreFaultRange;
  close(): void;
}

/** Bytes of guest physical addresses, whole pages. */
export interface PreFaultRange {
  gpa: bigint;
  size: bigint;
}

export interface Regs {
  rax: bigint;
  rbx: bigint;
  rcx: bigint;
  rdx: bigint;
  rsi: bigint;
  rdi: bigint;
  rsp: bigint;
  rbp: bigint;
  r8: bigint;
  r9: bigint;
  r10: bigint;
  r11: bigint;
  r12: bigint;
  r13: bigint;
  r14: bigint;
  r15: bigint;
  rip: bigint;
  rflags: bigint;
}

/** struct kvm_segment; one-bit fields are 0 or 1. */
export interface Segment {
  base: bigint;
  limit: number;
  selector: number;
  type: number;
  present: number;
  dpl: number;
  db: number;
  s: number;
  l: number;
  g: number;
  avl: number;
  unusable: number;
}

export interface DescriptorTable {
  base: bigint;
  limit: number;
}

export interface Sregs {
  cs: Segment;
  ds: Segment;
  es: Segment;
  fs: Segment;
  gs: Segment;
  ss: Segment;
  tr: Segment;
  ldt: Segment;
  gdt: DescriptorTable;
  idt: DescriptorTable;
  cr0: bigint;
  cr2: bigint;
  cr3: bigint;
  cr4: bigint;
  cr8: bigint;
  efer: bigint;
  apicBase: bigint;
  interruptBitmap: readonly bigint[];
}

/** struct kvm_cpuid_entry2 */
export interface CpuidEntry {
  function: number;
  index: number;
  /** Bit 0: `index` is significant. */
  flags: number;
  eax: number;
  ebx: number;
  ecx: number;
  edx: number;
}
