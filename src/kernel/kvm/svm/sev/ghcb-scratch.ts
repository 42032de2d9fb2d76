/**
 * The scratch area: where the data of MMIO, of string I/O and of a list of page state changes lie (Linux arch/x86/kvm/svm/sev.c, setup_vmgexit_scratch, sev_es_unmap_ghcb;
 * reference facts 5.3). From version 2 of the protocol on it is part of the GHCB's shared buffer, and KVM works on the guest's own bytes. Before, it may lie elsewhere in shared
 * memory: KVM works on a copy and writes it back before the guest runs on. That version 2 wants it in the GHCB is checked as kernels with that fix do, on 6.12 too.
 */
import { GHCB, GHCB_ANSWER, GHCB_MALFORMED } from '../../../../abi/ghcb.ts';
import type { Gpa } from '../../../../base/address.ts';
import { ERRNO } from '../../../../base/errors.ts';
import { readGuest, writeGuest } from '../../guest-access.ts';
import type { GhcbPage } from './ghcb-page.ts';
import type { VcpuSev } from './vcpu-sev.ts';

const PAGE_MASK = ~0xfffn;
const COPY_LIMIT = 16 * 4096;
const ADDRESS_SPACE_END = 1n << 64n;

export interface Scratch {
  /** Bytes from its start to where it must end. */
  readonly room: number;
  read(offset: number, into: Uint8Array): void;
  write(offset: number, from: Uint8Array): void;
  /** Words; `offset` is a multiple of 4 from a start that may be any. */
  load32(offset: number): number;
  store32(offset: number, value: number): void;
}

class OwnScratch implements Scratch {
  readonly room: number;
  readonly #ghcb: GhcbPage;
  readonly #start: number;

  constructor(ghcb: GhcbPage, start: number) {
    this.#ghcb = ghcb;
    this.#start = start;
    this.room = GHCB.SHARED_BUFFER_END - start;
  }

  read(offset: number, into: Uint8Array): void {
    this.#ghcb.read(this.#start + offset, into);
  }
  write(offset: number, from: Uint8Array): void {
    this.#ghcb.write(this.#start + offset, from);
  }
  load32(offset: number): number {
    return this.#ghcb.load32(this.#start + offset);
  }
  store32(offset: number, value: number): void {
    this.#ghcb.store32(this.#start + offset, value);
  }
}

/** A copy of what lies elsewhere. */
class CopiedScratch implements Scratch {
  readonly room: number;
  readonly bytes: Uint8Array;
  readonly #view: DataView;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
    this.room = bytes.length;
    this.#view = new DataView(bytes.buffer);
  }

  read(offset: number, into: Uint8Array): void {
    into.set(this.bytes.subarray(offset, offset + into.length));
  }
  write(offset: number, from: Uint8Array): void {
    this.bytes.set(from, offset);
  }
  load32(offset: number): number {
    return this.#view.getInt32(offset, true);
  }
  store32(offset: number, value: number): void {
    this.#view.setInt32(offset, value, true);
  }
}

/**
 * The scratch area of the request, of `bytes` at least. `changes`: whether the guest is to see what is written there. A number: a run result, with the guest told what is wrong;
 * −EFAULT where what lies elsewhere cannot be read.
 */
export function setUpScratch(sev: VcpuSev, bytes: number, changes: 'kept' | 'dropped'): Scratch | number {
  const ghcb = sev.ghcb!;
  const { scratch } = ghcb.request;
  const end = scratch + BigInt(bytes);
  if (scratch === 0n || end >= ADDRESS_SPACE_END) return refuse(sev);
  if ((scratch & PAGE_MASK) === BigInt(ghcb.gpa)) {
    const start = Number(scratch) - ghcb.gpa;
    if (start < GHCB.SHARED_BUFFER || start + bytes > GHCB.SHARED_BUFFER_END) return refuse(sev);
    return new OwnScratch(ghcb, start);
  }
  if (sev.sev.ghcbVersion >= 2 || bytes > COPY_LIMIT) return refuse(sev);
  const { vm } = sev.sev;
  const at = Number(scratch) as Gpa;
  const copy = new CopiedScratch(new Uint8Array(bytes));
  if (!readGuest(vm, at, copy.bytes)) return -ERRNO.EFAULT;
  if (changes === 'kept') sev.writeBack = () => writeGuest(vm, at, copy.bytes);
  return copy;
}

const refuse = (sev: VcpuSev): number => sev.answer(GHCB_ANSWER.MALFORMED, GHCB_MALFORMED.INVALID_SCRATCH);
