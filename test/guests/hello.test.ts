import { expect, it } from 'vitest';
import { createHost, MiB, readImage } from '../../src/index.ts';

it.each([2, 3, 4])(
  'runs in RAM that has no room for a stack of each of 64 vCPUs, in whatever order they run: seed %d',
  async (seed) => {
    using host = createHost({ memory: 256 * MiB, seed });
    using vm = host.createVm({ memory: 2 * MiB, smp: 64, ...(await readImage('hello')) });
    const { exit, console } = await vm.run({ timeoutMs: 60_000 });
    expect(exit).toEqual({ reason: 'debug-exit', code: 0 });
    expect(console).toBe('Hello from a guest: vCPU 0, CPL 0, 2 MiB of RAM, CPU AuthenticAMD.\n');
  },
);
