/**
 * Mutation of the rules of the kernel's KVM and of the VMM's memory: one rule line at a time is taken away or turned round in a scratch copy of the tree, and the tests that
 * mirror its file are run. A mutant that no test fails on has survived: it is printed, and either a test is missing or scripts/mutants-explained.json says why nothing can
 * tell (the run fails on an explanation whose line is gone or whose mutant dies).
 *
 * npm run mutants -- [--every N] [--offset N] [--match TEXT] [--tests N] [--list]
 */
import { spawnSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join, relative } from 'node:path';
import ts from 'typescript';

const ROOT = new URL('..', import.meta.url).pathname;
const FOLDERS = ['src/kernel/kvm', 'src/vmm/memory'];
const EXPLAINED = join(ROOT, 'scripts/mutants-explained.json');

const option = (name, fallback) => {
  const at = process.argv.indexOf(`--${name}`);
  return at < 0 ? fallback : process.argv[at + 1];
};
const every = Number(option('every', '1'));
const offset = Number(option('offset', '0'));
const match = option('match', '');
/** Test files that a mutant has to survive. */
const MOST_TESTS = Number(option('tests', '6'));

const filesBelow = (folder) =>
  readdirSync(join(ROOT, folder), { withFileTypes: true }).flatMap((item) => {
    const path = `${folder}/${item.name}`;
    if (item.isDirectory()) return filesBelow(path);
    return item.name.endsWith('.ts') ? [path] : [];
  });

/** Comparisons with their neighbour at the boundary, and equalities with their opposite. */
const TURNED = new Map([
  [ts.SyntaxKind.LessThanToken, '<='],
  [ts.SyntaxKind.LessThanEqualsToken, '<'],
  [ts.SyntaxKind.GreaterThanToken, '>='],
  [ts.SyntaxKind.GreaterThanEqualsToken, '>'],
]);

const refuses = (node) => {
  let found = false;
  const visit = (inner) => {
    if (ts.isThrowStatement(inner)) found = true;
    if (ts.isCallExpression(inner) && /^(?:refuse|invalid)$/.test(inner.expression.getText())) found = true;
    if (
      ts.isReturnStatement(inner) &&
      inner.expression !== undefined &&
      /^-|-ERRNO|EFAULT|false$/.test(inner.expression.getText())
    )
      found = true;
    if (!found) ts.forEachChild(inner, visit);
  };
  visit(node);
  return found;
};

/** The mutants of a file: what is replaced by what. */
function mutantsOf(path) {
  const text = readFileSync(join(ROOT, path), 'utf8');
  const source = ts.createSourceFile(path, text, ts.ScriptTarget.Latest, true);
  const mutants = [];
  const add = (node, into, kind) => {
    const from = node.getStart();
    const { line } = source.getLineAndCharacterOfPosition(from);
    mutants.push({
      path,
      line: line + 1,
      from,
      to: node.getEnd(),
      into,
      kind,
      was: node.getText().split('\n')[0].slice(0, 100),
    });
  };
  const visit = (node) => {
    if (ts.isIfStatement(node) && refuses(node.thenStatement)) {
      add(node.expression, 'false', 'rule taken away');
      add(node.expression, `!(${node.expression.getText()})`, 'rule turned round');
    }
    if (ts.isBinaryExpression(node) && TURNED.has(node.operatorToken.kind)) {
      add(node.operatorToken, TURNED.get(node.operatorToken.kind), 'boundary moved');
      mutants.at(-1).was = node.getText().split('\n')[0].slice(0, 100);
    }
    if (
      ts.isReturnStatement(node) &&
      node.expression !== undefined &&
      /^-(?:ERRNO\.\w+|[A-Z]+)$/.test(node.expression.getText())
    )
      add(node.expression, '0', 'errno lost');
    ts.forEachChild(node, visit);
  };
  visit(source);
  return mutants;
}

/** Every test file with what it imports, directly or not. */
function importsOf(path, known = new Map()) {
  const done = known.get(path);
  if (done !== undefined) return done;
  const reached = new Set([path]);
  known.set(path, reached);
  const text = readFileSync(join(ROOT, path), 'utf8');
  for (const [, what] of text.matchAll(/from '(\.[^']+)'/g)) {
    const target = relative(ROOT, join(ROOT, dirname(path), what));
    if (existsSync(join(ROOT, target))) for (const other of importsOf(target, known)) reached.add(other);
  }
  return reached;
}

const stem = (path) => basename(path).replace(/(?:\.test)?\.ts$/, '');

/** The tests for a source file, the likeliest first: of its name, the spec of both kernels, those that import it, those of its folder that reach it. Some are enough. */
function testsOf(path, tests, known) {
  const folder = dirname(path).replace(/^src/, 'test');
  const rank = (test) => {
    if (stem(test) === stem(path)) return 0;
    if (path.startsWith('src/kernel/') && test.endsWith('/spec.test.ts')) return 1;
    if (readFileSync(join(ROOT, test), 'utf8').includes(`/${basename(path)}'`)) return 2;
    return dirname(test) === folder ? 3 : 4;
  };
  return tests
    .filter((test) => importsOf(test, known).has(path))
    .map((test) => ({ test, order: rank(test) }))
    .sort((a, b) => a.order - b.order)
    .slice(0, MOST_TESTS)
    .map(({ test }) => test);
}

const sources = FOLDERS.flatMap(filesBelow);
const tests = ['test/kernel', 'test/vmm']
  .flatMap(filesBelow)
  .filter((path) => path.endsWith('.test.ts') && !path.endsWith('ioctl-fuzz.test.ts'));
const all = sources
  .flatMap(mutantsOf)
  .filter(({ path, was }) => match === '' || `${path} ${was}`.includes(match));
const chosen = all.filter((_, index) => index % every === offset % every);
if (process.argv.includes('--list')) {
  for (const { path, line, kind, was } of chosen) console.log(`${path}:${line}: ${kind}: ${was}`);
  console.log(`${chosen.length} of ${all.length} mutants`);
  process.exit(0);
}

const explained = existsSync(EXPLAINED) ? JSON.parse(readFileSync(EXPLAINED, 'utf8')) : [];
const scratch = mkdtempSync(join(tmpdir(), 'mutants-'));
process.on('exit', () => rmSync(scratch, { recursive: true, force: true }));
for (const item of ['src', 'test', 'guests', 'docs', 'package.json', 'tsconfig.json', 'vitest.config.ts'])
  cpSync(join(ROOT, item), join(scratch, item), { recursive: true });
symlinkSync(join(ROOT, 'node_modules'), join(scratch, 'node_modules'));

const runTests = (files) =>
  spawnSync(
    process.execPath,
    ['node_modules/vitest/vitest.mjs', 'run', '--project', 'unit', '--bail=1', '--reporter=dot', ...files],
    {
      cwd: scratch,
      encoding: 'utf8',
      timeout: 120_000,
      env: { ...process.env, CI: '1' },
    },
  );

const known = new Map();
/** Whether a test file passes unchanged: one that does not says nothing. */
const sound = new Map();
const isSound = (test) => {
  if (!sound.has(test)) sound.set(test, runTests([test]).status === 0);
  return sound.get(test);
};
const counts = { killed: 0, survived: 0, explained: 0, skipped: 0 };
const problems = [];
const used = new Set();
for (const mutant of chosen) {
  const { path, line, from, to, into, kind, was } = mutant;
  const original = readFileSync(join(ROOT, path), 'utf8');
  const where = `${path}:${line}: ${kind}: ${was}`;
  writeFileSync(join(scratch, path), original);
  const files = testsOf(path, tests, known).filter(isSound);
  if (files.length === 0) {
    counts.skipped++;
    console.log(`skipped (no test of it passes unchanged): ${where}`);
    continue;
  }
  writeFileSync(join(scratch, path), original.slice(0, from) + into + original.slice(to));
  const survived = runTests(files).status === 0;
  writeFileSync(join(scratch, path), original);
  const explanation = explained.find(
    (entry) => entry.path === path && entry.was === was && entry.kind === kind,
  );
  if (explanation !== undefined) used.add(explanation);
  if (!survived) {
    counts.killed++;
    if (explanation !== undefined) problems.push(`explained, but a test fails on it: ${where}`);
  } else if (explanation !== undefined) counts.explained++;
  else {
    counts.survived++;
    console.log(`survived: ${where}`);
  }
}
for (const entry of explained) {
  const stands = all.some(
    ({ path, was, kind }) => path === entry.path && was === entry.was && kind === entry.kind,
  );
  if (!stands && match === '')
    problems.push(`explained, but it is not there: ${entry.path}: ${entry.kind}: ${entry.was}`);
}
for (const problem of problems) console.log(problem);
console.log(
  `${chosen.length} of ${all.length} mutants: ${counts.killed} killed, ${counts.survived} survived, ${counts.explained} explained, ${counts.skipped} skipped`,
);
process.exitCode = counts.survived > 0 || problems.length > 0 ? 1 : 0;
