/**
 * Execution outside 64-bit mode: real mode, protected mode, compatibility mode, with 16 and 32-bit operands and addresses (APM volume 1, 2.1;
 * volume 2, 1.3). One instruction at a time, since such code is a few thousand instructions on the way to 64-bit mode. Segments, stack,
 * branches and strings are done here; whatever else there is runs in the same handlers as in 64-bit mode, after its memory operand has become a
 * linear address.
 *
 * Left out: virtual-8086 mode, task switches, paging without long mode (all throw by name), limits of what INS and OUTS access.
 */
import { SAVE } from '../../../abi/vmcb.ts';
import { VECTOR } from '../../../abi/x86.ts';
import { NotImplementedError } from '../../../base/errors.ts';
import { type Instruction, iced } from '../decode/iced.ts';
import { codeBits, hasRealSegments, modeOf } from '../mode.ts';
import type { CoreParts } from '../parts.ts';
import type { Segmentation } from '../segments.ts';
import { LEAVE, STATE } from '../state.ts';
import { addressBits, operandBytes, SegmentedMemory } from './addressing.ts';
import { INSTRUCTIONS } from './instructions.ts';
import { Operands } from './operands.ts';
import { asString, executeString } from './strings.ts';

const LONGEST = 15;
const PAGE = 4096;

export interface LegacyOptions {
  readonly parts: CoreParts;
  readonly segments: Segmentation;
  /** The frame of code at a linear address, or −1 with `fetchFailure` saying why not. */
  readonly fetchFrame: (linear: number) => number;
  readonly fetchFailure: () => number;
  /** Runs an instruction whose memory operand is a linear address in the handlers of 64-bit mode. */
  readonly execute: (instruction: Instruction, frame: number) => number;
}

export class LegacyExecution {
  readonly #options: LegacyOptions;
  readonly #memory: SegmentedMemory;
  readonly #operands: Operands;
  /** Where the instruction lies. */
  #frame = 0;

  constructor(options: LegacyOptions) {
    this.#options = options;
    this.#memory = new SegmentedMemory(options.parts);
    this.#operands = new Operands(options.parts, this.#memory, options.segments);
  }

  /** Runs the instruction at CS:rIP. LEAVE.STOP or RESUME when it is done, 0 in the middle of a long string, else as the interpreter's `step`. */
  step(): number {
    const { parts } = this.#options;
    const { registers, events } = parts;
    if (modeOf(registers) === 'virtual-8086') throw new NotImplementedError('virtual-8086 mode');
    const bits = codeBits(registers) as 16 | 32;
    const rip = registers.rip;
    const limit = registers.limit(SAVE.CS);
    if (rip > BigInt(limit)) return events.raiseWith(VECTOR.GP, 0);
    const bytes = this.#fetch(bits);
    if (typeof bytes === 'number') return bytes;
    const { Decoder, DecoderOptions } = iced();
    const decoder = new Decoder(bits, bytes, DecoderOptions.AMD);
    decoder.ip = rip;
    const instruction = decoder.decode();
    try {
      if (rip + BigInt(instruction.length - 1) > BigInt(limit)) return events.raiseWith(VECTOR.GP, 0);
      return this.#execute(instruction, bits);
    } finally {
      instruction.free();
      decoder.free();
    }
  }

  #execute(instruction: Instruction, bits: 16 | 32): number {
    const { parts } = this.#options;
    const name = mnemonic(instruction);
    const own = INSTRUCTIONS[name];
    const string = asString(name, instruction);
    if (own === undefined && string === undefined) return this.#shared(name, instruction, bits);
    const { registers } = parts;
    const { rip } = registers;
    if (string !== undefined) {
      const reason = executeString(parts, this.#memory, string, instruction);
      if (reason === LEAVE.RESUME) return 0;
      return reason === 0 ? this.#done(rip + BigInt(instruction.length)) : reason;
    }
    const operands = this.#operands.begin(instruction, bits);
    const reason = own!(operands);
    if (reason === undefined) return this.#shared(name, instruction, bits);
    return reason === 0 ? this.#done(operands.next) : reason;
  }

  /** The instruction has been executed, and RIP is next. */
  #done(next: bigint): number {
    const { registers } = this.#options.parts;
    registers.rip = next;
    registers.setLong(STATE.RETIRED, registers.long(STATE.RETIRED) + 1n);
    return LEAVE.STOP;
  }

  /** In a handler of 64-bit mode, with the memory operand's linear address in the place of its registers. */
  #shared(name: string, instruction: Instruction, bits: 16 | 32): number {
    const { parts } = this.#options;
    const { OpKind, Register } = iced();
    for (let k = 0; k < instruction.opCount; k++) {
      if (instruction.opKind(k) !== OpKind.Memory) continue;
      const size = addressBits(instruction, bits);
      const ofAddress = name === 'Lea' || name === 'Nop' || name.startsWith('Prefetch');
      let linear = this.#memory.offset(instruction, size);
      if (!ofAddress) {
        const access = this.#writes(instruction) ? 'write' : 'read';
        const reason = this.#memory.locate(instruction, size, operandBytes(instruction), access);
        if (reason !== 0) return reason;
        linear = this.#memory.linear;
      }
      instruction.segmentPrefix = Register.None;
      instruction.memoryBase = Register.None;
      instruction.memoryIndex = Register.None;
      instruction.memoryDisplacement = linear;
      instruction.memoryDisplSize = 8;
    }
    // These are instructions of 64-bit mode alone, or of protected mode.
    if (hasRealSegments(parts.registers) && /^(Arpl|Vmrun|Vmload|Vmsave|Sysret)/.test(name))
      return parts.events.raise(VECTOR.UD);
    return this.#options.execute(instruction, this.#frame);
  }

  /** Whether a memory operand is written. */
  #writes(instruction: Instruction): boolean {
    const { InstructionInfoFactory, OpAccess } = iced();
    const factory = new InstructionInfoFactory();
    const info = factory.info(instruction);
    const used = info.usedMemory() as { access: number; free(): void }[];
    const reads = new Set<number>([OpAccess.Read, OpAccess.CondRead, OpAccess.NoMemAccess]);
    const writes = used.some(({ access }) => !reads.has(access));
    for (const one of used) one.free();
    info.free();
    factory.free();
    return writes;
  }

  /** The bytes of the instruction, or a LEAVE code. */
  #fetch(bits: 16 | 32): Uint8Array | number {
    const { parts, fetchFrame, fetchFailure } = this.#options;
    const { registers, memory } = parts;
    const linear = Number(BigInt.asUintN(32, registers.base(SAVE.CS) + registers.rip));
    const frame = fetchFrame(linear);
    if (frame < 0) return fetchFailure();
    this.#frame = frame;
    const offset = linear & (PAGE - 1);
    const here = memory.bytes.slice(frame * PAGE + offset, frame * PAGE + Math.min(offset + LONGEST, PAGE));
    if (here.length === LONGEST || !ranOut(here, bits)) return here;
    const next = fetchFrame((linear - offset + PAGE) >>> 0);
    if (next < 0) return fetchFailure();
    const joined = new Uint8Array(LONGEST);
    joined.set(here);
    joined.set(memory.bytes.subarray(next * PAGE, next * PAGE + LONGEST - here.length), here.length);
    return joined;
  }
}

/** Whether the bytes end before the instruction does. */
function ranOut(bytes: Uint8Array, bits: 16 | 32): boolean {
  const { Decoder, DecoderError, DecoderOptions } = iced();
  const decoder = new Decoder(bits, bytes, DecoderOptions.AMD);
  const instruction = decoder.decode();
  const error = decoder.lastError;
  instruction.free();
  decoder.free();
  return error === DecoderError.NoMoreBytes;
}

const mnemonic = (instruction: Instruction): string => iced().Mnemonic[instruction.mnemonic]!;
