/**
 * The least machine around our interpreter: linear pages that lie in frames as a table says, all writable, no privilege. What page tables
 * and VMRUN add is the core's, and tested there.
 */
import { Trace } from '../../src/base/trace.ts';
import { Interpreter } from '../../src/hardware/cpu/interpreter.ts';
import { LEAVE, STATE, TLB, TLB_EMPTY, TLB_ENTRIES, USER_TLB } from '../../src/hardware/cpu/state.ts';
import { HostMemory } from '../../src/hardware/memory/host-memory.ts';

const PAGE = 4096n;
const PAGE_FAULT = 14;
const [USER_READ, USER_WRITE] = [4, 6];
const ARITHMETIC = 0x8d5n;

export interface FlatMachineOptions {
  readonly bytes?: number;
  readonly codeBytes?: number;
  /** The slow path's `system`; by default every such instruction stops the run with LEAVE.VMEXIT. */
  readonly system?: (machine: FlatMachine, record: number) => number;
}

export class FlatMachine {
  readonly memory: HostMemory;
  readonly interpreter: Interpreter;
  readonly state: number;
  /** Slow-path loads, stores and probes so far. */
  misses = 0;
  /** CR2: where the last page fault was. Its error code is the user's. */
  faultAddress = 0n;
  readonly undefinedAt: [mnemonic: string, rip: bigint][] = [];
  readonly #owner;
  readonly #frames = new Map<bigint, number>();

  constructor(options: FlatMachineOptions = {}) {
    this.memory = HostMemory.create({ bytes: options.bytes ?? 16 << 20, trace: new Trace() });
    this.#owner = this.memory.owner('flat machine');
    this.state = this.memory.allocate(3, this.#owner) * 4096;
    this.interpreter = new Interpreter({
      memory: this.memory,
      owner: this.#owner,
      state: this.state,
      codeBytes: options.codeBytes ?? 8 << 20,
      slowPath: {
        load: (_, size) => this.#access(size, 'load'),
        store: (_, size) => this.#access(size, 'store'),
        probe: (_, size) => this.#access(size, 'probe'),
        system: (_, record) => options.system?.(this, record) ?? LEAVE.VMEXIT,
      },
      onCodeFrame: () => this.emptyTlb(STATE.WRITE_TLB),
      onUndefined: (mnemonic, rip) => this.undefinedAt.push([mnemonic, rip]),
    });
    for (const table of [STATE.READ_TLB, STATE.WRITE_TLB, STATE.FETCH_TLB]) this.emptyTlb(table);
    this.set(STATE.FLAGS_REST, 0x202n);
    this.flags = 0n;
  }

  /** A frame of zeroes at linear page `linear`; its number. */
  addPage(linear: bigint): number {
    const frame = this.memory.allocate(0, this.#owner);
    this.mapPage(linear, frame);
    return frame;
  }

  /** Lets linear page `linear` lie in `frame`, as if all TLBs were flushed when it lay elsewhere. */
  mapPage(linear: bigint, frame: number): void {
    const known = this.#frames.has(linear);
    this.#frames.set(linear, frame);
    if (!known) return;
    for (const table of [STATE.READ_TLB, STATE.WRITE_TLB, STATE.FETCH_TLB]) this.emptyTlb(table);
  }

  /** Physical address of a linear one; −1 where nothing is mapped. */
  physical(linear: bigint): number {
    const frame = this.#frames.get(linear & ~(PAGE - 1n));
    return frame === undefined ? -1 : frame * 4096 + Number(linear & (PAGE - 1n));
  }

  /** Puts bytes into memory as a host would, behind the core's back. */
  put(linear: bigint, bytes: readonly number[]): void {
    bytes.forEach((byte, n) => {
      this.memory.bytes[this.physical(linear + BigInt(n))] = byte;
    });
  }

  get(offset: number): bigint {
    return this.memory.longs[(this.state + offset) >> 3]!;
  }
  set(offset: number, to: bigint): void {
    this.memory.longs[(this.state + offset) >> 3] = BigInt.asUintN(64, to);
  }
  word(offset: number): number {
    return this.memory.words[(this.state + offset) >> 2]!;
  }
  setWord(offset: number, to: number): void {
    this.memory.words[(this.state + offset) >> 2] = to;
  }
  register(number: number): bigint {
    return this.get(STATE.GPR + 8 * number);
  }
  setRegister(number: number, to: bigint): void {
    this.set(STATE.GPR + 8 * number, to);
  }

  get rip(): bigint {
    return this.get(STATE.RIP);
  }
  set rip(to: bigint) {
    this.set(STATE.RIP, to);
  }

  /** RFLAGS out of the spread words. */
  get flags(): bigint {
    const negative = (offset: number) => this.get(offset) >> 63n;
    const low = (this.get(STATE.FLAG_SR) & 0xffn).toString(2);
    const odd = BigInt(low.replaceAll('0', '').length & 1);
    return (
      this.get(STATE.FLAGS_REST) |
      negative(STATE.FLAG_CV) |
      ((1n - odd) << 2n) |
      ((this.get(STATE.FLAG_CV) & 8n) << 1n) |
      (this.get(STATE.FLAG_ZR) === 0n ? 0x40n : 0n) |
      (negative(STATE.FLAG_SR) << 7n) |
      (negative(STATE.FLAG_OV) << 11n)
    );
  }
  set flags(to: bigint) {
    const bit = (n: bigint) => (to >> n) & 1n;
    this.set(STATE.FLAG_ZR, 1n - bit(6n));
    this.set(STATE.FLAG_SR, (bit(7n) << 63n) | (1n - bit(2n)));
    this.set(STATE.FLAG_CV, (bit(0n) << 63n) | (bit(4n) << 3n));
    this.set(STATE.FLAG_OV, bit(11n) << 63n);
    const rest = this.get(STATE.FLAGS_REST) & ~(ARITHMETIC | 0x400n);
    this.set(STATE.FLAGS_REST, rest | (to & 0x400n));
  }

  /** Runs until something other than a missing page of code ends it. */
  run(budget = 1_000_000): number {
    for (;;) {
      const reason = this.interpreter.run(budget);
      if (reason !== LEAVE.FETCH) return reason;
      if (!this.fetch()) return LEAVE.EXCEPTION;
    }
  }

  /** After LEAVE.FETCH: fills the fetch TLB and decodes; false when RIP's page, or the next one where it matters, is not mapped. */
  fetch(): boolean {
    const { rip } = this;
    const frame = this.#fetchFrame(rip);
    if (frame < 0) return this.#fault() === 0;
    return (
      this.interpreter.decode(frame, Number(rip & 0xfffn), () => this.#fetchNext(rip)) || this.#fault() === 0
    );
  }

  /** Exactly one instruction. */
  step(): number {
    const { rip } = this;
    return this.interpreter.step(this.#fetchFrame(rip), () => this.#fetchNext(rip));
  }

  raise(vector: number): number {
    this.setWord(STATE.EXCEPTION_VECTOR, vector);
    return LEAVE.EXCEPTION;
  }

  emptyTlb(table: number): void {
    for (let n = 0; n < TLB_ENTRIES; n++) {
      for (const set of [0, USER_TLB]) this.set(table + set + 16 * n, TLB_EMPTY);
    }
  }

  close(): void {
    this.memory.close();
  }

  #fetchNext(rip: bigint): number {
    return this.#fetchFrame((rip & ~(PAGE - 1n)) + PAGE);
  }

  /** The frame of a page of code, put into the fetch TLB; −1 where nothing is mapped. */
  #fetchFrame(linear: bigint): number {
    const physical = this.physical(linear & ~(PAGE - 1n));
    if (physical < 0) return -1;
    const map = this.interpreter.pageMap(physical >>> 12);
    const entry = this.#entry(STATE.FETCH_TLB, linear);
    this.set(entry, linear & ~(PAGE - 1n));
    this.setWord(entry + TLB.ADDEND, map);
    this.setWord(entry + TLB.EXTRA, physical);
    return physical >>> 12;
  }

  #entry(table: number, linear: bigint): number {
    return table + (Number((linear >> 8n) & 0xff0n) & 0xff0);
  }

  #fault(): number {
    return this.raise(PAGE_FAULT);
  }

  #access(size: number, kind: 'load' | 'store' | 'probe'): number {
    this.misses++;
    const linear = this.get(STATE.ADDRESS);
    const at = Array.from({ length: size }, (_, n) => this.physical(BigInt.asUintN(64, linear + BigInt(n))));
    const absent = at.findIndex((physical) => physical < 0);
    if (absent >= 0) {
      this.faultAddress = BigInt.asUintN(64, linear + BigInt(absent));
      this.setWord(STATE.EXCEPTION_ERROR, kind === 'load' ? USER_READ : USER_WRITE);
      return this.#fault();
    }
    const { bytes } = this.memory;
    const data = this.state + STATE.DATA;
    at.forEach((physical, n) => {
      if (kind === 'load') bytes[data + n] = bytes[physical]!;
      if (kind === 'store') bytes[physical] = bytes[data + n]!;
      if (kind === 'store') this.interpreter.invalidateBytes(physical >>> 12, physical & 0xfff, 1);
    });
    this.#fill(STATE.READ_TLB, linear, at[0]!);
    if (kind !== 'load' && !this.interpreter.hasCode(at[0]! >>> 12))
      this.#fill(STATE.WRITE_TLB, linear, at[0]!);
    return 0;
  }

  #fill(table: number, linear: bigint, physical: number): void {
    const entry = this.#entry(table, linear);
    this.set(entry, linear & ~(PAGE - 1n));
    this.setWord(entry + TLB.ADDEND, (physical - Number(BigInt.asUintN(32, linear))) | 0);
  }
}
