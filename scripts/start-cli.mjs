#!/usr/bin/env node
// dist/cli.js: runs cli-main.cjs with its code cache (scripts/bundle.mjs).
import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Script } from 'node:vm';

const here = dirname(fileURLToPath(import.meta.url));
const own = createRequire(import.meta.url);

/** Compiles dist/NAME.cjs with what NAME.cache remembers, and runs it as CommonJS does. */
function load(name) {
  const filename = `${here}/${name}.cjs`;
  let cachedData;
  try {
    cachedData = readFileSync(`${here}/${name}.cache`);
  } catch {}
  const source = readFileSync(filename, 'utf8');
  const script = new Script(`(function (exports, require, module, __filename, __dirname) {${source}\n})`, {
    filename,
    ...(cachedData === undefined ? {} : { cachedData }),
  });
  if (process.env.SOFTCVM_WRITE_CODE_CACHE) {
    process.on('exit', () => writeFileSync(`${here}/${name}.cache`, script.createCachedData()));
  }
  const module = { exports: {} };
  const require = (id) => (id === 'iced-x86' ? load('iced-x86') : own(id));
  script.runInThisContext()(module.exports, require, module, filename, here);
  return module.exports;
}

load('cli-main');
