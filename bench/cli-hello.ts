/** cli.hello: the whole process `softcvm run hello`, against an empty Node process plus 150 ms. */
import { spawnSync } from 'node:child_process';

const ROUNDS = 9;
const ALLOWED_MS = 150;
const cli = new URL('../../dist/cli.js', import.meta.url).pathname;

function milliseconds(arguments_: readonly string[]): number {
  const start = performance.now();
  const { status, stderr } = spawnSync(process.execPath, arguments_, { encoding: 'utf8' });
  const elapsed = performance.now() - start;
  if (status !== 0) throw new Error(`node ${arguments_.join(' ')} ended with status ${status}: ${stderr}`);
  return elapsed;
}

const median = (values: readonly number[]): number => values.toSorted((a, b) => a - b)[values.length >> 1]!;

export async function bench() {
  const empty: number[] = [];
  const hello: number[] = [];
  // Taken in turn, so that both see the same noise.
  for (let round = 0; round < ROUNDS; round++) {
    empty.push(milliseconds(['-e', '']));
    hello.push(milliseconds([cli, 'run', 'hello']));
  }
  const bound = median(empty) + ALLOWED_MS;
  const value = median(hello);
  return {
    value,
    unit: 'ms',
    bound,
    ratio: bound / value,
    note: `median of ${ROUNDS}; an empty Node process takes ${median(empty).toFixed(0)} ms, hello at best ${Math.min(...hello).toFixed(0)} ms`,
  };
}
