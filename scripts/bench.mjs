// npm run bench [-- NAME...] [--json]: runs all benchmarks or those named. A file of bench/ is named after its benchmark
// (cpu-loops.ts: cpu.loops) and exports `bench(): Promise<Row>`, Row = { value, unit, bound, ratio, note }; `ratio` is always
// "bigger is better" against a bound or a peer taken in the same run. Bundled as the CLI is, and each in a process of its own: what V8 learnt from one
// must not slow another.
import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { build } from 'esbuild';
import { keepConst } from './keep-const.mjs';

const root = new URL('..', import.meta.url).pathname;
const available = readdirSync(join(root, 'bench'))
  .filter((file) => file.endsWith('.ts'))
  .map((file) => ({ name: file.replace(/\.ts$/, '').replace('-', '.'), file }));

const asJson = process.argv.includes('--json');
const names = process.argv.slice(2).filter((argument) => argument !== '--json');
const unknown = names.filter((name) => !available.some((bench) => bench.name === name));
if (unknown.length > 0) {
  console.error(`bench: got ${unknown.join(', ')}, want ${available.map(({ name }) => name).join(', ')}`);
  process.exit(2);
}

const out = join(root, `node_modules/.bench-${process.pid}`);
mkdirSync(out);
const rows = [];
try {
  for (const { name, file } of available) {
    if (names.length > 0 && !names.includes(name)) continue;
    if (!asJson) process.stderr.write(`${name} ...\n`);
    const outfile = join(out, file.replace(/\.ts$/, '.mjs'));
    const bundle = await build({
      entryPoints: [join(root, 'bench', file)],
      write: false,
      bundle: true,
      platform: 'node',
      target: 'node20',
      format: 'esm',
      packages: 'external',
      logLevel: 'warning',
    });
    writeFileSync(outfile, keepConst(bundle.outputFiles[0].text));
    const script = `const { bench } = await import('${pathToFileURL(outfile).href}'); console.log(JSON.stringify(await bench()));`;
    const options = { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] };
    const { status, stdout } = spawnSync(process.execPath, ['--input-type=module', '-e', script], options);
    if (status !== 0) throw new Error(`bench ${name}: exit status ${status}`);
    rows.push({ name, ...JSON.parse(stdout.trimEnd().split('\n').at(-1)) });
  }
} finally {
  rmSync(out, { recursive: true });
}

const round = (value) => (Number.isFinite(value) ? Number(value.toPrecision(4)) : null);
const rounded = rows.map((row) => ({
  ...row,
  value: round(row.value),
  bound: round(row.bound),
  ratio: round(row.ratio),
}));
if (asJson) console.log(JSON.stringify(rounded));
else {
  for (const { name, value, unit, bound, ratio, note } of rounded) {
    console.log(`${name}: ${value} ${unit}, bound ${bound ?? 'none'}, ratio ${ratio ?? 'none'}\n    ${note}`);
  }
}
