/**
 * The stack as far transfers, interrupts and instructions outside 64-bit mode use it: a pointer of 16, 32 or 64 bits in a segment with base and
 * limit. It is moved on the side and committed when all that can fault has been done (APM volume 2, 4.8.3, 8.7; limits 4.12.1).
 */
import { SAVE } from '../../abi/vmcb.ts';
import { VECTOR } from '../../abi/x86.ts';
import { PRIVILEGE } from './access.ts';
import { isCanonicalAddress } from './memory-access.ts';
import { stackBits } from './mode.ts';
import type { CoreParts } from './parts.ts';
import { GPR } from './state.ts';

/** Attributes of the stack segment: it grows down from its limit, and its pointer has 32 bits. */
const EXPAND_DOWN = 4;
const BIG = 0x400;

export interface StackSegment {
  readonly attributes: number;
  readonly limit: number;
  readonly base: bigint;
}

export class ProcessorStack {
  pointer = 0n;
  bits: 16 | 32 | 64 = 64;
  /** What the last `pop` read. */
  value = 0n;
  #base = 0n;
  #limit = 0;
  #attributes = 0;
  #privilege = 0;
  /** Error code of #SS: a selector where a new stack is entered. */
  #error = 0;
  readonly #parts: CoreParts;

  constructor(parts: CoreParts) {
    this.#parts = parts;
  }

  /** The running program's own, SS:rSP. */
  current(): this {
    const { registers, access } = this.#parts;
    this.bits = stackBits(registers);
    this.pointer = registers.gpr(GPR.RSP);
    this.#base = this.bits === 64 ? 0n : registers.base(SAVE.SS);
    this.#limit = registers.limit(SAVE.SS);
    this.#attributes = registers.attributes(SAVE.SS);
    this.#privilege = access.privilege;
    this.#error = 0;
    return this;
  }

  /**
   * One that is about to be entered: accesses are the processor's own unless `privilege` says otherwise. `segment` undefined: 64-bit mode, no
   * segment.
   */
  inner(
    pointer: bigint,
    segment: StackSegment | undefined,
    error: number,
    privilege: number = PRIVILEGE.IMPLICIT,
  ): this {
    this.bits = segment === undefined ? 64 : (segment.attributes & BIG) !== 0 ? 32 : 16;
    this.pointer = pointer;
    this.#base = segment?.base ?? 0n;
    this.#limit = segment?.limit ?? 0;
    this.#attributes = segment?.attributes ?? 0;
    this.#privilege = privilege;
    this.#error = error;
    return this;
  }

  /** Reads `size` bytes at the top into `value` and moves up. */
  pop(size: number): number {
    const { access } = this.#parts;
    const outside = this.#check(this.pointer, size);
    if (outside !== 0) return outside;
    const reason = access.loadSized(this.#linear(this.pointer), size, this.#privilege);
    if (reason !== 0) return reason;
    this.value = access.value;
    this.pointer += BigInt(size);
    return 0;
  }

  /** Skips `bytes`. */
  release(bytes: number): void {
    this.pointer += BigInt(bytes);
  }

  /** Whether `size` bytes at the top could be written. */
  checkTop(size: number): number {
    return this.#probe(this.pointer, size);
  }

  /** Whether `count` values of `size` bytes can be pushed: the first of them to each page, for they cross one boundary at most. */
  probe(size: number, count: number): number {
    const first = this.pointer - BigInt(size);
    const last = this.pointer - BigInt(size * count);
    const inPage = Math.floor(Number(this.#linear(first) & 0xfffn) / size);
    const next = first - BigInt(size * (inPage + 1));
    return (
      this.#probe(first, size) || this.#probe(next > last ? next : last, size) || this.#check(last, size)
    );
  }

  push(value: bigint, size: number): number {
    const at = this.pointer - BigInt(size);
    const outside = this.#check(at, size);
    if (outside !== 0) return outside;
    const reason = this.#parts.access.storeSized(this.#linear(at), value, size, this.#privilege);
    if (reason === 0) this.pointer = at;
    return reason;
  }

  /** Pushes all of them or none. */
  pushAll(values: readonly bigint[], size: number): number {
    const missing = this.probe(size, values.length);
    if (missing !== 0) return missing;
    for (const value of values) {
      const reason = this.push(value, size);
      if (reason !== 0) return reason;
    }
    return 0;
  }

  /** rSP moves, as wide as the stack is. */
  commit(): void {
    const { registers } = this.#parts;
    const old = registers.gpr(GPR.RSP);
    registers.setGpr(GPR.RSP, merged(old, this.pointer, this.bits));
  }

  #probe(at: bigint, size: number): number {
    const outside = this.#check(at, size);
    return outside !== 0 ? outside : this.#parts.access.probeAt(this.#linear(at), size, this.#privilege);
  }

  #linear(at: bigint): bigint {
    if (this.bits === 64) return BigInt.asUintN(64, at);
    return BigInt.asUintN(32, this.#base + BigInt.asUintN(this.bits, at));
  }

  #check(at: bigint, size: number): number {
    const { events } = this.#parts;
    if (this.bits === 64)
      return isCanonicalAddress(at) && isCanonicalAddress(at + BigInt(size - 1))
        ? 0
        : events.raiseWith(VECTOR.SS, this.#error);
    const offset = Number(BigInt.asUintN(this.bits, at));
    const last = offset + size - 1;
    const top = (this.#attributes & BIG) !== 0 ? 0xffffffff : 0xffff;
    const inside =
      (this.#attributes & EXPAND_DOWN) !== 0 ? offset > this.#limit && last <= top : last <= this.#limit;
    return inside ? 0 : events.raiseWith(VECTOR.SS, this.#error);
  }
}

/** `value` in the low 16, 32 or 64 bits of a register; 32 bits clear the upper half. */
export function merged(old: bigint, value: bigint, bits: number): bigint {
  if (bits === 16) return (old & ~0xffffn) | BigInt.asUintN(16, value);
  return BigInt.asUintN(bits, value);
}
