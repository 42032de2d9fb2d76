/**
 * Where an authority's keys, chips and dates come from: all from a seed, with nothing stored, or from a state directory, made at random
 * when first asked for.
 */
import { createPrivateKey, hkdfSync, type KeyObject, randomBytes } from 'node:crypto';
import { generationOf, hwidBytes, PRODUCTS, type Product } from '../abi/amd-certificate.ts';
import { platformEntropy, seededEntropy } from '../base/entropy.ts';
import { Chip, type ChipGeneration, type SignatureMode } from '../hardware/chip.ts';
import type { Revocation } from './issue.ts';
import { generateRsaKey, rsaKeyOfPrimes, type SaltMode } from './rsa-signer.ts';
import { SEEDED_ROOTS } from './seeded-roots.ts';
import { StateDirectory } from './state-directory.ts';

export type RootKind = 'ARK' | 'ASK' | 'ASVK';

/** Keeps what an authority knows. */
export interface Keeper {
  readonly salts: SaltMode;
  readonly signatures: SignatureMode;
  /** Years that a VLEK and a revocation list last. */
  readonly shortYears: number;
  /** The date of what is issued now. */
  now(): Date;
  rootKey(product: Product, kind: RootKind): Promise<KeyObject>;
  /** A certificate that was issued before, or `issue`'s, which is kept. */
  certificate(product: Product, kind: RootKind, issue: () => Uint8Array): Uint8Array;
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
  readonly #seed: number;
  readonly #chips = new Map<ChipGeneration, Chip>();
  readonly #revoked = new Map<Product, Revocation[]>();

  constructor(seed: number) {
    this.#seed = seed;
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

  certificate(_product: Product, _kind: RootKind, issue: () => Uint8Array): Uint8Array {
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
        entropy: seededEntropy(this.#seed),
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

/** A chip in the state directory. Bytes in hex, versions as TCB_VERSION in hex. */
interface ChipRecord {
  readonly generation: ChipGeneration;
  readonly secret: string;
  readonly id: string;
  readonly current: string;
  readonly committed: string;
  readonly reported: string;
}

const hex = (value: bigint): string => `0x${value.toString(16).padStart(16, '0')}`;

/** Keys and chips live in a directory and are made at random when first asked for; the first root takes seconds. */
export class StoredKeeper implements Keeper {
  readonly salts = 'random';
  readonly signatures = 'random';
  readonly shortYears = 1;
  readonly #state: StateDirectory;

  constructor(path: string) {
    this.#state = new StateDirectory(path);
  }

  now(): Date {
    return new Date(Math.floor(Date.now() / 1000) * 1000);
  }

  async rootKey(product: Product, kind: RootKind): Promise<KeyObject> {
    const file = `roots/${product}-${kind}.pem`;
    const kept = this.#state.read(file);
    if (kept !== undefined) return createPrivateKey(kept);
    const made = (await generateRsaKey()).export({ format: 'pem', type: 'pkcs8' });
    return createPrivateKey(this.#state.writeOnce(file, made));
  }

  certificate(product: Product, kind: RootKind, issue: () => Uint8Array): Uint8Array {
    const file = `certificates/${product}-${kind}.der`;
    return this.#state.read(file) ?? this.#state.writeOnce(file, issue());
  }

  chips(): Chip[] {
    return this.#state.list('chips').map((name) => this.#load(`chips/${name}`));
  }

  chip(generation: ChipGeneration): Chip {
    const known = this.#state.list('chips').find((name) => name.startsWith(`${generation}-`));
    if (known !== undefined) return this.#load(`chips/${known}`);
    const chip = new Chip({ generation, entropy: platformEntropy(), signatures: this.signatures });
    this.save(chip);
    return chip;
  }

  save(chip: Chip): void {
    const record: ChipRecord = {
      generation: chip.generation,
      secret: Buffer.from(chip.fuses.secret).toString('hex'),
      id: Buffer.from(chip.fuses.id).toString('hex'),
      current: hex(chip.currentTcb),
      committed: hex(chip.committedTcb),
      reported: hex(chip.reportedTcb),
    };
    this.#state.write(`chips/${chip.generation}-${record.id}.json`, `${JSON.stringify(record, null, 2)}\n`);
  }

  #load(file: string): Chip {
    const { record, secret, id } = readChip(
      this.#state.read(file)?.toString() ?? '',
      `${this.#state.path}/${file}`,
    );
    const { generation } = record;
    const chip = new Chip({
      generation,
      entropy: platformEntropy(),
      fuses: { secret, id },
      signatures: this.signatures,
    });
    chip.currentTcb = BigInt(record.current);
    chip.committedTcb = BigInt(record.committed);
    chip.reportedTcb = BigInt(record.reported);
    return chip;
  }

  derive(label: string, length: number): Uint8Array {
    const secret = this.#state.read('secret') ?? this.#state.writeOnce('secret', randomBytes(48));
    return bytesOf(secret, label, length);
  }

  #revocations(): Record<string, { serial: number; at: string }[]> {
    const text = this.#state.read('revoked.json');
    return text === undefined ? {} : JSON.parse(text.toString());
  }

  revoked(product: Product): readonly Revocation[] {
    return (this.#revocations()[product] ?? []).map(({ serial, at }) => ({ serial, at: new Date(at) }));
  }

  revoke(product: Product, { serial, at }: Revocation): void {
    const all = this.#revocations();
    all[product] = [...(all[product] ?? []), { serial, at: at.toISOString() }];
    this.#state.write('revoked.json', `${JSON.stringify(all, null, 2)}\n`);
  }
}

function readChip(text: string, path: string): { record: ChipRecord; secret: Uint8Array; id: Uint8Array } {
  const bad = (field: string, got: unknown, want: string): Error =>
    new RangeError(`${path}: ${field}: got ${JSON.stringify(got)}, want ${want}`);
  let record: Partial<Record<keyof ChipRecord, unknown>>;
  try {
    record = JSON.parse(text);
  } catch {
    throw bad('file', text.slice(0, 40), 'JSON');
  }
  const product = PRODUCTS.find((one) => generationOf(one) === record.generation);
  if (product === undefined) throw bad('generation', record.generation, 'milan, genoa or turin');
  const bytes = (field: 'secret' | 'id', length: number): Uint8Array => {
    const value = record[field];
    if (typeof value !== 'string' || !new RegExp(`^[0-9a-f]{${2 * length}}$`).test(value)) {
      throw bad(field, value, `${length} bytes in hex`);
    }
    return Buffer.from(value, 'hex');
  };
  for (const field of ['current', 'committed', 'reported'] as const) {
    if (typeof record[field] !== 'string' || !/^0x[0-9a-f]{1,16}$/.test(record[field])) {
      throw bad(field, record[field], 'a TCB_VERSION in hex');
    }
  }
  return { record: record as ChipRecord, secret: bytes('secret', 48), id: bytes('id', hwidBytes(product)) };
}
