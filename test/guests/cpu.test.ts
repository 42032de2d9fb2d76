import { afterEach, describe, expect, it } from 'vitest';
import { createHost, type Host, readImage } from '../../src/index.ts';

let host: Host;
afterEach(() => host.close());

/** Groups, and how many results each compares. */
const GROUPS = [
  ['integers and flags', 26400],
  ['bits', 9182],
  ['multiplication and division', 3564],
  ['strings', 60400],
  ['exchanges', 3600],
  ['stack', 2400],
  ['floating point', 1482],
  ['conversions', 2392],
  ['packed integers', 10000],
  ['shuffles', 5400],
  ['text', 231],
  ['AES and carry-less products', 800],
] as const;

describe('the guest cpu', () => {
  it.each(['default', 'sw-protected'] as const)('finds nothing wrong in a VM of type %s', async (type) => {
    host = createHost({ memory: 256 * 1024 * 1024 });
    const vm = host.createVm({ type, memory: 32 * 1024 * 1024, ...(await readImage('cpu')) });
    const report = await vm.run({ timeoutMs: 60_000 });
    const lines = GROUPS.map(([name, compared]) => `${name}: ${compared} compared, 0 wrong`);
    expect(report.console.trimEnd().split('\n')).toEqual([...lines, 'all right']);
    expect(report.exit).toEqual({ reason: 'debug-exit', code: 0 });
  });
});
