import { createHash } from 'node:crypto';
import { availableParallelism } from 'node:os';
import { setTimeout } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { LaunchDigest } from '../../../src/hardware/asp/launch-digest.ts';
import { PageHashes, RING_BYTES } from '../../../src/hardware/asp/page-hashes.ts';

const sha384 = (bytes: Uint8Array): string => createHash('sha384').update(bytes).digest('hex');

/** Page number `n`, unlike any other. */
function page(n: number): Uint8Array {
  const bytes = Buffer.alloc(4096);
  for (let at = 0; at < 4096; at += 4) bytes.writeUInt32LE((n * 2654435761 + at) >>> 0, at);
  return bytes;
}

async function withLanes(lanes: number, shared = new SharedArrayBuffer(RING_BYTES)): Promise<PageHashes> {
  const hashes = new PageHashes(lanes, shared);
  for (let tries = 0; hashes.lanes < lanes && tries < 1000; tries++) await setTimeout(10);
  expect(hashes.lanes).toBe(lanes);
  return hashes;
}

/** Takes the oldest page out. */
function takeOut(hashes: PageHashes): { digest: string; gpa: number; type: number; permissions: number } {
  const into = Buffer.alloc(52, 0xee);
  const { gpa, type, permissions } = hashes.takeOut(into, 2);
  expect([into[0], into[1], into[50], into[51]]).toEqual([0xee, 0xee, 0xee, 0xee]);
  return { digest: into.toString('hex', 2, 50), gpa, type, permissions };
}

describe.each([0, 1, 2])('pages that %s lanes hash', (lanes) => {
  it('come out in their order, each with its own digest and label, however many wait', async () => {
    const hashes = await withLanes(lanes);
    let [came, out] = [0, 0];
    fc.assert(
      fc.property(fc.array(fc.integer({ min: -256, max: 256 }), { maxLength: 20 }), (steps) => {
        for (const step of steps) {
          for (let i = 0; i < step && !hashes.isFull; i++, came++)
            hashes.bring(page(came), came & 7, came << 8, came * 4096);
          for (let i = 0; i > step && hashes.length > 0; i--, out++) {
            const want = { digest: sha384(page(out)), gpa: out * 4096, type: out & 7, permissions: out << 8 };
            expect(takeOut(hashes)).toEqual(want);
          }
          expect(hashes.length).toBe(came - out);
          expect(hashes.isFull).toBe(came - out === 256);
          if (came === out) expect(hashes.isReady).toBe(false);
        }
      }),
      { numRuns: 20 },
    );
  });
});

describe('a lane', () => {
  it('is woken by the sixteenth page that waits, again and again, and hashes all', async () => {
    const shared = new SharedArrayBuffer(RING_BYTES);
    const hashes = await withLanes(1, shared);
    // The third word counts lanes that sleep.
    const asleep = (): boolean => Atomics.load(new Int32Array(shared, 0, 4), 2) === 1;
    for (let round = 0; round < 3; round++) {
      for (let tries = 0; !asleep() && tries < 1000; tries++) await setTimeout(10);
      await setTimeout(20);
      for (let n = 0; n < 15; n++) hashes.bring(page(n), 1, 0, 0);
      await setTimeout(20);
      expect(hashes.isReady).toBe(false);
      hashes.bring(page(15), 1, 0, 0);
      for (let n = 0; n < 16; n++) {
        for (let tries = 0; !hashes.isReady && tries < 1000; tries++) await setTimeout(10);
        expect(hashes.isReady).toBe(true);
        expect(takeOut(hashes).digest).toBe(sha384(page(n)));
      }
    }
  });

  /** Words of the ring: the states of its slots from 4 on, 2: somebody hashes its page, 3: its digest is there. Digests are at 1040. */
  it('that is long about a page is waited for, and the others are hashed meanwhile', () => {
    const shared = new SharedArrayBuffer(RING_BYTES);
    const hashes = new PageHashes(0, shared);
    for (let n = 0; n < 3; n++) hashes.bring(page(n), n, 0, 0);
    Atomics.store(new Int32Array(shared, 0, 260), 4, 2);
    const slow = new Worker(
      `const { workerData: shared } = require('node:worker_threads');
      const words = new Int32Array(shared, 0, 260);
      while (Atomics.load(words, 5) !== 3 || Atomics.load(words, 6) !== 3);
      setTimeout(() => {
        new Uint8Array(shared, 1040, 48).fill(0xab);
        Atomics.store(words, 4, 3);
        Atomics.notify(words, 4);
      }, 20);`,
      { eval: true, workerData: shared },
    );
    slow.unref();
    expect(takeOut(hashes).digest).toBe('ab'.repeat(48));
    expect([hashes.isReady, takeOut(hashes).digest, takeOut(hashes).digest]).toEqual([
      true,
      sha384(page(1)),
      sha384(page(2)),
    ]);
  });

  it('that gives a page up leaves it to whoever takes it out', () => {
    const shared = new SharedArrayBuffer(RING_BYTES);
    const hashes = new PageHashes(0, shared);
    hashes.bring(page(0), 1, 0, 0);
    Atomics.store(new Int32Array(shared, 0, 260), 4, 2);
    const slow = new Worker(
      `const { workerData: shared } = require('node:worker_threads');
      const words = new Int32Array(shared, 0, 260);
      Atomics.store(words, 4, 1);
      Atomics.notify(words, 4);`,
      { eval: true, workerData: shared },
    );
    slow.unref();
    expect(takeOut(hashes).digest).toBe(sha384(page(0)));
  });
});

/** The chain as facts 3.3 has it, by Node's own hash. */
class Chain {
  value = Buffer.alloc(48);

  add(content: Uint8Array | undefined, type: number, gpa: number): void {
    const info = Buffer.alloc(112);
    this.value.copy(info);
    if (content !== undefined) info.write(sha384(content), 48, 'hex');
    info.writeUInt16LE(112, 96);
    info.writeUInt16LE(type, 98);
    info.writeBigUInt64LE(BigInt(gpa), 104);
    this.value = Buffer.from(sha384(info), 'hex');
  }
}

describe('launches of more pages than firmware has', () => {
  it('have the digest of the chain, be they beside each other, with pages that are not measured, and for a migration image', async () => {
    // The lanes start where there are processors for them; the digests are the same without.
    const lanes = availableParallelism() > 1;
    const ours = [new LaunchDigest(), new LaunchDigest()] as const;
    const image = new LaunchDigest();
    const model = [new Chain(), new Chain()] as const;
    const imageModel = new Chain();
    let n = 0;
    const add = (which: 0 | 1, measured: boolean): void => {
      const content = measured ? page(n) : undefined;
      ours[which].add(content, measured ? 1 : 4, 0, n * 4096);
      model[which].add(content, measured ? 1 : 4, n * 4096);
      n++;
    };
    for (let i = 0; i < 1100; i++) add(0, true);
    if (lanes)
      for (let tries = 0; PageHashes.of(ours[0]) === undefined && tries < 1000; tries++) await setTimeout(10);
    expect(PageHashes.of(ours[0]) !== undefined).toBe(lanes);
    // Lanes that sleep, as they do soon, are not woken for one page: it is in the ring still.
    const held = (): number | undefined => PageHashes.heldBy(ours[0])?.length;
    for (let tries = 0; tries < 1000; tries++) {
      ours[0].settle();
      await setTimeout(10);
      add(0, true);
      if (held() === (lanes ? 1 : undefined)) break;
    }
    expect(held()).toBe(lanes ? 1 : undefined);
    expect(PageHashes.heldBy(ours[1])).toBe(undefined);
    for (let i = 0; i < 300; i++) add(0, i % 50 !== 49);
    for (let i = 0; i < 1100; i++) add(1, true);
    for (let i = 0; i < 200; i++) add(i % 3 === 0 ? 0 : 1, true);
    for (let i = 0; i < 20; i++) {
      add(0, i % 4 !== 3);
      image.addAs(ours[0], 0x101, 0, i * 4096);
      imageModel.add(i % 4 === 3 ? undefined : page(n - 1), 0x101, i * 4096);
    }
    const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
    expect([...ours, image].map(({ value }) => hex(value))).toEqual(
      [...model, imageModel].map(({ value }) => hex(value)),
    );
    await setTimeout(20);
    ours[0].add(page(n), 1, 0, 0);
    ours[0].set(new Uint8Array(48).fill(7));
    expect(hex(ours[0].value)).toBe('07'.repeat(48));
  });
});
