/**
 * memory.side-tables: what the tables beside frames take of a host's RAM, at the largest host there is, with SNP: accounting of frames beside
 * the memory as the engine counts it, and frames that are never free (flags, tags, reverse map table). The bound is 1 %.
 * In the note what a VM adds whose guest_memfd is full and mapped in pages of 4 KiB: its page entries and nested page tables.
 */
import { Trace } from '../src/base/trace.ts';
import { HostMemory } from '../src/hardware/memory/host-memory.ts';
import { createKernel } from '../src/kernel/kvm/index.ts';
import { privateVm } from './measure/private-vm.ts';

const RAM = 2 ** 32;
const ALLOWED_PERCENT = 1;
const GUEST = 64 * 2 ** 20;
const PRIVATE = 8n;
const SOFTWARE_PROTECTED = 1;

export async function bench() {
  const before = process.memoryUsage().arrayBuffers;
  const memory = HostMemory.create({ bytes: RAM, trace: new Trace(), rmp: true });
  const beside = process.memoryUsage().arrayBuffers - before;
  const inside = (memory.frameCount - memory.freeFrames) * 4096;
  const counted = memory.tableBytes;
  memory.close();
  const value = (Math.max(beside + inside, counted) / RAM) * 100;
  return {
    value,
    unit: '% of RAM',
    bound: ALLOWED_PERCENT,
    ratio: ALLOWED_PERCENT / value,
    note: `4 GiB: ${(inside / 2 ** 20).toFixed(1)} MiB of frames set aside, ${(beside / 2 ** 20).toFixed(1)} MiB beside; a VM full of 4 KiB pages adds ${populated().toFixed(2)} % of its memory`,
  };
}

/** Percent of a guest's memory that its kernel tables take once each page is there and mapped. */
function populated(): number {
  const kernel = createKernel({ memory: 4 * GUEST });
  const { vm } = privateVm(kernel, SOFTWARE_PROTECTED, GUEST);
  const vcpu = vm.createVcpu(0);
  const before = process.memoryUsage().arrayBuffers;
  vm.setMemoryAttributes({ address: 0n, size: BigInt(GUEST), attributes: PRIVATE, flags: 0n });
  vcpu.preFaultMemory({ gpa: 0n, size: BigInt(GUEST), flags: 0n });
  const { mapped4K, tables } = vm.mmu.stats;
  if (mapped4K !== GUEST / 4096) throw new Error(`mapped ${mapped4K} pages, want ${GUEST / 4096}`);
  const bytes = process.memoryUsage().arrayBuffers - before + tables * 4096;
  kernel.close();
  return (bytes / GUEST) * 100;
}
