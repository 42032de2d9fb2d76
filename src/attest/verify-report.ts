/**
 * Judges an attestation report: who signed it, whether that key belongs to a chip of AMD's design with the TCB that the report says, by a
 * chain that ends in a root which the caller gave, and whether it is what the caller's policy wants. Every check is made and has a name; one
 * that fails does not hide another. Nothing is trusted that was not handed in, and nothing is kept from one call to the next.
 */
import {
  AMD_ORGANIZATION,
  generationOf,
  hwidBytes,
  OID,
  type Product,
  TCB_OID,
} from '../abi/amd-certificate.ts';
import { SIGNATURE_ALGO_ECDSA_P384_SHA384 } from '../abi/attestation-report.ts';
import { DerError } from '../abi/der.ts';
import { decodeTcb, tcbComponents } from '../abi/tcb-version.ts';
import { toHex } from '../base/hex.ts';
import { requireFiles, requireKind, requireKnownFields } from '../base/option-checks.ts';
import { sameBytes } from './bytes.ts';
import { type Certificate, readCertificates } from './certificate.ts';
import { checkChain, isSelfSigned } from './chain.ts';
import { type Check, Checks } from './check.ts';
import { parseCrl } from './crl.ts';
import { EvidenceError } from './evidence-error.ts';
import { findPath, type Path } from './path.ts';
import { checkPolicy, checkTcbOrder, type ReportPolicy, requireKnownPolicy } from './policy.ts';
import { type AttestationReport, parseReport } from './report.ts';
import type { GivenList } from './revocation.ts';
import { SignatureChecks } from './signatures.ts';

export interface VerifyOptions {
  /** Files of certificates, DER or PEM: VCEK or VLEK, its ASK or ASVK, the ARK if there is one, in any order; what else lies among them does not count. */
  readonly certificates: readonly Uint8Array[];
  /** The ARKs that the caller trusts, DER or PEM. Without one nothing verifies. */
  readonly roots: readonly Uint8Array[];
  /** Revocation lists, DER or PEM, in any order: what any of them revokes is revoked. */
  readonly crls?: readonly Uint8Array[];
  readonly policy?: ReportPolicy;
  /** The time to judge at. Default: now. */
  readonly at?: Date;
  /** When the verifier got the report, for `policy.maximumAge`. */
  readonly obtainedAt?: Date;
}

const OPTIONS: Readonly<Record<keyof VerifyOptions, true>> = {
  certificates: true,
  roots: true,
  crls: true,
  policy: true,
  at: true,
  obtainedAt: true,
};

export interface Verdict {
  /** True if every check holds. */
  readonly ok: boolean;
  readonly checks: readonly Check[];
  /** Those that do not hold. */
  readonly failures: readonly Check[];
  /** True if SoftCVM's authority marked a certificate of the chain as its own: the evidence is software's, whoever is trusted. */
  readonly isSoftware: boolean;
  /** Undefined if the bytes are no report. */
  readonly report: AttestationReport | undefined;
}

/**
 * Judges `bytes`, a report or a response that holds one. What is malformed in report, certificates or lists fails a check that says what and
 * where; only malformed options, policy or roots throw (RangeError; DerError, EvidenceError).
 */
export async function verifyReport(bytes: Uint8Array, options: VerifyOptions): Promise<Verdict> {
  requireOptions(options);
  const checks = new Checks();
  const { policy = {}, at = new Date() } = options;
  const parsed = read(checks, 'report', () => parseReport(bytes));
  const signatures = new SignatureChecks();
  const signed = parsed && new ReportSignature(parsed, signatures);
  const certificates: Certificate[] = [];
  const names = new Map<Certificate, string>();
  for (const [index, file] of options.certificates.entries()) {
    const name = labelOf('certificates', options.certificates, index);
    for (const certificate of read(checks, name, () => readCertificates(file, name)) ?? []) {
      if (find(certificates, certificate.bytes) !== undefined) continue;
      certificates.push(certificate);
      names.set(certificate, name);
      checkKind(checks, name, certificate);
      if (signed?.mayBeMadeBy(certificate)) await signed.begin(certificate);
    }
  }
  const lists = options.crls ?? [];
  const crls = lists.flatMap((file, index): GivenList[] => {
    const name = labelOf('CRL', lists, index);
    const list = read(checks, name, () => parseCrl(file, name));
    return list === undefined ? [] : [{ name, list }];
  });
  const roots: Certificate[] = [];
  for (const [index, file] of options.roots.entries()) {
    const known = find(certificates, file);
    for (const root of known === undefined ? readCertificates(file, `root ${index}`) : [known])
      if (find(roots, root.bytes) === undefined) roots.push(root);
  }
  const verdict = (path?: Path): Verdict => ({
    ok: checks.list.every(({ ok }) => ok),
    checks: checks.list,
    failures: checks.list.filter(({ ok }) => !ok),
    isSoftware: [path?.leaf, path?.middle, path?.root].some((one) => one?.isSoftware),
    report: parsed,
  });
  if (signed === undefined) return verdict();
  const { report, leafKind } = signed;

  checkForm(checks, report);
  const leafFaults = async (leaf: Certificate): Promise<number> => {
    const bound = new Checks();
    checkBinding(bound, report, leaf, leaf.product);
    return bound.list.filter(({ ok }) => !ok).length + ((await signed.isMadeBy(leaf)) ? 0 : 1);
  };
  const { product: reported } = report;
  const input = { certificates, roots, crls, at, leafKind, product: reported, signatures };
  const path = await findPath({ ...input, leafFaults });
  const { leaf } = path;
  const product = leaf?.product ?? reported;
  checkChain(checks, { ...input, ...path, revocation: policy.revocation ?? 'if given' });
  for (const [certificate, name] of names) {
    const isOther = certificate !== path.root && find(roots, certificate.bytes) === undefined;
    if (isOther && certificate.kind === 'ARK' && certificate.product === product)
      await checkOtherRoot(checks, name, certificate, signatures);
  }
  checkSignature(checks, report, leaf, signed);
  if (leaf !== undefined) checkBinding(checks, report, leaf, product);
  checkTcbOrder(checks, report, product);
  checkPolicy(checks, report, policy, product, { at, obtainedAt: options.obtainedAt });
  await checks.settled();
  return verdict(path);
}

/** RangeError: an option that is none, or cannot be what it is. */
function requireOptions(options: VerifyOptions): void {
  requireKnownFields('options', options, OPTIONS);
  const { certificates, roots, crls = [], policy = {}, at, obtainedAt } = options;
  requireFiles('options.certificates', certificates);
  requireFiles('options.roots', roots);
  requireFiles('options.crls', crls);
  requireKind('options.at', at, isTime, 'a valid Date');
  requireKind('options.obtainedAt', obtainedAt, isTime, 'a valid Date');
  requireKnownPolicy(policy);
}

const isTime = (value: unknown): boolean => value instanceof Date && !Number.isNaN(value.getTime());

const find = (certificates: readonly Certificate[], bytes: Uint8Array): Certificate | undefined =>
  certificates.find((one) => sameBytes(one.bytes, bytes));

const labelOf = (name: string, files: readonly Uint8Array[], index: number): string =>
  files.length === 1 ? name : `${name}[${index}]`;

/** One that is malformed fails a check. */
function read<T>(checks: Checks, name: string, parse: () => T): T | undefined {
  try {
    return parse();
  } catch (error) {
    if (!(error instanceof DerError || error instanceof EvidenceError)) throw error;
    checks.add(`${name}.form`, false, error.message, 'well-formed');
    return undefined;
  }
}

/**
 * Among the evidence others may lie: of other generations, of other chips, of who is not AMD. One whose names are AMD's but belong to nothing in
 * AMD's chains has been changed, or says that it is what it is not.
 */
function checkKind(checks: Checks, name: string, { kind, subject, issuer }: Certificate): void {
  if (kind !== undefined) return;
  const isAmd = [...subject.attributes, ...issuer.attributes].some(
    ([oid, value]) => oid === OID.ORGANIZATION && value === AMD_ORGANIZATION,
  );
  if (!isAmd) return;
  const got = `${subject.text}, issued by ${issuer.text}`;
  checks.add(`${name}.kind`, false, got, 'an ARK, ASK, ASVK, VCEK or VLEK of Milan, Genoa or Turin');
}

/** Who has another root of that product may send it; a root that its key did not sign has been changed. */
async function checkOtherRoot(
  checks: Checks,
  name: string,
  root: Certificate,
  signatures: SignatureChecks,
): Promise<void> {
  if (await isSelfSigned(root, signatures)) return;
  const want = `made by its own key, as that of any ${root.subject.commonName}`;
  checks.add(`${name}.signature`, false, 'wrong', want);
}

function checkForm(checks: Checks, report: AttestationReport): void {
  const { reservedByteSet } = report;
  const got = reservedByteSet === undefined ? 'zero' : `0x${reservedByteSet.toString(16)} is set`;
  checks.add('report.reserved', reservedByteSet === undefined, got, 'zero');
  checks.equal('report.signature-algorithm', report.signatureAlgo, SIGNATURE_ALGO_ECDSA_P384_SHA384);
  const isKnown = report.signingKey === 'VCEK' || report.signingKey === 'VLEK';
  checks.add('signing-key', isKnown, report.signingKey, 'VCEK or VLEK');
  if (report.version >= 3) {
    const cpuid = `family 0x${report.cpuidFamily.toString(16)}, model 0x${report.cpuidModel.toString(16)}`;
    checks.add('report.cpuid', report.product !== undefined, cpuid, 'Milan, Genoa or Turin');
  }
}

/**
 * The report's signature against certificates whose kind fits. It takes longest, so it begins as soon as such a certificate is read, and the platform
 * works on it beside the rest.
 */
class ReportSignature {
  readonly leafKind: 'VCEK' | 'VLEK';
  readonly report: AttestationReport;
  readonly #signatures: SignatureChecks;
  readonly #begun = new Map<Certificate, Promise<boolean>>();

  constructor(report: AttestationReport, signatures: SignatureChecks) {
    this.report = report;
    this.#signatures = signatures;
    this.leafKind = report.signingKey === 'VLEK' ? 'VLEK' : 'VCEK';
  }

  mayBeMadeBy({ kind }: Certificate): boolean {
    return kind === this.leafKind;
  }

  /** Resolves when the platform works on it. */
  async begin(certificate: Certificate): Promise<void> {
    const { signedBytes, p1363 = new Uint8Array(0) } = this.report;
    this.#begun.set(certificate, this.#signatures.ecdsa(certificate.publicKey, signedBytes, p1363));
    await this.#signatures.begun(certificate.publicKey);
  }

  async isMadeBy(leaf: Certificate): Promise<boolean> {
    return (await this.#begun.get(leaf)) === true;
  }
}

function checkSignature(
  checks: Checks,
  { p1363 }: AttestationReport,
  leaf: Certificate | undefined,
  signed: ReportSignature,
): void {
  const name = 'report.signature';
  if (p1363 === undefined) checks.add(name, false, 'R or S above 48 bytes', 'numbers of P-384');
  else if (leaf === undefined) checks.add(name, false, 'no key to check it with', "made by the chip's key");
  else {
    const want = `made by the key of the ${leaf.kind}`;
    checks.addOutcome(
      name,
      signed.isMadeBy(leaf).then((ok) => ({ ok, got: ok ? want : 'wrong', want })),
    );
  }
}

/** The certificate speaks of the chip and the TCB that the report names. */
function checkBinding(
  checks: Checks,
  report: AttestationReport,
  leaf: Certificate,
  product: Product | undefined,
): void {
  const { amd, kind } = leaf;
  const name = amd.productName ?? 'no product name';
  const generation = product ?? 'Milan, Genoa or Turin';
  checks.add(`${kind}.product-name`, name.split('-')[0] === product, name, generation);
  if (report.product !== undefined) checks.equal('report.product', report.product, generation);
  if (product !== undefined) {
    const levels = decodeTcb(generationOf(product), report.reportedTcb);
    for (const component of tcbComponents(generationOf(product))) {
      const got = amd.levels.get(TCB_OID[component]);
      checks.equal(`${kind}.tcb.${component}`, got ?? 'none', levels[component]!);
    }
  }
  if (kind === 'VLEK') {
    checks.add('VLEK.csp-id', amd.cspId !== undefined, amd.cspId ?? 'none', 'a cloud provider');
    checks.add(
      'VLEK.hwid',
      amd.hwid === undefined,
      amd.hwid === undefined ? 'none' : toHex(amd.hwid),
      'none',
    );
    return;
  }
  const { hwid } = amd;
  const want = product === undefined ? 64 : hwidBytes(product);
  if (hwid === undefined || hwid.length !== want) {
    checks.add('VCEK.hwid', false, hwid === undefined ? 'none' : `${hwid.length} bytes`, `${want} bytes`);
  } else if (report.isChipIdMasked) {
    checks.add('VCEK.hwid', true, 'the report masks its chip id', 'the report masks its chip id');
  } else {
    const id = report.chipId.subarray(0, want);
    const isSame = sameBytes(hwid, id);
    checks.add('VCEK.hwid', isSame, toHex(hwid), toHex(id));
  }
}
