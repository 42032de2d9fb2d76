/**
 * memory.copy: a process writes and reads 16 MiB of its anonymous memory in pieces of 64 KiB, against `Uint8Array.set` of as much
 * between two plain arrays. The value counts bytes a second, each way once.
 */
import { hva } from '../src/base/address.ts';
import { Trace } from '../src/base/trace.ts';
import { HostMemory } from '../src/hardware/memory/host-memory.ts';
import { Process } from '../src/kernel/process.ts';
import { fastest } from './measure/fastest.ts';

const TOTAL = 16 * 1024 * 1024;
const PIECE = 65536;
const WANTED = 0.5;

export async function bench() {
  const memory = HostMemory.create({ bytes: 32 * 1024 * 1024, trace: new Trace() });
  const process = new Process({
    memory,
    openDevice: () => {
      throw new Error('this process has no /dev/kvm');
    },
  });
  const at = process.memory.mmap({ length: TOTAL, protection: 3, flags: 0x22 });
  const piece = new Uint8Array(PIECE).fill(1);
  const ours = fastest(() => {
    for (let offset = 0; offset < TOTAL; offset += PIECE) process.memory.write(hva(at + offset), piece);
    for (let offset = 0; offset < TOTAL; offset += PIECE) process.memory.read(hva(at + offset), piece);
  });
  const plain = new Uint8Array(TOTAL);
  const copy = fastest(() => {
    for (let offset = 0; offset < TOTAL; offset += PIECE) plain.set(piece, offset);
    for (let offset = 0; offset < TOTAL; offset += PIECE) piece.set(plain.subarray(offset, offset + PIECE));
  });
  const word = new Uint8Array(8);
  const small = fastest(() => {
    for (let i = 0; i < 100_000; i++) process.memory.read(hva(at + i * 8), word);
  });
  process.exit();
  memory.close();
  const perSecond = (ms: number): number => ((2 * TOTAL) / ms) * 1000;
  return {
    value: perSecond(ours),
    unit: 'B/s',
    bound: perSecond(copy),
    ratio: copy / ours,
    note: `against Uint8Array.set, wanted ≥ ${WANTED}; a read of 8 bytes takes ${(small * 10).toFixed(0)} ns`,
  };
}
