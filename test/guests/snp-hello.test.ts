import { afterEach, describe, expect, it } from 'vitest';
import { seededEntropy } from '../../src/base/entropy.ts';
import { Chip, createHost, type Host, MiB, type RunReport, readImage } from '../../src/index.ts';

let host: Host;
afterEach(() => host.close());

const GENERATIONS = ['milan', 'genoa', 'turin'] as const;

async function hello(
  generation: (typeof GENERATIONS)[number],
  options: { smp?: number; gmemFolio?: '4K' | '2M'; irqchip?: 'split' } = {},
): Promise<RunReport> {
  const { smp = 1, gmemFolio = '4K', irqchip = 'off' } = options;
  const chip = new Chip({ generation, entropy: seededEntropy(3) });
  host = createHost({ memory: 128 * MiB, chip, gmemFolio, seed: 1 });
  const image = await readImage('snp-hello');
  return host
    .createVm({ type: 'sev-snp', memory: 16 * MiB, smp, irqchip, ...image })
    .run({ timeoutMs: 60_000 });
}

describe('the guest snp-hello', () => {
  it.each([
    ['milan', '0xa00f11'],
    ['genoa', '0xa10f11'],
    ['turin', '0xb00f21'],
  ] as const)('finds itself an SNP guest of a %s', async (generation, signature) => {
    const report = await hello(generation);
    expect(report.console.split('\n')).toEqual([
      `Hello from an SNP guest: 16 MiB of RAM, 1 vCPUs, CPU AuthenticAMD, signature ${signature}`,
      'SEV_STATUS 0x7: SEV ES SNP',
      'CPUID 8000001F: 0x1a, C-bit 51',
      'GHCB protocol 1 to 2, host features 0x3',
      expect.stringMatching(/^validated 40\d\d pages$/),
      '4K to shared and back: as it should be',
      '300 pages to shared and back: as it should be',
      '2M to shared and back: as it should be',
      '2M and 4K to shared and back: as it should be',
      'snp-hello: all as it should be',
      '',
    ]);
    expect(report.exit).toEqual({ reason: 'debug-exit', code: 0 });
    expect(report.memory.conversions).toBe(2 * (1 + 300 + 512 + 513));
    expect(report.instructions).toBeLessThan(5_000_000);
  });

  it('works on folios of 2 MiB, whose entries in the RMP have to be smashed', async () => {
    const report = await hello('milan', { gmemFolio: '2M' });
    expect(report.console).not.toContain('WRONG');
    expect(report.exit).toEqual({ reason: 'debug-exit', code: 0 });
  });

  it.each(['off', 'split'] as const)('runs on the first vCPU alone, irqchip %s', async (irqchip) => {
    const report = await hello('milan', { smp: 3, ...(irqchip === 'split' ? { irqchip } : {}) });
    expect(report.console).toContain('3 vCPUs');
    expect(report.exit).toEqual({ reason: 'debug-exit', code: 0 });
  });

  it.each(['default', 'sw-protected'] as const)(
    'says so where it is none, in a VM of type %s',
    async (type) => {
      host = createHost({ memory: 64 * MiB });
      const vm = host.createVm({ type, memory: 16 * MiB, ...(await readImage('snp-hello')) });
      const report = await vm.run({ timeoutMs: 20_000 });
      expect(report.console).toBe('no SNP guest: run with --type sev-snp\n');
      expect(report.exit).toEqual({ reason: 'debug-exit', code: 2 });
    },
  );
});
