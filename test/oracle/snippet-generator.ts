/**
 * Random snippets: every form that iced knows of the wanted mnemonics, with random registers, memory operands inside the
 * snippet's window, immediates and values that like edges. Flags that the manual leaves undefined are tracked, and an
 * instruction that would read them ends the snippet.
 */
import { createRequire } from 'node:module';
import type * as Iced from 'iced-x86';
import { withFloats } from './float-values.ts';
import type { Form } from './forms.ts';
import { Random } from './random.ts';
import { type CpuState, type Snippet, WINDOW_BYTES } from './snippet.ts';
import { AT_PAGE_EDGES, SIDE_BY_SIDE, type WindowLayout } from './snippet-program.ts';

const iced = createRequire(import.meta.url)('iced-x86') as typeof Iced;
const {
  Encoder,
  Instruction,
  InstructionInfoFactory,
  Mnemonic,
  OpAccess,

  OpKind,
  Register,
} = iced;

/** RFLAGS bits of iced's RflagsBits: OF SF ZF AF CF PF DF. */
const FLAG_BITS = [
  [1, 0x800n],
  [2, 0x80n],
  [4, 0x40n],
  [8, 0x10n],
  [16, 0x1n],
  [32, 0x4n],
  [64, 0x400n],
] as const;

const EDGES = [
  0n,
  1n,
  2n,
  0x7fn,
  0x80n,
  0xffn,
  0x7fffn,
  0x8000n,
  0xffffn,
  0x7fffffffn,
  0x80000000n,
  0xffffffffn,
];
const WIDE_EDGES = [0x7fffffffffffffffn, 0x8000000000000000n, 0xffffffffffffffffn, 0x100000000n];
const RSP = 4;
/** Bytes around the base that memory operands may reach. */
const REACH = 96;

const LOW = ['AL', 'CL', 'DL', 'BL', 'SPL', 'BPL', 'SIL', 'DIL'];
const LEGACY = ['AX', 'CX', 'DX', 'BX', 'SP', 'BP', 'SI', 'DI'];

function registerName(size: number, n: number): string {
  if (size === 128) return `XMM${n}`;
  if (size === 8) return LOW[n] ?? `R${n}L`;
  if (size === 16) return LEGACY[n] ?? `R${n}W`;
  if (size === 32) return n < 8 ? `E${LEGACY[n]}` : `R${n}D`;
  return n < 8 ? `R${LEGACY[n]}` : `R${n}`;
}

const registerByName = Register as unknown as Record<string, number>;

/** Makes snippets one after the other; `n` is the snippet's place in its program. */
export class SnippetGenerator {
  readonly #random: Random;
  readonly #forms: readonly (readonly Form[])[];
  readonly #options: { readonly longest: number; readonly branches: boolean; readonly floats: boolean };
  readonly #layout: WindowLayout;

  /**
   * Each group of forms is chosen from with the same probability. Snippets have up to `longest` instructions, and with `branches` jumps,
   * calls and loops among them. With `floats` they begin with such numbers and any MXCSR. With `edges` their operands lie at the edge of a
   * page next to which none is.
   */
  constructor(
    seed: number,
    groups: readonly (readonly Form[])[],
    options: {
      readonly longest?: number;
      readonly branches?: boolean;
      readonly floats?: boolean;
      readonly edges?: boolean;
    } = {},
  ) {
    this.#layout = options.edges ? AT_PAGE_EDGES : SIDE_BY_SIDE;
    this.#random = new Random(seed);
    this.#forms = groups;
    this.#options = {
      longest: options.longest ?? 3,
      branches: options.branches ?? false,
      floats: options.floats ?? false,
    };
  }

  next(n: number): Snippet {
    const { longest, branches, floats } = this.#options;
    const length = 1 + this.#random.below(longest);
    return new Composition(this.#random, n, this.#layout).compose(this.#forms, { length, branches, floats });
  }
}

class Composition {
  readonly #random: Random;
  readonly #center: bigint;
  readonly #edges: boolean;
  readonly #registers: bigint[];
  readonly #written = new Set<number>();
  /** Registers whose starting value some operand relies on. */
  readonly #fixed = new Set<number>([RSP]);
  readonly #bytes: number[] = [];
  readonly #texts: string[] = [];
  /** Memory operands of the instruction in work shall be aligned to 16 bytes. */
  #aligned = false;
  #undefined = 0n;
  #everUndefined = 0n;

  constructor(random: Random, n: number, layout: WindowLayout) {
    this.#random = random;
    this.#center = BigInt(layout.center(n));
    this.#registers = Array.from({ length: 16 }, () => this.#value());
    this.#edges = layout === AT_PAGE_EDGES;
    const stack = this.#edges ? random.below(64) - 32 : 8 * random.below(8);
    this.#registers[RSP] = this.#center + BigInt(stack);
  }

  compose(
    groups: readonly (readonly Form[])[],
    options: { length: number; branches: boolean; floats: boolean },
  ): Snippet {
    const random = this.#random;
    for (let k = 0; k < options.length; k++) {
      const form = random.pick(random.pick(groups));
      if (options.branches && random.oneIn(2)) this.#appendBranch(form);
      else if (!this.#append(form)) break;
    }
    return {
      code: Uint8Array.from(this.#bytes),
      before: options.floats ? withFloats(this.#before(), random) : this.#before(),
      undefinedFlags: this.#undefined,
      everUndefined: this.#everUndefined,
      text: this.#texts.join('; '),
    };
  }

  #before(): CpuState {
    const bytes = (count: number) =>
      Uint8Array.from({ length: count }, () =>
        this.#random.oneIn(4) ? this.#random.pick([0, 0xff, 0x80, 0x7f, 1]) : this.#random.below(256),
      );
    const flags = (this.#random.u64() & 0x8d5n) | 0x202n | (this.#random.oneIn(4) ? 0x400n : 0n);
    return {
      registers: this.#registers,
      flags,
      vectors: bytes(256),
      mxcsr: 0x1f80,
      window: bytes(WINDOW_BYTES),
    };
  }

  #value(): bigint {
    const random = this.#random;
    switch (random.below(5)) {
      case 0:
        return random.pick(EDGES);
      case 1:
        return random.pick(WIDE_EDGES);
      case 2:
        return BigInt(random.below(256));
      case 3:
        return BigInt.asUintN(64, -BigInt(random.below(70000)));
      default:
        return random.u64();
    }
  }

  /** One instruction, and one more when it is a conditional jump over that; false if the snippet has to end before it. */
  #append(form: Form): boolean {
    const instruction = new Instruction();
    instruction.code = form.code;
    const special = SPECIAL.find(({ name }) => name.test(form.name));
    this.#aligned = form.operands.some((kind) => kind.startsWith('xmm')) && !this.#random.oneIn(5);
    if (!form.operands.every((kind, k) => this.#operand(instruction, k, kind))) return false;
    if (special && !special.prepare(this, instruction)) return false;
    if (this.#undefined & flagBits(instruction.rflagsRead)) return false;
    const encoder = new Encoder(64);
    try {
      encoder.encode(instruction, 0x1000n);
    } catch {
      return false;
    }
    const bytes = encoder.takeBuffer();
    if (bytes.length > 15) return false;
    this.#bytes.push(...bytes);
    this.#texts.push(`${instruction.toString()}`);
    this.#note(instruction);
    return true;
  }

  /** A jump over an instruction; or one of a few ready-made turns, when the flags that it would read are undefined. */
  #appendBranch(form: Form): void {
    const random = this.#random;
    const condition = random.below(16);
    if (random.oneIn(4) || this.#undefined & CONDITION_FLAGS) {
      const [text, bytes] = random.pick(TURNS);
      if (this.#fixed.has(1) || this.#fixed.has(2)) return;
      this.#written.add(1).add(2);
      this.#bytes.push(...bytes);
      this.#texts.push(text);
      return;
    }
    const before = this.#undefined;
    const at = this.#bytes.length;
    this.#append(form);
    this.#undefined |= before;
    const skipped = this.#bytes.splice(at);
    const long = random.oneIn(3);
    const jump = long
      ? [0x0f, 0x80 + condition, skipped.length, 0, 0, 0]
      : [0x70 + condition, skipped.length];
    this.#bytes.push(...jump, ...skipped);
    this.#texts.push(`skipped if condition ${condition}`);
  }

  #note(instruction: Iced.Instruction): void {
    const defined = instruction.rflagsWritten | instruction.rflagsCleared | instruction.rflagsSet;
    const maybe = /^(shl|shr|sar|sal|ro|rc|rep)/.test(this.#texts.at(-1)!);
    if (!maybe) this.#undefined &= ~flagBits(defined);
    this.#undefined |= flagBits(instruction.rflagsUndefined);
    this.#everUndefined |= this.#undefined;
    const factory = new InstructionInfoFactory();
    const info = factory.info(instruction);
    for (const used of info.usedRegisters() as Iced.UsedRegister[]) {
      const reads = used.access === OpAccess.Read || used.access === OpAccess.CondRead;
      const full = iced.RegisterExt.fullRegister(used.register);
      if (!reads && full >= Register.RAX && full <= Register.R15) this.#written.add(full - Register.RAX);
    }
    info.free();
    factory.free();
  }

  #operand(instruction: Iced.Instruction, k: number, kind: string): boolean {
    const random = this.#random;
    const sized = /^r(8|16|32|64)_(or_mem|reg|opcode|rm|reg_mem|vvvv)$/.exec(kind);
    if (kind === 'xmm_reg' || kind === 'xmm_rm')
      this.#setRegister(instruction, k, registerName(128, random.below(16)));
    else if (kind === 'xmm_or_mem' && random.oneIn(2))
      this.#setRegister(instruction, k, registerName(128, random.below(16)));
    else if (sized && !(sized[2] === 'or_mem' && random.oneIn(2)))
      return this.#general(instruction, k, Number(sized[1]));
    else if (kind === 'mem' || kind.endsWith('or_mem')) return this.#memory(instruction, k);
    else if (/^(al|cl|ax|dx|eax|rax)$/.test(kind)) this.#setRegister(instruction, k, kind.toUpperCase());
    else if (kind.startsWith('imm')) return this.#immediate(instruction, k, kind);
    else if (kind === 'es_rDI') return this.#stringOperand(instruction, k, OpKind.MemoryESRDI, 7);
    else if (kind === 'seg_rSI') return this.#stringOperand(instruction, k, OpKind.MemorySegRSI, 6);
    else if (kind === 'seg_rDI') return this.#stringOperand(instruction, k, OpKind.MemorySegRDI, 7);
    else if (kind === 'seg_rBX_al') {
      if (!this.#fix(3, this.#center - (this.#edges ? 128n : 384n))) return false;
      instruction.setOpKind(k, OpKind.Memory);
      instruction.memoryBase = Register.RBX;
      instruction.memoryIndex = Register.AL;
    } else return false;
    return true;
  }

  #setRegister(instruction: Iced.Instruction, k: number, name: string): void {
    instruction.setOpKind(k, OpKind.Register);
    instruction.setOpRegister(k, registerByName[name]!);
  }

  /** Any general register but RSP (now and then), and AH … BH where the encoding allows. */
  #general(instruction: Iced.Instruction, k: number, size: number): boolean {
    const random = this.#random;
    if (size === 8 && random.oneIn(4)) {
      this.#setRegister(instruction, k, random.pick(['AH', 'CH', 'DH', 'BH']));
      return true;
    }
    const n = random.below(16);
    if (n === RSP && !random.oneIn(4)) return this.#general(instruction, k, size);
    this.#setRegister(instruction, k, registerName(size, n));
    return true;
  }

  #immediate(instruction: Iced.Instruction, k: number, kind: string): boolean {
    const { random } = { random: this.#random };
    const bits = Number(/^imm(\d+)/.exec(kind)![1]);
    const opKinds: Record<string, Iced.OpKind> = {
      imm8: OpKind.Immediate8,
      imm8_const_1: OpKind.Immediate8,
      imm16: OpKind.Immediate16,
      imm32: OpKind.Immediate32,
      imm64: OpKind.Immediate64,
      imm8sex16: OpKind.Immediate8to16,
      imm8sex32: OpKind.Immediate8to32,
      imm8sex64: OpKind.Immediate8to64,
      imm32sex64: OpKind.Immediate32to64,
    };
    const earlier = k > 0 && instruction.opKind(k - 1) === OpKind.Immediate16;
    instruction.setOpKind(k, earlier ? OpKind.Immediate8_2nd : opKinds[kind]!);
    const value = kind === 'imm8_const_1' ? 1n : random.oneIn(2) ? this.#value() : random.u64();
    if (kind.includes('sex')) instruction.setImmediateI64(k, BigInt.asIntN(bits, value));
    else instruction.setImmediateU64(k, BigInt.asUintN(bits, value));
    return true;
  }

  /** Makes a register start with `value`, unless the snippet has changed or used it already. */
  #fix(register: number, value: bigint): boolean {
    if (this.#written.has(register)) return false;
    if (this.#fixed.has(register)) return register === RSP || this.#registers[register] === value;
    this.#registers[register] = value;
    this.#fixed.add(register);
    return true;
  }

  fixRegister(register: number, value: bigint): boolean {
    return this.#fix(register, value);
  }
  get random(): Random {
    return this.#random;
  }

  /** Base, perhaps index and displacement; now and then addresses of 32 bits, absolute ones, or a fault. */
  #memory(instruction: Iced.Instruction, k: number): boolean {
    const random = this.#random;
    instruction.setOpKind(k, OpKind.Memory);
    const center = this.#center;
    const short = random.oneIn(12);
    const size = short ? 32 : 64;
    if (random.oneIn(12)) {
      instruction.memoryDisplacement = center + BigInt(random.below(REACH));
      instruction.memoryDisplSize = 8;
      return true;
    }
    const usable = [...Array(16).keys()].filter(
      (n) => !this.#written.has(n) && (n === RSP || !this.#fixed.has(n)),
    );
    const base = random.pick(usable);
    const high = short && random.oneIn(2) ? 0x1234567800000000n : 0n;
    if (base !== undefined && base !== RSP) {
      const offset = this.#aligned ? 16 * random.below(REACH / 16) : random.below(REACH);
      if (!this.#fix(base, center + BigInt(offset) + high)) return false;
    }
    if (base === undefined || (base === RSP && this.#written.has(RSP))) return false;
    instruction.memoryBase = registerByName[registerName(size, base)]!;
    instruction.memoryIndexScale = 1;
    if (random.oneIn(2) && !this.#aligned) {
      const index = random.pick(usable.filter((n) => n !== base && n !== RSP));
      if (index !== undefined && this.#fix(index, BigInt.asUintN(64, BigInt(random.below(16) - 8)))) {
        instruction.memoryIndex = registerByName[registerName(size, index)]!;
        instruction.memoryIndexScale = random.pick([1, 2, 4, 8]);
      }
    }
    const wild = random.oneIn(60) && !short;
    const step = this.#aligned ? 16 : 1;
    const near = (random.below(REACH / step) - REACH / step / 2) * step;
    const displacement = wild ? 0x30000000n : BigInt(near);
    instruction.memoryDisplacement = BigInt.asUintN(64, displacement);
    instruction.memoryDisplSize = wild || random.oneIn(8) ? (short ? 4 : 8) : 1;
    return true;
  }

  #stringOperand(instruction: Iced.Instruction, k: number, kind: Iced.OpKind, register: number): boolean {
    instruction.setOpKind(k, kind);
    if (!this.#fix(register, this.#center + BigInt(this.#random.below(64) - 32))) return false;
    const random = this.#random;
    if (kind === OpKind.MemorySegRDI || !random.oneIn(3)) return true;
    if (!this.#fix(1, BigInt(random.below(9)))) return false;
    if (random.oneIn(2)) instruction.hasRepePrefix = true;
    else if (/^(cmps|scas)/i.test(Mnemonic[instruction.mnemonic]!)) instruction.hasRepnePrefix = true;
    else instruction.hasRepePrefix = true;
    return true;
  }
}

/** Values without which some instructions would mostly fault or run away. */
const SPECIAL: readonly { name: RegExp; prepare: (c: Composition, i: Iced.Instruction) => boolean }[] = [
  {
    name: /^I?div_rm/i,
    prepare: (c) =>
      c.random.oneIn(3) || (c.fixRegister(2, BigInt(c.random.below(3))) && c.fixRegister(0, c.random.u64())),
  },
  {
    // A register as bit index reaches far beyond the operand.
    name: /^Bt[src]?_rm(16|32|64)_r/,
    prepare: (c, i) => {
      if (i.opKind(0) !== OpKind.Memory) return true;
      const register = iced.RegisterExt.fullRegister(i.opRegister(1)) - Register.RAX;
      return c.fixRegister(register, BigInt.asUintN(64, BigInt(c.random.below(2000) - 1000)));
    },
  },
];

const CONDITION_FLAGS = 0x8c5n;

/** Code that uses rcx and rdx: counted loops, calls and returns, indirect jumps, a store into code that has run and will run again. */
const TURNS: readonly (readonly [string, readonly number[]])[] = [
  ['loop of add rdx, rcx', [0xb9, 3, 0, 0, 0, 0x48, 0x01, 0xca, 0xe2, 0xfb]],
  ['loop by dec', [0xb9, 4, 0, 0, 0, 0x48, 0x01, 0xca, 0xff, 0xc9, 0x75, 0xf9]],
  ['loop by sub', [0xb9, 4, 0, 0, 0, 0x48, 0xff, 0xc2, 0x48, 0x83, 0xe9, 0x01, 0x75, 0xf7]],
  ['loop by cmp', [0x31, 0xc9, 0xff, 0xc1, 0x83, 0xf9, 0x05, 0x72, 0xf9]],
  ['loope', [0xb9, 3, 0, 0, 0, 0x39, 0xc9, 0xe1, 0xfc]],
  ['loopne', [0xb9, 3, 0, 0, 0, 0x39, 0xc9, 0xe0, 0xfc]],
  ['jrcxz', [0x31, 0xc9, 0xe3, 0x02, 0xff, 0xc2]],
  ['call and return', [0xe8, 2, 0, 0, 0, 0xeb, 1, 0xc3]],
  ['call and return, releasing', [0x51, 0xe8, 2, 0, 0, 0, 0xeb, 3, 0xc2, 8, 0]],
  ['jump through rcx', [0x48, 0x8d, 0x0d, 4, 0, 0, 0, 0xff, 0xe1, 0xff, 0xc2]],
  ['call through rdx', [0x48, 0x8d, 0x15, 4, 0, 0, 0, 0xff, 0xd2, 0xeb, 1, 0xc3]],
  ['call through the stack', [0x48, 0x8d, 0x0d, 7, 0, 0, 0, 0x51, 0xff, 0x14, 0x24, 0x59, 0xeb, 1, 0xc3]],
  // mov ecx, 2; L: mov dl, 1; xor byte [rip - 7 (the 1)], 3; loop L
  [
    'code that changes itself',
    [0xb9, 2, 0, 0, 0, 0xb2, 1, 0x80, 0x35, 0xf8, 0xff, 0xff, 0xff, 3, 0xe2, 0xf5],
  ],
];

function flagBits(bits: number): bigint {
  return FLAG_BITS.reduce((sum, [from, to]) => sum | (bits & from ? to : 0n), 0n);
}
