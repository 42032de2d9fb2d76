/** `softcvm run` with firmware images: what it prints is what `softcvm measure` says. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, describe, expect, it, vi } from 'vitest';
import { measure } from '../../src/cli/measure.ts';
import { type RunCommandOptions, run } from '../../src/cli/run.ts';

const FIRMWARE = new URL('../../guests/prebuilt/attester.fd', import.meta.url).pathname;
const folder = mkdtempSync(join(tmpdir(), 'softcvm-firmware-'));
afterAll(() => rmSync(folder, { recursive: true }));
afterEach(() => vi.restoreAllMocks());
const file = (name: string): string => {
  const path = join(folder, name);
  writeFileSync(path, name);
  return path;
};

async function printed(action: () => Promise<number>): Promise<string> {
  const lines: string[] = [];
  vi.spyOn(console, 'log').mockImplementation((line) => lines.push(line));
  expect(await action()).toBe(0);
  vi.restoreAllMocks();
  return lines.join('\n');
}
const DEFAULTS: RunCommandOptions = {
  ...{ type: 'sev-snp', memory: '16M', smp: '1', seed: '9', timeout: '60', json: true },
};

describe('softcvm run of firmware', () => {
  it.each([
    ['a plain launch', {}, { vcpuSig: '0xa00f11' }],
    [
      'a kernel',
      { guestKernel: file('kernel'), initrd: file('disk'), append: 'console=ttyS0', smp: '2', chip: 'genoa' },
      {
        ...{ kernel: file('kernel'), initrd: file('disk'), append: 'console=ttyS0', vcpus: '2' },
        vcpuSig: '0xa10f11',
      },
    ],
    [
      'vCPUs of a type on a newer chip',
      { chip: 'turin', vcpuType: 'EPYC-Genoa' },
      { vcpuType: 'EPYC-Genoa' },
    ],
  ])('measures what softcvm measure says: %s', async (_, options, expected) => {
    const output = await printed(() => run('attester.fd', { ...DEFAULTS, ...options }));
    const { launch, report } = JSON.parse(output) as { launch: { measurement: string }; report: string };
    const digest = await printed(() =>
      measure(undefined, {
        ...{ mode: 'snp', ovmf: FIRMWARE, vcpus: '1', vmmType: 'QEMU' },
        ...{ guestFeatures: '0x1', outputFormat: 'hex', ...expected },
      }),
    );
    expect(report.slice(2 * 0x90, 2 * 0xc0)).toBe(digest);
    expect(launch.measurement).toBe(digest);
  });

  it.each<[Partial<RunCommandOptions>, string]>([
    [
      { vcpuType: 'EPYC-Genoa' },
      '--vcpu-type: got EPYC-Genoa, want one that is not newer than the chip, a milan',
    ],
    [{ vcpuType: 'EPYC-Zen' }, '--vcpu-type: got EPYC-Zen, want EPYC or EPYC-v1'],
    [{ initrd: '/disk' }, '--initrd: got it without --guest-kernel, want both'],
    [{ append: 'quiet' }, '--append: got it without --guest-kernel, want both'],
    [
      { type: 'default', guestKernel: '/kernel' },
      '--guest-kernel: got it with --type default, want --type sev-snp',
    ],
  ])('refuses %o', async (options, message) => {
    await expect(run('attester.fd', { ...DEFAULTS, ...options })).rejects.toThrow(message);
  });
});
