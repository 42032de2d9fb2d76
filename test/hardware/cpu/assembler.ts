/** Guest code for tests of the core, put together with iced-x86's encoder: one function an instruction form that a test needs. */
import { createRequire } from 'node:module';
import type * as Iced from 'iced-x86';

export const iced = createRequire(import.meta.url)('iced-x86') as typeof Iced;
export const { Code, Register } = iced;
const { Encoder, Instruction, MemoryOperand, RepPrefixKind } = iced;

export type Register64 = 'rax' | 'rcx' | 'rdx' | 'rbx' | 'rsp' | 'rbp' | 'rsi' | 'rdi' | 'r11';
const NUMBERS: Record<Register64, Iced.Register> = {
  rax: Register.RAX,
  rcx: Register.RCX,
  rdx: Register.RDX,
  rbx: Register.RBX,
  rsp: Register.RSP,
  rbp: Register.RBP,
  rsi: Register.RSI,
  rdi: Register.RDI,
  r11: Register.R11,
};
export const register = (name: Register64): Iced.Register => NUMBERS[name];
const at = (base: Register64, displacement = 0) =>
  MemoryOperand.createBaseDispl(NUMBERS[base], BigInt(displacement));

/** An instruction without operands, by its iced code. */
export const op = (code: Iced.Code) => Instruction.create(code);
export const set = (name: Register64, value: bigint | number) =>
  Instruction.createRegU64(Code.Mov_r64_imm64, NUMBERS[name], BigInt.asUintN(64, BigInt(value)));
export const move = (to: Register64, from: Register64) =>
  Instruction.createRegReg(Code.Mov_r64_rm64, NUMBERS[to], NUMBERS[from]);
/** register = the u64 at [base + displacement] */
export const load = (to: Register64, base: Register64, displacement = 0) =>
  Instruction.createRegMem(Code.Mov_r64_rm64, NUMBERS[to], at(base, displacement));
export const store = (base: Register64, from: Register64, displacement = 0) =>
  Instruction.createMemReg(Code.Mov_rm64_r64, at(base, displacement), NUMBERS[from]);
/** [base] += from */
export const addTo = (base: Register64, from: Register64) =>
  Instruction.createMemReg(Code.Add_rm64_r64, at(base), NUMBERS[from]);
export const storeByte = (base: Register64, value: number) =>
  Instruction.createMemI32(Code.Mov_rm8_imm8, at(base), value);
export const push = (from: Register64) => Instruction.createReg(Code.Push_r64, NUMBERS[from]);
export const pop = (to: Register64) => Instruction.createReg(Code.Pop_r64, NUMBERS[to]);
export const jump = (to: Register64) => Instruction.createReg(Code.Jmp_rm64, NUMBERS[to]);
export const call = (to: Register64) => Instruction.createReg(Code.Call_rm64, NUMBERS[to]);
/** An instruction on one memory operand: LGDT, INVLPG. */
export const onMemory = (code: Iced.Code, base: Register64, displacement = 0) =>
  Instruction.createMem(code, at(base, displacement));
export const onRegister = (code: Iced.Code, name: Iced.Register) => Instruction.createReg(code, name);
export const two = (code: Iced.Code, first: Iced.Register, second: Iced.Register) =>
  Instruction.createRegReg(code, first, second);
export const withNumber = (code: Iced.Code, number: number) => Instruction.createI32(code, number);
export const out8 = () => two(Code.Out_DX_AL, Register.DX, Register.AL);
/** REP OUTSB, and INSW. */
export const outString = (size: 8) => Instruction.createOutsb(size * 8, Register.None, RepPrefixKind.Repe);
export const inString = (size: 16) => Instruction.createInsw(size * 4, RepPrefixKind.None);
export const hlt = () => op(Code.Hlt);
export const nop = () => op(Code.Nopd);

/** The bytes of `program` at address `rip`. */
export function assemble(program: readonly Iced.Instruction[], rip: number): Uint8Array {
  const encoder = new Encoder(64);
  let address = BigInt(rip);
  for (const instruction of program) address += BigInt(encoder.encode(instruction, address));
  return encoder.takeBuffer();
}
