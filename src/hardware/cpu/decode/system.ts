/** Instructions that become `system` records: mnemonic to what the slow path is asked, and how to find its operand. */
import { SAVE } from '../../../abi/vmcb.ts';
import { RECORD, SYSTEM, type SystemName } from '../record.ts';
import { STATE } from '../state.ts';
import { type Instruction, iced } from './iced.ts';
import { type Line, NO_ADDRESS } from './line.ts';
import { effectiveAddress, type HandlerNumber, memoryOperand, operandSizes } from './operands.ts';
import { registers, SEGMENT_BASE } from './registers.ts';

/**
 * `none`: no explicit operand. `address`: the memory operand's linear address. `read`, `write`: operand 0 as a value.
 * `result`: operand 0 is written from operand 1.
 */
type Operand = 'none' | 'address' | 'read' | 'write' | 'result';

interface Row {
  readonly system: SystemName;
  readonly operand: Operand;
  /** Bytes, where the operands do not say it. */
  readonly size?: number;
}

const row = (system: SystemName, operand: Operand = 'none', size?: number): Row =>
  size === undefined ? { system, operand } : { system, operand, size };

const ROWS: Readonly<Record<string, Row>> = {
  Ud0: row('UD'),
  Ud1: row('UD'),
  Ud2: row('UD'),
  Cpuid: row('CPUID'),
  Rdmsr: row('RDMSR'),
  Wrmsr: row('WRMSR'),
  Rdtsc: row('RDTSC'),
  Rdtscp: row('RDTSCP'),
  Rdpmc: row('RDPMC'),
  Rdrand: row('RDRAND', 'write'),
  Rdseed: row('RDSEED', 'write'),
  Rdpid: row('RDPID', 'write'),
  Hlt: row('HLT'),
  Vmcall: row('VMCALL'),
  Vmmcall: row('VMMCALL'),
  Clts: row('CLTS'),
  Lmsw: row('LMSW', 'read', 2),
  Smsw: row('SMSW', 'write'),
  Lgdt: row('LGDT', 'address'),
  Lidt: row('LIDT', 'address'),
  Sgdt: row('SGDT', 'address'),
  Sidt: row('SIDT', 'address'),
  Lldt: row('LLDT', 'read', 2),
  Ltr: row('LTR', 'read', 2),
  Sldt: row('SLDT', 'write'),
  Str: row('STR', 'write'),
  Invlpg: row('INVLPG', 'address'),
  Invlpga: row('INVLPGA'),
  Invd: row('INVD'),
  Wbinvd: row('WBINVD'),
  Wbnoinvd: row('WBINVD'),
  Iretq: row('IRET', 'none', 8),
  Iretd: row('IRET', 'none', 4),
  Iret: row('IRET', 'none', 2),
  Int3: row('INT3'),
  Into: row('INTO'),
  Int1: row('INT1'),
  Syscall: row('SYSCALL'),
  Sysretq: row('SYSRET', 'none', 8),
  Sysret: row('SYSRET', 'none', 4),
  Sysenter: row('SYSENTER'),
  Sysexit: row('SYSEXIT'),
  Sysexitq: row('SYSEXIT', 'none', 8),
  Swapgs: row('SWAPGS'),
  Xgetbv: row('XGETBV'),
  Xsetbv: row('XSETBV'),
  Cli: row('CLI'),
  Sti: row('STI'),
  Clac: row('CLAC'),
  Stac: row('STAC'),
  Rdfsbase: row('RDFSBASE', 'write'),
  Rdgsbase: row('RDGSBASE', 'write'),
  Wrfsbase: row('WRFSBASE', 'read'),
  Wrgsbase: row('WRGSBASE', 'read'),
  Rsm: row('RSM'),
  Vmrun: row('VMRUN'),
  Vmload: row('VMLOAD'),
  Vmsave: row('VMSAVE'),
  Stgi: row('STGI'),
  Clgi: row('CLGI'),
  Skinit: row('SKINIT'),
  Lar: row('LAR', 'result'),
  Lsl: row('LSL', 'result'),
  Verr: row('VERR', 'read', 2),
  Verw: row('VERW', 'read', 2),
  Pause: row('PAUSE'),
  Monitor: row('MONITOR'),
  Mwait: row('MWAIT'),
  Clflush: row('CLFLUSH', 'address'),
  Clflushopt: row('CLFLUSH', 'address'),
  Clwb: row('CLFLUSH', 'address'),
  Fxsave: row('FXSAVE', 'address', 4),
  Fxsave64: row('FXSAVE', 'address', 8),
  Fxrstor: row('FXRSTOR', 'address', 4),
  Fxrstor64: row('FXRSTOR', 'address', 8),
  Xsave: row('XSAVE', 'address', 4),
  Xsave64: row('XSAVE', 'address', 8),
  Xrstor: row('XRSTOR', 'address', 4),
  Xrstor64: row('XRSTOR', 'address', 8),
  Xsaveopt: row('XSAVEOPT', 'address', 4),
  Xsaveopt64: row('XSAVEOPT', 'address', 8),
  Xsavec: row('XSAVEC', 'address', 4),
  Xsavec64: row('XSAVEC', 'address', 8),
  Fninit: row('FNINIT'),
  Fnclex: row('FNCLEX'),
  Fnstcw: row('FNSTCW', 'address', 2),
  Fldcw: row('FLDCW', 'address', 2),
  Wait: row('WAIT'),
  Ldmxcsr: row('LDMXCSR', 'read', 4),
  Stmxcsr: row('STMXCSR', 'write', 4),
  Pvalidate: row('PVALIDATE'),
  Pvalidated: row('PVALIDATE'),
  Pvalidateq: row('PVALIDATE'),
  Rmpadjust: row('RMPADJUST'),
  Rmpquery: row('RMPQUERY'),
  Vmgexit: row('VMGEXIT'),
};

const INS: Readonly<Record<string, number>> = { Insb: 1, Insw: 2, Insd: 4 };
const OUTS: Readonly<Record<string, number>> = { Outsb: 1, Outsw: 2, Outsd: 4 };

/** What of an instruction's prefixes its decoded form does not say. */
export interface Prefixes {
  readonly rexW: boolean;
}

/** Writes the records of a system instruction; false if it is none. */
export function planSystem(
  name: string,
  instruction: Instruction,
  line: Line,
  handler: HandlerNumber,
  prefixes: Prefixes,
): boolean {
  const planned = ROWS[name];
  if (planned) planRow(planned, instruction, line, handler);
  else if (name === 'In' || name === 'Out') planPort(name, instruction, line, handler);
  else if (name === 'Fnstsw') planStatusWord(instruction, line, handler);
  else if (INS[name] !== undefined) planPortString('INS', INS[name], instruction, line, handler);
  else if (OUTS[name] !== undefined) planPortString('OUTS', OUTS[name], instruction, line, handler);
  else if (name === 'Int') {
    addSystem(line, handler, 'INT', 0, Number(instruction.immediate(0) & 0xffn));
  } else if (FAR_POINTER[name] !== undefined) {
    planFarPointer(FAR_POINTER[name], instruction, line, handler);
  } else if ((name === 'Jmp' || name === 'Call') && isFarPointer(instruction)) {
    planFarTransfer(name, instruction, line, handler, prefixes);
  } else if (name === 'Retf') planFarReturn(instruction, line, handler);
  else if (name === 'Popfq' || name === 'Popf') planPopFlags(name === 'Popfq' ? 64 : 16, line, handler);
  else if (name === 'Mov' || name === 'Push' || name === 'Pop') {
    return planSpecialRegister(name, instruction, line, handler);
  } else return false;
  return true;
}

/** Appends a `system` record. */
export function addSystem(
  line: Line,
  handler: HandlerNumber,
  system: SystemName,
  size: number,
  number = 0,
  repeats = 0,
  addressSize = 8,
): void {
  line.add(handler('system')!);
  line.word(RECORD.SYSTEM, SYSTEM[system]);
  line.word(RECORD.SIZE, size | (number << 8) | (repeats << 16) | (addressSize << 24));
}

function planRow(
  { system, operand, size }: Row,
  instruction: Instruction,
  line: Line,
  handler: HandlerNumber,
): void {
  const memory = memoryOperand(instruction);
  const sizes = operandSizes(instruction);
  const bytes = size ?? (sizes[0] ?? 64) / 8;
  if (operand === 'address') {
    const { Code } = iced();
    const { code } = instruction;
    line.add(handler('ea.64')!, effectiveAddress(instruction, line, handler));
    // With 16-bit operands a descriptor table's base has 24 bits.
    const narrow = code === Code.Lgdt_m1632_16 || code === Code.Lidt_m1632_16;
    addSystem(line, handler, system, narrow ? 5 : bytes);
  } else if (operand === 'none') {
    addSystem(line, handler, system, bytes);
  } else if (operand === 'result') {
    const source = placeOrLoad(instruction, 1, 2, line, handler);
    addSystem(line, handler, system, bytes);
    line.operand(0, registers().places.get(instruction.opRegister(0))!.offset);
    line.operand(1, source);
  } else if (operand === 'read') {
    const source = placeOrLoad(instruction, 0, bytes, line, handler);
    addSystem(line, handler, system, bytes);
    line.operand(0, source);
  } else if (memory >= 0) {
    const address = effectiveAddress(instruction, line, handler);
    addSystem(line, handler, system, bytes);
    line.operand(0, STATE.TEMP0);
    line.add(handler(`store.${bytes * 8}.memory0`)!, address);
    line.operand(1, STATE.TEMP0);
  } else {
    addSystem(line, handler, system, bytes);
    line.operand(0, registers().places.get(instruction.opRegister(0))!.offset);
  }
}

/** Offset in the state block of an operand's value; a memory operand of `bytes` is loaded into TEMP0 first. */
function placeOrLoad(
  instruction: Instruction,
  operand: number,
  bytes: number,
  line: Line,
  handler: HandlerNumber,
): number {
  if (memoryOperand(instruction) !== operand) {
    return registers().places.get(instruction.opRegister(operand))!.offset;
  }
  line.add(handler(`load.${bytes * 8}`)!, effectiveAddress(instruction, line, handler));
  line.operand(0, STATE.TEMP0);
  return STATE.TEMP0;
}

function planStatusWord(instruction: Instruction, line: Line, handler: HandlerNumber): void {
  const toMemory = memoryOperand(instruction) >= 0;
  const planned = toMemory ? row('FNSTSW', 'address', 2) : row('FNSTSW_AX', 'write', 2);
  planRow(planned, instruction, line, handler);
}

function planPort(name: 'In' | 'Out', instruction: Instruction, line: Line, handler: HandlerNumber): void {
  const { OpKind } = iced();
  const [accumulator, port] = name === 'In' ? [0, 1] : [1, 0];
  const size = registers().places.get(instruction.opRegister(accumulator))!.size / 8;
  const { CodeSize } = iced();
  const { codeSize } = instruction;
  const addressSize = codeSize === CodeSize.Code64 ? 8 : codeSize === CodeSize.Code32 ? 4 : 2;
  addSystem(line, handler, name === 'In' ? 'IN' : 'OUT', size, 0, 0, addressSize);
  if (instruction.opKind(port) === OpKind.Register) {
    line.operand(1, registers().places.get(instruction.opRegister(port))!.offset);
  } else {
    line.immediate(instruction.immediate(port) & 0xffn);
    line.immediateOperand(1);
  }
}

function planPortString(
  system: 'INS' | 'OUTS',
  size: number,
  instruction: Instruction,
  line: Line,
  handler: HandlerNumber,
): void {
  const { OpKind, Register } = iced();
  const kind = instruction.opKind(system === 'INS' ? 0 : 1);
  const { CodeSize } = iced();
  const short = kind === OpKind.MemorySegESI || kind === OpKind.MemoryESEDI;
  const narrow = kind === OpKind.MemorySegSI || kind === OpKind.MemoryESDI;
  const repeats = instruction.hasRepePrefix || instruction.hasRepnePrefix ? 1 : 0;
  addSystem(line, handler, system, size, 0, repeats, narrow ? 2 : short ? 4 : 8);
  const segment = system === 'INS' ? Register.ES : instruction.memorySegment;
  if (instruction.codeSize !== CodeSize.Code64) {
    line.word(RECORD.BASE, line.state + segmentSelector(registers().numbers.get(segment)!) + 8);
    return;
  }
  if (segment === Register.FS) line.word(RECORD.BASE, line.state + SEGMENT_BASE.FS);
  if (segment === Register.GS) line.word(RECORD.BASE, line.state + SEGMENT_BASE.GS);
}

const FAR_POINTER: Readonly<Record<string, number>> = { Les: 0, Lss: 2, Lds: 3, Lfs: 4, Lgs: 5 };

const isFarPointer = (instruction: Instruction): boolean => {
  const { Code } = iced();
  return [
    ...[Code.Jmp_ptr1616, Code.Jmp_ptr1632, Code.Call_ptr1616, Code.Call_ptr1632],
    ...[Code.Jmp_m1616, Code.Jmp_m1632, Code.Jmp_m1664],
    ...[Code.Call_m1616, Code.Call_m1632, Code.Call_m1664],
  ].includes(instruction.code);
};

/** Loads a pointer's offset into TEMP0, its selector into TEMP1. Returns the offset's bytes: on AMD's cores REX.W does not count. */
function loadFarPointer(instruction: Instruction, line: Line, handler: HandlerNumber): 2 | 4 {
  const { MemorySize } = iced();
  const bytes = instruction.memorySize === MemorySize.SegPtr16 ? 2 : 4;
  const address = effectiveAddress(instruction, line, handler);
  line.add(handler(`load.${bytes * 8}`)!, address);
  line.operand(0, STATE.TEMP0);
  line.add(handler('load.16')!, { ...address, displacement: address.displacement + BigInt(bytes) });
  line.operand(0, STATE.TEMP1);
  return bytes;
}

function planFarTransfer(
  name: 'Jmp' | 'Call',
  instruction: Instruction,
  line: Line,
  handler: HandlerNumber,
  prefixes: Prefixes,
): void {
  const { OpKind } = iced();
  const system = name === 'Jmp' ? 'JMPF' : 'CALLF';
  const kind = instruction.opKind(0);
  if (kind === OpKind.Memory) {
    const bytes = loadFarPointer(instruction, line, handler);
    addSystem(line, handler, system, bytes, prefixes.rexW ? 8 : bytes);
    line.operand(0, STATE.TEMP0);
    line.operand(1, STATE.TEMP1);
    return;
  }
  const wide = kind === OpKind.FarBranch32;
  const offset = wide ? instruction.farBranch32 : instruction.farBranch16;
  addSystem(line, handler, system, wide ? 4 : 2, wide ? 4 : 2);
  line.immediate(BigInt(offset) | (BigInt(instruction.farBranchSelector) << 32n));
  line.immediateOperand(0);
  line.immediateOperand(1, 4);
}

/** LSS and its like: the segment first, which may fault, then the register. */
function planFarPointer(segment: number, instruction: Instruction, line: Line, handler: HandlerNumber): void {
  const bytes = loadFarPointer(instruction, line, handler);
  addSystem(line, handler, 'LOAD_FAR_POINTER', bytes, segment);
  line.operand(0, STATE.TEMP1);
  line.add(handler(`mov.${bytes * 8}`)!);
  line.operand(0, registers().places.get(instruction.opRegister(0))!.offset);
  line.operand(1, STATE.TEMP0);
}

function planFarReturn(instruction: Instruction, line: Line, handler: HandlerNumber): void {
  const { Code } = iced();
  const wide = instruction.code === Code.Retfq || instruction.code === Code.Retfq_imm16;
  const narrow = instruction.code === Code.Retfw || instruction.code === Code.Retfw_imm16;
  addSystem(line, handler, 'RETF', wide ? 8 : narrow ? 2 : 4);
  line.immediate(instruction.opCount > 0 ? instruction.immediate(0) & 0xffffn : 0n);
  line.immediateOperand(1);
}

function planPopFlags(size: 16 | 64, line: Line, handler: HandlerNumber): void {
  line.add(handler(`load.${size}`)!, { ...NO_ADDRESS, base: STATE.GPR + 8 * 4 });
  line.operand(0, STATE.TEMP0);
  addSystem(line, handler, 'POPF', size / 8);
  line.operand(0, STATE.TEMP0);
}

/** MOV, PUSH, POP with a segment, control or debug register. */
function planSpecialRegister(
  name: string,
  instruction: Instruction,
  line: Line,
  handler: HandlerNumber,
): boolean {
  const { OpKind } = iced();
  const { numbers } = registers();
  const special = [0, 1].find(
    (k) =>
      k < instruction.opCount &&
      instruction.opKind(k) === OpKind.Register &&
      numbers.has(instruction.opRegister(k)),
  );
  if (special === undefined) return false;
  const register = instruction.opRegister(special);
  const number = numbers.get(register)!;
  const { Register } = iced();
  if (register >= Register.CR0 && register <= Register.DR15) {
    const control = register <= Register.CR15;
    const system = `MOV_${special === 0 ? 'TO' : 'FROM'}_${control ? 'CR' : 'DR'}` as SystemName;
    addSystem(line, handler, system, 8, number);
    line.operand(0, registers().places.get(instruction.opRegister(1 - special))!.offset);
  } else if (name === 'Mov') {
    planMoveSegment(special, number, instruction, line, handler);
  } else {
    planStackSegment(name, number, instruction, line, handler);
  }
  return true;
}

function planMoveSegment(
  special: number,
  number: number,
  instruction: Instruction,
  line: Line,
  handler: HandlerNumber,
): void {
  if (special === 0) {
    const source = placeOrLoad(instruction, 1, 2, line, handler);
    addSystem(line, handler, 'MOV_TO_SEGMENT', 2, number);
    line.operand(0, source);
  } else if (memoryOperand(instruction) === 0) {
    const address = effectiveAddress(instruction, line, handler);
    line.add(handler('store.16.memory0')!, address);
    line.operand(1, segmentSelector(number));
  } else {
    const place = registers().places.get(instruction.opRegister(0))!;
    addSystem(line, handler, 'MOV_FROM_SEGMENT', place.size / 8, number);
    line.operand(0, place.offset);
  }
}

/** PUSH and POP of FS and GS: the stack's side is an ordinary operation on the selector or a temporary. */
function planStackSegment(
  name: string,
  number: number,
  instruction: Instruction,
  line: Line,
  handler: HandlerNumber,
): void {
  const { Code } = iced();
  const narrow = [Code.Pushw_FS, Code.Pushw_GS, Code.Popw_FS, Code.Popw_GS].includes(instruction.code);
  const size = narrow ? 16 : 64;
  if (name === 'Push') {
    line.add(handler('movzx16.64')!);
    line.operand(0, STATE.TEMP0);
    line.operand(1, segmentSelector(number));
    line.add(handler(`push.${size}`)!);
    line.operand(0, STATE.TEMP0);
  } else {
    line.add(handler(`load.${size}`)!, { ...NO_ADDRESS, base: STATE.GPR + 8 * 4 });
    line.operand(0, STATE.TEMP0);
    addSystem(line, handler, 'MOV_TO_SEGMENT', 2, number);
    line.operand(0, STATE.TEMP0);
    line.add(handler(`pop.${size}`)!);
    line.operand(0, STATE.TEMP0);
  }
}

const segmentSelector = (number: number): number => STATE.SAVE + SAVE.ES + 16 * number;
