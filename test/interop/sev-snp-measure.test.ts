/**
 * sev-snp-measure of PyPI computes the same launch digests: of Debian's OVMF.fd, of our guests as firmware images (test/vmm/firmware-guest.test.ts: their reports show
 * them), and of a synthetic image with a page of kernel hashes, which
 * Debian's has not.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import {
  firmwareUpdates,
  launchDigest,
  parseFirmware,
  VCPU_TYPES,
  type VmmType,
} from '../../src/attest/index.ts';
import { firmwareImage } from '../attest/firmware-image.ts';

const PEER = 'sev-snp-measure==0.0.13';
const OVMF = '/usr/share/ovmf/OVMF.fd';

const folder = mkdtempSync(join(tmpdir(), 'softcvm-measure-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const program = join(folder, 'venv/bin/sev-snp-measure');

/** Installs the peer; says why it could not. */
function install(): string | undefined {
  const run = (command: string, ...args: string[]): boolean =>
    spawnSync(command, args, { encoding: 'utf8', timeout: 120_000 }).status === 0;
  if (!run('python3', '-m', 'venv', join(folder, 'venv'))) return 'python3 with venv is not installed';
  if (!run(join(folder, 'venv/bin/pip'), 'install', '--quiet', PEER)) return `pip could not install ${PEER}`;
  return undefined;
}
const missing = install();
if (missing !== undefined) console.log(`skipped: ${missing}`);
const noOvmf = existsSync(OVMF) ? undefined : `${OVMF} is missing (Debian: ovmf)`;
if (noOvmf !== undefined) console.log(`skipped: ${noOvmf}`);

function theirs(...args: string[]): string {
  const { stdout, stderr, status } = spawnSync(program, ['--mode', 'snp', ...args], { encoding: 'utf8' });
  if (status !== 0) throw new Error(stderr);
  return stdout.trim();
}

const ours = (image: string): string => new URL(`../../guests/prebuilt/${image}`, import.meta.url).pathname;

interface Row {
  readonly vmm: VmmType;
  readonly vcpus: number;
  readonly type: string;
  readonly features: number;
}
const peerVmm = { qemu: 'QEMU', ec2: 'ec2', gce: 'gce' };

async function compare(
  path: string,
  { vmm, vcpus, type, features }: Row,
  kernel?: { kernel: string; initrd?: string; append?: string },
) {
  const ours = await launchDigest(
    await firmwareUpdates({
      firmware: parseFirmware(readFileSync(path)),
      vcpus,
      vmm,
      vcpuSignature: VCPU_TYPES[type]!,
      guestFeatures: BigInt(features),
      ...(kernel === undefined
        ? {}
        : {
            kernel: {
              kernel: readFileSync(kernel.kernel),
              ...(kernel.initrd === undefined ? {} : { initrd: readFileSync(kernel.initrd) }),
              ...(kernel.append === undefined ? {} : { append: kernel.append }),
            },
          }),
    }),
  );
  const options = Object.entries(kernel ?? {}).flatMap(([name, value]) => [`--${name}`, value]);
  const want = theirs(
    ...['--ovmf', path, '--vcpus', String(vcpus), '--vcpu-type', type],
    ...['--guest-features', `0x${features.toString(16)}`, '--vmm-type', peerVmm[vmm], ...options],
  );
  expect(Buffer.from(ours).toString('hex')).toBe(want);
}

describe.skipIf(missing !== undefined)('sev-snp-measure gives the same digest', () => {
  const rows: Row[] = (['qemu', 'ec2', 'gce'] as const).flatMap((vmm) => [
    { vmm, vcpus: 1, type: 'EPYC-Milan', features: 1 },
    { vmm, vcpus: 2, type: 'EPYC-Genoa-v1', features: 0x21 },
    { vmm, vcpus: 64, type: 'EPYC-Turin', features: 1 },
  ]);
  const name = ({ vmm, vcpus, type, features }: Row) => ({ vmm, vcpus, type, features });

  it.skipIf(noOvmf !== undefined).each(rows.map(name))(
    'for OVMF.fd: $vmm, $vcpus vCPUs, $type, features $features',
    (row) => compare(OVMF, row),
  );

  it.skipIf(noOvmf !== undefined).each(Object.keys(VCPU_TYPES))('for OVMF.fd and vCPU type %s', (type) =>
    compare(OVMF, { vmm: 'qemu', vcpus: 1, type, features: 1 }),
  );

  const OURS = ['snp-hello.fd', 'attester.fd', 'snp-smp.fd'];
  it.each(OURS.flatMap((image) => rows.map((row) => ({ image, ...row }))))(
    'for our $image: $vmm, $vcpus vCPUs, $type',
    ({ image, ...row }) => compare(ours(image), row),
  );

  it.each(rows.map(name))('for a synthetic image: $vmm, $vcpus vCPUs, $type', async (row) => {
    const path = join(folder, 'synthetic.fd');
    writeFileSync(path, firmwareImage());
    await compare(path, row);
  });

  it('with kernel, initial RAM disk and command line', async () => {
    const path = join(folder, 'kernel.fd');
    writeFileSync(path, firmwareImage());
    const [kernel, initrd] = [join(folder, 'kernel'), join(folder, 'initrd')];
    writeFileSync(kernel, 'a kernel');
    writeFileSync(initrd, 'a disk');
    const row: Row = { vmm: 'qemu', vcpus: 2, type: 'EPYC-Milan', features: 1 };
    await compare(path, row, { kernel });
    await compare(path, row, { kernel, initrd });
    await compare(path, row, { kernel, initrd, append: 'console=ttyS0 quiet' });
    await compare(ours('attester.fd'), row, { kernel, initrd, append: 'console=ttyS0 quiet' });
  });
});
