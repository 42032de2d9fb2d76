/** The package as a stranger has it: packed, unpacked elsewhere, its types read by a strict compiler without a browser's, and run. */
import { execFileSync, spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';

const root = new URL('../../', import.meta.url).pathname;
const folder = mkdtempSync(join(tmpdir(), 'softcvm-packed-'));
afterAll(() => rmSync(folder, { recursive: true }));

const CONSUMER = `
import { type Chip, createHost, type Host, LinuxError, MiB, readImage, type RunReport, type TraceEvent } from 'softcvm';
import { parseReport, verifyReport } from 'softcvm/attest';
import { createKernel, type Kernel, LinuxError as KvmError, Vm } from 'softcvm/kvm';

const events: TraceEvent[] = [];
const host: Host = createHost({ memory: 64 * MiB, seed: 7 });
host.trace.listen((event) => events.push(event));
const vm = host.createVm({ type: 'sw-protected', memory: 8 * MiB, ...(await readImage('hello')) });
const report: RunReport = await vm.run({ timeoutMs: 60_000 });
host.close();
const kernel: Kernel = createKernel({ memory: 16 * MiB });
const apiVersion: number = kernel.newProcess('vmm').openKvm().getApiVersion();
kernel.close();
const second: Host = createHost({ memory: 64 * MiB });
const shared: boolean = LinuxError === KvmError && second.process.openKvm().createVm(0) instanceof Vm;
second.close();
const chip: Chip | undefined = undefined;
console.log(report.exit.code, events.length > 0, apiVersion, typeof parseReport, typeof verifyReport, shared, chip);
`;

const OPTIONS = {
  compilerOptions: {
    ...{ strict: true, target: 'es2022', lib: ['es2022'], module: 'nodenext', types: ['node'] },
    ...{ skipLibCheck: false, noEmitOnError: true },
  },
  files: ['consumer.ts'],
};

beforeAll(() => {
  const modules = join(folder, 'node_modules');
  mkdirSync(join(modules, 'softcvm'), { recursive: true });
  const packed = execFileSync('npm', ['pack', '--ignore-scripts', '--silent', '--pack-destination', folder], {
    cwd: root,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  const tarball = join(folder, packed.trim().split('\n').at(-1)!);
  execFileSync('tar', ['xzf', tarball, '-C', join(modules, 'softcvm'), '--strip-components=1']);
  for (const name of ['commander', 'iced-x86', '@types', 'undici-types'])
    symlinkSync(join(root, 'node_modules', name), join(modules, name));
  writeFileSync(join(folder, 'package.json'), '{ "type": "module" }');
  writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify(OPTIONS));
  writeFileSync(join(folder, 'consumer.ts'), CONSUMER);
}, 120_000);

const node = (...arguments_: string[]) => {
  const { status, stdout, stderr } = spawnSync(process.execPath, arguments_, {
    cwd: folder,
    encoding: 'utf8',
  });
  return { status, stdout, stderr };
};

it('has types of its own, and runs', () => {
  const compiler = join(root, 'node_modules/typescript/bin/tsc');
  expect(node(compiler, '-p', '.')).toEqual({ status: 0, stdout: '', stderr: '' });
  expect(node('consumer.js')).toEqual({
    status: 0,
    stdout: '0 true 12 function function true undefined\n',
    stderr: '',
  });
}, 120_000);

it('holds what its sources give, and no file that an older build left', () => {
  const dist = join(folder, 'node_modules/softcvm/dist');
  const files = readdirSync(dist, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(dist, join(entry.parentPath, entry.name)));
  const wanted = (name: string): boolean =>
    name.endsWith('.d.ts') && existsSync(join(root, 'src', name.replace(/\.d\.ts$/, '.ts')));
  const others = files.filter((name) => !wanted(name) && !/^chunk-\w+\.js$/.test(name));
  expect(others.sort()).toEqual([
    ...['attest/index.js', 'cli-main.cache', 'cli-main.cjs', 'cli.js', 'iced-x86.LICENSE.txt'],
    ...['iced-x86.cache', 'iced-x86.cjs', 'iced_x86_bg.wasm', 'index.js', 'kernel/kvm/index.js'],
  ]);
  const text = (name: string): string => readFileSync(join(dist, name), 'utf8');
  const importsOf = (name: string): string[] =>
    [...text(name).matchAll(/^(?:import|export|\}) .*?["'](\.[^"']+)["'];$/gm)].map(([, path]) =>
      join(dirname(name), path!),
    );
  const reached = new Set(['attest/index.js', 'index.js', 'kernel/kvm/index.js']);
  for (const name of reached) for (const path of importsOf(name)) reached.add(path);
  expect(files.filter((name) => name.startsWith('chunk-') && !reached.has(name))).toEqual([]);
  // For a browser.
  const attest = new Set(['attest/index.js']);
  for (const name of attest) for (const path of importsOf(name)) attest.add(path);
  expect([...attest].filter((name) => /["']node:/.test(text(name)))).toEqual([]);
});

it('has a command of its own', () => {
  expect(node('node_modules/softcvm/dist/cli.js', 'run', 'hello')).toMatchObject({
    status: 0,
    stdout: 'Hello from a guest: vCPU 0, CPL 0, 64 MiB of RAM, CPU AuthenticAMD.\n',
  });
});
