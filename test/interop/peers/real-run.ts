/** Evidence of a real run, as a user of the command line gets it: the guest `attester` prints report and certificates. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { run } from './install.ts';

const cli = new URL('../../../dist/cli.js', import.meta.url).pathname;

export interface RunEvidence {
  readonly report: Uint8Array;
  readonly measurement: string;
  readonly guestData: string;
  /** PEM by kind. */
  readonly certificates: ReadonlyMap<string, string>;
  /** As the guest got them. */
  readonly table: Uint8Array;
}

/** Its standard output. Throws with what it says on standard error, where it ends with another status than 0. */
export async function softcvm(...args: readonly string[]): Promise<string> {
  const { status, output, errors } = await run(process.execPath, [cli, ...args], { timeoutMs: 120_000 });
  if (status !== 0) throw new Error(`softcvm ${args.join(' ')}: ${errors}`);
  return output;
}

/** An SNP guest on a chip of that generation, of the authority with `seed`; `options` are more of `softcvm run`'s. */
export async function runAttester(
  product: string,
  seed: number,
  options: readonly string[] = [],
): Promise<RunEvidence> {
  const folder = mkdtempSync(join(tmpdir(), 'softcvm-attester-'));
  try {
    const certs = join(folder, 'certificates');
    await softcvm('certs', 'table', '--seed', String(seed), '--product', product, '--out', certs);
    const guestData = Buffer.from(`nonce for a ${product}`.padEnd(64, '.')).toString('hex');
    const printed = await softcvm(
      ...['run', 'attester', '--type', 'sev-snp', '--chip', product.toLowerCase(), '--seed', String(seed)],
      ...['--certs', certs, '--guest-data', guestData, '--json', ...options],
    );
    const { report, certificates, launch } = JSON.parse(printed) as {
      report: string;
      certificates: { kind: string; pem: string }[];
      launch: { measurement: string };
    };
    return {
      report: Buffer.from(report, 'hex'),
      measurement: launch.measurement,
      guestData,
      certificates: new Map(certificates.map(({ kind, pem }) => [kind, pem])),
      table: readFileSync(certs),
    };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
