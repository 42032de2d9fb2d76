/** The 256-bit registers of a local APIC: ISR, TMR and IRR (Linux asm/apic.h, apic_find_highest_vector and its neighbours). */

/** Index of the word that holds `vector`'s bit, in the register page seen as words. */
const wordOf = (register: number, vector: number): number => (register >>> 2) + (vector >>> 5) * 4;

export const testVector = (page: Int32Array, register: number, vector: number): boolean =>
  ((page[wordOf(register, vector)]! >>> (vector & 31)) & 1) !== 0;

/** True if it was clear. */
export function setVector(page: Int32Array, register: number, vector: number): boolean {
  const at = wordOf(register, vector);
  const old = page[at]!;
  page[at] = old | (1 << (vector & 31));
  return old !== page[at];
}

/** True if it was set. */
export function clearVector(page: Int32Array, register: number, vector: number): boolean {
  const at = wordOf(register, vector);
  const old = page[at]!;
  page[at] = old & ~(1 << (vector & 31));
  return old !== page[at];
}

/** −1: none. */
export function highestVector(page: Int32Array, register: number): number {
  for (let word = 7; word >= 0; word--) {
    const bits = page[(register >>> 2) + word * 4]!;
    if (bits !== 0) return word * 32 + 31 - Math.clz32(bits);
  }
  return -1;
}
