/**
 * AMD's back office in software: it makes chips, certifies their keys and those of cloud providers, and revokes. One object for all
 * generations; keys and certificates are made when first asked for. Nobody trusts its roots unless told to, and each certificate says whose it
 * is (DESIGN decision 10).
 */
import { createHash } from 'node:crypto';
import { generationOf, PRODUCTS, type Product } from '../abi/amd-certificate.ts';
import { CERTIFICATE_GUID, encodeCertificateTable } from '../abi/certificate-table.ts';
import { type Chip, type ChipGeneration, VLEK_SIZE, vlekSigningKey, wrapVlek } from '../hardware/chip.ts';
import { type EndorsedChip, endorsedChip } from './endorsed-chip.ts';
import {
  type Issuer,
  issueArk,
  issueCrl,
  issueIntermediate,
  issueVcek,
  issueVlek,
  serialOf,
  type Validity,
} from './issue.ts';
import { type Keeper, type RootKind, SeededKeeper, StoredKeeper } from './keeper.ts';
import { RsaSigner } from './rsa-signer.ts';

/** A chip's or a provider's certificate and those above it, DER. */
export interface CertificateChain {
  readonly leaf: Uint8Array;
  /** ASK or ASVK. */
  readonly intermediate: Uint8Array;
  readonly ark: Uint8Array;
}

export interface LoadedKey {
  readonly chain: CertificateChain;
  /** What SNP_VLEK_LOAD takes: the key, wrapped for one chip at one TCB. */
  readonly wrapped: Uint8Array;
}

const ROOT_YEARS = 25;
const VCEK_YEARS = 7;

/** The name in VLEKs, unless the caller has one. */
export const DEFAULT_CSP = 'softcvm.example';

const yearsAfter = (from: Date, years: number): Validity => {
  const to = new Date(from);
  to.setUTCFullYear(to.getUTCFullYear() + years);
  return { from, to };
};

export class Authority {
  readonly #keeper: Keeper;
  readonly #issuers = new Map<string, Promise<{ issuer: Issuer; certificate: Uint8Array }>>();
  readonly #vceks = new Map<string, Uint8Array>();

  private constructor(keeper: Keeper) {
    this.#keeper = keeper;
  }

  /** All follows from `seed`; nothing is stored. Its root keys are public: for tests alone. */
  static seeded(seed: number): Authority {
    return new Authority(new SeededKeeper(seed));
  }

  /** Lives in the directory `path`, which is made if there is none. */
  static stored(path: string): Authority {
    return new Authority(new StoredKeeper(path));
  }

  /** The chip of that generation that belongs to this authority; it is made if there is none. */
  chip(generation: ChipGeneration): Chip {
    return this.#keeper.chip(generation);
  }

  /** All chips that this authority has made. */
  chips(): Chip[] {
    return this.#keeper.chips();
  }

  /** Keeps the versions of a chip: after an update or commit of its TCB. */
  save(chip: Chip): void {
    this.#keeper.save(chip);
  }

  /** The root's certificate, DER. */
  async ark(product: Product): Promise<Uint8Array> {
    return (await this.#authority(product, 'ARK')).certificate;
  }

  /** ASK or ASVK, and ARK: what a key distribution server sends as the chain. DER. */
  async chain(endpoint: 'vcek' | 'vlek', product: Product): Promise<Omit<CertificateChain, 'leaf'>> {
    const intermediate = await this.#authority(product, endpoint === 'vcek' ? 'ASK' : 'ASVK');
    return { intermediate: intermediate.certificate, ark: await this.ark(product) };
  }

  /** SHA-256 of the root's certificate, in hex: what a user compares before trusting it. */
  async fingerprint(product: Product): Promise<string> {
    return createHash('sha256')
      .update(await this.ark(product))
      .digest('hex');
  }

  /** The VCEK of a chip for a TCB_VERSION, DER. */
  async vcek(chip: Chip | EndorsedChip, tcb: bigint): Promise<Uint8Array> {
    const endorsed = 'fuses' in chip ? endorsedChip(chip) : chip;
    const { product, productName, hwid } = endorsed;
    const spki = endorsed.vcekSpki(tcb);
    const key = Buffer.from(spki).toString('base64') + tcb;
    let certificate = this.#vceks.get(key);
    if (certificate === undefined) {
      const { issuer } = await this.#authority(product, 'ASK');
      const validity = yearsAfter(this.#keeper.now(), VCEK_YEARS);
      certificate = issueVcek(issuer, { spki, productName, tcb, hwid }, validity);
      this.#vceks.set(key, certificate);
    }
    return certificate;
  }

  /** The certificate of a provider's key for a TCB_VERSION, DER. */
  async vlek(product: Product, tcb: bigint, cspId = DEFAULT_CSP): Promise<Uint8Array> {
    const { issuer } = await this.#authority(product, 'ASVK');
    const { spki } = vlekSigningKey(this.providerKey(product, tcb, cspId), this.#keeper.signatures);
    return issueVlek(issuer, { spki, tcb, cspId }, yearsAfter(this.#keeper.now(), this.#keeper.shortYears));
  }

  /** A provider's key for a chip at its reported TCB, wrapped, with its certificates. */
  async loadedKey(chip: Chip, cspId = DEFAULT_CSP): Promise<LoadedKey> {
    const { product } = chip.personality;
    const tcb = chip.reportedTcb;
    const id = Buffer.from(chip.fuses.id).toString('hex');
    const wrapped = wrapVlek({
      sticks: this.providerKey(product, tcb, cspId),
      tcb,
      wrappingKey: chip.vlekWrappingKey(tcb),
      iv: this.#keeper.derive(`vlek iv ${product} ${tcb} ${cspId} ${id}`, 12),
    });
    return {
      chain: { leaf: await this.vlek(product, tcb, cspId), ...(await this.chain('vlek', product)) },
      wrapped,
    };
  }

  /** A provider's key for a TCB_VERSION, as hash sticks (`vlekSigningKey`): what it has at home, outside any chip. */
  providerKey(product: Product, tcb: bigint, cspId = DEFAULT_CSP): Uint8Array {
    return this.#keeper.derive(`vlek ${product} ${tcb} ${cspId}`, VLEK_SIZE);
  }

  /** The certificates of a chip at its reported TCB. */
  async certificates(chip: Chip): Promise<CertificateChain> {
    const { product } = chip.personality;
    return { leaf: await this.vcek(chip, chip.reportedTcb), ...(await this.chain('vcek', product)) };
  }

  /** What a guest gets with an extended request of a chip at a TCB_VERSION: VCEK and ASK, or VLEK and ASVK; the root and its revocation list. */
  async certificateTable(
    chip: Chip,
    key: 'VCEK' | 'VLEK' = 'VCEK',
    tcb = chip.reportedTcb,
  ): Promise<Uint8Array<ArrayBuffer>> {
    const { product } = chip.personality;
    const leaf = await (key === 'VCEK' ? this.vcek(chip, tcb) : this.vlek(product, tcb));
    const { intermediate, ark } = await this.chain(key === 'VCEK' ? 'vcek' : 'vlek', product);
    return encodeCertificateTable([
      { guid: CERTIFICATE_GUID[key], bytes: leaf },
      { guid: CERTIFICATE_GUID.ASK, bytes: intermediate },
      { guid: CERTIFICATE_GUID.ARK, bytes: ark },
      { guid: CERTIFICATE_GUID.CRL, bytes: await this.crl(product) },
    ]);
  }

  /** The root's revocation list, DER; its number is the count of what was revoked. */
  async crl(product: Product): Promise<Uint8Array> {
    const { issuer } = await this.#authority(product, 'ARK');
    const revoked = this.#keeper.revoked(product);
    return issueCrl(issuer, revoked.length, revoked, yearsAfter(this.#keeper.now(), this.#keeper.shortYears));
  }

  /** Revokes the ASK or ASVK of a generation. */
  revoke(product: Product, kind: 'ASK' | 'ASVK'): void {
    this.#keeper.revoke(product, { serial: serialOf(kind, product), at: this.#keeper.now() });
  }

  /** The chip with that hardware id, if this authority made it. */
  findChip(product: Product, hwid: Uint8Array): Chip | undefined {
    return this.chips().find(
      (chip) => chip.generation === generationOf(product) && Buffer.compare(chip.fuses.id, hwid) === 0,
    );
  }

  #authority(product: Product, kind: RootKind): Promise<{ issuer: Issuer; certificate: Uint8Array }> {
    if (!PRODUCTS.includes(product))
      throw new RangeError(`product: got ${product}, want ${PRODUCTS.join(', ')}`);
    const name = `${product}-${kind}`;
    let made = this.#issuers.get(name);
    if (made === undefined) {
      made = this.#make(product, kind);
      this.#issuers.set(name, made);
    }
    return made;
  }

  async #make(product: Product, kind: RootKind): Promise<{ issuer: Issuer; certificate: Uint8Array }> {
    const signer = new RsaSigner(await this.#keeper.rootKey(product, kind), this.#keeper.salts);
    const issuer: Issuer = { kind, product, signer };
    const validity = yearsAfter(this.#keeper.now(), ROOT_YEARS);
    if (kind === 'ARK') {
      const keys = { subject: signer.spki, issuer: signer.spki };
      const certificate = this.#keeper.certificate(product, kind, keys, () => issueArk(issuer, validity));
      return { issuer, certificate };
    }
    const ark = (await this.#authority(product, 'ARK')).issuer;
    const keys = { subject: signer.spki, issuer: ark.signer.spki };
    const issue = (): Uint8Array => issueIntermediate(ark, kind, signer.spki, validity);
    return { issuer, certificate: this.#keeper.certificate(product, kind, keys, issue) };
  }
}
