/**
 * How an instruction is described. A *group* (one file here) has *operations*, each written once against `OperandContext`, and a
 * table from iced's mnemonics to an operation and the roles of the instruction's operands. Whether an operand is a register, an
 * immediate or memory is no concern of an operation.
 */
import type { Code } from '../wasm/code.ts';
import type { I32, I64, V128 } from '../wasm/value.ts';

/** Bits. */
export type Size = 8 | 16 | 32 | 64 | 128;
export type OperandIndex = 0 | 1 | 2;

/** Where the description meets the place in which the code will run (an interpreter's handler; later a translated block). */
export interface OperandContext {
  readonly code: Code;
  /** The operation's size in bits, that of an operand when nothing else is said. */
  readonly size: Size;

  /** In the loop of hot handlers, where code has to be small: what is rare may be left to the cold handler by `leaveToSystem`. */
  readonly inHotLoop: boolean;

  /** Whether the operand lies in memory. */
  inMemory(operand: OperandIndex): boolean;
  /** Operand sign-extended, unsigned: zero-extended; fixed in a local. Memory is read here and may fault here. */
  read(operand: OperandIndex, size?: Size): I64;
  readUnsigned(operand: OperandIndex, size?: Size): I64;
  readVector(operand: OperandIndex): V128;
  /** Writes the low bits; a 32-bit register is zero-extended to 64. May fault when the operand was not read before. */
  write(operand: OperandIndex, what: I64, size?: Size): void;
  writeVector(operand: OperandIndex, what: V128): void;

  /** A general register by number (rax rcx rdx rbx rsp rbp rsi rdi), by default as wide as the operation. */
  readRegister(register: number, size?: Size): I64;
  readRegisterUnsigned(register: number, size?: Size): I64;
  writeRegister(register: number, what: I64, size?: Size): void;

  /** The u64 at a STATE offset. */
  state(offset: number): I64;
  setState(offset: number, what: I64): void;
  setStateVector(offset: number, what: V128): void;

  /** Memory at a linear address; may fault. Zero-extended. */
  load(address: I64, size: Size): I64;
  store(address: I64, what: I64, size: Size): void;
  /** Faults where a store would. Whoever stores there afterwards asks an emulated device once. */
  loadForWrite(address: I64, size: Size): I64;
  /** Faults where a store would. */
  checkStore(address: I64, size: Size): void;

  /**
   * Memory that may be read or written in place: its host address, and how many bytes from `address` on lie in its page; no bytes
   * where the TLB does not know it.
   */
  inPlace(address: I64, access: 'read' | 'write'): { host: I32; bytes: I64 };

  /** The instruction's immediate field, its effective address (linear), and the address of the next instruction. */
  immediate(): I64;
  effectiveAddress(): I64;
  nextAddress(): I64;

  /** Ends the instruction with an exception; nothing of it may be committed yet. */
  raise(vector: number, errorCode?: number): void;
  /** Ends the instruction to be run again from what is committed. */
  restart(): void;
  /** Hands the instruction to the slow path, as the `float` of its table row says; nothing of it may be committed yet. */
  leaveToSystem(): void;

  /**
   * Goes to the instruction's branch target (inside its page, or anywhere), or to a linear address; #GP(0) at the instruction where that is not
   * canonical. Ends the operation.
   */
  branchInPage(): void;
  branchOutOfPage(): void;
  jump(address: I64): void;
  /** The same fault, for what commits something before it jumps. `before` are checks whose faults come first. */
  checkTarget(address: I64, before?: () => void): void;
  /** The linear address of the branch target, where it is not inside the page. */
  targetOutOfPage(): I64;
  /** Goes where the line goes on without a branch: there is nothing to check. */
  goOnInNextPage(): void;
}

/**
 * Which handlers an operation has: all operands in registers (an immediate counts as one), or one of them in memory. Without the
 * memory form the decoder puts a load before and a store after.
 */
export type Form = 'registers' | 'memory0' | 'memory1';

export interface Operation {
  readonly sizes: readonly Size[];
  readonly forms?: readonly Form[];
  /** What is done to operand 0; by default it is updated. */
  readonly destination?: 'read' | 'write' | 'update';
  /** Which sizes are hot, that is inline in the interpreter's one function. */
  readonly hot?: readonly Size[] | undefined;
  /**
   * What the operation on registers does to arithmetic flags: `set` writes all of them and reads none, `keep` neither reads nor
   * writes; neither can fault. By default nothing is known.
   */
  readonly flags?: 'set' | 'keep';
  /**
   * Sizes that also have a handler on registers (name + ' quiet') that leaves the flags as they are. The decoder takes it where
   * the flags are overwritten before anybody can see them.
   */
  readonly quiet?: readonly Size[] | undefined;
  readonly emit: (context: OperandContext) => void;
}

/**
 * An operand's role; the size in bits where it is not the operation's, `none` for one that the
 * operation does not look at.
 */
export interface Role {
  readonly access: 'read' | 'write' | 'update' | 'address' | 'none';
  readonly size?: Size;
  /** A memory operand has the size that the instruction gives it (32 or 64). */
  readonly own?: true;
}

/** One row of a group's table: a mnemonic without odd forms. */
export interface Instruction {
  /** Operation's name; a function of operand sizes in bits (0: immediate), and of an 8-bit immediate, where it depends on them. */
  readonly operation: string | ((sizes: readonly number[], immediate: number) => string);
  readonly roles: readonly Role[];
  /** Size of the operation, where it is not that of operand 0. */
  readonly size?: Size;
  /** Vector memory operands must be aligned to 16 bytes, or #GP. */
  readonly aligned?: true;
  /** Number under which SYSTEM.FLOAT has it (float/instructions.ts), where the operation may leave it to the slow path. */
  readonly float?: (sizes: readonly number[]) => number;
}

export interface Group {
  readonly operations: Readonly<Record<string, Operation>>;
  /** By iced's mnemonic. */
  readonly instructions: Readonly<Record<string, Instruction>>;
}

export const READ: Role = { access: 'read' };
export const WRITE: Role = { access: 'write' };
export const UPDATE: Role = { access: 'update' };
export const ADDRESS: Role = { access: 'address' };
export const NONE: Role = { access: 'none' };

export const INTEGER_SIZES = [8, 16, 32, 64] as const;
