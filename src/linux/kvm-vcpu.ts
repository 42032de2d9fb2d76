/**
 * A vCPU of the real KVM. KVM_RUN is a synchronous call on this thread; the process's timeslice ends it when the guest does not leave by
 * itself. One thread runs all vCPUs of a process.
 *
 * `struct kvm_run` is the kernel's own mapping. Whoever still looks at it after `close` must not crash, so `close` lays zeros over it
 * and the addresses are given back when nobody can look any more.
 */
import * as abi from '../abi/kvm.ts';
import { KvmRun } from '../abi/kvm-run.ts';
import {
  kvm_mp_state,
  kvm_pre_fault_memory,
  kvm_regs,
  kvm_signal_mask,
  kvm_sregs,
} from '../abi/kvm-structs.ts';
import { checkBytes } from '../abi/layout.ts';
import { ERRNO } from '../base/errors.ts';
import {
  type CpuidEntry,
  type KvmVcpu,
  MAP_ANONYMOUS,
  MAP_FIXED,
  MAP_PRIVATE,
  MAP_SHARED,
  PROT_READ,
  PROT_WRITE,
  type PreFaultRange,
  type Regs,
  type Sregs,
} from '../kernel/interface.ts';
import { getCpuid } from './get-cpuid.ts';
import { decodeSregs, encodeCpuid, encodeRequest, encodeSregs } from './kvm-encoding.ts';
import { LinuxVcpuState } from './kvm-vcpu-state.ts';
import type { Libc } from './libc.ts';
import type { LinuxProcess } from './process.ts';
import type { Timeslice } from './timeslice.ts';

const READ_WRITE = PROT_READ | PROT_WRITE;
/** struct kvm_lapic_state */
const LAPIC_STATE_BYTES = 1024;

interface RunWindow {
  readonly libc: Libc;
  readonly address: number;
  readonly bytes: number;
}
/** Unmaps the window of a closed vCPU when its bytes have become unreachable. */
const unreachable = new FinalizationRegistry<RunWindow>(({ libc, address, bytes }) => {
  libc.tryCall('munmap', ['uint64_t', 'uint64_t'], address, bytes);
});

export class LinuxKvmVcpu extends LinuxVcpuState implements KvmVcpu {
  readonly id: number;
  readonly kvmRun: KvmRun;
  readonly instructions = Number.NaN;
  readonly pending = undefined;
  readonly ready = true;
  /** `LinuxKvmVm.enableCap` has none. */
  readonly dirtyRing = undefined;
  readonly #process: LinuxProcess;
  readonly #libc: Libc;
  /** −1 when closed, so that no call reaches a file that came after. */
  #fd: number;
  readonly #window: RunWindow;
  readonly #xsaveBytes: () => number;
  #timeslice: Timeslice | undefined;

  /** `vm`: what its KVM says of each vCPU. */
  constructor(
    process: LinuxProcess,
    fd: number,
    id: number,
    vm: { readonly mmapSize: number; readonly xsaveBytes: () => number },
  ) {
    super();
    const { mmapSize } = vm;
    this.#xsaveBytes = vm.xsaveBytes;
    this.#process = process;
    this.#libc = process.libc;
    this.#fd = fd;
    this.id = id;
    const address = this.#libc.mmap(0, mmapSize, READ_WRITE, MAP_SHARED, fd, 0n, `mmap of vCPU ${id}`);
    const buffer = this.#libc.koffi.view(address, mmapSize);
    this.#window = { libc: this.#libc, address, bytes: mmapSize };
    this.kvmRun = new KvmRun(new Uint8Array(buffer));
    unreachable.register(buffer, this.#window);
    process.remember(this);
  }

  run(): number {
    if (this.#fd < 0) return -ERRNO.EBADF;
    if (this.#timeslice === undefined) this.#openMask();
    this.#timeslice?.begin();
    const result = this.#libc.tryIoctl(this.#fd, abi.KVM_RUN);
    if (result === -ERRNO.EINTR) this.#timeslice?.consume();
    return result;
  }

  getRegs(): Regs {
    const bytes = new Uint8Array(kvm_regs.size);
    this.#ioctl(abi.KVM_GET_REGS, bytes, 'KVM_GET_REGS');
    return kvm_regs.decode(bytes);
  }

  setRegs(regs: Regs): void {
    this.#ioctl(abi.KVM_SET_REGS, encodeRequest(kvm_regs, regs), 'KVM_SET_REGS');
  }

  getSregs(): Sregs {
    const bytes = new Uint8Array(kvm_sregs.size);
    this.#ioctl(abi.KVM_GET_SREGS, bytes, 'KVM_GET_SREGS');
    return decodeSregs(bytes);
  }

  setSregs(sregs: Sregs): void {
    this.#ioctl(abi.KVM_SET_SREGS, encodeSregs(sregs), 'KVM_SET_SREGS');
  }

  getCpuid2(): CpuidEntry[] {
    return getCpuid(this.#libc, this.#fd, abi.KVM_GET_CPUID2, 'KVM_GET_CPUID2');
  }

  setCpuid2(entries: readonly CpuidEntry[]): void {
    this.#ioctl(abi.KVM_SET_CPUID2, encodeCpuid(entries), `KVM_SET_CPUID2 of ${entries.length} entries`);
  }

  preFaultMemory(range: PreFaultRange & { flags: bigint }): PreFaultRange {
    const bytes = encodeRequest(kvm_pre_fault_memory, { ...range, padding: [] });
    this.#ioctl(abi.KVM_PRE_FAULT_MEMORY, bytes, 'KVM_PRE_FAULT_MEMORY');
    const { gpa, size } = kvm_pre_fault_memory.decode(bytes);
    return { gpa, size };
  }

  getLapic(): Uint8Array {
    const bytes = new Uint8Array(LAPIC_STATE_BYTES);
    this.#ioctl(abi.KVM_GET_LAPIC, bytes, 'KVM_GET_LAPIC');
    return bytes;
  }

  setLapic(state: Uint8Array): void {
    checkBytes(state, LAPIC_STATE_BYTES, 'kvm_lapic_state.regs');
    this.#ioctl(abi.KVM_SET_LAPIC, state.slice(0, LAPIC_STATE_BYTES), 'KVM_SET_LAPIC');
  }

  getMpState(): number {
    const bytes = new Uint8Array(kvm_mp_state.size);
    this.#ioctl(abi.KVM_GET_MP_STATE, bytes, 'KVM_GET_MP_STATE');
    return kvm_mp_state.decode(bytes).mp_state;
  }

  setMpState(state: number): void {
    this.#ioctl(
      abi.KVM_SET_MP_STATE,
      encodeRequest(kvm_mp_state, { mp_state: state }),
      `KVM_SET_MP_STATE ${state}`,
    );
  }

  close(): void {
    if (this.#fd < 0) return;
    const { address, bytes } = this.#window;
    const cover = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    this.#libc.mmap(address, bytes, READ_WRITE, cover, -1, 0n, `cover of vCPU ${this.id}`);
    this.#process.forget(this);
    this.#process.close(this.#fd);
    this.#fd = -1;
  }

  /** Lets the timeslice's signal through while KVM_RUN runs, and then alone. */
  #openMask(): void {
    this.#timeslice = this.#process.timeslice;
    if (this.#timeslice === undefined) return;
    const { runMask } = this.#timeslice;
    const bytes = new Uint8Array(kvm_signal_mask.size + runMask.length);
    bytes.set(kvm_signal_mask.encode({ len: runMask.length }));
    bytes.set(runMask, kvm_signal_mask.size);
    this.#ioctl(abi.KVM_SET_SIGNAL_MASK, bytes, 'KVM_SET_SIGNAL_MASK');
  }

  #ioctl(request: number, argument: Uint8Array, what: string): void {
    this.ioctl(request, argument, what);
  }

  protected get xsaveBytes(): number {
    return this.#xsaveBytes();
  }

  protected ioctl(request: number, argument: Uint8Array | number, what: string): number {
    const words = `${what} of vCPU ${this.id}`;
    if (typeof argument === 'number') return this.#libc.ioctl(this.#fd, request, argument, words);
    return this.#libc.ioctlBytes(this.#fd, request, argument, words);
  }
}
