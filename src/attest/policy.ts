/**
 * What a relying party wants of a report beside a signature that holds. A wish that is absent is not checked, but for those that say a
 * default; what the policy of a guest allows is judged by bits (AMD 56860, guest policy).
 */
import { generationOf, PRODUCTS, type Product } from '../abi/amd-certificate.ts';
import { decodeTcb, encodeTcb, type TcbVersion, tcbAtMost, tcbComponents } from '../abi/tcb-version.ts';
import { toHex } from '../base/hex.ts';
import { isObject, requireKind, requireKnownFields, requireOneOf, textOf } from '../base/option-checks.ts';
import type { Checks } from './check.ts';
import type { AttestationReport } from './report.ts';

/** Bytes, or the same in hex. */
export type HexOrBytes = string | Uint8Array;

/** Bits of the guest's policy that somebody may allow. */
export const ALLOWABLE = { debug: 19, 'migrate-ma': 18, smt: 16, 'cxl-allow': 21 } as const;
/** Bits that somebody may demand. */
export const DEMANDABLE = {
  'single-socket': 20,
  'mem-aes-256-xts': 22,
  'rapl-dis': 23,
  'ciphertext-hiding': 24,
  'page-swap-disable': 25,
} as const;

export interface ReportPolicy {
  /** Generation that the report must come from. */
  readonly product?: Product;
  /** Launch digest, 48 bytes; several: any of them. */
  readonly measurement?: HexOrBytes | readonly HexOrBytes[];
  /** 32 bytes. */
  readonly hostData?: HexOrBytes;
  /** 64 bytes: the verifier's nonce, or a digest that binds one. */
  readonly reportData?: HexOrBytes;
  /** 64 bytes; 8 suffice for Turin. Several: any of them. */
  readonly chipId?: HexOrBytes | readonly HexOrBytes[];
  /** Which kind of key may have signed. Default: either. */
  readonly signingKey?: 'VCEK' | 'VLEK';
  /** VMPL that the report was asked from, at most this privileged: 0 to 3, equal. */
  readonly vmpl?: number;
  /** Guest-policy bits that a guest may have. Default: smt alone, so a guest that may be debugged or migrated fails. */
  readonly allow?: readonly (keyof typeof ALLOWABLE)[];
  /** Guest-policy bits that a guest must have. */
  readonly demand?: readonly (keyof typeof DEMANDABLE)[];
  /** The whole guest policy. */
  readonly guestPolicy?: bigint;
  /** Least ABI version that the guest's policy asks for: [major, minor]. */
  readonly minimumAbi?: readonly [number, number];
  readonly familyId?: HexOrBytes;
  readonly imageId?: HexOrBytes;
  /** Least guest SVN. */
  readonly minimumGuestSvn?: number;
  /** SHA-384 of the ID key, as in the report; several: any of them. */
  readonly idKeyDigest?: HexOrBytes | readonly HexOrBytes[];
  /** SHA-384 of the author key; several: any of them. Demands that the author key was used. */
  readonly authorKeyDigest?: HexOrBytes | readonly HexOrBytes[];
  readonly reportId?: HexOrBytes;
  /** Least level of each component of REPORTED_TCB. */
  readonly minimumTcb?: Partial<TcbVersion>;
  /** Least level of each component of LAUNCH_TCB. */
  readonly minimumLaunchTcb?: Partial<TcbVersion>;
  /** Least firmware version, committed: [major, minor, build]. */
  readonly minimumFirmware?: readonly [number, number, number];
  /** PLATFORM_INFO bits that must be set, as a mask. */
  readonly platformInfo?: bigint;
  /** CRL of the root: demanded, or used where there is one. Default 'if given'. */
  readonly revocation?: 'required' | 'if given';
  /** A report says no time. This judges when the verifier got it, which it must say: seconds before `at`. */
  readonly maximumAge?: number;
}

/** What a field's value must be. */
interface Kind {
  readonly is: (value: unknown) => boolean;
  readonly want: string;
}

const isBytes = (value: unknown): boolean => typeof value === 'string' || value instanceof Uint8Array;
const BYTES: Kind = { is: isBytes, want: 'a Uint8Array or hex' };
const ANY_BYTES: Kind = {
  is: (value) => isBytes(value) || (Array.isArray(value) && value.length > 0 && value.every(isBytes)),
  want: 'a Uint8Array or hex, or an array of them',
};
const U64: Kind = {
  is: (value) => typeof value === 'bigint' && BigInt.asUintN(64, value) === value,
  want: 'a bigint of 64 bits',
};
const integer = (most: number): Kind => ({
  is: (value) => Number.isSafeInteger(value) && (value as number) >= 0 && (value as number) <= most,
  want: `an integer from 0 to ${most}`,
});
const U32 = integer(2 ** 32 - 1);
const BYTE = integer(255);
const VMPL: Kind = { is: (value) => [0, 1, 2, 3].includes(value as number), want: '0 to 3' };
const SECONDS: Kind = { is: (value) => typeof value === 'number' && value >= 0, want: 'a number from 0' };
const oneOf = (words: readonly string[]): Kind => ({
  is: (value) => words.includes(value as string),
  want: words.join(' or '),
});
const version = (parts: number): Kind => ({
  is: (value) => Array.isArray(value) && value.length === parts && value.every(BYTE.is),
  want: `${parts} integers from 0 to 255`,
});
const WORDS: Kind = { is: Array.isArray, want: 'an array' };
const OBJECT: Kind = { is: isObject, want: 'an object' };

const FIELDS: Readonly<Record<keyof ReportPolicy, Kind>> = {
  product: oneOf(PRODUCTS),
  measurement: ANY_BYTES,
  hostData: BYTES,
  reportData: BYTES,
  chipId: ANY_BYTES,
  signingKey: oneOf(['VCEK', 'VLEK']),
  vmpl: VMPL,
  allow: WORDS,
  demand: WORDS,
  guestPolicy: U64,
  minimumAbi: version(2),
  familyId: BYTES,
  imageId: BYTES,
  minimumGuestSvn: U32,
  idKeyDigest: ANY_BYTES,
  authorKeyDigest: ANY_BYTES,
  reportId: BYTES,
  minimumTcb: OBJECT,
  minimumLaunchTcb: OBJECT,
  minimumFirmware: version(3),
  platformInfo: U64,
  revocation: oneOf(['required', 'if given']),
  maximumAge: SECONDS,
};

const COMPONENTS: Readonly<Record<keyof TcbVersion, true>> = {
  fmc: true,
  bootLoader: true,
  tee: true,
  snp: true,
  microcode: true,
};

/** RangeError: a field, component, bit or word that is none, or a value that its field cannot have. */
export function requireKnownPolicy(policy: ReportPolicy): void {
  requireKnownFields('policy', policy, FIELDS);
  for (const field of Object.keys(policy) as (keyof ReportPolicy)[])
    requireKind(`policy.${field}`, policy[field], FIELDS[field].is, FIELDS[field].want);
  for (const field of ['minimumTcb', 'minimumLaunchTcb'] as const) {
    const levels = policy[field] ?? {};
    requireKnownFields(`policy.${field}`, levels, COMPONENTS);
    for (const [component, level] of Object.entries(levels))
      requireKind(`policy.${field}.${component}`, level, BYTE.is, BYTE.want);
  }
  for (const bit of policy.allow ?? []) requireOneOf('policy.allow', bit, Object.keys(ALLOWABLE));
  for (const bit of policy.demand ?? []) requireOneOf('policy.demand', bit, Object.keys(DEMANDABLE));
}

/** Hex in lower case. RangeError: not hex, or not `length` bytes. */
function hexOf(value: HexOrBytes, field: string, lengths: readonly number[]): string {
  const hex = typeof value === 'string' ? value.toLowerCase().replace(/^0x/, '') : toHex(value);
  if (!/^[0-9a-f]*$/.test(hex) || !lengths.includes(hex.length / 2)) {
    throw new RangeError(
      `policy.${field}: got ${textOf(typeof value === 'string' ? value : hex)}, want ${lengths.join(' or ')} bytes in hex`,
    );
  }
  return hex;
}

const several = (value: HexOrBytes | readonly HexOrBytes[]): readonly HexOrBytes[] =>
  typeof value === 'string' || value instanceof Uint8Array ? [value] : value;

/** Checks `report` against `policy`. RangeError: the policy itself is malformed, and where. */
export function checkPolicy(
  checks: Checks,
  report: AttestationReport,
  policy: ReportPolicy,
  product: Product | undefined,
  { at, obtainedAt }: { readonly at: Date; readonly obtainedAt: Date | undefined },
): void {
  const oneOf = (
    name: string,
    field: keyof ReportPolicy,
    got: Uint8Array,
    want: HexOrBytes | readonly HexOrBytes[] | undefined,
  ): void => {
    if (want === undefined) return;
    const texts = several(want).map((one) => hexOf(one, field, [got.length]));
    checks.add(name, texts.includes(toHex(got)), toHex(got), texts.join(' or '));
  };

  if (policy.product !== undefined) checks.equal('product.wanted', product ?? 'unknown', policy.product);
  if (policy.signingKey !== undefined)
    checks.equal('signing-key.wanted', report.signingKey, policy.signingKey);
  oneOf('measurement', 'measurement', report.measurement, policy.measurement);
  oneOf('report-data', 'reportData', report.reportData, policy.reportData);
  oneOf('host-data', 'hostData', report.hostData, policy.hostData);
  checkChipId(checks, report, policy.chipId);
  if (policy.vmpl !== undefined) checks.equal('vmpl', report.vmpl, policy.vmpl);
  checkGuestPolicy(checks, report, policy);
  oneOf('family-id', 'familyId', report.familyId, policy.familyId);
  oneOf('image-id', 'imageId', report.imageId, policy.imageId);
  if (policy.minimumGuestSvn !== undefined) {
    const isEnough = report.guestSvn >= policy.minimumGuestSvn;
    checks.add('guest-svn', isEnough, report.guestSvn, `at least ${policy.minimumGuestSvn}`);
  }
  oneOf('id-key-digest', 'idKeyDigest', report.idKeyDigest, policy.idKeyDigest);
  if (policy.authorKeyDigest !== undefined) {
    checks.equal('author-key', report.isAuthorKeyEnabled ? 'used' : 'not used', 'used');
    oneOf('author-key-digest', 'authorKeyDigest', report.authorKeyDigest, policy.authorKeyDigest);
  }
  oneOf('report-id', 'reportId', report.reportId, policy.reportId);
  checkLevels(checks, 'tcb.minimum', product, report.reportedTcb, policy.minimumTcb);
  checkLevels(checks, 'launch-tcb.minimum', product, report.launchTcb, policy.minimumLaunchTcb);
  checkFirmware(checks, report, policy);
  if (policy.platformInfo !== undefined) {
    const hasAll = (report.platformInfo & policy.platformInfo) === policy.platformInfo;
    checks.add(
      'platform-info',
      hasAll,
      `0x${report.platformInfo.toString(16)}`,
      `all of 0x${policy.platformInfo.toString(16)}`,
    );
  }
  if (policy.maximumAge !== undefined) {
    const seconds = obtainedAt === undefined ? undefined : (at.getTime() - obtainedAt.getTime()) / 1000;
    const isYoung = seconds !== undefined && seconds >= 0 && seconds <= policy.maximumAge;
    const got = seconds === undefined ? 'nobody said when the report was obtained' : `${seconds} s`;
    checks.add('age', isYoung, got, `0 to ${policy.maximumAge} s`);
  }
}

function checkChipId(checks: Checks, report: AttestationReport, want: ReportPolicy['chipId']): void {
  if (want === undefined) return;
  const texts = several(want).map((one) => hexOf(one, 'chipId', [64, 8]).padEnd(128, '0'));
  const got = toHex(report.chipId);
  checks.add(
    'chip-id.wanted',
    texts.includes(got),
    report.isChipIdMasked ? 'masked' : got,
    texts.join(' or '),
  );
}

const RESERVED_ONE = 1n << 17n;

function checkGuestPolicy(checks: Checks, report: AttestationReport, policy: ReportPolicy): void {
  const { policy: bits } = report;
  const hex = (value: bigint): string => `0x${value.toString(16)}`;
  checks.add('policy.reserved', (bits & RESERVED_ONE) !== 0n, hex(bits), 'bit 17 set');
  if (policy.guestPolicy !== undefined) checks.equal('policy', hex(bits), hex(policy.guestPolicy));
  const allowed = policy.allow ?? ['smt'];
  for (const [name, bit] of Object.entries(ALLOWABLE) as [keyof typeof ALLOWABLE, number][]) {
    if (allowed.includes(name)) continue;
    checks.equal(`policy.${name}`, (bits >> BigInt(bit)) & 1n ? 'allowed' : 'not allowed', 'not allowed');
  }
  for (const name of policy.demand ?? []) {
    checks.equal(
      `policy.${name}`,
      (bits >> BigInt(DEMANDABLE[name])) & 1n ? 'demanded' : 'not demanded',
      'demanded',
    );
  }
  if (policy.minimumAbi !== undefined) {
    const [major, minor] = [Number((bits >> 8n) & 0xffn), Number(bits & 0xffn)];
    const [wantMajor, wantMinor] = policy.minimumAbi;
    const isEnough = major > wantMajor || (major === wantMajor && minor >= wantMinor);
    checks.add('policy.abi', isEnough, `${major}.${minor}`, `at least ${wantMajor}.${wantMinor}`);
  }
}

function checkLevels(
  checks: Checks,
  name: string,
  product: Product | undefined,
  version: bigint,
  minimum: Partial<TcbVersion> | undefined,
): void {
  if (minimum === undefined) return;
  const levels: Partial<TcbVersion> = product === undefined ? {} : decodeTcb(generationOf(product), version);
  for (const [component, want] of Object.entries(minimum) as [keyof TcbVersion, number][]) {
    const got = levels[component];
    checks.add(`${name}.${component}`, got !== undefined && got >= want, got ?? 'none', `at least ${want}`);
  }
}

function checkFirmware(checks: Checks, report: AttestationReport, { minimumFirmware }: ReportPolicy): void {
  if (minimumFirmware === undefined) return;
  const got = [report.committedMajor, report.committedMinor, report.committedBuild];
  const more = got.map((part, index) => part - minimumFirmware[index]!).find((part) => part !== 0) ?? 0;
  checks.add('firmware', more >= 0, got.join('.'), `at least ${minimumFirmware.join('.')}`);
}

/**
 * What must hold of any report: REPORTED_TCB is not above COMMITTED_TCB, which is not above CURRENT_TCB; each component counts, as
 * verifiers compare.
 */
export function checkTcbOrder(checks: Checks, report: AttestationReport, product: Product | undefined): void {
  if (product === undefined) return;
  const generation = generationOf(product);
  const text = (version: bigint): string => {
    const levels = decodeTcb(generation, version);
    return tcbComponents(generation)
      .map((component) => `${component} ${levels[component]}`)
      .join(', ');
  };
  for (const [name, lower, upper] of [
    ['reported', report.reportedTcb, report.committedTcb],
    ['committed', report.committedTcb, report.currentTcb],
  ] as const) {
    checks.add(`tcb.${name}`, tcbAtMost(generation, lower, upper), text(lower), `at most ${text(upper)}`);
    const known = encodeTcb(generation, decodeTcb(generation, lower));
    if (known !== lower)
      checks.add(`tcb.${name}.reserved`, false, `0x${lower.toString(16)}`, `0x${known.toString(16)}`);
  }
}
