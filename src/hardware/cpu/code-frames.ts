/**
 * Frames with decoded code (docs/CORE.md, "Stores into code"). What one core has decoded must not be written through another's TLB, so the cores of
 * one host memory know each other. They run on one thread.
 */
import { FRAME_FLAG, type HostMemory, NO_FRAME } from '../memory/host-memory.ts';
import type { Interpreter } from './interpreter.ts';
import type { CoreTlb } from './tlb.ts';

/** So many stores in a row to one frame with code make it data, until it is fetched from again. */
const STORES_UNTIL_DATA = 256;

/** What a core has of code: translations and decoded instructions. */
interface CodeUser {
  readonly tlb: CoreTlb;
  readonly interpreter: Interpreter;
}

const usersOf = new WeakMap<HostMemory, Set<CodeUser>>();

/** As one core sees them. */
export class CodeFrames {
  readonly #memory: HostMemory;
  readonly #users: Set<CodeUser>;
  #generation: number;
  /** The frame with code that was last stored to, and how often in a row. */
  #storedFrame: number = NO_FRAME;
  #stores = 0;

  constructor(memory: HostMemory) {
    this.#memory = memory;
    this.#users = usersOf.get(memory) ?? new Set();
    usersOf.set(memory, this.#users);
    this.#generation = memory.codeGeneration;
  }

  join(user: CodeUser): void {
    this.#users.add(user);
  }

  leave(user: CodeUser): void {
    this.#users.delete(user);
  }

  /** The frame holds decoded code from now on: no core may write to it unseen. */
  protect(frame: number): void {
    const { frameFlags } = this.#memory;
    if ((frameFlags[frame]! & FRAME_FLAG.CODE) !== 0) return;
    frameFlags[frame]! |= FRAME_FLAG.CODE;
    for (const { tlb } of this.#users) tlb.forbidWrites(frame);
  }

  /** A store into a frame with decoded code. Where stores come in numbers and no code is run, the code gives way. */
  written(frame: number, offset: number, bytes: number): void {
    this.#stores = frame === this.#storedFrame ? this.#stores + 1 : 0;
    this.#storedFrame = frame;
    if (this.#stores < STORES_UNTIL_DATA) {
      for (const { interpreter } of this.#users) interpreter.invalidateBytes(frame, offset, bytes);
      return;
    }
    this.#storedFrame = NO_FRAME;
    for (const { interpreter } of this.#users) interpreter.invalidateFrame(frame);
    this.#memory.frameFlags[frame]! &= ~FRAME_FLAG.CODE;
  }

  /** A walk has set a bit in a page table of the frame. */
  tableWritten(frame: number): void {
    if ((this.#memory.frameFlags[frame]! & FRAME_FLAG.CODE) === 0) return;
    for (const { interpreter } of this.#users) interpreter.invalidateFrame(frame);
  }

  /** Whether the host has written into decoded code, or frames have changed hands, since this was last asked. */
  changedByHost(): boolean {
    const generation = this.#memory.words[this.#memory.codeGenerationAddress >>> 2]!;
    const changed = generation !== this.#generation;
    this.#generation = generation;
    return changed;
  }
}
