/**
 * snpguest (virtee) judges what a guest of ours gets, with our root in its directory of certificates; launch digests, ID blocks and digests of keys are
 * computed by it and by us.
 *
 * Its limits, in 0.11.0: it does not compare a report's chip id with the certificate's (a subject of SEV-VCEK counts as an ASK's for it), reads no
 * revocation list, and has to be told the generation of a report of version 2. It fetches from AMD's server alone, so ours is not asked. It expects 0 in
 * RDX of a vCPU that EC2 starts, where sev-snp-measure and we have 0x600, and knows no GCE: digests are compared for QEMU.
 */
import { generateKeyPairSync } from 'node:crypto';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { writePem } from '../../src/abi/pem.ts';
import { firmwareImage } from '../attest/firmware-image.ts';
import { CASES, type Case, evidenceFor, type PeerEvidence, peerAuthority } from './peers/evidence.ts';
import { cratePeer, type Outcome, run } from './peers/install.ts';
import { runAttester, softcvm } from './peers/real-run.ts';

const peer = await cratePeer('snpguest', '0.11.0');
if (peer.missing !== undefined) console.log(`skipped: ${peer.missing}`);

const folder = mkdtempSync(join(tmpdir(), 'softcvm-snpguest-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const snpguest = (...args: readonly string[]): Promise<Outcome> => run(peer.program!, args, { cwd: folder });
const hex = (bytes: Uint8Array): string => `0x${Buffer.from(bytes).toString('hex')}`;

/** A directory of certificates in the peer's form: name and PEM or DER. */
function directory(certificates: Record<string, Uint8Array | string>): string {
  const path = mkdtempSync(join(folder, 'certs-'));
  for (const [name, bytes] of Object.entries(certificates)) {
    writeFileSync(join(path, name), typeof bytes === 'string' ? bytes : writePem('CERTIFICATE', bytes));
  }
  return path;
}

const names = (key: Case['key']): { leaf: string; intermediate: string } =>
  key === 'VCEK'
    ? { leaf: 'vcek.pem', intermediate: 'ask.pem' }
    : { leaf: 'vlek.pem', intermediate: 'asvk.pem' };

function chainOf(evidence: PeerEvidence, changed: Partial<PeerEvidence> = {}): string {
  const { leaf, intermediate } = names(evidence.key);
  const all = { ...evidence, ...changed };
  return directory({ [leaf]: all.leaf, [intermediate]: all.intermediate, 'ark.pem': all.ark });
}

async function verifyReport(
  certs: string,
  report: Uint8Array,
  ...options: readonly string[]
): Promise<Outcome> {
  const path = join(certs, 'report.bin');
  writeFileSync(path, report);
  return snpguest('verify', 'attestation', certs, path, ...options);
}

describe.skipIf(peer.missing !== undefined)('snpguest', () => {
  describe.each(CASES)(
    'on a report of a $generation, version $version, signed by its $key',
    async (which) => {
      const evidence = await evidenceFor(which);
      const { report, key, generation, version } = evidence;
      const model = ['--processor-model', generation];
      const middle = key === 'VCEK' ? 'ASK' : 'ASVK';

      it('verifies the chain up to our root', async () => {
        expect(await snpguest('verify', 'certs', chainOf(evidence))).toEqual({
          status: 0,
          output: [
            'The AMD ARK was self-signed!',
            `The AMD ${middle} was signed by the AMD ARK!`,
            `The ${key} was signed by the AMD ${middle}!`,
          ].join('\n'),
          errors: '',
        });
      });

      it('verifies the report: levels, signature, and what it says', async () => {
        const { status, output, errors } = await verifyReport(
          chainOf(evidence),
          report,
          ...(version === 2 ? model : []),
          ...['--measurement', hex(report.subarray(0x90, 0xc0))],
          ...['--host-data', hex(evidence.hostData), '--report-data', hex(evidence.reportData)],
        );
        expect({ status, errors }).toEqual({ status: 0, errors: '' });
        expect(output.split('\n')).toEqual([
          'Reported TCB Boot Loader from certificate matches the attestation report.',
          'Reported TCB TEE from certificate matches the attestation report.',
          'Reported TCB SNP from certificate matches the attestation report.',
          'Reported TCB Microcode from certificate matches the attestation report.',
          ...(generation === 'turin'
            ? ['Reported TCB FMC from certificate matches the attestation report.']
            : []),
          'VEK signed the Attestation Report!',
          'Measurement verified successfully.',
          'Host Data verified successfully.',
          'Report Data verified successfully.',
        ]);
      });

      it('does not verify the report with a bit of the signed part or of the signature changed', async () => {
        const certs = chainOf(evidence);
        // Report data, measurement, host data, reported TCB, the chip's id, committed TCB; R and S.
        for (const at of [0x50, 0x90, 0xc0, 0x180, 0x187, 0x1a0, 0x1e7, 0x2a0, 0x2e8]) {
          const changed = report.slice();
          changed[at]! ^= 1;
          expect((await verifyReport(certs, changed, ...model)).status, `byte ${at}`).not.toBe(0);
        }
      });

      it('does not verify other levels than the certificate’s', async () => {
        const authority = peerAuthority();
        const chip = authority.chip(generation);
        const tcb = chip.tcbOf({ snp: 3 });
        const leaf =
          key === 'VCEK' ? await authority.vcek(chip, tcb) : await authority.vlek(evidence.product, tcb);
        const { status, errors } = await verifyReport(chainOf(evidence, { leaf }), report, ...model);
        expect(status).not.toBe(0);
        expect(errors).toContain('Report TCB SNP and Certificate SNP mismatch');
      });

      it('does not verify a changed certificate, nor one under another issuer', async () => {
        for (const part of ['leaf', 'intermediate', 'ark'] as const) {
          const changed = evidence[part].slice();
          changed[changed.length - 1]! ^= 1;
          expect(
            (await snpguest('verify', 'certs', chainOf(evidence, { [part]: changed }))).status,
            part,
          ).not.toBe(0);
        }
        const other = await evidenceFor({ ...which, key: key === 'VCEK' ? 'VLEK' : 'VCEK' });
        const { status, errors } = await snpguest(
          ...['verify', 'certs', chainOf(evidence, { intermediate: other.intermediate })],
        );
        expect(status).not.toBe(0);
        expect(errors).toContain(`The ${key} was not signed by the AMD ${middle}!`);
      });
    },
  );

  it('does not take a report of version 2 without a generation', async () => {
    const evidence = await evidenceFor({ generation: 'milan', key: 'VCEK', version: 2 });
    const { status, errors } = await verifyReport(chainOf(evidence), evidence.report);
    expect(status).not.toBe(0);
    expect(errors).toContain('could be either Milan or Genoa');
  });

  it.each(['Milan', 'Genoa', 'Turin'])('verifies what a guest on a %s printed', async (product) => {
    const { report, certificates, measurement, guestData } = await runAttester(product, 7);
    expect([...certificates.keys()].sort()).toEqual(['ARK', 'ASK', 'CRL', 'VCEK']);
    const certs = directory({
      'ark.pem': certificates.get('ARK')!,
      'ask.pem': certificates.get('ASK')!,
      'vcek.pem': certificates.get('VCEK')!,
    });
    expect((await snpguest('verify', 'certs', certs)).status).toBe(0);
    const expected = ['--measurement', `0x${measurement}`, '--report-data', `0x${guestData}`];
    const model = ['--processor-model', product];
    expect(await verifyReport(certs, report, ...model, ...expected)).toMatchObject({ status: 0, errors: '' });
    const otherNonce = ['--measurement', `0x${measurement}`, '--report-data', `0x${'00'.repeat(64)}`];
    expect((await verifyReport(certs, report, ...model, ...otherNonce)).errors).toContain('did not match');
  });

  describe('computes the launch digest', () => {
    const ovmf = '/usr/share/ovmf/OVMF.fd';
    const noOvmf = existsSync(ovmf) ? undefined : `${ovmf} is missing (Debian: ovmf)`;
    if (noOvmf !== undefined) console.log(`skipped: ${noOvmf}`);
    const compare = async (...args: readonly string[]): Promise<void> => {
      const ours = await softcvm('measure', '--mode', 'snp', ...args);
      expect(await snpguest('generate', 'measurement', ...args)).toEqual({
        status: 0,
        output: `0x${ours}`,
        errors: '',
      });
    };
    const image = (path: string, vcpus: number, type: string, features: string): readonly string[] => [
      ...['--ovmf', path, '--vcpus', String(vcpus), '--vcpu-type', type],
      ...['--guest-features', features, '--vmm-type', 'qemu'],
    ];
    const rows = [
      [1, 'EPYC-Milan', '0x1'],
      [2, 'EPYC-Genoa-v1', '0x21'],
      [17, 'EPYC-Turin', '0x1'],
      [4, 'EPYC-Rome-v3', '0x3'],
    ] as const;

    it.skipIf(noOvmf !== undefined).each(rows)('of OVMF.fd as we do: %i vCPUs, %s, features %s', (...row) =>
      compare(...image(ovmf, ...row)),
    );

    it.each(rows)('of our guest as a firmware image as we do: %i vCPUs, %s, features %s', (...row) =>
      compare(...image(new URL('../../guests/prebuilt/attester.fd', import.meta.url).pathname, ...row)),
    );

    it('with kernel, initial RAM disk and command line as we do', async () => {
      const path = join(folder, 'firmware.fd');
      writeFileSync(path, firmwareImage());
      const [kernel, initrd] = [join(folder, 'kernel'), join(folder, 'initrd')];
      writeFileSync(kernel, 'a kernel');
      writeFileSync(initrd, 'a disk');
      const args = [...image(path, 2, 'EPYC-Milan', '0x1'), '--kernel', kernel];
      await compare(...args);
      await compare(...args, '--initrd', initrd, '--append', 'console=ttyS0 quiet');
    });
  });

  describe('signs an ID block', () => {
    const key = (name: string): string => {
      const path = join(folder, `${name}.pem`);
      const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-384' });
      writeFileSync(path, privateKey.export({ format: 'pem', type: 'pkcs8' }));
      return path;
    };
    const [idKey, authorKey] = [key('id'), key('author')];
    const idBlock = async (digest: string, policy: string): Promise<readonly string[]> => {
      const files = [join(folder, 'id-block'), join(folder, 'id-auth')] as const;
      const { status } = await snpguest(
        ...['generate', 'id-block', idKey, authorKey, `0x${digest}`, '--svn', '7', '--policy', policy],
        ...['--family-id', 'aa'.repeat(16), '--image-id', 'bb'.repeat(16)],
        ...['--id-file', files[0], '--auth-file', files[1]],
      );
      expect(status).toBe(0);
      return ['--policy', '0x30000', '--id-block', files[0], '--id-auth', files[1], '--author-key'];
    };
    const digestOf = async (path: string): Promise<string> =>
      (await snpguest('generate', 'key-digest', path)).output.replace('0x', '');

    it('that our firmware accepts and reports show', async () => {
      const { measurement } = await runAttester('Milan', 7);
      const options = await idBlock(measurement, '0x30000');
      const { report } = await runAttester('Milan', 7, options);
      const field = (at: number, size: number): string => Buffer.from(report).toString('hex', at, at + size);
      expect(field(0x04, 4)).toBe('07000000');
      expect(field(0x10, 16)).toBe('aa'.repeat(16));
      expect(field(0x20, 16)).toBe('bb'.repeat(16));
      expect(field(0x48, 4)).toBe('01000000');
      expect(field(0xe0, 48)).toBe(await digestOf(idKey));
      expect(field(0x110, 48)).toBe(await digestOf(authorKey));
    });

    it('of another digest or policy, which our firmware refuses', async () => {
      const other = await idBlock('11'.repeat(48), '0x30000');
      await expect(runAttester('Milan', 7, other)).rejects.toThrow('BAD_MEASUREMENT');
      const { measurement } = await runAttester('Milan', 7);
      const policy = await idBlock(measurement, '0xb0000');
      await expect(runAttester('Milan', 7, policy)).rejects.toThrow('POLICY_FAILURE');
    });
  });
});
