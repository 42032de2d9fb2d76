/**
 * `struct kvm_run` and the PIO data page: what a vCPU and its VMM share (linux/kvm.h; reference svm.md 8.3). The layout is declared
 * once; `KvmRun` reads and writes it over the shared bytes without allocating: getters that yield `bigint` have a `…Number`
 * sibling (exact below 2^53) for hot paths. Left out: the coalesced MMIO ring and the dirty ring.
 */

import { KVM_EXIT_IO } from './kvm.ts';
import { RUN_BYTE as BYTE, RUN_HALF as HALF, RUN_WORD as WORD } from './kvm-run-layout.ts';

const SIZE = 0x3000;
const PIO_PAGE = 0x1000;
const PAGE = 0x1000;

/** Accessors over the mmap of a vCPU: page 0 `struct kvm_run`, page 1 PIO data, page 2 the coalesced MMIO ring. */
export class KvmRun {
  /** The whole mapping, 0x3000 bytes. */
  bytes!: Uint8Array;
  /** The PIO data page. */
  pio!: Uint8Array;
  /** The 8 data bytes of an MMIO exit. */
  mmioData!: Uint8Array;
  #words!: Int32Array;
  #longs!: BigUint64Array;
  #halves!: Uint16Array;
  #pio!: DataView;

  /** `bytes` is aligned to 8 (a mapping starts a page) and may lie in shared memory. */
  constructor(bytes: Uint8Array = new Uint8Array(SIZE)) {
    if (bytes.length < SIZE) throw new RangeError(`kvm_run: got ${bytes.length} bytes, want ${SIZE}`);
    this.#map(bytes);
  }

  /** The mapping is gone: who still looks at the last exit sees it, and what is written from now on is nobody's. */
  unmap(): void {
    this.#map(this.bytes.slice());
  }

  #map(bytes: Uint8Array): void {
    this.bytes = bytes;
    this.pio = bytes.subarray(PIO_PAGE, PIO_PAGE + PAGE);
    this.mmioData = bytes.subarray(BYTE.mmioData, BYTE.mmioData + 8);
    this.#words = new Int32Array(bytes.buffer, bytes.byteOffset, PAGE / 4);
    this.#longs = new BigUint64Array(bytes.buffer, bytes.byteOffset, PAGE / 8);
    this.#halves = new Uint16Array(bytes.buffer, bytes.byteOffset, PAGE / 2);
    this.#pio = new DataView(bytes.buffer, bytes.byteOffset + PIO_PAGE, PAGE);
  }

  #u64(word: number): bigint {
    return this.#longs[word >>> 1]!;
  }
  #setU64(word: number, value: bigint): void {
    this.#longs[word >>> 1] = value;
  }
  #number(word: number): number {
    const low = this.#words[word]! >>> 0;
    const high = this.#words[word + 1]! >>> 0;
    return high === 0 ? low : high * 0x1_0000_0000 + low;
  }
  #setNumber(word: number, value: number): void {
    this.#words[word] = value | 0;
    this.#words[word + 1] = value <= 0xffff_ffff ? 0 : Math.floor(value / 0x1_0000_0000) | 0;
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
    return this.#halves[HALF.flags]!;
  }
  set flags(value: number) {
    this.#halves[HALF.flags] = value;
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

  /** What post_kvm_run_save writes on each way back to user space; `flags` becomes 0. */
  saveRunState(ifFlag: 0 | 1, readyForInterruptInjection: 0 | 1, cr8: number, apicBase: bigint): void {
    const { bytes } = this;
    bytes[BYTE.ifFlag] = ifFlag;
    bytes[BYTE.readyForInterruptInjection] = readyForInterruptInjection;
    this.#halves[HALF.flags] = 0;
    this.#words[WORD.cr8] = cr8;
    this.#words[WORD.cr8 + 1] = 0;
    this.#longs[WORD.apicBase >>> 1] = apicBase;
  }

  /** UNKNOWN: the hardware's exit code. */
  get hardwareExitReason(): bigint {
    return this.#u64(WORD.exit);
  }
  set hardwareExitReason(value: bigint) {
    this.#setU64(WORD.exit, value);
  }

  /** The exit is IO, `count` accesses of `size` bytes; their data lie on the PIO page. `direction`: KVM_EXIT_IO_IN or OUT. */
  exitForIo(direction: number, size: number, port: number, count: number): void {
    const { bytes } = this;
    const words = this.#words;
    words[WORD.exitReason] = KVM_EXIT_IO;
    bytes[BYTE.ioDirection] = direction;
    bytes[BYTE.ioSize] = size;
    this.#halves[HALF.ioPort] = port;
    words[WORD.ioCount] = count;
    words[WORD.ioDataOffset] = PIO_PAGE;
    words[WORD.ioDataOffset + 1] = 0;
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
    return this.#halves[HALF.ioPort]!;
  }
  set ioPort(value: number) {
    this.#halves[HALF.ioPort] = value;
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
  /** IOAPIC_EOI: the vector that ended. */
  get eoiVector(): number {
    return this.bytes[BYTE.eoiVector]!;
  }
  set eoiVector(value: number) {
    this.bytes[BYTE.eoiVector] = value;
  }
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

  /** DEBUG: 1 #DB, 3 #BP. */
  get debugException(): number {
    return this.#words[WORD.debugException]!;
  }
  set debugException(value: number) {
    this.#words[WORD.debugException] = value;
  }
  /** DEBUG: where, as a linear address. */
  get debugPc(): bigint {
    return this.#u64(WORD.debugPc);
  }
  set debugPc(value: bigint) {
    this.#setU64(WORD.debugPc, value);
  }
  get debugDr6(): bigint {
    return this.#u64(WORD.debugDr6);
  }
  set debugDr6(value: bigint) {
    this.#setU64(WORD.debugDr6, value);
  }
  get debugDr7(): bigint {
    return this.#u64(WORD.debugDr7);
  }
  set debugDr7(value: bigint) {
    this.#setU64(WORD.debugDr7, value);
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
