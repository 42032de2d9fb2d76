import { afterEach, describe, expect, it } from 'vitest';
import { createHost, type Host, type RunReport, readImage } from '../../src/index.ts';

const MiB = 1024 * 1024;
let host: Host;
afterEach(() => host.close());

async function smp(type: 'default' | 'sw-protected', processors: number): Promise<RunReport> {
  host = createHost({ memory: 256 * MiB });
  const image = await readImage('smp');
  const vm = host.createVm({ type, memory: 32 * MiB, smp: processors, irqchip: 'split', ...image });
  return vm.run({ timeoutMs: 60_000 });
}
const linesWith = (report: RunReport, what: string): number =>
  report.console.split('\n').filter((line) => line.includes(what)).length;

describe('the guest smp', () => {
  it.each([
    ['default', 'memory: without conversions'],
    ['sw-protected', 'memory: private, converted as it goes'],
  ] as const)('starts its processors and is interrupted in a VM of type %s', async (type, memory) => {
    const report = await smp(type, 3);
    expect(report.console).toContain(memory);
    expect(report.console).not.toContain('WRONG');
    expect(report.console.trimEnd().split('\n').at(-1)).toBe('all right');
    expect(report.exit).toEqual({ reason: 'debug-exit', code: 0 });
    expect(linesWith(report, '  came once: 1')).toBe(3);
    expect(linesWith(report, '  NMIs: 1')).toBe(2);
    expect(report.console).toContain('IOAPIC level interrupts: 3\n');
    expect(report.exits.ioapic_eoi).toBe(3);
    expect(report.memory.conversions).toBe(type === 'default' ? 0 : 3 * 8 * 2 * 8);
  });

  it('uses 16 processors', async () => {
    const { console, exit } = await smp('sw-protected', 16);
    expect(console).toContain('processors: 16\n');
    expect(exit).toEqual({ reason: 'debug-exit', code: 0 });
  });

  it('says that 17 processors are too many', async () => {
    const { console, exit } = await smp('sw-protected', 17);
    expect(console).toContain('processors: 17\nat most 16\n');
    expect(exit).toEqual({ reason: 'debug-exit', code: 2 });
  });

  it('runs the same each time', async () => {
    const first = await smp('sw-protected', 2);
    host.close();
    const second = await smp('sw-protected', 2);
    expect(second.instructions).toBe(first.instructions);
    expect(second.exits).toEqual(first.exits);
  });

  it('says what it needs where there is no local APIC', async () => {
    host = createHost({ memory: 256 * MiB });
    const vm = host.createVm({ memory: 32 * MiB, ...(await readImage('smp')) });
    const report = await vm.run({ timeoutMs: 20_000 });
    expect(report.console).toBe('no local APIC with x2APIC: run with --irqchip split\n');
    expect(report.exit.code).toBe(2);
  });

  it.each([
    ['split', [true, true], [0, 1]],
    ['off', [false, false], [0, 0]],
  ] as const)(
    'with irqchip %s CPUID says so, and only then the second vCPU waits',
    async (irqchip, bits, states) => {
      host = createHost({ memory: 256 * MiB });
      const { machine } = host.createVm({ memory: 32 * MiB, smp: 2, irqchip, ...(await readImage('smp')) });
      const leaf = machine.vcpus[1]!.getCpuid2().find((entry) => entry.function === 1)!;
      expect([21, 24].map((bit) => ((leaf.ecx >>> bit) & 1) === 1)).toEqual(bits);
      expect(machine.vcpus.map((vcpu) => vcpu.getMpState())).toEqual(states);
    },
  );

  it('refuses RAM that reaches the IOAPIC', async () => {
    host = createHost({ memory: 256 * MiB });
    const image = await readImage('smp');
    expect(() => host.createVm({ memory: 4096 * MiB, irqchip: 'split', ...image })).toThrow('0xfec00000');
  });
});
