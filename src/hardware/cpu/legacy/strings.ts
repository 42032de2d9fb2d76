/** MOVS, CMPS, SCAS, LODS, STOS outside 64-bit mode: element by element, registers committed with each, so that a fault starts it again. */
import { SAVE } from '../../../abi/vmcb.ts';
import { RFLAGS } from '../../../abi/x86.ts';
import { type Instruction, iced } from '../decode/iced.ts';
import { registers as places } from '../decode/registers.ts';
import type { CoreParts } from '../parts.ts';
import { merged } from '../processor-stack.ts';
import { parityFlag } from '../registers.ts';
import { SEGMENTS } from '../segments.ts';
import { GPR, LEAVE } from '../state.ts';
import type { SegmentedMemory } from './addressing.ts';

const STRING = /^(Movs|Cmps|Scas|Lods|Stos)([bwd])$/;
const BYTES: Readonly<Record<string, number>> = { b: 1, w: 2, d: 4 };
/** Elements after which a repeated instruction lets interrupts in. */
const SLICE = 4096;
const ARITHMETIC = RFLAGS.CF | RFLAGS.PF | RFLAGS.AF | RFLAGS.ZF | RFLAGS.SF | RFLAGS.OF;

/** What happens to one element: 0, or a LEAVE code with nothing changed. */
export interface StringInstruction {
  readonly operation: string;
  readonly size: number;
  readonly bits: 16 | 32;
  readonly source: number;
}

/** A string instruction's parts, or undefined if it is none (SSE has the name MOVSD too). */
export function asString(name: string, instruction: Instruction): StringInstruction | undefined {
  const match = STRING.exec(name);
  if (!match) return undefined;
  const { OpKind } = iced();
  const kinds = [instruction.opKind(0), instruction.opKind(1)];
  if (kinds.includes(OpKind.Memory) || kinds.includes(OpKind.Immediate8)) return undefined;
  if (kinds.every((kind) => kind === OpKind.Register)) return undefined;
  const narrow = kinds.some((kind) => kind === OpKind.MemorySegSI || kind === OpKind.MemoryESDI);
  const source = SEGMENTS[places().numbers.get(instruction.memorySegment) ?? 3]!;
  return { operation: match[1]!.toLowerCase(), size: BYTES[match[2]!]!, bits: narrow ? 16 : 32, source };
}

/** Runs it, repeated where a prefix says so. 0: done; LEAVE.RESUME: in the middle; or another LEAVE code. */
export function executeString(
  parts: CoreParts,
  memory: SegmentedMemory,
  what: StringInstruction,
  instruction: Instruction,
): number {
  const { registers } = parts;
  const { bits, operation } = what;
  const repeats = instruction.hasRepePrefix || instruction.hasRepnePrefix;
  if (!repeats) return element(parts, memory, what);
  const compares = operation === 'cmps' || operation === 'scas';
  for (let left = SLICE; left > 0; left--) {
    const count = BigInt.asUintN(bits, registers.gpr(GPR.RCX));
    if (count === 0n) return 0;
    const reason = element(parts, memory, what);
    if (reason !== 0) return reason;
    registers.setGpr(GPR.RCX, merged(registers.gpr(GPR.RCX), count - 1n, bits));
    if (!compares) continue;
    const equal = (registers.rflags & RFLAGS.ZF) !== 0;
    if (equal === instruction.hasRepnePrefix) return 0;
  }
  return BigInt.asUintN(bits, registers.gpr(GPR.RCX)) === 0n ? 0 : LEAVE.RESUME;
}

function element(parts: CoreParts, memory: SegmentedMemory, what: StringInstruction): number {
  const { registers, access } = parts;
  const { operation, size, bits, source } = what;
  const load = (segment: number, register: number): number => {
    const offset = BigInt.asUintN(bits, registers.gpr(register));
    const outside = memory.at(segment, offset, size, 'read');
    return outside !== 0 ? outside : access.loadSized(memory.linear, size, access.privilege);
  };
  const store = (value: bigint): number => {
    const offset = BigInt.asUintN(bits, registers.gpr(GPR.RDI));
    const outside = memory.at(SAVE.ES, offset, size, 'write');
    return outside !== 0 ? outside : access.storeSized(memory.linear, value, size, access.privilege);
  };
  const advance = (register: number): void => {
    const step = (registers.flagsRest & RFLAGS.DF) !== 0 ? -size : size;
    const old = registers.gpr(register);
    registers.setGpr(register, merged(old, old + BigInt(step), bits));
  };
  const compares = operation === 'cmps' || operation === 'scas';
  const usesSource = operation === 'movs' || operation === 'lods' || operation === 'cmps';
  const usesDestination = operation !== 'lods';
  let compared = 0n;
  if (compares) {
    const reason = load(SAVE.ES, GPR.RDI);
    if (reason !== 0) return reason;
    compared = access.value;
  }
  const accumulator = BigInt.asUintN(8 * size, registers.gpr(GPR.RAX));
  let value = accumulator;
  if (usesSource) {
    const reason = load(source, GPR.RSI);
    if (reason !== 0) return reason;
    value = access.value;
  }
  if (operation === 'movs' || operation === 'stos') {
    const reason = store(value);
    if (reason !== 0) return reason;
  } else if (operation === 'lods') {
    const old = registers.gpr(GPR.RAX);
    registers.setGpr(GPR.RAX, size === 1 ? (old & ~0xffn) | value : merged(old, value, 8 * size));
  } else compare(parts, value, compared, 8 * size);
  if (usesSource) advance(GPR.RSI);
  if (usesDestination) advance(GPR.RDI);
  return 0;
}

/** Flags of a − b. */
function compare({ registers }: CoreParts, a: bigint, b: bigint, bits: number): void {
  const sign = 1n << BigInt(bits - 1);
  const r = BigInt.asUintN(bits, a - b);
  let flags = parityFlag(Number(r & 0xffn));
  if (a < b) flags |= RFLAGS.CF;
  if (((a ^ b ^ r) & 0x10n) !== 0n) flags |= RFLAGS.AF;
  if (r === 0n) flags |= RFLAGS.ZF;
  if ((r & sign) !== 0n) flags |= RFLAGS.SF;
  if (((a ^ b) & (a ^ r) & sign) !== 0n) flags |= RFLAGS.OF;
  registers.rflags = (registers.rflags & ~ARITHMETIC) | flags;
}
