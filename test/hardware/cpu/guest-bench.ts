/**
 * A guest in long mode for tests of the core, with nothing but hardware around it: nested tables over scattered frames, identity page tables
 * of 4 KiB pages, a GDT, an IDT, a TSS, a VMCB. Numbers are written out, not imported: they are what the tests check.
 */
import type { ChipGeneration } from '../../../src/abi/tcb-version.ts';
import type { Gpa, Pfn, Spa } from '../../../src/base/address.ts';
import { Trace, type TraceEvent } from '../../../src/base/trace.ts';
import { PERSONALITIES } from '../../../src/hardware/chip/personality.ts';
import { Core } from '../../../src/hardware/cpu/core.ts';
import { HostMemory } from '../../../src/hardware/memory/host-memory.ts';
import { assemble, type iced } from './assembler.ts';

type Instruction = InstanceType<typeof iced.Instruction>;

/** Guest physical and linear addresses: 1 MiB of RAM. */
export const PML4 = 0x1000;
export const PDPT = 0x2000;
export const PD = 0x3000;
export const PT = 0x4000;
export const GDT = 0x5000;
export const IDT = 0x6000;
export const TSS = 0x7000;
export const STACK = 0x9000;
/** Top of the stack that IST1 gives, and of RSP0. */
export const IST1 = 0xa000;
export const RSP0 = 0xb000;
export const USER_STACK = 0xd000;
export const CODE = 0x10000;
/** Where exception handlers lie, 64 bytes each. */
export const HANDLERS = 0x20000;
export const DATA = 0x30000;
const PAGES = 256;

export const KERNEL_CODE = 0x08;
export const KERNEL_DATA = 0x10;
export const USER_DATA = 0x1b;
export const USER_CODE = 0x23;
export const TASK = 0x28;

/** Offsets in the VMCB that tests look at; the save area begins at 0x400. */
export const EXITCODE = 0x70;
export const EXITINFO1 = 0x78;
export const EXITINFO2 = 0x80;
export const EXITINTINFO = 0x88;
export const NEXT_RIP = 0xc8;
export const EVENTINJ = 0xa8;
export const RFLAGS = 0x570;
export const RIP = 0x578;
export const RSP = 0x5d8;
export const RAX = 0x5f8;
export const CR0 = 0x558;
export const CR2 = 0x640;
export const CR3 = 0x550;
export const CR4 = 0x548;
export const EFER = 0x4d0;

const UNLIMITED = 0x7fffffff;

export class GuestBench {
  readonly trace = new Trace();
  readonly events: TraceEvent[] = [];
  readonly memory: HostMemory;
  readonly core: Core;
  readonly vmcb: Spa;
  readonly iopm: number;
  readonly msrpm: number;
  readonly nestedRoot: number;
  readonly #owner;
  readonly #frames: number[] = [];

  /** `memory`: where the guest lives; 16 MiB of its own when absent. `chip`: whose core it is. */
  constructor(
    memory = HostMemory.create({ bytes: 16 * 1024 * 1024, trace: new Trace() }),
    chip: ChipGeneration = 'milan',
  ) {
    this.trace.listen((event) => this.events.push(event));
    this.memory = memory;
    this.#owner = this.memory.owner('test');
    this.core = new Core({
      id: 0,
      memory: this.memory,
      trace: this.trace,
      personality: PERSONALITIES[chip],
    });
    this.vmcb = (this.frame() * 4096) as Spa;
    this.iopm = this.memory.allocate(2, this.#owner) * 4096;
    this.msrpm = this.memory.allocate(1, this.#owner) * 4096;
    this.nestedRoot = this.frame();
    // Guest frames run downwards, so that no gpa is its own spa, nor neighbours neighbours.
    for (let gfn = 0; gfn < PAGES; gfn++) this.#frames[PAGES - 1 - gfn] = this.frame();
    for (let gfn = 0; gfn < PAGES; gfn++) this.map(gfn, this.#frames[gfn]!, 7n);
    this.#buildTables();
    this.#buildVmcb();
  }

  frame(): number {
    return this.memory.allocate(0, this.#owner);
  }

  /** Sets a nested entry for one page, tables included; `bits` are the leaf's low bits (and NX). */
  map(gfn: number, frame: number, bits: bigint): void {
    let table = this.nestedRoot;
    for (let level = 3; level > 0; level--) {
      const entry = (table * 4096 + (Math.floor(gfn / 512 ** level) & 511) * 8) as Spa;
      if (this.memory.load64(entry) === 0n) this.memory.store64(entry, BigInt(this.frame() * 4096) | 7n);
      table = Number((this.memory.load64(entry) >> 12n) & 0xfffffffffn);
    }
    this.memory.store64((table * 4096 + (gfn & 511) * 8) as Spa, BigInt(frame * 4096) | bits);
  }

  /** System physical address of the nested leaf for `gfn`. */
  nestedLeaf(gfn: number): Spa {
    let table = this.nestedRoot;
    for (let level = 3; level > 0; level--) {
      const entry = (table * 4096 + (Math.floor(gfn / 512 ** level) & 511) * 8) as Spa;
      table = Number((this.memory.load64(entry) >> 12n) & 0xfffffffffn);
    }
    return (table * 4096 + (gfn & 511) * 8) as Spa;
  }
  unmap(gfn: number): void {
    this.memory.store64(this.nestedLeaf(gfn), 0n);
    this.flush();
  }
  remap(gfn: number, bits: bigint): void {
    this.map(gfn, this.#frames[gfn]!, bits);
    this.flush();
  }
  /** TLB_CONTROL 3 for the next VMRUN. */
  flush(): void {
    this.setWord(0x5c, 3);
  }

  /** The frame behind a gfn of RAM. */
  frameOf(gfn: number): Pfn {
    return this.#frames[gfn]! as Pfn;
  }
  spa(gpa: number): Spa {
    return (this.#frames[gpa >>> 12]! * 4096 + (gpa & 4095)) as Spa;
  }
  read(gpa: number): bigint {
    return this.memory.load64(this.spa(gpa));
  }
  write(gpa: number, value: bigint | number): void {
    this.memory.store64(this.spa(gpa), BigInt.asUintN(64, BigInt(value)));
  }

  word(offset: number): number {
    return this.memory.load32((this.vmcb + offset) as Spa);
  }
  setWord(offset: number, value: number): void {
    this.memory.store32((this.vmcb + offset) as Spa, value);
  }
  long(offset: number): bigint {
    return this.memory.load64((this.vmcb + offset) as Spa);
  }
  setLong(offset: number, value: bigint): void {
    this.memory.store64((this.vmcb + offset) as Spa, value);
  }
  /** Intercept bit `word * 32 + bit`. */
  intercept(bit: number, on = 1): void {
    const offset = (bit >>> 5) * 4;
    const mask = 1 << (bit & 31);
    this.setWord(offset, on === 1 ? this.word(offset) | mask : this.word(offset) & ~mask);
  }
  interceptException(vector: number): void {
    this.setWord(8, this.word(8) | (1 << vector));
  }
  segment(offset: number, selector: number, attributes: number, limit = -1, base = 0n): void {
    this.setWord(0x400 + offset, selector | (attributes << 16));
    this.setWord(0x404 + offset, limit);
    this.setLong(0x408 + offset, base);
  }

  /** Puts code at a gpa and, if it is the first, RIP on it. */
  load(program: readonly Instruction[], at = CODE): void {
    const bytes = assemble(program, at);
    for (const [i, byte] of bytes.entries()) this.memory.write(this.spa(at + i), Uint8Array.of(byte));
  }
  /** Runs `program` at CODE until the next exit; its code. */
  run(program?: readonly Instruction[], budget = UNLIMITED): number {
    if (program) {
      this.load(program);
      this.setLong(RIP, BigInt(CODE));
    }
    const code = this.core.vmrun(this.vmcb, budget);
    this.setWord(0x5c, 0);
    return code;
  }
  /** Runs `bytes` at CODE, with a HLT behind them. */
  runBytes(...bytes: readonly number[]): number {
    this.memory.write(this.spa(CODE), Uint8Array.from([...bytes, 0xf4]));
    this.setLong(RIP, BigInt(CODE));
    return this.run();
  }
  /** Goes on behind the intercepted instruction. */
  skip(budget = UNLIMITED): number {
    this.setLong(RIP, this.long(NEXT_RIP));
    return this.run(undefined, budget);
  }

  /** A 64-bit gate of the IDT. `type`: 14 interrupt, 15 trap. */
  gate(
    vector: number,
    handler: number | bigint,
    options: { ist?: number; dpl?: number; type?: number; selector?: number; present?: 0 | 1 } = {},
  ): void {
    const { ist = 0, dpl = 0, type = 14, selector = KERNEL_CODE, present = 1 } = options;
    const target = BigInt.asUintN(64, BigInt(handler));
    const low =
      (target & 0xffffn) |
      (BigInt(selector) << 16n) |
      (BigInt(ist | (type << 8) | (dpl << 13) | (present << 15)) << 32n) |
      (((target >> 16n) & 0xffffn) << 48n);
    this.write(IDT + vector * 16, low);
    this.write(IDT + vector * 16 + 8, target >> 32n);
  }

  /** Runs at CPL 3: every page of RAM becomes the user's as well. */
  becomeUser(): void {
    for (let page = 0; page < PAGES; page++) this.write(PT + page * 8, BigInt(page * 4096) | 7n);
    this.segment(0x10, USER_CODE, 0xafb);
    this.segment(0x20, USER_DATA, 0xcf3);
    this.memory.write((this.vmcb + 0x4cb) as Spa, Uint8Array.of(3));
    this.setLong(RSP, BigInt(USER_STACK));
  }

  get cpl(): number {
    const byte = new Uint8Array(1);
    this.memory.read((this.vmcb + 0x4cb) as Spa, byte);
    return byte[0]!;
  }

  /** What the core last said that it cannot do. */
  refusal(): string | undefined {
    return this.events.findLast(({ what }) => what === 'not-implemented')?.why;
  }

  close(): void {
    this.core.close();
    this.memory.close();
  }

  #buildTables(): void {
    this.write(PML4, PDPT | 7);
    this.write(PDPT, PD | 7);
    this.write(PD, PT | 7);
    for (let page = 0; page < PAGES; page++) this.write(PT + page * 8, (page * 4096) | 3);
    this.write(GDT + KERNEL_CODE, 0x00af9a000000ffffn);
    this.write(GDT + KERNEL_DATA, 0x00cf92000000ffffn);
    this.write(GDT + 0x18, 0x00cff2000000ffffn);
    this.write(GDT + 0x20, 0x00affa000000ffffn);
    this.write(GDT + TASK, 0x0000890000000067n | (BigInt(TSS & 0xffffff) << 16n));
    this.write(GDT + TASK + 8, 0n);
    // The TSS's fields are not aligned to 8.
    for (const [offset, value] of [
      [4, RSP0],
      [0x24, IST1],
    ] as const) {
      const bytes = new Uint8Array(8);
      new DataView(bytes.buffer).setBigUint64(0, BigInt(value), true);
      this.memory.write(this.spa(TSS + offset), bytes);
    }
  }

  #buildVmcb(): void {
    // INTR IOIO MSR SHUTDOWN, HLT, VMRUN, VMMCALL.
    for (const bit of [96, 120, 123, 124, 127, 128, 129]) this.intercept(bit);
    this.memory.write(this.iopm as Spa, new Uint8Array(0x3000).fill(0xff));
    this.setLong(0x40, BigInt(this.iopm));
    this.setLong(0x48, BigInt(this.msrpm));
    this.setWord(0x58, 1);
    this.setLong(0x90, 1n);
    this.setLong(0xb0, BigInt(this.nestedRoot * 4096));
    this.segment(0x00, KERNEL_DATA, 0xc93);
    this.segment(0x10, KERNEL_CODE, 0xa9b);
    this.segment(0x20, KERNEL_DATA, 0xc93);
    this.segment(0x30, KERNEL_DATA, 0xc93);
    this.segment(0x60, 0, 0, 0x37, BigInt(GDT));
    this.segment(0x80, 0, 0, 0xfff, BigInt(IDT));
    this.segment(0x90, TASK, 0x8b, 0x67, BigInt(TSS));
    this.setLong(EFER, 0x1d01n);
    this.setLong(CR4, 0x6a0n);
    this.setLong(CR3, BigInt(PML4));
    this.setLong(CR0, 0x80010033n);
    this.setLong(0x560, 0x400n);
    this.setLong(0x568, 0xffff0ff0n);
    this.setLong(RFLAGS, 2n);
    this.setLong(RSP, BigInt(STACK));
    this.setLong(0x668, 0x0007040600070406n);
  }
}

/** What the bus of an emulated instruction saw. */
export class RecordingBus {
  readonly log: string[] = [];
  /** Data for reads by gpa; absent: not there yet. */
  readonly data = new Map<number, bigint>();
  read(gpa: Gpa, into: Uint8Array): boolean {
    const value = this.data.get(gpa);
    this.log.push(`read ${gpa.toString(16)} ${into.length}`);
    if (value === undefined) return false;
    for (let i = 0; i < into.length; i++) into[i] = Number((value >> BigInt(8 * i)) & 0xffn);
    return true;
  }
  write(gpa: Gpa, from: Uint8Array): void {
    const hex = [...from].map((byte) => byte.toString(16).padStart(2, '0')).join('');
    this.log.push(`write ${gpa.toString(16)} ${hex}`);
  }
  portRead(port: number, into: Uint8Array): boolean {
    return this.read(port as Gpa, into);
  }
  portWrite(port: number, from: Uint8Array): void {
    this.write(port as Gpa, from);
  }
}
