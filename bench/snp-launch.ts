/**
 * snp.launch: firmware takes 64 MiB into a guest, page by page as KVM does (LAUNCH_UPDATE of 4 KiB, type NORMAL), against the hashes alone that this needs: SHA-384 of
 * each page and of its 112 bytes of PAGE_INFO.
 */
import * as crypto from 'node:crypto';
import {
  SEV_CMD,
  SNP_PAGE_TYPE,
  snpActivate,
  snpAddress,
  snpInitEx,
  snpLaunchStart,
  snpLaunchUpdate,
} from '../src/abi/sev-firmware.ts';
import { PAGE_SIZE, type Spa } from '../src/base/address.ts';
import { platformEntropy } from '../src/base/entropy.ts';
import { Trace } from '../src/base/trace.ts';
import { SecureProcessor } from '../src/hardware/asp/secure-processor.ts';
import { Chip } from '../src/hardware/chip.ts';
import { HostMemory } from '../src/hardware/memory/host-memory.ts';

const SIZE = 64 * 1024 * 1024;
const PAGES = SIZE / PAGE_SIZE;
const WANTED = 0.9;
const ROUNDS = 12;
/** Pages of a chunk. */
const CHUNK = 256;

export async function bench() {
  const trace = new Trace();
  const memory = HostMemory.create({ bytes: 2 * SIZE, trace, rmp: true });
  const entropy = platformEntropy();
  const asp = new SecureProcessor({
    memory,
    trace,
    entropy,
    chip: new Chip({ generation: 'milan', entropy }),
  });
  const owner = memory.owner('bench');
  const page = (order: number): Spa => ((memory.allocate(order, owner) as number) * PAGE_SIZE) as Spa;
  const buffer = page(0);
  const run = (command: number, bytes: Uint8Array): void => {
    memory.write(buffer, bytes);
    const status = asp.execute(command, buffer);
    if (status !== 0) throw new Error(`command 0x${command.toString(16)}: status 0x${status.toString(16)}`);
  };
  const rmp = memory.rmp!;
  const contextPage = page(0);
  const image = page(14);
  memory.write(image, crypto.randomBytes(SIZE));
  run(SEV_CMD.SNP_INIT_EX, snpInitEx.encode({ flags: 1 }));
  asp.cachesWrittenBack();
  asp.execute(SEV_CMD.SNP_DF_FLUSH, 0 as Spa);
  const context = BigInt(contextPage);
  const update = snpLaunchUpdate.encode({ context, flags: SNP_PAGE_TYPE.NORMAL << 1 });
  const address = new DataView(update.buffer, snpLaunchUpdate.offsets.address);
  /** A guest up to its first page; only what comes then is timed. */
  const start = (asid: number): void => {
    rmp.rmpupdate(contextPage, { gpa: 0, asid: 0, assigned: true, large: false, immutable: true });
    run(SEV_CMD.SNP_GCTX_CREATE, snpAddress.encode({ address: context }));
    run(SEV_CMD.SNP_LAUNCH_START, snpLaunchStart.encode({ context, policy: 0x30000n }));
    run(SEV_CMD.SNP_ACTIVATE, snpActivate.encode({ context, asid }));
    for (let i = 0; i < PAGES; i++) {
      const at = (image + i * PAGE_SIZE) as Spa;
      rmp.rmpupdate(at, { gpa: i * PAGE_SIZE, asid, assigned: true, large: false, immutable: true });
    }
  };
  const stop = (): void => {
    run(SEV_CMD.SNP_DECOMMISSION, snpAddress.encode({ address: context }));
    run(SEV_CMD.SNP_PAGE_RECLAIM, snpAddress.encode({ address: context }));
    for (const at of [
      contextPage,
      ...Array.from({ length: PAGES }, (_, i) => (image + i * PAGE_SIZE) as Spa),
    ])
      rmp.rmpupdate(at, { gpa: 0, asid: 0, assigned: false, large: false, immutable: false });
  };
  const hash =
    typeof crypto.hash === 'function'
      ? (bytes: Uint8Array) => crypto.hash('sha384', bytes, 'binary')
      : (bytes: Uint8Array) => crypto.createHash('sha384').update(bytes).digest('binary');
  // The same bytes in the same memory.
  const plain = memory.bytes.subarray(image, image + SIZE);
  const info = new Uint8Array(112);
  const hashes = (first: number): void => {
    for (let i = first; i < first + CHUNK; i++) {
      hash(plain.subarray(i * PAGE_SIZE, (i + 1) * PAGE_SIZE));
      hash(info);
    }
  };
  const launch = (first: number): void => {
    for (let i = first; i < first + CHUNK; i++) {
      address.setUint32(0, image + i * PAGE_SIZE, true);
      run(SEV_CMD.SNP_LAUNCH_UPDATE, update);
    }
  };
  // Chunk by chunk in turns, and of each chunk the fastest round: a busy machine slows both alike.
  const ours = new Array<number>(PAGES / CHUNK).fill(Number.POSITIVE_INFINITY);
  const raw = [...ours];
  for (let round = 1; round <= ROUNDS; round++) {
    start(round);
    for (let chunk = 0; chunk < ours.length; chunk++) {
      ours[chunk] = Math.min(
        ours[chunk]!,
        timed(() => launch(chunk * CHUNK)),
      );
      raw[chunk] = Math.min(
        raw[chunk]!,
        timed(() => hashes(chunk * CHUNK)),
      );
    }
    stop();
  }
  memory.close();
  const [total, bound] = [sum(ours), sum(raw)];
  return {
    value: (SIZE / total) * 1000,
    unit: 'B/s',
    bound: (SIZE / bound) * 1000,
    ratio: bound / total,
    note: `against the hashes alone, wanted ≥ ${WANTED}; ${((total / PAGES) * 1000).toFixed(1)} us a page, of which ${((bound / PAGES) * 1000).toFixed(1)} hash`,
  };
}

const sum = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0);

/** Milliseconds that an action takes. */
function timed(action: () => void): number {
  const began = performance.now();
  action();
  return performance.now() - began;
}
