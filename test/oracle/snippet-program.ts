/**
 * A static Linux program that runs many snippets one after the other: before each it loads all registers, flags and vectors from a
 * block of its own, afterwards it stores them into another; a signal handler stores them when the snippet faults. At the
 * end it writes all outcomes and memory windows to standard output. The host's CPU runs it, and so does our core.
 */
import { type Outcome, type Snippet, WINDOW_BYTES } from './snippet.ts';

const PAGE = 4096;
const IMAGE = 0x400000;
/** Program headers and the start-up code. */
const START = IMAGE + 0x1000;
const IN_BYTES = 512;
const OUT_BYTES = 1024;
/** Offsets in a block. */
const FLAGS = 128;
const SIGNAL = 136;
const MXCSR = 144;
const VECTORS = 256;
const CONTEXT = 512;
const CONTEXT_WORDS = 23;
/** Where gregs of a ucontext hold rax … r15 and RIP, flags. */
const CONTEXT_ORDER = [13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7];
const CONTEXT_RIP = 16;
const CONTEXT_FLAGS = 17;
const CONTEXT_ERROR = 19;
const CONTEXT_VECTOR = 20;
const CONTEXT_CR2 = 22;
/** The ucontext's pointer to the FXSAVE image, and MXCSR and the vectors in that. */
const CONTEXT_FLOAT = 224;
const FLOAT_MXCSR = 24;
const FLOAT_VECTORS = 160;

const SIGNALS = [4, 5, 7, 8, 11];
const SYS_WRITE = 1;
const SYS_MUNMAP = 11;
const SYS_SIGACTION = 13;
const SYS_EXIT = 60;
const SYS_SIGALTSTACK = 131;
const SA_SIGINFO_ONSTACK_RESTORER_NODEFER = 0x4c000004n;

export interface SnippetProgram {
  /** An ELF64 executable. */
  readonly elf: Uint8Array;
  /** The loaded image and where it lies. */
  readonly image: Uint8Array;
  readonly base: number;
  /** Where it begins once its pages are there; the executable makes them so first. */
  readonly entry: number;
  /** Pages of the image that are not there while the snippets run. */
  readonly missing: readonly number[];
  /** Linear range that is written to standard output. */
  readonly output: { readonly at: number; readonly bytes: number };
  /** Addresses of the variables that the signal handler uses. */
  readonly current: number;
  readonly resume: number;
  readonly handler: number;
  /** Outcome of snippet `n` from what the program wrote. */
  outcome(n: number, output: Uint8Array): Outcome;
}

const WINDOWS = 0x1000000;
/** How far below the stack pointer ENTER may end. */
const ENTER_REACH = 0x11000;

/** Where the windows of a program's snippets lie; known before the code is. */
export interface WindowLayout {
  readonly address: (n: number) => number;
  /** What operands are near. */
  readonly center: (n: number) => number;
  /** Pages that are missing, in a program of `count` snippets. */
  readonly missing: (count: number) => number[];
}

/** Linear address of the window of snippet `n` where windows lie side by side. */
export const windowAddress = (n: number): number => WINDOWS + n * 2 * WINDOW_BYTES + WINDOW_BYTES / 2;

export const SIDE_BY_SIDE: WindowLayout = {
  address: windowAddress,
  center: (n) => windowAddress(n) + WINDOW_BYTES / 2,
  missing: () => [],
};

/** Each window in a page of its own between two that are missing: at its beginning and at its end by turns. */
export const AT_PAGE_EDGES: WindowLayout = {
  address: (n) => WINDOWS + n * 2 * PAGE + PAGE + (n % 2) * (PAGE - WINDOW_BYTES),
  center: (n) => WINDOWS + n * 2 * PAGE + PAGE + (n % 2) * PAGE,
  missing: (count) => Array.from({ length: count + 1 }, (_, n) => WINDOWS + n * 2 * PAGE),
};
const OUTPUTS = 0xc00000;
const INPUTS = 0x900000;
const VARIABLES = 0x8f0000;
const ALTERNATE_STACK = 0x8e0000;
const ALTERNATE_STACK_BYTES = 0x8000;

class Assembly {
  readonly bytes: number[] = [];
  readonly at: number;

  constructor(at: number) {
    this.at = at;
  }

  get here(): number {
    return this.at + this.bytes.length;
  }
  put(...bytes: number[]): void {
    this.bytes.push(...bytes);
  }
  u32(value: number): void {
    this.put(value & 255, (value >> 8) & 255, (value >> 16) & 255, (value >>> 24) & 255);
  }
  /** mov register, imm32 (zero-extended) */
  setRegister(register: number, value: number): void {
    if (register >= 8) this.put(0x41);
    this.put(0xb8 + (register & 7));
    this.u32(value);
  }
  /** mov register, [address] */
  loadRegister(register: number, address: number): void {
    this.put(0x48 | ((register >> 3) << 2), 0x8b, 4 | ((register & 7) << 3), 0x25);
    this.u32(address);
  }
  storeRegister(register: number, address: number): void {
    this.put(0x48 | ((register >> 3) << 2), 0x89, 4 | ((register & 7) << 3), 0x25);
    this.u32(address);
  }
  /** movups */
  moveVector(direction: 'load' | 'store', register: number, address: number): void {
    if (register >= 8) this.put(0x44);
    this.put(0x0f, direction === 'load' ? 0x10 : 0x11, 4 | ((register & 7) << 3), 0x25);
    this.u32(address);
  }
  /** mov qword [address], imm32 */
  moveMxcsr(direction: 'load' | 'store', address: number): void {
    this.put(0x0f, 0xae, direction === 'load' ? 0x14 : 0x1c, 0x25);
    this.u32(address);
  }
  storeConstant(address: number, value: number): void {
    this.put(0x48, 0xc7, 0x04, 0x25);
    this.u32(address);
    this.u32(value);
  }
  jump(target: number): void {
    this.put(0xe9);
    this.u32(target - this.here - 4);
  }
  systemCall(number: number, ...args: number[]): void {
    const order = [7, 6, 2, 10];
    args.forEach((arg, n) => {
      this.setRegister(order[n]!, arg);
    });
    this.setRegister(0, number);
    this.put(0x0f, 0x05);
  }
}

export function snippetProgram(snippets: readonly Snippet[], layout = SIDE_BY_SIDE): SnippetProgram {
  const current = VARIABLES;
  const resume = VARIABLES + 8;
  const code = new Assembly(START);
  const handler = code.here;
  emitHandler(code, current, resume);
  const entry = code.here;
  code.systemCall(SYS_SIGALTSTACK, VARIABLES + 64, 0);
  for (const signal of SIGNALS) code.systemCall(SYS_SIGACTION, signal, VARIABLES + 128, 0, 8);
  const missing = layout.missing(snippets.length);
  for (const page of missing) code.systemCall(SYS_MUNMAP, page, PAGE);
  snippets.forEach((snippet, n) => {
    emitSnippet(code, snippet, n, current, resume);
  });
  const end = layout.address(snippets.length);
  code.systemCall(SYS_WRITE, 1, OUTPUTS, snippets.length * OUT_BYTES);
  snippets.forEach((_, n) => {
    code.systemCall(SYS_WRITE, 1, layout.address(n), WINDOW_BYTES);
  });
  code.systemCall(SYS_EXIT, 0);
  const start = code.here;
  emitTouches(code, WINDOWS - ENTER_REACH, end);
  code.jump(entry);
  if (code.here > ALTERNATE_STACK) throw new Error('too many snippets for one program');

  const image = new Uint8Array(end + 0x1000 - IMAGE);
  image.set(code.bytes, START - IMAGE);
  const view = new DataView(image.buffer);
  const put = (address: number, value: bigint) => view.setBigUint64(address - IMAGE, value, true);
  put(VARIABLES + 64, BigInt(ALTERNATE_STACK));
  put(VARIABLES + 80, BigInt(ALTERNATE_STACK_BYTES));
  put(VARIABLES + 128, BigInt(handler));
  put(VARIABLES + 136, SA_SIGINFO_ONSTACK_RESTORER_NODEFER);
  put(VARIABLES + 144, BigInt(handler));
  snippets.forEach(({ before }, n) => {
    const block = INPUTS + n * IN_BYTES;
    before.registers.forEach((value, r) => {
      put(block + 8 * r, value);
    });
    put(block + FLAGS, before.flags);
    put(block + MXCSR, BigInt(before.mxcsr));
    image.set(before.vectors, block + VECTORS - IMAGE);
    image.set(before.window, layout.address(n) - IMAGE);
  });
  const elf = staticElf(image, start);
  const outputBytes = snippets.length * OUT_BYTES;
  return {
    elf,
    image,
    base: IMAGE,
    entry,
    missing,
    output: { at: OUTPUTS, bytes: outputBytes },
    current,
    resume,
    handler,
    outcome: (n, output) => readOutcome(n, output, outputBytes),
  };
}

function emitSnippet(
  code: Assembly,
  { code: bytes }: Snippet,
  n: number,
  current: number,
  resume: number,
): void {
  const input = INPUTS + n * IN_BYTES;
  const output = OUTPUTS + n * OUT_BYTES;
  code.storeConstant(current, output);
  code.storeConstant(resume, 0);
  const patch = code.bytes.length - 4;
  code.setRegister(4, input + FLAGS);
  code.put(0x9d);
  code.moveMxcsr('load', input + MXCSR);
  for (let r = 0; r < 16; r++) code.moveVector('load', r, input + VECTORS + 16 * r);
  for (let r = 0; r < 16; r++) code.loadRegister(r, input + 8 * r);
  code.put(...bytes);
  for (let r = 0; r < 16; r++) code.storeRegister(r, output + 8 * r);
  for (let r = 0; r < 16; r++) code.moveVector('store', r, output + VECTORS + 16 * r);
  code.setRegister(4, output + FLAGS + 8);
  code.put(0x9c);
  code.moveMxcsr('store', output + MXCSR);
  const next = code.here;
  for (let b = 0; b < 4; b++) code.bytes[patch + b] = (next >> (8 * b)) & 255;
}

/**
 * Writes to every page once. Otherwise the kernel, when it gives a page to an instruction that is half done, has it begin again: an ENTER that
 * has copied over its own old frame then gives another result.
 */
function emitTouches(code: Assembly, from: number, end: number): void {
  code.setRegister(7, from);
  code.put(0x80, 0x0f, 0); // or byte [rdi], 0
  code.put(0x48, 0x81, 0xc7); // add rdi, PAGE
  code.u32(PAGE);
  code.put(0x48, 0x81, 0xff); // cmp rdi, end
  code.u32(end);
  code.put(0x72, 0xed); // jb to the or
}

/** rdi: signal, rdx: ucontext. */
function emitHandler(code: Assembly, current: number, resume: number): void {
  code.loadRegister(3, current);
  code.put(0x48, 0x89, 0xbb); // mov [rbx + SIGNAL], rdi
  code.u32(SIGNAL);
  code.put(0x48, 0x8d, 0x72, 0x28); // lea rsi, [rdx + 40]
  code.put(0x48, 0x8d, 0xbb); // lea rdi, [rbx + CONTEXT]
  code.u32(CONTEXT);
  code.setRegister(1, CONTEXT_WORDS);
  code.put(0xfc, 0xf3, 0x48, 0xa5); // cld; rep movsq
  code.put(0x48, 0x8b, 0x92); // mov rdx, [rdx + CONTEXT_FLOAT]
  code.u32(CONTEXT_FLOAT);
  code.put(0x8b, 0x42, FLOAT_MXCSR); // mov eax, [rdx + FLOAT_MXCSR]
  code.put(0x89, 0x83); // mov [rbx + MXCSR], eax
  code.u32(MXCSR);
  code.put(0x48, 0x8d, 0xb2); // lea rsi, [rdx + FLOAT_VECTORS]
  code.u32(FLOAT_VECTORS);
  code.put(0x48, 0x8d, 0xbb); // lea rdi, [rbx + VECTORS]
  code.u32(VECTORS);
  code.setRegister(1, 32);
  code.put(0xf3, 0x48, 0xa5); // rep movsq
  code.put(0xff, 0x24, 0x25); // jmp [resume]
  code.u32(resume);
}

function readOutcome(n: number, output: Uint8Array, outputBytes: number): Outcome {
  const view = new DataView(output.buffer, output.byteOffset);
  const block = n * OUT_BYTES;
  const word = (offset: number) => view.getBigUint64(block + offset, true);
  const signal = Number(word(SIGNAL));
  const context = (k: number) => word(CONTEXT + 8 * k);
  const window = outputBytes + n * WINDOW_BYTES;
  return {
    signal,
    rip: signal === 0 ? 0n : context(CONTEXT_RIP),
    fault:
      signal !== 0 && context(CONTEXT_VECTOR) === 14n
        ? { error: context(CONTEXT_ERROR), address: context(CONTEXT_CR2) }
        : undefined,
    registers: Array.from({ length: 16 }, (_, r) =>
      signal === 0 ? word(8 * r) : context(CONTEXT_ORDER[r]!),
    ),
    flags: signal === 0 ? word(FLAGS) : context(CONTEXT_FLAGS),
    vectors: output.slice(block + VECTORS, block + VECTORS + 256),
    mxcsr: Number(word(MXCSR)),
    window: output.slice(window, window + WINDOW_BYTES),
  };
}

/** One read-write-execute segment, file header and program header at its start. */
function staticElf(image: Uint8Array, entry: number): Uint8Array {
  const view = new DataView(image.buffer);
  image.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0]);
  view.setUint16(16, 2, true);
  view.setUint16(18, 62, true);
  view.setUint32(20, 1, true);
  view.setBigUint64(24, BigInt(entry), true);
  view.setBigUint64(32, 64n, true);
  view.setUint16(52, 64, true);
  view.setUint16(54, 56, true);
  view.setUint16(56, 1, true);
  view.setUint32(64, 1, true);
  view.setUint32(68, 7, true);
  view.setBigUint64(80, BigInt(IMAGE), true);
  view.setBigUint64(88, BigInt(IMAGE), true);
  view.setBigUint64(96, BigInt(image.length), true);
  view.setBigUint64(104, BigInt(image.length), true);
  view.setBigUint64(112, 0x1000n, true);
  return image;
}

export const PROGRAM = {
  SYS_WRITE,
  SYS_EXIT,
  SIGNAL,
  MXCSR,
  VECTORS,
  CONTEXT,
  CONTEXT_ORDER,
  CONTEXT_RIP,
  CONTEXT_FLAGS,
  CONTEXT_ERROR,
  CONTEXT_VECTOR,
  CONTEXT_CR2,
};
