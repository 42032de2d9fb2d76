/**
 * Host RAM and its memory controller: one shared WebAssembly.Memory cut into 4 KiB page frames.
 *
 * | frames | what |
 * |---|---|
 * | 0 | reserved, always zero (`CORE.md`: an empty page map) |
 * | 1 | words that cores and host share: `codeGeneration` |
 * | 2… | `frameFlags`, one byte a frame; then the frames' tags (memory-encryption.ts), a word a frame; then the RMP, where the machine has one |
 * | the rest | handed out by the buddy allocator |
 *
 * Cores reach memory through `wasm`, `bytes`, `words`, `longs`; those are for `hardware/` alone. Everybody else goes through
 * `read`, `write`, `clear`, `copy`, `load…`, `store…`: what a host's software sees of DRAM, which is ciphertext where a frame belongs to an
 * encrypted guest. Its writes to frames that the RMP gives to somebody else throw RmpViolation.
 */

import { PAGE_SIZE, type Pfn, pfn, type Spa } from '../../base/address.ts';
import type { Trace } from '../../base/trace.ts';
import type { WasmMemory } from '../../base/wasm-memory.ts';
import { BuddyAllocator, MAX_ORDER, NO_FRAME } from './buddy.ts';
import type { BulkOperations } from './bulk.ts';
import { FRAME_FLAG, FrameGuard, GUARDED, HIDDEN, type TranslationCache } from './frame-guard.ts';
import { type FrameOwner, FrameOwners } from './frame-owner.ts';
import type { MemoryEncryption } from './memory-encryption.ts';
import { MAX_WASM_PAGES, type MemoryPool, type PooledMemory, processPool, WASM_PAGE } from './pool.ts';
import { Rmp, rmpFrames } from './rmp.ts';
import { RmpViolation } from './rmp-violation.ts';

export { NO_FRAME } from './buddy.ts';
export { FRAME_FLAG, type TranslationCache } from './frame-guard.ts';
export type { FrameOwner } from './frame-owner.ts';

const MIN_BYTES = 1 << 20;
const MAX_BYTES = MAX_WASM_PAGES * WASM_PAGE;
const CONTROL_FRAME = 1;
const FLAGS_FRAME = 2;
/** Word of the control frame. */
const CODE_GENERATION = (CONTROL_FRAME * PAGE_SIZE) / 4;
/** Up to this size a loop beats a view. */
const SMALL = 32;

/** A memory of which more than this was touched is dropped at the end: scrubbing it costs more than a new one, and it would stay resident. */
const SCRUB_LIMIT_FRAMES = (1 << 30) / PAGE_SIZE;

const NO_BYTES = new Uint8Array(0);

export class HostMemory {
  /** For `hardware/` alone, as are the three views of it. */
  readonly wasm: WasmMemory;
  readonly bytes: Uint8Array;
  readonly words: Int32Array;
  readonly longs: BigUint64Array;
  readonly frameCount: number;
  /** One byte a frame, in shared memory: FRAME_FLAG bits. */
  readonly frameFlags: Uint8Array;
  /** Where `frameFlags` and `codeGeneration` lie, for cores. */
  readonly frameFlagsAddress = (FLAGS_FRAME * PAGE_SIZE) as Spa;
  readonly codeGenerationAddress = (CODE_GENERATION * 4) as Spa;
  readonly encryption: MemoryEncryption;
  /** The reverse map table; undefined on a machine without SNP. */
  readonly rmp: Rmp | undefined;
  readonly translationCaches = new Set<TranslationCache>();

  readonly #pooled: PooledMemory;
  readonly #pool: MemoryPool;
  readonly #bulk: BulkOperations;
  readonly #buddy: BuddyAllocator;
  readonly #owners = new FrameOwners();
  readonly trace: Trace;
  /** 1: the frame was handed out since the memory was last all zero. */
  readonly #touched: Uint8Array;
  readonly #guard: FrameGuard;
  /** Frames that are never handed out. */
  readonly #reserved: number;
  #closed = false;

  private constructor(bytes: number, trace: Trace, pool: MemoryPool, withRmp: boolean) {
    this.trace = trace;
    this.#pool = pool;
    this.#pooled = pool.take(Math.ceil(bytes / WASM_PAGE));
    this.#bulk = this.#pooled.bulk;
    this.wasm = this.#pooled.wasm;
    const { buffer } = this.wasm;
    this.bytes = new Uint8Array(buffer);
    this.words = new Int32Array(buffer);
    this.longs = new BigUint64Array(buffer);
    this.frameCount = Math.floor(bytes / PAGE_SIZE);
    this.frameFlags = new Uint8Array(buffer, this.frameFlagsAddress, this.frameCount);
    this.#touched = new Uint8Array(this.frameCount);
    const tagFrame = FLAGS_FRAME + Math.ceil(this.frameCount / PAGE_SIZE);
    const tableFrame = tagFrame + Math.ceil((this.frameCount * 4) / PAGE_SIZE);
    this.#reserved = tableFrame + (withRmp ? rmpFrames(this.frameCount) : 0);
    this.#buddy = new BuddyAllocator(this.frameCount, this.#reserved);
    this.#guard = new FrameGuard({
      bytes: this.bytes,
      words: this.words,
      frameFlags: this.frameFlags,
      tags: new Int32Array(buffer, tagFrame * PAGE_SIZE, this.frameCount),
      caches: this.translationCaches,
      codeChanged: () => Atomics.add(this.words, CODE_GENERATION, 1),
      blankIfFree: (frame) => {
        if (this.#buddy.ownerOf(frame) >= 0) return false;
        this.#bulk.clear(frame * PAGE_SIZE, PAGE_SIZE);
        return true;
      },
    });
    this.encryption = this.#guard.encryption;
    this.rmp = withRmp ? new Rmp(this.#guard.rmpMemory(this.frameCount), pfn(tableFrame)) : undefined;
  }

  /**
   * A host's RAM of `bytes` bytes, 1 MiB to 4 GiB, a multiple of 4096; all zero. Throws RangeError for another size.
   * `pool` is where the memory comes from and goes back to. `rmp`: the machine has SNP, and sets frames aside for a reverse map table.
   */
  static create(options: { bytes: number; trace: Trace; pool?: MemoryPool; rmp?: boolean }): HostMemory {
    const { bytes } = options;
    if (!(bytes >= MIN_BYTES && bytes <= MAX_BYTES && bytes % PAGE_SIZE === 0)) {
      throw new RangeError(`host memory of ${bytes} bytes: must be a multiple of 4096 from 1 MiB to 4 GiB`);
    }
    return new HostMemory(bytes, options.trace, options.pool ?? processPool, options.rmp ?? false);
  }

  /** The owner of that name, to account frames to. */
  owner(name: string): FrameOwner {
    return this.#owners.get(name);
  }

  /** Frames that nobody holds. */
  get freeFrames(): number {
    return this.#buddy.freeFrames;
  }

  /** Bytes of side tables: accounting beside the memory, and in it the frames set aside for flags, tags and the reverse map table. */
  get tableBytes(): number {
    return this.#buddy.tableBytes + this.#touched.byteLength + this.#reserved * PAGE_SIZE;
  }

  /** Owner of a frame that is in use. */
  ownerOf(frame: Pfn): FrameOwner | undefined {
    const id = this.#buddy.ownerOf(frame);
    return id < 0 ? undefined : this.#owners.byId(id);
  }

  /** Owners that still hold frames; empty when everything was given back. */
  leaks(): { owner: string; frames: number }[] {
    return this.#owners.holding().map(({ name, frames }) => ({ owner: name, frames }));
  }

  /** Frames in use by owner. */
  usage(): ReadonlyMap<string, number> {
    return new Map(this.#owners.holding().map(({ name, frames }) => [name, frames]));
  }

  /**
   * 2^`order` zeroed frames, aligned to their number; the first one's pfn, or NO_FRAME when there is no such block (nothing
   * has changed then). Orders 0 (4 KiB) to 18 (1 GiB).
   */
  allocate(order: number, owner: FrameOwner): Pfn | typeof NO_FRAME {
    if (!(order >= 0 && order <= MAX_ORDER))
      throw new RangeError(`order ${order}: must be 0 to ${MAX_ORDER}`);
    const frame = this.#buddy.allocate(order, owner.id);
    if (frame === NO_FRAME) return NO_FRAME;
    this.#zero(frame, 1 << order);
    owner.frames += 1 << order;
    if (this.trace.on) this.#traceFrames('allocate', frame, order, owner);
    return frame as Pfn;
  }

  /** The same for what a chip keeps inside (a core's state, decoded code): the host's software reads nothing there and cannot write. */
  allocateSilicon(order: number, owner: FrameOwner): Pfn | typeof NO_FRAME {
    const frame = this.allocate(order, owner);
    if (frame !== NO_FRAME)
      for (let i = 0; i < 1 << order; i++) this.frameFlags[frame + i]! |= FRAME_FLAG.SILICON;
    return frame;
  }

  /**
   * Frees a block that `allocate` gave, or any aligned part of one. Throws RangeError when these frames are not in use, or
   * not one block's.
   */
  free(frame: Pfn, order: number): void {
    const owner = this.#owners.byId(this.#buddy.free(frame, order));
    owner.frames -= 1 << order;
    this.#forgetCode(frame, 1 << order);
    if (this.trace.on) this.#traceFrames('free', frame, order, owner);
  }

  /** Counts changes of decoded code from outside of a core: host-side writes to CODE frames, and such frames set free. */
  get codeGeneration(): number {
    return Atomics.load(this.words, CODE_GENERATION);
  }

  /** What a host-side reader sees from `at` on; fills `into`. */
  read(at: Spa, into: Uint8Array): void {
    const { length } = into;
    this.#check(at, length);
    if (this.#guard.meets(at, length, HIDDEN)) {
      this.#guard.readHidden(at, into);
    } else if (length <= SMALL) {
      const { bytes } = this;
      for (let i = 0; i < length; i++) into[i] = bytes[at + i]!;
    } else {
      into.set(this.bytes.subarray(at, at + length));
    }
  }

  write(at: Spa, from: Uint8Array): void {
    const { length } = from;
    this.#check(at, length);
    this.#guard.beforeWrite(at, length);
    if (length <= SMALL) {
      const { bytes } = this;
      for (let i = 0; i < length; i++) bytes[at + i] = from[i]!;
    } else {
      this.bytes.set(from, at);
    }
    this.#wrote(at, length);
  }

  /** Zeroes `length` bytes from `at` on. */
  clear(at: Spa, length: number): void {
    this.#check(at, length);
    this.#guard.beforeWrite(at, length);
    this.#bulk.clear(at, length);
    this.#wrote(at, length);
  }

  /** Copies `length` bytes from `from` to `to`; the ranges may overlap. */
  copy(to: Spa, from: Spa, length: number): void {
    this.#check(to, length);
    this.#check(from, length);
    this.#guard.beforeWrite(to, length);
    if (this.#guard.meets(from, length, HIDDEN)) {
      const seen = new Uint8Array(length);
      this.#guard.readHidden(from, seen);
      this.bytes.set(seen, to);
    } else this.#bulk.copy(to, from, length);
    this.#wrote(to, length);
  }

  /** For `hardware/` alone: copies bytes as they stand in the frames, whoever they belong to. */
  copyInside(to: number, from: number, length: number): void {
    this.#bulk.copy(to, from, length);
  }

  /** The signed 32-bit word at `at`. An aligned one that hides nothing comes first here, as in `store32`: tables are made of them. */
  load32(at: Spa): number {
    const index = at >>> 2;
    if (at === index * 4 && index < this.words.length && (this.frameFlags[at >>> 12]! & HIDDEN) === 0)
      return this.words[index]!;
    const seen = new Uint8Array(4);
    this.read(at, seen);
    return seen[0]! | (seen[1]! << 8) | (seen[2]! << 16) | (seen[3]! << 24);
  }

  store32(at: Spa, value: number): void {
    const index = at >>> 2;
    if (at === index * 4 && index < this.words.length && this.frameFlags[at >>> 12] === 0)
      this.words[index] = value;
    else this.write(at, Uint8Array.of(value, value >> 8, value >> 16, value >> 24));
  }

  /** Clears `bits` of the aligned word at `at` and returns the word as it was; for tables, which change a word at a time. */
  clearBits32(at: Spa, bits: number): number {
    const { words } = this;
    const index = at >>> 2;
    if (at !== index * 4 || index >= words.length)
      throw new RangeError(`host memory: no aligned word at 0x${at.toString(16)}`);
    const isPlain = this.frameFlags[at >>> 12] === 0;
    if (!isPlain) this.#guard.beforeWrite(at, 4);
    const word = words[index]!;
    if ((word & bits) === 0) return word;
    words[index] = word & ~bits;
    if (!isPlain) this.#wrote(at, 4);
    return word;
  }

  load64(at: Spa): bigint {
    this.#check(at, 8);
    if ((at & 7) === 0 && !this.#guard.meets(at, 8, HIDDEN)) return this.longs[at / 8]!;
    const low = BigInt.asUintN(32, BigInt(this.load32(at)));
    return low | (BigInt.asUintN(32, BigInt(this.load32((at + 4) as Spa))) << 32n);
  }

  store64(at: Spa, value: bigint): void {
    this.#check(at, 8);
    if ((at & 7) === 0) {
      this.#guard.beforeWrite(at, 8);
      this.longs[at / 8] = value;
      this.#wrote(at, 8);
    } else {
      this.store32(at, Number(BigInt.asIntN(32, value)));
      this.store32((at + 4) as Spa, Number(BigInt.asIntN(32, value >> 32n)));
    }
  }

  /** A view of one frame, for frames that the host's software owns (kvm_run pages). A guest's frames are not read so. */
  page(frame: Pfn): Uint8Array {
    this.#check((frame * PAGE_SIZE) as Spa, PAGE_SIZE);
    if ((this.frameFlags[frame]! & GUARDED) !== 0) throw new RmpViolation(frame * PAGE_SIZE);
    return new Uint8Array(this.wasm.buffer, frame * PAGE_SIZE, PAGE_SIZE);
  }

  /** Scrubs what was touched and gives the memory back to the pool (or drops it, when that is much). The views of this object are empty afterwards. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    const views = this as {
      bytes: Uint8Array;
      words: Int32Array;
      longs: BigUint64Array;
      frameFlags: Uint8Array;
    };
    views.bytes = views.frameFlags = NO_BYTES;
    views.words = new Int32Array(0);
    views.longs = new BigUint64Array(0);
    if (this.#scrub()) this.#pool.give(this.#pooled);
  }

  /** Makes the memory all zero again; false when that is not worth its time. */
  #scrub(): boolean {
    const touched = this.#touched;
    let frames = 0;
    for (let frame = 0; frame < touched.length; frame++) frames += touched[frame]!;
    if (frames > SCRUB_LIMIT_FRAMES) return false;
    this.#bulk.clear(CONTROL_FRAME * PAGE_SIZE, (this.#reserved - CONTROL_FRAME) * PAGE_SIZE);
    for (let start = touched.indexOf(1); start >= 0; ) {
      const end = touched.indexOf(0, start);
      const stop = end < 0 ? this.frameCount : end;
      this.#bulk.clear(start * PAGE_SIZE, (stop - start) * PAGE_SIZE);
      start = end < 0 ? -1 : touched.indexOf(1, stop);
    }
    return true;
  }

  /** Zeroes those of the frames that were handed out before, and marks them all as handed out. */
  #zero(frame: number, frames: number): void {
    const touched = this.#touched;
    this.#guard.handOut(frame, frames);
    if (frames === 1) {
      if (touched[frame] === 1) this.#bulk.clear(frame * PAGE_SIZE, PAGE_SIZE);
      touched[frame] = 1;
      return;
    }
    const end = frame + frames;
    for (let start = frame; start < end; ) {
      if (touched[start] === 0) {
        start++;
        continue;
      }
      let stop = start + 1;
      while (stop < end && touched[stop] === 1) stop++;
      this.#bulk.clear(start * PAGE_SIZE, (stop - start) * PAGE_SIZE);
      start = stop;
    }
    touched.fill(1, frame, end);
  }

  /** A wild address must not reach host memory's neighbours, nor silently vanish. */
  #check(at: number, length: number): void {
    if (!(at >= 0 && at + length <= this.bytes.length)) {
      throw new RangeError(
        `host memory: ${length} bytes at 0x${at.toString(16)} of 0x${this.bytes.length.toString(16)}`,
      );
    }
  }

  #wrote(at: number, length: number): void {
    if (length === 0) return;
    const last = (at + length - 1) >>> 12;
    for (let frame = at >>> 12; frame <= last; frame++) {
      if ((this.frameFlags[frame]! & FRAME_FLAG.CODE) !== 0) {
        Atomics.add(this.words, CODE_GENERATION, 1);
        return;
      }
    }
  }

  #forgetCode(frame: number, frames: number): void {
    const flags = this.frameFlags;
    let found = 0;
    for (let i = frame; i < frame + frames; i++) {
      const flag = flags[i]!;
      found |= flag;
      // What a chip kept inside must not be found in free memory.
      if ((flag & FRAME_FLAG.SILICON) !== 0) this.#bulk.clear(i * PAGE_SIZE, PAGE_SIZE);
      const dropped = FRAME_FLAG.CODE | FRAME_FLAG.SILICON;
      if ((flag & dropped) !== 0) flags[i] = flag & ~dropped;
    }
    if ((found & FRAME_FLAG.CODE) !== 0) Atomics.add(this.words, CODE_GENERATION, 1);
  }

  #traceFrames(what: string, frame: number, order: number, owner: FrameOwner): void {
    this.trace.emit({
      kind: 'page',
      who: 'kernel',
      what,
      pfn: pfn(frame),
      pages: 1 << order,
      why: owner.name,
    });
  }
}
