/** Where no thread can start (Node's permission model): launches go on by themselves. */
import { createHash } from 'node:crypto';
import { availableParallelism } from 'node:os';
import { expect, it, vi } from 'vitest';
import { LaunchDigest } from '../../../src/hardware/asp/launch-digest.ts';
import { PageHashes } from '../../../src/hardware/asp/page-hashes.ts';

const asked = vi.hoisted(() => ({ times: 0 }));
vi.mock('node:worker_threads', () => ({
  Worker: class {
    constructor() {
      asked.times++;
      throw new Error('Access to this API has been restricted');
    }
  },
}));

it('a launch of many pages needs no thread', () => {
  const digest = new LaunchDigest();
  const content = new Uint8Array(4096);
  const hash = createHash('sha384').update(content).digest();
  let value = Buffer.alloc(48);
  for (let n = 0; n < 1200; n++) {
    digest.add(content, 1, 0, n * 4096);
    const info = Buffer.alloc(112);
    info.set(value);
    info.set(hash, 48);
    info.writeUInt16LE(112, 96);
    info.writeUInt16LE(1, 98);
    info.writeBigUInt64LE(BigInt(n * 4096), 104);
    value = createHash('sha384').update(info).digest();
  }
  expect(Buffer.from(digest.value)).toEqual(value);
  expect(asked.times).toBe(Math.min(availableParallelism() - 1, 2));
  expect(PageHashes.of(digest)).toBe(undefined);
});
