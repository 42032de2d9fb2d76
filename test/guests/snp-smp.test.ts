import { afterEach, describe, expect, it } from 'vitest';
import { seededEntropy } from '../../src/base/entropy.ts';
import { Chip, createHost, type Host, MiB, type RunReport, readImage } from '../../src/index.ts';

let host: Host;
afterEach(() => host.close());

interface Options {
  readonly smp: number;
  readonly kernel?: '7.2' | '6.12';
  readonly irqchip?: 'split' | 'off';
  readonly gmemFolio?: '4K' | '2M';
  readonly seed?: number;
}

async function smp({
  smp,
  kernel = '7.2',
  irqchip = 'split',
  gmemFolio = '4K',
  seed = 1,
}: Options): Promise<RunReport> {
  const chip = new Chip({ generation: 'milan', entropy: seededEntropy(3) });
  host = createHost({ memory: 128 * MiB, chip, kernel, gmemFolio, seed });
  const image = await readImage('snp-smp');
  return host
    .createVm({ type: 'sev-snp', memory: 16 * MiB, smp, irqchip, ...image })
    .run({ timeoutMs: 60_000 });
}

describe('the guest snp-smp', () => {
  it.each([
    { smp: 3 },
    { smp: 5, gmemFolio: '2M' },
    { smp: 2, kernel: '6.12' },
    { smp: 4, seed: 77 },
  ] as const)('has its processors created, held, destroyed and created anew: %j', async (options) => {
    const report = await smp(options);
    expect(report.console.split('\n')).toEqual([
      'local APIC version 0x14, IOAPIC with 24 pins',
      `snp-smp: ${options.smp} processors, host features 0x3`,
      'what has to be refused: done',
      `created: ${options.smp - 1}`,
      'worked beside each other',
      'held and went on',
      'destroyed',
      'created anew, worked again',
      'snp-smp: all as it should be',
      '',
    ]);
    expect(report.exit).toEqual({ reason: 'debug-exit', code: 0 });
    // The IOAPIC's registers: the VMM's. The local APIC's are the kernel's.
    expect(report.exits.mmio).toBe(11);
    expect(report.instructions).toBeLessThan(5_000_000);
  });

  it('says so where there are more than it has room for', async () => {
    const { console, exit } = await smp({ smp: 9 });
    expect([console, exit]).toEqual(['processors: 9, at most 8\n', { reason: 'debug-exit', code: 2 }]);
  });

  it('leaves no frame behind when it is closed, VMSAs of its own making included', async () => {
    const chip = new Chip({ generation: 'milan', entropy: seededEntropy(3) });
    host = createHost({ memory: 128 * MiB, chip });
    const before = [...host.usage()];
    const image = await readImage('snp-smp');
    const vm = host.createVm({ type: 'sev-snp', memory: 16 * MiB, smp: 3, irqchip: 'split', ...image });
    expect((await vm.run({ timeoutMs: 60_000 })).exit.code).toBe(0);
    vm.close();
    expect([...host.usage()]).toEqual(before);
  });

  it('runs the same each time', async () => {
    const first = await smp({ smp: 2 });
    host.close();
    const second = await smp({ smp: 2 });
    expect(second.instructions).toBe(first.instructions);
    expect(second.exits).toEqual(first.exits);
    expect(second.launch!.measurement).toEqual(first.launch!.measurement);
  });

  it('says what it needs where there is no local APIC in the kernel', async () => {
    const report = await smp({ smp: 2, irqchip: 'off' });
    expect(report.console).toBe('no local APIC with x2APIC: run with --irqchip split\n');
    expect(report.exit).toEqual({ reason: 'debug-exit', code: 2 });
  });
});
