/**
 * Near branches with operand size 66 in 64-bit mode, which AMD's cores honour (APM volume 3: CALL, JMP, Jcc, LOOPcc, JrCXZ, RET): RIP is cut to 16 bits where the branch
 * is taken, and CALL and RET move 16 bits. Compilers emit none.
 */
import { RFLAGS } from '../../../abi/x86.ts';
import { ProcessorStack } from '../processor-stack.ts';
import { GPR } from '../state.ts';
import type { SystemInstruction } from './instruction.ts';

/** NUMBER of a NEAR16 record; a condition's code is added to CONDITION. */
export const NEAR16 = {
  JMP: 0,
  CALL: 1,
  RET: 2,
  LOOP: 3,
  LOOPE: 4,
  LOOPNE: 5,
  JRCXZ: 6,
  CONDITION: 16,
} as const;

/** Whether condition `code` (0 O, 1 NO, 2 B … 15 G) holds. */
export function holds(flags: number, code: number): boolean {
  const zero = (flags & RFLAGS.ZF) !== 0;
  const carry = (flags & RFLAGS.CF) !== 0;
  const less = ((flags & RFLAGS.SF) !== 0) !== ((flags & RFLAGS.OF) !== 0);
  const positive = [
    (flags & RFLAGS.OF) !== 0,
    carry,
    zero,
    carry || zero,
    (flags & RFLAGS.SF) !== 0,
    (flags & RFLAGS.PF) !== 0,
    less,
    less || zero,
  ][code >> 1]!;
  return positive !== ((code & 1) === 1);
}

/** SIZE 0: A0 is a displacement, else the target. ADDRESS_SIZE: bytes of the counter. RET: A1 is what it releases. */
export function narrowBranch(i: SystemInstruction): number {
  const { registers } = i.parts;
  const kind = i.number;
  const target = (): bigint => (i.size === 0 ? i.nextRip + i.operand : i.operand) & 0xffffn;
  if (kind >= NEAR16.CONDITION) {
    if (!holds(registers.rflags, kind - NEAR16.CONDITION)) return i.next();
  } else if (kind === NEAR16.RET) return narrowReturn(i);
  else if (kind === NEAR16.CALL) {
    const stack = new ProcessorStack(i.parts).current();
    const reason = stack.push(i.nextRip & 0xffffn, 2);
    if (reason !== 0) return reason;
    const to = target();
    stack.commit();
    return i.resumeAt(to);
  } else if (kind !== NEAR16.JMP && !counts(i, kind)) return i.next();
  return i.resumeAt(target());
}

function narrowReturn(i: SystemInstruction): number {
  const stack = new ProcessorStack(i.parts).current();
  const reason = stack.pop(2);
  if (reason !== 0) return reason;
  stack.release(i.second & 0xffff);
  stack.commit();
  return i.resumeAt(stack.value);
}

/** LOOPcc and JrCXZ: counts, and says whether the branch is taken. */
function counts(i: SystemInstruction, kind: number): boolean {
  const { registers } = i.parts;
  const bits = 8 * i.addressSize;
  const counter = BigInt.asUintN(bits, registers.gpr(GPR.RCX));
  if (kind === NEAR16.JRCXZ) return counter === 0n;
  const count = BigInt.asUintN(bits, counter - 1n);
  registers.setGpr(GPR.RCX, count);
  const equal = (registers.rflags & RFLAGS.ZF) !== 0;
  return count !== 0n && (kind === NEAR16.LOOP || equal === (kind === NEAR16.LOOPE));
}
