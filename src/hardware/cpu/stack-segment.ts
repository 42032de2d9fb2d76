/**
 * A non-canonical address is #SS for accesses by the stack segment and #GP for others (APM volume 2, 8.2.13). The generated code does not
 * say which it was; the instruction at RIP does, looked at when it has happened.
 */
import { iced } from './decode/iced.ts';
import type { CoreParts } from './parts.ts';
import { peekCode } from './peek-code.ts';

const LONGEST = 15;

/** Whether the memory operand of the instruction at RIP goes through SS, or it accesses memory by the stack alone. */
export function usesStackSegment(parts: CoreParts): boolean {
  const bytes = new Uint8Array(LONGEST);
  const count = peekCode(parts, bytes);
  const { Decoder, DecoderOptions, OpKind, Register } = iced();
  const decoder = new Decoder(64, bytes.subarray(0, count), DecoderOptions.AMD);
  const instruction = decoder.decode();
  try {
    for (let k = 0; k < instruction.opCount; k++) {
      if (instruction.opKind(k) !== OpKind.Memory) continue;
      return instruction.memorySegment === Register.SS;
    }
    return instruction.isStackInstruction;
  } finally {
    instruction.free();
    decoder.free();
  }
}
