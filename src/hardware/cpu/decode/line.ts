/** A line of records under construction: fields by name, for one instruction after the other. */
import type { CodeMemory } from '../page-map.ts';
import { RECORD, RECORD_BYTES } from '../record.ts';
import { STATE } from '../state.ts';

/** An effective address as a record holds it: offsets of registers in the state block. */
export interface AddressParts {
  readonly base: number;
  readonly index: number;
  readonly scale: number;
  readonly displacement: bigint;
}

export const NO_ADDRESS: AddressParts = { base: STATE.ZERO, index: STATE.ZERO, scale: 0, displacement: 0n };

export class Line {
  /** Address of the first record. */
  readonly start: number;
  readonly state: number;
  /** Address of the record that is being filled, the last one. */
  record: number;
  /** Records so far. */
  count = 0;
  /** Instructions so far. */
  instructions = 0;
  #offset = 0;
  #length = 0;
  #first = false;
  readonly #words: Int32Array;
  readonly #longs: BigUint64Array;

  constructor(memory: CodeMemory, start: number, state: number) {
    this.#words = memory.words;
    this.#longs = memory.longs;
    this.start = start;
    this.state = state;
    this.record = start - RECORD_BYTES;
  }

  /** Records that follow belong to the instruction at `offset` of the page. Returns the address of its first one. */
  beginInstruction(offset: number, length: number): number {
    this.#offset = offset;
    this.#length = length;
    this.#first = true;
    this.instructions++;
    return this.record + RECORD_BYTES;
  }

  /** Appends a record. */
  add(handler: number, address: AddressParts = NO_ADDRESS): void {
    this.record += RECORD_BYTES;
    this.count++;
    const at = this.record >>> 2;
    this.#words.fill(0, at, at + RECORD_BYTES / 4);
    this.#words[at] = handler;
    this.word(RECORD.BASE, this.state + address.base);
    this.word(RECORD.INDEX, this.state + address.index);
    this.word(RECORD.SCALE, address.scale);
    this.#longs[(this.record + RECORD.DISPLACEMENT) >>> 3] = BigInt.asUintN(64, address.displacement);
    this.word(RECORD.OFFSET, this.#offset | (this.#length << 16) | (this.#first ? 1 << 24 : 0));
    this.through(this.instructions - 1, this.instructions);
    this.#first = false;
  }

  /** Counts the record as `before` … `after` instructions of the line. */
  through(before: number, after: number): void {
    this.word(RECORD.ORDINAL, before | (after << 16));
  }

  word(field: number, to: number): void {
    this.#words[(this.record + field) >>> 2] = to;
  }

  /** Operand `operand` lies at `offset` of the state block. */
  operand(operand: number, offset: number): void {
    this.word(RECORD.A0 + 4 * operand, this.state + offset);
  }

  /** Operand `operand` is this record's own immediate (the second 4 bytes of it, for a second immediate). */
  immediateOperand(operand: number, second: 0 | 4 = 0): void {
    this.word(RECORD.A0 + 4 * operand, this.record + RECORD.IMMEDIATE + second);
  }

  immediate(to: bigint): void {
    this.#longs[(this.record + RECORD.IMMEDIATE) >>> 3] = BigInt.asUintN(64, to);
  }
}
