/**
 * MXCSR as an instruction sees it (APM volume 1, 4.2.2 and 4.10): rounding, denormals, which exceptions are masked, and the exceptions
 * found so far. Those that show before anything is computed (invalid, denormal, division by zero) come first: if one of them, in any
 * element, is not masked, no element is computed.
 */

/** Exceptions: sticky flags of MXCSR; their masks lie 7 bits above. */
export const FLOAT_EXCEPTION = {
  INVALID: 1,
  DENORMAL: 2,
  DIVIDE_BY_ZERO: 4,
  OVERFLOW: 8,
  UNDERFLOW: 16,
  PRECISION: 32,
} as const;

export const MXCSR = {
  FLAGS: 0x3f,
  DENORMALS_ARE_ZEROS: 0x40,
  MASKS: 0x1f80,
  MASK_SHIFT: 7,
  ROUNDING_SHIFT: 13,
  ROUNDING: 0x6000,
  FLUSH_TO_ZERO: 0x8000,
  /** At reset: everything masked, to nearest. */
  INITIAL: 0x1f80,
} as const;

export const ROUNDING = { NEAREST: 0, DOWN: 1, UP: 2, TOWARDS_ZERO: 3 } as const;
export type Rounding = (typeof ROUNDING)[keyof typeof ROUNDING];

export class FloatEnvironment {
  readonly rounding: Rounding;
  readonly denormalsAreZeros: boolean;
  readonly flushToZero: boolean;
  /** Exceptions that are masked. */
  readonly masked: number;
  /** Sticky flags that the instruction sets. */
  raised = 0;
  #before = 0;
  #after = 0;

  constructor(mxcsr: number) {
    this.rounding = ((mxcsr & MXCSR.ROUNDING) >>> MXCSR.ROUNDING_SHIFT) as Rounding;
    this.denormalsAreZeros = (mxcsr & MXCSR.DENORMALS_ARE_ZEROS) !== 0;
    this.flushToZero = (mxcsr & MXCSR.FLUSH_TO_ZERO) !== 0;
    this.masked = (mxcsr & MXCSR.MASKS) >>> MXCSR.MASK_SHIFT;
  }

  /** True if those exceptions are all masked. */
  masks(exceptions: number): boolean {
    return (exceptions & ~this.masked) === 0;
  }

  /** Exceptions of an element, found in its operands. */
  foundBefore(exceptions: number): void {
    this.#before |= exceptions;
  }

  /** Exceptions of an element, found in its result. */
  foundAfter(exceptions: number): void {
    this.#after |= exceptions;
  }

  /** Ends a step over all elements. False if one of its exceptions is not masked: #XM, and nothing is written. */
  settle(): boolean {
    const stopped = !this.masks(this.#before);
    const found = stopped ? this.#before : this.#before | this.#after;
    this.raised |= found;
    this.#before = 0;
    this.#after = 0;
    return this.masks(found);
  }
}
