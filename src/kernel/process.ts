/**
 * A process on the host: its file descriptors, its address space, and the system calls on both. What `open("/dev/kvm")`
 * gives is handed in, so that this file knows no device.
 */
import { u32 } from '../abi/layout.ts';
import { LinuxError } from '../base/errors.ts';
import type { HostMemory } from '../hardware/memory/host-memory.ts';
import type { Psp } from './ccp/psp.ts';
import { isSevDevice, openSevDevice, sevIssueCommand } from './ccp/sev-device.ts';
import { FileTable, OpenFile } from './files.ts';
import type { Kvm, Process as ProcessInterface, SevIssueCommand } from './interface.ts';
import { AddressSpace } from './mm/address-space.ts';
import { SharedMemory } from './mm/shared-memory.ts';
import { Tmpfs } from './tmpfs.ts';

/** MFD_NAME_MAX_LEN */
const MEMFD_NAME_MAX = 249;

export interface ProcessOptions {
  readonly memory: HostMemory;
  /** Frames are accounted to `process NAME`. */
  readonly name?: string;
  /** The file system that `open` sees; one of its own when absent. */
  readonly tmpfs?: Tmpfs;
  /** RLIMIT_NOFILE, 1024 when absent. */
  readonly fileLimit?: number;
  /** `open("/dev/kvm")` in that process. */
  readonly openDevice: (process: Process) => Kvm;
  /** The driver of the secure processor; absent: the machine has none. */
  readonly psp?: Psp;
  /** It has ended: called once, when all of it is gone. */
  readonly onEnd?: (process: Process) => void;
}

export class Process implements ProcessInterface {
  readonly files: FileTable;
  readonly memory: AddressSpace;
  readonly hostMemory: HostMemory;
  readonly #tmpfs: Tmpfs;
  readonly #ownTmpfs: boolean;
  readonly #openDevice: (process: Process) => Kvm;
  readonly #psp: Psp | undefined;
  readonly #onEnd: ((process: Process) => void) | undefined;
  #ended = false;
  /** System calls under way that hold what an exit frees: those from which listeners of the trace call. */
  #inKernel = 0;
  /** It was killed, and ends when they are over. */
  exiting = false;

  constructor(options: ProcessOptions) {
    const { memory, name = 'vmm' } = options;
    this.hostMemory = memory;
    this.files = new FileTable(options.fileLimit === undefined ? {} : { limit: options.fileLimit });
    this.memory = new AddressSpace({ memory, owner: memory.owner(`process ${name}`), files: this.files });
    this.#ownTmpfs = options.tmpfs === undefined;
    this.#tmpfs = options.tmpfs ?? new Tmpfs(memory);
    this.#openDevice = options.openDevice;
    this.#psp = options.psp;
    this.#onEnd = options.onEnd;
  }

  openKvm(): Kvm {
    return this.#openDevice(this);
  }

  /** Errors: ENODEV, EMFILE. */
  openSev(options: { readOnly?: boolean } = {}): number {
    return openSevDevice(this.files, this.#psp, options.readOnly === true ? 'read' : 'write');
  }

  /** Errors in order: EBADF, ENOTTY (not /dev/sev), those of the commands. */
  sevIssueCommand(fd: number, command: SevIssueCommand): void {
    const file = this.files.get(fd);
    if (this.#psp === undefined || !isSevDevice(this.files, fd))
      throw new LinuxError('ENOTTY', `SEV_ISSUE_CMD: descriptor ${fd} is not /dev/sev`);
    u32.check(command.cmd, 'sev_issue_cmd.cmd');
    sevIssueCommand(this.#psp, command, file.writable ? 'write' : 'read');
  }

  /** Errors: EINVAL (name longer than 249 bytes), EMFILE. */
  memfdCreate(name: string): number {
    if (new TextEncoder().encode(name).length > MEMFD_NAME_MAX) {
      throw new LinuxError('EINVAL', `memfd_create: the name is longer than ${MEMFD_NAME_MAX} bytes`);
    }
    this.files.reserve();
    return this.files.install(
      new OpenFile(new SharedMemory({ memory: this.hostMemory, name: `/memfd:${name}` })),
    );
  }

  /** Errors: ENOENT, EMFILE. */
  open(path: string, options: { readOnly?: boolean } = {}): number {
    this.files.reserve();
    return this.files.install(this.#tmpfs.open(path, options));
  }

  /** Errors: ENOENT. */
  unlink(path: string): void {
    this.#tmpfs.unlink(path);
  }

  dup(fd: number): number {
    return this.files.dup(fd);
  }

  /** Errors in order: EINVAL (negative), EBADF, EINVAL (not open for writing, or of fixed size), EFBIG. */
  ftruncate(fd: number, size: bigint): void {
    if (size < 0n) throw new LinuxError('EINVAL', `ftruncate: size ${size}`);
    this.files.get(fd).truncate(size);
  }

  fstat(fd: number): { size: bigint; blockSize: number } {
    return this.files.get(fd).stat();
  }

  /** Errors in order: EINVAL (negative offset), EBADF, ESPIPE (no positions), EBADF (not open for reading). */
  pread(fd: number, into: Uint8Array, offset: bigint): number {
    if (offset < 0n) throw new LinuxError('EINVAL', `pread: offset ${offset}`);
    return this.files.get(fd).pread(into, offset);
  }

  pwrite(fd: number, from: Uint8Array, offset: bigint): number {
    if (offset < 0n) throw new LinuxError('EINVAL', `pwrite: offset ${offset}`);
    return this.files.get(fd).pwrite(from, offset);
  }

  /** Errors in order: EBADF, EINVAL (range), EOPNOTSUPP (mode), EBADF (not open for writing), EFBIG, the file's own. */
  fallocate(fd: number, mode: number, offset: bigint, length: bigint): void {
    const file = this.files.get(fd);
    file.hold();
    this.enterKernel();
    try {
      file.fallocate(mode, offset, length);
    } finally {
      file.drop();
      this.leaveKernel();
    }
  }

  /** Errors: EBADF, EINVAL. */
  lock(fd: number, kind: 'shared' | 'exclusive' | 'none'): boolean {
    return this.files.get(fd).lock(kind);
  }

  close(fd: number): void {
    this.files.close(fd);
  }

  enterKernel(): void {
    this.#inKernel++;
  }
  leaveKernel(): void {
    this.#inKernel--;
    if (this.exiting && this.#inKernel === 0) this.exit();
  }

  /**
   * Ends the process: memory first (so notifiers hear of it while devices are open), then every descriptor. From within a system call of
   * its own, when that is over: a killed thread dies on its way back to user space.
   */
  exit(): void {
    this.exiting = this.#inKernel > 0;
    if (this.exiting || this.#ended) return;
    this.#ended = true;
    this.memory.exit();
    this.files.closeAll();
    if (this.#ownTmpfs) this.#tmpfs.unmount();
    this.#onEnd?.(this);
  }

  /** Nothing of it is left, or will be as soon as its KVM_RUN is over: it makes no call any more. */
  get isGone(): boolean {
    return this.exiting || this.#ended;
  }
}
