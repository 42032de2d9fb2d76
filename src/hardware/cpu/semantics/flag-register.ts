/** RFLAGS as one word, and the instructions that set single flags (APM volume 3: LAHF, SAHF, CLC, STC, CMC, CLD, STD). */
import { GPR, STATE } from '../state.ts';
import { type I64, i64 } from '../wasm/value.ts';
import { condition } from './flags.ts';
import type { Group, Instruction, OperandContext } from './operation.ts';

const CARRY = -1n << 63n;
const DF = 1n << 10n;

const flag = (c: OperandContext, code: number, bit: number): I64 =>
  i64.shl(i64.fromI32U(condition(c, code)), bit);

/** SF ZF AF PF CF where RFLAGS has them. */
function lowFlags(c: OperandContext): I64 {
  const adjust = i64.and(i64.shl(c.state(STATE.FLAG_CV), 1), 0x10);
  const parts = [flag(c, 2, 0), flag(c, 10, 2), adjust, flag(c, 4, 6), flag(c, 8, 7)];
  return parts.reduce((sum, part) => i64.or(sum, part));
}

/** All of RFLAGS. */
export function composeFlags(c: OperandContext): I64 {
  return i64.or(i64.or(lowFlags(c), flag(c, 0, 11)), c.state(STATE.FLAGS_REST));
}

function loadHighByte(c: OperandContext): void {
  const rest = c.readRegisterUnsigned(GPR.RAX, 16);
  const byte = i64.or(lowFlags(c), 2);
  c.writeRegister(GPR.RAX, i64.or(i64.and(rest, 0xff), i64.shl(byte, 8)), 16);
}

function storeHighByte(c: OperandContext): void {
  const byte = c.code.let(i64.shrU(c.readRegisterUnsigned(GPR.RAX, 16), 8));
  const bit = (n: number) => i64.and(i64.shrU(byte, n), 1);
  c.setState(STATE.FLAG_ZR, i64.xor(bit(6), 1));
  c.setState(STATE.FLAG_SR, i64.or(i64.shl(bit(7), 63), i64.xor(bit(2), 1)));
  c.setState(STATE.FLAG_CV, i64.or(i64.shl(bit(0), 63), i64.shl(bit(4), 3)));
}

const change = (offset: number, how: (old: I64) => I64) => ({
  sizes: [64] as const,
  emit: (c: OperandContext) => c.setState(offset, how(c.state(offset))),
});
const plain = (operation: string): Instruction => ({ operation, roles: [], size: 64 });

export const flagRegister: Group = {
  operations: {
    lahf: { sizes: [64], emit: loadHighByte },
    sahf: { sizes: [64], emit: storeHighByte },
    clc: change(STATE.FLAG_CV, (old) => i64.and(old, ~CARRY)),
    stc: change(STATE.FLAG_CV, (old) => i64.or(old, CARRY)),
    cmc: change(STATE.FLAG_CV, (old) => i64.xor(old, CARRY)),
    cld: change(STATE.FLAGS_REST, (old) => i64.and(old, ~DF)),
    std: change(STATE.FLAGS_REST, (old) => i64.or(old, DF)),
  },
  instructions: {
    Lahf: plain('lahf'),
    Sahf: plain('sahf'),
    Clc: plain('clc'),
    Stc: plain('stc'),
    Cmc: plain('cmc'),
    Cld: plain('cld'),
    Std: plain('std'),
  },
};
