/**
 * Decodes code pages into lines of records (docs/CORE.md). A line begins where control arrived and runs on to an unconditional
 * jump, the page's end, something already decoded, or a limit. Lines are of 64-bit mode; outside it (legacy/) instructions come one by one.
 */
import { DeadFlags } from './decode/dead-flags.ts';
import { type Decoder, type Instruction, iced } from './decode/iced.ts';
import { Line } from './decode/line.ts';
import { isTooLong, LONGEST, PREFIXES } from './decode/longest.ts';
import { planNarrowBranch } from './decode/narrow-branch.ts';
import { effectiveAddress, type HandlerNumber, memoryOperand } from './decode/operands.ts';
import { planDescribed, planUnavailable } from './decode/plan.ts';
import { planString } from './decode/string.ts';
import { addSystem, type Prefixes, planSystem } from './decode/system.ts';
import { type CodeMemory, type CodePage, type CodePages, markDecoded } from './page-map.ts';
import { RECORD } from './record.ts';
import { DIRECT_BRANCHES } from './semantics/branch.ts';
import { CONDITIONS } from './semantics/flags.ts';

const PAGE = 4096;
/** Instructions of a line at most; records of an instruction at most, the guard and the line's end included. */
const LINE_INSTRUCTIONS = 64;
const INSTRUCTION_RECORDS = 8;

/** The frame of the page that follows, or −1 when it cannot be fetched. Asked only when an instruction to be run goes on there. */
export type NextFrame = () => number;

export type DecodeResult = 'decoded' | 'no-room' | 'no-next-page';

/** Mnemonics that may be fused with a conditional jump behind them. */
const FUSIBLE = new Set(['Cmp', 'Test', 'Add', 'Sub', 'Inc', 'Dec']);
const NO_REX: Prefixes = { rexW: false };
const ENDS = new Set([
  'Jmp',
  'Ret',
  'Retf',
  'Iretq',
  'Iretd',
  'Iret',
  'Sysret',
  'Sysretq',
  'Ud2',
  'Hlt',
  'Vmgexit',
]);

export class LineDecoder {
  readonly #memory: CodeMemory;
  readonly #pages: CodePages;
  readonly #handler: HandlerNumber;
  readonly #state: number;
  readonly #deadFlags: DeadFlags;
  /** Names by mnemonic. */
  #names: readonly string[] = [];

  constructor(memory: CodeMemory, pages: CodePages, handler: HandlerNumber, state: number) {
    this.#memory = memory;
    this.#pages = pages;
    this.#handler = handler;
    this.#state = state;
    this.#deadFlags = new DeadFlags(handler, memory.words);
  }

  /** Decodes the line at `offset` of the page and enters it into the page map. */
  decode(page: CodePage, offset: number, nextFrame: NextFrame): DecodeResult {
    let records = 0;
    const result = this.#withLine((line) => {
      const bytes = this.#memory.bytes.slice(page.frame * PAGE + offset, (page.frame + 1) * PAGE);
      const reader = new Reader(bytes, offset);
      try {
        const first = reader.next(offset);
        if (reader.ranOut) return this.#straddling(line, page, offset, nextFrame);
        this.#run(line, page, reader, first, offset);
        return 'decoded';
      } finally {
        records = line.count;
        reader.free();
      }
    });
    this.#pages.commit(records);
    return result;
  }

  /**
   * Decodes one instruction, followed by a stop, without a place in the page map. Returns its record's address, or why not. The
   * records live until something else is decoded.
   */
  decodeSingle(page: CodePage, offset: number, nextFrame: NextFrame): number | DecodeResult {
    let start = 0;
    const result = this.#withLine((line) => {
      start = line.start;
      const bytes = this.#bytesAcross(page, offset, nextFrame);
      if (bytes === undefined) return 'no-next-page';
      const reader = new Reader(bytes, offset);
      try {
        const instruction = reader.next(offset);
        line.beginInstruction(offset, instruction.length);
        this.#planRead(line, page, reader, instruction);
        line.beginInstruction(offset + instruction.length, 0);
        line.add(this.#handler('stop')!);
        return 'decoded';
      } finally {
        reader.free();
      }
    });
    return result === 'decoded' ? start : result;
  }

  /**
   * Records of one instruction that has been decoded outside 64-bit mode and whose memory operand lies at STATE.LINEAR, followed by a stop.
   * They live until the next flush. `page` says the vector mode alone.
   */
  planSingle(page: CodePage, instruction: Instruction, offset: number): number | DecodeResult {
    let start = 0;
    let records = 0;
    const result = this.#withLine((line) => {
      start = line.start;
      line.beginInstruction(offset, instruction.length);
      this.#plan(line, page, instruction, NO_REX);
      line.beginInstruction(offset + instruction.length, 0);
      line.add(this.#handler('stop')!);
      records = line.count;
      return 'decoded';
    });
    this.#pages.commit(records);
    return result === 'decoded' ? start : result;
  }

  #withLine(body: (line: Line) => DecodeResult): DecodeResult {
    const start = this.#pages.reserve((LINE_INSTRUCTIONS + 2) * INSTRUCTION_RECORDS);
    if (start === 0) return 'no-room';
    const line = new Line(this.#memory, start, this.#state);
    return body(line);
  }

  #run(line: Line, page: CodePage, reader: Reader, first: Instruction, from: number): void {
    let instruction = first;
    let offset = from;
    this.#deadFlags.reset();
    for (;;) {
      const end = offset + instruction.length;
      this.#enter(page, offset, line.beginInstruction(offset, instruction.length));
      const before = line.count;
      const name = this.#planRead(line, page, reader, instruction);
      this.#deadFlags.note(line.record, line.count - before);
      markDecoded(page, offset, end);
      if (ENDS.has(name)) return;
      offset = end;
      const known = offset >= PAGE || this.#memory.words[(page.map >>> 2) + offset] !== 0;
      if (known || line.instructions >= LINE_INSTRUCTIONS) break;
      instruction = reader.next(offset);
      if (reader.ranOut) break;
      if (FUSIBLE.has(name) && this.#fuse(line, page, name, instruction)) {
        this.#deadFlags.reset();
        offset += instruction.length;
        markDecoded(page, end, offset);
        if (offset >= PAGE || this.#memory.words[(page.map >>> 2) + offset] !== 0) break;
        instruction = reader.next(offset);
        if (reader.ranOut) break;
      }
    }
    this.#goOn(line, page, offset);
  }

  /** Ends a line that does not end in a jump: control goes to `offset`. */
  #goOn(line: Line, page: CodePage, offset: number): void {
    line.add(this.#handler(offset < PAGE ? 'jmp.64' : 'nextPage.64')!);
    line.through(line.instructions, line.instructions);
    this.#setTarget(line, page, offset);
  }

  #straddling(line: Line, page: CodePage, offset: number, nextFrame: NextFrame): DecodeResult {
    const frame = nextFrame();
    if (frame < 0) return 'no-next-page';
    const next = this.#pages.get(frame, page.mode) ?? this.#pages.create(frame, page.mode);
    if (!next) return 'no-room';
    const bytes = this.#join(page.frame, offset, frame);
    const reader = new Reader(bytes, offset);
    try {
      const instruction = reader.next(offset);
      const record = line.beginInstruction(offset, instruction.length);
      line.add(this.#handler('guard')!);
      line.immediate(BigInt(frame * PAGE));
      const name = this.#planRead(line, page, reader, instruction);
      const end = offset + instruction.length;
      this.#enter(page, offset, record);
      markDecoded(page, offset, PAGE);
      if (end > PAGE) {
        next.first.push(record);
        markDecoded(next, 0, end - PAGE);
      }
      if (!ENDS.has(name)) this.#goOn(line, page, end);
      return 'decoded';
    } finally {
      reader.free();
    }
  }

  #bytesAcross(page: CodePage, offset: number, nextFrame: NextFrame): Uint8Array | undefined {
    const bytes = this.#memory.bytes.slice(
      page.frame * PAGE + offset,
      Math.min((page.frame + 1) * PAGE, page.frame * PAGE + offset + LONGEST),
    );
    const reader = new Reader(bytes, offset);
    reader.next(offset);
    const straddles = reader.ranOut && offset + LONGEST > PAGE;
    reader.free();
    if (!straddles) return bytes;
    const frame = nextFrame();
    return frame < 0 ? undefined : this.#join(page.frame, offset, frame);
  }

  /** The 15 bytes from `offset` of one frame on, going on in another. */
  #join(frame: number, offset: number, next: number): Uint8Array {
    const { bytes } = this.#memory;
    const joined = new Uint8Array(LONGEST);
    const here = PAGE - offset;
    joined.set(bytes.subarray(frame * PAGE + offset, (frame + 1) * PAGE));
    joined.set(bytes.subarray(next * PAGE, next * PAGE + LONGEST - here), here);
    return joined;
  }

  #enter(page: CodePage, offset: number, record: number): void {
    this.#memory.words[(page.map >>> 2) + offset] = record;
    page.first.push(record);
  }

  /** The same of an instruction just read, which may be too long to be one. */
  #planRead(line: Line, page: CodePage, reader: Reader, instruction: Instruction): string {
    if (!reader.tooLong) return this.#plan(line, page, instruction, reader);
    addSystem(line, this.#handler, 'TOO_LONG', 0);
    return 'INVALID';
  }

  /** Writes the records of one instruction; returns its mnemonic's name. */
  #plan(line: Line, page: CodePage, instruction: Instruction, prefixes: Prefixes): string {
    const handler = this.#handler;
    const name = this.#name(instruction);
    const planned =
      name !== 'INVALID' &&
      (planUnavailable(name, page.mode, instruction, line, handler) ||
        this.#planBranch(name, line, page, instruction) ||
        planNarrowBranch(name, instruction, line, handler) ||
        planSystem(name, instruction, line, handler, prefixes) ||
        planString(name, instruction, line, handler) ||
        this.#planPop(name, instruction, line) ||
        planDescribed(name, instruction, line, handler));
    if (!planned) {
      addSystem(line, handler, isX87(instruction) ? 'X87' : 'UNDEFINED', 0);
      line.immediate(BigInt(instruction.mnemonic));
      line.immediateOperand(1);
    }
    return name;
  }

  #name(instruction: Instruction): string {
    if (this.#names.length === 0) {
      const { Mnemonic } = iced();
      const names: string[] = [];
      for (const [name, value] of Object.entries(Mnemonic))
        if (typeof value === 'number') names[value] = name;
      this.#names = names;
    }
    return this.#names[instruction.mnemonic]!;
  }

  #planBranch(name: string, line: Line, page: CodePage, instruction: Instruction): boolean {
    const operation = DIRECT_BRANCHES[name];
    const { Code, OpKind } = iced();
    if (operation === undefined || instruction.opKind(0) !== OpKind.NearBranch64) return false;
    const target = Number(BigInt.asIntN(64, instruction.nearBranchTarget));
    const short =
      name === 'Jecxz' ||
      [Code.Loop_rel8_64_ECX, Code.Loope_rel8_64_ECX, Code.Loopne_rel8_64_ECX].includes(instruction.code);
    const inPage = target >= 0 && target < PAGE;
    line.add(this.#handler(`${operation}${inPage ? '' : 'OutOfPage'}.${short ? 32 : 64}`)!);
    this.#setTarget(line, page, target);
    return true;
  }

  #setTarget(line: Line, page: CodePage, target: number): void {
    if (target >= 0 && target < PAGE) line.word(RECORD.TARGET, page.map + 4 * target);
    else line.immediate(BigInt(target));
  }

  /** POP to memory: the address counts with RSP as it is after the pop. */
  #planPop(name: string, instruction: Instruction, line: Line): boolean {
    if (name !== 'Pop' || memoryOperand(instruction) < 0) return false;
    const { Code, Register } = iced();
    const size = instruction.code === Code.Pop_rm16 ? 16 : 64;
    const base = instruction.memoryBase;
    if (base === Register.RSP || base === Register.ESP) {
      instruction.memoryDisplacement = BigInt.asUintN(64, instruction.memoryDisplacement + BigInt(size / 8));
    }
    line.add(this.#handler(`popToMemory.${size}`)!, effectiveAddress(instruction, line, this.#handler));
    return true;
  }

  /** Turns the record of CMP or TEST just written into one that also jumps, if `instruction` is a Jcc inside the page. */
  #fuse(line: Line, page: CodePage, before: string, instruction: Instruction): boolean {
    const condition = CONDITIONS.find(([name]) => `J${name.toLowerCase()}` === this.#name(instruction));
    if (!condition || instruction.opKind(0) !== iced().OpKind.NearBranch64) return false;
    const target = Number(BigInt.asIntN(64, instruction.nearBranchTarget));
    if (target < 0 || target >= PAGE) return false;
    const fused = this.#fusedHandler(
      this.#memory.words[line.record >>> 2]!,
      before.toLowerCase(),
      condition[0],
    );
    if (fused === undefined) return false;
    line.word(RECORD.HANDLER, fused);
    line.through(line.instructions - 1, line.instructions + 1);
    line.instructions++;
    this.#setTarget(line, page, target);
    return true;
  }

  #fusedHandler(current: number, operation: string, condition: string): number | undefined {
    for (const form of ['8', '32', '64', '8.memory0', '32.memory0', '64.memory0']) {
      if (this.#handler(`${operation}.${form}`) === current) {
        return this.#handler(`${operation}+j${condition}.${form}`);
      }
    }
    return undefined;
  }
}

function isX87(instruction: Instruction): boolean {
  const { CpuidFeature } = iced();
  const { FPU, FPU287, FPU387, SSE3 } = CpuidFeature;
  const features = [...instruction.cpuidFeatures()];
  // FISTTP is counted among SSE3.
  return (
    [FPU, FPU287, FPU387].some((one) => features.includes(one)) ||
    (features.includes(SSE3) && instruction.mnemonic === iced().Mnemonic.Fisttp)
  );
}

/** iced's decoder over a copy of some bytes, whose first one has offset `start` in its page. */
class Reader {
  readonly #bytes: Uint8Array;
  readonly #decoder: Decoder;
  readonly #instruction: Instruction;
  readonly #start: number;

  constructor(bytes: Uint8Array, start: number) {
    const { Decoder, DecoderOptions, Instruction } = iced();
    this.#bytes = bytes;
    this.#decoder = new Decoder(64, bytes, DecoderOptions.AMD);
    this.#instruction = new Instruction();
    this.#start = start;
  }

  /** The instruction at `offset`; the same object each time. */
  next(offset: number): Instruction {
    this.#decoder.position = offset - this.#start;
    this.#decoder.ip = BigInt(offset);
    this.#decoder.decodeOut(this.#instruction);
    return this.#instruction;
  }

  /** The instruction goes on beyond the limit. */
  get tooLong(): boolean {
    const from = Number(this.#instruction.ip) - this.#start;
    return isTooLong(this.#instruction, this.#bytes.subarray(from, from + LONGEST), 64);
  }

  /** The instruction has a REX prefix with W, which iced does not say where it finds none of use. */
  get rexW(): boolean {
    let at = Number(this.#instruction.ip) - this.#start;
    while (PREFIXES.has(this.#bytes[at]!)) at++;
    return (this.#bytes[at]! & 0xf8) === 0x48;
  }

  /** The bytes ended before the instruction did. */
  get ranOut(): boolean {
    return this.#decoder.lastError === iced().DecoderError.NoMoreBytes;
  }

  free(): void {
    this.#instruction.free();
    this.#decoder.free();
  }
}
