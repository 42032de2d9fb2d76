/**
 * The registers of a core as the slow path sees them: typed access to the state block (state.ts). Everything that lies in the
 * VMCB's save area is read and written in its mirror; a write marks the mirror as changed, so that #VMEXIT copies it only then.
 */
import { SAVE, SEGMENT } from '../../abi/vmcb.ts';
import { RFLAGS } from '../../abi/x86.ts';
import { STATE, USER_TLB } from './state.ts';

/** The six flags that are kept as words (state.ts). */
const SPREAD = RFLAGS.CF | RFLAGS.PF | RFLAGS.AF | RFLAGS.ZF | RFLAGS.SF | RFLAGS.OF;
const SIGN = 1 << 31;

/** PF, set where the low byte of a result has an even number of ones; or 0. */
export function parityFlag(result: number): number {
  const ones = (result ^ (result >> 4)) & 15;
  return ((0x9669 >> ones) & 1) !== 0 ? RFLAGS.PF : 0;
}

/** What registers need of host memory. */
export interface RegisterMemory {
  readonly words: Int32Array;
  readonly longs: BigUint64Array;
}

export class Registers {
  readonly words: Int32Array;
  readonly longs: BigUint64Array;
  /** Address of the state block. */
  readonly state: number;
  /** True once the save area's mirror may differ from the VMCB. */
  changed = false;
  /** False once CR0, CR4, EFER or CS may differ from what the core looked at last. */
  modeKnown = false;
  /** RFLAGS as the last entry or exit left them both here and in the VMCB. */
  storedFlags: number = RFLAGS.FIXED;
  /** Low word of RETIRED while RF counts. */
  #resumeRetired = 0;
  readonly #word: number;
  readonly #long: number;

  constructor(memory: RegisterMemory, state: number) {
    this.words = memory.words;
    this.longs = memory.longs;
    this.state = state;
    this.#word = state >>> 2;
    this.#long = state >>> 3;
  }

  /** A 32-bit word of the state block. */
  word(offset: number): number {
    return this.words[this.#word + (offset >> 2)]!;
  }
  setWord(offset: number, value: number): void {
    this.words[this.#word + (offset >> 2)] = value;
  }
  /** A 64-bit word of the state block. */
  long(offset: number): bigint {
    return this.longs[this.#long + (offset >> 3)]!;
  }
  setLong(offset: number, value: bigint): void {
    this.longs[this.#long + (offset >> 3)] = value;
  }

  gpr(number: number): bigint {
    return this.longs[this.#long + number]!;
  }
  setGpr(number: number, value: bigint): void {
    this.longs[this.#long + number] = value;
  }
  gprWord(number: number): number {
    return this.words[this.#word + 2 * number]!;
  }
  /** Writes 32 bits and clears the upper half, as instructions do. */
  setGprWord(number: number, value: number): void {
    this.words[this.#word + 2 * number] = value;
    this.words[this.#word + 2 * number + 1] = 0;
  }

  get rip(): bigint {
    return this.long(STATE.RIP);
  }
  set rip(value: bigint) {
    this.setLong(STATE.RIP, value);
  }

  /** A 64-bit field of the save area. */
  save(field: number): bigint {
    return this.long(STATE.SAVE + field);
  }
  setSave(field: number, value: bigint): void {
    this.changed = true;
    this.modeKnown = false;
    this.setLong(STATE.SAVE + field, value);
  }
  /** The low word of a field of the save area (CR0, CR4, EFER have nothing above). */
  saveWord(field: number): number {
    return this.word(STATE.SAVE + field);
  }
  setSaveWord(field: number, value: number): void {
    this.changed = true;
    this.modeKnown = false;
    this.setWord(STATE.SAVE + field, value);
  }

  /** `segment`: SAVE.CS and so on. */
  selector(segment: number): number {
    return this.word(STATE.SAVE + segment) & 0xffff;
  }
  attributes(segment: number): number {
    return this.word(STATE.SAVE + segment) >>> 16;
  }
  limit(segment: number): number {
    return this.word(STATE.SAVE + segment + SEGMENT.LIMIT) >>> 0;
  }
  base(segment: number): bigint {
    return this.save(segment + SEGMENT.BASE);
  }
  /** Leaves the hidden part. */
  setSelector(segment: number, selector: number): void {
    this.setSaveWord(segment, (this.saveWord(segment) & ~0xffff) | selector);
  }
  setSegment(segment: number, selector: number, attributes: number, limit: number, base: bigint): void {
    this.setSaveWord(segment, selector | (attributes << 16));
    this.setSaveWord(segment + SEGMENT.LIMIT, limit);
    this.setSave(segment + SEGMENT.BASE, base);
  }

  get cpl(): number {
    return this.word(STATE.CPL);
  }
  set cpl(value: number) {
    this.setWord(STATE.CPL, value);
    this.setWord(STATE.TLB_SET, value === 3 ? USER_TLB : 0);
    const field = SAVE.CPL & ~3;
    this.setSaveWord(field, (this.saveWord(field) & 0xffffff) | (value << 24));
  }

  /** IRET has set RFLAGS and is not retired yet: RF, if set, holds for the instruction behind it. */
  keepResumeFlag(): void {
    this.#resumeRetired = (this.word(STATE.RETIRED) + 1) | 0;
  }

  /**
   * RFLAGS, its low word; the upper one is always 0. RF holds for one instruction, told by the count of those retired; in `flagsRest` and
   * where RETIRED is not exact it may be seen longer.
   */
  get rflags(): number {
    const { words } = this;
    const at = this.#word;
    const resultLow = words[at + (STATE.FLAG_ZR >> 2)]!;
    const resultHigh = words[at + (STATE.FLAG_ZR >> 2) + 1]!;
    let flags = words[at + (STATE.FLAGS_REST >> 2)]!;
    if (resultLow === 0 && resultHigh === 0) flags |= RFLAGS.ZF;
    if (words[at + (STATE.FLAG_SR >> 2) + 1]! < 0) flags |= RFLAGS.SF;
    flags |= parityFlag(words[at + (STATE.FLAG_SR >> 2)]!);
    if (words[at + (STATE.FLAG_CV >> 2) + 1]! < 0) flags |= RFLAGS.CF;
    if ((words[at + (STATE.FLAG_CV >> 2)]! & 8) !== 0) flags |= RFLAGS.AF;
    if (words[at + (STATE.FLAG_OV >> 2) + 1]! < 0) flags |= RFLAGS.OF;
    if ((flags & RFLAGS.RF) !== 0 && words[at + (STATE.RETIRED >> 2)] !== this.#resumeRetired)
      flags &= ~RFLAGS.RF;
    return flags;
  }
  set rflags(flags: number) {
    const { words } = this;
    const at = this.#word;
    words[at + (STATE.FLAG_ZR >> 2)] = (flags & RFLAGS.ZF) !== 0 ? 0 : 1;
    words[at + (STATE.FLAG_ZR >> 2) + 1] = 0;
    words[at + (STATE.FLAG_SR >> 2)] = (flags & RFLAGS.PF) !== 0 ? 0 : 1;
    words[at + (STATE.FLAG_SR >> 2) + 1] = (flags & RFLAGS.SF) !== 0 ? SIGN : 0;
    words[at + (STATE.FLAG_CV >> 2)] = (flags & RFLAGS.AF) !== 0 ? 8 : 0;
    words[at + (STATE.FLAG_CV >> 2) + 1] = (flags & RFLAGS.CF) !== 0 ? SIGN : 0;
    words[at + (STATE.FLAG_OV >> 2)] = 0;
    words[at + (STATE.FLAG_OV >> 2) + 1] = (flags & RFLAGS.OF) !== 0 ? SIGN : 0;
    words[at + (STATE.FLAGS_REST >> 2)] = (flags & ~SPREAD) | RFLAGS.FIXED;
    this.#resumeRetired = words[at + (STATE.RETIRED >> 2)]!;
    words[at + (STATE.FLAGS_REST >> 2) + 1] = 0;
  }
  /** RFLAGS bits other than the six arithmetic ones. */
  get flagsRest(): number {
    return this.word(STATE.FLAGS_REST);
  }
  set flagsRest(value: number) {
    this.setWord(STATE.FLAGS_REST, value);
  }
}
