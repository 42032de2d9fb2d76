/** One instruction outside 64-bit mode as its description (instructions.ts) sees it: operands as values, the stack, where control goes. */
import { SAVE } from '../../../abi/vmcb.ts';
import { VECTOR } from '../../../abi/x86.ts';
import { type Instruction, iced } from '../decode/iced.ts';
import { registers as places } from '../decode/registers.ts';
import type { CoreParts } from '../parts.ts';
import { merged, ProcessorStack } from '../processor-stack.ts';
import { SEGMENTS, type Segmentation } from '../segments.ts';
import { addressBits, type SegmentedMemory } from './addressing.ts';

export class Operands {
  readonly parts: CoreParts;
  readonly memory: SegmentedMemory;
  readonly segments: Segmentation;
  readonly stack: ProcessorStack;
  /** What `read` read. */
  value = 0n;
  /** RIP behind the instruction, or where it goes. */
  next = 0n;
  #instruction: Instruction | undefined;
  #bits: 16 | 32 = 16;

  constructor(parts: CoreParts, memory: SegmentedMemory, segments: Segmentation) {
    this.parts = parts;
    this.memory = memory;
    this.segments = segments;
    this.stack = new ProcessorStack(parts);
  }

  /** Takes up an instruction. */
  begin(instruction: Instruction, bits: 16 | 32): this {
    this.#instruction = instruction;
    this.#bits = bits;
    this.next = this.parts.registers.rip + BigInt(instruction.length);
    this.stack.current();
    return this;
  }

  get instruction(): Instruction {
    return this.#instruction!;
  }

  /** Bytes that it pushes or pops of one value, by how far it moves the stack pointer. */
  get stackBytes(): number {
    return Math.abs(this.instruction.stackPointerIncrement);
  }

  get addressBits(): 16 | 32 {
    return addressBits(this.instruction, this.#bits);
  }

  /** Number of the segment register that operand `k` is, or undefined. */
  segment(k: number): number | undefined {
    if (this.instruction.opKind(k) !== iced().OpKind.Register) return undefined;
    const number = places().numbers.get(this.instruction.opRegister(k));
    return number !== undefined && number < SEGMENTS.length ? number : undefined;
  }

  /** Operand `k` zero-extended into `value`; `bytes` is how wide a memory operand is. */
  read(k: number, bytes: number): number {
    const { OpKind } = iced();
    const { registers, access } = this.parts;
    const { instruction } = this;
    const kind = instruction.opKind(k);
    const segment = this.segment(k);
    if (segment !== undefined) this.value = BigInt(registers.selector(SEGMENTS[segment]!));
    else if (kind === OpKind.Register) {
      const place = places().places.get(instruction.opRegister(k))!;
      this.value = BigInt.asUintN(
        place.size,
        registers.long(place.offset & ~7) >> BigInt(8 * (place.offset & 7)),
      );
    } else if (kind === OpKind.Memory) {
      const outside = this.memory.locate(instruction, this.addressBits, bytes, 'read');
      if (outside !== 0) return outside;
      const reason = access.loadSized(this.memory.linear, bytes, access.privilege);
      if (reason !== 0) return reason;
      this.value = access.value;
    } else this.value = instruction.immediate(k);
    return 0;
  }

  /** Writes a general register or memory. */
  write(k: number, value: bigint, bytes: number): number {
    const { OpKind } = iced();
    const { registers, access } = this.parts;
    const { instruction } = this;
    if (instruction.opKind(k) === OpKind.Register) {
      const { offset } = places().places.get(instruction.opRegister(k))!;
      registers.setLong(offset, merged(registers.long(offset), value, 8 * bytes));
      return 0;
    }
    const outside = this.memory.locate(instruction, this.addressBits, bytes, 'write');
    return outside !== 0 ? outside : access.storeSized(this.memory.linear, value, bytes, access.privilege);
  }

  /** Goes on at `target`, which must lie in the code segment. */
  jump(target: bigint): number {
    if (target > BigInt(this.parts.registers.limit(SAVE.CS)))
      return this.parts.events.raiseWith(VECTOR.GP, 0);
    this.next = target;
    return 0;
  }
}
