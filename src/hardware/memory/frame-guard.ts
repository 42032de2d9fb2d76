/**
 * What stands between the host's software and frames that are more than DRAM to it: pages of encrypted guests, pages that the RMP gives to somebody else, and what a
 * chip keeps inside. Reads see what the memory controller would give; writes make ciphertext permanent, or do not happen.
 */
import { PAGE_SIZE, type Pfn } from '../../base/address.ts';
import { MemoryEncryption } from './memory-encryption.ts';
import type { RmpMemory } from './rmp.ts';
import { RmpViolation } from './rmp-violation.ts';

/**
 * Bits of `frameFlags`. CODE: a core has decoded instructions of the frame. ENCRYPTED: it has a tag, its bytes are plaintext under some key.
 * ASSIGNED: it is assigned in the RMP, which firmware has initialised. SILICON: it holds what a chip keeps inside: to the host's software there is nothing.
 */
export const FRAME_FLAG = { CODE: 1, ENCRYPTED: 2, ASSIGNED: 4, SILICON: 8 } as const;
/** Frames that are more than DRAM to the host's software. */
export const GUARDED = FRAME_FLAG.ENCRYPTED | FRAME_FLAG.ASSIGNED | FRAME_FLAG.SILICON;
/** Frames whose bytes are not what a read gives. */
export const HIDDEN = FRAME_FLAG.ENCRYPTED | FRAME_FLAG.SILICON;
const FORBIDDEN = FRAME_FLAG.ASSIGNED | FRAME_FLAG.SILICON;
/** What a read of an address gives where nothing answers. */
const NOTHING = 0xff;

/** Who keeps translations to frames, and is told when they hold no longer: a core. */
export interface TranslationCache {
  /** `frames` frames from `frame` on belong to somebody else, or are to be seen otherwise. */
  forgetFrames(frame: number, frames: number): void;
}

/** What it needs of host memory. */
export interface GuardedMemory {
  readonly bytes: Uint8Array;
  readonly words: Int32Array;
  /** One byte a frame: FRAME_FLAG. */
  readonly frameFlags: Uint8Array;
  /** One word a frame: the key under which its plaintext stands there. */
  readonly tags: Int32Array;
  readonly caches: ReadonlySet<TranslationCache>;
  /** Decoded code of a frame is code no more. */
  codeChanged(): void;
  /** See EncryptedFrames. */
  blankIfFree(frame: number): boolean;
}

export class FrameGuard {
  readonly encryption: MemoryEncryption;
  readonly #memory: GuardedMemory;
  readonly #flags: Uint8Array;

  constructor(memory: GuardedMemory) {
    this.#memory = memory;
    this.#flags = memory.frameFlags;
    this.encryption = new MemoryEncryption({
      bytes: memory.bytes,
      tags: memory.tags,
      noteTag: (frame, tag) => this.#noteTag(frame, tag),
      blankIfFree: (frame) => memory.blankIfFree(frame),
      changed: (frame) => this.#changed(frame),
    });
  }

  /** Whether one of the frames of a range has one of these flags. */
  meets(at: number, length: number, flags: number): boolean {
    const frameFlags = this.#flags;
    if ((frameFlags[at >>> 12]! & flags) !== 0) return length > 0;
    const last = (at + length - 1) >>> 12;
    for (let frame = (at >>> 12) + 1; frame <= last; frame++)
      if ((frameFlags[frame]! & flags) !== 0) return true;
    return false;
  }

  /** The host's software is about to write: not to somebody else's pages, and over what DRAM holds. Nothing has changed when it throws RmpViolation. */
  beforeWrite(at: number, length: number): void {
    if (!this.meets(at, length, GUARDED)) return;
    const first = at >>> 12;
    const last = (at + length - 1) >>> 12;
    for (let frame = first; frame <= last; frame++)
      if ((this.#flags[frame]! & FORBIDDEN) !== 0) throw new RmpViolation(Math.max(at, frame * PAGE_SIZE));
    for (let frame = first; frame <= last; frame++) this.encryption.seal(frame);
  }

  /** A read of a range with HIDDEN frames in it. */
  readHidden(at: number, into: Uint8Array): void {
    const { bytes, tags } = this.#memory;
    const { length } = into;
    for (let from = 0; from < length; ) {
      const frame = (at + from) >>> 12;
      const offset = (at + from) % PAGE_SIZE;
      const count = Math.min(PAGE_SIZE - offset, length - from);
      if ((this.#flags[frame]! & FRAME_FLAG.SILICON) !== 0) into.fill(NOTHING, from, from + count);
      else {
        const page =
          tags[frame] === 0
            ? bytes.subarray(frame * PAGE_SIZE, (frame + 1) * PAGE_SIZE)
            : this.encryption.ciphertext(frame);
        into.set(page.subarray(offset, offset + count), from);
      }
      from += count;
    }
  }

  /** Frames that are handed out anew: nothing of what stood in them is left. Throws RmpViolation when one is still assigned. */
  handOut(frame: number, frames: number): void {
    for (let i = frame; i < frame + frames; i++) {
      if ((this.#flags[i]! & GUARDED) === 0) continue;
      if ((this.#flags[i]! & FRAME_FLAG.ASSIGNED) !== 0) throw new RmpViolation(i * PAGE_SIZE);
      this.encryption.adopt(i as Pfn, 0);
    }
  }

  /** What an RMP needs of this memory of `frameCount` frames. */
  rmpMemory(frameCount: number): RmpMemory {
    const flags = this.#flags;
    return {
      words: this.#memory.words,
      frameCount,
      noteAssigned: (frame, assigned) => {
        flags[frame] = assigned ? flags[frame]! | FRAME_FLAG.ASSIGNED : flags[frame]! & ~FRAME_FLAG.ASSIGNED;
      },
      forgetTranslations: (frame, frames) => this.#forgetTranslations(frame, frames),
    };
  }

  #noteTag(frame: number, tag: number): void {
    this.#memory.tags[frame] = tag;
    const flags = this.#flags;
    flags[frame] = tag === 0 ? flags[frame]! & ~FRAME_FLAG.ENCRYPTED : flags[frame]! | FRAME_FLAG.ENCRYPTED;
  }

  #changed(frame: number): void {
    this.#forgetTranslations(frame, 1);
    if ((this.#flags[frame]! & FRAME_FLAG.CODE) !== 0) this.#memory.codeChanged();
  }

  #forgetTranslations(frame: number, frames: number): void {
    for (const cache of this.#memory.caches) cache.forgetFrames(frame, frames);
  }
}
