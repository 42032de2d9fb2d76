/**
 * The way of a guest's driver through KVM: requests by GHCB to a vCPU whose core follows a script, certificates from a VMM's file, reports from firmware. The driver's copy of
 * the secrets page is read under the guest's key, which only tests can do.
 */
import type { Hva, Pfn, Spa } from '../../../src/base/address.ts';
import type { GuestTransport, SharedBuffer } from '../../../src/guest/transport.ts';
import type { EarlyForm } from '../../../src/kernel/kvm/index.ts';
import { CertificateSource } from '../../../src/vmm/confidential-guest/certificate-source.ts';
import { GhcbBench, type Request } from './ghcb-bench.ts';
import { frameOfGuestPage } from './guest-messages.ts';
import { SECRETS, SHARED } from './snp-bench.ts';

const HLT = 5;
const EINTR = -4;
const SNP_REQ_CERTS = 43;
const VMGEXIT = 40;
const TABLE = '/certs';

interface Placed extends SharedBuffer {
  readonly gpa: number;
}

export class GhcbTransport implements GuestTransport {
  readonly bench: GhcbBench;
  readonly secrets = new Uint8Array(4096);
  readonly vmpl: number = 0;
  /** For how many requests to come the VMM puts the guest off. */
  busy = 0;
  slept = 0;
  /** Exits that asked the VMM for certificates. */
  asked = 0;
  readonly #source: CertificateSource;
  readonly #buffers = new Set<Placed>();
  #next = SHARED;

  constructor(table: Uint8Array, options: { early?: readonly EarlyForm[] } = {}) {
    const isLanded = options.early === undefined;
    this.bench = new GhcbBench({
      ...options,
      certs: isLanded,
      launch: (snp) => snp.update(5, SECRETS, 4096),
    }).register();
    const { kernel, process, hva } = this.bench.snp;
    const { encryption } = kernel.memory;
    const frame = frameOfGuestPage(this.bench.snp, SECRETS);
    encryption.readUnder(encryption.keyOfFrame(frame as Pfn), (frame * 4096) as Spa, this.secrets);

    const fd = process.open(TABLE);
    process.pwrite(fd, table, 0n);
    process.close(fd);
    const busy = () => this.busy > 0 && this.busy-- > 0;
    this.#source = new CertificateSource(process, { path: TABLE, busy }, (gpa, bytes) =>
      process.memory.write((hva + gpa) as Hva, bytes),
    );
  }

  allocateShared(pages: number): SharedBuffer {
    const buffer = { bytes: new Uint8Array(pages * 4096), gpa: this.#next };
    this.#next += pages * 4096;
    this.#buffers.add(buffer);
    return buffer;
  }
  freeShared(buffer: SharedBuffer): void {
    this.#buffers.delete(buffer as Placed);
  }

  async request(request: SharedBuffer, response: SharedBuffer): Promise<bigint> {
    this.#ask({ code: 0x8000_0011n, ...pagesOf(request, response) });
    return this.bench.answer[1];
  }

  async extendedRequest(
    request: SharedBuffer,
    response: SharedBuffer,
    { buffer, pages }: { buffer: SharedBuffer | undefined; pages: number },
  ): Promise<{ exitInfo2: bigint; pages: number }> {
    const rax = BigInt(buffer === undefined ? 0 : (buffer as Placed).gpa);
    this.#ask({ code: 0x8000_0012n, ...pagesOf(request, response), rax, rbx: BigInt(pages) });
    return { exitInfo2: this.bench.answer[1], pages: Number(this.bench.field('rbx')) };
  }

  async sleep(milliseconds: number): Promise<void> {
    this.slept += milliseconds;
  }
  now(): number {
    return this.slept;
  }

  /** Whether an updater would get the certificates' exclusive lock. */
  get isUnlocked(): boolean {
    const { process } = this.bench.snp;
    const fd = process.open(TABLE);
    const got = process.lock(fd, 'exclusive');
    process.close(fd);
    return got;
  }

  #ask(request: Request): void {
    const { snp } = this.bench;
    const { vcpu } = snp;
    for (const { gpa, bytes } of this.#buffers) this.bench.write(gpa, bytes);
    let result = this.bench.request(request);
    while (result === EINTR || vcpu.kvmRun.exitReason !== HLT) {
      if (result === EINTR) this.#source.finished(vcpu);
      else if (result !== 0) throw new Error(`KVM_RUN: got ${result}, want 0 or ${EINTR}`);
      else this.#serve(vcpu.kvmRun.exitReason);
      result = vcpu.run();
    }
    this.#source.finished(vcpu);
    for (const { gpa, bytes } of this.#buffers) bytes.set(snp.read(gpa, bytes.length));
  }

  #serve(exitReason: number): void {
    const { vcpu } = this.bench.snp;
    this.asked++;
    if (exitReason === SNP_REQ_CERTS) this.#source.requested(vcpu);
    else if (exitReason === VMGEXIT) this.#source.requestedEarly(vcpu);
    else throw new Error(`exit reason: got ${exitReason}, want ${HLT}, ${SNP_REQ_CERTS} or ${VMGEXIT}`);
  }
}

function pagesOf(request: SharedBuffer, response: SharedBuffer): { info1: bigint; info2: bigint } {
  return { info1: BigInt((request as Placed).gpa), info2: BigInt((response as Placed).gpa) };
}
