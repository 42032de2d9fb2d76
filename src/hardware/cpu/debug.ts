/**
 * Debug registers at work (APM volume 2, 13.1): breakpoints on instructions, data and ports, single steps, DR6. A core without breakpoints pays
 * nothing: pages with watched addresses are in no TLB, so that accesses to them take the slow path and instructions on them are stepped.
 *
 * A data breakpoint that matches while generated code runs abandons the instruction (LEAVE.STEP); the core runs it again by itself, notes what
 * matches, and raises #DB behind it. Left out: DEBUGCTL.BTF and branch records, accesses of the processor itself (descriptors, stacks of handlers).
 */
import { SAVE } from '../../abi/vmcb.ts';
import { CR4, RFLAGS } from '../../abi/x86.ts';
import type { Registers } from './registers.ts';
import { STATE } from './state.ts';
import type { CoreTlb } from './tlb.ts';

/** Bits of DR6. */
export const DR6 = { BREAKPOINTS: 0xf, BD: 1 << 13, BS: 1 << 14 } as const;
/** L0 to L3 and G0 to G3 of DR7. */
export const DR7_ENABLES = 0xff;
const DR7_GD = 1 << 13;
/** A #DB writes these anew; BD and BS stay until software clears them. */
const DR6_REPLACED = DR6.BREAKPOINTS;

const KIND = { EXECUTE: 0, WRITE: 1, PORT: 2, ACCESS: 3 } as const;
/** LEN fields 0 to 3. */
const LENGTHS = [1, 2, 8, 4] as const;

interface Breakpoint {
  /** Its bit in DR6. */
  readonly bit: number;
  readonly kind: number;
  readonly address: bigint;
  readonly length: number;
}

export class DebugUnit {
  /** DR6 bits of traps that wait for the end of the instruction. */
  pending = 0;
  /** False while generated code runs, which cannot be stopped behind an instruction. */
  stepping = true;
  /** Whether the instruction traps by RFLAGS.TF has been decided: it went through the IDT, or looked at TF itself (SYSCALL, SYSRET). */
  settled = false;
  /** True while some breakpoint on data (on instructions) is on. */
  watchesData = false;
  watchesCode = false;
  readonly #registers: Registers;
  readonly #tlb: CoreTlb;
  #breakpoints: readonly Breakpoint[] = [];
  /** What `#breakpoints` was made from. */
  #control = 0;
  readonly #addresses = new BigUint64Array(4);

  constructor(registers: Registers, tlb: CoreTlb) {
    this.#registers = registers;
    this.#tlb = tlb;
  }

  /** True while some breakpoint is on. */
  get armed(): boolean {
    return this.#breakpoints.length > 0;
  }

  /** Takes up DR7 and DR0 to DR3, after a write or at VMRUN. Cheap where no breakpoint is on. */
  load(): void {
    const registers = this.#registers;
    const control = registers.saveWord(SAVE.DR7);
    if ((control & DR7_ENABLES) === 0 && this.#breakpoints.length === 0) return;
    let changed = control !== this.#control;
    for (let n = 0; n < 4; n++) {
      const address = registers.long(STATE.DR0 + 8 * n);
      if (this.#addresses[n] === address) continue;
      this.#addresses[n] = address;
      changed = true;
    }
    if (changed) this.#arm(control);
  }

  #arm(control: number): void {
    this.#control = control;
    const breakpoints: Breakpoint[] = [];
    for (let n = 0; n < 4; n++) {
      if (((control >>> (2 * n)) & 3) === 0) continue;
      const length = LENGTHS[(control >>> (18 + 4 * n)) & 3]!;
      const kind = (control >>> (16 + 4 * n)) & 3;
      const start = kind === KIND.EXECUTE ? this.#addresses[n]! : this.#addresses[n]! & ~BigInt(length - 1);
      breakpoints.push({ bit: 1 << n, kind, address: start, length });
    }
    this.#breakpoints = breakpoints;
    this.watchesCode = breakpoints.some(({ kind }) => kind === KIND.EXECUTE);
    this.watchesData = breakpoints.some(({ kind }) => kind === KIND.WRITE || kind === KIND.ACCESS);
    this.#tlb.flush();
  }

  /** Whether a page (linear `high:low`) has a watched address, so that no TLB may hold it. */
  watchesPage(low: number, high: number, of: 'code' | 'data'): boolean {
    const page = linear(low, high) >> 12n;
    return this.#breakpoints.some(
      ({ kind, address }) => address >> 12n === page && (kind === KIND.EXECUTE) === (of === 'code'),
    );
  }

  /** DR6 bits of the breakpoints on the instruction at RIP; 0 while RFLAGS.RF is set. */
  atInstruction(): number {
    if (!this.watchesCode || (this.#registers.rflags & RFLAGS.RF) !== 0) return 0;
    const { rip } = this.#registers;
    let bits = 0;
    for (const { bit, kind, address } of this.#breakpoints)
      if (kind === KIND.EXECUTE && address === rip) bits |= bit;
    return bits;
  }

  /** A data access. False: it is watched, and the instruction must be stepped. */
  mayAccess(low: number, high: number, size: number, access: 'read' | 'write' | 'probe'): boolean {
    const start = linear(low, high);
    let bits = 0;
    for (const { bit, kind, address, length } of this.#breakpoints) {
      const counts = kind === KIND.ACCESS || (kind === KIND.WRITE && access !== 'read');
      if (counts && start < address + BigInt(length) && address < start + BigInt(size)) bits |= bit;
    }
    if (bits === 0) return true;
    if (!this.stepping) return false;
    if (access !== 'probe') this.pending |= bits;
    return true;
  }

  /** An access of `size` ports from `port` on; with CR4.DE breakpoints may watch them. */
  noteIo(port: number, size: number): void {
    if (this.#breakpoints.length === 0 || (this.#registers.saveWord(SAVE.CR4) & CR4.DE) === 0) return;
    for (const { bit, kind, address, length } of this.#breakpoints) {
      const from = Number(address & 0xffffn);
      if (kind === KIND.PORT && port < from + length && from < port + size) this.pending |= bit;
    }
  }

  /** For an instruction whose new RFLAGS.TF counts, not the one it began with. */
  settle(flags: number): void {
    this.settled = true;
    if ((flags & RFLAGS.TF) !== 0) this.pending |= DR6.BS;
  }

  /** Whether access to debug registers is #DB. */
  get guarded(): boolean {
    return (this.#registers.saveWord(SAVE.DR7) & DR7_GD) !== 0;
  }

  /** DR6 and DR7 as a #DB leaves them. */
  record(bits: number): void {
    const registers = this.#registers;
    registers.setSaveWord(SAVE.DR6, (registers.saveWord(SAVE.DR6) & ~DR6_REPLACED) | bits);
    registers.setSaveWord(SAVE.DR7, registers.saveWord(SAVE.DR7) & ~DR7_GD);
    this.#control &= ~DR7_GD;
  }
}

const linear = (low: number, high: number): bigint => (BigInt(high >>> 0) << 32n) | BigInt(low >>> 0);
