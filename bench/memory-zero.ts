/**
 * memory.zero: frames allocated and freed again, so each has to be zeroed, against `memory.fill` of 16 MiB at once in the same
 * kind of memory. The value counts frames a second.
 */
import { Trace } from '../src/base/trace.ts';
import { bulkOperations } from '../src/hardware/memory/bulk.ts';
import { HostMemory } from '../src/hardware/memory/host-memory.ts';
import { fastest } from './measure/fastest.ts';

const FRAMES = 4096;
const WANTED = 0.5;

export async function bench() {
  const memory = HostMemory.create({ bytes: 32 * 1024 * 1024, trace: new Trace() });
  const owner = memory.owner('bench');
  const frames = new Array<number>(FRAMES);
  const cycle = (order: number): void => {
    const count = FRAMES >> order;
    for (let i = 0; i < count; i++) frames[i] = memory.allocate(order, owner);
    for (let i = 0; i < count; i++) memory.free(frames[i] as Parameters<HostMemory['free']>[0], order);
  };
  const wasm = new WebAssembly.Memory({ initial: 512, maximum: 65536, shared: true });
  const raw = bulkOperations(wasm);
  const fill = fastest(() => raw.clear(0, FRAMES * 4096));
  const single = fastest(() => cycle(0));
  const large = fastest(() => cycle(9));
  memory.close();
  const perSecond = (ms: number): number => (FRAMES / ms) * 1000;
  return {
    value: perSecond(single),
    unit: 'frames/s',
    bound: perSecond(fill),
    ratio: fill / single,
    note: `4 KiB frames against memory.fill, wanted ≥ ${WANTED}; as 2 MiB blocks ${Math.round(perSecond(large))} frames/s`,
  };
}
