/**
 * A chip: its generation, its fuses, and the versions of what it runs. The VCEK of a TCB follows from the fuses and that TCB (chip/key-derivation.ts). Versions
 * obey reported ≤ committed ≤ current, by firmware's order (SNP ABI specification, "TCB rollback").
 *
 * The fused secret never leaves in anything that a host can read; `fuses` hands it to who keeps chips between runs, and to nobody else.
 */
import {
  type ChipGeneration,
  compareTcb,
  decodeTcb,
  encodeTcb,
  type TcbVersion,
  tcbComponents,
} from '../abi/tcb-version.ts';
import { type Entropy, platformEntropy, requireEntropy } from '../base/entropy.ts';
import {
  requireBytes,
  requireInteger,
  requireKnownFields,
  requireOneOf,
  requireU64,
} from '../base/option-checks.ts';
import { hashSticks, nistKdf, p384PrivateKey, SEED_SIZE } from './chip/key-derivation.ts';
import { type FirmwareVersion, PERSONALITIES, type Personality } from './chip/personality.ts';
import { type SignatureMode, SigningKey } from './chip/signing-key.ts';

export type { ChipGeneration, TcbVersion } from '../abi/tcb-version.ts';
export type { FirmwareVersion, Personality } from './chip/personality.ts';
export { type SignatureMode, SigningKey } from './chip/signing-key.ts';
export { VLEK_SIZE, vlekSigningKey, wrapVlek } from './chip/vlek.ts';

/** What is burnt into a chip. */
export interface Fuses {
  /** 48 bytes. */
  readonly secret: Uint8Array;
  /** The hardware id: 64 bytes, Turin 8. */
  readonly id: Uint8Array;
}

export interface ChipOptions {
  readonly generation: ChipGeneration;
  /** Where fuses come from when they are not given: the platform's, by default. */
  readonly entropy?: Entropy;
  readonly fuses?: Fuses;
  /** What the chip runs: the generation's own by default. Components that are left out are the default's. */
  readonly tcb?: Partial<TcbVersion>;
  readonly firmware?: FirmwareVersion;
  /** What is committed: what runs, by default. */
  readonly committed?: { readonly tcb?: Partial<TcbVersion>; readonly firmware?: FirmwareVersion };
  /** 'rfc6979' where a run has to repeat; random by default. */
  readonly signatures?: SignatureMode;
}

const CHIP_OPTIONS: Record<keyof ChipOptions, true> = {
  ...{ generation: true, entropy: true, fuses: true, tcb: true },
  ...{ firmware: true, committed: true, signatures: true },
};

const FUSES: Record<keyof Fuses, true> = { secret: true, id: true };
const COMMITTED: Record<keyof NonNullable<ChipOptions['committed']>, true> = { tcb: true, firmware: true };
const FIRMWARE: Record<keyof FirmwareVersion, true> = { major: true, minor: true, build: true };
const SIGNATURES = ['random', 'rfc6979'] as const satisfies readonly SignatureMode[];

export class Chip {
  readonly personality: Personality;
  readonly fuses: Fuses;
  readonly signatures: SignatureMode;
  /** TCB_VERSION of what runs. */
  currentTcb: bigint;
  /** What runs may not be rolled back below this. */
  committedTcb: bigint;
  /** What attestation reports show and the VCEK is derived for. */
  reportedTcb: bigint;
  firmware: FirmwareVersion;
  committedFirmware: FirmwareVersion;
  readonly #vceks = new Map<bigint, { seed: Uint8Array; key: SigningKey }>();

  /** Throws RangeError for an option that is none, fuses of the wrong length, an SVN that is no byte, or something committed that is above what runs. */
  constructor(options: ChipOptions) {
    requireKnownFields('chip', options, CHIP_OPTIONS);
    const {
      generation,
      entropy = platformEntropy(),
      fuses,
      firmware,
      committed = {},
      signatures = SIGNATURES[0],
    } = options;
    requireOneOf('generation', generation, Object.keys(PERSONALITIES));
    this.personality = PERSONALITIES[generation];
    requireEntropy('entropy', entropy);
    if (fuses !== undefined) requireFuses(fuses);
    this.fuses = fuses ?? burn(entropy, this.personality.idSize);
    if (this.fuses.secret.length !== SEED_SIZE || this.fuses.id.length !== this.personality.idSize) {
      const want = `${SEED_SIZE} and ${this.personality.idSize}`;
      throw new RangeError(
        `fuses of ${generation}: got ${this.fuses.secret.length} and ${this.fuses.id.length} bytes, want ${want}`,
      );
    }
    requireOneOf('signatures', signatures, SIGNATURES);
    this.signatures = signatures;
    requireKnownFields('committed', committed, COMMITTED);
    if (firmware !== undefined) requireFirmware('firmware', firmware);
    if (committed.firmware !== undefined) requireFirmware('committed.firmware', committed.firmware);
    const tcb = { ...this.personality.tcb, ...levelsOf('tcb', options.tcb, this.personality.tcb) };
    this.currentTcb = encodeTcb(generation, tcb);
    this.committedTcb = encodeTcb(generation, { ...tcb, ...levelsOf('committed.tcb', committed.tcb, tcb) });
    if (compareTcb(generation, this.committedTcb, this.currentTcb) > 0)
      throw new RangeError('chip: the committed TCB is above the current one');
    this.reportedTcb = this.committedTcb;
    this.firmware = firmware ?? this.personality.firmware;
    this.committedFirmware = committed.firmware ?? this.firmware;
    if (compareFirmware(this.committedFirmware, this.firmware) > 0)
      throw new RangeError('chip: the committed firmware is above the current one');
  }

  get generation(): ChipGeneration {
    return this.personality.generation;
  }

  /** CPUID 1 EAX. */
  get signature(): number {
    return this.personality.signature;
  }

  /** CHIP_ID of reports: 64 bytes. */
  get chipId(): Uint8Array<ArrayBuffer> {
    const id = new Uint8Array(64);
    id.set(this.fuses.id);
    return id;
  }

  /** The TCB_VERSION of components; those that are left out are what runs. RangeError: a component that is none, or no byte. */
  tcbOf(components: Partial<TcbVersion>): bigint {
    const running = decodeTcb(this.generation, this.currentTcb);
    return encodeTcb(this.generation, { ...running, ...levelsOf('tcb', components, running) });
  }

  /** The versioned chip endorsement key of a TCB. Made once. */
  vcek(tcb: bigint): SigningKey {
    return this.#endorsement(tcb).key;
  }

  /** The seed of a TCB's VCEK, from which guests' keys are derived. 48 bytes. */
  vcekSeed(tcb: bigint): Uint8Array {
    return this.#endorsement(tcb).seed;
  }

  /** The key under which a VLEK for this chip at that TCB is wrapped. 32 bytes. */
  vlekWrappingKey(tcb: bigint): Uint8Array {
    return nistKdf(this.vcekSeed(tcb), 'vlek-wrapping-key', new Uint8Array(0), 32);
  }

  #endorsement(tcb: bigint): { seed: Uint8Array; key: SigningKey } {
    let known = this.#vceks.get(tcb);
    if (known === undefined) {
      requireU64('tcb', tcb);
      const components = decodeTcb(this.generation, tcb);
      const svns = tcbComponents(this.generation).map((component) => components[component] ?? 0);
      const seed = hashSticks(this.fuses.secret, svns).at(-1)!;
      known = { seed, key: new SigningKey(p384PrivateKey(seed, 'VCEK'), this.signatures) };
      this.#vceks.set(tcb, known);
    }
    return known;
  }
}

function requireFuses(fuses: Fuses): void {
  requireKnownFields('fuses', fuses, FUSES);
  requireBytes('fuses.secret', fuses.secret);
  requireBytes('fuses.id', fuses.id);
}

/** Numbers of a version are bytes in reports. */
function requireFirmware(path: string, version: FirmwareVersion): void {
  requireKnownFields(path, version, FIRMWARE);
  for (const part of ['major', 'minor', 'build'] as const)
    requireInteger(`${path}.${part}`, version[part], 0, 255);
}

/** Components that are given. RangeError: one that `known` has not, or that is no byte. */
function levelsOf(path: string, given: Partial<TcbVersion> = {}, known: TcbVersion): Partial<TcbVersion> {
  requireKnownFields(path, given, known);
  const levels = Object.entries(given).filter(([, level]) => level !== undefined);
  for (const [component, level] of levels) requireInteger(`${path}.${component}`, level, 0, 255);
  return Object.fromEntries(levels);
}

/** Negative, 0 or positive. */
export const compareFirmware = (a: FirmwareVersion, b: FirmwareVersion): number =>
  a.major - b.major || a.minor - b.minor || a.build - b.build;

function burn(entropy: Entropy, idSize: number): Fuses {
  const secret = new Uint8Array(SEED_SIZE);
  const id = new Uint8Array(idSize);
  entropy.fill(secret);
  entropy.fill(id);
  return { secret, id };
}
