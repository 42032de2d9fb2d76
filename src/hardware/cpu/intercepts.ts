/**
 * What the running VMCB intercepts (APM volume 2, 15.7 to 15.12): intercept words, and the permission maps of ports and MSRs. Read
 * from the VMCB where needed: the host cannot change it while the guest runs.
 */
import { INTERCEPT, VMCB } from '../../abi/vmcb.ts';

export interface InterceptMemory {
  readonly words: Int32Array;
  readonly bytes: Uint8Array;
}

export class Intercepts {
  /** System physical address of the VMCB. */
  vmcb = 0;
  readonly #words: Int32Array;
  readonly #bytes: Uint8Array;

  constructor(memory: InterceptMemory) {
    this.#words = memory.words;
    this.#bytes = memory.bytes;
  }

  /** A 32-bit word of the VMCB's control area. */
  word(offset: number): number {
    return this.#words[(this.vmcb + offset) >>> 2]!;
  }
  setWord(offset: number, value: number): void {
    this.#words[(this.vmcb + offset) >>> 2] = value;
  }

  /** One of INTERCEPT. */
  has(bit: number): boolean {
    return ((this.word((bit >>> 5) * 4) >>> (bit & 31)) & 1) !== 0;
  }
  exception(vector: number): boolean {
    return ((this.word(VMCB.INTERCEPT_EXCEPTION) >>> vector) & 1) !== 0;
  }
  readsOfCr(number: number): boolean {
    return ((this.word(VMCB.INTERCEPT_CR) >>> number) & 1) !== 0;
  }
  writesOfCr(number: number): boolean {
    return ((this.word(VMCB.INTERCEPT_CR) >>> (16 + number)) & 1) !== 0;
  }
  readsOfDr(number: number): boolean {
    return ((this.word(VMCB.INTERCEPT_DR) >>> number) & 1) !== 0;
  }
  writesOfDr(number: number): boolean {
    return ((this.word(VMCB.INTERCEPT_DR) >>> (16 + number)) & 1) !== 0;
  }

  /** An access of `size` bytes at `port`: any bit set intercepts; past 0xffff the bits after the map count. */
  port(port: number, size: number): boolean {
    if (!this.has(INTERCEPT.IOIO)) return false;
    const base = this.#address(VMCB.IOPM_BASE_PA);
    for (let at = port; at < port + size; at++) {
      if (((this.#bytes[base + (at >>> 3)]! >>> (at & 7)) & 1) !== 0) return true;
    }
    return false;
  }

  /** RDMSR and WRMSR of `msr` (unsigned); an MSR that the map has no bits for is always intercepted. */
  msr(msr: number, access: 'read' | 'write'): boolean {
    if (!this.has(INTERCEPT.MSR)) return false;
    const range = msrRange(msr);
    if (range < 0) return true;
    const bit = (msr & 0x1fff) * 2 + (access === 'write' ? 1 : 0);
    const byte = this.#address(VMCB.MSRPM_BASE_PA) + range + (bit >>> 3);
    return ((this.#bytes[byte]! >>> (bit & 7)) & 1) !== 0;
  }

  /** Base of a map; the low 12 bits count not. */
  #address(field: number): number {
    return (this.word(field + 4) & 0xfffff) * 0x1_0000_0000 + ((this.word(field) & ~0xfff) >>> 0);
  }
}

/** Offset of an MSR's part of the map, or −1. */
function msrRange(msr: number): number {
  if (msr < 0x2000) return 0;
  if (msr >= 0xc000_0000 && msr < 0xc000_2000) return 0x800;
  if (msr >= 0xc001_0000 && msr < 0xc001_2000) return 0x1000;
  return -1;
}
