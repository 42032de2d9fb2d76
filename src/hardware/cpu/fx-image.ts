/**
 * The x87 and SSE state as FXSAVE and XSAVE lay it out in memory (APM volume 2, 11.5 and figure "FXSAVE Image"): to and from a core's state
 * block. The x87 registers are state alone here: nothing computes with them. What is kept of them is what an EPYC gives back: reserved bits of
 * FCW are dropped, ES and B of FSW follow from the exceptions and their masks, error pointers have 48 bits and are 0 while ES is.
 */
import type { Registers } from './registers.ts';
import { STATE } from './state.ts';

/** What XCR0 may hold: x87 and SSE. */
export const XCR0_KNOWN = 3n;
/** Bytes of the legacy region that the processor writes, and of that with the XSAVE header. */
export const FX_BYTES = 416;
export const XSAVE_BYTES = 576;
/** Offsets. */
export const FX = {
  FSW: 2,
  FTW: 4,
  FOP: 6,
  FIP: 8,
  FDP: 16,
  MXCSR: 24,
  MXCSR_MASK: 28,
  ST: 32,
  XMM: 160,
  HEADER: 512,
} as const;

/** MXCSR bits that this chip has: all but misaligned accesses (MISALIGNSSE). */
export const MXCSR_KNOWN = 0xffff;
export const MXCSR_INITIAL = 0x1f80;
const FCW_INITIAL = 0x37f;
const FCW_KNOWN = 0x1f3f;
const FCW_ONE = 0x40;
const EXCEPTIONS = 0x3f;
const FSW_KEPT = 0x7f7f;
const ERROR_SUMMARY = 0x8080;
const FOP_BITS = 0x7ff;
const POINTER_BITS = 48;
/** Where the state block has the selectors: an image has MXCSR there. */
const SELECTORS = FX.MXCSR;
const U32 = 0xffffffffn;

export class FxImage {
  readonly longs = new BigUint64Array(XSAVE_BYTES / 8);
  readonly bytes = new Uint8Array(this.longs.buffer);
  readonly #view = new DataView(this.longs.buffer);
  readonly #registers: Registers;

  constructor(registers: Registers) {
    this.#registers = registers;
  }

  get mxcsr(): number {
    return this.#view.getInt32(FX.MXCSR, true);
  }

  /** The x87 part of the state, without MXCSR. `width`: bytes of an error pointer, 8 with REX.W, else 4 and a selector behind them. */
  takeX87(width: number): void {
    const x87 = new X87State(this.#registers);
    const view = this.#view;
    this.bytes.fill(0, 0, FX.MXCSR);
    view.setUint16(0, x87.fcw, true);
    view.setUint16(FX.FSW, x87.fsw, true);
    this.bytes[FX.FTW] = x87.tags;
    if ((x87.fsw & ERROR_SUMMARY) !== 0) {
      view.setUint16(FX.FOP, x87.opcode, true);
      const pointer = (value: bigint, selector: number) =>
        width === 8
          ? BigInt.asUintN(64, BigInt.asIntN(POINTER_BITS, value))
          : (value & U32) | (BigInt(selector) << 32n);
      view.setBigUint64(FX.FIP, pointer(x87.instruction, x87.codeSelector), true);
      view.setBigUint64(FX.FDP, pointer(x87.data, x87.dataSelector), true);
    }
    const top = (x87.fsw >> 11) & 7;
    for (let k = 0; k < 8; k++) {
      const register = x87.register((top + k) & 7);
      this.longs[(FX.ST >> 3) + 2 * k] = register.low;
      this.longs[(FX.ST >> 3) + 2 * k + 1] = register.high;
    }
  }

  takeMxcsr(): void {
    this.#view.setInt32(FX.MXCSR, this.#registers.word(STATE.MXCSR), true);
    this.#view.setInt32(FX.MXCSR_MASK, MXCSR_KNOWN, true);
  }

  takeVectors(): void {
    for (let k = 0; k < 32; k++) this.longs[(FX.XMM >> 3) + k] = this.#registers.long(STATE.XMM + 8 * k);
  }

  giveX87(width: number): void {
    const x87 = new X87State(this.#registers);
    const view = this.#view;
    x87.setControl(view.getUint16(0, true));
    x87.setStatus(view.getUint16(FX.FSW, true));
    x87.tags = this.bytes[FX.FTW]!;
    const [instruction, data] = [view.getBigUint64(FX.FIP, true), view.getBigUint64(FX.FDP, true)];
    const opcode = view.getUint16(FX.FOP, true);
    if (width === 8) x87.setPointers(opcode, instruction, data);
    else {
      x87.setPointers(opcode, instruction & U32, data & U32);
      x87.setSelectors(view.getUint16(FX.FIP + 4, true), view.getUint16(FX.FDP + 4, true));
    }
    const top = (x87.fsw >> 11) & 7;
    for (let k = 0; k < 8; k++) {
      const at = (FX.ST >> 3) + 2 * k;
      x87.setRegister((top + k) & 7, this.longs[at]!, this.longs[at + 1]!);
    }
  }

  giveVectors(): void {
    for (let k = 0; k < 32; k++) this.#registers.setLong(STATE.XMM + 8 * k, this.longs[(FX.XMM >> 3) + k]!);
  }
}

/** XMM0 to XMM15 are all 0. */
export function vectorsAreInitial(registers: Registers): boolean {
  for (let k = 0; k < 64; k++) if (registers.word(STATE.XMM + 4 * k) !== 0) return false;
  return true;
}

export function clearVectors(registers: Registers): void {
  for (let k = 0; k < 64; k++) registers.setWord(STATE.XMM + 4 * k, 0);
}

/** The x87 registers in the state block, as in the image but by their physical numbers. */
export class X87State {
  readonly #registers: Registers;

  constructor(registers: Registers) {
    this.#registers = registers;
  }

  get fcw(): number {
    return this.#registers.word(STATE.X87) & 0xffff;
  }
  get fsw(): number {
    return this.#registers.word(STATE.X87) >>> 16;
  }
  /** A bit for each register that is not empty. */
  get tags(): number {
    return this.#registers.word(STATE.X87 + FX.FTW) & 0xff;
  }
  set tags(value: number) {
    const other = this.#registers.word(STATE.X87 + FX.FTW) & ~0xff;
    this.#registers.setWord(STATE.X87 + FX.FTW, other | value);
  }
  get opcode(): number {
    return this.#registers.word(STATE.X87 + FX.FTW) >>> 16;
  }
  get instruction(): bigint {
    return this.#registers.long(STATE.X87 + FX.FIP);
  }
  get data(): bigint {
    return this.#registers.long(STATE.X87 + FX.FDP);
  }
  /** Selectors of the error pointers, which only the form with 32-bit pointers moves. */
  get codeSelector(): number {
    return this.#registers.word(STATE.X87 + SELECTORS) & 0xffff;
  }
  get dataSelector(): number {
    return this.#registers.word(STATE.X87 + SELECTORS) >>> 16;
  }
  setSelectors(code: number, data: number): void {
    this.#registers.setWord(STATE.X87 + SELECTORS, code | (data << 16));
  }

  /** True while an exception waits that is not masked. */
  get waiting(): boolean {
    return (this.fsw & ERROR_SUMMARY) !== 0;
  }

  setControl(value: number): void {
    this.#set((value & FCW_KNOWN) | FCW_ONE, this.fsw);
  }
  setStatus(value: number): void {
    this.#set(this.fcw, value & FSW_KEPT);
  }
  clearExceptions(): void {
    this.#set(this.fcw, this.fsw & 0x7f00);
  }
  /** Selectors become 0. */
  setPointers(opcode: number, instruction: bigint, data: bigint): void {
    this.#registers.setWord(STATE.X87 + FX.FTW, this.tags | ((opcode & FOP_BITS) << 16));
    this.#registers.setLong(STATE.X87 + FX.FIP, BigInt.asUintN(POINTER_BITS, instruction));
    this.#registers.setLong(STATE.X87 + FX.FDP, BigInt.asUintN(POINTER_BITS, data));
    this.setSelectors(0, 0);
  }

  /** FNINIT: the data registers keep their contents, and are empty. */
  initialize(): void {
    this.#registers.setWord(STATE.X87, FCW_INITIAL);
    this.tags = 0;
    this.setPointers(0, 0n, 0n);
  }
  /** The initial configuration of XRSTOR: as FNINIT, and the data registers 0. */
  clear(): void {
    this.initialize();
    for (let k = 0; k < 8; k++) this.setRegister(k, 0n, 0n);
  }
  get initial(): boolean {
    if (this.fcw !== FCW_INITIAL || this.fsw !== 0 || this.tags !== 0) return false;
    for (let k = 0; k < 8; k++) {
      const { low, high } = this.register(k);
      if (low !== 0n || high !== 0n) return false;
    }
    return true;
  }

  /** Physical register `number`: 64 bits of significand, 16 of exponent and sign. */
  register(number: number): { low: bigint; high: bigint } {
    const at = STATE.X87 + FX.ST + 16 * number;
    return { low: this.#registers.long(at), high: this.#registers.long(at + 8) };
  }
  setRegister(number: number, low: bigint, high: bigint): void {
    const at = STATE.X87 + FX.ST + 16 * number;
    this.#registers.setLong(at, low);
    this.#registers.setLong(at + 8, high & 0xffffn);
  }

  #set(fcw: number, fsw: number): void {
    const unmasked = (fsw & ~fcw & EXCEPTIONS) !== 0;
    const status = unmasked ? fsw | ERROR_SUMMARY : fsw & ~ERROR_SUMMARY;
    this.#registers.setWord(STATE.X87, fcw | (status << 16));
  }
}
