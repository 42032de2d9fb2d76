/**
 * `softcvm verify`: judges an attestation report. Exit status 0 only if every check holds, 1 if one does not. There is no root but those that
 * `--roots` names, also for evidence of SoftCVM's own.
 */

import { createHash } from 'node:crypto';
import { statSync } from 'node:fs';
import { CERTIFICATE_GUID, certificateName } from '../abi/certificate-table.ts';
import {
  type AttestationReport,
  type Certificate,
  type CertificateTableEntry,
  decodeCertificateTable,
  fetchEvidence,
  KdsError,
  type KdsEvidence,
  type PrintedCertificate,
  type Product,
  parseCrl,
  type ReportPolicy,
  readCertificates,
  type TcbVersion,
  type Verdict,
  verifyReport,
} from '../attest/index.ts';
import { textOf } from '../base/option-checks.ts';
import { filesOf, readInput } from './files.ts';
import { asInput, readReport } from './report.ts';
import { runEvidence } from './run-evidence.ts';
import { InputError, parseChoice, parseInteger, parseNumber, parseWord } from './size.ts';

/** Options as commander has them. */
export interface VerifyCommandOptions {
  readonly certs?: string[];
  readonly kds?: string | true;
  readonly roots?: string[];
  readonly crl?: string[];
  readonly at?: string;
  readonly product?: string;
  readonly measurement?: string[];
  readonly hostData?: string;
  readonly reportData?: string;
  readonly chipId?: string[];
  readonly signingKey?: string;
  readonly vmpl?: string;
  readonly allow?: string[];
  readonly demand?: string[];
  readonly guestPolicy?: string;
  readonly minimumAbi?: string;
  readonly familyId?: string;
  readonly imageId?: string;
  readonly minimumGuestSvn?: string;
  readonly idKeyDigest?: string[];
  readonly authorKeyDigest?: string[];
  readonly reportId?: string;
  readonly minimumTcb?: string;
  readonly minimumLaunchTcb?: string;
  readonly minimumFirmware?: string;
  readonly platformInfo?: string;
  readonly requireCrl?: boolean;
  readonly maximumAge?: string;
  readonly obtained?: string;
  readonly json?: boolean;
  readonly quiet?: boolean;
}

const FAILED = 1;
const U32 = 2 ** 32 - 1;

export async function verify(path: string, options: VerifyCommandOptions): Promise<number> {
  const policy = policyOf(options);
  const certificates: Uint8Array[] = [];
  const crls: Uint8Array[] = [];
  for (const file of filesOf(options.certs ?? [], '--certs')) {
    asInput(() => sort(readInput(file, '--certs'), `--certs ${file}`, certificates, crls));
  }
  for (const file of filesOf(options.crl ?? [], '--crl')) {
    const bytes = readInput(file, '--crl');
    asInput(() => parseCrl(bytes, `--crl ${file}`));
    crls.push(bytes);
  }
  const roots = filesOf(options.roots ?? [], '--roots').flatMap((file) =>
    asInput(() => readCertificates(readInput(file, '--roots'), `--roots ${file}`)),
  );
  const { report, certificates: beside } = readReport(path);
  asInput(() => sortPrinted(beside, `report ${path}`, certificates, crls));
  if (options.kds !== undefined) {
    const evidence = await fetched(report, options);
    certificates.push(...evidence.certificates);
    crls.push(...evidence.crls);
  }
  const obtainedAt =
    options.obtained === undefined ? statSync(path).mtime : timeOf(options.obtained, '--obtained');
  let verdict: Verdict;
  try {
    verdict = await verifyReport(report.bytes, {
      certificates,
      roots: roots.map(({ bytes }) => bytes),
      crls,
      policy,
      obtainedAt,
      ...(options.at === undefined ? {} : { at: timeOf(options.at, '--at') }),
    });
  } catch (error) {
    if (error instanceof RangeError) throw new InputError(withOption(error.message));
    throw error;
  }
  show(verdict, roots, options);
  return verdict.ok ? 0 : FAILED;
}

/**
 * A revocation list and a certificate table are told from certificates by what they are. What stands in a table is evidence of the guest's: the verdict
 * says if it is malformed. A table may hold what is none of AMD's, under a GUID of its own.
 */
function sort(file: Buffer, name: string, certificates: Uint8Array[], crls: Uint8Array[]): void {
  const evidence = runEvidence(file, name);
  if (evidence !== undefined) {
    if (evidence.certificates === undefined)
      throw new InputError(`${name}: got a run without certificates, want one whose guest asked for them`);
    sortPrinted(evidence.certificates, name, certificates, crls);
    return;
  }
  const text = file.subarray(0, 64 * 1024).toString('latin1');
  if (text.includes('-----BEGIN X509 CRL-----') || isDerCrl(file)) {
    parseCrl(file, name);
    crls.push(file);
  } else if (text.includes('-----BEGIN ') || file[0] === 0x30) {
    readCertificates(file, name);
    certificates.push(file);
  } else {
    for (const { guid, bytes } of tableOf(file, text, name)) {
      const kind = certificateName(guid);
      if (kind !== undefined) (kind === 'CRL' ? crls : certificates).push(bytes);
    }
  }
}

function sortPrinted(
  printed: readonly PrintedCertificate[],
  name: string,
  certificates: Uint8Array[],
  crls: Uint8Array[],
): void {
  for (const { kind, pem } of printed)
    if (Object.hasOwn(CERTIFICATE_GUID, kind)) sort(Buffer.from(pem), `${name} ${kind}`, certificates, crls);
}

function tableOf(file: Buffer, text: string, name: string): readonly CertificateTableEntry[] {
  try {
    return decodeCertificateTable(withoutHex(file, text));
  } catch (error) {
    throw new InputError(`${name}: got neither PEM nor DER, nor a table (${(error as Error).message})`);
  }
}

/** A certificate table as a guest prints it is hex. */
function withoutHex(file: Buffer, beginning: string): Buffer {
  return /^[0-9a-f\s]+$/i.test(beginning) ? Buffer.from(file.toString('latin1').trim(), 'hex') : file;
}

/** A TBSCertList begins with version and algorithm, a TBSCertificate with [0] or a serial number and algorithm: its version is wrapped. */
function isDerCrl(bytes: Uint8Array): boolean {
  const headLength = (at: number): number => (bytes[at + 1]! < 0x80 ? 2 : 2 + (bytes[at + 1]! & 0x7f));
  const tbs = bytes[0] === 0x30 ? headLength(0) : -1;
  if (tbs === -1 || bytes[tbs] !== 0x30) return false;
  const first = tbs + headLength(tbs);
  return bytes[first] === 0x02 && bytes[first + 1] === 1 && bytes[first + 2] === 1;
}

async function fetched(
  report: AttestationReport,
  { kds, product }: VerifyCommandOptions,
): Promise<KdsEvidence> {
  try {
    return await fetchEvidence(report, {
      ...(typeof kds === 'string' ? { url: kds } : {}),
      ...(product === undefined ? {} : { product: productOf(product) }),
    });
  } catch (error) {
    if (error instanceof RangeError || error instanceof KdsError) {
      const isUnknown = error instanceof KdsError && error.triedProducts.length > 0;
      const hint = isUnknown ? ': --product names it' : '';
      throw new InputError(`--kds ${error.message}${hint}`);
    }
    return asInput(() => {
      throw error;
    });
  }
}

const productOf = (text: string): Product => parseChoice(text, '--product', ['Milan', 'Genoa', 'Turin']);

function policyOf(options: VerifyCommandOptions): ReportPolicy {
  const policy: { -readonly [Key in keyof ReportPolicy]: ReportPolicy[Key] } = {};
  if (options.product !== undefined) policy.product = productOf(options.product);
  if (options.measurement !== undefined) policy.measurement = options.measurement;
  if (options.hostData !== undefined) policy.hostData = options.hostData;
  if (options.reportData !== undefined) policy.reportData = reportDataOf(options.reportData);
  if (options.chipId !== undefined) policy.chipId = options.chipId;
  if (options.signingKey !== undefined) {
    policy.signingKey = parseWord(options.signingKey, '--signing-key', ['VCEK', 'VLEK']);
  }
  if (options.vmpl !== undefined) policy.vmpl = parseInteger(options.vmpl, '--vmpl', 0, 3);
  policy.allow = (options.allow ?? ['smt']).map((name) =>
    parseChoice(name, '--allow', ['smt', 'debug', 'migrate-ma', 'cxl-allow']),
  );
  policy.demand = (options.demand ?? []).map((name) =>
    parseChoice(name, '--demand', [
      'single-socket',
      'mem-aes-256-xts',
      'rapl-dis',
      'ciphertext-hiding',
      'page-swap-disable',
    ]),
  );
  if (options.guestPolicy !== undefined) policy.guestPolicy = u64(options.guestPolicy, '--guest-policy');
  if (options.minimumAbi !== undefined)
    policy.minimumAbi = versionOf(options.minimumAbi, '--minimum-abi', 2) as [number, number];
  if (options.familyId !== undefined) policy.familyId = options.familyId;
  if (options.imageId !== undefined) policy.imageId = options.imageId;
  if (options.minimumGuestSvn !== undefined) {
    policy.minimumGuestSvn = parseInteger(options.minimumGuestSvn, '--minimum-guest-svn', 0, U32);
  }
  if (options.idKeyDigest !== undefined) policy.idKeyDigest = options.idKeyDigest;
  if (options.authorKeyDigest !== undefined) policy.authorKeyDigest = options.authorKeyDigest;
  if (options.reportId !== undefined) policy.reportId = options.reportId;
  if (options.minimumTcb !== undefined) policy.minimumTcb = tcbOf(options.minimumTcb, '--minimum-tcb');
  if (options.minimumLaunchTcb !== undefined) {
    policy.minimumLaunchTcb = tcbOf(options.minimumLaunchTcb, '--minimum-launch-tcb');
  }
  if (options.minimumFirmware !== undefined) {
    policy.minimumFirmware = versionOf(options.minimumFirmware, '--minimum-firmware', 3) as [
      number,
      number,
      number,
    ];
  }
  if (options.platformInfo !== undefined) policy.platformInfo = u64(options.platformInfo, '--platform-info');
  if (options.requireCrl) policy.revocation = 'required';
  if (options.maximumAge !== undefined)
    policy.maximumAge = parseNumber(options.maximumAge, '--maximum-age', 0, 1e9);
  else if (options.obtained !== undefined)
    throw new InputError('--obtained: got it without --maximum-age, want both');
  return policy;
}

/** Options have their names from the policy's fields: `policy.hostData` is `--host-data`. */
const withOption = (message: string): string =>
  message.replace(
    /^policy\.(\w+)/,
    (_, field: string) => `--${field.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`,
  );

function reportDataOf(text: string): string {
  if (!/^(0x)?([0-9a-f]{2}){1,64}$/i.test(text))
    throw new InputError(`--report-data: got ${textOf(text)}, want 1 to 64 bytes in hex`);
  return text.replace(/^0x/i, '').padEnd(128, '0');
}

function u64(text: string, option: string): bigint {
  if (!/^(0x[0-9a-f]{1,16}|\d{1,19})$/i.test(text))
    throw new InputError(`${option}: got ${textOf(text)}, want a 64-bit number`);
  return BigInt(text);
}

function versionOf(text: string, option: string, parts: number): number[] {
  const numbers = text.split('.').map((part) => (/^\d{1,3}$/.test(part) ? Number(part) : Number.NaN));
  if (numbers.length !== parts || numbers.some((part) => !(part <= 255))) {
    throw new InputError(
      `${option}: got ${textOf(text)}, want ${parts} numbers such as ${'1.55.21'.split('.').slice(0, parts).join('.')}`,
    );
  }
  return numbers;
}

const COMPONENTS = ['fmc', 'bootLoader', 'tee', 'snp', 'microcode'] as const;

/** `bootLoader=4,snp=24`. */
function tcbOf(text: string, option: string): Partial<TcbVersion> {
  return Object.fromEntries(
    text.split(',').map((part) => {
      const [name = '', level = ''] = part.split('=');
      const component = COMPONENTS.find(
        (one) => one.toLowerCase() === name.trim().replace('-', '').toLowerCase(),
      );
      if (component === undefined) {
        throw new InputError(`${option}: got ${textOf(part)}, want ${COMPONENTS.join('=N, ')}=N`);
      }
      return [component, parseInteger(level, `${option} ${component}`, 0, 255)];
    }),
  );
}

/** As RFC 3339 has it; the time may be missing (midnight, UTC), or its seconds or zone (this machine's). */
const TIME = /^(\d{4}-\d{2}-\d{2})(T(?:[01]\d|2[0-3]):\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:\d{2})?)?$/i;

function timeOf(text: string, option: string): Date {
  const [, day] = TIME.exec(text) ?? [];
  // JavaScript has a 30th of February, which is the 2nd of March.
  const midnight = new Date(day ?? Number.NaN);
  const isDay = !Number.isNaN(midnight.getTime()) && midnight.toISOString().slice(0, 10) === day;
  const time = new Date(text.toUpperCase());
  if (!isDay || Number.isNaN(time.getTime()))
    throw new InputError(`${option}: got ${textOf(text)}, want a time such as 2026-11-21T08:00:00Z`);
  return time;
}

const SOFTWARE = 'the certificates are marked as made by SoftCVM, in software: not by AMD';

function show(verdict: Verdict, roots: readonly Certificate[], options: VerifyCommandOptions): void {
  // The ASK of a chain that was given as roots is none.
  const fingerprints = roots
    .filter(({ subject, issuer }) => subject.text === issuer.text)
    .map(({ bytes }) => createHash('sha256').update(bytes).digest('hex'));
  const shown = options.quiet ? verdict.failures : verdict.checks;
  if (options.json) {
    const { ok, isSoftware } = verdict;
    console.log(JSON.stringify({ ok, software: isSoftware, roots: fingerprints, checks: shown }));
    return;
  }
  const width = Math.max(0, ...shown.map(({ name }) => name.length));
  for (const { name, ok, got, want } of shown) {
    // What is malformed says itself what it should be.
    const isWhole = (ok && got === want) || want === 'well-formed';
    const detail = isWhole ? got : `got ${got}, want ${want}`;
    console.log(`${ok ? 'ok    ' : 'FAILED'}  ${name.padEnd(width)}  ${detail}`);
  }
  for (const print of fingerprints) console.log(`root ${print}`);
  if (verdict.isSoftware) console.log(SOFTWARE);
  const failed = verdict.failures.length;
  console.log(
    verdict.ok
      ? `verified: ${verdict.checks.length} checks`
      : `not verified: ${failed} of ${verdict.checks.length} checks failed`,
  );
}
