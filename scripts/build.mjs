// dist: declarations by tsc, the library and the CLI by esbuild, and nothing that an older build left there. What is older than this build goes last, so that
// whoever runs dist meanwhile finds all files of one build or the other.
import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, rmdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { bundleCli } from './bundle-cli.mjs';
import { bundleLibrary } from './bundle-library.mjs';

const root = new URL('..', import.meta.url).pathname;
const dist = join(root, 'dist');
/** A file system's clock may be late by a tick. */
const CLOCK_MS = 20;
const start = Date.now() - CLOCK_MS;

const tsc = join(root, 'node_modules/typescript/bin/tsc');
const { status } = spawnSync(process.execPath, [tsc, '-p', join(root, 'tsconfig.build.json')], {
  stdio: 'inherit',
});
if (status !== 0) process.exit(status ?? 1);
mkdirSync(dist, { recursive: true });
await bundleLibrary(root, dist);
await bundleCli(root, dist);
removeOlder(dist);

/** Removes from `folder` what was last written before this build, and folders that hold nothing else. */
function removeOlder(folder) {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) {
      removeOlder(path);
      if (readdirSync(path).length === 0) rmdirSync(path);
    } else if (statSync(path).mtimeMs < start) rmSync(path, { force: true });
  }
}
