/** The library example of README.md runs as it stands there. */
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { build } from 'esbuild';
import { afterEach, expect, it, vi } from 'vitest';

const root = new URL('..', import.meta.url).pathname;
afterEach(() => vi.restoreAllMocks());

it('the example in README.md runs and prints what happened', async () => {
  const [, example] = /```ts\n([\s\S]*?)```/.exec(readFileSync(join(root, 'README.md'), 'utf8'))!;
  const outfile = join(root, `node_modules/.readme-${process.pid}.mjs`);
  await build({
    stdin: { contents: example!, loader: 'ts', resolveDir: root },
    outfile,
    bundle: true,
    platform: 'node',
    target: 'node20',
    format: 'esm',
    alias: { softcvm: join(root, 'src/index.ts') },
    external: ['iced-x86'],
  });
  let console_ = '';
  const lines: string[] = [];
  vi.spyOn(process.stdout, 'write').mockImplementation((chunk) => {
    console_ += typeof chunk === 'string' ? chunk : Buffer.from(chunk).toString();
    return true;
  });
  vi.spyOn(console, 'log').mockImplementation((...values) => {
    lines.push(values.join(' '));
  });
  try {
    await import(pathToFileURL(outfile).href);
  } finally {
    vi.restoreAllMocks();
    rmSync(outfile);
  }
  expect(console_).toMatch(/conversions: all as they should be\n$/);
  expect(lines[0]).toMatch(/^debug-exit 0 \d+$/);
  // 64 MiB are 16384 pages; five ranges of 1, 512, 1, 512 and 1 pages, out and back
  expect(lines[1]).toBe('16384 private pages, 2054 conversions');
  expect(lines[2]!.split('\n')).toHaveLength(10);
  expect(lines[2]).toMatch(
    /^convert to shared: 1 pages at gfn 4096\nconvert to private: 1 pages at gfn 4096\n/,
  );
});
