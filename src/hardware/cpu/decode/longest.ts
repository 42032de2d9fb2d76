/**
 * An instruction is 15 bytes at most (APM volume 3, 1.1); one that goes on beyond is #GP(0), whatever it would have been. No more than 15 are
 * fetched, so that a page fault behind them does not come first. iced calls it invalid, as it does 15 bytes with an opcode that nobody has; two prefixes
 * less tell one from the other.
 */
import { type Instruction, iced } from './iced.ts';

export const LONGEST = 15;
/** Legacy prefixes. */
export const PREFIXES: ReadonlySet<number> = new Set([
  0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3,
]);

/** Whether iced stopped at the limit in `instruction`, which begins `bytes`. */
export function isTooLong(instruction: Instruction, bytes: Uint8Array, bits: 16 | 32 | 64): boolean {
  if (!instruction.isInvalid || instruction.length < LONGEST) return false;
  const shorter = withoutPrefix(withoutPrefix(bytes.subarray(0, LONGEST), bits), bits);
  const read = new Uint8Array(2 * LONGEST);
  read.set(shorter);
  const { Decoder, DecoderOptions } = iced();
  const decoder = new Decoder(bits, read, DecoderOptions.AMD);
  const without = decoder.decode();
  // Of an opcode that nobody has iced reads the ModRM byte as well.
  const length = without.isInvalid ? without.length - 1 : without.length;
  without.free();
  decoder.free();
  return length > shorter.length;
}

/** Those that say which opcode it is, or how long its operands are. */
const MANDATORY: ReadonlySet<number> = new Set([0x66, 0x67, 0xf2, 0xf3]);

/** The same without a prefix that comes once more; where none does without the first that any instruction can have. */
function withoutPrefix(bytes: Uint8Array, bits: 16 | 32 | 64): Uint8Array {
  const end = bytes.findIndex((byte) => !PREFIXES.has(byte) && (bits !== 64 || byte >> 4 !== 4));
  const prefixes = end < 0 ? bytes : bytes.subarray(0, end);
  const repeated = prefixes.findIndex((byte, at) => prefixes.includes(byte, at + 1));
  const dropped = repeated >= 0 ? repeated : prefixes.findIndex((byte) => !MANDATORY.has(byte));
  return bytes.filter((_, at) => at !== Math.max(dropped, 0));
}
