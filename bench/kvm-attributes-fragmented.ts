/**
 * kvm.attributes-fragmented: KVM_SET_MEMORY_ATTRIBUTES of a page a call, every second page of 1 GiB, to private. The bound is a Map that gets an
 * entry for each of the same pages, as Linux's xarray does, without any of the ioctl's checks. In the note all made shared again in one call, and
 * as many calls in an order drawn at random on a sixteenth of the pages, where each new range moves those behind it.
 */
import { type Entropy, seededEntropy } from '../src/base/entropy.ts';
import { createKernel, type Vm } from '../src/kernel/kvm/index.ts';

const PAGES = 262144;
const SHUFFLED = 16384;
const ROUNDS = 5;
const SIZE = 2 ** 30;
const PRIVATE = 8n;
const SOFTWARE_PROTECTED = 1;

export async function bench() {
  const kernel = createKernel({ memory: 16 * 1024 * 1024 });
  const process = kernel.newProcess();
  const vm = process.openKvm().createVm(SOFTWARE_PROTECTED) as Vm;
  const hva = process.memory.mmap({ length: SIZE, protection: 3, flags: 0x4022 });
  const slot = { slot: 0, flags: 0, guestPhysAddr: 0n, memorySize: BigInt(SIZE), userspaceAddr: BigInt(hva) };
  vm.setUserMemoryRegion(slot);
  const set = (address: bigint, size: bigint, attributes: bigint): void =>
    vm.setMemoryAttributes({ address, size, attributes, flags: 0n });
  const inOrder = Float64Array.from({ length: PAGES / 2 }, (_, i) => 2 * i);
  const shuffled = shuffle(
    Float64Array.from({ length: SHUFFLED }, (_, i) => (PAGES / SHUFFLED) * i),
    seededEntropy(1),
  );

  let fragmenting = Number.POSITIVE_INFINITY;
  let drawn = Number.POSITIVE_INFINITY;
  let together = Number.POSITIVE_INFINITY;
  let peer = Number.POSITIVE_INFINITY;
  const timed = (action: () => void): number => {
    const start = performance.now();
    action();
    return performance.now() - start;
  };
  for (let round = 0; round < ROUNDS; round++) {
    const each = (pages: Float64Array) => () => {
      for (const page of pages) set(BigInt(page * 4096), 4096n, PRIVATE);
    };
    fragmenting = Math.min(fragmenting, timed(each(inOrder)));
    together = Math.min(
      together,
      timed(() => set(0n, BigInt(SIZE), 0n)),
    );
    drawn = Math.min(drawn, timed(each(shuffled)));
    set(0n, BigInt(SIZE), 0n);
    const entries = new Map<number, bigint>();
    const fill = (): void => {
      for (const page of inOrder) entries.set(page, PRIVATE);
    };
    peer = Math.min(peer, timed(fill));
  }
  process.exit();
  kernel.close();
  return {
    value: (inOrder.length / fragmenting) * 1000,
    unit: 'calls/s',
    bound: (inOrder.length / peer) * 1000,
    ratio: peer / fragmenting,
    note: `bound: Map.set of the same pages; ${inOrder.length} ranges are shared again in one call of ${together.toFixed(2)} ms; ${SHUFFLED} drawn at random ${((SHUFFLED / drawn) * 1000).toFixed(0)} calls/s`,
  };
}

/** In an order drawn at random (Fisher and Yates). */
function shuffle(values: Float64Array, entropy: Entropy): Float64Array {
  for (let i = values.length - 1; i > 0; i--) {
    const j = entropy.below(i + 1);
    [values[i], values[j]] = [values[j]!, values[i]!];
  }
  return values;
}
