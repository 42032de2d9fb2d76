/** Who may import whom, as docs/ARCHITECTURE.md has it. */
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, posix, relative } from 'node:path';
import ts from 'typescript';
import { describe, expect, it } from 'vitest';

const root = new URL('../..', import.meta.url).pathname;

/** Rooms under src/, and what each may import beside itself. `interface` is kernel/interface.ts alone. */
const MAY_IMPORT: Record<string, readonly string[]> = {
  base: [],
  abi: ['base'],
  hardware: ['base', 'abi'],
  kernel: ['base', 'abi', 'hardware'],
  vmm: ['base', 'abi', 'interface'],
  linux: ['base', 'abi', 'interface'],
  guest: ['base', 'abi'],
  attest: ['base', 'abi'],
  authority: ['base', 'abi', 'chip'],
};
/** These wire everything. */
const WIRE = ['cli', 'index.ts', 'options.ts'];

function filesBelow(folder: string): string[] {
  return readdirSync(join(root, folder), { withFileTypes: true }).flatMap((item) =>
    item.isDirectory() ? filesBelow(join(folder, item.name)) : [join(folder, item.name)],
  );
}

const sources = filesBelow('src').filter((path) => path.endsWith('.ts'));
const roomOf = (path: string): string => path.split('/')[1]!;

const importsOf = (text: string): string[] =>
  ts.preProcessFile(text).importedFiles.map(({ fileName }) => fileName);

interface Import {
  readonly from: string;
  readonly to: string;
}

const imports: Import[] = sources.flatMap((path) =>
  importsOf(readFileSync(join(root, path), 'utf8')).map((specifier) => ({
    from: path,
    to: specifier.startsWith('.') ? posix.normalize(posix.join(dirname(path), specifier)) : specifier,
  })),
);
const isOurs = ({ to }: Import): boolean => to.startsWith('src/');

function allowed({ from, to }: Import): boolean {
  const [source, target] = [roomOf(from), roomOf(to)];
  if (source === target || WIRE.includes(source)) return true;
  const may = MAY_IMPORT[source] ?? [];
  if (to === 'src/kernel/interface.ts' && may.includes('interface')) return true;
  if (to === 'src/hardware/chip.ts' && may.includes('chip')) return true;
  return may.includes(target);
}

describe('imports', () => {
  it('are found at all', () => {
    expect(imports.filter(isOurs).length).toBeGreaterThan(20);
  });

  it('follow the rules of the house', () => {
    const broken = imports.filter((one) => isOurs(one) && !allowed(one));
    expect(broken.map(({ from, to }) => `${from} imports ${to}`)).toEqual([]);
  });

  it('know every room', () => {
    const rooms = new Set(sources.map(roomOf));
    expect([...rooms].filter((room) => !(room in MAY_IMPORT) && !WIRE.includes(room))).toEqual([]);
  });

  it('stay inside src', () => {
    const outside = imports.filter(
      ({ to }) => to.startsWith('..') || /^(test|bench|scripts|dist)\//.test(to),
    );
    expect(outside).toEqual([]);
  });

  it('take packages that package.json has as dependencies alone', () => {
    const { dependencies } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
    const packages = new Set(
      imports
        .filter((one) => !isOurs(one) && !one.to.startsWith('node:'))
        .map(({ to }) =>
          to
            .split('/')
            .slice(0, to.startsWith('@') ? 2 : 1)
            .join('/'),
        ),
    );
    expect([...packages].filter((name) => !(name in dependencies))).toEqual([]);
  });

  it('need nothing of Node in base, abi and attest, which run in a browser too', () => {
    const node = imports.filter(
      ({ from, to }) => ['base', 'abi', 'attest'].includes(roomOf(from)) && to.startsWith('node:'),
    );
    expect(node).toEqual([]);
  });
});

describe('file names', () => {
  const named = sources.map((path) => ({ path, name: path.split('/').at(-1)! }));

  it('are kebab-case', () => {
    const wrong = named.filter(({ name }) => !/^[a-z0-9]+(-[a-z0-9]+)*(\.generated|\.d)?\.ts$/.test(name));
    expect(wrong.map(({ path }) => path)).toEqual([]);
  });

  it('say what is inside', () => {
    const vague = named.filter(({ name }) => /^(utils?|helpers?|types?|common|misc)\.ts$/.test(name));
    expect(vague.map(({ path }) => path)).toEqual([]);
  });

  it('are index.ts only where a subpath export begins', () => {
    const { exports } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
    const entries = Object.values<{ default: string }>(exports).map((entry) =>
      entry.default.replace('./dist/', 'src/').replace(/\.js$/, '.ts'),
    );
    const indices = named.filter(({ name }) => name === 'index.ts').map(({ path }) => path);
    expect(indices.sort()).toEqual(entries.sort());
  });

  it('of tests mirror src', () => {
    const FREE = ['test/architecture', 'test/guests', 'test/interop', 'test/long', 'test/oracle'];
    const tests = filesBelow('test').filter(
      (path) => path.endsWith('.test.ts') && !FREE.some((folder) => path.startsWith(folder)),
    );
    const folders = new Set(sources.map((path) => relative('src', dirname(path)) || '.'));
    const lost = tests.filter((path) => !folders.has(relative('test', dirname(path)) || '.'));
    expect(lost).toEqual([]);
  });
});
