/**
 * The launch digest: a chain of SHA-384 over a PAGE_INFO of 112 bytes a page (SNP ABI specification, "Launch digest"; reference facts.md 3.3).
 *
 * | offset | field |
 * |---|---|
 * | 0x00 | DIGEST_CUR, 48 bytes |
 * | 0x30 | CONTENTS, 48 bytes: SHA-384 of a NORMAL or VMSA page, else zero |
 * | 0x60 | LENGTH 0x70 u16, PAGE_TYPE u8, IMI_PAGE u8, 0, permissions of VMPL1 to 3 |
 * | 0x68 | GPA u64 |
 */
import { digestOf, PageHashes } from './page-hashes.ts';

const SIZE = 48;
const PAGE_INFO_SIZE = 0x70;
const CONTENTS = 0x30;
/** Words of PAGE_INFO. */
const WORD = { TYPE: 0x60 / 4, PERMISSIONS: 0x64 / 4, GPA_LOW: 0x68 / 4, GPA_HIGH: 0x6c / 4 } as const;

/** SHA-384. */
export const sha384 = (bytes: Uint8Array): Uint8Array =>
  new Uint8Array(Buffer.from(digestOf(bytes), 'binary'));

/** From so many pages on, more than firmware images have, a launch is worth more threads than one. */
const MANY_PAGES = 1024;

export class LaunchDigest {
  readonly #info = Buffer.alloc(PAGE_INFO_SIZE);
  readonly #words = new Uint32Array(this.#info.buffer, this.#info.byteOffset, PAGE_INFO_SIZE / 4);
  #pages = 0;

  /** 48 bytes, zero in the beginning: a view that changes with the chain. */
  get value(): Uint8Array {
    this.settle();
    return this.#info.subarray(0, SIZE);
  }

  set(digest: Uint8Array): void {
    this.settle();
    this.#info.set(digest);
  }

  /**
   * Adds a page of 4 KiB: `content` is measured, or, undefined, nothing of it. `type`: SNP_PAGE_TYPE, with bit 8 set for a page of a migration image. `permissions`:
   * VMPL1 to 3 in bytes 1 to 3. `gpa`: bytes.
   */
  add(content: Uint8Array | undefined, type: number, permissions: number, gpa: number): void {
    const hashes = content !== undefined && ++this.#pages > MANY_PAGES ? PageHashes.of(this) : undefined;
    if (hashes === undefined) {
      this.settle();
      if (content === undefined) this.#info.fill(0, CONTENTS, CONTENTS + SIZE);
      else this.#info.write(digestOf(content), CONTENTS, SIZE, 'latin1');
      this.#extend(type, permissions, gpa);
      return;
    }
    if (hashes.isFull) this.#takeOut(hashes);
    hashes.bring(content!, type, permissions, gpa);
    while (hashes.isReady) this.#takeOut(hashes);
  }

  /** Adds the page that `other` added last. */
  addAs(other: LaunchDigest, type: number, permissions: number, gpa: number): void {
    other.settle();
    this.settle();
    this.#info.set(other.#info.subarray(CONTENTS, CONTENTS + SIZE), CONTENTS);
    this.#extend(type, permissions, gpa);
  }

  /** Waits for pages whose hash is on its way. */
  settle(): void {
    const hashes = PageHashes.heldBy(this);
    while (hashes !== undefined && hashes.length > 0) this.#takeOut(hashes);
  }

  #takeOut(hashes: PageHashes): void {
    const { type, permissions, gpa } = hashes.takeOut(this.#info, CONTENTS);
    this.#extend(type, permissions, gpa);
  }

  #extend(type: number, permissions: number, gpa: number): void {
    const words = this.#words;
    words[WORD.TYPE] = PAGE_INFO_SIZE | (type << 16);
    words[WORD.PERMISSIONS] = permissions & ~0xff;
    words[WORD.GPA_LOW] = gpa;
    words[WORD.GPA_HIGH] = gpa / 0x1_0000_0000;
    this.#info.write(digestOf(this.#info), 0, SIZE, 'latin1');
  }
}
