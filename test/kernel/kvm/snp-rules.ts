/** What the tables of rules of SNP share: an errno as a number, and the walk of the whole RMP that holds after anything. */
import { expect } from 'vitest';
import type { Pfn, Spa } from '../../../src/base/address.ts';
import { LinuxError } from '../../../src/base/errors.ts';
import type { Kernel } from '../../../src/kernel/kvm/index.ts';
import type { SnpVm } from './snp-bench.ts';

/** The errno of a call, as a number; 0: it succeeded. */
export function errnoOf(call: () => unknown): number {
  try {
    call();
    return 0;
  } catch (error) {
    if (error instanceof LinuxError) return error.errno;
    throw error;
  }
}

/** SNP_PAGE states by how many frames are in them, without the table's own. */
export function pageStates(kernel: Kernel): Readonly<Record<string, number>> {
  const { memory } = kernel;
  const rmp = memory.rmp!;
  const counts: Record<string, number> = {};
  for (let frame = 0; frame < memory.frameCount; frame++) {
    if (frame * 4096 >= rmp.base && frame * 4096 < rmp.end) continue;
    const state = rmp.state(frame as Pfn);
    if (state === 'hypervisor') continue;
    counts[state] = (counts[state] ?? 0) + 1;
  }
  return counts;
}

/**
 * Nothing is the guest's or firmware's that nobody can get back: with all processes gone, every frame but the table's own and the leaked is the hypervisor's, and nobody
 * holds a frame but the driver its command buffer. `leaked`: how many are lost.
 */
export function expectAllBack(kernel: Kernel, leaked = 0): void {
  const psp = kernel.psp!;
  expect(psp.leakedPages).toBe(leaked);
  const { memory } = kernel;
  const rmp = memory.rmp!;
  for (let frame = 0; frame < memory.frameCount; frame++) {
    const isTable = frame * 4096 >= rmp.base && frame * 4096 < rmp.end;
    const expected = isTable ? 'firmware' : 'hypervisor';
    if (rmp.state(frame as Pfn) !== expected && !psp.isLeaked(frame as Pfn))
      throw new Error(`frame ${frame} is ${rmp.state(frame as Pfn)}, want ${expected}`);
  }
  const held = memory.leaks().reduce((sum, { frames }) => sum + frames, 0);
  expect(held - leaked).toBe(1);
}

/** Bytes of host memory as the host reads them. */
export function hostRead(snp: SnpVm, frame: number): Uint8Array {
  const bytes = new Uint8Array(4096);
  snp.kernel.memory.read((frame * 4096) as Spa, bytes);
  return bytes;
}
