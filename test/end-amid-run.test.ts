/** A caller that ends a vCPU, a VM, the process or the host from within `Vm.run`: the run says so in its report, nothing is thrown, no frame is left. */
import { describe, expect, it } from 'vitest';
import { createHost, type Host, readImage, type Vm } from '../src/index.ts';
import type { Process } from '../src/kernel/process.ts';

const { image } = await readImage('hello');

/** How the caller ends it. */
const ENDS: Record<string, (host: Host, vm: Vm) => void> = {
  'closes the vCPU': (_, vm) => vm.machine.vcpus[0]!.close(),
  'closes the VM': (_, vm) => vm.close(),
  'ends the process': (host) => (host.process as Process).exit(),
  'closes the host': (host) => host.close(),
};
const PLACES = ['a listener of exits', 'a listener of pages', 'the console'] as const;

async function endAt(
  place: (typeof PLACES)[number],
  nth: number,
  end: (host: Host, vm: Vm) => void,
): Promise<{
  host: Host;
  vm: Vm;
  message: string | undefined;
}> {
  const host = createHost({ memory: 64 << 20, seed: 1 });
  let count = 0;
  const act = (): void => {
    if (count++ === nth) end(host, vm);
  };
  const vm = host.createVm({ image, memory: 4 << 20, onConsole: () => place === 'the console' && act() });
  const kind = place === 'a listener of exits' ? 'exit' : 'page';
  if (place !== 'the console') host.trace.listen((event) => event.kind === kind && act());
  const { exit } = await vm.run({ timeoutMs: 20_000 });
  expect(count).toBeGreaterThan(nth);
  return { host, vm, message: exit.reason === 'error' ? exit.message : undefined };
}

describe.each(PLACES)('from %s', (place) => {
  describe.each(Object.entries(ENDS))('a caller that %s', (_, end) => {
    it.each(place === 'the console' ? [0] : [0, 1, 5])('(event %i) is told so by the run', async (nth) => {
      const { host, vm, message } = await endAt(place, nth, end);
      // Who closes the VM takes the RAM from under the guest, too.
      if (place !== 'the console')
        expect(message).toMatch(/^vCPU 0: KVM(_RUN failed: EBADF$| internal error: emulation failure)/);
      expect(() => vm.close()).not.toThrow();
      expect(() => host.close()).not.toThrow();
      expect([...host.usage()].filter(([, frames]) => frames > 0)).toEqual([]);
      expect((await vm.run()).exit.code).toBeGreaterThanOrEqual(0);
    });
  });
});
