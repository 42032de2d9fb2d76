/** A guest whose page of data lies between two that are missing: where its instructions fault, and all that they could leave changed. */
import type { Spa } from '../../../src/base/address.ts';
import { CODE, DATA, GuestBench, PT, RAX, RFLAGS, RIP, RSP, STACK } from './guest-bench.ts';

/** The page behind DATA's. */
export const BEHIND = DATA + 0x1000;
export const PAGE_FAULT_EXIT = 0x4e;

/** General registers by number; those of the VMCB among them. */
export type Registers = Readonly<Record<number, number | bigint>>;

const [RAX_NUMBER, RSP_NUMBER] = [0, 4] as const;

export class FaultBench {
  readonly guest = new GuestBench();

  constructor() {
    const { guest } = this;
    guest.interceptException(14);
    guest.write(PT + (DATA / 4096 - 1) * 8, 0);
    guest.write(PT + (BEHIND / 4096) * 8, 0);
    for (let at = 0; at < 4096; at += 8) guest.write(DATA + at, 0x0123456789abcdefn ^ BigInt(at));
  }

  /**
   * Runs `code`. The exit, EXITINFO2 (CR2 of a page fault that is intercepted), and whether anything has changed, but for the bytes of the
   * page of data below the stack pointer, which nobody may rely on.
   */
  execute(
    code: readonly number[],
    registers: Registers,
    flags = 0x8d7n,
  ): { exit: number; address: bigint; changed: boolean } {
    const { guest } = this;
    for (let n = 0; n < 16; n++) this.#set(n, 0x1111_1111n * BigInt(n));
    this.#set(RSP_NUMBER, STACK);
    for (const [number, to] of Object.entries(registers)) this.#set(Number(number), to);
    guest.setLong(RFLAGS, flags);
    guest.setLong(RIP, BigInt(CODE));
    const top = Number(guest.long(RSP)) - DATA;
    const from = top > 0 && top < 0x800 ? top : 0;
    const before = this.#state(from);
    const exit = guest.runBytes(...code);
    return { exit, address: guest.long(0x80), changed: this.#state(from) !== before };
  }

  close(): void {
    this.guest.close();
  }

  #set(number: number, to: number | bigint): void {
    const value = BigInt.asUintN(64, BigInt(to));
    if (number === RAX_NUMBER) this.guest.setLong(RAX, value);
    else if (number === RSP_NUMBER) this.guest.setLong(RSP, value);
    else this.guest.core.gpr[number] = value;
  }

  /** Registers, the save area (segments, control registers, RFLAGS, RIP, RSP, RAX, CR2) and the page from `from` on. */
  #state(from: number): string {
    const { core, vmcb } = this.guest;
    const x87 = new Uint8Array(160);
    core.readX87(x87);
    const gpr = [...core.gpr.subarray(1, 4), ...core.gpr.subarray(5)].join();
    const save = this.#bytes(vmcb + 0x400, 0x298);
    const page = this.#bytes(this.guest.spa(DATA) + from, 4096 - from);
    const vectors = [core.xmm, x87].map((bytes) => Buffer.from(bytes).toString('hex')).join();
    return [save, gpr, vectors, core.mxcsr, core.xcr0, page].join('\n');
  }

  #bytes(at: number, length: number): string {
    const into = new Uint8Array(length);
    this.guest.memory.read(at as Spa, into);
    return Buffer.from(into).toString('hex');
  }
}

export const bytesOf = (hex: string): number[] => [...Buffer.from(hex.replaceAll(' ', ''), 'hex')];
