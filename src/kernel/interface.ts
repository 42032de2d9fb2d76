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
  /** `open("/dev/sev")`, O_RDWR or (`readOnly`) O_RDONLY. Returns its file descriptor. */
  openSev(options?: { readOnly?: boolean }): number;
  /** SEV_ISSUE_CMD of such a descriptor. Errors: EBADF, ENOTTY, ENODEV, EINVAL, EPERM, EIO (`error` is firmware's status then). */
  sevIssueCommand(fd: number, command: SevIssueCommand): void;
  /** `memfd_create`: a shared memory object of size 0. Returns its file descriptor. */
  memfdCreate(name: string): number;
  /** `open(path, O_RDWR | O_CREAT)` on the host's tmpfs (`readOnly`: O_RDONLY, ENOENT when absent). */
  open(path: string, options?: { readOnly?: boolean }): number;
  ftruncate(fd: number, size: bigint): void;
  fstat(fd: number): { size: bigint; blockSize: number };
  pread(fd: number, into: Uint8Array, offset: bigint): number;
  pwrite(fd: number, from: Uint8Array, offset: bigint): number;
  fallocate(fd: number, mode: number, offset: bigint, length: bigint): void;
  /** fcntl(F_OFD_SETLK) of the whole file, which does not wait. False: somebody else's lock is in the way. */
  lock(fd: number, kind: 'shared' | 'exclusive' | 'none'): boolean;
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
  /** KVM_HAS_DEVICE_ATTR and KVM_GET_DEVICE_ATTR in one: the value. Errors: ENXIO. */
  getDeviceAttr(request: { group: number; attr: bigint }): bigint;
  /** KVM_GET_MSR_INDEX_LIST: MSRs that hold a vCPU's state. */
  getMsrIndexList(): number[];
  /** KVM_GET_MSR_FEATURE_INDEX_LIST: MSRs that say what the host can do. */
  getMsrFeatureIndexList(): number[];
  /** KVM_GET_MSRS of feature MSRs: as `KvmVcpu.getMsrs`. */
  getMsrs(indices: readonly number[]): MsrEntry[];
  close(): void;
}

/** struct kvm_msr_entry */
export interface MsrEntry {
  index: number;
  data: bigint;
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
  /** A descriptor, as the structure holds it: u32, so that −1 is 0xffff_ffff. */
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
  /** KVM_X86_SET_MSR_FILTER. At most 16 ranges. */
  setMsrFilter(filter: MsrFilter): void;
  /** KVM_CREATE_IRQCHIP: PIC and IOAPIC in the kernel. */
  createIrqchip(): void;
  /** KVM_SET_BOOT_CPU_ID */
  setBootCpuId(id: number): void;
  /** KVM_IRQ_LINE_STATUS: how many took it, 0 blocked, −1 the line leads nowhere. */
  irqLine(request: { irq: number; level: number }): number;
  /** KVM_SIGNAL_MSI: how many took it, 0 blocked, −1 nobody was meant. */
  signalMsi(message: MsiMessage): number;
  /** KVM_SET_GSI_ROUTING: these routes instead of all that were. */
  setGsiRouting(request: { routes: readonly GsiRoute[]; flags: number }): void;
  /** KVM_MEMORY_ENCRYPT_OP. Undefined asks whether there is SEV at all. `error` and what the kernel writes back are in `command`. */
  memoryEncryptOp(command: SevCommand | undefined): void;
  /** Closes the VM's descriptor; the VM lives on while vCPUs or guest_memfd files hold it. */
  close(): void;
}

/** struct sev_issue_cmd with what `data` points to: `data`, and `blob`, to which an address in `data` points. Both are written to by commands that answer there. */
export interface SevIssueCommand {
  readonly cmd: number;
  readonly data?: Uint8Array;
  readonly blob?: Uint8Array;
  error?: number;
}

/** struct kvm_sev_cmd with what `data` points to. `error`: firmware's status, whatever came of the call. */
export type SevCommand =
  | SevInit2Command
  | SnpLaunchStartCommand
  | SnpLaunchUpdateCommand
  | SnpLaunchFinishCommand
  | { readonly id: 103; readonly sevFd: number; error?: number };

export interface SevInit2Command {
  readonly id: 22;
  readonly sevFd: number;
  error?: number;
  readonly data: { vmsaFeatures: bigint; flags: number; ghcbVersion: number };
}

export interface SnpLaunchStartCommand {
  readonly id: 100;
  readonly sevFd: number;
  error?: number;
  readonly data: { policy: bigint; gosvw: Uint8Array; flags: number };
}

/** Progress is written back: gfnStart, uaddr and len. */
export interface SnpLaunchUpdateCommand {
  readonly id: 101;
  readonly sevFd: number;
  error?: number;
  readonly data: { gfnStart: bigint; uaddr: bigint; len: bigint; type: number; flags: number };
}

export interface SnpLaunchFinishCommand {
  readonly id: 102;
  readonly sevFd: number;
  error?: number;
  readonly data: {
    /** ID block (96 bytes) and ID authentication page (4096), with the author's key in it or not. */
    id?: { block: Uint8Array; auth: Uint8Array; authorKeyEnabled: boolean };
    vcekDisabled: boolean;
    /** 32 bytes. */
    hostData: Uint8Array;
    flags: number;
  };
}

/** struct kvm_msi */
export interface MsiMessage {
  addressLo: number;
  addressHi: number;
  data: number;
  flags: number;
  devid: number;
}

/** struct kvm_irq_routing_entry; type 2 is an MSI. */
export interface GsiRoute {
  gsi: number;
  type: number;
  flags: number;
  msi: { addressLo: number; addressHi: number; data: number };
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
  /** KVM_INTERRUPT: an external interrupt of user space's own controller. */
  interrupt(vector: number): void;
  /** KVM_NMI */
  nmi(): void;
  getVcpuEvents(): VcpuEvents;
  setVcpuEvents(events: VcpuEvents): void;
  getDebugRegs(): DebugRegisters;
  setDebugRegs(registers: DebugRegisters): void;
  setGuestDebug(request: GuestDebugRequest): void;
  getFpu(): Fpu;
  setFpu(fpu: Fpu): void;
  /** KVM_GET_XSAVE: the XSAVE image in its standard form, 4096 bytes. */
  getXsave(): Uint8Array;
  /** KVM_GET_XSAVE2: as many bytes as KVM_CAP_XSAVE2 says. */
  getXsave2(): Uint8Array;
  setXsave(image: Uint8Array): void;
  getXcrs(): Xcrs;
  setXcrs(xcrs: Xcrs): void;
  /** KVM_GET_MSRS: the values of as many as could be read, in order, up to the first that could not. */
  getMsrs(indices: readonly number[]): MsrEntry[];
  /** KVM_SET_MSRS: how many were written; the next one could not be. */
  setMsrs(entries: readonly MsrEntry[]): number;
  /** KVM_TRANSLATE, by the vCPU's page tables as they are. */
  translate(linearAddress: bigint): Translation;
  /** KVM_GET_TSC_KHZ */
  getTscKhz(): number;
  /** KVM_SET_TSC_KHZ; 0: the host's. */
  setTscKhz(khz: number): void;
  /** KVM_PRE_FAULT_MEMORY. Returns what is left of the range, which is less as soon as a page was mapped. */
  preFaultMemory(range: PreFaultRange & { flags: bigint }): PreFaultRange;
  /** KVM_GET_LAPIC: the register page, 1024 bytes. */
  getLapic(): Uint8Array;
  setLapic(state: Uint8Array): void;
  getMpState(): number;
  setMpState(state: number): void;
  /** After RUN_PENDING: whether KVM_RUN would go on now, perhaps before `pending` is settled. */
  readonly ready: boolean;
  close(): void;
}

/** struct kvm_vcpu_events; one-bit fields are 0 or 1. */
export interface VcpuEvents {
  exception: { injected: number; nr: number; hasErrorCode: number; pending: number; errorCode: number };
  /** `shadow`: 1 after MOV SS, 2 after STI, 3 after either. */
  interrupt: { injected: number; nr: number; soft: number; shadow: number };
  nmi: { injected: number; pending: number; masked: number };
  sipiVector: number;
  /** KVM_VCPUEVENT_VALID_* */
  flags: number;
  smi: { smm: number; pending: number; smmInsideNmi: number; latchedInit: number };
  tripleFaultPending: number;
  exceptionHasPayload: number;
  exceptionPayload: bigint;
}

/** struct kvm_debugregs */
export interface DebugRegisters {
  /** DR0 to DR3. */
  db: readonly bigint[];
  dr6: bigint;
  dr7: bigint;
  flags: bigint;
}

/** struct kvm_guest_debug */
export interface GuestDebugRequest {
  /** KVM_GUESTDBG_* */
  control: number;
  /** DR0 to DR7 of the debugger; 0 to 3 and 7 count. */
  debugreg: readonly bigint[];
}

/** struct kvm_fpu */
export interface Fpu {
  /** ST(0) to ST(7), 16 bytes each. */
  fpr: readonly Uint8Array[];
  fcw: number;
  fsw: number;
  /** Abridged: a bit for each register that is not empty. */
  ftwx: number;
  lastOpcode: number;
  lastIp: bigint;
  lastDp: bigint;
  /** XMM0 to XMM15, 16 bytes each. */
  xmm: readonly Uint8Array[];
  mxcsr: number;
}

/** struct kvm_xcrs */
export interface Xcrs {
  flags: number;
  /** At most 16. */
  xcrs: readonly { xcr: number; value: bigint }[];
}

/** struct kvm_translation, as it comes back. */
export interface Translation {
  /** All ones where there is none. */
  physicalAddress: bigint;
  valid: number;
  writeable: number;
  usermode: number;
}

/** struct kvm_msr_filter */
export interface MsrFilter {
  /** KVM_MSR_FILTER_DEFAULT_DENY 1 */
  flags: number;
  ranges: readonly {
    /** KVM_MSR_FILTER_READ 1, …_WRITE 2 */
    flags: number;
    base: number;
    nmsrs: number;
    /** A bit an MSR from `base` on, the lowest first; 1 allows. */
    bitmap: Uint8Array;
  }[];
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
