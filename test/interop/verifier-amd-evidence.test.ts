/**
 * `softcvm verify` as a user has it, on evidence of AMD's own (../shared/data/evidence, where it lies beside the repository) and on ours: each is
 * accepted with its own root alone, offline. What the library says of every byte is in amd-evidence.test.ts.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { writePem } from '../../src/abi/pem.ts';
import { evidenceFor } from './peers/evidence.ts';
import { run } from './peers/install.ts';

const amd = new URL('../../../shared/data/evidence/', import.meta.url).pathname;
const missing = existsSync(join(amd, 'milan-report.hex'))
  ? undefined
  : 'no evidence of AMD’s beside the repository';
if (missing !== undefined) console.log(`skipped: ${missing}`);

const folder = mkdtempSync(join(tmpdir(), 'softcvm-verify-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const file = (name: string, bytes: Uint8Array | string): string => {
  const path = join(folder, name);
  writeFileSync(path, bytes);
  return path;
};

interface Verdict {
  readonly status: number | undefined;
  readonly ok: boolean;
  readonly software: boolean;
  /** Names of the checks that failed. */
  readonly failures: readonly string[];
}

async function verify(report: string, certs: readonly string[], roots: string): Promise<Verdict> {
  const cli = new URL('../../dist/cli.js', import.meta.url).pathname;
  const { status, output } = await run(process.execPath, [
    ...[cli, 'verify', report, '--certs', ...certs, '--roots', roots],
    ...['--at', '2026-11-01T00:00:00Z', '--json'],
  ]);
  const { ok, software, checks } = JSON.parse(output) as {
    ok: boolean;
    software: boolean;
    checks: { ok: boolean; name: string }[];
  };
  return { status, ok, software, failures: checks.filter((one) => !one.ok).map(({ name }) => name) };
}

describe.skipIf(missing !== undefined)('softcvm verify', async () => {
  const ours = await evidenceFor({ generation: 'milan', key: 'VCEK', version: 2 });
  const ourCerts = [
    file('vcek.pem', writePem('CERTIFICATE', ours.leaf)),
    file('ask.pem', writePem('CERTIFICATE', ours.intermediate)),
  ];
  const ourRoot = file('ark.pem', writePem('CERTIFICATE', ours.ark));
  const ourReport = file('report', ours.report);
  const amdChain = join(amd, 'milan-vcek-chain.pem');
  const amdCerts = [join(amd, 'milan-vcek.der'), amdChain];
  const amdReport = join(amd, 'milan-report.hex');

  it('accepts AMD’s report with AMD’s root, and ours with ours', async () => {
    expect(await verify(amdReport, amdCerts, amdChain)).toEqual({
      status: 0,
      ok: true,
      software: false,
      failures: [],
    });
    expect(await verify(ourReport, ourCerts, ourRoot)).toEqual({
      status: 0,
      ok: true,
      software: true,
      failures: [],
    });
  });

  it('refuses AMD’s report with our root, and ours with AMD’s', async () => {
    const theirs = await verify(amdReport, amdCerts, ourRoot);
    expect(theirs).toMatchObject({ status: 1, ok: false, failures: ['ARK.trusted'] });
    const wrong = await verify(ourReport, ourCerts, amdChain);
    expect(wrong).toMatchObject({ status: 1, ok: false });
    expect(wrong.failures).toContain('ASK.signature');
  });

  it('refuses AMD’s report with a byte changed', async () => {
    const report = Buffer.from(readFileSync(amdReport, 'utf8').replace(/\s+/g, ''), 'hex');
    for (const at of [0x00, 0x50, 0x90, 0x180, 0x1a0, 0x29f, 0x2a0, 0x2e8]) {
      const changed = Buffer.from(report);
      changed[at]! ^= 1;
      const verdict = await verify(file('changed', changed), amdCerts, amdChain);
      expect(verdict, `byte ${at}`).toMatchObject({ status: 1, ok: false });
      expect(verdict.failures, `byte ${at}`).toContain('report.signature');
    }
  });
});
