/**
 * Execution outside 64-bit mode: real mode, protected mode, compatibility mode, with 16 and 32-bit operands and addresses (APM volume 1, 2.1;
 * volume 2, 1.3). One instruction at a time, since such code is a few thousand instructions on the way to 64-bit mode. Segments, stack,
 * branches and strings are done here; whatever else there is runs in the same handlers as in 64-bit mode, after its memory operand has become a
 * linear address.
 *
 * Left out: virtual-8086 mode, task switches, paging without long mode (all throw by name).
 */
import { SAVE } from '../../../abi/vmcb.ts';
import { VECTOR } from '../../../abi/x86.ts';
import { NotImplementedError } from '../../../base/errors.ts';
import { type Instruction, iced } from '../decode/iced.ts';
import { isTooLong, LONGEST } from '../decode/longest.ts';
import { registers as places } from '../decode/registers.ts';
import type { Interpreter } from '../interpreter.ts';
import { codeBits, hasRealSegments, modeOf } from '../mode.ts';
import type { CoreParts } from '../parts.ts';
import type { Registers } from '../registers.ts';
import type { Segmentation } from '../segments.ts';
import { LEAVE, STATE } from '../state.ts';
import { addressBits, operandBytes, SegmentedMemory } from './addressing.ts';
import { INSTRUCTIONS, type LegacyInstruction } from './instructions.ts';
import { Operands } from './operands.ts';
import { asString, executeString, type StringInstruction } from './strings.ts';

const PAGE = 4096;
/** Instructions that are kept decoded at most. */
const REMEMBERED = 4096;

export interface LegacyOptions {
  readonly parts: CoreParts;
  readonly segments: Segmentation;
  /** The frame of code at a linear address, or −1 with `fetchFailure` saying why not. */
  readonly fetchFrame: (linear: number) => number;
  readonly fetchFailure: () => number;
  /** Its handlers do what is the same in 64-bit mode. */
  readonly interpreter: Interpreter;
}

/** An instruction, decoded. */
interface Decoded {
  readonly bits: 16 | 32;
  readonly bytes: Uint8Array;
  readonly rip: bigint;
  readonly instruction: Instruction;
  readonly name: string;
  readonly tooLong: boolean;
  readonly own: LegacyInstruction | undefined;
  readonly string: StringInstruction | undefined;
  /** What the interpreter's handlers do: the instruction with its memory operand at STATE.LINEAR, and how that is found. */
  shared: Shared | undefined;
}

interface Shared {
  readonly instruction: Instruction;
  readonly operand: 'none' | 'address' | 'read' | 'write';
  readonly addressBits: 16 | 32;
  readonly bytes: number;
  /** The register with the index of a bit test, which moves the operand. */
  readonly bitIndex: number | undefined;
  record: number;
  flushes: number;
  mode: number;
}

export class LegacyExecution {
  readonly #options: LegacyOptions;
  readonly #memory: SegmentedMemory;
  readonly #operands: Operands;
  /** By linear address. */
  readonly #decoded = new Map<number, Decoded>();
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
    const { rip } = registers;
    const limit = BigInt(registers.limit(SAVE.CS));
    if (rip > limit) return events.raiseWith(VECTOR.GP, 0);
    const decoded = this.#decode(codeBits(registers) as 16 | 32);
    if (typeof decoded === 'number') return decoded;
    if (decoded.tooLong) return events.raiseWith(VECTOR.GP, 0);
    const length = BigInt(decoded.instruction.length);
    if (rip + length - 1n > limit) return events.raiseWith(VECTOR.GP, 0);
    if (decoded.string !== undefined) {
      const reason = executeString(parts, this.#memory, decoded.string, decoded.instruction);
      if (reason === LEAVE.RESUME) return 0;
      return reason === 0 ? this.#done(rip + length) : reason;
    }
    if (decoded.own !== undefined) {
      const operands = this.#operands.begin(decoded.instruction, decoded.bits);
      const reason = decoded.own(operands);
      if (reason !== undefined) return reason === 0 ? this.#done(operands.next) : reason;
    }
    return this.#runShared(decoded);
  }

  /** The instruction has been executed, and RIP is next. */
  #done(next: bigint): number {
    const { registers } = this.#options.parts;
    registers.rip = next;
    registers.setLong(STATE.RETIRED, registers.long(STATE.RETIRED) + 1n);
    return LEAVE.STOP;
  }

  /** In a handler of 64-bit mode, with the memory operand's linear address in the place of its registers. */
  #runShared(decoded: Decoded): number {
    const { parts, interpreter } = this.#options;
    const { registers } = parts;
    decoded.shared ??= share(decoded);
    const { shared } = decoded;
    if (shared.operand === 'address') {
      registers.setLong(STATE.LINEAR, this.#memory.offset(decoded.instruction, shared.addressBits));
    } else if (shared.operand !== 'none') {
      const { addressBits, bytes, operand, bitIndex } = shared;
      const further = bitIndex === undefined ? 0n : unitsToBit(registers, bitIndex) * BigInt(bytes);
      const reason = this.#memory.locate(decoded.instruction, addressBits, bytes, operand, further);
      if (reason !== 0) return reason;
      registers.setLong(STATE.LINEAR, this.#memory.linear);
    }
    // These are instructions of protected mode alone.
    if (PROTECTED.test(decoded.name) && hasRealSegments(registers)) return parts.events.raise(VECTOR.UD);
    if (shared.flushes !== interpreter.flushes || shared.mode !== interpreter.mode) {
      shared.record = interpreter.plan(shared.instruction, this.#frame);
      shared.flushes = interpreter.flushes;
      shared.mode = interpreter.mode;
    }
    return interpreter.runPlanned(shared.record);
  }

  /** The instruction at CS:rIP, or a LEAVE code. */
  #decode(bits: 16 | 32): Decoded | number {
    const { parts, fetchFrame, fetchFailure } = this.#options;
    const { registers, memory } = parts;
    const { rip } = registers;
    const linear = Number(BigInt.asUintN(32, registers.base(SAVE.CS) + rip));
    const frame = fetchFrame(linear);
    if (frame < 0) return fetchFailure();
    this.#frame = frame;
    const offset = linear & (PAGE - 1);
    const at = frame * PAGE + offset;
    const known = this.#decoded.get(linear);
    if (
      known !== undefined &&
      known.bits === bits &&
      known.rip === rip &&
      sameBytes(memory.bytes, at, known.bytes)
    )
      return known;
    let bytes = memory.bytes.slice(at, Math.min(at + LONGEST, (frame + 1) * PAGE));
    let { instruction, ranOut } = decode(bytes, bits, rip);
    if (ranOut && bytes.length < LONGEST) {
      instruction.free();
      const next = fetchFrame((linear - offset + PAGE) >>> 0);
      if (next < 0) return fetchFailure();
      const joined = new Uint8Array(LONGEST);
      joined.set(bytes);
      joined.set(memory.bytes.subarray(next * PAGE, next * PAGE + LONGEST - bytes.length), bytes.length);
      bytes = joined;
      ({ instruction, ranOut } = decode(bytes, bits, rip));
    }
    const name = iced().Mnemonic[instruction.mnemonic]!;
    const string = asString(name, instruction);
    const own = INSTRUCTIONS[name];
    bytes = bytes.slice(0, instruction.length);
    const tooLong = isTooLong(instruction, bytes, bits);
    const decoded = { bits, bytes, rip, instruction, name, tooLong, own, string, shared: undefined };
    this.#remember(linear, decoded);
    return decoded;
  }

  #remember(linear: number, decoded: Decoded): void {
    const old = this.#decoded.get(linear);
    if (old !== undefined) {
      this.#decoded.delete(linear);
      release(old);
    }
    if (this.#decoded.size >= REMEMBERED) this.forget();
    this.#decoded.set(linear, decoded);
  }

  /** Gives back what is kept decoded. */
  forget(): void {
    for (const one of this.#decoded.values()) release(one);
    this.#decoded.clear();
  }
}

const PROTECTED = /^(Arpl|Vmrun|Vmload|Vmsave|Sysret)/;

/** Never true of an instruction that goes on in another page. */
function sameBytes(memory: Uint8Array, at: number, bytes: Uint8Array): boolean {
  if ((at & (PAGE - 1)) + bytes.length > PAGE || bytes.length === 0) return false;
  for (let n = 0; n < bytes.length; n++) if (memory[at + n] !== bytes[n]) return false;
  return true;
}

function release(decoded: Decoded): void {
  decoded.instruction.free();
  decoded.shared?.instruction.free();
}

function decode(
  bytes: Uint8Array,
  bits: 16 | 32,
  rip: bigint,
): { instruction: Instruction; ranOut: boolean } {
  const { Decoder, DecoderError, DecoderOptions } = iced();
  const decoder = new Decoder(bits, bytes, DecoderOptions.AMD);
  decoder.ip = rip;
  const instruction = decoder.decode();
  const ranOut = decoder.lastError === DecoderError.NoMoreBytes;
  decoder.free();
  return { instruction, ranOut };
}

const BIT_TEST = /^Bt[src]?$/;

/** How many operands away the bit lies whose signed index the register holds. */
function unitsToBit(state: Registers, register: number): bigint {
  const { offset, size } = places().places.get(register)!;
  return BigInt.asIntN(size, state.long(offset)) >> BigInt(Math.log2(size));
}

/** What the interpreter's handlers need of the instruction. */
function share({ instruction, bits, name }: Decoded): Shared {
  const { OpKind, Register } = iced();
  const copy = instruction.clone();
  const memory = Array.from({ length: instruction.opCount }, (_, k) => instruction.opKind(k)).includes(
    OpKind.Memory,
  );
  const ofAddress = name === 'Lea' || name === 'Nop' || name.startsWith('Prefetch');
  if (memory) {
    copy.segmentPrefix = Register.None;
    copy.memoryBase = places().linear;
    copy.memoryIndex = Register.None;
    copy.memoryDisplacement = 0n;
    copy.memoryDisplSize = 0;
  }
  const access = memory && writes(instruction) ? 'write' : 'read';
  return {
    instruction: copy,
    operand: !memory ? 'none' : ofAddress ? 'address' : access,
    addressBits: addressBits(instruction, bits),
    bytes: operandBytes(instruction),
    bitIndex:
      memory && BIT_TEST.test(name) && instruction.opKind(1) === OpKind.Register
        ? instruction.opRegister(1)
        : undefined,
    record: 0,
    flushes: -1,
    mode: -1,
  };
}

/** Whether a memory operand is written. */
function writes(instruction: Instruction): boolean {
  const { InstructionInfoFactory, OpAccess } = iced();
  const factory = new InstructionInfoFactory();
  const info = factory.info(instruction);
  const used = info.usedMemory() as { access: number; free(): void }[];
  const reads = new Set<number>([OpAccess.Read, OpAccess.CondRead, OpAccess.NoMemAccess]);
  const found = used.some(({ access }) => !reads.has(access));
  for (const one of used) one.free();
  info.free();
  factory.free();
  return found;
}
