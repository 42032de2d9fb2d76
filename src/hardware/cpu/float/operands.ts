/**
 * The operands of a floating-point instruction that the slow path executes, found through its record: lanes of the destination
 * and source, and results that are held back until it is known that no exception stops the instruction.
 */
import { RECORD } from '../record.ts';
import { STATE } from '../state.ts';

/** Host memory as the slow path sees it. */
export interface WordMemory {
  readonly words: Int32Array;
  readonly longs: BigUint64Array;
  readonly bytes: Uint8Array;
}

export type Width = 32 | 64;

export class FloatOperands {
  readonly #memory: WordMemory;
  readonly #state: number;
  readonly #record: number;
  readonly #writes: { readonly at: number; readonly width: Width; readonly value: bigint }[] = [];
  #flags: { readonly zero: boolean; readonly parity: boolean; readonly carry: boolean } | undefined;

  constructor(memory: WordMemory, state: number, record: number) {
    this.#memory = memory;
    this.#state = state;
    this.#record = record;
  }

  /** Lane of operand 0 (the destination) or 1; a general register, or a scalar from memory, is lane 0. */
  lane(operand: 0 | 1, width: Width, lane: number): bigint {
    const at = this.#address(operand) + (width >>> 3) * lane;
    return width === 64 ? this.#memory.longs[at >>> 3]! : BigInt(this.#memory.words[at >>> 2]! >>> 0);
  }

  /** The 8-bit immediate that operand 2 is. */
  get immediate(): number {
    return this.#memory.bytes[this.#address(2)]!;
  }

  setLane(width: Width, lane: number, value: bigint): void {
    this.#writes.push({ at: this.#address(0) + (width >>> 3) * lane, width, value });
  }

  /** Operand 0 as a general register; 32 bits are zero-extended, as `value` has to be. */
  setGeneral(value: bigint): void {
    this.#writes.push({ at: this.#address(0), width: 64, value });
  }

  /** Arithmetic flags in the state block's form (state.ts): the others are cleared. */
  setFlags(flags: { zero: boolean; parity: boolean; carry: boolean }): void {
    this.#flags = flags;
  }

  /** Writes what was held back. */
  commit(): void {
    const { words, longs } = this.#memory;
    for (const { at, width, value } of this.#writes) {
      if (width === 64) longs[at >>> 3] = value;
      else words[at >>> 2] = Number(BigInt.asIntN(32, value));
    }
    if (this.#flags === undefined) return;
    const { zero, parity, carry } = this.#flags;
    const put = (offset: number, value: bigint) => {
      longs[(this.#state + offset) >>> 3] = value;
    };
    put(STATE.FLAG_ZR, zero ? 0n : 1n);
    put(STATE.FLAG_SR, parity ? 0n : 1n);
    put(STATE.FLAG_CV, carry ? 1n << 63n : 0n);
    put(STATE.FLAG_OV, 0n);
  }

  #address(operand: 0 | 1 | 2): number {
    const field = [RECORD.A0, RECORD.A1, RECORD.A2][operand]!;
    return this.#memory.words[(this.#record + field) >>> 2]! >>> 0;
  }
}
