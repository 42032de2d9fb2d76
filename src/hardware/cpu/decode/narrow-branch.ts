/** Near branches with operand size 66 in 64-bit mode (system/narrow-branches.ts) become `system` records. REX.W overrides the prefix. */
import { CONDITIONS } from '../semantics/flags.ts';
import { STATE } from '../state.ts';
import { NEAR16 } from '../system/narrow-branches.ts';
import { type Instruction, iced } from './iced.ts';
import type { Line } from './line.ts';
import { effectiveAddress, type HandlerNumber, memoryOperand } from './operands.ts';
import { registers } from './registers.ts';
import { addSystem } from './system.ts';

const KINDS: Readonly<Record<string, number>> = {
  ...Object.fromEntries(
    CONDITIONS.map(([name, code]) => [`J${name.toLowerCase()}`, NEAR16.CONDITION + code]),
  ),
  Jmp: NEAR16.JMP,
  Call: NEAR16.CALL,
  Ret: NEAR16.RET,
  Loop: NEAR16.LOOP,
  Loope: NEAR16.LOOPE,
  Loopne: NEAR16.LOOPNE,
  Jecxz: NEAR16.JRCXZ,
  Jrcxz: NEAR16.JRCXZ,
};

/** Writes the records of such a branch, whose IP is its offset in its page; false if it is none. */
export function planNarrowBranch(
  name: string,
  instruction: Instruction,
  line: Line,
  handler: HandlerNumber,
): boolean {
  const kind = KINDS[name];
  if (kind === undefined) return false;
  const { Code, OpKind } = iced();
  const { code } = instruction;
  if (kind === NEAR16.RET) {
    if (code !== Code.Retnw && code !== Code.Retnw_imm16) return false;
    addSystem(line, handler, 'NEAR16', 2, kind);
    line.immediate(instruction.opCount > 0 ? instruction.immediate(0) & 0xffffn : 0n);
    line.immediateOperand(1);
  } else if (instruction.opKind(0) === OpKind.NearBranch16) {
    const counter = /_ECX$|^Jecxz/.test(Code[code]!) ? 4 : 8;
    addSystem(line, handler, 'NEAR16', 0, kind, 0, counter);
    const displacement = instruction.nearBranch16 - Number(instruction.ip) - instruction.length;
    line.immediate(BigInt(displacement) & 0xffffn);
    line.immediateOperand(0);
  } else if (code === Code.Jmp_rm16 || code === Code.Call_rm16) {
    const inMemory = memoryOperand(instruction) >= 0;
    if (inMemory) {
      line.add(handler('load.16')!, effectiveAddress(instruction, line, handler));
      line.operand(0, STATE.TEMP0);
    }
    addSystem(line, handler, 'NEAR16', 2, kind);
    line.operand(0, inMemory ? STATE.TEMP0 : registers().places.get(instruction.opRegister(0))!.offset);
  } else return false;
  return true;
}
