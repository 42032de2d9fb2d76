// Writes what is generated at build time: the interpreter's WASM module (src/hardware/cpu/emit/generate.ts).
// It skips the work when no source of the generator is newer than its output.
import { existsSync, readdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { build } from 'esbuild';

const root = new URL('..', import.meta.url).pathname;
const cpu = join(root, 'src/hardware/cpu');
const entry = join(cpu, 'emit/generate.ts');
const output = join(cpu, 'interpreter.generated.ts');

function newestSource(folder) {
  let newest = 0;
  for (const item of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, item.name);
    if (item.isDirectory()) newest = Math.max(newest, newestSource(path));
    else if (!item.name.endsWith('.generated.ts')) newest = Math.max(newest, statSync(path).mtimeMs);
  }
  return newest;
}

if (existsSync(entry) && (!existsSync(output) || statSync(output).mtimeMs < newestSource(cpu))) {
  const script = join(root, `node_modules/.generate-${process.pid}.mjs`);
  await build({
    entryPoints: [entry],
    outfile: script,
    bundle: true,
    platform: 'node',
    format: 'esm',
    packages: 'external',
  });
  const { generate } = await import(pathToFileURL(script).href);
  await generate(output);
  rmSync(script);
}
