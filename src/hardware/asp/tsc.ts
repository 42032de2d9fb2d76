/** The guest's time stamp counter, as firmware computes it for secure TSC (AMD's firmware source, calc_tsc_scale; Genoa's clock). */

/** How much the clock loses to spread spectrum, in 1/100,000 on average: it moves between 100 % and 99.6 %. */
export const TSC_FACTOR = 200;

const FRACTION_BITS = 32n;

/** GUEST_TSC_SCALE: 8 bits and 32 bits of fraction, of a wanted and a reference frequency in kHz. */
export function tscScale(desired: number, reference: number): bigint {
  const whole = BigInt(Math.floor(desired / reference));
  const rest = BigInt(desired % reference);
  const divisor = BigInt(reference);
  const fraction = ((rest << FRACTION_BITS) + (divisor - 1n)) / divisor;
  return ((whole & 0xffn) << FRACTION_BITS) | (fraction & 0xffff_ffffn);
}
