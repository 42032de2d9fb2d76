import { createCipheriv, createDecipheriv } from 'node:crypto';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Pfn, Spa } from '../../../src/base/address.ts';
import { Trace } from '../../../src/base/trace.ts';
import { HostMemory } from '../../../src/hardware/memory/host-memory.ts';

const KEY = Uint8Array.from({ length: 32 }, (_, i) => i * 7 + 1);
const OTHER = Uint8Array.from({ length: 64 }, (_, i) => 255 - i * 3);

let memory: HostMemory;
let frame: Pfn;
let at: Spa;

beforeEach(() => {
  memory = HostMemory.create({ bytes: 1 << 20, trace: new Trace() });
  frame = memory.allocate(0, memory.owner('guest')) as Pfn;
  at = (frame * 4096) as Spa;
});
afterEach(() => memory.close());

function tweak(pfn: number): Uint8Array {
  const iv = new Uint8Array(16);
  new DataView(iv.buffer).setBigUint64(0, BigInt(pfn) * 4096n, true);
  return iv;
}
const pageOf = (seed: number): Uint8Array => Uint8Array.from({ length: 4096 }, (_, i) => (i * seed) >> 3);
const hostRead = (from: number, bytes: number): Uint8Array => {
  const into = new Uint8Array(bytes);
  memory.read(from as Spa, into);
  return into;
};

describe('memory encryption', () => {
  it.each([
    ['aes-128-xts', KEY],
    ['aes-256-xts', OTHER],
  ] as const)('shows the host %s of the plaintext, tweaked by the system physical address', (cipher, key) => {
    const id = memory.encryption.addKey(key);
    const plain = pageOf(13);
    memory.encryption.writeUnder(id, at, plain);
    const expected = new Uint8Array(createCipheriv(cipher, key, tweak(frame)).update(plain));
    expect(hostRead(at, 4096)).toEqual(expected);
    expect(hostRead(at + 100, 7)).toEqual(expected.slice(100, 107));
    const words = new DataView(expected.buffer);
    expect(memory.load32((at + 8) as Spa)).toBe(words.getInt32(8, true));
    expect(memory.load32((at + 9) as Spa)).toBe(words.getInt32(9, true));
    expect(memory.load64((at + 16) as Spa)).toBe(words.getBigUint64(16, true));
    const copy = memory.allocate(0, memory.owner('host')) as Pfn;
    memory.copy((copy * 4096) as Spa, at, 4096);
    expect(hostRead(copy * 4096, 4096)).toEqual(expected);
    const seen = new Uint8Array(4096);
    memory.encryption.readUnder(id, at, seen);
    expect(seen).toEqual(plain);
  });

  it('reads without a key what DRAM holds, as firmware does where the host says, and leaves the guest its page', () => {
    const { encryption } = memory;
    const id = encryption.addKey(KEY);
    const plain = pageOf(13);
    encryption.writeUnder(id, at, plain);
    const dram = new Uint8Array(createCipheriv('aes-128-xts', KEY, tweak(frame)).update(plain));
    const seen = new Uint8Array(4096);
    encryption.readUnder(0, at, seen);
    expect(seen).toEqual(dram);
    encryption.readUnder(0, (at + 1000) as Spa, seen.subarray(0, 40));
    expect(seen.slice(0, 40)).toEqual(dram.slice(1000, 1040));
    expect(encryption.keyOfFrame(frame)).toBe(id);
    encryption.readUnder(id, at, seen);
    expect(seen).toEqual(plain);
  });

  it('reads under another guest’s key what that key makes of the ciphertext', () => {
    const { encryption } = memory;
    const plain = pageOf(13);
    encryption.writeUnder(encryption.addKey(KEY), at, plain);
    const dram = createCipheriv('aes-128-xts', KEY, tweak(frame)).update(plain);
    const seen = new Uint8Array(4096);
    encryption.readUnder(encryption.addKey(OTHER), at, seen);
    expect(seen).toEqual(new Uint8Array(createDecipheriv('aes-256-xts', OTHER, tweak(frame)).update(dram)));
  });

  it('encrypts the same plaintext differently in another frame', () => {
    const id = memory.encryption.addKey(KEY);
    const second = memory.allocate(0, memory.owner('guest')) as Pfn;
    memory.encryption.writeUnder(id, at, pageOf(5));
    memory.encryption.writeUnder(id, (second * 4096) as Spa, pageOf(5));
    expect(hostRead(at, 4096)).not.toEqual(hostRead(second * 4096, 4096));
  });

  it('makes a host write spoil the 16-byte blocks that it hits, and no other', () => {
    const id = memory.encryption.addKey(KEY);
    const plain = pageOf(9);
    memory.encryption.writeUnder(id, at, plain);
    memory.write((at + 30) as Spa, Uint8Array.of(1, 2, 3));
    const seen = new Uint8Array(4096);
    memory.encryption.readUnder(id, at, seen);
    expect(seen.slice(0, 16)).toEqual(plain.slice(0, 16));
    expect(seen.slice(16, 32)).not.toEqual(plain.slice(16, 32));
    expect(seen.slice(32, 48)).not.toEqual(plain.slice(32, 48));
    expect(seen.slice(48)).toEqual(plain.slice(48));
    expect(hostRead(at + 30, 3)).toEqual(Uint8Array.of(1, 2, 3));
  });

  it('gives a guest that looks at a plain page what the key makes of DRAM', () => {
    const id = memory.encryption.addKey(KEY);
    memory.write(at, pageOf(3));
    memory.encryption.open(frame, id);
    const seen = new Uint8Array(4096);
    memory.encryption.readUnder(id, at, seen);
    const expected = createDecipheriv('aes-128-xts', KEY, tweak(frame)).update(pageOf(3));
    expect(seen).toEqual(new Uint8Array(expected));
    expect(hostRead(at, 4096)).toEqual(pageOf(3));
  });

  it('adopts in place: what stood there in the clear is plaintext under the key, and ciphertext to the host', () => {
    const id = memory.encryption.addKey(KEY);
    memory.write(at, pageOf(3));
    memory.encryption.adopt(frame, id);
    const expected = createCipheriv('aes-128-xts', KEY, tweak(frame)).update(pageOf(3));
    expect(hostRead(at, 4096)).toEqual(new Uint8Array(expected));
  });

  it('leaves to the next key of an ASID nothing but ciphertext of the one before', () => {
    const { encryption } = memory;
    const first = encryption.addKey(KEY);
    encryption.bind(7, first);
    encryption.writeUnder(first, at, pageOf(11));
    encryption.removeKey(first);
    expect(encryption.keyOf(7)).toBe(0);
    const second = encryption.addKey(OTHER);
    encryption.bind(7, second);
    expect(second).not.toBe(first);
    const seen = new Uint8Array(4096);
    encryption.readUnder(encryption.keyOf(7), at, seen);
    expect(seen).not.toEqual(pageOf(11));
    expect(hostRead(at, 4096)).toEqual(
      new Uint8Array(createCipheriv('aes-128-xts', KEY, tweak(frame)).update(pageOf(11))),
    );
    expect(() => encryption.readUnder(first, at, seen)).toThrow(/no key/);
  });

  it('hands a freed frame out again without a trace of what stood in it', () => {
    const id = memory.encryption.addKey(KEY);
    memory.encryption.writeUnder(id, at, pageOf(11));
    memory.free(frame, 0);
    const again = memory.allocate(0, memory.owner('guest')) as Pfn;
    expect(again).toBe(frame);
    expect(hostRead(at, 4096)).toEqual(new Uint8Array(4096));
    expect(memory.encryption.keyOfFrame(again)).toBe(0);
  });

  it('tells translation caches of each change of what a frame shows', () => {
    const told: number[] = [];
    memory.translationCaches.add({ forgetFrames: (first, frames) => told.push(first, frames) });
    const id = memory.encryption.addKey(KEY);
    memory.encryption.open(frame, id);
    expect(told.splice(0)).toEqual([frame, 1]);
    memory.encryption.open(frame, id);
    hostRead(at, 64);
    expect(told).toEqual([]);
    memory.store32(at, 1);
    expect(told).toEqual([frame, 1]);
  });

  it.each([0, 16, 31, 33, 48, 128])('refuses a key of %d bytes', (bytes) => {
    expect(() => memory.encryption.addKey(new Uint8Array(bytes))).toThrow(`${bytes} bytes`);
  });

  it('agrees with a model that keeps DRAM encrypted all the time, through any order of reads and writes', () => {
    const step = fc.record({
      what: fc.constantFrom('host-write', 'guest-write', 'other-write', 'host-read', 'guest-read'),
      at: fc.integer({ min: 0, max: 4095 }),
      bytes: fc.uint8Array({ minLength: 1, maxLength: 40 }),
    });
    const guest = memory.encryption.addKey(KEY);
    const other = memory.encryption.addKey(OTHER);
    fc.assert(
      fc.property(fc.array(step, { maxLength: 12 }), (steps) => {
        memory.encryption.adopt(frame, 0);
        memory.clear(at, 4096);
        let dram: Uint8Array = new Uint8Array(4096);
        const through = (key: Uint8Array, change: (plain: Uint8Array) => void): void => {
          const name = key.length === 32 ? 'aes-128-xts' : 'aes-256-xts';
          const plain = new Uint8Array(createDecipheriv(name, key, tweak(frame)).update(dram));
          change(plain);
          dram = new Uint8Array(createCipheriv(name, key, tweak(frame)).update(plain));
        };
        for (const { what, at: offset, bytes } of steps) {
          const part = bytes.slice(0, 4096 - offset);
          const to = (at + offset) as Spa;
          const into = new Uint8Array(part.length);
          if (what === 'host-write') {
            memory.write(to, part);
            dram.set(part, offset);
          } else if (what === 'guest-write') {
            memory.encryption.writeUnder(guest, to, part);
            through(KEY, (plain) => plain.set(part, offset));
          } else if (what === 'other-write') {
            memory.encryption.writeUnder(other, to, part);
            through(OTHER, (plain) => plain.set(part, offset));
          } else if (what === 'host-read') {
            memory.read(to, into);
            expect(into).toEqual(dram.slice(offset, offset + part.length));
          } else {
            memory.encryption.readUnder(guest, to, into);
            through(KEY, (plain) => expect(into).toEqual(plain.slice(offset, offset + part.length)));
          }
        }
        expect(hostRead(at, 4096)).toEqual(dram);
      }),
      { numRuns: 60 },
    );
  });
});
