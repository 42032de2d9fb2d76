/** `softcvm demo` (npm start): two guests in private memory, and a table of what happened. */
import { createHost, GiB, MiB, type RunReport, readImage } from '../index.ts';

const GUESTS = ['hello', 'conversions'] as const;
const TIMEOUT_MS = 120_000;

const ROWS: [string, (report: RunReport) => string | number][] = [
  ['ended by', ({ exit }) => `${exit.reason}, code ${exit.code}`],
  ['instructions', ({ instructions }) => instructions.toLocaleString('en')],
  ['exits: port I/O', ({ exits }) => exits.io],
  ['exits: hypercall', ({ exits }) => exits.hypercall],
  ['exits: memory fault', ({ exits }) => exits.memory_fault],
  ['pages of RAM that are private', ({ memory }) => memory.privatePages],
  ['frames behind them (guest_memfd)', ({ memory }) => memory.privateFrames],
  ['frames of shared memory', ({ memory }) => memory.sharedFrames],
  ['pages converted, there or back', ({ memory }) => memory.conversions],
  ['milliseconds', ({ wallMs }) => wallMs.toFixed(0)],
];

/** Returns the exit status: 0 if every guest ended well. */
export async function demo(): Promise<number> {
  const reports: RunReport[] = [];
  for (const name of GUESTS) {
    console.log(`--- softcvm run ${name}`);
    using host = createHost({ memory: GiB });
    using vm = host.createVm({
      type: 'sw-protected',
      memory: 64 * MiB,
      ...(await readImage(name)),
      onConsole: (bytes) => process.stdout.write(bytes),
    });
    const report = await vm.run({ timeoutMs: TIMEOUT_MS });
    if (report.exit.message !== undefined) console.log(report.exit.message);
    reports.push(report);
  }
  console.log('\n--- what happened');
  const table = [
    ['', ...GUESTS],
    ...ROWS.map(([title, value]) => [title, ...reports.map((one) => String(value(one)))]),
  ];
  const widths = table[0]!.map((_, column) => Math.max(...table.map((row) => row[column]!.length)));
  for (const row of table) {
    console.log(
      row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join('  '),
    );
  }
  return reports.every(({ exit }) => exit.code === 0) ? 0 : 1;
}
