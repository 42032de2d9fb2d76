/** The package as a stranger has it: packed, unpacked elsewhere, its types read by a strict compiler without a browser's, and run. */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';

const root = new URL('../../', import.meta.url).pathname;
const folder = mkdtempSync(join(tmpdir(), 'softcvm-packed-'));
afterAll(() => rmSync(folder, { recursive: true }));

const CONSUMER = `
import { type Chip, createHost, type Host, MiB, readImage, type RunReport, type TraceEvent } from 'softcvm';
import { parseReport, verifyReport } from 'softcvm/attest';
import { createKernel, type Kernel } from 'softcvm/kvm';

const events: TraceEvent[] = [];
const host: Host = createHost({ memory: 64 * MiB, seed: 7 });
host.trace.listen((event) => events.push(event));
const vm = host.createVm({ type: 'sw-protected', memory: 8 * MiB, ...(await readImage('hello')) });
const report: RunReport = await vm.run({ timeoutMs: 60_000 });
host.close();
const kernel: Kernel = createKernel({ memory: 16 * MiB });
const apiVersion: number = kernel.newProcess('vmm').openKvm().getApiVersion();
kernel.close();
const chip: Chip | undefined = undefined;
console.log(report.exit.code, events.length > 0, apiVersion, typeof parseReport, typeof verifyReport, chip);
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
    stdout: '0 true 12 function function undefined\n',
    stderr: '',
  });
}, 120_000);

it('has a command of its own', () => {
  expect(node('node_modules/softcvm/dist/cli.js', 'run', 'hello')).toMatchObject({
    status: 0,
    stdout: 'Hello from a guest: vCPU 0, CPL 0, 64 MiB of RAM, CPU AuthenticAMD.\n',
  });
});
