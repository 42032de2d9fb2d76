import { expect, it } from 'vitest';
import { createKernel } from '../../../src/kernel/kvm/index.ts';

const memory = 4 * 1024 * 1024;

it.each([
  [{ kernel: '6.1' }, 'kernel: got 6.1, want 6.12 or 7.2'],
  [{ kernel: 'constructor' }, 'kernel: got constructor, want 6.12 or 7.2'],
  [
    { early: ['certificates'] },
    'early: got certificates, want certs or sev-launch or private-fault or dirty-pages',
  ],
  ...[-5, Number.NaN, 0.5, '5'].map((timeslice): [object, string] => [
    { timeslice },
    `timeslice: got ${timeslice}, want a whole number of instructions, or 0`,
  ]),
])('a kernel with %o is refused', (options, message) => {
  expect(() => createKernel({ memory, ...options } as never)).toThrow(new RangeError(message));
});

it.each(['6.12', '7.2'] as const)('a kernel %s is there', (kernel) => {
  const it = createKernel({ memory, kernel });
  expect(it.newProcess().openKvm().getApiVersion()).toBe(12);
  it.close();
});

it('a process’s memory is told by its name', () => {
  const kernel = createKernel({ memory });
  const process = kernel.newProcess('qemu');
  process.memory.write(process.memory.mmap({ length: 4096, protection: 3, flags: 0x22 }), new Uint8Array(1));
  expect(kernel.memory.usage().get('process qemu')).toBe(1);
  kernel.close();
});

it('a kernel that is closed starts no process', () => {
  const kernel = createKernel({ memory });
  kernel.close();
  expect(() => kernel.newProcess()).toThrow(new Error('newProcess: the kernel is closed'));
});
