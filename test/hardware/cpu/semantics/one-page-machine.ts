/** One page of data between two that are missing: what an instruction that faults leaves changed. */
import { executeFloat } from '../../../../src/hardware/cpu/float/instructions.ts';
import { RECORD } from '../../../../src/hardware/cpu/record.ts';
import { FlatMachine } from '../../../oracle/flat-machine.ts';

export const CODE = 0x10000n;
export const PAGE = 0x20000n;

const RSP = 4;
const EXCEPTION = 2;
const XMM = 0x100;
const VECTOR_WORD = 0x230;
const MXCSR = 0x220;
const ALL_MASKED = 0x1f80;
const FLOATING_POINT = 19;

export class OnePageMachine {
  /** Its only system records are those of float instructions. */
  readonly #machine = new FlatMachine({
    system: (machine, record) => {
      const number = machine.memory.bytes[record + RECORD.NUMBER]!;
      return executeFloat(machine.memory, machine.state, { record, number })
        ? 0
        : machine.raise(FLOATING_POINT);
    },
  });

  constructor() {
    this.#machine.addPage(CODE);
    this.#machine.addPage(PAGE);
  }

  /**
   * Runs the one instruction, with `registers` by number and something in all others; the stack pointer is in the middle of the page
   * when none is given. The vector that it raises, or undefined; and whether anything differs from before.
   */
  execute(
    bytes: Iterable<number>,
    registers: Readonly<Record<number, bigint>>,
    flags = 0x8d5n,
  ): { vector: number | undefined; changed: boolean } {
    const machine = this.#machine;
    machine.put(CODE, [...bytes]);
    machine.interpreter.invalidateFrame(machine.physical(CODE) >>> 12);
    for (let n = 0; n < 16; n++) machine.setRegister(n, 0x0123456789abcdefn * BigInt(n + 1));
    machine.setRegister(RSP, PAGE + 0x800n);
    for (const [number, to] of Object.entries(registers)) machine.setRegister(Number(number), to);
    for (let n = 0; n < 32; n++) machine.set(XMM + 8 * n, 0xf1e2d3c4b5a69788n * BigInt(2 * n + 1));
    machine.setWord(MXCSR, ALL_MASKED);
    machine.put(
      PAGE,
      Array.from({ length: 4096 }, (_, at) => (at * 7) & 0xff),
    );
    machine.flags = flags;
    machine.rip = CODE;
    machine.emptyTlb(0x1000);
    machine.emptyTlb(0x3000);
    const before = this.#state();
    const reason = machine.step();
    const vector = reason === EXCEPTION ? machine.word(VECTOR_WORD) : undefined;
    return { vector, changed: before !== this.#state() };
  }

  /** CR2 of the last page fault. */
  get faultAddress(): bigint {
    return this.#machine.faultAddress;
  }

  register(number: number): bigint {
    return this.#machine.register(number);
  }

  /** Bytes of the page of data. */
  data(offset: number, bytes: number): number[] {
    const at = this.#machine.physical(PAGE) + offset;
    return [...this.#machine.memory.bytes.subarray(at, at + bytes)];
  }

  close(): void {
    this.#machine.close();
  }

  #state(): string {
    const machine = this.#machine;
    const longs = [machine.rip, machine.flags, BigInt(machine.word(MXCSR))];
    for (let n = 0; n < 16; n++) longs.push(machine.register(n));
    for (let n = 0; n < 32; n++) longs.push(machine.get(XMM + 8 * n));
    return longs.map((value) => value.toString(16)).join() + Buffer.from(this.data(0, 4096)).toString('hex');
  }
}
