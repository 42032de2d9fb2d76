/**
 * Where an authority's keys, chips and dates come from: all from a seed, with nothing stored, or from a state directory, made at random
 * when first asked for.
 */
import { hkdfSync, type KeyObject, randomBytes } from 'node:crypto';
import { generationOf, PRODUCTS, type Product } from '../abi/amd-certificate.ts';
import { Chip, type ChipGeneration, type SignatureMode } from '../hardware/chip.ts';
import type { Revocation } from './issue.ts';
import { generateRsaKey, rsaKeyOfPrimes, type SaltMode } from './rsa-signer.ts';
import { SEEDED_ROOTS } from './seeded-roots.ts';
import { StateDirectory } from './state-directory.ts';
import { StateError } from './state-error.ts';
import {
  type CertificateKeys,
  type ChipRecord,
  chipFile,
  readCertificate,
  readChip,
  readRevocations,
  readRootKey,
  readSecret,
} from './state-files.ts';

export type RootKind = 'ARK' | 'ASK' | 'ASVK';

/** Keeps what an authority knows. What is kept in a directory and damaged there throws StateError. */
export interface Keeper {
  readonly salts: SaltMode;
  readonly signatures: SignatureMode;
  /** Years that a VLEK and a revocation list last. */
  readonly shortYears: number;
  /** The date of what is issued now. */
  now(): Date;
  rootKey(product: Product, kind: RootKind): Promise<KeyObject>;
  /** A certificate that was issued before for those keys, or `issue`'s, which is kept. */
  certificate(product: Product, kind: RootKind, keys: CertificateKeys, issue: () => Uint8Array): Uint8Array;
  /** Chips that the authority has made. */
  chips(): Chip[];
  /** The first chip of that generation; it is made if there is none. */
  chip(generation: ChipGeneration): Chip;
  /** Keeps a chip's versions. */
  save(chip: Chip): void;
  /** `length` bytes that follow from the authority's secret and `label`. */
  derive(label: string, length: number): Uint8Array;
  revoked(product: Product): readonly Revocation[];
  revoke(product: Product, revocation: Revocation): void;
}

const bytesOf = (key: Uint8Array, label: string, length: number): Uint8Array =>
  new Uint8Array(hkdfSync('sha384', key, new Uint8Array(0), `SoftCVM ${label}`, length));

/** Everything follows from `seed`. What it issues is dated 2026-01-01 and lasts 7 years, so that a run repeats and goes on to verify. */
export class SeededKeeper implements Keeper {
  readonly salts = 'repeatable';
  readonly signatures = 'rfc6979';
  readonly shortYears = 7;
  readonly #secret: Uint8Array;
  readonly #chips = new Map<ChipGeneration, Chip>();
  readonly #revoked = new Map<Product, Revocation[]>();

  constructor(seed: number) {
    this.#secret = new Uint8Array(8);
    new DataView(this.#secret.buffer).setFloat64(0, seed);
  }

  now(): Date {
    return new Date(Date.UTC(2026, 0, 1));
  }

  async rootKey(product: Product, kind: RootKind): Promise<KeyObject> {
    const [p, q] = SEEDED_ROOTS[product][kind].map((prime) =>
      BigInt(`0x${Buffer.from(prime, 'base64url').toString('hex')}`),
    ) as [bigint, bigint];
    return rsaKeyOfPrimes(p, q);
  }

  certificate(
    _product: Product,
    _kind: RootKind,
    _keys: CertificateKeys,
    issue: () => Uint8Array,
  ): Uint8Array {
    return issue();
  }

  /** One of each generation. */
  chips(): Chip[] {
    return PRODUCTS.map((product) => this.chip(generationOf(product)));
  }

  chip(generation: ChipGeneration): Chip {
    let chip = this.#chips.get(generation);
    if (chip === undefined) {
      chip = new Chip({
        generation,
        fuses: {
          secret: this.derive(`chip secret ${generation}`, 48),
          id: this.derive(`chip id ${generation}`, generation === 'turin' ? 8 : 64),
        },
        signatures: this.signatures,
      });
      this.#chips.set(generation, chip);
    }
    return chip;
  }

  save(): void {}

  derive(label: string, length: number): Uint8Array {
    return bytesOf(this.#secret, label, length);
  }

  revoked(product: Product): readonly Revocation[] {
    return this.#revoked.get(product) ?? [];
  }

  revoke(product: Product, revocation: Revocation): void {
    this.#revoked.set(product, [...this.revoked(product), revocation]);
  }
}

const certificateFile = (product: Product, kind: RootKind): string => `certificates/${product}-${kind}.der`;

const hex = (value: bigint): string => `0x${value.toString(16).padStart(16, '0')}`;

/** Keys and chips live in a directory and are made at random when first asked for; the first root takes seconds. */
export class StoredKeeper implements Keeper {
  readonly salts = 'random';
  readonly signatures = 'random';
  readonly shortYears = 1;
  readonly #state: StateDirectory;

  /** Throws StateError: the directory is another's, or what it holds of chips, revocations and the secret is damaged, whether it is asked for or not. */
  constructor(path: string) {
    this.#state = new StateDirectory(path);
    this.#revocations();
    this.chips();
    const secret = this.#state.read('secret');
    if (secret !== undefined) readSecret(secret, this.#state.pathOf('secret'));
  }

  now(): Date {
    return new Date(Math.floor(Date.now() / 1000) * 1000);
  }

  async rootKey(product: Product, kind: RootKind): Promise<KeyObject> {
    const file = `roots/${product}-${kind}.pem`;
    const certificate = certificateFile(product, kind);
    // Another process that is just making both makes the key first.
    const isCertified = this.#state.read(certificate) !== undefined;
    let kept = this.#state.read(file);
    if (kept === undefined) {
      if (isCertified)
        throw new StateError(this.#state.pathOf(file), '', 'no file', `the private key of ${certificate}`);
      const made = (await generateRsaKey()).export({ format: 'pem', type: 'pkcs8' });
      kept = this.#state.writeOnce(file, made);
    }
    return readRootKey(kept, this.#state.pathOf(file));
  }

  certificate(product: Product, kind: RootKind, keys: CertificateKeys, issue: () => Uint8Array): Uint8Array {
    const file = certificateFile(product, kind);
    const kept = this.#state.read(file) ?? this.#state.writeOnce(file, issue());
    return readCertificate(kept, this.#state.pathOf(file), keys);
  }

  chips(): Chip[] {
    return this.#state.list('chips').map((name) => this.#load(`chips/${name}`));
  }

  chip(generation: ChipGeneration): Chip {
    const known = this.#state.list('chips').find((name) => name.startsWith(`${generation}-`));
    if (known !== undefined) return this.#load(`chips/${known}`);
    const chip = new Chip({ generation, signatures: this.signatures });
    this.save(chip);
    return chip;
  }

  save(chip: Chip): void {
    const { generation, fuses } = chip;
    const record: ChipRecord = {
      generation,
      secret: Buffer.from(fuses.secret).toString('hex'),
      id: Buffer.from(fuses.id).toString('hex'),
      current: hex(chip.currentTcb),
      committed: hex(chip.committedTcb),
      reported: hex(chip.reportedTcb),
    };
    this.#state.write(chipFile(generation, fuses.id), `${JSON.stringify(record, null, 2)}\n`);
  }

  #load(file: string): Chip {
    const bytes = this.#state.read(file) ?? new Uint8Array();
    const { generation, fuses, ...versions } = readChip(bytes, this.#state.pathOf(file));
    const chip = new Chip({ generation, fuses, signatures: this.signatures });
    chip.currentTcb = versions.current;
    chip.committedTcb = versions.committed;
    chip.reportedTcb = versions.reported;
    return chip;
  }

  derive(label: string, length: number): Uint8Array {
    const kept = this.#state.read('secret') ?? this.#state.writeOnce('secret', randomBytes(48));
    return bytesOf(readSecret(kept, this.#state.pathOf('secret')), label, length);
  }

  #revocations(): Map<Product, Revocation[]> {
    const kept = this.#state.read('revoked.json');
    return kept === undefined ? new Map() : readRevocations(kept, this.#state.pathOf('revoked.json'));
  }

  revoked(product: Product): readonly Revocation[] {
    return this.#revocations().get(product) ?? [];
  }

  revoke(product: Product, revocation: Revocation): void {
    const all = this.#revocations();
    all.set(product, [...(all.get(product) ?? []), revocation]);
    this.#state.write('revoked.json', `${JSON.stringify(Object.fromEntries(all), null, 2)}\n`);
  }
}
