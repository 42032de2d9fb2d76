/** An instruction's explicit operands: sizes in bits, registers' places, immediates, and effective addresses as records hold them. */
import { STATE } from '../state.ts';
import { type Instruction, iced } from './iced.ts';
import type { AddressParts, Line } from './line.ts';
import { registers, SEGMENT_BASE } from './registers.ts';

/** What the planner needs of a handler table. */
export type HandlerNumber = (name: string) => number | undefined;

/** The size of each operand in bits; 0 where it has none (an immediate takes the operation's). */
export function operandSizes(instruction: Instruction): number[] {
  const { OpKind, MemorySizeExt } = iced();
  const sizes: number[] = [];
  for (let k = 0; k < instruction.opCount; k++) {
    const kind = instruction.opKind(k);
    if (kind === OpKind.Register) sizes.push(registers().places.get(instruction.opRegister(k))?.size ?? 0);
    else if (kind === OpKind.Memory) sizes.push(MemorySizeExt.size(instruction.memorySize) * 8);
    else sizes.push(0);
  }
  return sizes;
}

export function memoryOperand(instruction: Instruction): number {
  const { OpKind } = iced();
  for (let k = 0; k < instruction.opCount; k++) if (instruction.opKind(k) === OpKind.Memory) return k;
  return -1;
}

const LOG2 = [0, 0, 1, 0, 2, 0, 0, 0, 3];

/**
 * The address of the memory operand. Two registers fit a record; a segment base besides, or an address of 32 bits, takes an
 * `ea` record before. `segmented` is false for LEA, which ignores the segment.
 */
export function effectiveAddress(
  instruction: Instruction,
  line: Line,
  handler: HandlerNumber,
  options = { segmented: true },
): AddressParts {
  const { Register } = iced();
  const { places } = registers();
  const base = places.get(instruction.memoryBase);
  const index = places.get(instruction.memoryIndex);
  const indexOffset = index === undefined || index.size === 8 ? STATE.ZERO : index.offset;
  const displacement = BigInt.asIntN(64, instruction.memoryDisplacement);
  let parts: AddressParts = {
    base: base?.offset ?? STATE.ZERO,
    index: indexOffset,
    scale: LOG2[instruction.memoryIndexScale]!,
    displacement,
  };
  const short = base?.size === 32 || index?.size === 32 || instruction.memoryDisplSize === 4;
  if (short) {
    line.add(handler('ea.32')!, parts);
    parts = { base: STATE.TEMP_EA, index: STATE.ZERO, scale: 0, displacement: 0n };
  }
  const segment = options.segmented ? instruction.memorySegment : Register.DS;
  if (segment !== Register.FS && segment !== Register.GS) return parts;
  const segmentBase = segment === Register.FS ? SEGMENT_BASE.FS : SEGMENT_BASE.GS;
  if (parts.base === STATE.ZERO) return { ...parts, base: segmentBase };
  if (parts.index === STATE.ZERO) return { ...parts, base: segmentBase, index: parts.base, scale: 0 };
  line.add(handler('ea.64')!, parts);
  return { base: segmentBase, index: STATE.TEMP_EA, scale: 0, displacement: 0n };
}
