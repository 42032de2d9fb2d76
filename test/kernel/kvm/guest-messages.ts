/** Messages of a guest for firmware, made outside it: the key is read from its secrets page under its own memory key, which only tests can do. */
import { createCipheriv, createDecipheriv } from 'node:crypto';
import type { Pfn, Spa } from '../../../src/base/address.ts';
import { SECRETS, type SnpVm } from './snp-bench.ts';

const HEADER = 0x60;

/** The frame that a page of the guest is in. */
export function frameOfGuestPage(snp: SnpVm, gpa: number): number {
  const { memory } = snp.kernel;
  for (let frame = 0; frame < memory.frameCount; frame++) {
    const entry = memory.rmp!.entry(frame as Pfn);
    if (entry.asid !== 0 && entry.gpa === gpa) return frame;
  }
  throw new Error(`gpa 0x${gpa.toString(16)} is not the guest's`);
}

export class GuestMessages {
  readonly key = new Uint8Array(32);
  sequence = 1n;

  constructor(snp: SnpVm) {
    const { encryption } = snp.kernel.memory;
    const frame = frameOfGuestPage(snp, SECRETS);
    encryption.readUnder(encryption.keyOfFrame(frame as Pfn), (frame * 4096 + 0x20) as Spa, this.key);
  }

  /** A page with a message under VMPCK 0. */
  seal(type: number, payload: Uint8Array, sequence = this.sequence): Uint8Array {
    const page = new Uint8Array(4096);
    const view = new DataView(page.buffer);
    view.setBigUint64(0x20, sequence, true);
    page[0x30] = 1;
    page[0x31] = 1;
    view.setUint16(0x32, HEADER, true);
    page[0x34] = type;
    page[0x35] = 1;
    view.setUint16(0x36, payload.length, true);
    const cipher = createCipheriv('aes-256-gcm', this.key, ivOf(sequence)).setAAD(
      page.subarray(0x30, HEADER),
    );
    page.set(cipher.update(payload), HEADER);
    cipher.final();
    page.set(cipher.getAuthTag(), 0);
    return page;
  }

  reportRequest(data: Uint8Array, sequence = this.sequence): Uint8Array {
    const payload = new Uint8Array(96);
    payload.set(data);
    return this.seal(5, payload, sequence);
  }

  /** The payload of an answer to the last message; the next one has the next number but one. Throws where it is none. */
  open(page: Uint8Array): Uint8Array {
    const view = new DataView(page.buffer, page.byteOffset);
    const sequence = view.getBigUint64(0x20, true);
    if (sequence !== this.sequence + 1n) throw new Error(`answer ${sequence} to message ${this.sequence}`);
    const size = view.getUint16(0x36, true);
    const decipher = createDecipheriv('aes-256-gcm', this.key, ivOf(sequence))
      .setAAD(page.subarray(0x30, HEADER))
      .setAuthTag(page.subarray(0, 16));
    const payload = new Uint8Array(decipher.update(page.subarray(HEADER, HEADER + size)));
    decipher.final();
    this.sequence += 2n;
    return payload;
  }
}

function ivOf(sequence: bigint): Uint8Array {
  const iv = new Uint8Array(12);
  new DataView(iv.buffer).setBigUint64(0, sequence, true);
  return iv;
}
