/**
 * go-sev-guest verifies our reports with our root given to it, and does not with AMD's. Its latest release, v0.15.0, refuses the fmcSPL extension of
 * any Turin's VCEK, AMD's as well, so Turin is not asked.
 */
import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { evidenceOf, signedReport } from '../attest/evidence.ts';

const folder = mkdtempSync(join(tmpdir(), 'softcvm-go-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const program = join(folder, 'verify');

/** Builds the verifier; says why it could not. */
function build(): string | undefined {
  if (spawnSync('go', ['version']).status !== 0) return 'go is not installed';
  copyFileSync(new URL('./go-sev-guest/main.go', import.meta.url), join(folder, 'main.go'));
  writeFileSync(
    join(folder, 'go.mod'),
    'module verify\n\ngo 1.21\n\nrequire github.com/google/go-sev-guest v0.15.0\n',
  );
  const env = { ...process.env, GOFLAGS: '-mod=mod' };
  const { status, stderr } = spawnSync('go', ['build', '-o', program, '.'], {
    cwd: folder,
    env,
    encoding: 'utf8',
  });
  return status === 0
    ? undefined
    : `go-sev-guest v0.15.0 could not be built: ${stderr.trim().split('\n').at(-1)}`;
}
const missing = build();
if (missing !== undefined) console.log(`skipped: ${missing}`);

describe.skipIf(missing !== undefined)('go-sev-guest', () => {
  describe.each(['milan', 'genoa'] as const)('on evidence of a %s', async (generation) => {
    const { chip, options } = await evidenceOf(generation);
    const files = ['vcek', 'ask', 'ark'].map((name, index) => {
      const path = join(folder, `${generation}-${name}.der`);
      writeFileSync(path, options.certificates[index]!);
      return path;
    });
    const run = (report: Uint8Array, ...more: string[]): string => {
      const path = join(folder, `${generation}.report`);
      writeFileSync(path, report);
      return spawnSync(program, [chip.personality.product, path, ...files, ...more], {
        encoding: 'utf8',
      }).stdout.trim();
    };

    it('verifies versions 2 and 3 with our root', () => {
      expect(run(signedReport(chip))).toBe('verified');
      expect(run(signedReport(chip, { version: 2, cpuidFamily: 0, cpuidModel: 0, cpuidStepping: 0 }))).toBe(
        'verified',
      );
    });

    it('does not verify with AMD’s', () => {
      expect(run(signedReport(chip), 'amd')).toContain('signed by unknown authority');
    });

    it('does not verify a changed report', () => {
      const report = signedReport(chip);
      report[0x90]! ^= 1;
      expect(run(report)).toContain('signature');
    });
  });
});
