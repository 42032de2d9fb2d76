/**
 * `struct kvm_run` and the PIO data page: what a vCPU and its VMM share (linux/kvm.h; reference svm.md 8.3). The layout is declared
 * once; `KvmRun` reads and writes it over the shared bytes without allocating: getters that yield `bigint` have a `…Number`
 * sibling (exact below 2^53) for hot paths. Left out: the coalesced MMIO ring and the dirty ring.
 */

import { kvm_run_exits as exits, kvm_run } from './kvm-run-layout.ts';

const AT = kvm_run.offsets;
const EXIT = AT.exit;
const IO = exits.io.offsets;
const MMIO = exits.mmio.offsets;
const HYPERCALL = exits.hypercall.offsets;
const FAULT = exits.memory_fault.offsets;
const INTERNAL = exits.internal.offsets;
const FAIL = exits.fail_entry.offsets;
const MSR = exits.msr.offsets;

const BYTE = {
  requestInterruptWindow: AT.request_interrupt_window,
  immediateExit: AT.immediate_exit,
  readyForInterruptInjection: AT.ready_for_interrupt_injection,
  ifFlag: AT.if_flag,
  ioDirection: EXIT + IO.direction,
  ioSize: EXIT + IO.size,
  mmioData: EXIT + MMIO.data,
  mmioIsWrite: EXIT + MMIO.is_write,
  msrError: EXIT + MSR.error,
} as const;

/** Indices of 32-bit words; a u64's high word is the next one. */
const WORD = {
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
  failReason: (EXIT + FAIL.hardware_entry_failure_reason) / 4,
  failCpu: (EXIT + FAIL.cpu) / 4,
  msrReason: (EXIT + MSR.reason) / 4,
  msrIndex: (EXIT + MSR.index) / 4,
  msrData: (EXIT + MSR.data) / 4,
  validRegs: AT.kvm_valid_regs / 4,
  dirtyRegs: AT.kvm_dirty_regs / 4,
} as const;

const SIZE = 0x3000;
const PIO_PAGE = 0x1000;
const PAGE = 0x1000;

/** Accessors over the mmap of a vCPU: page 0 `struct kvm_run`, page 1 PIO data, page 2 the coalesced MMIO ring. */
export class KvmRun {
  /** The whole mapping, 0x3000 bytes. */
  readonly bytes: Uint8Array;
  /** The PIO data page. */
  readonly pio: Uint8Array;
  /** The 8 data bytes of an MMIO exit. */
  readonly mmioData: Uint8Array;
  readonly #words: Int32Array;
  readonly #halves: Uint16Array;
  readonly #pio: DataView;

  /** `bytes` is aligned to 8 (a mapping starts a page) and may lie in shared memory. */
  constructor(bytes: Uint8Array = new Uint8Array(SIZE)) {
    if (bytes.length < SIZE) throw new RangeError(`kvm_run: got ${bytes.length} bytes, want ${SIZE}`);
    this.bytes = bytes;
    this.pio = bytes.subarray(PIO_PAGE, PIO_PAGE + PAGE);
    this.mmioData = bytes.subarray(BYTE.mmioData, BYTE.mmioData + 8);
    this.#words = new Int32Array(bytes.buffer, bytes.byteOffset, PAGE / 4);
    this.#halves = new Uint16Array(bytes.buffer, bytes.byteOffset, PAGE / 2);
    this.#pio = new DataView(bytes.buffer, bytes.byteOffset + PIO_PAGE, PAGE);
  }

  #u64(word: number): bigint {
    return (BigInt(this.#words[word + 1]! >>> 0) << 32n) | BigInt(this.#words[word]! >>> 0);
  }
  #setU64(word: number, value: bigint): void {
    this.#words[word] = Number(BigInt.asIntN(32, value));
    this.#words[word + 1] = Number(BigInt.asIntN(32, value >> 32n));
  }
  #number(word: number): number {
    return (this.#words[word + 1]! >>> 0) * 0x1_0000_0000 + (this.#words[word]! >>> 0);
  }
  #setNumber(word: number, value: number): void {
    this.#words[word] = value | 0;
    this.#words[word + 1] = Math.floor(value / 0x1_0000_0000) | 0;
  }

  get requestInterruptWindow(): number {
    return this.bytes[BYTE.requestInterruptWindow]!;
  }
  set requestInterruptWindow(value: number) {
    this.bytes[BYTE.requestInterruptWindow] = value;
  }
  get immediateExit(): number {
    return this.bytes[BYTE.immediateExit]!;
  }
  set immediateExit(value: number) {
    this.bytes[BYTE.immediateExit] = value;
  }
  get exitReason(): number {
    return this.#words[WORD.exitReason]!;
  }
  set exitReason(value: number) {
    this.#words[WORD.exitReason] = value;
  }
  get readyForInterruptInjection(): number {
    return this.bytes[BYTE.readyForInterruptInjection]!;
  }
  set readyForInterruptInjection(value: number) {
    this.bytes[BYTE.readyForInterruptInjection] = value;
  }
  get ifFlag(): number {
    return this.bytes[BYTE.ifFlag]!;
  }
  set ifFlag(value: number) {
    this.bytes[BYTE.ifFlag] = value;
  }
  get flags(): number {
    return this.#halves[AT.flags / 2]!;
  }
  set flags(value: number) {
    this.#halves[AT.flags / 2] = value;
  }
  get cr8(): bigint {
    return this.#u64(WORD.cr8);
  }
  set cr8(value: bigint) {
    this.#setU64(WORD.cr8, value);
  }
  get cr8Number(): number {
    return this.#number(WORD.cr8);
  }
  set cr8Number(value: number) {
    this.#setNumber(WORD.cr8, value);
  }
  get apicBase(): bigint {
    return this.#u64(WORD.apicBase);
  }
  set apicBase(value: bigint) {
    this.#setU64(WORD.apicBase, value);
  }

  /** UNKNOWN: the hardware's exit code. */
  get hardwareExitReason(): bigint {
    return this.#u64(WORD.exit);
  }
  set hardwareExitReason(value: bigint) {
    this.#setU64(WORD.exit, value);
  }

  /** IO: 0 in, 1 out. */
  get ioDirection(): number {
    return this.bytes[BYTE.ioDirection]!;
  }
  set ioDirection(value: number) {
    this.bytes[BYTE.ioDirection] = value;
  }
  /** IO: bytes of one access, 1, 2 or 4. */
  get ioSize(): number {
    return this.bytes[BYTE.ioSize]!;
  }
  set ioSize(value: number) {
    this.bytes[BYTE.ioSize] = value;
  }
  get ioPort(): number {
    return this.#halves[(EXIT + IO.port) / 2]!;
  }
  set ioPort(value: number) {
    this.#halves[(EXIT + IO.port) / 2] = value;
  }
  /** IO: number of accesses (a string instruction may have many). */
  get ioCount(): number {
    return this.#words[WORD.ioCount]! >>> 0;
  }
  set ioCount(value: number) {
    this.#words[WORD.ioCount] = value;
  }
  /** IO: where the data lie, from the mapping's start. */
  get ioDataOffset(): number {
    return this.#number(WORD.ioDataOffset);
  }
  set ioDataOffset(value: number) {
    this.#setNumber(WORD.ioDataOffset, value);
  }
  /** IO: the `index`th value of `ioSize` bytes, unsigned. Data must lie on the PIO page. */
  ioValue(index = 0): number {
    const at = this.ioDataOffset - PIO_PAGE + index * this.ioSize;
    switch (this.ioSize) {
      case 1:
        return this.#pio.getUint8(at);
      case 2:
        return this.#pio.getUint16(at, true);
      default:
        return this.#pio.getUint32(at, true);
    }
  }
  setIoValue(value: number, index = 0): void {
    const at = this.ioDataOffset - PIO_PAGE + index * this.ioSize;
    switch (this.ioSize) {
      case 1:
        this.#pio.setUint8(at, value);
        break;
      case 2:
        this.#pio.setUint16(at, value, true);
        break;
      default:
        this.#pio.setUint32(at, value, true);
    }
  }

  get mmioPhysAddr(): bigint {
    return this.#u64(WORD.mmioPhysAddr);
  }
  set mmioPhysAddr(value: bigint) {
    this.#setU64(WORD.mmioPhysAddr, value);
  }
  get mmioPhysAddrNumber(): number {
    return this.#number(WORD.mmioPhysAddr);
  }
  set mmioPhysAddrNumber(value: number) {
    this.#setNumber(WORD.mmioPhysAddr, value);
  }
  get mmioLen(): number {
    return this.#words[WORD.mmioLen]!;
  }
  set mmioLen(value: number) {
    this.#words[WORD.mmioLen] = value;
  }
  get mmioIsWrite(): number {
    return this.bytes[BYTE.mmioIsWrite]!;
  }
  set mmioIsWrite(value: number) {
    this.bytes[BYTE.mmioIsWrite] = value;
  }

  get hypercallNr(): bigint {
    return this.#u64(WORD.hypercallNr);
  }
  set hypercallNr(value: bigint) {
    this.#setU64(WORD.hypercallNr, value);
  }
  get hypercallNrNumber(): number {
    return this.#number(WORD.hypercallNr);
  }
  set hypercallNrNumber(value: number) {
    this.#setNumber(WORD.hypercallNr, value);
  }
  /** `index` 0 to 5. */
  hypercallArg(index: number): bigint {
    return this.#u64(WORD.hypercallArgs + 2 * index);
  }
  setHypercallArg(index: number, value: bigint): void {
    this.#setU64(WORD.hypercallArgs + 2 * index, value);
  }
  hypercallArgNumber(index: number): number {
    return this.#number(WORD.hypercallArgs + 2 * index);
  }
  setHypercallArgNumber(index: number, value: number): void {
    this.#setNumber(WORD.hypercallArgs + 2 * index, value);
  }
  get hypercallRet(): bigint {
    return this.#u64(WORD.hypercallRet);
  }
  set hypercallRet(value: bigint) {
    this.#setU64(WORD.hypercallRet, value);
  }
  /** Bit 0: the guest was in 64-bit mode. */
  get hypercallFlags(): bigint {
    return this.#u64(WORD.hypercallFlags);
  }
  set hypercallFlags(value: bigint) {
    this.#setU64(WORD.hypercallFlags, value);
  }

  /** Bit 3: the access was private. */
  get memoryFaultFlags(): bigint {
    return this.#u64(WORD.faultFlags);
  }
  set memoryFaultFlags(value: bigint) {
    this.#setU64(WORD.faultFlags, value);
  }
  get memoryFaultFlagsNumber(): number {
    return this.#number(WORD.faultFlags);
  }
  set memoryFaultFlagsNumber(value: number) {
    this.#setNumber(WORD.faultFlags, value);
  }
  get memoryFaultGpa(): bigint {
    return this.#u64(WORD.faultGpa);
  }
  set memoryFaultGpa(value: bigint) {
    this.#setU64(WORD.faultGpa, value);
  }
  get memoryFaultGpaNumber(): number {
    return this.#number(WORD.faultGpa);
  }
  set memoryFaultGpaNumber(value: number) {
    this.#setNumber(WORD.faultGpa, value);
  }
  get memoryFaultSize(): bigint {
    return this.#u64(WORD.faultSize);
  }
  set memoryFaultSize(value: bigint) {
    this.#setU64(WORD.faultSize, value);
  }
  get memoryFaultSizeNumber(): number {
    return this.#number(WORD.faultSize);
  }
  set memoryFaultSizeNumber(value: number) {
    this.#setNumber(WORD.faultSize, value);
  }

  /** INTERNAL_ERROR (SYSTEM_EVENT has type, ndata and data in the same places). */
  get internalErrorSuberror(): number {
    return this.#words[WORD.suberror]!;
  }
  set internalErrorSuberror(value: number) {
    this.#words[WORD.suberror] = value;
  }
  get internalErrorNdata(): number {
    return this.#words[WORD.ndata]!;
  }
  set internalErrorNdata(value: number) {
    this.#words[WORD.ndata] = value;
  }
  /** `index` 0 to 15. */
  internalErrorData(index: number): bigint {
    return this.#u64(WORD.data + 2 * index);
  }
  setInternalErrorData(index: number, value: bigint): void {
    this.#setU64(WORD.data + 2 * index, value);
  }

  get failEntryReason(): bigint {
    return this.#u64(WORD.failReason);
  }
  set failEntryReason(value: bigint) {
    this.#setU64(WORD.failReason, value);
  }
  get failEntryCpu(): number {
    return this.#words[WORD.failCpu]! >>> 0;
  }
  set failEntryCpu(value: number) {
    this.#words[WORD.failCpu] = value;
  }

  /** X86_RDMSR, X86_WRMSR: set by the VMM to anything but 0, the guest gets #GP. */
  get msrError(): number {
    return this.bytes[BYTE.msrError]!;
  }
  set msrError(value: number) {
    this.bytes[BYTE.msrError] = value;
  }
  get msrReason(): number {
    return this.#words[WORD.msrReason]!;
  }
  set msrReason(value: number) {
    this.#words[WORD.msrReason] = value;
  }
  get msrIndex(): number {
    return this.#words[WORD.msrIndex]! >>> 0;
  }
  set msrIndex(value: number) {
    this.#words[WORD.msrIndex] = value;
  }
  get msrData(): bigint {
    return this.#u64(WORD.msrData);
  }
  set msrData(value: bigint) {
    this.#setU64(WORD.msrData, value);
  }

  get validRegs(): bigint {
    return this.#u64(WORD.validRegs);
  }
  set validRegs(value: bigint) {
    this.#setU64(WORD.validRegs, value);
  }
  get dirtyRegs(): bigint {
    return this.#u64(WORD.dirtyRegs);
  }
  set dirtyRegs(value: bigint) {
    this.#setU64(WORD.dirtyRegs, value);
  }
}
