/**
 * Mutation of the rules of the kernel's KVM, the VMM's memory, the firmware and the relying party: one rule at a time is taken away, and a test has to fail. A mutant that
 * no test fails on has survived: it is printed, and either a test is missing or scripts/mutants-explained.json says why nothing can tell (the run fails on an explanation
 * whose line is gone or whose mutant dies).
 *
 * A rule is an `if` that leaves its function, a part of its condition or of one that is returned, assigned or chosen by (`return a && b`), a boundary (`<` for `<=`), an errno,
 * and the condition of `c ? a : b`, unless that picks words of a message. Other statements, arithmetic and numbers stay as they are.
 *
 * All mutants stand in one scratch copy, each behind a switch; scripts/mutant-runner.mjs runs every test file that reaches any of them, and switches them on in turn.
 *
 * npm run mutants -- [--match REGEXP of a path] [--tests REGEXP of a path] [--jobs N] [--log FILE] [--known LOG,...] [--list]
 *
 * With --known, what died in the runs that wrote those logs is not run again.
 */
import { spawn } from 'node:child_process';
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
import { dirname, join, relative } from 'node:path';
import { parseArgs } from 'node:util';
import ts from 'typescript';

const ROOT = new URL('..', import.meta.url).pathname;
const RULES = [
  'src/kernel/kvm',
  'src/kernel/ccp',
  'src/vmm/memory',
  'src/vmm/confidential-guest',
  'src/hardware/asp',
  'src/hardware/memory/rmp.ts',
  'src/hardware/cpu/rmp-check.ts',
  'src/hardware/cpu/system/secure-paging.ts',
  'src/attest',
];
const TESTS = ['test/kernel', 'test/vmm', 'test/hardware', 'test/attest'];
/** Of what lies in test/ itself and in no folder. */
const ROOT_TESTS = readdirSync(join(ROOT, 'test'))
  .filter((name) => name.endsWith('.test.ts'))
  .map((name) => `test/${name}`);
/** Whole guests and random histories: minutes of them say what a second of the others says. Threads that a process starts once cannot be tested in it again. */
const NOT_RUN = /fuzz|secrecy|page-hashes/;
/** Which thread hashes a page is no rule of firmware, and the text of one is a script of its own, without switches. */
const NO_RULES = 'src/hardware/asp/page-hashes.ts';
const EXPLAINED = join(ROOT, 'scripts/mutants-explained.json');

const string = (fallback) => ({ type: 'string', default: fallback });
const { values: options } = parseArgs({
  options: {
    ...{ match: string(''), tests: string(''), jobs: string('2'), log: string(''), known: string('') },
    list: { type: 'boolean', default: false },
  },
});
const match = new RegExp(options.match);
const matchTests = new RegExp(options.tests);

const filesBelow = (path) =>
  path.endsWith('.ts')
    ? [path]
    : readdirSync(join(ROOT, path), { withFileTypes: true })
        .filter((item) => item.isDirectory() || item.name.endsWith('.ts'))
        .flatMap((item) => filesBelow(`${path}/${item.name}`));

/** Comparisons with their neighbour at the boundary. */
const TURNED = new Map([
  [ts.SyntaxKind.LessThanToken, '<='],
  [ts.SyntaxKind.LessThanEqualsToken, '<'],
  [ts.SyntaxKind.GreaterThanToken, '>='],
  [ts.SyntaxKind.GreaterThanEqualsToken, '>'],
]);
/** `x < 0`, `x >= 0`: whether there is an index, a descriptor, an error; not a boundary among numbers. */
const isSign = ({ operatorToken: { kind }, right }) =>
  (kind === ts.SyntaxKind.LessThanToken || kind === ts.SyntaxKind.GreaterThanEqualsToken) &&
  right.getText() === '0';
/** The bound of a loop is no rule. */
const isLoopBound = (node) => {
  const { parent } = node;
  if (ts.isForStatement(parent)) return parent.condition === node;
  if (ts.isWhileStatement(parent)) return parent.expression === node;
  return ts.isBinaryExpression(parent) && CHAINS.has(parent.operatorToken.kind) && isLoopBound(parent);
};
const CHAINS = new Map([
  [ts.SyntaxKind.BarBarToken, 'false'],
  [ts.SyntaxKind.AmpersandAmpersandToken, 'true'],
]);

/** Whether a branch ends in a refusal or any other way out of its function. */
const leaves = (node) => {
  if (ts.isReturnStatement(node) || ts.isThrowStatement(node)) return true;
  if (ts.isExpressionStatement(node))
    return (
      ts.isCallExpression(node.expression) &&
      /^(?:refuse|invalid)$/.test(node.expression.expression.getText())
    );
  return ts.isBlock(node) && node.statements.length > 0 && leaves(node.statements.at(-1));
};

/** `a || b || c` as its three parts. */
const partsOf = (node, operator) => {
  if (ts.isParenthesizedExpression(node)) return partsOf(node.expression, operator);
  if (ts.isBinaryExpression(node) && node.operatorToken.kind === operator)
    return [...partsOf(node.left, operator), ...partsOf(node.right, operator)];
  return [node];
};

/** Whether a condition is a value: returned, assigned to a name or what `c ? a : b` chooses by; itself or as a part of one. */
const isValue = (node) => {
  const { parent } = node;
  if (ts.isReturnStatement(parent) || ts.isConditionalExpression(parent)) return true;
  if (ts.isArrowFunction(parent)) return parent.body === node;
  if (ts.isVariableDeclaration(parent) || ts.isPropertyAssignment(parent)) return parent.initializer === node;
  const isInner =
    ts.isParenthesizedExpression(parent) ||
    ts.isPrefixUnaryExpression(parent) ||
    (ts.isBinaryExpression(parent) && CHAINS.has(parent.operatorToken.kind));
  return isInner && isValue(parent);
};
const isText = (node) => ts.isStringLiteralLike(node) || ts.isTemplateExpression(node);
/** Words of an error, a trace or any other text are no rule. */
const isWording = (node) =>
  ts.isTemplateSpan(node) ||
  ts.isThrowStatement(node) ||
  (ts.isNewExpression(node) && /Error$/.test(node.expression.getText())) ||
  (!ts.isStatement(node) && !ts.isSourceFile(node) && isWording(node.parent));

/** A file with all its mutants behind switches, and the list of them. The number of a mutant is its place in `all`. */
function mutate(path, all) {
  const text = readFileSync(join(ROOT, path), 'utf8');
  const source = ts.createSourceFile(path, text, ts.ScriptTarget.Latest, true);
  /** From a node to what it becomes, innermost first: a function of its text. */
  const switches = new Map();
  const add = (node, kind, was, into) => {
    const { line } = source.getLineAndCharacterOfPosition(node.getStart());
    const id = all.push({ path, line: line + 1, kind, was: was.getText().split('\n')[0].slice(0, 100) }) - 1;
    const known = switches.get(node) ?? [];
    switches.set(node, known);
    known.push((inner, parts) => `(globalThis.mutant?.(${id}) ? ${into(inner, parts)} : ${inner})`);
  };
  const find = (node) => {
    if (ts.isIfStatement(node) && leaves(node.thenStatement)) {
      for (const [operator, neutral] of CHAINS) {
        const parts = partsOf(node.expression, operator);
        if (parts.length > 1) for (const part of parts) add(part, 'part taken away', part, () => neutral);
      }
      add(node.expression, 'rule taken away', node.expression, () => 'false');
    }
    if (ts.isBinaryExpression(node) && isValue(node)) {
      const operator = node.operatorToken.kind;
      const neutral = CHAINS.get(operator);
      // Of `a && b && c` the outermost is the whole.
      if (neutral !== undefined && node.parent.operatorToken?.kind !== operator)
        for (const part of partsOf(node, operator))
          add(part, 'part of a value taken away', part, () => neutral);
    }
    if (
      ts.isConditionalExpression(node) &&
      !isWording(node) &&
      !(isText(node.whenTrue) && isText(node.whenFalse))
    ) {
      add(node.condition, 'always chosen', node.condition, () => 'true');
      add(node.condition, 'never chosen', node.condition, () => 'false');
    }
    const turned = ts.isBinaryExpression(node) ? TURNED.get(node.operatorToken.kind) : undefined;
    if (turned !== undefined && !isSign(node) && !isLoopBound(node))
      add(node, 'boundary moved', node, (_, { left, right }) => `${left} ${turned} ${right}`);
    if (
      ts.isReturnStatement(node) &&
      node.expression !== undefined &&
      /^-(?:ERRNO\.\w+|[A-Z]+)$/.test(node.expression.getText())
    )
      add(node.expression, 'errno lost', node.expression, () => '0');
    ts.forEachChild(node, find);
  };
  find(source);
  /** The text of a node without what stands before it, its inner mutants switched. */
  const rewritten = (node) => {
    let out = '';
    let at = node.getStart();
    const parts = {};
    ts.forEachChild(node, (child) => {
      const inner = rewritten(child);
      if (child === node.left) parts.left = inner;
      if (child === node.right) parts.right = inner;
      out += text.slice(at, child.getStart()) + inner;
      at = child.getEnd();
    });
    out += text.slice(at, node.getEnd());
    return (switches.get(node) ?? []).reduce((inner, wrap) => wrap(inner, parts), out);
  };
  return rewritten(source);
}

/** What a file imports, directly or not. */
function importsOf(path, known = new Map()) {
  const done = known.get(path);
  if (done !== undefined) return done;
  const found = new Set([path]);
  known.set(path, found);
  const visit = (file) => {
    for (const [, what] of readFileSync(join(ROOT, file), 'utf8').matchAll(/from '(\.[^']+)'/g)) {
      const target = relative(ROOT, join(ROOT, dirname(file), what));
      if (found.has(target) || !existsSync(join(ROOT, target))) continue;
      found.add(target);
      visit(target);
    }
  };
  visit(path);
  return found;
}

const all = [];
const sources = RULES.flatMap(filesBelow).filter((path) => path !== NO_RULES && match.test(path));
const texts = new Map(sources.map((path) => [path, mutate(path, all)]));
const where = ({ path, line, kind, was }) => `${path}:${line}: ${kind}: ${was}`;
if (options.list) {
  for (const mutant of all) console.log(where(mutant));
  console.log(`${all.length} mutants`);
  process.exit(0);
}

/** Those that load least first: they are quick, and what they kill the others need not run. Before all the spec of both kernels, which asks for most rules of KVM. */
const tests = [...TESTS.flatMap(filesBelow), ...ROOT_TESTS]
  .filter((path) => path.endsWith('.test.ts') && !NOT_RUN.test(path) && matchTests.test(path))
  .map((path) => ({ path, imports: importsOf(path) }))
  .filter(({ imports }) => sources.some((source) => imports.has(source)))
  .map(({ path, imports }) => ({ path, order: path.endsWith('/spec.test.ts') ? 0 : imports.size }))
  .sort((a, b) => a.order - b.order)
  .map(({ path }) => path);

const scratch = mkdtempSync(join(tmpdir(), 'mutants-'));
process.on('exit', () => rmSync(scratch, { recursive: true, force: true }));
process.on('SIGINT', () => process.exit(1));
process.on('SIGTERM', () => process.exit(1));
for (const item of ['src', 'test', 'guests', 'docs', 'package.json', 'tsconfig.json'])
  cpSync(join(ROOT, item), join(scratch, item), { recursive: true });
for (const [path, text] of texts) writeFileSync(join(scratch, path), text);
cpSync(join(ROOT, 'scripts/mutant-runner.mjs'), join(scratch, 'mutant-runner.mjs'));
symlinkSync(join(ROOT, 'node_modules'), join(scratch, 'node_modules'));
writeFileSync(
  join(scratch, 'vitest.config.mjs'),
  `export default { test: { runner: './mutant-runner.mjs', include: ['test/**/*.test.ts'], testTimeout: 20_000,
     maxWorkers: 1, isolate: false, silent: true, execArgv: ['--max-old-space-size=3000'] } };`,
);
const log = options.log || join(scratch, 'log.jsonl');
const read = (path) =>
  readFileSync(path, 'utf8')
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line));
const entries = () => read(log);
const say = (entry) => writeFileSync(log, `${JSON.stringify(entry)}\n`, { flag: 'a' });
/** Places of the mutants that are told apart by their order in a file alone. */
const alike = (mutants) => {
  const places = new Map();
  for (const [id, { path, kind, was }] of mutants.entries()) {
    const key = `${path}\0${kind}\0${was}`;
    places.set(key, [...(places.get(key) ?? []), id]);
  }
  return places;
};
writeFileSync(log, '');
say({ mutants: all });
for (const path of options.known.split(',').filter(Boolean)) {
  const earlier = read(path);
  const run = earlier.find((entry) => entry.mutants !== undefined);
  if (run === undefined) {
    console.error(`--known: got ${path}, which no run of mutants wrote; want its --log`);
    process.exit(2);
  }
  const before = alike(run.mutants);
  const killed = new Set(earlier.flatMap((entry) => entry.killed ?? []));
  for (const [key, ids] of alike(all)) {
    const known = before.get(key) ?? [];
    if (known.length !== ids.length) continue;
    for (const [nth, id] of ids.entries())
      if (killed.has(known[nth])) say({ killed: id, by: 'a test of an earlier run' });
  }
}

const runTest = (test) =>
  new Promise((resolve) => {
    const process_ = spawn(
      process.execPath,
      ['node_modules/vitest/vitest.mjs', 'run', '--config', 'vitest.config.mjs', '--reporter=dot', test],
      { cwd: scratch, stdio: 'ignore', env: { ...process.env, CI: '1', MUTANTS_LOG: log } },
    );
    process_.on('exit', resolve);
  });

const problems = [];
const began = Date.now();
const queue = [...tests];
let finished = 0;
const work = async () => {
  for (let test = queue.shift(); test !== undefined; test = queue.shift()) {
    for (;;) {
      await runTest(test);
      const said = entries().filter((entry) => entry.test === test);
      if (said.some((entry) => entry.done)) break;
      const last = said.at(-1);
      if (last?.begun === undefined) {
        problems.push(`${test} came to no end without a mutant, and judges none`);
        break;
      }
      say({ test, killed: last.begun, by: 'it does not end' });
    }
    finished++;
    const killed = new Set(entries().flatMap((entry) => entry.killed ?? []));
    console.error(
      `${finished} of ${tests.length} test files, ${killed.size} of ${all.length} killed, ${Math.round((Date.now() - began) / 1000)} s: ${test}`,
    );
  }
};
await Promise.all(Array.from({ length: Number(options.jobs) }, work));

const killed = new Set();
const reached = new Set();
for (const entry of entries()) {
  if (entry.killed !== undefined) killed.add(entry.killed);
  for (const id of entry.reached ?? []) reached.add(id);
  if (entry.unsound !== undefined)
    problems.push(`${entry.test} fails without a mutant, and judges none: ${entry.unsound}`);
  if (entry.spoilt !== undefined) problems.push(`${entry.test} fails after its mutants: ${entry.spoilt}`);
}
const explained = existsSync(EXPLAINED) ? JSON.parse(readFileSync(EXPLAINED, 'utf8')) : [];
const explains = (mutant) => (entry) =>
  entry.path === mutant.path && entry.was === mutant.was && entry.kind === mutant.kind;
const folders = new Map();
for (const [id, mutant] of all.entries()) {
  const folder = RULES.find((rules) => mutant.path.startsWith(rules));
  if (!folders.has(folder)) folders.set(folder, { mutants: 0, killed: 0, explained: 0, survived: 0 });
  const counts = folders.get(folder);
  counts.mutants++;
  if (killed.has(id)) counts.killed++;
  else if (explained.some(explains(mutant))) counts.explained++;
  else {
    counts.survived++;
    console.log(`${reached.has(id) ? 'survived' : 'not reached'}: ${where(mutant)}`);
  }
}
for (const entry of explained.filter(({ path }) => match.test(path))) {
  const told = [...all.entries()].filter(([, mutant]) => explains(mutant)(entry));
  if (told.length === 0) problems.push(`explained, but it is not there: ${where(entry)}`);
  else if (told.every(([id]) => killed.has(id)))
    problems.push(`explained, but a test fails on it: ${where(entry)}`);
}
for (const problem of problems) console.log(problem);
for (const [folder, { mutants, killed, explained, survived }] of folders)
  console.log(
    `${folder}: ${mutants} mutants, ${killed} killed, ${explained} explained, ${survived} survived`,
  );
console.log(`${Math.round((Date.now() - began) / 1000)} s`);
process.exitCode = problems.length > 0 || [...folders.values()].some(({ survived }) => survived > 0) ? 1 : 0;
