/**
 * From one instruction to its records: the operation by the groups' tables, its operands by their roles, and loads and stores
 * around it where the operation has no form for the memory operand.
 */
import { RECORD, SYSTEM } from '../record.ts';
import { GROUPS } from '../semantics/groups.ts';
import type { Instruction as Description, Role } from '../semantics/operation.ts';
import { stringCompareSteps } from '../semantics/string-compare.ts';
import { STATE } from '../state.ts';
import { VECTOR_MODE } from '../vector-mode.ts';
import { type Instruction, iced } from './iced.ts';
import type { AddressParts, Line } from './line.ts';
import { effectiveAddress, type HandlerNumber, memoryOperand, operandSizes } from './operands.ts';
import { registers, SEGMENT_BASE } from './registers.ts';
import { addSystem } from './system.ts';

const DESCRIPTIONS: Readonly<Record<string, Description>> = Object.assign(
  {},
  ...GROUPS.map(({ instructions }) => instructions),
);

/** Writes the records of an instruction that a group describes; false if none does, or not with these operands. */
export function planDescribed(
  name: string,
  instruction: Instruction,
  line: Line,
  handler: HandlerNumber,
): boolean {
  const description = DESCRIPTIONS[name];
  if (!description) return false;
  const sizes = operandSizes(instruction);
  const operation =
    typeof description.operation === 'string'
      ? description.operation
      : description.operation(sizes, lastByte(instruction));
  const size = description.size ?? operationSize(instruction, sizes);
  if (operation === 'compareStrings') return planStringCompare(name, instruction, line, handler);
  if (!registersKnown(instruction, description)) return false;
  const memory = memoryOperand(instruction);
  const role = memory < 0 ? undefined : description.roles[memory];
  const plan = { operation: `${operation}.${size}`, size, description, instruction, line, handler };
  if (operation === 'maskmovdqu') return planMaskedStore(plan);
  if (role === undefined || role.access === 'none') return planRegisters(plan);
  if (operation === 'cmpxchg16b') return planWideExchange(plan);
  if (isFarBit(name, instruction)) return planFarBit(plan, role);
  if (role.access === 'address') return planAddress(plan);
  const aligned = description.aligned ? 'Aligned' : '';
  const direct = handler(`${operation}${aligned}.${size}.memory${memory}`);
  if (direct === undefined) return planAround(plan, role);
  line.add(direct, effectiveAddress(instruction, line, handler));
  setOperands(plan, description.float ? STATE.XTEMP0 : undefined);
  setFloat(plan);
  return true;
}

/** In a mode in which XMM registers are not to be used, the record of an instruction that does, or MXCSR; false for all others. */
export function planUnavailable(
  name: string,
  mode: number,
  instruction: Instruction,
  line: Line,
  handler: HandlerNumber,
): boolean {
  if (mode === VECTOR_MODE.AVAILABLE) return false;
  const usesVectors = DESCRIPTIONS[name] && operandsInVectors(instruction);
  if (!usesVectors && name !== 'Ldmxcsr' && name !== 'Stmxcsr') return false;
  addSystem(line, handler, mode === VECTOR_MODE.UNDEFINED ? 'UD' : 'NM', 0);
  return true;
}

function operandsInVectors(instruction: Instruction): boolean {
  const { OpKind, Register } = iced();
  for (let k = 0; k < instruction.opCount; k++) {
    if (instruction.opKind(k) !== OpKind.Register) continue;
    const register = instruction.opRegister(k);
    if (register >= Register.XMM0 && register <= Register.XMM15) return true;
  }
  return false;
}

/** The last operand if it is an 8-bit immediate, else 0. */
function lastByte(instruction: Instruction): number {
  const last = instruction.opCount - 1;
  const isByte = last >= 0 && instruction.opKind(last) === iced().OpKind.Immediate8;
  return isByte ? Number(instruction.immediate(last)) : 0;
}

interface Plan {
  readonly operation: string;
  readonly size: number;
  readonly description: Description;
  readonly instruction: Instruction;
  readonly line: Line;
  readonly handler: HandlerNumber;
}

/** Operand 0's size; ENTER, LEAVE and PUSH of an immediate have none and take that of the stack slot. */
function operationSize(instruction: Instruction, sizes: readonly number[]): number {
  const { Code } = iced();
  if (instruction.code === Code.Leavew || instruction.code === Code.Enterw_imm16_imm8) return 16;
  if (sizes[0] !== 0) return sizes[0] ?? 64;
  return instruction.code === Code.Push_imm16 || instruction.code === Code.Pushw_imm8 ? 16 : 64;
}

/** False for an operand in a register that no description means (MMX, for one). */
function registersKnown(instruction: Instruction, { roles }: Description): boolean {
  const { OpKind } = iced();
  for (let k = 0; k < instruction.opCount; k++) {
    if (instruction.opKind(k) !== OpKind.Register) continue;
    if (roles.length > 0 && !registers().places.has(instruction.opRegister(k))) return false;
  }
  return true;
}

function planRegisters(plan: Plan): boolean {
  const number = plan.handler(plan.operation);
  if (number === undefined) return false;
  plan.line.add(number);
  setOperands(plan, undefined);
  setFloat(plan);
  return true;
}

function planAddress(plan: Plan): boolean {
  const number = plan.handler(plan.operation);
  if (number === undefined) return false;
  const segmented = plan.operation.startsWith('lea.') ? { segmented: false } : { segmented: true };
  plan.line.add(number, effectiveAddress(plan.instruction, plan.line, plan.handler, segmented));
  setOperands(plan, undefined);
  return true;
}

const AT_TEMP_EA: AddressParts = { base: STATE.TEMP_EA, index: STATE.ZERO, scale: 0, displacement: 0n };

/** A bit far from the operand's address: `locateBit` says where it lies, and the rest works there. */
function planFarBit(plan: Plan, role: Role): boolean {
  const { instruction, line, handler } = plan;
  line.add(handler(`locateBit.${plan.size}`)!, effectiveAddress(instruction, line, handler));
  line.operand(1, registers().places.get(instruction.opRegister(1))!.offset);
  return planAround(plan, role, AT_TEMP_EA);
}

const BIT_TEST = /^Bt[src]?$/;
/** A bit test in memory with its index in a register; outside 64-bit mode the linear address is the bit's already. */
const isFarBit = (name: string, instruction: Instruction): boolean =>
  BIT_TEST.test(name) &&
  instruction.opKind(1) === iced().OpKind.Register &&
  instruction.memoryBase !== registers().linear;

/** CMPXCHG16B works on XTEMP0 and leaves in XTEMP1 what is to be stored. */
function planWideExchange({ instruction, line, handler }: Plan): boolean {
  line.add(handler('loadVectorForWrite.128.memory0')!, effectiveAddress(instruction, line, handler));
  line.add(handler('cmpxchg16b.64')!);
  line.add(handler('storeVector.128.memory0')!, AT_TEMP_EA);
  line.operand(1, STATE.XTEMP1);
  return true;
}

/** MASKMOVDQU: its memory operand is implied, at rDI with a segment. */
function planMaskedStore({ instruction, line, handler }: Plan): boolean {
  const { OpKind, Register } = iced();
  const short = instruction.opKind(0) === OpKind.MemorySegEDI;
  let address: AddressParts = { base: RDI, index: STATE.ZERO, scale: 0, displacement: 0n };
  if (short) {
    line.add(handler('ea.32')!, address);
    address = AT_TEMP_EA;
  }
  const { memorySegment: segment } = instruction;
  if (segment === Register.FS) address = { ...address, index: SEGMENT_BASE.FS };
  if (segment === Register.GS) address = { ...address, index: SEGMENT_BASE.GS };
  line.add(handler('maskmovdqu.128')!, address);
  for (const k of [1, 2]) line.operand(k, registers().places.get(instruction.opRegister(k))!.offset);
  return true;
}
const RDI = STATE.GPR + 8 * 7;

/** PCMPESTRI and its like: a load, and three records on the same operands. Memory need not be aligned. */
function planStringCompare(
  name: string,
  instruction: Instruction,
  line: Line,
  handler: HandlerNumber,
): boolean {
  const { places } = registers();
  const inMemory = memoryOperand(instruction) >= 0;
  if (inMemory) {
    line.add(handler('loadVector.128.memory1')!, effectiveAddress(instruction, line, handler));
    line.operand(0, STATE.XTEMP0);
  }
  for (const step of stringCompareSteps(name, lastByte(instruction))) {
    line.add(handler(step)!);
    line.operand(0, places.get(instruction.opRegister(0))!.offset);
    line.operand(1, inMemory ? STATE.XTEMP0 : places.get(instruction.opRegister(1))!.offset);
    line.immediate(instruction.immediate(2));
  }
  return true;
}

/** A load before, a store after, and a temporary in the place of the memory operand. */
function planAround(plan: Plan, role: Role, at?: AddressParts): boolean {
  const { line, handler, description } = plan;
  const number = handler(plan.operation);
  if (number === undefined) return false;
  const size = role.own ? operandSizes(plan.instruction)[1]! : (role.size ?? plan.size);
  const vector = size === 128;
  const place = vector ? STATE.XTEMP0 : STATE.TEMP0;
  const aligned = description.aligned ? 'Aligned' : '';
  let address = at ?? effectiveAddress(plan.instruction, line, handler);
  if (role.access === 'update') {
    line.add(handler(`loadForWrite.${size}.memory0`)!, address);
    address = AT_TEMP_EA;
  } else if (role.access === 'read') {
    line.add(handler(vector ? `loadVector${aligned}.128.memory1` : `load.${size}`)!, address);
    line.operand(0, place);
  }
  line.add(number);
  setOperands(plan, place);
  setFloat(plan);
  if (role.access === 'read') return true;
  line.add(handler(vector ? `storeVector${aligned}.128.memory0` : `store.${size}.memory0`)!, address);
  line.operand(1, place);
  return true;
}

/** What the slow path is asked if the operation leaves the instruction to it; a memory operand is in XTEMP0 then. */
function setFloat({ description, instruction, line }: Plan): void {
  if (!description.float) return;
  line.word(RECORD.SYSTEM, SYSTEM.FLOAT);
  line.word(RECORD.SIZE, description.float(operandSizes(instruction)) << 8);
}

/** Addresses of the operands of the record just added; a memory operand is at `temporary`, or found by its address. */
function setOperands({ description, instruction, line }: Plan, temporary: number | undefined): void {
  const { OpKind } = iced();
  let immediates = 0;
  for (let k = 0; k < instruction.opCount && k < description.roles.length; k++) {
    const kind = instruction.opKind(k);
    if (kind === OpKind.Memory) {
      if (temporary !== undefined) line.operand(k, temporary);
    } else if (kind === OpKind.Register) {
      line.operand(k, registers().places.get(instruction.opRegister(k))!.offset);
    } else if (immediates++ === 0) {
      line.immediate(instruction.immediate(k));
      line.immediateOperand(k);
    } else {
      line.word(RECORD.IMMEDIATE + 4, Number(BigInt.asIntN(32, instruction.immediate(k))));
      line.immediateOperand(k, 4);
    }
  }
}
