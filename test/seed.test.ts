/** A host's seed: the same one repeats the interleaving of a machine's vCPUs, another one gives another. */
import { expect, it } from 'vitest';
import { Trace } from '../src/base/trace.ts';
import { createHost, readImage } from '../src/index.ts';

/** What a VMM does for a guest with two vCPUs, in order, as `vcpu what gfn`. */
async function exitsOf(seed: number | undefined): Promise<string[]> {
  const trace = new Trace();
  const exits: string[] = [];
  trace.listen(({ who, vcpu, what, gfn }) => {
    if (who === 'vmm' && vcpu !== undefined) exits.push(`${vcpu} ${what} ${gfn}`);
  });
  const host = createHost({ memory: 64 * 1024 * 1024, trace, ...(seed === undefined ? {} : { seed }) });
  const image = await readImage('smp');
  const vm = host.createVm({ smp: 2, irqchip: 'split', memory: 32 * 1024 * 1024, ...image });
  const { exit } = await vm.run({ timeoutMs: 60_000 });
  host.close();
  expect(exit).toEqual({ reason: 'debug-exit', code: 0 });
  return exits;
}

it('a seed repeats the interleaving of vCPUs, and others give others', async () => {
  const [first, again, ...others] = [
    await exitsOf(2),
    await exitsOf(2),
    await exitsOf(3),
    await exitsOf(4),
    await exitsOf(5),
  ];
  expect(again).toEqual(first);
  expect(new Set([first, ...others].map((exits) => exits.join())).size).toBeGreaterThan(1);
}, 60_000);
