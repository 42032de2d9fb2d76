/** An attestation report for people to read: each field under its name, with what its bits mean. */
import { generationOf, PRODUCTS, type Product } from '../abi/amd-certificate.ts';
import { PLATFORM_INFO } from '../abi/attestation-report.ts';
import { decodeTcb, tcbComponents } from '../abi/tcb-version.ts';
import { toHex } from '../base/hex.ts';
import { requireOneOf } from '../base/option-checks.ts';
import { isZero } from './bytes.ts';
import { type AttestationReport, requireReport } from './report.ts';

const POLICY_BITS: readonly (readonly [bit: number, meaning: string])[] = [
  [16, 'SMT allowed'],
  [18, 'migration agent allowed'],
  [19, 'debug allowed'],
  [20, 'single socket'],
  [21, 'CXL allowed'],
  [22, 'AES-256-XTS'],
  [23, 'RAPL off'],
  [24, 'ciphertext hiding'],
  [25, 'page swap off'],
];

/**
 * Field and text, in the report's order. `given` decides how TCB versions are read where the report does not say. RangeError: no report, or no product.
 */
export function describeReport(report: AttestationReport, given?: Product): [field: string, text: string][] {
  requireReport(report);
  if (given !== undefined) requireOneOf('product', given, PRODUCTS);
  const product = given ?? report.product;
  const hex = (value: bigint | number): string => `0x${value.toString(16)}`;
  const tcb = (version: bigint): string => tcbText(version, product);
  const policyBits = POLICY_BITS.filter(([bit]) => (report.policy >> BigInt(bit)) & 1n).map(
    ([, meaning]) => meaning,
  );
  const abi = `ABI ${(report.policy >> 8n) & 0xffn}.${report.policy & 0xffn}`;
  const platformBits = Object.entries(PLATFORM_INFO)
    .filter(([, bit]) => report.platformInfo & BigInt(bit))
    .map(([name]) => name);
  const version = (prefix: 'current' | 'committed'): string =>
    `${report[`${prefix}Major`]}.${report[`${prefix}Minor`]}.${report[`${prefix}Build`]}`;
  const lines: [string, string][] = [
    ['version', String(report.version)],
    ['guest svn', String(report.guestSvn)],
    ['policy', `${hex(report.policy)} (${[abi, ...policyBits].join(', ')})`],
    ['family id', toHex(report.familyId)],
    ['image id', toHex(report.imageId)],
    ['vmpl', report.vmpl === 0xffff_ffff ? 'asked for by the host' : String(report.vmpl)],
    [
      'signature algorithm',
      report.signatureAlgo === 1 ? 'ECDSA P-384 with SHA-384' : String(report.signatureAlgo),
    ],
    ['current tcb', tcb(report.currentTcb)],
    [
      'platform info',
      `${hex(report.platformInfo)}${platformBits.length === 0 ? '' : ` (${platformBits.join(', ')})`}`,
    ],
    ['signing key', report.signingKey],
    ['author key', report.isAuthorKeyEnabled ? 'used' : 'not used'],
    ['chip key', report.isChipKeyMasked ? 'masked' : 'not masked'],
    ['report data', toHex(report.reportData)],
    ['measurement', toHex(report.measurement)],
    ['host data', toHex(report.hostData)],
    ['id key digest', toHex(report.idKeyDigest)],
    ['author key digest', toHex(report.authorKeyDigest)],
    ['report id', toHex(report.reportId)],
    ['migration agent', report.reportIdMa.every((byte) => byte === 0xff) ? 'none' : toHex(report.reportIdMa)],
    ['reported tcb', tcb(report.reportedTcb)],
  ];
  if (report.version >= 3) {
    const cpuid = `family ${hex(report.cpuidFamily)}, model ${hex(report.cpuidModel)}, stepping ${report.cpuidStepping}`;
    lines.push(['cpuid', `${cpuid} (${report.product ?? 'unknown generation'})`]);
  }
  lines.push(
    ['chip id', report.isChipIdMasked ? 'masked' : toHex(report.chipId)],
    ['committed tcb', tcb(report.committedTcb)],
    ['current firmware', version('current')],
    ['committed firmware', version('committed')],
    ['launch tcb', tcb(report.launchTcb)],
  );
  if (report.version >= 5) {
    lines.push(
      ['launch mitigations', hex(report.launchMitVector)],
      ['current mitigations', hex(report.currentMitVector)],
    );
  }
  lines.push(
    ['signature r', numberText(report.signature.subarray(0, 72))],
    ['signature s', numberText(report.signature.subarray(72, 144))],
  );
  return lines;
}

function tcbText(version: bigint, product: Product | undefined): string {
  const raw = `0x${version.toString(16).padStart(16, '0')}`;
  if (product === undefined) return raw;
  const levels = decodeTcb(generationOf(product), version);
  return `${raw} (${tcbComponents(generationOf(product))
    .map((component) => `${component} ${levels[component]}`)
    .join(', ')})`;
}

const numberText = (bytes: Uint8Array): string =>
  isZero(bytes.subarray(48))
    ? toHex(bytes.slice(0, 48).reverse())
    : `${toHex(bytes.slice().reverse())} (too large)`;
