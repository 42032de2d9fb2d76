/** The real /dev/kvm and a VM of it: methods as ioctls (linux/kvm.h). Each check and errno is the kernel's. */
import * as abi from '../abi/kvm.ts';
import {
  kvm_clear_dirty_log,
  kvm_create_guest_memfd,
  kvm_dirty_log,
  kvm_enable_cap,
  kvm_irq_level,
  kvm_memory_attributes,
  kvm_userspace_memory_region,
} from '../abi/kvm-structs.ts';
import { checkBitmap, checkLong, u32 } from '../abi/layout.ts';
import { PAGE_SIZE } from '../base/address.ts';
import { LinuxError, NotImplementedError } from '../base/errors.ts';
import type {
  ClearDirtyLogRequest,
  CpuidEntry,
  DirtyLogRequest,
  GsiRoute,
  Kvm,
  KvmVcpu,
  KvmVm,
  MsiMessage,
  MsrEntry,
  MsrFilter,
  UserMemoryRegion,
  UserMemoryRegion2,
} from '../kernel/interface.ts';
import { getCpuid } from './get-cpuid.ts';
import { encodeGsiRouting, encodeMsi, encodeRegion, encodeRegion2, encodeRequest } from './kvm-encoding.ts';
import { LinuxKvmVcpu } from './kvm-vcpu.ts';
import type { Libc } from './libc.ts';
import {
  countOfMsrList,
  decodeMsrList,
  decodeMsrs,
  encodeMsrFilter,
  encodeMsrList,
  encodeMsrs,
} from './msr-encoding.ts';
import type { LinuxProcess } from './process.ts';

/** struct kvm_xsave */
const LEAST_XSAVE_BYTES = 4096;

export class LinuxKvm implements Kvm {
  readonly #process: LinuxProcess;
  readonly #libc: Libc;
  /** −1 when closed, so that no call reaches a file that came after. */
  #fd: number;

  constructor(process: LinuxProcess, fd: number) {
    this.#process = process;
    this.#libc = process.libc;
    this.#fd = fd;
    process.remember(this);
  }

  getApiVersion(): number {
    return this.#libc.ioctl(this.#fd, abi.KVM_GET_API_VERSION, 0, 'KVM_GET_API_VERSION');
  }

  checkExtension(capability: number): number {
    checkLong(capability, 'KVM_CHECK_EXTENSION.cap');
    return this.#libc.ioctl(
      this.#fd,
      abi.KVM_CHECK_EXTENSION,
      capability,
      `KVM_CHECK_EXTENSION ${capability}`,
    );
  }

  getVcpuMmapSize(): number {
    return this.#libc.ioctl(this.#fd, abi.KVM_GET_VCPU_MMAP_SIZE, 0, 'KVM_GET_VCPU_MMAP_SIZE');
  }

  getSupportedCpuid(): CpuidEntry[] {
    return getCpuid(this.#libc, this.#fd, abi.KVM_GET_SUPPORTED_CPUID, 'KVM_GET_SUPPORTED_CPUID');
  }

  getMsrIndexList(): number[] {
    return this.#msrList(abi.KVM_GET_MSR_INDEX_LIST, 'KVM_GET_MSR_INDEX_LIST');
  }

  getMsrFeatureIndexList(): number[] {
    return this.#msrList(abi.KVM_GET_MSR_FEATURE_INDEX_LIST, 'KVM_GET_MSR_FEATURE_INDEX_LIST');
  }

  /** Asked with no room first: E2BIG, and the count. */
  #msrList(request: number, what: string): number[] {
    const none = encodeMsrList(0);
    try {
      this.#libc.ioctlBytes(this.#fd, request, none, what);
    } catch (error) {
      if (!(error instanceof LinuxError) || error.code !== 'E2BIG') throw error;
    }
    const bytes = encodeMsrList(countOfMsrList(none));
    this.#libc.ioctlBytes(this.#fd, request, bytes, what);
    return decodeMsrList(bytes);
  }

  getMsrs(indices: readonly number[]): MsrEntry[] {
    const bytes = encodeMsrs(indices.map((index) => ({ index, data: 0n })));
    const what = `KVM_GET_MSRS of ${indices.length}`;
    return decodeMsrs(bytes, this.#libc.ioctlBytes(this.#fd, abi.KVM_GET_MSRS, bytes, what));
  }

  getDeviceAttr(): bigint {
    throw new NotImplementedError('KVM_GET_DEVICE_ATTR of the real /dev/kvm');
  }

  createVm(type: number): KvmVm {
    checkLong(type, 'KVM_CREATE_VM.type');
    const types = this.checkExtension(abi.KVM_CAP_VM_TYPES);
    const known = type >= 0 && type < 31 && ((types | 1) & (1 << type)) !== 0;
    const what = known
      ? `KVM_CREATE_VM ${type}`
      : `KVM_CREATE_VM: this kernel has no VM type ${type} (KVM_CAP_VM_TYPES is 0x${types.toString(16)})`;
    const fd = this.#libc.ioctl(this.#fd, abi.KVM_CREATE_VM, type, what);
    return new LinuxKvmVm(this.#process, this.#process.adopt(fd), this.getVcpuMmapSize());
  }

  close(): void {
    if (this.#fd < 0) return;
    this.#process.forget(this);
    this.#process.close(this.#fd);
    this.#fd = -1;
  }
}

export class LinuxKvmVm implements KvmVm {
  readonly #process: LinuxProcess;
  readonly #libc: Libc;
  /** −1 when closed, so that no call reaches a file that came after. */
  #fd: number;
  readonly #vcpuMmapSize: number;
  /** Bytes of each slot, by its number; what a dirty bitmap must have room for. */
  readonly #slotBytes = new Map<number, bigint>();

  constructor(process: LinuxProcess, fd: number, vcpuMmapSize: number) {
    this.#process = process;
    this.#libc = process.libc;
    this.#fd = fd;
    this.#vcpuMmapSize = vcpuMmapSize;
    process.remember(this);
  }

  checkExtension(capability: number): number {
    checkLong(capability, 'KVM_CHECK_EXTENSION.cap');
    return this.#libc.ioctl(
      this.#fd,
      abi.KVM_CHECK_EXTENSION,
      capability,
      `KVM_CHECK_EXTENSION ${capability}`,
    );
  }

  memoryEncryptOp(): void {
    throw new NotImplementedError('KVM_MEMORY_ENCRYPT_OP on the real kernel');
  }

  enableCap(request: { cap: number; flags?: number; args?: readonly bigint[] }): void {
    const { cap, flags = 0, args = [] } = request;
    if (cap === abi.KVM_CAP_DIRTY_LOG_RING || cap === abi.KVM_CAP_DIRTY_LOG_RING_ACQ_REL)
      throw new NotImplementedError('dirty rings of the real KVM');
    this.#ioctl(
      abi.KVM_ENABLE_CAP,
      encodeRequest(kvm_enable_cap, { cap, flags, args, pad: new Uint8Array(0) }),
      `KVM_ENABLE_CAP ${cap}`,
    );
  }

  setUserMemoryRegion(region: UserMemoryRegion): void {
    const bytes = encodeRegion(region);
    this.#setRegion(abi.KVM_SET_USER_MEMORY_REGION, bytes, `KVM_SET_USER_MEMORY_REGION ${wordsOf(region)}`);
  }

  setUserMemoryRegion2(region: UserMemoryRegion2): void {
    const bytes = encodeRegion2(region);
    this.#setRegion(abi.KVM_SET_USER_MEMORY_REGION2, bytes, `KVM_SET_USER_MEMORY_REGION2 ${wordsOf(region)}`);
  }

  /** Slot and size are remembered as the kernel got them; both versions begin alike. */
  #setRegion(request: number, bytes: Uint8Array, what: string): void {
    this.#ioctl(request, bytes, what);
    const { slot, memory_size } = kvm_userspace_memory_region.decode(bytes);
    this.#slotBytes.set(slot, memory_size);
  }

  createGuestMemfd(request: { size: bigint; flags: bigint }): number {
    const bytes = encodeRequest(kvm_create_guest_memfd, { ...request, reserved: [] });
    return this.#process.adopt(
      this.#ioctl(abi.KVM_CREATE_GUEST_MEMFD, bytes, `KVM_CREATE_GUEST_MEMFD ${wordsOf(request)}`),
    );
  }

  setMsrFilter(filter: MsrFilter): void {
    const bytes = encodeMsrFilter(filter, (bitmap) => this.#libc.koffi.address(bitmap));
    this.#ioctl(abi.KVM_X86_SET_MSR_FILTER, bytes, `KVM_X86_SET_MSR_FILTER, ${filter.ranges.length} ranges`);
  }

  setMemoryAttributes(request: { address: bigint; size: bigint; attributes: bigint; flags: bigint }): void {
    this.#ioctl(
      abi.KVM_SET_MEMORY_ATTRIBUTES,
      encodeRequest(kvm_memory_attributes, request),
      `KVM_SET_MEMORY_ATTRIBUTES ${wordsOf(request)}`,
    );
  }

  getDirtyLog({ slot, bitmap }: DirtyLogRequest): void {
    u32.check(slot, 'kvm_dirty_log.slot');
    checkBitmap(bitmap, 'kvm_dirty_log.dirty_bitmap');
    const bytes = bytesOf(bitmap);
    const what = `KVM_GET_DIRTY_LOG of slot ${slot}`;
    requireRoom(bytes, Number((this.#slotBytes.get(slot) ?? 0n) / BigInt(PAGE_SIZE)), what);
    const dirty_bitmap = this.#libc.koffi.address(bytes);
    this.#ioctl(abi.KVM_GET_DIRTY_LOG, kvm_dirty_log.encode({ slot, dirty_bitmap }), what);
  }

  clearDirtyLog({ slot, bitmap, firstPage, numPages }: ClearDirtyLogRequest): void {
    u32.check(numPages, 'kvm_clear_dirty_log.num_pages');
    checkBitmap(bitmap, 'kvm_clear_dirty_log.dirty_bitmap');
    const bytes = bytesOf(bitmap);
    const what = `KVM_CLEAR_DIRTY_LOG of slot ${slot}, ${numPages} pages from ${firstPage}`;
    requireRoom(bytes, numPages, what);
    const dirty_bitmap = this.#libc.koffi.address(bytes);
    const request = { slot, num_pages: numPages, first_page: firstPage, dirty_bitmap };
    this.#ioctl(abi.KVM_CLEAR_DIRTY_LOG, encodeRequest(kvm_clear_dirty_log, request), what);
  }

  resetDirtyRings(): number {
    return this.#libc.ioctl(this.#fd, abi.KVM_RESET_DIRTY_RINGS, 0, 'KVM_RESET_DIRTY_RINGS');
  }

  createIrqchip(): void {
    this.#libc.ioctl(this.#fd, abi.KVM_CREATE_IRQCHIP, 0, 'KVM_CREATE_IRQCHIP');
  }

  setBootCpuId(id: number): void {
    checkLong(id, 'KVM_SET_BOOT_CPU_ID.id');
    this.#libc.ioctl(this.#fd, abi.KVM_SET_BOOT_CPU_ID, id, `KVM_SET_BOOT_CPU_ID ${id}`);
  }

  irqLine(request: { irq: number; level: number }): number {
    u32.check(request.irq, 'kvm_irq_level.irq');
    u32.check(request.level, 'kvm_irq_level.level');
    const bytes = kvm_irq_level.encode({ source: { irq: request.irq }, level: request.level });
    this.#ioctl(abi.KVM_IRQ_LINE_STATUS, bytes, `KVM_IRQ_LINE_STATUS ${wordsOf(request)}`);
    return kvm_irq_level.decode(bytes).source.status;
  }

  signalMsi(message: MsiMessage): number {
    return this.#libc.ioctlBytes(
      this.#fd,
      abi.KVM_SIGNAL_MSI,
      encodeMsi(message),
      `KVM_SIGNAL_MSI ${wordsOf(message)}`,
    );
  }

  setGsiRouting({ routes, flags }: { routes: readonly GsiRoute[]; flags: number }): void {
    const bytes = encodeGsiRouting(routes, flags);
    this.#ioctl(abi.KVM_SET_GSI_ROUTING, bytes, `KVM_SET_GSI_ROUTING of ${routes.length} routes`);
  }

  createVcpu(id: number): KvmVcpu {
    checkLong(id, 'KVM_CREATE_VCPU.id');
    const fd = this.#libc.ioctl(this.#fd, abi.KVM_CREATE_VCPU, id, `KVM_CREATE_VCPU ${id}`);
    return new LinuxKvmVcpu(this.#process, this.#process.adopt(fd), id, {
      mmapSize: this.#vcpuMmapSize,
      xsaveBytes: () => Math.max(this.checkExtension(abi.KVM_CAP_XSAVE2), LEAST_XSAVE_BYTES),
    });
  }

  close(): void {
    if (this.#fd < 0) return;
    this.#process.forget(this);
    this.#process.close(this.#fd);
    this.#fd = -1;
  }

  #ioctl(request: number, argument: Uint8Array, what: string): number {
    return this.#libc.ioctlBytes(this.#fd, request, argument, what);
  }
}

const bytesOf = (bitmap: Int32Array): Uint8Array =>
  new Uint8Array(bitmap.buffer, bitmap.byteOffset, bitmap.byteLength);

/** The kernel reads and writes whole words of 64 pages, beyond a shorter bitmap too. */
function requireRoom(bitmap: Uint8Array, pages: number, what: string): void {
  const want = Math.ceil(pages / 64) * 8;
  if (bitmap.length < want)
    throw new LinuxError('EFAULT', `${what}: got a bitmap of ${bitmap.length} bytes, want ${want}`);
}

/** A request's fields for a message. */
const wordsOf = (request: object): string =>
  Object.entries(request)
    .map(([name, value]) => `${name} 0x${value.toString(16)}`)
    .join(', ');
