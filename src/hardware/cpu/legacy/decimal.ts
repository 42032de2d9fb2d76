/** BCD arithmetic and SALC, which 64-bit mode does not have (APM volume 3: DAA, DAS, AAA, AAS, AAM, AAD; flags as the manual defines them). */
import { RFLAGS, VECTOR } from '../../../abi/x86.ts';
import { parityFlag } from '../registers.ts';
import { GPR } from '../state.ts';
import type { LegacyInstruction } from './instructions.ts';
import type { Operands } from './operands.ts';

const RESULT = RFLAGS.ZF | RFLAGS.SF | RFLAGS.PF;

const flag = (o: Operands, mask: number): boolean => (o.parts.registers.rflags & mask) !== 0;
const accumulator = (o: Operands): number => Number(o.parts.registers.gpr(GPR.RAX) & 0xffffn);

function setAccumulator(o: Operands, ax: number): void {
  const { registers } = o.parts;
  registers.setGpr(GPR.RAX, (registers.gpr(GPR.RAX) & ~0xffffn) | BigInt(ax & 0xffff));
}

/** ZF, SF and PF of AL, and CF and AF where they are given. */
function setFlags(o: Operands, al: number, carries?: { carry: boolean; adjust: boolean }): void {
  const { registers } = o.parts;
  let flags = (registers.rflags & ~RESULT) | parityFlag(al);
  if ((al & 0xff) === 0) flags |= RFLAGS.ZF;
  if ((al & 0x80) !== 0) flags |= RFLAGS.SF;
  if (carries !== undefined) {
    flags &= ~(RFLAGS.CF | RFLAGS.AF);
    if (carries.carry) flags |= RFLAGS.CF;
    if (carries.adjust) flags |= RFLAGS.AF;
  }
  registers.rflags = flags;
}

const packed =
  (sign: 1 | -1): LegacyInstruction =>
  (o) => {
    const ax = accumulator(o);
    const old = ax & 0xff;
    let al = old;
    const adjust = (old & 15) > 9 || flag(o, RFLAGS.AF);
    let carry = flag(o, RFLAGS.CF);
    const high = old > 0x99 || carry;
    if (adjust) {
      carry ||= sign < 0 && old < 6;
      al += 6 * sign;
    }
    if (high) al += 0x60 * sign;
    setAccumulator(o, (ax & 0xff00) | (al & 0xff));
    setFlags(o, al, { carry: sign > 0 ? high : high || carry, adjust });
    return 0;
  };

const unpacked =
  (sign: 1 | -1): LegacyInstruction =>
  (o) => {
    const ax = accumulator(o);
    const adjust = (ax & 15) > 9 || flag(o, RFLAGS.AF);
    const changed = adjust ? ax + 0x106 * sign : ax;
    setAccumulator(o, changed & 0xff0f);
    setFlags(o, changed & 15, { carry: adjust, adjust });
    return 0;
  };

function divideByBase(o: Operands): number {
  const base = Number(o.instruction.immediate(0)) & 0xff;
  if (base === 0) return o.parts.events.raise(VECTOR.DE);
  const al = accumulator(o) & 0xff;
  setAccumulator(o, (Math.floor(al / base) << 8) | (al % base));
  setFlags(o, al % base);
  return 0;
}

function multiplyByBase(o: Operands): number {
  const base = Number(o.instruction.immediate(0)) & 0xff;
  const ax = accumulator(o);
  const al = ((ax & 0xff) + (ax >> 8) * base) & 0xff;
  setAccumulator(o, al);
  setFlags(o, al);
  return 0;
}

function setByCarry(o: Operands): number {
  setAccumulator(o, (accumulator(o) & 0xff00) | (flag(o, RFLAGS.CF) ? 0xff : 0));
  return 0;
}

/** By iced's mnemonic. */
export const DECIMAL: Readonly<Record<string, LegacyInstruction>> = {
  Daa: packed(1),
  Das: packed(-1),
  Aaa: unpacked(1),
  Aas: unpacked(-1),
  Aam: divideByBase,
  Aad: multiplyByBase,
  Salc: setByCarry,
};
