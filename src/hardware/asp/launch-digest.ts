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
import * as crypto from 'node:crypto';

const SIZE = 48;
const PAGE_INFO_SIZE = 0x70;
const CONTENTS = 0x30;
/** Words of PAGE_INFO. */
const WORD = { TYPE: 0x60 / 4, PERMISSIONS: 0x64 / 4, GPA_LOW: 0x68 / 4, GPA_HIGH: 0x6c / 4 } as const;

/** SHA-384 as a string of 48 characters, a byte each: the platform's fastest form, where it has one-shot hashes. */
const digestOf = (bytes: Uint8Array): string =>
  typeof crypto.hash === 'function'
    ? crypto.hash('sha384', bytes, 'binary')
    : crypto.createHash('sha384').update(bytes).digest('binary');

/** SHA-384. */
export const sha384 = (bytes: Uint8Array): Uint8Array =>
  new Uint8Array(Buffer.from(digestOf(bytes), 'binary'));

export class LaunchDigest {
  readonly #info = Buffer.alloc(PAGE_INFO_SIZE);
  readonly #words = new Uint32Array(this.#info.buffer, this.#info.byteOffset, PAGE_INFO_SIZE / 4);

  /** 48 bytes, zero in the beginning: a view that changes with the chain. */
  get value(): Uint8Array {
    return this.#info.subarray(0, SIZE);
  }

  set(digest: Uint8Array): void {
    this.#info.set(digest);
  }

  /** The next page's CONTENTS: the hash of these bytes, or zero when they are undefined. */
  measure(bytes: Uint8Array | undefined): void {
    if (bytes === undefined) this.#info.fill(0, CONTENTS, CONTENTS + SIZE);
    else this.#info.write(digestOf(bytes), CONTENTS, SIZE, 'latin1');
  }

  /** Takes over another chain's CONTENTS. */
  measureAs(other: LaunchDigest): void {
    this.#info.set(other.#info.subarray(CONTENTS, CONTENTS + SIZE), CONTENTS);
  }

  /**
   * Adds a page of 4 KiB, whose CONTENTS are set. `type`: SNP_PAGE_TYPE, with bit 8 set for a page of a migration image. `permissions`: VMPL1 to 3 in bytes 1 to 3.
   */
  extend(type: number, permissions: number, gpa: number): void {
    const words = this.#words;
    words[WORD.TYPE] = PAGE_INFO_SIZE | (type << 16);
    words[WORD.PERMISSIONS] = permissions & ~0xff;
    words[WORD.GPA_LOW] = gpa;
    words[WORD.GPA_HIGH] = gpa / 0x1_0000_0000;
    this.#info.write(digestOf(this.#info), 0, SIZE, 'latin1');
  }
}
