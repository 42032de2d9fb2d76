/**
 * A vitest runner that judges mutants. scripts/mutants.mjs puts every mutant of a source file behind a switch in a scratch copy (`globalThis.mutant(17) ? ... : ...`) and runs each
 * test file once, in a process of its own, with this runner. The file is run as it is, and again to learn which tests reach which mutants; those that fail then say nothing. Then, for every
 * mutant that no test has killed so far, the tests that reach it are run with that mutant switched on, up to the first that fails. Modules are loaded once; the test
 * file itself is evaluated afresh each time. What happened goes into a log, one JSON object a line.
 *
 * A mutant that makes a test run on without end ends this process: the log's last line then names it.
 */
import { appendFileSync, readFileSync } from 'node:fs';
import { relative } from 'node:path';
import { Worker } from 'node:worker_threads';
import { startTests } from '@vitest/runner';
import fc from 'fast-check';
import { TestRunner } from 'vitest';

const LOG = process.env.MUTANTS_LOG;
/** CPU time in milliseconds of a test that is too slow to be run once a mutant. */
const SLOW = 3000;
/** CPU and wall time in milliseconds after which a test with a mutant counts as endless. */
const ENDLESS = { cpu: 10_000, wall: 120_000 };

fc.configureGlobal({ seed: 1, endOnFailure: true });

const log = (entry) => appendFileSync(LOG, `${JSON.stringify(entry)}\n`);

let active = -1;
let reached = new Set();
globalThis.mutant = (id) => {
  if (active < 0) reached.add(id);
  return id === active;
};

/** [0] the number of tests begun, [1] whether a mutant is on. */
const beat = new Int32Array(new SharedArrayBuffer(8));
new Worker(
  `const { workerData: { beat, limit } } = require('node:worker_threads');
  let seen = -1, cpu = 0, wall = 0;
  setInterval(() => {
    const { user, system } = process.cpuUsage();
    const now = (user + system) / 1000;
    const begun = Atomics.load(beat, 0);
    if (begun !== seen || Atomics.load(beat, 1) === 0) { seen = begun; cpu = now; wall = Date.now(); }
    if (now - cpu > limit.cpu || Date.now() - wall > limit.wall) process.kill(process.pid, 'SIGKILL');
  }, 500);`,
  { eval: true, workerData: { beat, limit: ENDLESS } },
).unref();

const cpuTime = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
};

/** The names of the tests and suites that failed. */
const failures = (task) => {
  const inner = task.type === 'test' ? [] : task.tasks.flatMap(failures);
  return task.result?.state === 'fail' && inner.length === 0 ? [task.name] : inner;
};

/** Runs a file again inside the run that vitest knows of, and tells vitest nothing. */
class AgainRunner extends TestRunner {
  constructor(outer) {
    super(outer.config);
    this.moduleRunner = outer.moduleRunner;
    this._otel = outer._otel;
  }
  importFile(path, source) {
    const { evaluatedModules } = this.workerState;
    for (const module of evaluatedModules.fileToModulesMap.get(path) ?? [])
      evaluatedModules.invalidateModule(module);
    return super.importFile(path, source);
  }
  onBeforeRunTask(test) {
    Atomics.add(beat, 0, 1);
    return super.onBeforeRunTask(test);
  }
  onAfterRunSuite() {}
  onAfterRunFiles() {}
}

/** Learns which tests reach which mutants. */
class RecordingRunner extends AgainRunner {
  /** Those reached outside of any test: by the file itself and the hooks of suites. */
  outside = new Set();
  tests = [];
  #began = 0;
  onBeforeRunTask(test) {
    for (const id of reached) this.outside.add(id);
    reached = new Set();
    this.#began = cpuTime();
    return super.onBeforeRunTask(test);
  }
  onAfterRunTask(test) {
    this.tests.push({ id: test.id, name: test.name, reached, cpu: cpuTime() - this.#began });
    reached = new Set();
    return super.onAfterRunTask(test);
  }
}

/** Runs on to the first failure. */
class MutantRunner extends AgainRunner {
  #failed = false;
  onBeforeRunTask(test) {
    if (this.#failed && test.mode === 'run') test.mode = 'skip';
    return super.onBeforeRunTask(test);
  }
  onAfterRunTask(test) {
    if (test.result?.state === 'fail') this.#failed = true;
    return super.onAfterRunTask(test);
  }
}

export default class extends TestRunner {
  async onAfterRunFiles(files) {
    for (const file of files) await this.#judge(file);
    super.onAfterRunFiles(files);
  }

  async #judge(file) {
    const { filepath } = file;
    const test = relative(this.config.root, filepath);
    reached = new Set();
    const recording = new RecordingRunner(this);
    const [again] = await startTests([filepath], recording);
    for (const id of reached) recording.outside.add(id);
    const failed = new Set([...failures(file), ...failures(again)]);
    for (const name of failed) log({ test, unsound: name });
    for (const { name, cpu } of recording.tests)
      if (cpu > SLOW) log({ test, slow: name, cpu: Math.round(cpu) });
    const quick = recording.tests.filter(({ name, cpu }) => cpu <= SLOW && !failed.has(name));
    quick.sort((a, b) => a.cpu - b.cpu);
    const ids = new Set([...recording.outside, ...quick.flatMap(({ reached }) => [...reached])]);
    log({ test, reached: [...ids] });
    for (const id of ids) {
      const done = readFileSync(LOG, 'utf8')
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line))
        .some((entry) => entry.killed === id || (entry.survived === id && entry.test === test));
      if (done) continue;
      const testIds = quick
        .filter((one) => one.reached.has(id) || recording.outside.has(id))
        .map((one) => one.id);
      if (testIds.length === 0) continue;
      log({ test, begun: id });
      active = id;
      Atomics.store(beat, 1, 1);
      const [mutated] = await startTests([{ filepath, testIds }], new MutantRunner(this));
      Atomics.store(beat, 1, 0);
      active = -1;
      const [by] = failures(mutated);
      log(by === undefined ? { test, survived: id } : { test, killed: id, by });
    }
    // A mutant must not have left its traces: the file passes as it did.
    const [last] = await startTests(
      [{ filepath, testIds: quick.map((one) => one.id) }],
      new AgainRunner(this),
    );
    for (const spoilt of failures(last)) log({ test, spoilt });
    log({ test, done: true });
  }
}
