/**
 * This very process as the VMM on the real Linux (kernel/interface.ts): system calls through libc. Its descriptors are those that were
 * opened through it: any other is EBADF, since it may be Node's own.
 */
import { fstatSync } from 'node:fs';
import { SEV_ISSUE_CMD_IOCTL } from '../abi/sev-device.ts';
import { LinuxError, NotImplementedError } from '../base/errors.ts';
import type { Kvm, Process, ProcessMemory, SevIssueCommand } from '../kernel/interface.ts';
import { LinuxKvm } from './kvm.ts';
import { Libc } from './libc.ts';
import { LinuxProcessMemory } from './process-memory.ts';
import { sevIssueArgument } from './sev-issue-command.ts';
import { Timeslice } from './timeslice.ts';

const O_RDONLY = 0;
const O_RDWR = 2;
const O_CREAT = 0o100;
const O_CLOEXEC = 0o2000000;
const MFD_CLOEXEC = 1;
const OWNER_ONLY = 0o600;

export interface LinuxProcessOptions {
  /** Milliseconds after which KVM_RUN is interrupted (−EINTR), so that vCPUs take turns and time-outs are seen; 0: never. Default 10. */
  readonly timesliceMs?: number;
}

export class LinuxProcess implements Process {
  readonly memory: ProcessMemory;
  readonly libc: Libc;
  readonly #mappings: LinuxProcessMemory;
  readonly #descriptors = new Set<number>();
  /** VMs and vCPUs that are open. */
  readonly #open = new Set<{ close(): void }>();
  readonly #timesliceMs: number;
  #timeslice: Timeslice | undefined;
  #isGone = false;

  /** Throws RealKernelUnavailable. */
  constructor(options: LinuxProcessOptions = {}) {
    this.libc = new Libc();
    this.#timesliceMs = options.timesliceMs ?? 10;
    this.#mappings = new LinuxProcessMemory(this.libc, (fd) => this.#check(fd, 'mmap'));
    this.memory = this.#mappings;
  }

  /** Errors: ENOENT (no such device), EACCES. */
  openKvm(): Kvm {
    return new LinuxKvm(this, this.open('/dev/kvm', { readOnly: false, create: false }));
  }

  /** Errors: ENOENT (no such device), EACCES. */
  openSev({ readOnly = false }: { readOnly?: boolean } = {}): number {
    return this.open('/dev/sev', { readOnly, create: false });
  }

  sevIssueCommand(fd: number, command: SevIssueCommand): void {
    this.#check(fd, 'SEV_ISSUE_CMD');
    const argument = sevIssueArgument(command, (bytes) => this.libc.koffi.address(bytes));
    try {
      this.libc.ioctlBytes(fd, SEV_ISSUE_CMD_IOCTL, argument.bytes, `SEV_ISSUE_CMD ${command.cmd}`);
    } finally {
      argument.finish();
    }
  }

  memfdCreate(name: string): number {
    return this.adopt(
      this.libc.call(`memfd_create ${name}`, 'memfd_create', ['str', 'uint32_t'], name, MFD_CLOEXEC),
    );
  }

  open(path: string, options: { readOnly?: boolean; create?: boolean } = {}): number {
    const { readOnly = false, create = !readOnly } = options;
    const flags = (readOnly ? O_RDONLY : O_RDWR) | (create ? O_CREAT : 0) | O_CLOEXEC;
    return this.adopt(this.libc.call(`open ${path}`, 'open', ['str', 'int', 'int'], path, flags, OWNER_ONLY));
  }

  ftruncate(fd: number, size: bigint): void {
    this.#check(fd, 'ftruncate');
    this.libc.call(
      `ftruncate fd ${fd} to ${size}`,
      'ftruncate',
      ['int', 'int64_t'],
      ...[fd, BigInt.asIntN(64, size)],
    );
  }

  fstat(fd: number): { size: bigint; blockSize: number } {
    this.#check(fd, 'fstat');
    const { size, blksize } = fstatSync(fd, { bigint: true });
    return { size, blockSize: Number(blksize) };
  }

  pread(fd: number, into: Uint8Array, offset: bigint): number {
    this.#check(fd, 'pread');
    return this.libc.transfer('pread', fd, into, offset);
  }

  pwrite(fd: number, from: Uint8Array, offset: bigint): number {
    this.#check(fd, 'pwrite');
    return this.libc.transfer('pwrite', fd, from, offset);
  }

  fallocate(fd: number, mode: number, offset: bigint, length: bigint): void {
    this.#check(fd, 'fallocate');
    this.libc.call(
      `fallocate fd ${fd}: mode ${mode}, ${length} bytes at ${offset}`,
      'fallocate',
      ['int', 'int', 'int64_t', 'int64_t'],
      ...[fd, mode, BigInt.asIntN(64, offset), BigInt.asIntN(64, length)],
    );
  }

  lock(): boolean {
    throw new NotImplementedError('fcntl(F_OFD_SETLK) on the real kernel');
  }

  close(fd: number): void {
    this.#check(fd, 'close');
    this.#descriptors.delete(fd);
    this.libc.call(`close fd ${fd}`, 'close', ['int'], fd);
  }

  /** It makes no call any more. */
  get isGone(): boolean {
    return this.#isGone;
  }

  /** Gives back everything: vCPUs, VMs, mappings, descriptors, the timer. */
  exit(): void {
    this.#isGone = true;
    for (const each of [...this.#open]) each.close();
    this.#mappings.exit();
    for (const fd of [...this.#descriptors]) this.close(fd);
    this.#timeslice?.close();
    this.#timeslice = undefined;
  }

  /** Makes `fd`, new from a call, one of this process's. */
  adopt(fd: number): number {
    this.#descriptors.add(fd);
    return fd;
  }

  /** `object` is closed when the process ends, unless `forget` comes first. */
  remember(object: { close(): void }): void {
    this.#open.add(object);
  }
  forget(object: { close(): void }): void {
    this.#open.delete(object);
  }

  /** Of the thread that runs vCPUs; none where KVM_RUN is never interrupted. */
  get timeslice(): Timeslice | undefined {
    if (this.#timesliceMs === 0) return undefined;
    this.#timeslice ??= new Timeslice(this.libc, this.#timesliceMs);
    return this.#timeslice;
  }

  #check(fd: number, what: string): void {
    if (!this.#descriptors.has(fd)) throw new LinuxError('EBADF', `${what}: fd ${fd}`);
  }
}
