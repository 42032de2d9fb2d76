/**
 * kvm.dirty-log: KVM_GET_DIRTY_LOG of a slot of 16 GiB of which nothing is dirty, against a warm copy of its bitmap (512 KiB); and
 * in the note what a dirty page costs, the taking of its write right included: all of 64 MiB, and one page in 64 of 1 GiB.
 */
import type { Gfn, Pfn } from '../src/base/address.ts';
import { createKernel, type Vm } from '../src/kernel/kvm/index.ts';
import { fastest } from './measure/fastest.ts';

const SLOT_PAGES = 4 * 1024 * 1024;
const WANTED = 0.5;
const WANTED_NS = 15;
const ROUNDS = 20;

export async function bench() {
  const kernel = createKernel({ memory: 64 * 1024 * 1024 });
  const process = kernel.newProcess();
  const vm = process.openKvm().createVm(0) as Vm;
  const length = SLOT_PAGES * 4096;
  const hva = process.memory.mmap({ length, protection: 3, flags: 0x4022 });
  vm.setUserMemoryRegion({
    slot: 0,
    flags: 1,
    guestPhysAddr: 0n,
    memorySize: BigInt(length),
    userspaceAddr: BigInt(hva),
  });
  const request = { slot: 0, bitmap: new Int32Array(SLOT_PAGES / 32) };
  const source = new Int32Array(SLOT_PAGES / 32);
  const copy = fastest(() => request.bitmap.set(source), 200);
  const clean = fastest(() => vm.getDirtyLog(request), 200);
  const dense = dirtyHarvest(vm, request, 16384, 1);
  const sparse = dirtyHarvest(vm, request, 4096, 64);
  kernel.close();
  return {
    value: (SLOT_PAGES / clean) * 1000,
    unit: 'pages/s',
    bound: (SLOT_PAGES / copy) * 1000,
    ratio: copy / clean,
    note: `wanted ≥ ${WANTED}; a dirty page takes ${dense.toFixed(1)} ns, one in 64 ${sparse.toFixed(1)} ns, wanted ≤ ${WANTED_NS}`,
  };
}

/** Nanoseconds a page for a harvest of `count` dirty pages, `stride` apart. */
function dirtyHarvest(
  vm: Vm,
  request: { slot: number; bitmap: Int32Array },
  count: number,
  stride: number,
): number {
  const { dirty } = vm.slots.find(0 as Gfn)!;
  const clean = fastest(() => vm.getDirtyLog(request), 50);
  let best = Number.POSITIVE_INFINITY;
  for (let round = 0; round < ROUNDS; round++) {
    for (let page = 0; page < count * stride; page += stride) {
      vm.mmu.topUp();
      vm.mmu.map(page as Gfn, (1000 + (page & 1023)) as Pfn, 1, { writable: true });
      dirty!.mark(page);
    }
    const start = performance.now();
    vm.getDirtyLog(request);
    best = Math.min(best, performance.now() - start);
  }
  return ((best - clean) / count) * 1e6;
}
