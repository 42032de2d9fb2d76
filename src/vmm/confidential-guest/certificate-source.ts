/**
 * Certificates that come with attestation reports (KVM_EXIT_SNP_REQ_CERTS and its early form, KVM_EXIT_VMGEXIT; Linux Documentation/virt/kvm/api.rst; seed 001): a file
 * with a certificate table (GHCB specification, "SNP Extended Guest Request"), read under a shared lock that is held until the report is made, so that whoever
 * changes TCB or VLEK, and with it the certificates, under an exclusive lock never gets in between.
 */
import { KVM_EXIT_VMGEXIT } from '../../abi/kvm.ts';
import { SevExits } from '../../abi/kvm-run-sev.ts';
import { ERRNO, LinuxError } from '../../base/errors.ts';
import type { KvmVcpu, Process } from '../../kernel/interface.ts';

const PAGE = 4096;
const EARLY = { TOO_SMALL: 1, BUSY: 2, GENERIC: 0x8000_0000, NOTIFY_DONE: 1, DONE: 1 } as const;

export interface CertificateOptions {
  /** Path of the file on the host's tmpfs. Absent: an empty table. */
  readonly path?: string;
  /** `off`: the file is read without a lock. For tests that show what the lock is for. */
  readonly locking?: 'shared' | 'off';
  /** Whether to put the guest off: asked before each answer. */
  readonly busy?: () => boolean;
}

/** What a vCPU's request holds until it is done. */
interface Held {
  readonly fd: number;
}

export class CertificateSource {
  readonly #process: Process;
  readonly #options: CertificateOptions;
  readonly #write: (gpa: number, bytes: Uint8Array) => void;
  readonly #held = new Map<KvmVcpu, Held>();
  /** Certificate tables that guests were given so far. */
  served = 0;

  /** `write` puts bytes into the guest's shared memory; it throws where there is none. */
  constructor(
    process: Process,
    options: CertificateOptions,
    write: (gpa: number, bytes: Uint8Array) => void,
  ) {
    this.#process = process;
    this.#options = options;
    this.#write = write;
  }

  /** KVM_EXIT_SNP_REQ_CERTS: fills in `ret`; with a lock held, has KVM_RUN come back as soon as the report is made. */
  requested(vcpu: KvmVcpu): void {
    const exits = new SevExits(vcpu.kvmRun.bytes);
    const answer = this.#answer(vcpu, Number(exits.reqCertsGpa), Number(exits.reqCertsNpages));
    exits.reqCertsRet = BigInt(answer.errno);
    if (answer.errno === ERRNO.ENOSPC) exits.reqCertsNpages = BigInt(answer.pages);
    if (this.#held.has(vcpu)) vcpu.kvmRun.immediateExit = 1;
  }

  /** KVM_EXIT_VMGEXIT, of both kinds. */
  requestedEarly(vcpu: KvmVcpu): void {
    const exits = new SevExits(vcpu.kvmRun.bytes);
    if (exits.vmgexitStatus === EARLY.DONE) {
      this.finished(vcpu);
      return;
    }
    const answer = this.#answer(vcpu, Number(exits.vmgexitDataGpa), Number(exits.vmgexitDataNpages));
    const codes = new Map<number, number>([
      [0, 0],
      [ERRNO.ENOSPC, EARLY.TOO_SMALL],
      [ERRNO.EAGAIN, EARLY.BUSY],
    ]);
    exits.vmgexitRet = codes.get(answer.errno) ?? EARLY.GENERIC;
    if (answer.errno === ERRNO.ENOSPC) exits.vmgexitDataNpages = BigInt(answer.pages);
    if (this.#held.has(vcpu)) exits.vmgexitFlags = EARLY.NOTIFY_DONE;
  }

  /** Whether `exitReason` is the early form's. */
  static isEarly(exitReason: number): boolean {
    return exitReason === KVM_EXIT_VMGEXIT;
  }

  /** KVM_RUN came back after a request: the report is made, the lock can go. */
  finished(vcpu: KvmVcpu): void {
    const held = this.#held.get(vcpu);
    if (held === undefined) return;
    this.#held.delete(vcpu);
    vcpu.kvmRun.immediateExit = 0;
    this.#process.close(held.fd);
  }

  /** Whether the vCPU's request holds the lock. */
  holds(vcpu: KvmVcpu): boolean {
    return this.#held.has(vcpu);
  }

  #answer(vcpu: KvmVcpu, gpa: number, npages: number): { errno: number; pages: number } {
    if (this.#options.busy?.() === true) return { errno: ERRNO.EAGAIN, pages: 0 };
    const { path, locking = 'shared' } = this.#options;
    let table: Uint8Array = new Uint8Array(24);
    let fd = -1;
    try {
      if (path !== undefined) {
        fd = this.#process.open(path, { readOnly: true });
        if (locking === 'shared' && !this.#process.lock(fd, 'shared')) {
          this.#process.close(fd);
          return { errno: ERRNO.EAGAIN, pages: 0 };
        }
        table = new Uint8Array(Number(this.#process.fstat(fd).size));
        this.#process.pread(fd, table, 0n);
      }
      const pages = Math.ceil(table.length / PAGE);
      if (pages > npages) {
        if (fd >= 0) this.#process.close(fd);
        return { errno: ERRNO.ENOSPC, pages };
      }
      const bytes = new Uint8Array(pages * PAGE);
      bytes.set(table);
      this.#write(gpa, bytes);
    } catch (error) {
      if (!(error instanceof LinuxError)) throw error;
      if (fd >= 0) this.#process.close(fd);
      return { errno: ERRNO.EIO, pages: 0 };
    }
    this.served++;
    if (fd >= 0) this.#held.set(vcpu, { fd });
    return { errno: 0, pages: 0 };
  }
}
