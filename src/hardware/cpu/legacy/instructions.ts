/**
 * Instructions that work otherwise outside 64-bit mode: near branches inside a code segment's limit, the stack in its segment, and those that 64-bit
 * mode does not have (PUSHA, BOUND, BCD arithmetic). APM volume 3. Nothing is committed before the last access.
 */
import { INTERCEPT, SAVE, VMEXIT } from '../../../abi/vmcb.ts';
import { RFLAGS, VECTOR } from '../../../abi/x86.ts';
import { iced } from '../decode/iced.ts';
import { SHADOW } from '../interrupts.ts';
import { hasRealSegments } from '../mode.ts';
import { merged } from '../processor-stack.ts';
import { SEGMENTS } from '../segments.ts';
import { CONDITIONS } from '../semantics/flags.ts';
import { GPR } from '../state.ts';
import { holds } from '../system/narrow-branches.ts';
import { flagsAfterPop } from '../system/transfers.ts';
import { DECIMAL } from './decimal.ts';
import type { Operands } from './operands.ts';

/** 0: done. Undefined: the handler of 64-bit mode does it. Or a LEAVE code. */
export type LegacyInstruction = (o: Operands) => number | undefined;

const isNear = (o: Operands): boolean => {
  const { OpKind } = iced();
  const kind = o.instruction.opKind(0);
  return kind === OpKind.NearBranch16 || kind === OpKind.NearBranch32;
};

const isFar = (o: Operands): boolean => {
  const { OpKind, MemorySize } = iced();
  const { instruction } = o;
  const kind = instruction.opKind(0);
  if (kind === OpKind.FarBranch16 || kind === OpKind.FarBranch32) return true;
  const size = instruction.memorySize;
  return kind === OpKind.Memory && (size === MemorySize.SegPtr16 || size === MemorySize.SegPtr32);
};

/** Bytes of an indirect near target. */
const targetBytes = (o: Operands): number => {
  const { Code } = iced();
  const { code } = o.instruction;
  return code === Code.Jmp_rm16 || code === Code.Call_rm16 ? 2 : 4;
};

function jump(o: Operands): number | undefined {
  if (isFar(o)) return undefined;
  if (isNear(o)) return o.jump(o.instruction.nearBranchTarget);
  const reason = o.read(0, targetBytes(o));
  return reason !== 0 ? reason : o.jump(o.value);
}

function call(o: Operands): number | undefined {
  if (isFar(o)) return undefined;
  const back = o.next;
  if (!isNear(o)) {
    const reason = o.read(0, targetBytes(o));
    if (reason !== 0) return reason;
  }
  const reason = o.jump(isNear(o) ? o.instruction.nearBranchTarget : o.value);
  if (reason !== 0) return reason;
  const pushed = o.stack.push(back, o.stackBytes);
  if (pushed === 0) o.stack.commit();
  return pushed;
}

function returnNear(o: Operands): number {
  const released = o.instruction.opCount > 0 ? Number(o.instruction.immediate(0)) : 0;
  const reason = o.stack.pop(o.stackBytes - released);
  if (reason !== 0) return reason;
  o.stack.release(released);
  const gone = o.jump(o.stack.value);
  if (gone === 0) o.stack.commit();
  return gone;
}

/** LOOPcc and JCXZ: the counter is as wide as the addresses. */
function counted(down: 0 | 1, also: (flags: number) => boolean): LegacyInstruction {
  return (o) => {
    const { registers } = o.parts;
    const bits = countBits(o);
    const old = registers.gpr(GPR.RCX);
    const count = BigInt.asUintN(bits, old - BigInt(down));
    const taken = down === 1 ? count !== 0n && also(registers.rflags) : count === 0n;
    const reason = taken ? o.jump(o.instruction.nearBranchTarget) : 0;
    if (reason === 0 && down === 1) registers.setGpr(GPR.RCX, merged(old, count, bits));
    return reason;
  };
}

function countBits(o: Operands): 16 | 32 {
  const { Code } = iced();
  return /_(CX)$|^Jcxz/.test(Code[o.instruction.code]!) ? 16 : 32;
}

function push(o: Operands): number {
  const bytes = o.stackBytes;
  const reason = o.read(0, bytes);
  if (reason !== 0) return reason;
  const pushed = o.stack.push(o.value, bytes);
  if (pushed === 0) o.stack.commit();
  return pushed;
}

function pop(o: Operands): number {
  const bytes = o.stackBytes;
  const { registers } = o.parts;
  const reason = o.stack.pop(bytes);
  if (reason !== 0) return reason;
  const { value } = o.stack;
  const segment = o.segment(0);
  if (segment !== undefined) return popSegment(o, segment, Number(value & 0xffffn));
  // An operand's address counts with the stack pointer as it is after the pop.
  const before = registers.gpr(GPR.RSP);
  o.stack.commit();
  const stored = o.write(0, value, bytes);
  if (stored !== 0) registers.setGpr(GPR.RSP, before);
  return stored;
}

function popSegment(o: Operands, number: number, selector: number): number {
  const segment = SEGMENTS[number]!;
  const reason = o.segments.load(segment, selector);
  if (reason !== 0) return reason;
  if (segment === SAVE.SS) o.parts.interrupts.holdNext(SHADOW.INTERRUPTS_AND_TRAPS);
  o.stack.commit();
  return 0;
}

const pushAllRegisters =
  (bytes: 2 | 4): LegacyInstruction =>
  (o) => {
    const { registers } = o.parts;
    const values = Array.from({ length: 8 }, (_, n) => BigInt.asUintN(8 * bytes, registers.gpr(n)));
    const reason = o.stack.pushAll(values, bytes);
    if (reason === 0) o.stack.commit();
    return reason;
  };

const popAllRegisters =
  (bytes: 2 | 4): LegacyInstruction =>
  (o) => {
    const { registers } = o.parts;
    const values: bigint[] = [];
    for (let n = 7; n >= 0; n--) {
      const reason = o.stack.pop(bytes);
      if (reason !== 0) return reason;
      values[n] = o.stack.value;
    }
    for (const [n, value] of values.entries())
      if (n !== GPR.RSP) registers.setGpr(n, merged(registers.gpr(n), value, 8 * bytes));
    o.stack.commit();
    return 0;
  };

const UNSEEN = RFLAGS.RF | RFLAGS.VM;

const pushFlags =
  (bytes: 2 | 4): LegacyInstruction =>
  (o) => {
    const flags = BigInt((o.parts.registers.rflags & ~UNSEEN) >>> 0);
    const reason = o.stack.push(flags, bytes);
    if (reason === 0) o.stack.commit();
    return reason;
  };

const popFlags =
  (bytes: 2 | 4): LegacyInstruction =>
  (o) => {
    const { registers, intercepts, events } = o.parts;
    if (intercepts.has(INTERCEPT.POPF)) {
      const reason = events.exit.begin(VMEXIT.POPF);
      events.exit.nextRip = Number(BigInt.asIntN(32, o.next));
      return reason;
    }
    const reason = o.stack.pop(bytes);
    if (reason !== 0) return reason;
    const privileged = registers.cpl === 0;
    const ioPrivileged = registers.cpl <= (registers.flagsRest & RFLAGS.IOPL) >>> 12;
    const image = Number(BigInt.asIntN(32, o.stack.value));
    registers.rflags = flagsAfterPop({ parts: o.parts, privileged, ioPrivileged }, image, bytes);
    o.stack.commit();
    return 0;
  };

function leave(o: Operands): number {
  const { registers } = o.parts;
  const bytes = o.instruction.code === iced().Code.Leavew ? 2 : 4;
  o.stack.pointer = registers.gpr(GPR.RBP);
  const reason = o.stack.pop(bytes);
  if (reason !== 0) return reason;
  registers.setGpr(GPR.RBP, merged(registers.gpr(GPR.RBP), o.stack.value, 8 * bytes));
  o.stack.commit();
  return 0;
}

function enter(o: Operands): number {
  const { registers, access } = o.parts;
  const { instruction, stack } = o;
  const bytes = instruction.code === iced().Code.Enterw_imm16_imm8 ? 2 : 4;
  const level = Number(instruction.immediate(1)) & 31;
  const rbp = registers.gpr(GPR.RBP);
  let reason = stack.push(rbp, bytes);
  if (reason !== 0) return reason;
  const frame = stack.pointer;
  for (let k = 1; k < level; k++) {
    const offset = BigInt.asUintN(stack.bits, rbp - BigInt(bytes * k));
    reason = o.memory.at(SAVE.SS, offset, bytes, 'read');
    if (reason === 0) reason = access.loadSized(o.memory.linear, bytes, access.privilege);
    if (reason === 0) reason = stack.push(access.value, bytes);
    if (reason !== 0) return reason;
  }
  if (level > 0) reason = stack.push(frame, bytes);
  if (reason !== 0) return reason;
  stack.release(-Number(instruction.immediate(0)));
  reason = stack.checkTop(bytes);
  if (reason !== 0) return reason;
  stack.commit();
  registers.setGpr(GPR.RBP, merged(rbp, frame, 8 * bytes));
  return 0;
}

/** The index is compared signed with the two bounds in memory. */
function bound(o: Operands): number {
  const { events } = o.parts;
  const bytes = o.instruction.code === iced().Code.Bound_r16_m1616 ? 2 : 4;
  let reason = o.read(1, 2 * bytes);
  if (reason !== 0) return reason;
  const bounds = o.value;
  reason = o.read(0, bytes);
  if (reason !== 0) return reason;
  const signed = (value: bigint): bigint => BigInt.asIntN(8 * bytes, value);
  const index = signed(o.value);
  const inside = index >= signed(bounds) && index <= signed(bounds >> BigInt(8 * bytes));
  return inside ? 0 : events.raise(VECTOR.BR);
}

/** Raises the destination selector's RPL to the source's; ZF says whether it had to. */
function adjustPrivilege(o: Operands): number {
  const { registers, events } = o.parts;
  if (hasRealSegments(registers)) return events.raise(VECTOR.UD);
  let reason = o.read(1, 2);
  if (reason !== 0) return reason;
  const source = o.value & 3n;
  reason = o.read(0, 2);
  if (reason !== 0) return reason;
  const raised = (o.value & 3n) < source;
  if (raised) reason = o.write(0, (o.value & 0xfffcn) | source, 2);
  if (reason !== 0) return reason;
  const { rflags } = registers;
  registers.rflags = raised ? rflags | RFLAGS.ZF : rflags & ~RFLAGS.ZF;
  return 0;
}

const conditional = (code: number): LegacyInstruction => {
  return (o) => (holds(o.parts.registers.rflags, code) ? o.jump(o.instruction.nearBranchTarget) : 0);
};
const equal = (flags: number): boolean => (flags & RFLAGS.ZF) !== 0;

/** By iced's mnemonic. */
export const INSTRUCTIONS: Readonly<Record<string, LegacyInstruction>> = {
  ...Object.fromEntries(CONDITIONS.map(([name, code]) => [`J${name.toLowerCase()}`, conditional(code)])),
  ...DECIMAL,
  Jmp: jump,
  Call: call,
  Ret: returnNear,
  Loop: counted(1, () => true),
  Loope: counted(1, equal),
  Loopne: counted(1, (flags) => !equal(flags)),
  Jcxz: counted(0, () => true),
  Jecxz: counted(0, () => true),
  Push: push,
  Pop: pop,
  Pusha: pushAllRegisters(2),
  Pushad: pushAllRegisters(4),
  Popa: popAllRegisters(2),
  Popad: popAllRegisters(4),
  Pushf: pushFlags(2),
  Pushfd: pushFlags(4),
  Popf: popFlags(2),
  Popfd: popFlags(4),
  Leave: leave,
  Enter: enter,
  Bound: bound,
  Arpl: adjustPrivilege,
};
