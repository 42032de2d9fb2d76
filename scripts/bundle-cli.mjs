// Makes the CLI start fast: one minified script in place of 200 modules (100 ms), with the compiled code of what `softcvm run hello`
// needs beside it (V8's code cache, another 60 ms). dist/cli.js loads both; a cache of another Node is ignored.
import { spawnSync } from 'node:child_process';
import { chmodSync, copyFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { build, transform } from 'esbuild';
import { keepConst } from './keep-const.mjs';

/** The decoder's loader, src/hardware/cpu/decode/iced.ts, in the form that suits a CommonJS bundle. */
const loadDecoder = {
  name: 'load-decoder',
  setup(bundle) {
    bundle.onLoad({ filter: /\/decode\/iced\.ts$/ }, () => ({
      contents: "let loaded; export const iced = () => (loaded ??= require('iced-x86'));",
    }));
  },
};
/** Parts of Node that take milliseconds to load, and that `softcvm run hello` does not need: loaded when something of them is. */
const loadWhenUsed = {
  name: 'load-when-used',
  setup(bundle) {
    bundle.onResolve(
      { filter: /^node:(child_process|crypto|http|https|worker_threads)$/ },
      ({ path, namespace }) =>
        namespace === 'when-used' ? { path, external: true } : { path, namespace: 'when-used' },
    );
    bundle.onLoad({ filter: /.*/, namespace: 'when-used' }, async ({ path }) => {
      const names = Object.keys(await import(path)).filter((name) => name !== 'default');
      return {
        contents: `let loaded;
          for (const name of ${JSON.stringify(names)})
            Object.defineProperty(exports, name, { enumerable: true, get: () => (loaded ??= require('${path}'))[name] });`,
      };
    });
  },
};
const decoder = dirname(createRequire(import.meta.url).resolve('iced-x86'));

/** Writes cli.js and what it loads to `dist`. */
export async function bundleCli(root, dist) {
  const cli = await build({
    entryPoints: [join(root, 'src/cli/main.ts')],
    write: false,
    bundle: true,
    platform: 'node',
    target: 'node20',
    format: 'cjs',
    legalComments: 'none',
    external: ['iced-x86'],
    plugins: [loadDecoder, loadWhenUsed],
    define: { 'import.meta.url': '__url' },
    banner: { js: "const __url = require('node:url').pathToFileURL(__filename).href;" },
    logLevel: 'warning',
  });
  const minified = await transform(keepConst(cli.outputFiles[0].text), {
    minifyWhitespace: true,
    minifySyntax: true,
    target: 'node20',
  });
  writeFileSync(join(dist, 'cli-main.cjs'), minified.code);
  // The decoder stays a file of its own: it is needed only when a guest runs.
  await build({
    entryPoints: [join(decoder, 'iced_x86.js')],
    outfile: join(dist, 'iced-x86.cjs'),
    platform: 'node',
    format: 'cjs',
    minify: true,
    logLevel: 'warning',
  });
  copyFileSync(join(decoder, 'iced_x86_bg.wasm'), join(dist, 'iced_x86_bg.wasm'));
  copyFileSync(join(decoder, 'LICENSE.txt'), join(dist, 'iced-x86.LICENSE.txt'));

  copyFileSync(join(root, 'scripts/start-cli.mjs'), join(dist, 'cli.js'));
  chmodSync(join(dist, 'cli.js'), 0o755);
  rmSync(join(dist, 'cli-main.cache'), { force: true });
  spawnSync(process.execPath, [join(dist, 'cli.js'), 'run', 'hello'], {
    env: { ...process.env, SOFTCVM_WRITE_CODE_CACHE: '1' },
    stdio: ['ignore', 'ignore', 'inherit'],
  });
}
