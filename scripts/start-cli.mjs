#!/usr/bin/env node
// dist/cli.js: runs cli-main.cjs with its code cache (scripts/bundle-cli.mjs). What Node has is required: imports of it are slower.
import { createRequire } from 'node:module';

const own = createRequire(import.meta.url);
const { readFileSync, writeFileSync } = own('node:fs');
const { fileURLToPath } = own('node:url');
const { setFlagsFromString } = own('node:v8');
const { Script } = own('node:vm');

// V8 would optimise the interpreter after some 40 instructions of a guest, and a process cannot exit until that is done (70 ms). This
// makes it 20,000, or a millisecond. Before any code is loaded: other flags, another code cache.
setFlagsFromString('--wasm-tiering-budget=1000000000');

const here = fileURLToPath(new URL('.', import.meta.url));

/** Compiles dist/NAME.cjs with what NAME.cache remembers, and runs it as CommonJS does. */
function load(name) {
  const filename = `${here}${name}.cjs`;
  let cachedData;
  try {
    cachedData = readFileSync(`${here}${name}.cache`);
  } catch {}
  // esbuild writes ASCII.
  const source = readFileSync(filename, 'latin1');
  const script = new Script(`(function (exports, require, module, __filename, __dirname) {${source}\n})`, {
    filename,
    ...(cachedData === undefined ? {} : { cachedData }),
  });
  if (process.env.SOFTCVM_WRITE_CODE_CACHE) {
    process.on('exit', () => writeFileSync(`${here}${name}.cache`, script.createCachedData()));
  }
  const module = { exports: {} };
  const require = (id) => (id === 'iced-x86' ? load('iced-x86') : own(id));
  script.runInThisContext()(module.exports, require, module, filename, here);
  return module.exports;
}

load('cli-main');
