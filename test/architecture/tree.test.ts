/** What holds of the files in the tree. */
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';

const root = new URL('../..', import.meta.url).pathname;

function filesBelow(folder: string): string[] {
  return readdirSync(join(root, folder), { withFileTypes: true }).flatMap((item) => {
    const path = join(folder, item.name);
    if (item.isDirectory())
      return ['node_modules', 'dist', '.git'].includes(item.name) ? [] : filesBelow(path);
    return item.isFile() ? [path] : [];
  });
}

/** What git tracks; without git, what lies there. */
const git = spawnSync('git', ['ls-files', '-z'], { cwd: root, encoding: 'utf8' });
const committed = git.status === 0 ? git.stdout.split('\0').filter(Boolean) : filesBelow('.');

describe('the tree', () => {
  it('names no path of a machine that it was made on', () => {
    const named = committed.filter((path) => {
      const file = join(root, path);
      if (!existsSync(file) || !statSync(file).isFile()) return false;
      return /\/(?:work|home\/\w+)\/[a-z]/.test(readFileSync(file, 'latin1'));
    });
    expect(named).toEqual([]);
  });

  it('has every path that docs/ORIGINS.md points to', () => {
    const origins = readFileSync(join(root, 'docs/ORIGINS.md'), 'utf8');
    const paths = new Set(
      [...origins.matchAll(/`((?:src|test|guests|docs|bench|scripts)\/[^`\s]+)`/g)].map((match) => match[1]!),
    );
    expect(paths.size).toBeGreaterThan(10);
    expect([...paths].filter((path) => !existsSync(join(root, path)))).toEqual([]);
  });

  it('has every test that docs/ORIGINS.md quotes', () => {
    const origins = readFileSync(join(root, 'docs/ORIGINS.md'), 'utf8');
    const quoted = [...origins.matchAll(/`(test\/[^`\s]+)`((?:,? "[^"]+")+)/g)].flatMap(([, path, titles]) =>
      [...titles!.matchAll(/"([^"]+)"/g)].map(([, title]) => ({ path: path!, title: title! })),
    );
    expect(quoted.length).toBeGreaterThan(15);
    const absent = quoted.filter(
      ({ path, title }) => !readFileSync(join(root, path), 'utf8').includes(title),
    );
    expect(absent).toEqual([]);
  });

  it('has every path that README.md and docs/ARCHITECTURE.md point to', () => {
    for (const document of ['README.md', 'docs/ARCHITECTURE.md']) {
      const text = readFileSync(join(root, document), 'utf8');
      const paths = [...text.matchAll(/`((?:src|test|guests|docs|bench|scripts)\/[^`\s*]+)`/g)].map(
        (match) => match[1]!,
      );
      expect({ document, missing: paths.filter((path) => !existsSync(join(root, path))) }).toEqual({
        document,
        missing: [],
      });
    }
  });

  it('has no skipped or focused test', () => {
    const marked = committed.filter(
      (path) =>
        path.endsWith('.test.ts') &&
        /\b(?:it|test|describe)\.(?:only|skip|todo)\b/.test(readFileSync(join(root, path), 'utf8')),
    );
    expect(marked).toEqual([]);
  });
});
