/** Lanes that run and never get to a page, as where processors are busy: a ring that is full is emptied by whoever fills it. */
import { createHash } from 'node:crypto';
import { expect, it, vi } from 'vitest';
import { LaunchDigest } from '../../../src/hardware/asp/launch-digest.ts';
import { PageHashes } from '../../../src/hardware/asp/page-hashes.ts';

const rings = vi.hoisted((): SharedArrayBuffer[] => []);
vi.mock('node:os', () => ({ availableParallelism: () => 2 }));
vi.mock('node:worker_threads', () => ({
  Worker: class {
    constructor(_script: string, { workerData }: { workerData: { shared: SharedArrayBuffer } }) {
      rings.push(workerData.shared);
      // The second word counts lanes that run.
      Atomics.store(new Int32Array(workerData.shared, 0, 4), 1, 1);
    }
    on(): void {}
    unref(): void {}
  },
}));

const hash = (bytes: Uint8Array): Buffer => createHash('sha384').update(bytes).digest();

it('a launch has the digest of the chain', () => {
  const digest = new LaunchDigest();
  const content = Buffer.alloc(4096);
  let value = Buffer.alloc(48);
  let longest = 0;
  for (let n = 0; n < 2000; n++) {
    content.writeUInt32LE(n, 0);
    digest.add(content, 1, 0, n * 4096);
    longest = Math.max(longest, PageHashes.heldBy(digest)?.length ?? 0);
    const info = Buffer.alloc(112);
    info.set(value);
    info.set(hash(content), 48);
    info.writeUInt16LE(112, 96);
    info.writeUInt16LE(1, 98);
    info.writeBigUInt64LE(BigInt(n * 4096), 104);
    value = hash(info) as Buffer<ArrayBuffer>;
  }
  expect([rings.length, longest]).toEqual([1, 256]);
  expect(Buffer.from(digest.value)).toEqual(value);
});
