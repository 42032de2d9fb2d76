/** Runs a snippet program on our interpreter: its image, and of Linux the calls and signals that such a program meets. */
import { executeFloat } from '../../src/hardware/cpu/float/instructions.ts';
import { RECORD, SYSTEM } from '../../src/hardware/cpu/record.ts';
import { LEAVE, STATE } from '../../src/hardware/cpu/state.ts';
import { FlatMachine } from './flat-machine.ts';
import { PROGRAM, type SnippetProgram } from './snippet-program.ts';

const SIGNAL_OF_VECTOR: Readonly<Record<number, number>> = { 0: 8, 3: 5, 6: 4, 13: 11, 14: 11, 19: 8 };
const DIRECTION = 0x400n;
const RSP = 4;

/** What has to be known of a program. */
export type UserProgram = Pick<SnippetProgram, 'image' | 'base' | 'entry' | 'current' | 'resume'> &
  Partial<Pick<SnippetProgram, 'missing'>>;

export class UserMachine {
  readonly machine: FlatMachine;
  readonly #program: UserProgram;
  readonly #written: Uint8Array[] = [];
  #exited = false;

  constructor(program: UserProgram, options: { readonly codeBytes?: number } = {}) {
    this.#program = program;
    this.machine = new FlatMachine({
      bytes: 64 << 20,
      codeBytes: options.codeBytes ?? 16 << 20,
      system: (_, record) => this.#system(record),
    });
    const missing = new Set(program.missing);
    for (let at = 0; at < program.image.length; at += 4096) {
      if (missing.has(program.base + at)) continue;
      const linear = BigInt(program.base + at);
      this.machine.addPage(linear);
      this.machine.memory.bytes.set(program.image.subarray(at, at + 4096), this.machine.physical(linear));
    }
    this.machine.rip = BigInt(program.entry);
  }

  /** Runs the program to its exit; what it wrote. Throws if the core stops for a reason that such a program cannot have. */
  run(): Uint8Array {
    while (!this.#exited) {
      const reason = this.machine.run();
      if (reason === LEAVE.EXCEPTION) this.#signal();
      else if (reason !== LEAVE.RESUME && reason !== LEAVE.BUDGET)
        throw new Error(`the core left with ${reason}`);
    }
    return Buffer.concat(this.#written);
  }

  /** Lets a program that has exited run again from wherever RIP is set. */
  restart(): void {
    this.#exited = false;
  }

  close(): void {
    this.machine.close();
  }

  /** What the kernel's signal frame and the program's handler do together. */
  #signal(): void {
    const { machine } = this;
    const block = this.#read(this.#program.current);
    const put = (offset: number, value: bigint) => {
      machine.memory.longs[machine.physical(block + BigInt(offset)) >> 3] = value;
    };
    put(PROGRAM.SIGNAL, BigInt(SIGNAL_OF_VECTOR[machine.word(STATE.EXCEPTION_VECTOR)]!));
    PROGRAM.CONTEXT_ORDER.forEach((at, r) => {
      put(PROGRAM.CONTEXT + 8 * at, machine.register(r));
    });
    put(PROGRAM.CONTEXT + 8 * PROGRAM.CONTEXT_RIP, machine.rip);
    put(PROGRAM.CONTEXT + 8 * PROGRAM.CONTEXT_FLAGS, machine.flags);
    put(PROGRAM.CONTEXT + 8 * PROGRAM.CONTEXT_VECTOR, BigInt(machine.word(STATE.EXCEPTION_VECTOR)));
    put(PROGRAM.CONTEXT + 8 * PROGRAM.CONTEXT_ERROR, BigInt(machine.word(STATE.EXCEPTION_ERROR)));
    put(PROGRAM.CONTEXT + 8 * PROGRAM.CONTEXT_CR2, machine.faultAddress);
    put(PROGRAM.MXCSR, BigInt(machine.word(STATE.MXCSR)));
    for (let at = 0; at < 256; at += 8) put(PROGRAM.VECTORS + at, machine.get(STATE.XMM + at));
    machine.flags &= ~DIRECTION;
    machine.rip = this.#read(this.#program.resume);
  }

  #read(linear: number): bigint {
    return this.machine.memory.longs[this.machine.physical(BigInt(linear)) >> 3]!;
  }

  #system(record: number): number {
    const { machine } = this;
    const { words, longs, bytes } = machine.memory;
    const code = words[(record + RECORD.SYSTEM) >> 2]!;
    if (code === SYSTEM.POPF) {
      machine.flags = longs[words[(record + RECORD.A0) >> 2]! >> 3]!;
      machine.setRegister(RSP, machine.register(RSP) + BigInt(bytes[record + RECORD.SIZE]!));
      return 0;
    }
    if (code === SYSTEM.LDMXCSR) return this.#loadMxcsr(words[words[(record + RECORD.A0) >> 2]! >> 2]!);
    if (code === SYSTEM.STMXCSR) {
      longs[words[(record + RECORD.A0) >> 2]! >> 3] = BigInt(machine.word(STATE.MXCSR));
      return 0;
    }
    if (code === SYSTEM.FLOAT) {
      const number = bytes[record + RECORD.NUMBER]!;
      return executeFloat(machine.memory, machine.state, { record, number }) ? 0 : machine.raise(19);
    }
    if (code === SYSTEM.SYSCALL) return this.#systemCall();
    return machine.raise(code === SYSTEM.UD ? 6 : code === SYSTEM.INT3 ? 3 : 13);
  }

  #loadMxcsr(value: number): number {
    if ((value & ~0xffff) !== 0) return this.machine.raise(13);
    this.machine.setWord(STATE.MXCSR, value);
    return 0;
  }

  #systemCall(): number {
    const { machine } = this;
    const number = Number(machine.register(0));
    if (number === PROGRAM.SYS_WRITE) {
      const [from, length] = [machine.register(6), Number(machine.register(2))];
      for (let done = 0; done < length; done += 4096) {
        const at = machine.physical(from + BigInt(done));
        this.#written.push(machine.memory.bytes.slice(at, at + Math.min(4096, length - done)));
      }
    }
    if (number !== PROGRAM.SYS_EXIT) return 0;
    this.#exited = true;
    return LEAVE.RESUME;
  }
}
