/** String instructions: MOVS, CMPS, SCAS, LODS, STOS with their prefixes. */
import { type Instruction, iced } from './iced.ts';
import { type Line, NO_ADDRESS } from './line.ts';
import type { HandlerNumber } from './operands.ts';
import { SEGMENT_BASE } from './registers.ts';

const STRING = /^(Movs|Cmps|Scas|Lods|Stos)([bwdq])$/;
const SIZES: Readonly<Record<string, number>> = { b: 8, w: 16, d: 32, q: 64 };

/** Writes the record of a string instruction; false if it is none. The source's segment base is the record's base. */
export function planString(
  name: string,
  instruction: Instruction,
  line: Line,
  handler: HandlerNumber,
): boolean {
  const match = STRING.exec(name);
  if (!match) return false;
  const { OpKind, Register } = iced();
  const operation = match[1]!.toLowerCase();
  const compares = operation === 'cmps' || operation === 'scas';
  const kinds = [instruction.opKind(0), instruction.opKind(1)];
  if (kinds.includes(OpKind.Register) && (operation === 'movs' || operation === 'cmps')) return false;
  if (kinds.includes(OpKind.Immediate8)) return false;
  const short = kinds.some((kind) => kind === OpKind.MemorySegESI || kind === OpKind.MemoryESEDI);
  let prefix = '';
  if (instruction.hasRepePrefix) prefix = compares ? 'repe ' : 'rep ';
  else if (instruction.hasRepnePrefix) prefix = compares ? 'repne ' : 'rep ';
  const number = handler(`${prefix}${operation}${short ? ' short' : ''}.${SIZES[match[2]!]}`);
  if (number === undefined) return false;
  const segment = instruction.memorySegment;
  const base =
    segment === Register.FS ? SEGMENT_BASE.FS : segment === Register.GS ? SEGMENT_BASE.GS : NO_ADDRESS.base;
  line.add(number, { ...NO_ADDRESS, base });
  return true;
}
