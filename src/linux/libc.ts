/**
 * libc's system calls, with errno turned into LinuxError. Addresses are numbers (user space ends at 2^47) and pass as integers, bytes
 * pass by address. Whether a call may harm the Node around it (unmap, close, overwrite what is Node's) is the caller's to know.
 */
import { errnoName, LinuxError } from '../base/errors.ts';
import { type Argument, type Koffi, type Library, loadKoffi } from './koffi.ts';

/** A failed call. An errno that ERRNO does not list is no LinuxError, and says its number. */
export function failedCall(what: string, errno: number): Error {
  const code = errnoName(errno);
  return code === undefined ? new Error(`${what}: errno ${errno}`) : new LinuxError(code, what);
}

const TRANSFER = ['int', 'void *', 'uint64_t', 'int64_t'];
const VM_COPY = ['int', 'void *', 'uint64_t', 'void *', 'uint64_t', 'uint64_t'];
/** A bigint comes back only for what does not fit 2^53. */
type Call = (...values: Argument[]) => number | bigint;

export class Libc {
  readonly koffi: Koffi;
  readonly #library: Library;
  readonly #ioctl: Call;
  readonly #ioctlBytes: Call;
  readonly #mmap: Call;
  readonly #pread: Call;
  readonly #pwrite: Call;
  readonly #readMemory: Call;
  readonly #writeMemory: Call;
  readonly #calls = new Map<string, Call>();
  /** Two `struct iovec`: here, there. */
  readonly #vectors = [new BigUint64Array(2), new BigUint64Array(2)] as const;
  readonly #vectorBytes = this.#vectors.map((vector) => new Uint8Array(vector.buffer));

  /** Throws RealKernelUnavailable. */
  constructor() {
    this.koffi = loadKoffi();
    this.#library = this.koffi.load(null);
    this.#ioctl = this.#library.func('ioctl', 'int', ['int', 'uint64_t', 'uint64_t']);
    this.#ioctlBytes = this.#library.func('ioctl', 'int', ['int', 'uint64_t', 'void *']);
    this.#mmap = this.#library.func('mmap', 'int64_t', [
      ...['uint64_t', 'uint64_t', 'int', 'int', 'int', 'int64_t'],
    ]);
    this.#pread = this.#library.func('pread', 'int64_t', TRANSFER);
    this.#pwrite = this.#library.func('pwrite', 'int64_t', TRANSFER);
    this.#readMemory = this.#library.func('process_vm_readv', 'int64_t', VM_COPY);
    this.#writeMemory = this.#library.func('process_vm_writev', 'int64_t', VM_COPY);
  }

  /** errno of the call just made. */
  get errno(): number {
    return this.koffi.errno();
  }

  /** Calls a function that returns int: its result, or −errno where that is −1. `parameters` are C types. */
  tryCall(name: string, parameters: readonly string[], ...values: Argument[]): number {
    let call = this.#calls.get(name);
    if (call === undefined) {
      call = this.#library.func(name, 'int', parameters);
      this.#calls.set(name, call);
    }
    const result = call(...values) as number;
    return result === -1 ? -this.errno : result;
  }

  /** Likewise; a failure is thrown, and `what` names the call and its values. */
  call(what: string, name: string, parameters: readonly string[], ...values: Argument[]): number {
    const result = this.tryCall(name, parameters, ...values);
    if (result < 0) throw failedCall(what, -result);
    return result;
  }

  /** pread(2), pwrite(2): the number of bytes. */
  transfer(name: 'pread' | 'pwrite', fd: number, bytes: Uint8Array, offset: bigint): number {
    const call = name === 'pread' ? this.#pread : this.#pwrite;
    const result = Number(call(fd, bytes, bytes.length, BigInt.asIntN(64, offset)));
    if (result < 0) throw failedCall(`${name} of fd ${fd}: ${bytes.length} bytes at ${offset}`, this.errno);
    return result;
  }

  /** ioctl with an integer argument. Returns its result. */
  ioctl(fd: number, request: number, argument: number | bigint, what: string): number {
    const result = this.#ioctl(fd, request, argument) as number;
    if (result < 0) throw failedCall(what, this.errno);
    return result;
  }

  /** ioctl with a structure, which the kernel may change. */
  ioctlBytes(fd: number, request: number, argument: Uint8Array, what: string): number {
    const result = this.#ioctlBytes(fd, request, argument) as number;
    if (result < 0) throw failedCall(what, this.errno);
    return result;
  }

  /** ioctl without an argument, on the hot path: 0 or more, or −errno. */
  tryIoctl(fd: number, request: number): number {
    const result = this.#ioctl(fd, request, 0) as number;
    return result < 0 ? -this.errno : result;
  }

  mmap(
    address: number,
    length: number,
    protection: number,
    flags: number,
    fd: number,
    offset: bigint,
    what: string,
  ): number {
    const result = Number(this.#mmap(address, length, protection, flags, fd, offset));
    if (result === -1) throw failedCall(what, this.errno);
    return result;
  }

  /** Copies between `bytes` and the process's memory at `address`; an access that would raise a signal fails instead (EFAULT). */
  copyMemory(direction: 'read' | 'write', address: number, bytes: Uint8Array, pid: number): void {
    const call = direction === 'read' ? this.#readMemory : this.#writeMemory;
    const [here, there] = this.#vectors;
    for (let done = 0; done < bytes.length; ) {
      here[0] = this.koffi.address(bytes) + BigInt(done);
      there[0] = BigInt(address + done);
      here[1] = BigInt(bytes.length - done);
      there[1] = here[1];
      const copied = Number(call(pid, this.#vectorBytes[0]!, 1, this.#vectorBytes[1]!, 1, 0));
      if (copied <= 0) throw failedCall(`${direction} at 0x${(address + done).toString(16)}`, this.errno);
      done += copied;
    }
  }
}
