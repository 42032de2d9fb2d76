/** Small 64-bit guest programs for tests, assembled with iced-x86. */
import { createRequire } from 'node:module';
import type * as Iced from 'iced-x86';

const iced = createRequire(import.meta.url)('iced-x86') as typeof Iced;
const { BlockEncoder, BlockEncoderOptions, Code, Instruction, MemoryOperand, Register, RepPrefixKind } = iced;

const REGISTERS = {
  rax: Register.RAX,
  rbx: Register.RBX,
  rcx: Register.RCX,
  rdx: Register.RDX,
  rsi: Register.RSI,
  rdi: Register.RDI,
} as const;
export type Name = keyof typeof REGISTERS;

export class GuestProgram {
  readonly #encoder = new BlockEncoder(64, BlockEncoderOptions.None);
  #labels = 0;

  #add(instruction: Iced.Instruction): this {
    this.#encoder.add(instruction);
    return this;
  }
  /** register = value */
  set(register: Name, value: bigint): this {
    return this.#add(Instruction.createRegU64(Code.Mov_r64_imm64, REGISTERS[register], value));
  }
  /** register = the u64 at [address] */
  load(register: Name, address: Name): this {
    const memory = MemoryOperand.createBase(REGISTERS[address]);
    return this.#add(Instruction.createRegMem(Code.Mov_r64_rm64, REGISTERS[register], memory));
  }
  /** [address] = register, 8 bytes */
  store(address: Name, register: Name): this {
    const memory = MemoryOperand.createBase(REGISTERS[address]);
    return this.#add(Instruction.createMemReg(Code.Mov_rm64_r64, memory, REGISTERS[register]));
  }
  /** [address] += register, 8 bytes */
  addTo(address: Name, register: Name): this {
    const memory = MemoryOperand.createBase(REGISTERS[address]);
    return this.#add(Instruction.createMemReg(Code.Add_rm64_r64, memory, REGISTERS[register]));
  }
  /** The byte in AL goes to port DX. */
  out(): this {
    return this.#add(Instruction.createRegReg(Code.Out_DX_AL, Register.DX, Register.AL));
  }
  /** rep outsb */
  outString(): this {
    return this.#add(Instruction.createOutsb(64, Register.None, RepPrefixKind.Repe));
  }
  /** rep insw */
  inString(): this {
    return this.#add(Instruction.createInsw(64, RepPrefixKind.Repe));
  }
  /** AL = port DX */
  in(): this {
    return this.#add(Instruction.createRegReg(Code.In_AL_DX, Register.AL, Register.DX));
  }
  /** [rdi] = [rsi], 8 bytes; both go on. */
  movsq(): this {
    return this.#add(Instruction.createMovsq(64, Register.None, RepPrefixKind.None));
  }
  vmmcall(): this {
    return this.#add(Instruction.create(Code.Vmmcall));
  }
  vmcall(): this {
    return this.#add(Instruction.create(Code.Vmcall));
  }
  cpuid(): this {
    return this.#add(Instruction.create(Code.Cpuid));
  }
  rdmsr(): this {
    return this.#add(Instruction.create(Code.Rdmsr));
  }
  wrmsr(): this {
    return this.#add(Instruction.create(Code.Wrmsr));
  }
  nop(): this {
    return this.#add(Instruction.create(Code.Nopd));
  }
  sti(): this {
    return this.#add(Instruction.create(Code.Sti));
  }
  int3(): this {
    return this.#add(Instruction.create(Code.Int3));
  }
  /** iretq */
  iret(): this {
    return this.#add(Instruction.create(Code.Iretq));
  }
  ud2(): this {
    return this.#add(Instruction.create(Code.Ud2));
  }
  hlt(): this {
    return this.#add(Instruction.create(Code.Hlt));
  }
  /** A loop of its own. */
  forever(): this {
    const label = BigInt(++this.#labels);
    const jump = Instruction.createBranch(Code.Jmp_rel8_64, label);
    jump.ip = label;
    return this.#add(jump);
  }

  /** The program's bytes when it lies at `address`. */
  assemble(address: number): Uint8Array {
    return this.#encoder.encode(BigInt(address));
  }
}
