/**
 * The memory controller's encryption (APM volume 2, 7.10 and 15.34; DESIGN, decision 2): lazy and exact. Every frame has a tag, the id of the key under
 * which its plaintext stands in the frame; 0: the bytes are what DRAM holds. Whoever has another key, or none, sees AES-XTS of that plaintext, the tweak being
 * the system physical address of the page, 16 bytes little endian. It is computed when somebody looks and made permanent when somebody else writes.
 *
 * A key has an id that is never used again, so what an earlier guest of the same ASID left behind is ciphertext to the next one.
 * 32 bytes of key: AES-128-XTS; 64: AES-256-XTS (policy bit 22). Real parts use a physical-address tweak of their own making, which nobody can see.
 *
 * Left out: SME's host key (a host page's tag is 0), memory integrity.
 */
import { createCipheriv, createDecipheriv } from 'node:crypto';
import { PAGE_SIZE, type Pfn, type Spa } from '../../base/address.ts';

/** What it needs of host memory. */
export interface EncryptedFrames {
  readonly bytes: Uint8Array;
  /** A tag a frame, in shared memory. */
  readonly tags: Int32Array;
  /** The frame has a tag now, or has none any more. */
  noteTag(frame: number, tag: number): void;
  /** Makes a frame that nobody holds all zero; false: somebody holds it. */
  blankIfFree(frame: number): boolean;
  /** The frame's bytes are others now: cores forget translations to it and what they decoded of it. */
  changed(frame: number): void;
}

const NO_KEY = 0;

export class MemoryEncryption {
  readonly #frames: EncryptedFrames;
  /** By key id; undefined: removed. */
  readonly #keys: (Uint8Array | undefined)[] = [undefined];
  readonly #byAsid = new Map<number, number>();
  readonly #tweak = new Uint8Array(16);
  readonly #page = new Uint8Array(PAGE_SIZE);

  constructor(frames: EncryptedFrames) {
    this.#frames = frames;
  }

  /** Takes a copy of a key of 32 or 64 bytes, whose halves differ, and returns its id. Throws RangeError for another length. */
  addKey(key: Uint8Array): number {
    if (key.length !== 32 && key.length !== 64)
      throw new RangeError(`memory encryption key of ${key.length} bytes: must be 32 or 64`);
    return this.#keys.push(key.slice()) - 1;
  }

  /** Forgets a key for good. What stands under it becomes ciphertext, now; frames that are free are blanked instead, which is cheaper. */
  removeKey(id: number): void {
    const { tags } = this.#frames;
    for (let frame = tags.indexOf(id); frame >= 0; frame = tags.indexOf(id, frame + 1)) {
      if (this.#frames.blankIfFree(frame)) this.#frames.noteTag(frame, NO_KEY);
      else this.seal(frame);
    }
    this.#keys[id]?.fill(0);
    this.#keys[id] = undefined;
    for (const [asid, bound] of this.#byAsid) if (bound === id) this.#byAsid.delete(asid);
  }

  /** Accesses of an ASID use this key from now on; 0: none. */
  bind(asid: number, id: number): void {
    if (id === NO_KEY) this.#byAsid.delete(asid);
    else this.#byAsid.set(asid, id);
  }

  /** The key of an ASID; 0: none. */
  keyOf(asid: number): number {
    return this.#byAsid.get(asid) ?? NO_KEY;
  }

  /** Under which key the frame's bytes are plaintext. */
  keyOfFrame(frame: Pfn): number {
    return this.#frames.tags[frame]!;
  }

  /** In place, as firmware does: the frame's bytes as they stand are plaintext under key `id` from now on; 0: they are what DRAM holds. */
  adopt(frame: Pfn, id: number): void {
    if (this.#frames.tags[frame] === id) return;
    this.#frames.noteTag(frame, id);
    this.#frames.changed(frame);
  }

  /** Makes the frame's bytes what an access under key `id` (0: none) sees. */
  open(frame: Pfn, id: number): void {
    const { bytes, tags } = this.#frames;
    if (tags[frame] === id) return;
    this.seal(frame);
    if (id === NO_KEY) return;
    const at = frame * PAGE_SIZE;
    bytes.set(this.#decipher(id, frame, bytes.subarray(at, at + PAGE_SIZE)), at);
    this.#frames.noteTag(frame, id);
    this.#frames.changed(frame);
  }

  /** The frame's bytes become what DRAM holds. */
  seal(frame: number): void {
    const { bytes, tags } = this.#frames;
    const id = tags[frame]!;
    if (id === NO_KEY) return;
    bytes.set(this.#encipher(id, frame), frame * PAGE_SIZE);
    this.#frames.noteTag(frame, NO_KEY);
    this.#frames.changed(frame);
  }

  /** What an access under key `id` to bytes from `at` on reads; nothing changes for anybody. */
  readUnder(id: number, at: Spa, into: Uint8Array): void {
    this.#eachPage(at, into.length, (frame, offset, from, count) => {
      into.set(this.#seenUnder(id, frame).subarray(offset, offset + count), from);
    });
  }

  /** A write under key `id`. */
  writeUnder(id: number, at: Spa, from: Uint8Array): void {
    const { bytes } = this.#frames;
    this.#eachPage(at, from.length, (frame, offset, start, count) => {
      this.open(frame as Pfn, id);
      bytes.set(from.subarray(start, start + count), frame * PAGE_SIZE + offset);
      this.#frames.changed(frame);
    });
  }

  /** What DRAM holds of a frame: a view that holds until the next call. */
  ciphertext(frame: number): Uint8Array {
    return this.#encipher(this.#frames.tags[frame]!, frame);
  }

  #seenUnder(id: number, frame: number): Uint8Array {
    const { bytes, tags } = this.#frames;
    const tag = tags[frame]!;
    const at = frame * PAGE_SIZE;
    if (tag === id) return bytes.subarray(at, at + PAGE_SIZE);
    const dram = tag === NO_KEY ? bytes.subarray(at, at + PAGE_SIZE) : this.#encipher(tag, frame);
    return id === NO_KEY ? dram : this.#decipher(id, frame, dram);
  }

  #encipher(id: number, frame: number): Uint8Array {
    const key = this.#key(id);
    this.#page.set(this.#frames.bytes.subarray(frame * PAGE_SIZE, (frame + 1) * PAGE_SIZE));
    return createCipheriv(cipherOf(key), key, this.#tweakOf(frame)).update(this.#page);
  }

  #decipher(id: number, frame: number, dram: Uint8Array): Uint8Array {
    const key = this.#key(id);
    this.#page.set(dram);
    return createDecipheriv(cipherOf(key), key, this.#tweakOf(frame)).update(this.#page);
  }

  #key(id: number): Uint8Array {
    const key = this.#keys[id];
    if (key === undefined) throw new RangeError(`memory encryption: no key ${id}`);
    return key;
  }

  #tweakOf(frame: number): Uint8Array {
    let address = frame * PAGE_SIZE;
    for (let i = 0; i < 8; i++) {
      this.#tweak[i] = address % 256;
      address = Math.floor(address / 256);
    }
    return this.#tweak;
  }

  #eachPage(
    at: number,
    length: number,
    action: (frame: number, offset: number, from: number, count: number) => void,
  ): void {
    if (!(at >= 0 && at + length <= this.#frames.bytes.length))
      throw new RangeError(`memory encryption: ${length} bytes at 0x${at.toString(16)}`);
    for (let from = 0; from < length; ) {
      const frame = Math.floor((at + from) / PAGE_SIZE);
      const offset = (at + from) % PAGE_SIZE;
      const count = Math.min(PAGE_SIZE - offset, length - from);
      action(frame, offset, from, count);
      from += count;
    }
  }
}

const cipherOf = (key: Uint8Array): string => (key.length === 32 ? 'aes-128-xts' : 'aes-256-xts');
