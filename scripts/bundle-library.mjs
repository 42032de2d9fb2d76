// The library's entries as bundles: what two of them use is a chunk that both import, so that a class is one class. In modules of their own, constants of the hot
// loop are looked up in other modules (an exit to the VMM takes 1.2 times as long).
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { build } from 'esbuild';
import { keepConst } from './keep-const.mjs';

/** Writes package.json's exports below `dist`, and their chunks. */
export async function bundleLibrary(root, dist) {
  const { exports, optionalDependencies, dependencies } = JSON.parse(
    readFileSync(join(root, 'package.json'), 'utf8'),
  );
  const entries = Object.values(exports).map((entry) => entry.default);
  const { outputFiles } = await build({
    entryPoints: entries.map((path) => join(root, path.replace('./dist/', 'src/').replace(/\.js$/, '.ts'))),
    outbase: join(root, 'src'),
    outdir: dist,
    write: false,
    bundle: true,
    splitting: true,
    platform: 'node',
    target: 'node20',
    format: 'esm',
    legalComments: 'none',
    external: Object.keys({ ...dependencies, ...optionalDependencies }),
    logLevel: 'warning',
  });
  // Chunks before who imports them.
  const isChunk = ({ path }) => basename(path).startsWith('chunk-');
  for (const { path, text } of outputFiles.sort((a, b) => Number(isChunk(b)) - Number(isChunk(a)))) {
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, keepConst(text));
  }
}
