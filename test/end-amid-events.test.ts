/** At whichever event of the trace a caller ends a VM, the process or the host, no frame is left, and nothing is thrown that a caller cannot expect. */
import { describe, expect, it } from 'vitest';
import { seededEntropy } from '../src/base/entropy.ts';
import {
  Chip,
  createHost,
  type Host,
  type HostOptions,
  LinuxError,
  readImage,
  type Vm,
  VmmError,
  type VmOptions,
} from '../src/index.ts';
import type { Process } from '../src/kernel/process.ts';

const hello = await readImage('hello');
const snpHello = await readImage('snp-hello');
const conversions = await readImage('conversions');
const chip = () => new Chip({ generation: 'milan', entropy: seededEntropy(5) });

interface Setting {
  readonly host?: () => HostOptions;
  readonly vm: VmOptions;
  /** Which of the events that are alike. Absent: the first few. */
  readonly occurrences?: readonly number[];
}

const DOZEN = Array.from({ length: 12 }, (_, index) => index);

const SETTINGS: Record<string, Setting> = {
  'private memory': { vm: hello, occurrences: DOZEN },
  'private memory of 2 MiB folios': { host: () => ({ gmemFolio: '2M' }), vm: hello },
  'anonymous memory': { vm: { ...hello, type: 'default' }, occurrences: DOZEN },
  'a memfd': { vm: { ...hello, type: 'default', backend: { kind: 'memfd' } } },
  'dirty rings': { vm: { ...hello, type: 'default', dirtyRingSize: 1024, smp: 2, irqchip: 'split' } },
  'a guest that converts pages': { vm: { ...conversions, memory: 32 << 20 }, occurrences: [1000] },
  'an SNP guest': {
    ...{ host: () => ({ chip: chip() }), vm: { ...snpHello, type: 'sev-snp' }, occurrences: [1] },
  },
};

const ENDS: Record<string, (host: Host, vm: Vm | undefined) => void> = {
  'closes the VM': (_, vm) => vm?.close(),
  'closes the vCPU': (_, vm) => vm?.machine.vcpus[0]?.close(),
  'ends the process': (host) => (host.process as Process).exit(),
  'closes the host': (host) => host.close(),
};

/** Runs a guest whose caller calls `end` at event `nth`; which event that was. */
async function endAt(
  { host: hostOptions, vm: vmOptions, occurrences = [0, 1, 5] }: Setting,
  nth: number,
  end: (host: Host, vm: Vm | undefined) => void,
): Promise<string> {
  const host = createHost({ memory: 64 << 20, seed: 1, ...hostOptions?.() });
  const before = [...host.usage()];
  let vm: Vm | undefined;
  const counts = new Map<string, number>();
  let picked = 0;
  let met = '';
  host.trace.listen(({ kind, what, why = '' }) => {
    const event = `${kind} ${what} ${why}`;
    const count = counts.get(event) ?? 0;
    counts.set(event, count + 1);
    if (!occurrences.includes(count) || picked++ !== nth) return;
    met = `${event}, ${count}`;
    end(host, vm);
  });
  try {
    vm = host.createVm({ memory: 4 << 20, ...vmOptions });
    await vm.run({ timeoutMs: 20_000 });
  } catch (error) {
    if (!(error instanceof LinuxError || error instanceof VmmError)) throw error;
  }
  vm?.close();
  const left = host.processIsGone ? [] : before;
  expect([met, [...host.usage()].filter(([owner]) => owner !== 'psp' || left === before)]).toEqual([
    met,
    left,
  ]);
  host.close();
  expect([met, [...host.usage()]]).toEqual([met, []]);
  return met;
}

describe.each(Object.entries(SETTINGS))('with %s', (_, setting) => {
  it.each(Object.entries(ENDS))(
    'a caller that %s leaves nothing behind',
    async (_, end) => {
      let nth = 0;
      while ((await endAt(setting, nth, end)) !== '') nth++;
      expect(nth).toBeGreaterThan(5);
    },
    120_000,
  );
});
