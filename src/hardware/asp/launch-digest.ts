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

const PAGE_INFO_SIZE = 0x70;

/** SHA-384, by the fastest way that the platform has. */
export const sha384: (bytes: Uint8Array) => Uint8Array =
  typeof crypto.hash === 'function'
    ? (bytes) => crypto.hash('sha384', bytes, 'buffer')
    : (bytes) => crypto.createHash('sha384').update(bytes).digest();

export interface MeasuredPage {
  /** SNP_PAGE_TYPE. */
  type: number;
  isImage: boolean;
  /** Permissions of VMPL1 to 3 in bytes 1 to 3, as in the command. */
  permissions: number;
  gpa: number;
  /** SHA-384 of the page; undefined: not measured. */
  contents: Uint8Array | undefined;
}

export class LaunchDigest {
  readonly #info = new Uint8Array(PAGE_INFO_SIZE);
  readonly #view = new DataView(this.#info.buffer);

  constructor() {
    this.#view.setUint16(0x60, PAGE_INFO_SIZE, true);
  }

  /** 48 bytes, zero in the beginning: a view that changes with the chain. */
  get value(): Uint8Array {
    return this.#info.subarray(0, 48);
  }

  set(digest: Uint8Array): void {
    this.#info.set(digest);
  }

  /** Adds a page of 4 KiB. */
  extend(page: MeasuredPage): void {
    const view = this.#view;
    if (page.contents === undefined) this.#info.fill(0, 0x30, 0x60);
    else this.#info.set(page.contents, 0x30);
    view.setUint8(0x62, page.type);
    view.setUint8(0x63, page.isImage ? 1 : 0);
    view.setUint32(0x64, page.permissions & 0xffffff00, true);
    view.setUint32(0x68, page.gpa % 0x1_0000_0000, true);
    view.setUint32(0x6c, Math.floor(page.gpa / 0x1_0000_0000), true);
    this.#info.set(sha384(this.#info));
  }
}
