/** The guests' ELF files in the tree are what their sources give. Skips, and says why, without gcc and make. */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';

const guests = new URL('../../guests/', import.meta.url).pathname;
/** The compiler that built the files in the tree; another one may rightly give other bytes. */
const BUILT_BY = '12.2.0';

const gcc = spawnSync('gcc', ['-dumpfullversion'], { encoding: 'utf8' });
const make = spawnSync('make', ['--version'], { encoding: 'utf8' });
const version = gcc.stdout?.trim();
const missing =
  gcc.status !== 0 ? 'gcc is not installed' : make.status !== 0 ? 'make is not installed' : undefined;
const bytesMissing =
  missing ?? (version === BUILT_BY ? undefined : `gcc is ${version}, the files come from ${BUILT_BY}`);
if (bytesMissing !== undefined) console.log(`skipped: ${bytesMissing}`);

const prebuilt = readdirSync(join(guests, 'prebuilt'));

describe.skipIf(missing !== undefined)('guests', () => {
  const out = mkdtempSync(join(tmpdir(), 'softcvm-guests-'));
  afterAll(() => rmSync(out, { recursive: true }));

  it('build without a warning', () => {
    const { status, stderr } = spawnSync('make', ['-s', '-C', guests, `OUT=${out}`], { encoding: 'utf8' });
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    expect(readdirSync(out).sort()).toEqual([...prebuilt].sort());
  });

  it.skipIf(bytesMissing !== undefined)('are byte for byte what the tree holds', () => {
    const different = prebuilt.filter(
      (name) => !readFileSync(join(out, name)).equals(readFileSync(join(guests, 'prebuilt', name))),
    );
    expect(different).toEqual([]);
  });

  it('name no path of the machine that built them', () => {
    for (const name of prebuilt) {
      const strings = execFileSync('strings', ['-n', '4', join(guests, 'prebuilt', name)], {
        encoding: 'utf8',
      });
      expect(strings.split('\n').filter((line) => /\/(work|home|tmp|root)\//.test(line))).toEqual([]);
    }
  });
});
