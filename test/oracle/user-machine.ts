/**
 * The least machine around our interpreter that runs a snippet program: one flat writable image, and of Linux the calls that such
 * a program makes. No page tables: that is the core's part, and tested there.
 */
import { Trace } from '../../src/base/trace.ts';
import { Interpreter } from '../../src/hardware/cpu/interpreter.ts';
import { RECORD, SYSTEM } from '../../src/hardware/cpu/record.ts';
import { LEAVE, STATE, TLB, TLB_EMPTY, TLB_ENTRIES, USER_TLB } from '../../src/hardware/cpu/state.ts';
import { HostMemory } from '../../src/hardware/memory/host-memory.ts';
import { PROGRAM, type SnippetProgram } from './snippet-program.ts';

const SIGNAL_OF_VECTOR: Readonly<Record<number, number>> = {
  0: 8,
  1: 5,
  3: 5,
  6: 4,
  12: 7,
  13: 11,
  14: 11,
  16: 8,
  17: 7,
  19: 8,
};
const PAGE_FAULT = 14;
const ARITHMETIC = 0x8d5n;
const DIRECTION = 0x400n;

export class UserMachine {
  readonly interpreter: Interpreter;
  readonly memory: HostMemory;
  readonly state: number;
  /** Physical address of linear address 0 (the image is at its linear address plus this). */
  readonly #offset: number;
  readonly #program: SnippetProgram;
  readonly #written: Uint8Array[] = [];
  #exited = false;

  constructor(program: SnippetProgram, options: { codeBytes?: number } = {}) {
    this.#program = program;
    this.memory = HostMemory.create({ bytes: 128 << 20, trace: new Trace() });
    const owner = this.memory.owner('user machine');
    this.state = this.memory.allocate(3, owner) * 4096;
    const order = Math.ceil(Math.log2(program.image.length / 4096));
    const image = this.memory.allocate(order, owner) * 4096;
    this.#offset = image - program.base;
    this.memory.bytes.set(program.image, image);
    this.interpreter = new Interpreter({
      memory: this.memory,
      owner,
      state: this.state,
      codeBytes: options.codeBytes ?? 32 << 20,
      slowPath: {
        load: (_, size) =>
          this.#access(size, (physical, data) =>
            this.memory.bytes.copyWithin(data, physical, physical + size),
          ),
        store: (_, size) => this.#store(size),
        probe: (_, size) => this.#access(size, () => {}),
        system: (_, record) => this.#system(record),
      },
      onCodeFrame: (frame) => this.#dropWriteEntry(frame),
    });
    this.#emptyTlbs();
    this.setWord(STATE.FLAGS_REST, 0x202n);
    this.setWord(STATE.FLAG_ZR, 1n);
    this.setWord(STATE.FLAG_SR, 1n);
    this.setWord(STATE.RIP, BigInt(program.entry));
  }

  word(offset: number): bigint {
    return this.memory.longs[(this.state + offset) >> 3]!;
  }
  setWord(offset: number, to: bigint): void {
    this.memory.longs[(this.state + offset) >> 3] = BigInt.asUintN(64, to);
  }

  /** Runs the program to its exit; what it wrote. Throws if the core stops for a reason that such a program cannot have. */
  run(): Uint8Array {
    while (!this.#exited) {
      const reason = this.interpreter.run(1_000_000);
      if (reason === LEAVE.FETCH) this.#fetch();
      else if (reason === LEAVE.EXCEPTION) this.#signal();
      else if (reason !== LEAVE.RESUME && reason !== LEAVE.BUDGET)
        throw new Error(`the core left with ${reason}`);
    }
    return Buffer.concat(this.#written);
  }

  /** Makes a program that has ended run again, from `entry`. */
  restart(entry: number): void {
    this.#exited = false;
    this.setWord(STATE.RIP, BigInt(entry));
  }

  /** What to add to a linear address to get the physical one. */
  get offset(): number {
    return this.#offset;
  }

  close(): void {
    this.memory.close();
  }

  /** RFLAGS out of the spread words. */
  get flags(): bigint {
    const negative = (offset: number) => this.word(offset) >> 63n;
    let low = this.word(STATE.FLAG_SR) & 0xffn;
    let ones = 0n;
    for (; low > 0n; low >>= 1n) ones += low & 1n;
    return (
      this.word(STATE.FLAGS_REST) |
      negative(STATE.FLAG_CV) |
      ((1n - (ones & 1n)) << 2n) |
      ((this.word(STATE.FLAG_CV) & 8n) << 1n) |
      (this.word(STATE.FLAG_ZR) === 0n ? 0x40n : 0n) |
      (negative(STATE.FLAG_SR) << 7n) |
      (negative(STATE.FLAG_OV) << 11n)
    );
  }

  set flags(to: bigint) {
    const bit = (n: bigint) => (to >> n) & 1n;
    this.setWord(STATE.FLAG_ZR, 1n - bit(6n));
    this.setWord(STATE.FLAG_SR, (bit(7n) << 63n) | (1n - bit(2n)));
    this.setWord(STATE.FLAG_CV, (bit(0n) << 63n) | (bit(4n) << 3n));
    this.setWord(STATE.FLAG_OV, bit(11n) << 63n);
    const rest = this.word(STATE.FLAGS_REST) & ~(ARITHMETIC | DIRECTION);
    this.setWord(STATE.FLAGS_REST, rest | (to & DIRECTION));
  }

  #fetch(): void {
    const rip = this.word(STATE.RIP);
    const frame = this.#frame(rip);
    if (frame < 0) {
      this.#raise(PAGE_FAULT);
      this.#signal();
      return;
    }
    this.#fillFetch(rip, frame);
    this.interpreter.decode(frame, Number(rip & 0xfffn), () => {
      const next = this.#frame(rip + 4096n);
      if (next >= 0) this.#fillFetch(rip + 4096n, next);
      return next;
    });
  }

  #fillFetch(linear: bigint, frame: number): void {
    const entry = this.#entry(STATE.FETCH_TLB, linear);
    const map = this.interpreter.pageMap(frame);
    this.memory.longs[entry >> 3] = linear & ~0xfffn;
    this.memory.words[(entry + TLB.ADDEND) >> 2] = map;
    this.memory.words[(entry + TLB.EXTRA) >> 2] = frame * 4096;
  }

  #entry(table: number, linear: bigint): number {
    return this.state + table + (Number(linear >> 8n) & 0xff0);
  }

  /** The frame of a linear address, or −1 outside the image. */
  #frame(linear: bigint): number {
    const { base, image } = this.#program;
    if (linear < BigInt(base) || linear >= BigInt(base + image.length)) return -1;
    return (Number(linear) + this.#offset) >>> 12;
  }

  #access(size: number, transfer: (physical: number, data: number) => void): number {
    const linear = this.word(STATE.ADDRESS);
    const frame = this.#frame(linear);
    if (frame < 0 || this.#frame(BigInt.asUintN(64, linear + BigInt(size - 1))) < 0)
      return this.#raise(PAGE_FAULT);
    transfer(Number(linear) + this.#offset, this.state + STATE.DATA);
    for (const [table, allowed] of [
      [STATE.READ_TLB, true],
      [STATE.WRITE_TLB, !this.interpreter.hasCode(frame)],
    ] as const) {
      if (!allowed) continue;
      const entry = this.#entry(table, linear);
      this.memory.longs[entry >> 3] = linear & ~0xfffn;
      this.memory.words[(entry + TLB.ADDEND) >> 2] = this.#offset;
    }
    return 0;
  }

  #store(size: number): number {
    return this.#access(size, (physical, data) => {
      this.memory.bytes.copyWithin(physical, data, data + size);
      for (let at = physical; at < physical + size; at++)
        this.interpreter.invalidateBytes(at >>> 12, at & 0xfff, 1);
    });
  }

  #raise(vector: number): number {
    this.memory.words[(this.state + STATE.EXCEPTION_VECTOR) >> 2] = vector;
    return LEAVE.EXCEPTION;
  }

  #dropWriteEntry(frame: number): void {
    const linear = BigInt(frame * 4096 - this.#offset);
    const at = this.#entry(STATE.WRITE_TLB, linear) >> 3;
    if (this.memory.longs[at] === linear) this.memory.longs[at] = TLB_EMPTY;
  }

  #emptyTlbs(): void {
    for (const table of [STATE.READ_TLB, STATE.WRITE_TLB, STATE.FETCH_TLB]) {
      for (let n = 0; n < TLB_ENTRIES; n++) {
        for (const set of [0, USER_TLB]) this.setWord(table + set + 16 * n, TLB_EMPTY);
      }
    }
  }

  /** What the kernel's signal frame and the program's handler do together. */
  #signal(): void {
    const vector = this.memory.words[(this.state + STATE.EXCEPTION_VECTOR) >> 2]!;
    const { current, resume } = this.#program;
    const block = Number(this.#read(current));
    const put = (offset: number, value: bigint) => {
      this.memory.longs[(block + offset + this.#offset) >> 3] = value;
    };
    put(PROGRAM.SIGNAL, BigInt(SIGNAL_OF_VECTOR[vector]!));
    PROGRAM.CONTEXT_ORDER.forEach((at, r) => {
      put(PROGRAM.CONTEXT + 8 * at, this.word(STATE.GPR + 8 * r));
    });
    put(PROGRAM.CONTEXT + 8 * PROGRAM.CONTEXT_RIP, this.word(STATE.RIP));
    put(PROGRAM.CONTEXT + 8 * PROGRAM.CONTEXT_FLAGS, this.flags);
    this.flags &= ~DIRECTION;
    this.setWord(STATE.RIP, this.#read(resume));
  }

  #read(linear: number): bigint {
    return this.memory.longs[(linear + this.#offset) >> 3]!;
  }

  #system(record: number): number {
    const { words } = this.memory;
    const code = words[(record + RECORD.SYSTEM) >> 2]!;
    const size = this.memory.bytes[record + RECORD.SIZE]!;
    if (code === SYSTEM.POPF) {
      this.flags = this.memory.longs[words[(record + RECORD.A0) >> 2]! >> 3]!;
      this.setWord(STATE.GPR + 32, this.word(STATE.GPR + 32) + BigInt(size));
      return 0;
    }
    if (code === SYSTEM.SYSCALL) return this.#systemCall();
    if (code === SYSTEM.UD) return this.#raise(6);
    if (code === SYSTEM.INT3) return this.#raise(3);
    return this.#raise(13);
  }

  #systemCall(): number {
    const [rax, , , , , , rsi, ,] = Array.from({ length: 9 }, (_, r) => Number(this.word(STATE.GPR + 8 * r)));
    const rdx = Number(this.word(STATE.GPR + 16));
    if (rax === PROGRAM.SYS_WRITE) {
      const at = rsi! + this.#offset;
      this.#written.push(this.memory.bytes.slice(at, at + rdx));
    }
    if (rax !== PROGRAM.SYS_EXIT) return 0;
    this.#exited = true;
    return LEAVE.RESUME;
  }
}
