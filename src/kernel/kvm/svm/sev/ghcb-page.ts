/**
 * A guest's GHCB page, mapped for the time between VMGEXIT and the next entry (Linux arch/x86/kvm/svm/sev.c, sev_es_sync_from_ghcb, sev_es_sync_to_ghcb). The guest can
 * change it at any time, so what KVM goes by is read once, into `request`.
 */
import { GHCB } from '../../../../abi/ghcb.ts';
import { type Pfn, type Spa, spaOf } from '../../../../base/address.ts';
import type { HostMemory } from '../../../../hardware/memory/host-memory.ts';

/** What the guest asked, as it stood at VMGEXIT. A field that is not valid is 0. */
export class GhcbRequest {
  code = 0n;
  info1 = 0n;
  info2 = 0n;
  scratch = 0n;
  rax = 0n;
  rbx = 0n;
  rcx = 0n;
  rdx = 0n;
  rsi = 0n;
  cpl = 0;
  usage = 0;
  /** The bitmap's two halves. */
  validLow = 0n;
  validHigh = 0n;

  /** Whether the guest set the field at `offset` of the page. */
  has(offset: number): boolean {
    const bit = offset >>> 3;
    const half = bit < 64 ? this.validLow : this.validHigh;
    return ((half >> BigInt(bit & 63)) & 1n) !== 0n;
  }
}

export class GhcbPage {
  readonly request = new GhcbRequest();
  /** Guest physical address. */
  readonly gpa: number;
  readonly #memory: HostMemory;
  readonly #at: Spa;

  constructor(memory: HostMemory, frame: Pfn, gpa: number) {
    this.#memory = memory;
    this.#at = spaOf(frame);
    this.gpa = gpa;
  }

  /** Takes the guest's request, and clears the valid bitmap for the answer. */
  take(): void {
    const { request } = this;
    request.validLow = this.#long(GHCB.VALID_BITMAP);
    request.validHigh = this.#long(GHCB.VALID_BITMAP + 8);
    const field = (offset: number): bigint => (request.has(offset) ? this.#long(offset) : 0n);
    request.rax = field(GHCB.RAX);
    request.rbx = field(GHCB.RBX);
    request.rcx = field(GHCB.RCX);
    request.rdx = field(GHCB.RDX);
    request.rsi = field(GHCB.RSI);
    request.code = field(GHCB.SW_EXITCODE);
    request.info1 = field(GHCB.SW_EXITINFO1);
    request.info2 = field(GHCB.SW_EXITINFO2);
    request.scratch = field(GHCB.SW_SCRATCH);
    request.cpl = this.#memory.load32((this.#at + (GHCB.CPL & ~3)) as Spa) >>> 24;
    request.usage = this.#memory.load32((this.#at + GHCB.USAGE) as Spa);
    this.#memory.store64((this.#at + GHCB.VALID_BITMAP) as Spa, 0n);
    this.#memory.store64((this.#at + GHCB.VALID_BITMAP + 8) as Spa, 0n);
  }

  /** SW_EXITINFO1 and 2 of the answer. */
  answer(info1: bigint, info2: bigint): void {
    this.set(GHCB.SW_EXITINFO1, info1);
    this.set(GHCB.SW_EXITINFO2, info2);
  }

  /** Writes a field and marks it valid. */
  set(offset: number, value: bigint): void {
    this.#memory.store64((this.#at + offset) as Spa, value);
    const byte = (this.#at + GHCB.VALID_BITMAP + (offset >>> 6)) as Spa;
    const word = (byte & ~3) as Spa;
    const bit = 1 << (((offset >>> 3) & 7) + 8 * (byte & 3));
    this.#memory.store32(word, this.#memory.load32(word) | bit);
  }

  /** Bytes of the page, as the guest has them now. */
  read(offset: number, into: Uint8Array): void {
    this.#memory.read((this.#at + offset) as Spa, into);
  }
  write(offset: number, from: Uint8Array): void {
    this.#memory.write((this.#at + offset) as Spa, from);
  }
  load32(offset: number): number {
    return this.#memory.load32((this.#at + offset) as Spa);
  }
  store32(offset: number, value: number): void {
    this.#memory.store32((this.#at + offset) as Spa, value);
  }

  #long(offset: number): bigint {
    return this.#memory.load64((this.#at + offset) as Spa);
  }
}
