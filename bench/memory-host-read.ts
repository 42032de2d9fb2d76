/**
 * memory.host-read: the host reads pages that are a guest's, so it gets ciphertext, which is made when somebody looks. Against raw AES-128-XTS of as many pages by node:crypto,
 * timed in turns.
 */
import { createCipheriv, randomBytes } from 'node:crypto';
import { PAGE_SIZE, type Pfn, type Spa } from '../src/base/address.ts';
import { Trace } from '../src/base/trace.ts';
import { HostMemory } from '../src/hardware/memory/host-memory.ts';

const PAGES = 2048;
const ROUNDS = 9;
const WANTED = 0.5;

export async function bench() {
  const memory = HostMemory.create({ bytes: 16 * 1024 * 1024, trace: new Trace() });
  const owner = memory.owner('bench');
  const key = randomBytes(32);
  const id = memory.encryption.addKey(key);
  const frames = Array.from({ length: PAGES }, () => memory.allocate(0, owner) as Pfn);
  for (const frame of frames) {
    memory.write((frame * PAGE_SIZE) as Spa, randomBytes(PAGE_SIZE));
    memory.encryption.adopt(frame, id);
  }
  const into = new Uint8Array(PAGE_SIZE);
  const tweak = new Uint8Array(16);
  const plain = randomBytes(PAGE_SIZE);
  const raw: number[] = [];
  const ours: number[] = [];
  let checksum = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const start = performance.now();
    for (const frame of frames) {
      memory.read((frame * PAGE_SIZE) as Spa, into);
      checksum += into[0]!;
    }
    const middle = performance.now();
    for (let i = 0; i < PAGES; i++) {
      tweak[0] = i & 0xff;
      tweak[1] = i >> 8;
      checksum += createCipheriv('aes-128-xts', key, tweak).update(plain)[0]!;
    }
    ours.push(middle - start);
    raw.push(performance.now() - middle);
  }
  memory.close();
  const [best, bound] = [Math.min(...ours), Math.min(...raw)];
  const rate = (ms: number): number => (PAGES / ms) * 1000;
  return {
    value: rate(best),
    unit: 'pages/s',
    bound: rate(bound),
    ratio: bound / best,
    note: `4 KiB pages against raw AES-128-XTS, wanted ≥ ${WANTED}; checksum ${checksum % 256}`,
  };
}
