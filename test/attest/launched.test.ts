/** What is expected of an image is what its launch by the firmware gives, and what the guest's report then shows. */
import { describe, expect, it } from 'vitest';
import { imageUpdates, launchDigest, parseReport, verifyReport } from '../../src/attest/index.ts';
import { Authority } from '../../src/authority/authority.ts';
import { createHost, readImage } from '../../src/index.ts';
import { NOW } from './evidence.ts';

const hex = (bytes: Uint8Array | undefined): string => Buffer.from(bytes ?? []).toString('hex');

async function launch(image: string, smp: number) {
  const authority = Authority.seeded(7);
  const chip = authority.chip('milan');
  using host = createHost({ memory: 512 * 2 ** 20, seed: 7, chip });
  const loaded = await readImage(image);
  using vm = host.createVm({ type: 'sev-snp', memory: 16 * 2 ** 20, smp, ...loaded });
  const run = await vm.run({ timeoutMs: 60_000 });
  const expected = await launchDigest(imageUpdates({ image: loaded.image, vcpus: smp }));
  return { authority, chip, run, expected };
}

describe('the expected measurement of a guest of ours', () => {
  it.each([1, 2])(
    'with %i vCPUs is the launched one',
    async (smp) => {
      const { run, expected } = await launch('snp-hello', smp);
      expect(hex(run.launch?.measurement)).toBe(hex(expected));
    },
    60_000,
  );

  it('of a flat binary is the launched one', async () => {
    const image = new Uint8Array(5000).fill(0xf4);
    using host = createHost({ memory: 512 * 2 ** 20, seed: 7, chip: Authority.seeded(7).chip('milan') });
    using vm = host.createVm({ type: 'sev-snp', memory: 16 * 2 ** 20, image, imageName: 'halt.bin' });
    const run = await vm.run({ timeoutMs: 60_000 });
    const expected = await launchDigest(imageUpdates({ image, format: 'flat', vcpus: 1 }));
    expect(hex(run.launch?.measurement)).toBe(hex(expected));
  }, 60_000);

  it('is in the report of the attester, which verifies', async () => {
    const { authority, chip, run, expected } = await launch('attester', 1);
    expect(run.report && hex(parseReport(run.report).measurement)).toBe(hex(expected));
    const { leaf, intermediate, ark } = await authority.certificates(chip);
    const verdict = await verifyReport(run.report!, {
      certificates: [leaf, intermediate],
      roots: [ark],
      at: NOW,
      policy: { measurement: expected, vmpl: 0 },
    });
    expect(verdict.failures).toEqual([]);
  }, 60_000);
});
