/** `softcvm demo` (npm start): two guests in private memory, a table of what happened, and an SNP guest that proves itself. */
import { randomBytes } from 'node:crypto';
import { verifyReport } from '../attest/index.ts';
import { Authority } from '../authority/authority.ts';
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
  const attested = await attest();
  return attested && reports.every(({ exit }) => exit.code === 0) ? 0 : 1;
}

const CERTIFICATES = '/run/certificates';
const NONCE_BYTES = 64;

/** An SNP guest asks firmware for a report with our nonce in it; a relying party, who knows what should have been launched, judges it. */
async function attest(): Promise<boolean> {
  console.log('\n--- softcvm run --type sev-snp attester');
  const authority = Authority.seeded(1);
  const chip = authority.chip('milan');
  const nonce = randomBytes(NONCE_BYTES);
  using host = createHost({ memory: GiB, chip });
  const fd = host.process.open(CERTIFICATES);
  host.process.pwrite(fd, await authority.certificateTable(chip), 0n);
  host.process.close(fd);
  using vm = host.createVm({
    type: 'sev-snp',
    memory: 64 * MiB,
    ...(await readImage('attester')),
    snp: { certificates: { path: CERTIFICATES }, guestData: nonce },
  });
  const { report, certificates = [], launch, exit } = await vm.run({ timeoutMs: TIMEOUT_MS });
  if (report === undefined || launch === undefined) {
    console.log(exit.message ?? 'the guest printed no report');
    return false;
  }
  console.log(
    `a report of ${report.length} bytes and ${certificates.length} certificates; now the relying party:\n`,
  );
  const verdict = await verifyReport(report, {
    certificates: certificates.filter(({ kind }) => kind !== 'CRL').map(({ pem }) => Buffer.from(pem)),
    crls: certificates.filter(({ kind }) => kind === 'CRL').map(({ pem }) => Buffer.from(pem)),
    roots: [await authority.ark('Milan')],
    policy: { measurement: launch.measurement, reportData: nonce, vmpl: 0, product: 'Milan' },
  });
  for (const { ok, name, got } of verdict.checks)
    console.log(`${ok ? ' ok ' : 'FAIL'}  ${name}: ${shorten(got)}`);
  const whose = verdict.isSoftware ? ' (SoftCVM’s own root: nobody else trusts it)' : '';
  console.log(`\nverdict: ${verdict.ok ? 'the guest is what it says it is' : 'not accepted'}${whose}`);
  return verdict.ok;
}

const LONGEST = 72;
const shorten = (text: string): string => (text.length <= LONGEST ? text : `${text.slice(0, LONGEST)}…`);
