/**
 * Memory operands outside 64-bit mode (APM volume 1, 2.2; volume 2, 4.12): an offset of 16 or 32 bits in a segment with base, limit and rights.
 */
import { SAVE } from '../../../abi/vmcb.ts';
import { VECTOR } from '../../../abi/x86.ts';
import { type Instruction, iced } from '../decode/iced.ts';
import { registers as places } from '../decode/registers.ts';
import { hasRealSegments } from '../mode.ts';
import type { CoreParts } from '../parts.ts';
import { ATTRIBUTE, SEGMENTS } from '../segments.ts';

/** Type bit of a data segment that grows down from its limit. */
const EXPAND_DOWN = 4;

/** Bits of the addresses that an instruction computes. */
export function addressBits(instruction: Instruction, codeBits: 16 | 32): 16 | 32 {
  for (const register of [instruction.memoryBase, instruction.memoryIndex]) {
    const size = places().places.get(register)?.size;
    if (size === 16 || size === 32) return size;
  }
  if (instruction.memoryDisplSize === 2) return 16;
  return instruction.memoryDisplSize === 4 ? 32 : codeBits;
}

export class SegmentedMemory {
  /** Result of `locate` and `at`: a linear address. */
  linear = 0n;
  readonly #parts: CoreParts;

  constructor(parts: CoreParts) {
    this.#parts = parts;
  }

  /** Offset of the memory operand in its segment. */
  offset(instruction: Instruction, bits: 16 | 32): bigint {
    const base = this.#register(instruction.memoryBase);
    const index = this.#register(instruction.memoryIndex) * BigInt(instruction.memoryIndexScale);
    return BigInt.asUintN(bits, base + index + instruction.memoryDisplacement);
  }

  /** Linear address of what lies `further` bytes behind the memory operand. 0, or LEAVE.EXCEPTION where the segment does not allow the access. */
  locate(
    instruction: Instruction,
    bits: 16 | 32,
    size: number,
    access: 'read' | 'write',
    further = 0n,
  ): number {
    const segment = SEGMENTS[places().numbers.get(instruction.memorySegment)!]!;
    const offset = BigInt.asUintN(bits, this.offset(instruction, bits) + further);
    return this.at(segment, offset, size, access);
  }

  /** The same for an offset in a segment (SAVE.DS and so on). */
  at(segment: number, offset: bigint, size: number, access: 'read' | 'write'): number {
    const { registers, events } = this.#parts;
    const attributes = registers.attributes(segment);
    const error = (): number => events.raiseWith(segment === SAVE.SS ? VECTOR.SS : VECTOR.GP, 0);
    const isCode = (attributes & ATTRIBUTE.CODE) !== 0;
    if (!hasRealSegments(registers)) {
      if ((attributes & ATTRIBUTE.P) === 0) return error();
      const writable = (attributes & ATTRIBUTE.WRITABLE) !== 0;
      if (access === 'write' ? isCode || !writable : isCode && !writable) return error();
    }
    const first = Number(offset);
    const last = first + Math.max(size, 1) - 1;
    const limit = registers.limit(segment);
    const down = !isCode && (attributes & EXPAND_DOWN) !== 0;
    const top = (attributes & ATTRIBUTE.D) !== 0 ? 0xffffffff : 0xffff;
    if (down ? first <= limit || last > top : last > limit) return error();
    this.linear = BigInt.asUintN(32, registers.base(segment) + offset);
    return 0;
  }

  #register(register: number): bigint {
    const place = places().places.get(register);
    if (place === undefined || place.size < 16 || place.size > 32) return 0n;
    return BigInt.asUintN(place.size, this.#parts.registers.long(place.offset));
  }
}

/** Bytes of the memory operand that an instruction accesses; 0 for one that computes an address alone. */
export function operandBytes(instruction: Instruction): number {
  return iced().MemorySizeExt.size(instruction.memorySize);
}
